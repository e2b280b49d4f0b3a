"""Inference's convolution: concatenated inputs, batch norm, residual and activation in one pass over the output."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from pointlib.ops import _cpu
from pointlib.ops._cuda import sparse_conv as cuda
from pointlib.ops._library import LIB
from pointlib.ops.kernel_map import KernelMap


def fused_sparse_conv(
    feats: Tensor | Sequence[Tensor],
    weight: Tensor,
    kernel_map: KernelMap | None,
    scale: Tensor | None = None,
    shift: Tensor | None = None,
    residual: Tensor | None = None,
    negative_slope: float = 1.0,
    overwrite_residual: bool = False,
) -> Tensor:
    """Compute `act(scale * conv(cat(feats)) + shift + residual)` without storing anything in between.

    A batch norm with running statistics is scale = weight / sqrt(var + eps) and shift = bias - mean * scale. Sums,
    scale and shift are float32 (float64 for float64 features) whatever the dtype of the features. Not differentiable.

    Args:
        feats: (N, C_in) float features, or one or two tensors whose channels follow each other.
        weight: (K, sum of C_in, C_out), of any float dtype, in the order of `kernel_map.kernel_taps`.
        kernel_map: The pairs; None for a convolution of one tap that keeps every row.
        scale: (C_out,) float or None for 1.
        shift: (C_out,) float or None for 0.
        residual: (num_out, C_out), the dtype of feats, or None.
        negative_slope: Of the activation for values below 0: 0 is ReLU, 1 is none.
        overwrite_residual: Write the result to the memory of residual, which saves that of one more tensor.

    Returns:
        (num_out, C_out), the dtype of feats; residual itself where it is overwritten.

    Raises:
        RuntimeError: If a gradient is wanted.
        TypeError: If the dtypes of feats and residual differ or are not floating.
        ValueError: If a shape does not fit the others or the kernel map.
    """
    parts = [feats] if isinstance(feats, Tensor) else list(feats)
    _check(parts, weight, kernel_map, scale, shift, residual)
    pairs: tuple[Tensor | None, ...] = (None, None, None)
    num_out = len(parts[0])
    if kernel_map is not None:
        pairs = (kernel_map.in_index, kernel_map.out_index, kernel_map.offset_ptr)
        num_out = kernel_map.num_out
    arguments = (parts, weight, *pairs, num_out, scale, shift, residual, negative_slope)
    if not overwrite_residual:
        return torch.ops.pointlib.fused_sparse_conv(*arguments)
    if residual is None:
        raise ValueError("fused_sparse_conv: residual must be given to be overwritten, got None.")
    torch.ops.pointlib.fused_sparse_conv_(*arguments)
    return residual


def _check(
    feats: Sequence[Tensor],
    weight: Tensor,
    kernel_map: KernelMap | None,
    scale: Tensor | None,
    shift: Tensor | None,
    residual: Tensor | None,
) -> None:
    caller = "fused_sparse_conv"
    if len(feats) not in (1, 2):
        raise ValueError(f"{caller}: feats must be one or two tensors, got {len(feats)}.")
    given = [t for t in (*feats, weight, scale, shift, residual) if t is not None]
    if torch.is_grad_enabled() and any(t.requires_grad for t in given):
        raise RuntimeError(
            f"{caller}: no argument must require a gradient, for this is inference only. "
            "Use sparse_conv and separate modules, or torch.no_grad()."
        )
    dtypes = {t.dtype for t in (*feats, residual) if t is not None}
    if len(dtypes) > 1 or any(not t.is_floating_point() for t in given):
        raise TypeError(
            f"{caller}: feats and residual must have one floating dtype, got {sorted(map(str, dtypes))}."
        )
    taps, rows = (
        (1, len(feats[0])) if kernel_map is None else (kernel_map.kernel_volume, kernel_map.num_in)
    )
    shapes = [tuple(part.shape) for part in feats]
    if any(part.dim() != 2 or len(part) != rows for part in feats):
        raise ValueError(f"{caller}: feats must be ({rows}, C_in) each, got {shapes}.")
    channels = sum(part.shape[1] for part in feats)
    if weight.dim() != 3 or tuple(weight.shape[:2]) != (taps, channels):
        raise ValueError(
            f"{caller}: weight must be ({taps}, {channels}, C_out), got {tuple(weight.shape)}."
        )
    c_out = weight.shape[2]
    for name, factor in (("scale", scale), ("shift", shift)):
        if factor is not None and tuple(factor.shape) != (c_out,):
            raise ValueError(f"{caller}: {name} must be ({c_out},), got {tuple(factor.shape)}.")
    num_out = rows if kernel_map is None else kernel_map.num_out
    if residual is not None and tuple(residual.shape) != (num_out, c_out):
        raise ValueError(
            f"{caller}: residual must be ({num_out}, {c_out}), got {tuple(residual.shape)}."
        )


_CONV = (
    "Tensor[] feats, Tensor weight, Tensor? in_index, Tensor? out_index, Tensor? offset_ptr, SymInt num_out, "
    "Tensor? scale, Tensor? shift"
)
LIB.define(
    f"fused_sparse_conv({_CONV}, Tensor? residual, float negative_slope) -> Tensor",
)
LIB.define(f"fused_sparse_conv_({_CONV}, Tensor(a!) residual, float negative_slope) -> ()")
LIB.impl("fused_sparse_conv", _cpu.sparse_conv.fused_sparse_conv, "CPU")
LIB.impl("fused_sparse_conv_", _cpu.sparse_conv.fused_sparse_conv_, "CPU")
LIB.impl("fused_sparse_conv", cuda.fused_sparse_conv, "CUDA")
LIB.impl("fused_sparse_conv_", cuda.fused_sparse_conv_, "CUDA")


@torch.library.register_fake("pointlib::fused_sparse_conv", lib=LIB)
def _fake(
    feats: Sequence[Tensor],
    weight: Tensor,
    in_index: Tensor | None,
    out_index: Tensor | None,
    offset_ptr: Tensor | None,
    num_out: int,
    *rest: object,
) -> Tensor:
    return feats[0].new_empty(num_out, weight.shape[2])


@torch.library.register_fake("pointlib::fused_sparse_conv_", lib=LIB)
def _overwriting_fake(*arguments: object) -> None:
    return None
