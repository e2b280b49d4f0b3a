"""Bird's-eye pooling by the compiled engine."""

from __future__ import annotations

import torch
from torch import Tensor

from pointlib.ops._cpu import engine
from pointlib.ops._cpu.composition import bev_pool as composition
from pointlib.ops._cpu.composition.scatter import check_rows
from pointlib.ops._cpu.scatter import element


@engine.or_composition(composition.bev_pool_intervals)
def bev_pool_intervals(cells: Tensor, num_cells: int) -> tuple[Tensor, Tensor]:
    """Points by cell, those without one last, and where each cell's points begin."""
    cells = cells.contiguous()
    order = cells.new_empty(len(cells), dtype=torch.int32)
    interval_ptr = cells.new_empty(num_cells + 1, dtype=torch.int32)
    outside = engine.call(
        *("pl_bev_pool_intervals", cells, len(cells), num_cells, order, interval_ptr),
        engine.num_threads(),
    )
    if outside:
        check_rows("bev_pool_intervals", cells, num_cells)
    return order, interval_ptr


@engine.or_composition(composition.bev_pool)
def bev_pool(feats: Tensor, cells: Tensor, order: Tensor, interval_ptr: Tensor) -> Tensor:
    """Sum of the points' features in each cell; they come in order, so each is read once and added in place."""
    feats, cells, num_cells = feats.contiguous(), cells.contiguous(), len(interval_ptr) - 1
    out = feats.new_empty(num_cells, feats.shape[1])
    outside = engine.call(
        *("pl_sum_rows", element("bev_pool", feats), feats, *feats.shape, None, 1),
        *(cells, cells.element_size(), None, len(cells), 0, out, num_cells, engine.num_threads()),
    )
    if outside:
        check_rows("bev_pool", cells, num_cells)
    return out


@engine.or_composition(composition.bev_pool_depth)
def bev_pool_depth(
    depth: Tensor, context: Tensor, cells: Tensor, order: Tensor, interval_ptr: Tensor
) -> Tensor:
    """Sum of depth times context over the points of each cell."""
    depth, context, order = depth.contiguous(), context.contiguous(), order.contiguous()
    num_cells, channels = len(interval_ptr) - 1, context.shape[2]
    out = context.new_empty(num_cells, channels)
    outside = engine.call(
        *("pl_bev_pool_depth", element("bev_pool_depth", context), context, channels),
        *(depth, *depth.shape, order, interval_ptr.contiguous(), num_cells, out),
        engine.num_threads(),
    )
    if outside:
        raise ValueError(
            "bev_pool_depth: plan must be of build_bev_pool_plan, got points or intervals out of range."
        )
    return out


@engine.or_composition(composition.bev_pool_depth_grad)
def bev_pool_depth_grad(
    grad: Tensor,
    depth: Tensor,
    context: Tensor,
    cells: Tensor,
    order: Tensor,
    interval_ptr: Tensor,
) -> tuple[Tensor, Tensor]:
    """Gradients of depth and of context, computed in the dtype of depth."""
    depth, cells = depth.contiguous(), cells.contiguous()
    rows, seen = grad.to(depth.dtype).contiguous(), context.to(depth.dtype).contiguous()
    grad_depth, grad_context = torch.empty_like(depth), torch.empty_like(seen)
    outside = engine.call(
        *("pl_bev_pool_depth_grad", int(depth.dtype == torch.float64), rows, *rows.shape),
        *(depth, seen, cells, *depth.shape, grad_depth, grad_context, engine.num_threads()),
    )
    if outside:
        check_rows("bev_pool_depth_grad", cells, len(grad))
    return grad_depth, grad_context.to(context.dtype)
