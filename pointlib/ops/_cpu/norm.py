"""Batch norm in training by the compiled engine; float64 by the composition."""

from __future__ import annotations

import torch
from torch import Tensor

from pointlib.ops._cpu import engine
from pointlib.ops._cpu.composition import norm as composition
from pointlib.ops._cpu.composition.norm import parameter
from pointlib.ops._cpu.scatter import element


@engine.or_composition(composition.batch_norm)
def batch_norm(
    feats: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Normalised features, and the mean and biased variance of each channel."""
    if feats.dtype == torch.float64:
        return composition.batch_norm(feats, weight, bias, eps)
    feats, code = feats.contiguous(), element("batch_norm", feats)
    scale, shift = parameter(weight, feats, 1.0), parameter(bias, feats, 0.0)
    out, mean, var = torch.empty_like(feats), torch.empty_like(scale), torch.empty_like(scale)
    engine.call(
        *("pl_batch_norm", code, feats, *feats.shape, scale, shift, float(eps)),
        *(out, mean, var, engine.num_threads()),
    )
    return out, mean, var


@engine.or_composition(composition.batch_norm_backward)
def batch_norm_backward(
    grad: Tensor, feats: Tensor, weight: Tensor | None, mean: Tensor, var: Tensor, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of feats, weight and bias."""
    if feats.dtype == torch.float64:
        return composition.batch_norm_backward(grad, feats, weight, mean, var, eps)
    grad, feats = grad.to(feats.dtype).contiguous(), feats.contiguous()
    scale = parameter(weight, feats, 1.0)
    grads = torch.empty_like(feats), torch.empty_like(scale), torch.empty_like(scale)
    code = element("batch_norm_backward", feats)
    engine.call(
        *("pl_batch_norm_backward", code, grad, feats, *feats.shape, scale, mean.contiguous()),
        *(var.contiguous(), float(eps), *grads, engine.num_threads()),
    )
    return grads
