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
    feats: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    residual: Tensor | None,
    negative_slope: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """The layer's output, and the mean and biased variance of each channel."""
    if feats.dtype == torch.float64:
        return composition.batch_norm(feats, weight, bias, eps, residual, negative_slope)
    feats, code = feats.contiguous(), element("batch_norm", feats)
    scale, shift = parameter(weight, feats, 1.0), parameter(bias, feats, 0.0)
    out, mean, var = torch.empty_like(feats), torch.empty_like(scale), torch.empty_like(scale)
    added = None if residual is None else residual.contiguous()
    engine.call(
        *("pl_batch_norm", code, feats, *feats.shape, scale, shift, float(eps)),
        *(added, float(negative_slope), out, mean, var, engine.num_threads()),
    )
    return out, mean, var


@engine.or_composition(composition.batch_norm_backward)
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
    if feats.dtype == torch.float64:
        return composition.batch_norm_backward(
            grad, out, negative_slope, feats, weight, mean, var, eps, with_residual
        )
    grad, feats = grad.to(feats.dtype).contiguous(), feats.contiguous()
    scale = parameter(weight, feats, 1.0)
    grads = torch.empty_like(feats), torch.empty_like(scale), torch.empty_like(scale)
    grad_residual = torch.empty_like(feats) if with_residual else feats.new_empty(0)
    code = element("batch_norm_backward", feats)
    activated = None if out is None else out.contiguous()
    engine.call(
        *("pl_batch_norm_backward", code, grad, activated, float(negative_slope)),
        *(feats, *feats.shape, scale, mean.contiguous(), var.contiguous(), float(eps)),
        *(*grads, grad_residual if with_residual else None, engine.num_threads()),
    )
    return (*grads, grad_residual)
