"""Sparse convolution by the compiled engine: float32 and bfloat16, one group; the composition does the rest."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence

import torch
from torch import Tensor

from pointlib.ops._cpu import engine
from pointlib.ops._cpu.composition import sparse_conv as composition
from pointlib.ops.dataflow import choose_dataflow

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
    in_index: Tensor,
    out_index: Tensor,
    offset_ptr: Tensor,
    num_out: int,
    groups: int,
    identity_tap: int,
) -> Tensor:
    """Forward; also the input gradient, by the transposed map and weight. Shapes as in ops/sparse_conv.py."""
    if groups > 1 or feats.dtype == torch.float64:
        return composition.sparse_conv(
            feats, weight, bias, in_index, out_index, offset_ptr, num_out, groups, identity_tap
        )
    dtype = compute_dtype(feats.dtype)
    out = conv_epilogue(
        [feats.to(dtype)],
        [pack(weight.to(dtype))],
        (in_index, out_index, offset_ptr),
        (num_out, weight.shape[2]),
        shift=bias,
    )
    return out.to(feats.dtype)


def conv_epilogue(
    feats: Sequence[Tensor],
    packed: Sequence[Tensor],
    pairs: tuple[Tensor, Tensor, Tensor],
    shape: tuple[int, int],
    scale: Tensor | None = None,
    shift: Tensor | None = None,
    residual: Tensor | None = None,
    negative_slope: float = 1.0,
) -> Tensor:
    """Convolve one or two inputs, as if concatenated, and finish each sum before it leaves the cache.

    Args:
        feats: One or two (N, C_in), of a dtype that the engine multiplies.
        packed: The weights of each, from `pack`.
        pairs: in_index, out_index, offset_ptr.
        shape: (num_out, C_out).
        scale, shift: (C_out,) floats: the sum becomes sum * scale + shift.
        residual: (num_out, C_out) of the dtype of feats, added after that.
        negative_slope: Factor of what is then below 0; 0 is ReLU.

    Returns:
        (num_out, C_out), the dtype of feats.
    """
    num_out, c_out = shape
    out = feats[0].new_empty(shape)
    if not out.numel():
        return out
    rows = [even_channels(x).contiguous() for x in feats]
    held = [t.contiguous() for t in pairs]
    factors = [None if t is None else t.float().contiguous() for t in (scale, shift)]
    residual = None if residual is None else residual.contiguous()
    taps = len(pairs[2]) - 1
    dataflow = choose_dataflow(len(pairs[0]), taps, num_out, sum(x.shape[1] for x in rows), c_out)
    arguments = ConvArguments(
        dtype=DTYPES[feats[0].dtype],
        feats=_pointers(*rows),
        packed=_pointers(*packed),
        c_in=(ctypes.c_int64 * 2)(*(x.shape[1] for x in rows)),
        taps=taps,
        num_out=num_out,
        c_out=c_out,
        negative_slope=negative_slope,
        out=out.data_ptr(),
        tile_rows=dataflow.tile_rows,
        threads=engine.num_threads(),
    )
    names = ("in_index", "out_index", "offset_ptr", "scale", "shift", "residual")
    for name, tensor in zip(names, (*held, *factors, residual), strict=True):
        setattr(arguments, name, None if tensor is None else tensor.data_ptr())
    engine.call("pl_conv", arguments)
    return out


def pack(weight: Tensor) -> Tensor:
    """Arrange (K, C_in, C_out) weights, with any strides, for the instruction set in use.

    Returns:
        (bytes,) uint8; meaningful to this process alone.
    """
    dtype = DTYPES[weight.dtype]
    if weight.dtype == torch.bfloat16 and weight.shape[1] % 2:
        weight = torch.nn.functional.pad(weight, (0, 0, 0, 1))
    taps, c_in, c_out = weight.shape
    size = engine.call("pl_conv_packed_bytes", dtype, taps, c_in, c_out)
    packed = torch.empty(size, dtype=torch.uint8)
    engine.call(  # by address: any strides will do
        *("pl_conv_pack", dtype, weight.data_ptr(), *weight.stride()),
        *(taps, c_in, c_out, packed, engine.num_threads()),
    )
    return packed


@engine.or_composition(composition.sparse_conv_grad_weight)
def sparse_conv_grad_weight(
    feats: Tensor,
    grad: Tensor,
    in_index: Tensor,
    out_index: Tensor,
    offset_ptr: Tensor,
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
    taps, c_in, c_out = len(offset_ptr) - 1, feats.shape[1], grad.shape[1]
    out = torch.empty(taps, c_in, c_out)
    if out.numel():
        pairs = (in_index.contiguous(), out_index.contiguous(), offset_ptr.contiguous())
        engine.call(
            *("pl_conv_grad_weight", DTYPES[dtype], left, c_in, right, c_out, *pairs),
            *(taps, out, engine.num_threads()),
        )
    return out.to(feats.dtype)


def compute_dtype(dtype: torch.dtype) -> torch.dtype:
    """What features of a dtype are multiplied as: float32 wherever the instruction set has no products of its own."""
    if dtype == torch.bfloat16 and engine.call("pl_conv_supports", DTYPES[dtype]):
        return torch.bfloat16
    return torch.float32


def even_channels(feats: Tensor) -> Tensor:
    """bfloat16 products take two channels at a time: an odd number gets a zero."""
    if feats.dtype == torch.bfloat16 and feats.shape[1] % 2:
        return torch.nn.functional.pad(feats, (0, 1))
    return feats


def _pointers(*tensors: Tensor) -> ctypes.Array[ctypes.c_void_p]:
    return (ctypes.c_void_p * 2)(*(t.data_ptr() for t in tensors))
