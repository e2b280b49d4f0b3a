"""Sparse convolution on CUDA: the operators, each handed to the kernels that carry it out."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from pointlib.ops._cuda import engine
from pointlib.ops._cuda.gemm_tiles import Plan
from pointlib.ops._cuda.grouped_conv import grouped_conv
from pointlib.ops._cuda.hybrid import hybrid
from pointlib.ops._cuda.implicit_gemm import Epilogue, Pairs, convolve
from pointlib.ops._cuda.tiles import on_tensor_cores
from pointlib.ops._cuda.weight_grad import weight_grad
from pointlib.ops._cuda.weight_stationary import fetch_on_demand, gather_scatter
from pointlib.ops.dataflow import Dataflow, Workload, tuned_dataflow


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
    workload = Workload("forward", feats.dtype, feats.shape[1], weight.shape[2], pairs.statistics)
    dataflow = tuned_dataflow(workload, engine.properties(feats).name)
    return carry_out(feats, weight, bias, pairs, dataflow)


def carry_out(
    feats: Tensor, weight: Tensor, bias: Tensor | None, pairs: Pairs, dataflow: Dataflow | None
) -> Tensor:
    """Convolve by a dataflow; None, or one that needs pairs where there are rows alone, is left to the prior."""
    if dataflow is not None and dataflow.kind != "output_stationary":
        if pairs.offset_ptr is not None and int(pairs.offset_ptr[-1]) != pairs.statistics.num_pairs:
            return convolve([feats], weight, pairs, Epilogue(shift=bias))
        if dataflow.kind == "hybrid":
            return hybrid(feats, weight, bias, pairs)
        tap_by_tap = fetch_on_demand if dataflow.kind == "fetch_on_demand" else gather_scatter
        return tap_by_tap(feats, weight, bias, *pairs[:4])
    plan = None if dataflow is None else Plan.of(dataflow, is_exact(feats))
    return convolve([feats], weight, pairs, Epilogue(shift=bias), plan=plan)


def is_exact(feats: Tensor) -> bool:
    """Whether features are multiplied by fused multiply-add and not on tensor cores."""
    return not on_tensor_cores(feats.dtype, engine.properties(feats).capability)


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
    pairs = Pairs(in_index, out_index, offset_ptr, len(grad), identity_tap)
    sizes = (feats.shape[1], grad.shape[1], pairs.statistics)
    workload = Workload("grad_weight", feats.dtype, *sizes)
    tuned = tuned_dataflow(workload, engine.properties(feats).name) if groups == 1 else None
    chunk = None if tuned is None else tuned.tile_rows
    return weight_grad(feats, grad, in_index, out_index, offset_ptr, groups, chunk)


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
