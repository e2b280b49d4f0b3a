"""Sparse convolution on CUDA: the operators, each handed to the kernels that carry it out."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from pointlib.ops._cuda.grouped_conv import grouped_conv
from pointlib.ops._cuda.implicit_gemm import Epilogue, Pairs, convolve
from pointlib.ops._cuda.weight_grad import weight_grad


def sparse_conv(
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
    """Forward; also the input gradient, by the transposed map and weight. Shapes as in ops/sparse_conv.py."""
    if groups > 1:
        return grouped_conv(feats, weight, bias, in_index, out_index, offset_ptr, num_out, groups)
    pairs = Pairs(in_index, out_index, offset_ptr, num_out, identity_tap)
    return convolve([feats], weight, pairs, Epilogue(shift=bias))


def sparse_conv_grad_weight(
    feats: Tensor,
    grad: Tensor,
    in_index: Tensor | None,
    out_index: Tensor | None,
    offset_ptr: Tensor | None,
    groups: int,
    identity_tap: int,
) -> Tensor:
    """Weight gradient: grad_weight[k] = sum of feats[i]^T grad[o] over the pairs of tap k."""
    return weight_grad(feats, grad, in_index, out_index, offset_ptr, groups)


def fused_sparse_conv(
    feats: Sequence[Tensor],
    weight: Tensor,
    in_index: Tensor | None,
    out_index: Tensor | None,
    offset_ptr: Tensor | None,
    num_out: int,
    scale: Tensor | None,
    shift: Tensor | None,
    residual: Tensor | None,
    negative_slope: float,
) -> Tensor:
    """Inputs side by side, all their taps, and what follows the sum, in one kernel. Shapes as in ops/fused_conv.py."""
    pairs = Pairs(in_index, out_index, offset_ptr, num_out)
    return convolve(feats, weight, pairs, Epilogue(scale, shift, residual, negative_slope))


def fused_sparse_conv_(
    feats: Sequence[Tensor],
    weight: Tensor,
    in_index: Tensor | None,
    out_index: Tensor | None,
    offset_ptr: Tensor | None,
    num_out: int,
    scale: Tensor | None,
    shift: Tensor | None,
    residual: Tensor,
    negative_slope: float,
) -> None:
    """The same, into the memory of the residual; by way of a copy where that is not contiguous, or feeds the sum."""
    pairs = Pairs(in_index, out_index, offset_ptr, num_out)
    epilogue = Epilogue(scale, shift, residual, negative_slope)
    memory = residual.untyped_storage().data_ptr()
    read = any(part.untyped_storage().data_ptr() == memory for part in feats)
    if read or not residual.is_contiguous():
        residual.copy_(convolve(feats, weight, pairs, epilogue))
    else:
        convolve(feats, weight, pairs, epilogue, out=residual)
