"""Convolution in channel groups: one thread for some channels of one output row."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from pointlib.ops._cuda import engine
from pointlib.ops._cuda.row_map import row_map
from pointlib.ops._cuda.tiles import rows_are_vectors
from pointlib.ops._cuda.types import ELEMENTS

SOURCE = "grouped_conv.cu"
BLOCK = 256


def grouped_conv(
    feats: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    in_index: Tensor | None,
    out_index: Tensor | None,
    offset_ptr: Tensor | None,
    num_out: int,
    groups: int,
) -> Tensor:
    """out[o] = bias + sum of feats[i] @ weight[k] within each group over the pairs (i, o) of tap k.

    Args:
        feats: (N, C_in) float.
        weight: (K, C_in / groups, C_out), the dtype of feats.
        bias: (C_out,), the dtype of feats, or None.
        in_index: (P,) int32 input rows, pairs grouped by tap; None where every row feeds itself through one tap.
        out_index: (P,) int32 output rows, or None likewise.
        offset_ptr: (K + 1,) int64 on the CPU, or None likewise.
        num_out: Number of output rows.
        groups: Channel groups.

    Returns:
        (num_out, C_out), the dtype of feats; sums in float32, or float64 for float64.
    """
    feats, weight = feats.contiguous(), weight.contiguous()
    bias = None if bias is None else bias.contiguous()
    c_in, c_out = feats.shape[1], weight.shape[2]
    out = feats.new_empty(num_out, c_out)
    if not out.numel():
        return out
    rows: tuple[Tensor | None, ...] = (None, None, None)
    words = 0
    if in_index is not None and out_index is not None and offset_ptr is not None:
        known = row_map(in_index, out_index, offset_ptr, num_out, splits=0)
        rows, words = known[:3], known.mask.shape[1]
    arguments = (feats, weight, bias, *rows, out, num_out, words, c_in)
    if groups == c_in == c_out:
        vectors = rows_are_vectors(feats) and rows_are_vectors(weight[0])
        columns = _columns(feats.dtype) if vectors else 1
        grid = engine.ceil_div(out.numel() // columns, BLOCK)
        engine.launch(SOURCE, _depthwise_kernel(feats.dtype, columns), grid, BLOCK, *arguments)
    else:
        grid = engine.ceil_div(out.numel(), BLOCK)
        engine.launch(SOURCE, _grouped_kernel(feats.dtype), grid, BLOCK, *arguments, c_out, groups)
    return out


def _columns(dtype: torch.dtype) -> int:
    """Channels of 16 bytes."""
    return 16 // dtype.itemsize


def _grouped_kernel(dtype: torch.dtype) -> str:
    return f"pointlib::grouped_conv<{ELEMENTS[dtype]}>"


def _depthwise_kernel(dtype: torch.dtype, columns: int) -> str:
    return f"pointlib::depthwise_conv<{ELEMENTS[dtype]}, {columns}>"


def variants(capability: int) -> Iterator[tuple[str, str]]:
    """Every kernel of this file, as (source, name)."""
    del capability
    for dtype in ELEMENTS:
        yield SOURCE, _grouped_kernel(dtype)
        yield SOURCE, _depthwise_kernel(dtype, 1)
        yield SOURCE, _depthwise_kernel(dtype, _columns(dtype))
