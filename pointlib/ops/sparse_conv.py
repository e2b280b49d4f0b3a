"""Sparse convolution over a kernel map: out[o] = bias + sum of feats[i] @ weight[k] over the pairs (i, o) of tap k."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pointlib.ops import _cpu
from pointlib.ops._cuda import sparse_conv as cuda
from pointlib.ops._library import LIB
from pointlib.ops.kernel_map import KernelMap


def sparse_conv(
    feats: Tensor,
    weight: Tensor,
    kernel_map: KernelMap | None,
    bias: Tensor | None = None,
    groups: int = 1,
) -> Tensor:
    """Convolve the features of sparse voxels.

    The same function is every sparse convolution: submanifold, strided, transposed and generative ones differ in
    their kernel map alone. Products accumulate in float32 for bfloat16 and float16 features. The result has the
    same bits run after run. Under autocast the arguments are cast to its dtype, as in `torch.nn.functional.linear`.

    Args:
        feats: (N, C_in) float features of the input voxels.
        weight: (K, C_in / groups, C_out), taps in the order of `kernel_map.kernel_taps`; the dtype of feats.
        kernel_map: The pairs, with N inputs and K taps; None for one tap through which every row feeds itself.
        bias: (C_out,) or None.
        groups: Channel groups, as in torch.nn.Conv3d; C_in for a depthwise convolution.

    Returns:
        (num_out, C_out), the dtype of feats; num_out is N without a kernel map. An output that no pair feeds is the
        bias, or 0.

    Raises:
        TypeError: If the dtypes differ or are not floating.
        ValueError: If a shape does not fit the others or the kernel map.
    """
    device = feats.device.type
    if device != "meta" and torch.is_autocast_enabled(device):
        dtype = torch.get_autocast_dtype(device)
        feats, weight = feats.to(dtype), weight.to(dtype)
        bias = None if bias is None else bias.to(dtype)
    _check(feats, weight, kernel_map, bias, groups)
    if kernel_map is None:
        nothing = (None, None, None)
        return torch.ops.pointlib.sparse_conv(feats, weight, bias, *nothing, len(feats), groups, 0)
    return torch.ops.pointlib.sparse_conv(
        *(feats, weight, bias, kernel_map.in_index, kernel_map.out_index, kernel_map.offset_ptr),
        *(kernel_map.num_out, groups, kernel_map.identity_tap),
    )


def _check(
    feats: Tensor, weight: Tensor, kernel_map: KernelMap | None, bias: Tensor | None, groups: int
) -> None:
    if not feats.is_floating_point() or feats.dtype != weight.dtype:
        raise TypeError(
            "sparse_conv: feats and weight must have one floating dtype, "
            f"got {feats.dtype} and {weight.dtype}."
        )
    num_in, taps = len(feats) if feats.dim() else 0, 1
    if kernel_map is not None:
        num_in, taps = kernel_map.num_in, kernel_map.kernel_volume
    if feats.dim() != 2 or feats.shape[0] != num_in:
        raise ValueError(
            f"sparse_conv: feats must be ({num_in}, C_in), one row an input of the kernel map, "
            f"got {tuple(feats.shape)}."
        )
    channels = feats.shape[1]
    if groups < 1 or channels % groups or weight.dim() != 3 or weight.shape[2] % groups:
        raise ValueError(
            f"sparse_conv: groups must divide C_in and C_out, got groups {groups}, "
            f"feats {tuple(feats.shape)}, weight {tuple(weight.shape)}."
        )
    if tuple(weight.shape[:2]) != (taps, channels // groups):
        raise ValueError(
            f"sparse_conv: weight must be ({taps}, {channels // groups}, C_out) "
            f"for this kernel map, {channels} input channels and {groups} groups, got {tuple(weight.shape)}."
        )
    if bias is not None and (bias.dtype != feats.dtype or bias.shape != weight.shape[2:]):
        raise ValueError(
            f"sparse_conv: bias must be ({weight.shape[2]},) {feats.dtype}, got {tuple(bias.shape)} {bias.dtype}."
        )
    map_device = feats.device if kernel_map is None else kernel_map.in_index.device
    if map_device != feats.device or weight.device != feats.device:
        raise ValueError(
            "sparse_conv: feats, weight and kernel_map must be on one device, "
            f"got {feats.device}, {weight.device} and {map_device}."
        )


_PAIRS = "Tensor? in_index, Tensor? out_index, Tensor? offset_ptr"
LIB.define(
    f"sparse_conv(Tensor feats, Tensor weight, Tensor? bias, {_PAIRS}, SymInt num_out, int groups,"
    " int identity_tap) -> Tensor"
)
LIB.define(
    f"sparse_conv_grad_weight(Tensor feats, Tensor grad, {_PAIRS}, int groups, int identity_tap) -> Tensor"
)
LIB.impl("sparse_conv", _cpu.sparse_conv.sparse_conv, "CPU")
LIB.impl("sparse_conv_grad_weight", _cpu.sparse_conv.sparse_conv_grad_weight, "CPU")
LIB.impl("sparse_conv", cuda.sparse_conv, "CUDA")
LIB.impl("sparse_conv_grad_weight", cuda.sparse_conv_grad_weight, "CUDA")


@torch.library.register_fake("pointlib::sparse_conv", lib=LIB)
def _fake(
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
    return feats.new_empty(num_out, weight.shape[2])


@torch.library.register_fake("pointlib::sparse_conv_grad_weight", lib=LIB)
def _grad_weight_fake(
    feats: Tensor,
    grad: Tensor,
    in_index: Tensor | None,
    out_index: Tensor | None,
    offset_ptr: Tensor | None,
    groups: int,
    identity_tap: int,
) -> Tensor:
    taps = 1 if offset_ptr is None else offset_ptr.shape[0] - 1
    return feats.new_empty(taps, feats.shape[1] // groups, grad.shape[1])


def _transpose_channels(weight: Tensor, groups: int) -> Tensor:
    """(K, C_in / groups, C_out) -> (K, C_out / groups, C_in): the weight of the input gradient."""
    if groups == 1:
        return weight.transpose(1, 2)
    taps, c_in, c_out = weight.shape
    split = weight.view(taps, c_in, groups, c_out // groups)
    return split.permute(0, 3, 2, 1).reshape(taps, c_out // groups, groups * c_in)


def _save_conv(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    feats, weight, _, in_index, out_index, offset_ptr, _, ctx.groups, ctx.identity_tap = inputs
    ctx.save_for_backward(feats, weight, in_index, out_index, offset_ptr)


def _conv_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    feats, weight, in_index, out_index, offset_ptr = ctx.saved_tensors
    ops, rest = torch.ops.pointlib, (ctx.groups, ctx.identity_tap)
    grad_feats = grad_weight = grad_bias = None
    if ctx.needs_input_grad[0]:
        grad_feats = ops.sparse_conv(
            *(grad, _transpose_channels(weight, ctx.groups), None),
            *(out_index, in_index, offset_ptr, feats.shape[0], *rest),
        )
    if ctx.needs_input_grad[1]:
        grad_weight = ops.sparse_conv_grad_weight(
            feats, grad, in_index, out_index, offset_ptr, *rest
        )
    if ctx.needs_input_grad[2]:
        grad_bias = grad.sum(0)
    return grad_feats, grad_weight, grad_bias, None, None, None, None, None, None


def _save_grad_weight(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    feats, grad, in_index, out_index, offset_ptr, ctx.groups, ctx.identity_tap = inputs
    ctx.save_for_backward(feats, grad, in_index, out_index, offset_ptr)


def _grad_weight_backward(ctx: Any, grad_weight: Tensor) -> tuple[Tensor | None, ...]:
    feats, grad, in_index, out_index, offset_ptr = ctx.saved_tensors
    ops, rest = torch.ops.pointlib, (ctx.groups, ctx.identity_tap)
    grad_feats = grad_grad = None
    if ctx.needs_input_grad[0]:
        grad_feats = ops.sparse_conv(
            *(grad, _transpose_channels(grad_weight, ctx.groups), None),
            *(out_index, in_index, offset_ptr, feats.shape[0], *rest),
        )
    if ctx.needs_input_grad[1]:
        grad_grad = ops.sparse_conv(
            *(feats, grad_weight, None),
            *(in_index, out_index, offset_ptr, grad.shape[0], *rest),
        )
    return grad_feats, grad_grad, None, None, None, None, None


torch.library.register_autograd(
    "pointlib::sparse_conv", _conv_backward, setup_context=_save_conv, lib=LIB
)
torch.library.register_autograd(
    "pointlib::sparse_conv_grad_weight",
    _grad_weight_backward,
    setup_context=_save_grad_weight,
    lib=LIB,
)
