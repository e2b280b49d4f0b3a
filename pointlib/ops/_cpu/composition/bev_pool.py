"""Bird's-eye pooling on the CPU, image by image; half precision is summed in float32 and rounded once."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from pointlib.ops._cpu.composition.scatter import as_array, check_rows, gather_rows


def bev_pool_intervals(cells: Tensor, num_cells: int) -> tuple[Tensor, Tensor]:
    """Points by cell, those without one last, and where each cell's points begin."""
    check_rows("bev_pool_intervals", cells, num_cells)
    ordered, order = torch.where(cells < 0, num_cells, cells).sort(stable=True)
    interval_ptr = torch.searchsorted(ordered, torch.arange(num_cells + 1), out_int32=True)
    return order.int(), interval_ptr


def bev_pool(feats: Tensor, cells: Tensor, order: Tensor, interval_ptr: Tensor) -> Tensor:
    """Sum of the points' features in each cell."""
    total = _zeros(len(interval_ptr) - 1, feats)
    _add(feats, cells, total)
    return torch.from_numpy(total).to(feats.dtype)


def bev_pool_depth(
    depth: Tensor, context: Tensor, cells: Tensor, order: Tensor, interval_ptr: Tensor
) -> Tensor:
    """Sum of depth times context over the points of each cell."""
    total = _zeros(len(interval_ptr) - 1, context)
    for weights, rows, targets in zip(depth, context, _by_image(cells, depth), strict=True):
        _add((weights[..., None] * rows.to(depth.dtype)).flatten(0, 1), targets, total)
    return torch.from_numpy(total).to(context.dtype)


def bev_pool_depth_grad(
    grad: Tensor,
    depth: Tensor,
    context: Tensor,
    cells: Tensor,
    order: Tensor,
    interval_ptr: Tensor,
) -> tuple[Tensor, Tensor]:
    """Gradients of depth and of context, computed in the dtype of depth."""
    grad_depth, grad_context = depth.new_empty(depth.shape), context.new_empty(context.shape)
    rows, seen = grad.to(depth.dtype), context.to(depth.dtype)
    for image, targets in enumerate(_by_image(cells, depth)):
        lifted = gather_rows(rows, targets).view(*depth.shape[1:], -1)
        grad_depth[image] = (lifted * seen[image]).sum(-1)
        grad_context[image] = (lifted * depth[image, ..., None]).sum(0)
    return grad_depth, grad_context


def _by_image(cells: Tensor, depth: Tensor) -> tuple[Tensor, ...]:
    images, depths, area = depth.shape
    return cells.view(images, depths * area).unbind()


def _zeros(num_cells: int, feats: Tensor) -> np.ndarray:
    return np.zeros((num_cells, feats.shape[-1]), dtype=as_array(feats[:0]).dtype)


def _add(rows: Tensor, cells: Tensor, total: np.ndarray) -> None:
    """Add each row to its cell, in their order."""
    from pointlib.ops._cpu.composition import loops

    check_rows("bev_pool", cells, len(total))
    values = as_array(rows)
    loops.add_rows(values, np.arange(len(values)), as_array(cells), None, total)
