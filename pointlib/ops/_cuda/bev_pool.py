"""Bird's-eye pooling on CUDA: torch sorts points by cell once, a warp adds up a cell, a block adds up a long one."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from pointlib.ops._cuda import engine
from pointlib.ops._cuda.rows import VECTOR_BYTES, widest
from pointlib.ops._cuda.types import ELEMENTS, accumulator

SOURCE = "bev_pool.cu"
WARP, WARPS = 32, 8
"""Threads of a warp and warps of a block, as in bev_pool.cu."""
GRAD_VECTOR = 4
"""Most channels of a lane of bev_pool_depth_grad, which has the pixels' own in registers too."""


def bev_pool_intervals(cells: Tensor, num_cells: int) -> tuple[Tensor, Tensor]:
    """Points by cell, those without one last, and where each cell's points begin."""
    keys = torch.where(cells < 0, num_cells, cells).int()
    keys, order = keys.sort(stable=True)
    numbers = torch.arange(num_cells + 1, dtype=torch.int32, device=cells.device)
    return order.int(), torch.searchsorted(keys, numbers, out_int32=True)


def bev_pool(feats: Tensor, cells: Tensor, order: Tensor, interval_ptr: Tensor) -> Tensor:
    """Sum of the points' features in each cell."""
    return _pool(feats, None, order, interval_ptr, (1, 1))


def bev_pool_depth(
    depth: Tensor, context: Tensor, cells: Tensor, order: Tensor, interval_ptr: Tensor
) -> Tensor:
    """Sum of depth times context over the points of each cell."""
    rows = context.contiguous().flatten(0, 1)
    return _pool(rows, depth.contiguous(), order, interval_ptr, (depth.shape[1], depth.shape[2]))


def bev_pool_depth_grad(
    grad: Tensor,
    depth: Tensor,
    context: Tensor,
    cells: Tensor,
    order: Tensor,
    interval_ptr: Tensor,
) -> tuple[Tensor, Tensor]:
    """Gradients of depth and of context."""
    grad, depth, context = grad.contiguous(), depth.contiguous(), context.contiguous()
    (images, area, channels), depths = context.shape, depth.shape[1]
    grad_depth, grad_context = torch.empty_like(depth), torch.empty_like(context)
    if not channels or not depths:
        return grad_depth.zero_(), grad_context.zero_()
    vector = _vector(channels, GRAD_VECTOR, grad, context, grad_context)
    engine.launch(
        *(SOURCE, _kernel("bev_pool_depth_grad", grad.dtype, vector)),
        *(engine.ceil_div(images * area, WARPS), WARPS * WARP),
        *(grad, depth, context, cells.contiguous(), grad_depth, grad_context),
        *(images * area, channels // vector, depths, area),
    )
    return grad_depth, grad_context


def _pool(
    feats: Tensor, depth: Tensor | None, order: Tensor, interval_ptr: Tensor, plane: tuple[int, int]
) -> Tensor:
    feats, num_cells, channels = feats.contiguous(), len(interval_ptr) - 1, feats.shape[1]
    out = feats.new_empty(num_cells, channels)
    if not channels:
        return out
    vector = _vector(channels, widest(feats.dtype), feats, out)
    vectors = channels // vector
    columns = engine.ceil_div(vectors, WARP)
    lanes = engine.ceil_div(vectors, columns)
    engine.launch(
        *(SOURCE, _kernel("bev_pool", feats.dtype, vector, depth is not None)),
        *((engine.ceil_div(num_cells, WARPS), columns), WARPS * WARP),
        *(feats, depth, order.contiguous(), interval_ptr.contiguous(), out),
        *(num_cells, vectors, lanes, *plane),
        shared_bytes=WARPS * WARP * vector * accumulator(feats.dtype).itemsize,
    )
    return out


def _vector(channels: int, most: int, *feats: Tensor) -> int:
    """Channels of a lane: 16 bytes, or `most`, where every tensor has whole and aligned ones."""
    vector = min(widest(feats[0].dtype), most)
    aligned = all(t.data_ptr() % VECTOR_BYTES == 0 for t in feats)
    return vector if channels % vector == 0 and aligned else 1


def _kernel(name: str, dtype: torch.dtype, vector: int, lift: bool | None = None) -> str:
    flags = () if lift is None else (str(lift).lower(),)
    return f"pointlib::{name}<{', '.join([ELEMENTS[dtype], str(vector), *flags])}>"


def variants(capability: int) -> Iterator[tuple[str, str]]:
    """Every kernel of this file, as (source, name)."""
    del capability
    for dtype in ELEMENTS:
        for vector in (1, widest(dtype)):
            yield SOURCE, _kernel("bev_pool", dtype, vector, False)
            yield SOURCE, _kernel("bev_pool", dtype, vector, True)
        for vector in (1, min(widest(dtype), GRAD_VECTOR)):
            yield SOURCE, _kernel("bev_pool_depth_grad", dtype, vector)
