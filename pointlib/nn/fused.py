"""Convolution, batch norm, addition and activation as one step: one operator in inference, two in training."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.modules import module as torch_module

from pointlib.nn.conv import Conv3d
from pointlib.nn.merge import cat, check_same_sites
from pointlib.nn.norm import BatchNorm
from pointlib.ops.fused_conv import fused_sparse_conv
from pointlib.ops.norm import fold_batch_norm
from pointlib.tensor import SparseTensor

_FROZEN = "_frozen_scales_and_shifts"
_Frozen = dict[nn.Module, tuple[Tensor, Tensor]]
"""Of a batch norm: factor and summand behind each convolution that it follows."""


def conv_norm_act(
    x: SparseTensor,
    conv: nn.Module,
    norm: nn.Module,
    act: nn.Module | None = None,
    skip: SparseTensor | None = None,
    residual: Tensor | None = None,
    overwrite_residual: bool = False,
) -> SparseTensor:
    """Compute `act(norm(conv(cat([x, skip]))) + residual)`.

    For a Conv3d, a BatchNorm and a ReLU or LeakyReLU, what lies between the steps is not stored. Where no gradient is
    wanted and the batch norm uses its running statistics it is one pass over the output, which reads x and skip where
    they are; in training the convolution is one and all that follows another. Other modules, and those with hooks,
    are called one by one.

    Args:
        x: (N, C) features.
        conv: Takes the channels of x and of skip.
        norm: Of conv's output.
        act: Last step; None for none.
        skip: On the voxels of x, its channels behind those of x; or None.
        residual: (M, C_out) on the output's voxels, or None.
        overwrite_residual: The memory of residual may be used for the result: nobody else reads it.

    Returns:
        (M, C_out) features on the voxels of conv's output.
    """
    slope = _negative_slope(act)
    if slope is None or not isinstance(norm, BatchNorm) or _watched(conv, norm, act):
        return _one_by_one(x, conv, norm, act, skip, residual)
    if not _folds(conv, norm):
        out = conv(x if skip is None else cat([x, skip]))
        if type(norm) is not BatchNorm or not norm.training or not len(out):
            return _finish(norm(out), act, residual)
        if residual is not None:
            residual = residual.to(out.dtype)
        return out.with_feats(norm.train_step(out.feats, residual, slope))
    assert isinstance(conv, Conv3d)
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
    out = fused_sparse_conv(
        *(parts, kernel, kernel_map, scale, shift, residual, slope),
        overwrite_residual=overwrite_residual and residual is not None,
    )
    return x.on(sites, out)


def _one_by_one(
    x: SparseTensor,
    conv: nn.Module,
    norm: nn.Module,
    act: nn.Module | None,
    skip: SparseTensor | None,
    residual: Tensor | None,
) -> SparseTensor:
    return _finish(norm(conv(x if skip is None else cat([x, skip]))), act, residual)


def _finish(x: SparseTensor, act: nn.Module | None, residual: Tensor | None) -> SparseTensor:
    if residual is not None:
        x = x.with_feats(x.feats + residual)
    return x if act is None else act(x)


def _negative_slope(act: nn.Module | None) -> float | None:
    """What the activation does to values below 0; None if it is not of that kind."""
    if act is None:
        return 1.0
    if isinstance(act, nn.LeakyReLU) and act.negative_slope >= 0:
        return act.negative_slope
    return 0.0 if isinstance(act, nn.ReLU) else None


def _watched(*modules: nn.Module | None) -> bool:
    """Whether something looks at what goes into or comes out of a module."""
    if torch_module._global_forward_hooks or torch_module._global_forward_pre_hooks:
        return True
    return any(m is not None and (m._forward_hooks or m._forward_pre_hooks) for m in modules)


def _folds(conv: nn.Module, norm: BatchNorm) -> bool:
    """Whether convolution and batch norm may become one operator."""
    if torch.is_grad_enabled() or torch.compiler.is_compiling():
        return False
    fixed = not norm.training and norm.running_mean is not None
    return fixed and isinstance(conv, Conv3d) and conv.groups == 1


def _scale_and_shift(conv: Conv3d, norm: BatchNorm) -> tuple[Tensor, Tensor]:
    """Batch norm over running statistics, and the convolution's bias, as a factor and a summand per channel."""
    known: _Frozen | None = getattr(norm, _FROZEN, None)
    if known is not None and conv in known:
        return known[conv]
    assert norm.running_mean is not None and norm.running_var is not None
    statistics = (norm.running_mean, norm.running_var, norm.weight, norm.bias)
    scale, shift = fold_batch_norm(*statistics, norm.eps, conv.bias)
    if known is not None:
        known[conv] = (scale, shift)
    return scale, shift


def freeze_batch_norms(model: nn.Module) -> None:
    """Let each batch norm of a network in eval mode fold its parameters at its next use and never again.

    That saves one small operation a convolution. For a copy of a network whose weights stay as they are, such as one
    recorded as a CUDA graph.
    """
    for module in model.modules():
        if isinstance(module, BatchNorm):
            setattr(module, _FROZEN, {})
