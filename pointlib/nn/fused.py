"""Convolution, batch norm, addition and activation as one step: one operator in inference, the modules in training."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.modules import module as torch_module

from pointlib.nn.conv import Conv3d
from pointlib.nn.merge import cat, check_same_sites
from pointlib.nn.norm import BatchNorm
from pointlib.ops.fused_conv import fused_sparse_conv
from pointlib.tensor import SparseTensor


def conv_norm_act(
    x: SparseTensor,
    conv: nn.Module,
    norm: nn.Module,
    act: nn.Module | None = None,
    skip: SparseTensor | None = None,
    residual: Tensor | None = None,
) -> SparseTensor:
    """Compute `act(norm(conv(cat([x, skip]))) + residual)`.

    Where no gradient is wanted, this is one pass over the output for a Conv3d, a BatchNorm that uses its running
    statistics and a ReLU or LeakyReLU: what lies between them, and the concatenation, is never stored. Other modules,
    and those with hooks, are called one by one.

    Args:
        x: (N, C) features.
        conv: Takes the channels of x and of skip.
        norm: Of conv's output.
        act: Last step; None for none.
        skip: On the voxels of x, its channels behind those of x; or None.
        residual: (M, C_out) on the output's voxels, or None.

    Returns:
        (M, C_out) features on the voxels of conv's output.
    """
    if not (isinstance(conv, Conv3d) and isinstance(norm, BatchNorm) and _fuses(conv, norm, act)):
        out = norm(conv(x if skip is None else cat([x, skip])))
        if residual is not None:
            out = out.with_feats(out.feats + residual)
        return out if act is None else act(out)
    parts = [x.feats]
    if skip is not None:
        check_same_sites([x, skip], "conv_norm_act")
        parts.append(skip.feats)
    conv.check_input(sum(part.shape[1] for part in parts), x)
    if torch.is_autocast_enabled(x.device.type):
        dtype = torch.get_autocast_dtype(x.device.type)
        parts = [part.to(dtype) for part in parts]
        residual = None if residual is None else residual.to(dtype)
    scale, shift = _scale_and_shift(conv, norm)
    sites, kernel_map = conv.map_of(x)
    kernel = conv.kernel.unsqueeze(0) if conv.is_pointwise else conv.kernel
    slope = 1.0 if act is None else getattr(act, "negative_slope", 0.0)
    out = fused_sparse_conv(parts, kernel, kernel_map, scale, shift, residual, slope)
    return x.on(sites, out)


def _fuses(conv: Conv3d, norm: BatchNorm, act: nn.Module | None) -> bool:
    """Whether the steps may become one: nothing asks to see what lies between them."""
    if torch.is_grad_enabled() or torch.compiler.is_compiling():
        return False
    if norm.training or norm.running_mean is None or conv.groups != 1:
        return False
    if torch_module._global_forward_hooks or torch_module._global_forward_pre_hooks:
        return False
    if act is not None and not isinstance(act, (nn.ReLU, nn.LeakyReLU)):
        return False
    modules = [m for m in (conv, norm, act) if m is not None]
    return not any(m._forward_hooks or m._forward_pre_hooks for m in modules)


def _scale_and_shift(conv: Conv3d, norm: BatchNorm) -> tuple[Tensor, Tensor]:
    """Batch norm over running statistics, and the convolution's bias, as a factor and a summand per channel."""
    assert norm.running_mean is not None and norm.running_var is not None
    scale = torch.rsqrt(norm.running_var + norm.eps)
    if norm.weight is not None:
        scale = scale * norm.weight
    mean = norm.running_mean if conv.bias is None else norm.running_mean - conv.bias
    shift = -mean * scale
    return scale, shift if norm.bias is None else shift + norm.bias
