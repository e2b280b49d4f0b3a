"""Batch norm in training by torch's own operator, forward and backward; for any device."""

from __future__ import annotations

import torch
from torch import Tensor


def batch_norm(
    feats: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    residual: Tensor | None,
    negative_slope: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """The layer's output, and the mean and biased variance of each channel."""
    dtype = torch.promote_types(feats.dtype, torch.float32)
    scale, shift = parameter(weight, feats, 1.0), parameter(bias, feats, 0.0)
    out, mean, invstd = torch.native_batch_norm(feats, scale, shift, None, None, True, 0.0, eps)
    if residual is not None:
        out += residual
    if negative_slope != 1:
        out = torch.nn.functional.leaky_relu_(out, negative_slope)
    return out, mean.to(dtype), (invstd.to(dtype) ** -2 - eps).clamp_(min=0)


def batch_norm_backward(
    grad: Tensor,
    out: Tensor | None,
    negative_slope: float,
    feats: Tensor,
    weight: Tensor | None,
    mean: Tensor,
    var: Tensor,
    eps: float,
    with_residual: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of feats, weight, bias and residual (empty where none is wanted)."""
    grad = grad.to(feats.dtype)
    if out is not None:
        grad = torch.where(out > 0, grad, grad * negative_slope)
    statistics = (parameter(weight, feats, 1.0), None, None, mean, (var + eps).rsqrt())
    grads = torch.ops.aten.native_batch_norm_backward(
        grad, feats, *statistics, True, eps, [True] * 3
    )
    return (*grads, grad.clone() if with_residual else feats.new_empty(0))


def parameter(value: Tensor | None, feats: Tensor, absent: float) -> Tensor:
    """(C,) in the dtype that the features are summed in."""
    dtype = torch.promote_types(feats.dtype, torch.float32)
    if value is None:
        return torch.full((feats.shape[1],), absent, dtype=dtype, device=feats.device)
    return value.detach().to(dtype).contiguous()


def fold_batch_norm(
    mean: Tensor,
    var: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    earlier_bias: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """A batch norm over known statistics as scale and shift."""
    scale = torch.rsqrt(var + eps)
    if weight is not None:
        scale = scale * weight
    if earlier_bias is not None:
        mean = mean - earlier_bias
    shift = -mean * scale if bias is None else torch.addcmul(bias, mean, scale, value=-1)
    return scale, shift
