"""Batch norm over feature rows with the statistics of the batch.

Ioffe and Szegedy, "Batch Normalization: Accelerating Deep Network Training by Reducing Internal Covariate Shift",
ICML 2015. On the CPU the same bits for any number of threads, and sums that do not drift with the number of rows.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from pointlib.ops._cpu import norm as cpu
from pointlib.ops._cpu.composition import norm as composition
from pointlib.ops._library import LIB
from pointlib.ops.scatter import accumulation_dtype, check_feats


class BatchNormalized(NamedTuple):
    """Normalised features and what they were normalised with.

    Attributes:
        feats: (N, C) of the input's dtype.
        mean: (C,) in the dtype of summation, without gradient.
        var: (C,) biased variance, likewise.
    """

    feats: Tensor
    mean: Tensor
    var: Tensor


def batch_norm(
    feats: Tensor, weight: Tensor | None = None, bias: Tensor | None = None, eps: float = 1e-5
) -> BatchNormalized:
    """Normalise each channel by its mean and variance over all rows, then scale and shift it.

    Args:
        feats: (N, C) floating, N >= 1. float16 and bfloat16 are computed in float32 and rounded once.
        weight: (C,) scale, or None for 1.
        bias: (C,) shift, or None for 0.
        eps: Added to the variance.

    Returns:
        BatchNormalized. Differentiable, twice too, in feats, weight and bias.

    Raises:
        TypeError, ValueError: If feats is not (N, C) floating with a row, or a parameter not (C,).

    Example:
        >>> batch_norm(torch.tensor([[1.0], [3.0]]), eps=0.0).feats.tolist()
        [[-1.0], [1.0]]
    """
    check_feats(feats, "batch_norm")
    if feats.shape[0] == 0:
        raise ValueError("batch_norm: feats must hold at least one row, got none.")
    for name, value in (("weight", weight), ("bias", bias)):
        if value is not None and value.shape != feats.shape[1:]:
            raise ValueError(
                f"batch_norm: {name} must be ({feats.shape[1]},), got {tuple(value.shape)}. "
                "Give one number a channel."
            )
    return BatchNormalized(*torch.ops.pointlib.batch_norm(feats, weight, bias, eps))


LIB.define(
    "batch_norm(Tensor feats, Tensor? weight, Tensor? bias, float eps) -> (Tensor, Tensor, Tensor)"
)
LIB.define(
    "batch_norm_backward(Tensor grad, Tensor feats, Tensor? weight, Tensor mean, Tensor var, float eps) "
    "-> (Tensor, Tensor, Tensor)"
)
for _name in ("batch_norm", "batch_norm_backward"):
    LIB.impl(_name, getattr(cpu, _name), "CPU")
    LIB.impl(_name, getattr(composition, _name), "CompositeExplicitAutograd")


@torch.library.register_fake("pointlib::batch_norm", lib=LIB)
def _batch_norm_fake(
    feats: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    mean = feats.new_empty(feats.shape[1], dtype=accumulation_dtype(feats))
    return feats.new_empty(feats.shape), mean, torch.empty_like(mean)


@torch.library.register_fake("pointlib::batch_norm_backward", lib=LIB)
def _backward_fake(
    grad: Tensor, feats: Tensor, weight: Tensor | None, mean: Tensor, var: Tensor, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    return feats.new_empty(feats.shape), torch.empty_like(mean), torch.empty_like(mean)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    feats, weight, bias, eps = inputs
    _, mean, var = output
    ctx.mark_non_differentiable(mean, var)
    ctx.save_for_backward(feats, weight, mean, var)
    ctx.eps, ctx.bias_dtype = eps, None if bias is None else bias.dtype


def _backward(
    ctx: Any, grad: Tensor, _mean: Any, _var: Any
) -> tuple[Tensor, Tensor | None, Tensor | None, None]:
    feats, weight, mean, var = ctx.saved_tensors
    if torch.is_grad_enabled():  # somebody wants the gradient of this gradient
        grads = _differentiable_backward(grad, feats, weight, ctx.eps)
    else:
        statistics = (weight, mean, var, ctx.eps)
        grads = torch.ops.pointlib.batch_norm_backward(grad, feats, *statistics)
    grad_weight = None if weight is None else grads[1].to(weight.dtype)
    grad_bias = None if ctx.bias_dtype is None else grads[2].to(ctx.bias_dtype)
    return grads[0], grad_weight, grad_bias, None


def _differentiable_backward(
    grad: Tensor, feats: Tensor, weight: Tensor | None, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients as differentiable functions of grad, feats and weight."""
    x, g = (t.to(accumulation_dtype(feats)) for t in (feats, grad))
    centred = x - x.mean(0)
    invstd = (centred.square().mean(0) + eps).rsqrt()
    normalized = centred * invstd
    grad_weight, grad_bias = (g * normalized).sum(0), g.sum(0)
    scale = invstd if weight is None else invstd * weight
    grad_feats = scale * (g - (grad_bias + normalized * grad_weight) / feats.shape[0])
    return grad_feats.to(feats.dtype), grad_weight, grad_bias


torch.library.register_autograd("pointlib::batch_norm", _backward, setup_context=_save, lib=LIB)
