"""Devoxelization on CUDA: the voxels around each point, weighted sums of their rows, and the transpose."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from pointlib.ops._cuda import engine
from pointlib.ops._cuda.coords import sorted_sites
from pointlib.ops._cuda.index_check import assert_in_range, range_flag, remember_in_range
from pointlib.ops._cuda.rows import BLOCK, feature_layout, widest
from pointlib.ops._cuda.scatter import sum_rows
from pointlib.ops._cuda.types import ELEMENTS, accumulator

SOURCE = "voxelize.cu"
COLUMNS = 4
"""Threads of a point, as in trilinear_corners of voxelize.cu."""
_POINTS = (torch.float32, torch.float64)


def devoxelize(feats: Tensor, index: Tensor, weights: Tensor) -> Tensor:
    """`sum_k weights[n, k] * feats[index[n, k]]`."""
    if _finer(weights, feats):
        return devoxelize(feats.double(), index, weights).to(feats.dtype)
    feats, (points, corners) = feats.contiguous(), index.shape
    out = feats.new_empty(points, feats.shape[1])
    if not out.numel():
        return out
    flag, share = range_flag(index, len(feats)), feature_layout(feats.shape[1], feats, out)
    factors = weights.to(accumulator(feats.dtype)).contiguous()
    engine.launch(
        *(SOURCE, _kernel(feats.dtype, share.vector), share.grid(points), BLOCK, feats),
        *(len(feats), share.vectors, index.long().contiguous(), factors, points, corners),
        *(share.lanes, out, flag),
    )
    assert_in_range(flag, index, len(feats), "devoxelize")
    return out


def devoxelize_transpose(grad: Tensor, index: Tensor, weights: Tensor, num_rows: int) -> Tensor:
    """`out[index[n, k]] += weights[n, k] * grad[n]`."""
    if _finer(weights, grad):
        return devoxelize_transpose(grad.double(), index, weights, num_rows).to(grad.dtype)
    factors = weights.to(accumulator(grad.dtype)).contiguous()
    caller, corners = "devoxelize_transpose", max(index.shape[1], 1)
    return sum_rows(caller, grad, None, index, num_rows, factors, each=corners)


def trilinear_map(points: Tensor, coords: Tensor) -> tuple[Tensor, Tensor]:
    """Rows of the eight voxels around each point, and their weights."""
    count, points = len(points), points.contiguous()
    corners = coords.new_empty(count, 8, dtype=torch.int64)
    weights, valid = points.new_empty(count, 8), coords.new_ones((), dtype=torch.bool)
    if len(coords):
        bounds, keys, order = sorted_sites(coords)
    else:
        bounds, keys, order = coords.new_zeros(9).long(), coords.new_empty(0).long(), None
    engine.launch(
        *(SOURCE, _corners_kernel(points.dtype), engine.ceil_div(count * COLUMNS, BLOCK), BLOCK),
        *(points, count, keys, order, len(keys), bounds, corners, weights, valid),
    )
    torch._assert_async(
        valid,
        "trilinear_map: points must be finite and their voxel indices fit int32, and coords be distinct. "
        "Drop non-finite points, crop to a range or use larger voxels; make coords by voxelize or unique_coords.",
    )
    remember_in_range(corners, len(coords))
    return corners, weights


def _finer(weights: Tensor, feats: Tensor) -> bool:
    """Whether float64 weights meet other features: their products are made in float64."""
    return weights.dtype == torch.float64 and feats.dtype != torch.float64


def _kernel(dtype: torch.dtype, vector: int) -> str:
    return f"pointlib::devoxelize<{ELEMENTS[dtype]}, {vector}>"


def _corners_kernel(dtype: torch.dtype) -> str:
    return f"pointlib::trilinear_corners<{ELEMENTS[dtype]}>"


def variants(capability: int) -> Iterator[tuple[str, str]]:
    """Every kernel of this file, as (source, name)."""
    del capability
    for dtype in ELEMENTS:
        yield from ((SOURCE, _kernel(dtype, vector)) for vector in (1, widest(dtype)))
    yield from ((SOURCE, _corners_kernel(dtype)) for dtype in _POINTS)
