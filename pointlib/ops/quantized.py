"""int8 sparse convolution, int8 x int8 -> int32, rescaled in the same pass; and quantization to int8.

Quantization is symmetric: value = step * q with q in [-127, 127], one step for a tensor of features and one for each
output channel of a weight. Every implementation gives the same bits, by this specification. All arithmetic is that
of IEEE 754 with rounding half to even; `float32(...)` is one rounding, and no multiplication and addition are fused.

    sum[o, c] = sum over taps k, pairs (i, o) of tap k and input channels j of feats[i, j] * weight[k, j, c]     exact
    y = float32(float32(sum[o, c]) * scale[c])
    y = float32(y + shift[c])
    y = float32(y + float32(float32(residual[o, c]) * residual_scale))      where there is a residual
    y = y if y > 0 else +0                                                  where the activation is relu
    out[o, c] = y                                                           out_dtype float32
              = bfloat16(y)                                                 out_dtype bfloat16
              = half_to_even(min(max(y, -127), 127))                        out_dtype int8; 0 where y is NaN

The sum is exact because K * C_in is at most MAX_PRODUCTS, so |sum| <= MAX_PRODUCTS * 128 * 128 < 2**31 for any int8
operands; more is refused. An int8 output has scale[c] = in_step * weight_step[c] / out_step, shift in units of
out_step and residual_scale = residual_step / out_step; a float output leaves out_step away.

`quantize` rounds alike: q = half_to_even(min(max(float32(float32(x) / step), -127), 127)), and 0 where x is NaN.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from pointlib.ops import _cpu
from pointlib.ops._cuda import quantized as cuda
from pointlib.ops._library import LIB
from pointlib.ops.kernel_map import KernelMap

MAX_PRODUCTS = (2**31 - 1) // 128**2
"""Taps times input channels, at most: 131,071."""

OUT_DTYPES = (torch.int8, torch.float32, torch.bfloat16)


class QuantizedWeight(NamedTuple):
    """A weight in int8.

    Attributes:
        values: int8, the shape of the weight, in [-127, 127].
        step: (C_out,) float32; weight[..., c] is about step[c] * values[..., c].
    """

    values: Tensor
    step: Tensor


def quantize(feats: Tensor, step: float) -> Tensor:
    """Round features to int8 as the specification above says. Not differentiable.

    Args:
        feats: Float features of any shape.
        step: Value of one unit, a positive normal float32.

    Returns:
        int8, the shape of feats.

    Raises:
        RuntimeError: If a gradient is wanted.
        TypeError: If feats is not floating.
        ValueError: If step is out of range.

    Example:
        >>> quantize(torch.tensor([0.25, -0.75, 9.0, 100.0]), 0.5)
        tensor([   0,   -2,   18,  127], dtype=torch.int8)
    """
    if not feats.is_floating_point():
        raise TypeError(f"quantize: feats must be floating, got {feats.dtype}.")
    if not 2.0**-126 <= step <= 2.0**127:
        raise ValueError(f"quantize: step must be in [2**-126, 2**127], got {step}.")
    _refuse_gradient("quantize", feats=feats)
    return torch.ops.pointlib.quantize_int8(feats, step)


def quantize_weight(weight: Tensor) -> QuantizedWeight:
    """Round a weight to int8, with the step of each output channel that its largest magnitude needs.

    Args:
        weight: (..., C_out) float, such as (K, C_in, C_out).

    Returns:
        QuantizedWeight with step = max|weight[..., c]| / 127; 1 where that is below the smallest normal float32.

    Raises:
        TypeError: If weight is not floating.
        ValueError: If weight holds NaN or infinity.

    Example:
        >>> quantize_weight(torch.tensor([[[2.0, 0.0], [-254.0, 0.0]]])).step
        tensor([2., 1.])
    """
    if not weight.is_floating_point():
        raise TypeError(f"quantize_weight: weight must be floating, got {weight.dtype}.")
    rows = weight.detach().float().reshape(-1, weight.shape[-1])
    largest = rows.abs().amax(0) if len(rows) else rows.new_zeros(rows.shape[1])
    if not bool(largest.isfinite().all()):
        raise ValueError("quantize_weight: weight must be finite, got NaN or infinity.")
    step = largest / torch.full_like(largest, 127.0)
    step = torch.where(step < torch.finfo(torch.float32).tiny, torch.ones_like(step), step)
    values = (rows / step).round().clamp(-127, 127).to(torch.int8)
    return QuantizedWeight(values.reshape(weight.shape), step)


def pack_int8_weight(weight: Tensor) -> Tensor:
    """Lay a weight out for `sparse_conv_int8`, once instead of at each call.

    The layout belongs to the instruction set in use, or to CUDA where the weight is there, and may change between
    versions: keep it in memory, store the int8 weight.

    Args:
        weight: (K, C_in, C_out) int8.

    Returns:
        (bytes,) uint8.

    Raises:
        TypeError, ValueError: If weight is not (K, C_in, C_out) int8.
    """
    if weight.dtype != torch.int8:
        raise TypeError(f"pack_int8_weight: weight must be int8, got {weight.dtype}.")
    if weight.dim() != 3:
        raise ValueError(
            f"pack_int8_weight: weight must be (K, C_in, C_out), got {tuple(weight.shape)}."
        )
    return torch.ops.pointlib.pack_int8_weight(weight)


def sparse_conv_int8(
    feats: Tensor | Sequence[Tensor],
    weight: Tensor,
    kernel_map: KernelMap | None,
    scale: Tensor,
    shift: Tensor,
    residual: Tensor | None = None,
    residual_scale: float | None = None,
    activation: Literal["none", "relu"] = "none",
    out_dtype: torch.dtype = torch.int8,
) -> Tensor:
    """Convolve int8 features and rescale, as the specification at the top of this file says. Not differentiable.

    Args:
        feats: (N, C_in) int8, or two of them at one step whose channels follow each other (they are not concatenated).
        weight: (K, C_in, C_out) int8, taps in the order of `kernel_map.kernel_taps`; or `pack_int8_weight` of it.
        kernel_map: The pairs, with N inputs and K taps; None for a convolution of one tap that keeps every row.
        scale: (C_out,) float32.
        shift: (C_out,) float32.
        residual: (num_out, C_out) int8 or None.
        residual_scale: Factor of the residual; given if and only if the residual is.
        activation: "relu" or "none".
        out_dtype: torch.int8, torch.float32 or torch.bfloat16.

    Returns:
        (num_out, C_out) of out_dtype.

    Raises:
        RuntimeError: If a gradient is wanted, a packed weight does not fit the rest, the instruction set or the device,
            or rows of the kernel map lie outside (on the CPU: CUDA does not look, for that would wait for the device).
        TypeError: If a dtype is another one.
        ValueError: If a shape does not fit the others or the kernel map, or K * C_in exceeds MAX_PRODUCTS.
    """
    parts = [feats] if isinstance(feats, Tensor) else list(feats)
    _check_dtypes(parts, weight, scale, shift, residual, out_dtype)
    if kernel_map is None:
        kernel_map = _identity_map(len(parts[0]), parts[0].device)
    _check_shapes(parts, weight, kernel_map, scale, shift, residual)
    if (residual is None) != (residual_scale is None):
        raise ValueError(
            "sparse_conv_int8: residual and residual_scale must be given together, "
            f"got {'a' if residual is not None else 'no'} residual and residual_scale {residual_scale}."
        )
    if activation not in ("none", "relu"):
        raise ValueError(
            f"sparse_conv_int8: activation must be 'none' or 'relu', got {activation!r}."
        )
    _refuse_gradient("sparse_conv_int8", scale=scale, shift=shift)
    return torch.ops.pointlib.sparse_conv_int8(
        *(parts, weight, kernel_map.in_index, kernel_map.out_index, kernel_map.offset_ptr),
        *(kernel_map.num_out, scale, shift, residual, residual_scale or 0.0),
        *(activation == "relu", out_dtype),
    )


def _identity_map(rows: int, device: torch.device) -> KernelMap:
    index = torch.arange(rows, dtype=torch.int32, device=device)
    return KernelMap(index, index, torch.tensor([0, rows]), rows, rows, 0)


def _refuse_gradient(caller: str, **tensors: Tensor) -> None:
    for name, tensor in tensors.items():
        if tensor.requires_grad and torch.is_grad_enabled():
            raise RuntimeError(
                f"{caller}: {name} must not require a gradient, got one that does. "
                f"Pass {name}.detach(), or call under torch.no_grad()."
            )


def _check_dtypes(
    feats: Sequence[Tensor],
    weight: Tensor,
    scale: Tensor,
    shift: Tensor,
    residual: Tensor | None,
    out_dtype: torch.dtype,
) -> None:
    if len(feats) not in (1, 2):
        raise ValueError(f"sparse_conv_int8: feats must be one tensor or two, got {len(feats)}.")
    named = [("feats", part, torch.int8) for part in feats]
    named += [("scale", scale, torch.float32), ("shift", shift, torch.float32)]
    if residual is not None:
        named.append(("residual", residual, torch.int8))
    for name, tensor, dtype in named:
        if tensor.dtype != dtype:
            raise TypeError(f"sparse_conv_int8: {name} must be {dtype}, got {tensor.dtype}.")
        if tensor.device != weight.device:
            raise ValueError(
                f"sparse_conv_int8: {name} must be on the weight's device {weight.device}, got {tensor.device}."
            )
    if (weight.dtype, weight.dim()) not in ((torch.int8, 3), (torch.uint8, 1)):
        raise TypeError(
            "sparse_conv_int8: weight must be (K, C_in, C_out) int8 or from pack_int8_weight, "
            f"got {tuple(weight.shape)} {weight.dtype}."
        )
    if out_dtype not in OUT_DTYPES:
        raise TypeError(
            f"sparse_conv_int8: out_dtype must be one of {', '.join(map(str, OUT_DTYPES))}, got {out_dtype}."
        )


def _check_shapes(
    feats: Sequence[Tensor],
    weight: Tensor,
    kernel_map: KernelMap,
    scale: Tensor,
    shift: Tensor,
    residual: Tensor | None,
) -> None:
    num_in, taps = kernel_map.num_in, kernel_map.kernel_volume
    if kernel_map.in_index.device != weight.device:
        raise ValueError(
            f"sparse_conv_int8: kernel_map must be on the weight's device {weight.device}, "
            f"got {kernel_map.in_index.device}."
        )
    if any(f.dim() != 2 or f.shape[0] != num_in for f in feats):
        raise ValueError(
            f"sparse_conv_int8: feats must be ({num_in}, C_in), one row an input of the kernel map, "
            f"got {' and '.join(str(tuple(f.shape)) for f in feats)}."
        )
    c_in = sum(f.shape[1] for f in feats)
    if taps * c_in > MAX_PRODUCTS:
        raise ValueError(
            f"sparse_conv_int8: K * C_in must be at most {MAX_PRODUCTS}, so that no sum overflows int32, "
            f"got {taps} * {c_in}."
        )
    if scale.dim() != 1 or shift.shape != scale.shape:
        raise ValueError(
            f"sparse_conv_int8: scale and shift must be (C_out,), got {tuple(scale.shape)} and {tuple(shift.shape)}."
        )
    c_out = scale.shape[0]
    if weight.dim() == 3 and tuple(weight.shape) != (taps, c_in, c_out):
        raise ValueError(
            f"sparse_conv_int8: weight must be ({taps}, {c_in}, {c_out}) for this kernel map, feats and scale, "
            f"got {tuple(weight.shape)}."
        )
    if residual is not None and tuple(residual.shape) != (kernel_map.num_out, c_out):
        raise ValueError(
            f"sparse_conv_int8: residual must be ({kernel_map.num_out}, {c_out}), got {tuple(residual.shape)}."
        )


LIB.define(
    "sparse_conv_int8(Tensor[] feats, Tensor weight, Tensor in_index, Tensor out_index, Tensor offset_ptr,"
    " SymInt num_out, Tensor scale, Tensor shift, Tensor? residual, float residual_scale, bool relu,"
    " ScalarType out_dtype) -> Tensor"
)
LIB.define("pack_int8_weight(Tensor weight) -> Tensor")
LIB.define("quantize_int8(Tensor feats, float step) -> Tensor")
LIB.impl("sparse_conv_int8", _cpu.quantized.sparse_conv_int8, "CPU")
LIB.impl("pack_int8_weight", _cpu.quantized.pack_int8_weight, "CPU")
LIB.impl("quantize_int8", _cpu.quantized.quantize_int8, "CPU")
LIB.impl("sparse_conv_int8", cuda.sparse_conv_int8, "CUDA")
LIB.impl("pack_int8_weight", cuda.pack_int8_weight, "CUDA")
LIB.impl("quantize_int8", cuda.quantize_int8, "CUDA")


@torch.library.register_fake("pointlib::sparse_conv_int8", lib=LIB)
def _conv_fake(
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
    return feats[0].new_empty((num_out, scale.shape[0]), dtype=out_dtype)


@torch.library.register_fake("pointlib::pack_int8_weight", lib=LIB)
def _pack_fake(weight: Tensor) -> Tensor:
    taps, c_in, c_out = map(int, weight.shape)
    family = cuda if weight.device.type == "cuda" else _cpu.quantized
    size = family.packed_bytes(taps, c_in, c_out)
    return weight.new_empty(size, dtype=torch.uint8)


@torch.library.register_fake("pointlib::quantize_int8", lib=LIB)
def _quantize_fake(feats: Tensor, step: float) -> Tensor:
    return torch.empty_like(feats, dtype=torch.int8, memory_format=torch.contiguous_format)
