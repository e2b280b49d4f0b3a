"""Batch norm in training on CUDA: sums block of rows by block, then over the blocks in order and in float64."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator

import torch
from torch import Tensor

from pointlib.ops._cuda import engine
from pointlib.ops._cuda.rows import BLOCK, feature_layout, parameter, widest
from pointlib.ops._cuda.types import ELEMENTS, accumulator

SOURCE = "norm.cu"
ROWS_OF_GROUP = 8
"""Rows of a group of threads, unless there are so many that MAX_BLOCKS blocks take more each."""
MAX_BLOCKS = 1024
FINISH_CHANNELS = 8
"""Channels of a block, as in norm.cu."""
_SUMS = (torch.float32, torch.float64)


def batch_norm(
    feats: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    residual: Tensor | None,
    negative_slope: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """The layer's output, and the mean and biased variance of each channel."""
    feats, (rows, channels) = feats.contiguous(), feats.shape
    added = None if residual is None else residual.contiguous()
    scale, shift = parameter(weight, feats), parameter(bias, feats)
    sums, out = accumulator(feats.dtype), torch.empty_like(feats)
    mean, var, gain = (feats.new_empty(channels, dtype=sums) for _ in range(3))
    if not out.numel():
        return out, mean, var
    share = feature_layout(channels, feats, added, out)
    rows_per_block = _rows_per_block(rows, share.groups)
    grid = (engine.ceil_div(rows, rows_per_block), share.columns)
    means, squares = (feats.new_empty(grid[0], channels, dtype=sums) for _ in range(2))
    sizes = (rows, share.vectors, rows_per_block, share.lanes)
    engine.launch(
        *(SOURCE, _kernel("moments", feats.dtype, share.vector), grid, BLOCK),
        *(feats, *sizes, means, squares),
        shared_bytes=(2 * share.vector + 1) * BLOCK * sums.itemsize,
    )
    engine.launch(
        *(SOURCE, _finish_kernel("moments", sums), _finish_grid(channels), BLOCK),
        *(means, squares, grid[0], rows, rows_per_block, channels, scale, *_halves(eps)),
        *(mean, var, gain),
        shared_bytes=8 * BLOCK,
    )
    engine.launch(
        *(SOURCE, _kernel("normalize", feats.dtype, share.vector), grid, BLOCK),
        *(feats, *sizes, mean, gain, shift, added, *_halves(negative_slope), out),
    )
    return out, mean, var


def batch_norm_backward(
    grad: Tensor,
    out: Tensor | None,
    negative_slope: float,
    feats: Tensor,
    weight: Tensor | None,
    mean: Tensor,
    var: Tensor,
    eps: float,
    with_residual: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of feats, weight, bias and residual (empty where none is wanted)."""
    grad, feats = grad.to(feats.dtype).contiguous(), feats.contiguous()
    activated = None if out is None else out.contiguous()
    (rows, channels), sums = feats.shape, accumulator(feats.dtype)
    grad_feats = torch.empty_like(feats)
    grad_residual = torch.empty_like(feats) if with_residual else feats.new_empty(0)
    grad_weight, grad_bias = (feats.new_empty(channels, dtype=sums) for _ in range(2))
    if not feats.numel():
        return grad_feats, grad_weight.zero_(), grad_bias.zero_(), grad_residual
    centre, factors = parameter(mean, feats), feats.new_empty(3, channels, dtype=sums)
    passed = grad_residual if with_residual else None
    share = feature_layout(channels, grad, activated, feats, grad_feats, passed)
    rows_per_block = _rows_per_block(rows, share.groups)
    grid = (engine.ceil_div(rows, rows_per_block), share.columns)
    totals, products = (feats.new_empty(grid[0], channels, dtype=sums) for _ in range(2))
    sizes = (rows, share.vectors, rows_per_block, share.lanes)
    inputs = (grad, activated, *_halves(negative_slope), feats)
    engine.launch(
        *(SOURCE, _kernel("grad_moments", feats.dtype, share.vector), grid, BLOCK),
        *(*inputs, *sizes, centre, totals, products),
        shared_bytes=2 * share.vector * BLOCK * sums.itemsize,
    )
    engine.launch(
        *(SOURCE, _finish_kernel("grad_moments", sums), _finish_grid(channels), BLOCK),
        *(totals, products, grid[0], rows, channels, parameter(weight, feats)),
        *(parameter(var, feats), *_halves(eps), grad_weight, grad_bias, factors),
        shared_bytes=8 * BLOCK,
    )
    engine.launch(
        *(SOURCE, _kernel("grad_normalize", feats.dtype, share.vector), grid, BLOCK),
        *(*inputs, *sizes, centre, factors, grad_feats, passed),
    )
    return grad_feats, grad_weight, grad_bias, grad_residual


def fold_batch_norm(
    mean: Tensor,
    var: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    earlier_bias: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """A batch norm over known statistics as scale and shift, in one launch."""
    sums = accumulator(mean.dtype)
    given = (mean, var, weight, bias, earlier_bias)
    statistics = [None if t is None else t.to(sums).contiguous() for t in given]
    scale, shift = (mean.new_empty(mean.shape, dtype=sums) for _ in range(2))
    grid = engine.ceil_div(len(mean), BLOCK)
    engine.launch(
        *(SOURCE, f"pointlib::fold_batch_norm<{ELEMENTS[sums]}>", grid, BLOCK),
        *(*statistics, *_halves(eps), len(mean), scale, shift),
    )
    return scale.to(mean.dtype), shift.to(mean.dtype)


def _rows_per_block(rows: int, groups: int) -> int:
    """Depends on the shape alone, and so do the sums."""
    return max(groups * ROWS_OF_GROUP, engine.ceil_div(rows, MAX_BLOCKS))


def _finish_grid(channels: int) -> int:
    return engine.ceil_div(channels, FINISH_CHANNELS)


def _halves(value: float) -> tuple[float, float]:
    """A float64 as the sum of two float32, which is how kernels take it."""
    high = ctypes.c_float(value).value
    return high, value - high


def _kernel(name: str, dtype: torch.dtype, vector: int) -> str:
    return f"pointlib::{name}<{ELEMENTS[dtype]}, {vector}>"


def _finish_kernel(name: str, sums: torch.dtype) -> str:
    return f"pointlib::finish_{name}<{ELEMENTS[sums]}>"


def variants(capability: int) -> Iterator[tuple[str, str]]:
    """Every kernel of this file, as (source, name)."""
    del capability
    yield from ((SOURCE, f"pointlib::fold_batch_norm<{ELEMENTS[sums]}>") for sums in _SUMS)
    for name in ("moments", "grad_moments"):
        yield from ((SOURCE, _finish_kernel(name, sums)) for sums in _SUMS)
    for name in ("moments", "normalize", "grad_moments", "grad_normalize"):
        for dtype in ELEMENTS:
            yield from ((SOURCE, _kernel(name, dtype, vector)) for vector in (1, widest(dtype)))
