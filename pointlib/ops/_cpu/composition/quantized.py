"""int8 convolution and quantization as compositions of torch operators, by the specification in ops/quantized.py.

Sums of int8 products are integers far below 2**53, so the float64 convolution computes them exactly.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence

import torch
from torch import Tensor

from pointlib.ops._cpu.composition.sparse_conv import sparse_conv

HEADER = struct.Struct("<8s3q32x")
MAGIC = b"plint8\x00\x00"


def packed_bytes(taps: int, c_in: int, c_out: int) -> int:
    """Size of a packed weight."""
    return HEADER.size + taps * c_in * c_out


def pack_int8_weight(weight: Tensor) -> Tensor:
    """(K, C_in, C_out) int8 -> (bytes,) uint8: its shape and the plain weight."""
    header = bytearray(HEADER.pack(MAGIC, *weight.shape))
    plain = weight.contiguous().view(torch.uint8).view(-1)
    return torch.cat([torch.frombuffer(header, dtype=torch.uint8), plain])


def quantize_int8(feats: Tensor, step: float) -> Tensor:
    """As ops/quantized.py specifies."""
    return _to_int8(feats.float() / torch.tensor(step, dtype=torch.float32)).contiguous()


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
    shape = (len(offset_ptr) - 1, sum(part.shape[1] for part in feats), scale.shape[0])
    if weight.dtype == torch.uint8:
        weight = _unpack(weight, shape)
    sums = sparse_conv(
        *(torch.cat(list(feats), 1).double(), weight.double(), None),
        *(in_index, out_index, offset_ptr, num_out, 1, -1),
    )
    y = sums.float() * scale
    y = y + shift
    if residual is not None:
        y = y + residual.float() * torch.tensor(residual_scale, dtype=torch.float32)
    if relu:
        y = torch.where(y > 0, y, 0.0)
    return _to_int8(y) if out_dtype == torch.int8 else y.to(out_dtype)


def _to_int8(y: Tensor) -> Tensor:
    """Round half to even, limit to +-127; NaN gives 0."""
    return y.nan_to_num(nan=0.0).clamp(-127, 127).round().to(torch.int8)


def _unpack(packed: Tensor, shape: tuple[int, int, int]) -> Tensor:
    header = bytes(packed[: HEADER.size].tolist())
    if len(header) < HEADER.size or not header.startswith(MAGIC):
        raise RuntimeError(
            "sparse_conv_int8: weight must be int8 or come from pack_int8_weight, got other bytes. "
            "Pack the int8 weight again."
        )
    stored = tuple(HEADER.unpack(header)[1:])
    if stored != shape or len(packed) != packed_bytes(*shape):
        raise RuntimeError(
            f"sparse_conv_int8: packed weight must be of {shape} for this kernel map, feats and scale, got {stored}."
        )
    return packed[HEADER.size :].view(torch.int8).view(shape)
