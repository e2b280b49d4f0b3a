"""Batch norm in training by torch's own operator, forward and backward; for any device."""

from __future__ import annotations

import torch
from torch import Tensor


def batch_norm(
    feats: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Normalised features, and the mean and biased variance of each channel."""
    dtype = torch.promote_types(feats.dtype, torch.float32)
    scale, shift = parameter(weight, feats, 1.0), parameter(bias, feats, 0.0)
    out, mean, invstd = torch.native_batch_norm(feats, scale, shift, None, None, True, 0.0, eps)
    return out, mean.to(dtype), (invstd.to(dtype) ** -2 - eps).clamp_(min=0)


def batch_norm_backward(
    grad: Tensor, feats: Tensor, weight: Tensor | None, mean: Tensor, var: Tensor, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of feats, weight and bias."""
    statistics = (parameter(weight, feats, 1.0), None, None, mean, (var + eps).rsqrt())
    return torch.ops.aten.native_batch_norm_backward(
        grad, feats, *statistics, True, eps, [True] * 3
    )


def parameter(value: Tensor | None, feats: Tensor, absent: float) -> Tensor:
    """(C,) in the dtype that the features are summed in."""
    dtype = torch.promote_types(feats.dtype, torch.float32)
    if value is None:
        return torch.full((feats.shape[1],), absent, dtype=dtype, device=feats.device)
    return value.detach().to(dtype).contiguous()
