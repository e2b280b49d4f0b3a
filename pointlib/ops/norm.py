"""Batch norm over feature rows with the statistics of the batch, and the addition and activation behind it.

Ioffe and Szegedy, "Batch Normalization: Accelerating Deep Network Training by Reducing Internal Covariate Shift",
ICML 2015. On the CPU, for any number of threads, and on CUDA the same bits every run; sums do not drift with the rows.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from pointlib.ops._cpu import norm as cpu
from pointlib.ops._cpu.composition import norm as composition
from pointlib.ops._cuda import norm as cuda
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
    feats: Tensor,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    residual: Tensor | None = None,
    negative_slope: float = 1.0,
) -> BatchNormalized:
    """Normalise each channel by its mean and variance over all rows; scale, shift, add and activate.

    Args:
        feats: (N, C) floating, N >= 1. float16 and bfloat16 are computed in float32 and rounded once.
        weight: (C,) scale, or None for 1.
        bias: (C,) shift, or None for 0.
        eps: Added to the variance.
        residual: (N, C) of the dtype of feats, added to the result; or None.
        negative_slope: Of the activation for what is then below 0: 0 is ReLU, 1 is none.

    Returns:
        BatchNormalized. Differentiable, twice too, in feats, weight, bias and residual.

    Raises:
        TypeError, ValueError: If feats is not (N, C) floating with a row, residual not like it, a parameter not (C,)
            or negative_slope below 0.

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
    if residual is not None and (residual.shape, residual.dtype) != (feats.shape, feats.dtype):
        raise ValueError(
            f"batch_norm: residual must be {tuple(feats.shape)} {feats.dtype} as feats are, "
            f"got {tuple(residual.shape)} {residual.dtype}."
        )
    if negative_slope < 0:
        raise ValueError(f"batch_norm: negative_slope must be at least 0, got {negative_slope}.")
    return BatchNormalized(
        *torch.ops.pointlib.batch_norm(feats, weight, bias, eps, residual, negative_slope)
    )


def fold_batch_norm(
    mean: Tensor,
    var: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    earlier_bias: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Turn a batch norm over known statistics into `scale * x + shift`. Not differentiable.

    Args:
        mean: (C,) float.
        var: (C,) float, biased variance.
        weight: (C,) float or None for 1.
        bias: (C,) float or None for 0.
        eps: Added to the variance.
        earlier_bias: (C,) float that was to be added to x before the batch norm, or None.

    Returns:
        scale and shift, (C,) each, the dtype of mean.

    Example:
        >>> scale, shift = fold_batch_norm(torch.ones(1), torch.ones(1), None, None, 0.0)
        >>> scale.tolist(), shift.tolist()
        ([1.0], [-1.0])
    """
    scale, shift = torch.ops.pointlib.fold_batch_norm(mean, var, weight, bias, eps, earlier_bias)
    return scale, shift


LIB.define(
    "batch_norm(Tensor feats, Tensor? weight, Tensor? bias, float eps, Tensor? residual, float negative_slope) "
    "-> (Tensor, Tensor, Tensor)"
)
LIB.define(
    "batch_norm_backward(Tensor grad, Tensor? out, float negative_slope, Tensor feats, Tensor? weight, Tensor mean, "
    "Tensor var, float eps, bool with_residual) -> (Tensor, Tensor, Tensor, Tensor)"
)
for _name in ("batch_norm", "batch_norm_backward"):
    LIB.impl(_name, getattr(cpu, _name), "CPU")
    LIB.impl(_name, getattr(cuda, _name), "CUDA")
    LIB.impl(_name, getattr(composition, _name), "CompositeExplicitAutograd")

LIB.define(
    "fold_batch_norm(Tensor mean, Tensor var, Tensor? weight, Tensor? bias, float eps, Tensor? earlier_bias) "
    "-> (Tensor, Tensor)"
)
LIB.impl("fold_batch_norm", composition.fold_batch_norm, "CompositeExplicitAutograd")
LIB.impl("fold_batch_norm", cuda.fold_batch_norm, "CUDA")


@torch.library.register_fake("pointlib::fold_batch_norm", lib=LIB)
def _fold_fake(mean: Tensor, *rest: object) -> tuple[Tensor, Tensor]:
    return torch.empty_like(mean), torch.empty_like(mean)


@torch.library.register_fake("pointlib::batch_norm", lib=LIB)
def _batch_norm_fake(feats: Tensor, *rest: object) -> tuple[Tensor, Tensor, Tensor]:
    mean = feats.new_empty(feats.shape[1], dtype=accumulation_dtype(feats))
    return feats.new_empty(feats.shape), mean, torch.empty_like(mean)


@torch.library.register_fake("pointlib::batch_norm_backward", lib=LIB)
def _backward_fake(
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
    grad_residual = feats.new_empty(feats.shape if with_residual else 0)
    return (
        feats.new_empty(feats.shape),
        torch.empty_like(mean),
        torch.empty_like(mean),
        grad_residual,
    )


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    feats, weight, bias, ctx.eps, residual, ctx.negative_slope = inputs
    out, mean, var = output
    ctx.mark_non_differentiable(mean, var)
    activated = None if ctx.negative_slope == 1 else out
    ctx.save_for_backward(feats, weight, mean, var, activated)
    ctx.bias_dtype, ctx.with_residual = (
        None if bias is None else bias.dtype,
        residual is not None,
    )


def _backward(ctx: Any, grad: Tensor, _mean: Any, _var: Any) -> tuple[Tensor | None, ...]:
    feats, weight, mean, var, out = ctx.saved_tensors
    if torch.is_grad_enabled():  # somebody wants the gradient of this gradient
        if out is not None:
            grad = torch.where(out > 0, grad, grad * ctx.negative_slope)
        grads = (*_differentiable_backward(grad, feats, weight, ctx.eps), grad)
    else:
        grads = torch.ops.pointlib.batch_norm_backward(
            *(grad, out, ctx.negative_slope, feats, weight, mean, var, ctx.eps, ctx.with_residual)
        )
    grad_weight = None if weight is None else grads[1].to(weight.dtype)
    grad_bias = None if ctx.bias_dtype is None else grads[2].to(ctx.bias_dtype)
    grad_residual = grads[3] if ctx.with_residual else None
    return grads[0], grad_weight, grad_bias, None, grad_residual, None


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
