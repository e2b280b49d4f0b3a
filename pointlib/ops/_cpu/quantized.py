"""int8 convolution and quantization by the compiled engine."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence

import torch
from torch import Tensor

from pointlib.ops._cpu import engine
from pointlib.ops._cpu.composition import quantized as composition

OUT_TYPES = {torch.int8: 0, torch.float32: 1, torch.bfloat16: 2}
"""As OutputType in csrc/kernels_i8.h."""


class ConvolutionInt8(ctypes.Structure):
    """As in csrc/kernels_i8.h."""

    _fields_ = (
        ("feats", ctypes.c_void_p * 2),
        ("channels", ctypes.c_int64 * 2),
        ("packed", ctypes.c_void_p),
        ("packed_size", ctypes.c_int64),
        ("in_index", ctypes.c_void_p),
        ("out_index", ctypes.c_void_p),
        ("offset_ptr", ctypes.c_void_p),
        ("taps", ctypes.c_int64),
        ("num_pairs", ctypes.c_int64),
        ("num_in", ctypes.c_int64),
        ("num_out", ctypes.c_int64),
        ("c_out", ctypes.c_int64),
        ("scale", ctypes.c_void_p),
        ("shift", ctypes.c_void_p),
        ("residual", ctypes.c_void_p),
        ("residual_scale", ctypes.c_double),
        ("relu", ctypes.c_int64),
        ("out_type", ctypes.c_int64),
        ("out", ctypes.c_void_p),
        ("threads", ctypes.c_int64),
    )


@engine.or_composition(composition.packed_bytes)
def packed_bytes(taps: int, c_in: int, c_out: int) -> int:
    """Size of a packed weight."""
    return engine.call("pl_i8_packed_bytes", taps, c_in, c_out)


@engine.or_composition(composition.pack_int8_weight)
def pack_int8_weight(weight: Tensor) -> Tensor:
    """(K, C_in, C_out) int8 -> (bytes,) uint8."""
    packed = torch.empty(packed_bytes(*weight.shape), dtype=torch.uint8)
    engine.call("pl_i8_pack", weight.contiguous(), *weight.shape, packed, engine.num_threads())
    return packed


@engine.or_composition(composition.quantize_int8)
def quantize_int8(feats: Tensor, step: float) -> Tensor:
    """As ops/quantized.py specifies."""
    half = feats.dtype == torch.bfloat16
    source = (feats if half else feats.float()).contiguous()
    out = torch.empty(feats.shape, dtype=torch.int8)
    engine.call(
        *("pl_i8_quantize", source, int(half), source.numel(), step, out, engine.num_threads())
    )
    return out


@engine.or_composition(composition.sparse_conv_int8)
def sparse_conv_int8(
    feats: Sequence[Tensor],
    weight: Tensor,
    in_index: Tensor,
    out_index: Tensor,
    offset_ptr: Tensor,
    num_out: int,
    scale: Tensor,
    shift: Tensor,
    residual: Tensor | None,
    residual_scale: float,
    relu: bool,
    out_dtype: torch.dtype,
) -> Tensor:
    """As ops/quantized.py specifies."""
    packed = pack_int8_weight(weight) if weight.dtype == torch.int8 else weight
    parts = [part.contiguous() for part in feats]
    kept = [packed, in_index, out_index, offset_ptr, scale, shift]
    kept = [tensor.contiguous() for tensor in kept]
    residual = None if residual is None else residual.contiguous()
    c_out = scale.shape[0]
    out = torch.empty((num_out, c_out), dtype=out_dtype)
    packed, in_index, out_index, offset_ptr, scale, shift = kept
    channels = [part.shape[1] for part in parts]
    arguments = ConvolutionInt8(
        feats=(ctypes.c_void_p * 2)(*(part.data_ptr() for part in parts)),
        channels=(ctypes.c_int64 * 2)(*channels),
        packed=packed.data_ptr(),
        packed_size=packed.numel(),
        in_index=in_index.data_ptr(),
        out_index=out_index.data_ptr(),
        offset_ptr=offset_ptr.data_ptr(),
        taps=len(offset_ptr) - 1,
        num_pairs=len(in_index),
        num_in=len(parts[0]),
        num_out=num_out,
        c_out=c_out,
        scale=scale.data_ptr(),
        shift=shift.data_ptr(),
        residual=None if residual is None else residual.data_ptr(),
        residual_scale=residual_scale,
        relu=relu,
        out_type=OUT_TYPES[out_dtype],
        out=out.data_ptr(),
        threads=engine.num_threads(),
    )
    engine.call("pl_i8_conv", arguments)
    return out
