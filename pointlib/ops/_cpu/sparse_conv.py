"""Sparse convolution by the compiled engine: float32 and bfloat16, one group; the composition does the rest."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from pointlib.ops._cpu import engine
from pointlib.ops._cpu.composition import sparse_conv as composition
from pointlib.ops.dataflow import (
    Dataflow,
    MapStatistics,
    Workload,
    cpu_dataflow,
    tuned_dataflow,
)

DTYPES = {torch.float32: 0, torch.bfloat16: 1}
"""As DType in csrc/kernels.h."""


class ConvArguments(ctypes.Structure):
    """As in csrc/conv.cpp."""

    _fields_ = (
        ("dtype", ctypes.c_int64),
        ("feats", ctypes.c_void_p * 2),
        ("packed", ctypes.c_void_p * 2),
        ("c_in", ctypes.c_int64 * 2),
        ("in_index", ctypes.c_void_p),
        ("out_index", ctypes.c_void_p),
        ("offset_ptr", ctypes.c_void_p),
        ("taps", ctypes.c_int64),
        ("num_out", ctypes.c_int64),
        ("c_out", ctypes.c_int64),
        ("scale", ctypes.c_void_p),
        ("shift", ctypes.c_void_p),
        ("residual", ctypes.c_void_p),
        ("negative_slope", ctypes.c_double),
        ("out", ctypes.c_void_p),
        ("tile_rows", ctypes.c_int64),
        ("threads", ctypes.c_int64),
    )


@engine.or_composition(composition.sparse_conv)
def sparse_conv(
    feats: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    in_index: Tensor | None,
    out_index: Tensor | None,
    offset_ptr: Tensor | None,
    num_out: int,
    groups: int,
    identity_tap: int,
) -> Tensor:
    """Forward; also the input gradient, by the transposed map and weight. Shapes as in ops/sparse_conv.py."""
    if groups > 1 or feats.dtype == torch.float64:
        return composition.sparse_conv(
            feats, weight, bias, in_index, out_index, offset_ptr, num_out, groups, identity_tap
        )
    pairs = (in_index, out_index, offset_ptr)
    return fused_sparse_conv([feats], weight, *pairs, num_out, None, bias, None, 1.0)


@engine.or_composition(composition.fused_sparse_conv)
def fused_sparse_conv(
    feats: Sequence[Tensor],
    weight: Tensor,
    in_index: Tensor | None,
    out_index: Tensor | None,
    offset_ptr: Tensor | None,
    num_out: int,
    scale: Tensor | None,
    shift: Tensor | None,
    residual: Tensor | None,
    negative_slope: float,
) -> Tensor:
    """Inputs side by side, all their taps, and what follows the sum, before it leaves the cache."""
    pairs = (in_index, out_index, offset_ptr)
    added = (scale, shift, residual)
    return convolve(feats, weight, *pairs, num_out, *added, negative_slope=negative_slope)


def fused_sparse_conv_(*arguments: Any) -> None:
    """The same, into the memory of the residual."""
    residual: Tensor = arguments[8]
    native = engine.LIBRARY is not None and residual.dtype == compute_dtype(residual.dtype)
    if native and residual.is_contiguous():
        partial(convolve, out=residual)(*arguments)
    else:
        residual.copy_(fused_sparse_conv(*arguments))


def convolve(
    feats: Sequence[Tensor],
    weight: Tensor,
    in_index: Tensor | None,
    out_index: Tensor | None,
    offset_ptr: Tensor | None,
    num_out: int,
    scale: Tensor | None,
    shift: Tensor | None,
    residual: Tensor | None,
    negative_slope: float,
    out: Tensor | None = None,
    dataflow: Dataflow | None = None,
) -> Tensor:
    """Into `out` where it is given: contiguous, of the dtype that is computed in, and perhaps the residual."""
    if feats[0].dtype == torch.float64:
        return composition.fused_sparse_conv(
            *(feats, weight, in_index, out_index, offset_ptr, num_out),
            *(scale, shift, residual, negative_slope),
        )
    dtype = compute_dtype(feats[0].dtype)
    ends = [0]
    packed, rows = [], []
    for part in feats:
        ends.append(ends[-1] + part.shape[1])
        packed.append(pack(weight[:, ends[-2] : ends[-1]], dtype))
        rows.append(even_channels(part.to(dtype)).contiguous())
    if out is None:
        out = feats[0].new_empty((num_out, weight.shape[2]), dtype=dtype)
    if not out.numel():
        return out.to(feats[0].dtype)
    taps, _, c_out = weight.shape
    threads = engine.num_threads()
    statistics = MapStatistics(num_out if in_index is None else len(in_index), taps, num_out)
    if dataflow is None:
        workload = Workload("forward", dtype, ends[-1], c_out, statistics)
        dataflow = tuned_dataflow(workload, device_name(threads)) or cpu_dataflow(
            statistics, threads
        )
    arguments = ConvArguments(
        dtype=DTYPES[dtype],
        feats=_pointers(rows),
        packed=_pointers(packed),
        c_in=(ctypes.c_int64 * 2)(*(part.shape[1] for part in rows)),
        taps=taps,
        num_out=num_out,
        c_out=c_out,
        negative_slope=negative_slope,
        tile_rows=dataflow.tile_rows,
        threads=threads,
    )
    held = {
        "in_index": in_index,
        "out_index": out_index,
        "offset_ptr": offset_ptr,
        "scale": None if scale is None else scale.float(),
        "shift": None if shift is None else shift.float(),
        "residual": None if residual is None else residual.to(dtype),
        "out": out,
    }
    held = {name: None if t is None else t.contiguous() for name, t in held.items()}
    for name, tensor in held.items():
        setattr(arguments, name, None if tensor is None else tensor.data_ptr())
    engine.call("pl_conv", arguments)
    return out.to(feats[0].dtype)


def pack(weight: Tensor, dtype: torch.dtype) -> Tensor:
    """Arrange (K, C_in, C_out) weights, with any strides, for products in `dtype` by the instruction set in use.

    Returns:
        (bytes,) uint8; meaningful to this process alone.
    """
    if weight.dtype not in DTYPES:
        weight = weight.float()
    taps, c_in, c_out = weight.shape
    size = engine.call("pl_conv_packed_bytes", DTYPES[dtype], taps, c_in, c_out)
    packed = torch.empty(size, dtype=torch.uint8)
    source = (weight.data_ptr(), DTYPES[weight.dtype], *weight.stride())  # any strides will do
    sizes = (taps, c_in, c_out)
    engine.call("pl_conv_pack", DTYPES[dtype], *source, *sizes, packed, engine.num_threads())
    return packed


@engine.or_composition(composition.sparse_conv_grad_weight)
def sparse_conv_grad_weight(
    feats: Tensor,
    grad: Tensor,
    in_index: Tensor | None,
    out_index: Tensor | None,
    offset_ptr: Tensor | None,
    groups: int,
    identity_tap: int,
) -> Tensor:
    """Weight gradient: grad_weight[k] = sum of feats[i]^T grad[o] over the pairs of tap k."""
    if groups > 1 or feats.dtype == torch.float64:
        return composition.sparse_conv_grad_weight(
            feats, grad, in_index, out_index, offset_ptr, groups, identity_tap
        )
    dtype = compute_dtype(feats.dtype)
    left, right = feats.to(dtype).contiguous(), grad.to(dtype).contiguous()
    taps = 1 if offset_ptr is None else len(offset_ptr) - 1
    c_in, c_out = feats.shape[1], grad.shape[1]
    out = torch.empty(taps, c_in, c_out)
    if out.numel():
        given = (in_index, out_index, offset_ptr)
        pairs = [None if t is None else t.contiguous() for t in given]
        rows = (left, len(left), c_in, right, c_out)
        threads = engine.num_threads()
        engine.call("pl_conv_grad_weight", DTYPES[dtype], *rows, *pairs, taps, out, threads)
    return out.to(feats.dtype)


def compute_dtype(dtype: torch.dtype) -> torch.dtype:
    """What features of a dtype are multiplied as: float32 wherever the instruction set has no products of its own."""
    if dtype == torch.bfloat16 and engine.call("pl_conv_supports", DTYPES[dtype]):
        return torch.bfloat16
    return torch.float32


def device_name(threads: int) -> str:
    """What choices tuned for this processor are kept under."""
    return f"cpu {engine.INSTRUCTION_SET} {threads} threads"


def even_channels(feats: Tensor) -> Tensor:
    """bfloat16 products take two channels at a time: an odd number gets a zero."""
    if feats.dtype == torch.bfloat16 and feats.shape[1] % 2:
        return torch.nn.functional.pad(feats, (0, 1))
    return feats


def _pointers(tensors: Sequence[Tensor]) -> ctypes.Array[ctypes.c_void_p]:
    return (ctypes.c_void_p * 2)(*(t.data_ptr() for t in tensors))
