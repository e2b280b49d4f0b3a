"""Pooling over a kernel map: max, average and sum of the voxels under each window, and the way back.

A window's absent voxels do not exist: they are neither zeros to a maximum nor counted by an average.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor

from pointlib.ops._cpu import pooling as cpu
from pointlib.ops._cuda import pooling as cuda
from pointlib.ops._library import LIB
from pointlib.ops.kernel_map import KernelMap
from pointlib.ops.scatter import ScatterMax, accumulation_dtype, check_feats, check_index

PoolMode = Literal["max", "avg", "sum"]


def sparse_pool(feats: Tensor, kernel_map: KernelMap, mode: PoolMode = "max") -> Tensor:
    """Pool the input voxels under each output voxel.

    Pooling over `kernel_map.transpose()` spreads coarse voxels over fine ones: with mode "avg" (or "sum", when windows
    do not overlap) every fine voxel takes its coarse voxel's features.

    Args:
        feats: (num_in, C) floating. float16 and bfloat16 are summed in float32 and rounded once.
        kernel_map: Which input feeds which output.
        mode: "max"; "avg", over the voxels that are present; or "sum".

    Returns:
        (num_out, C) of feats' dtype; outputs that no input reaches are zero. Deterministic.

    Raises:
        TypeError, ValueError: If feats is not (num_in, C) floating, or mode is another.
    """
    if mode == "max":
        return sparse_max_pool(feats, kernel_map).feats
    _check_pool(feats, kernel_map, "sparse_pool")
    pairs = (kernel_map.in_index, kernel_map.out_index, kernel_map.num_out)
    if mode == "sum":
        return torch.ops.pointlib.pool_sum(feats, *pairs)
    if mode != "avg":
        raise ValueError(f"sparse_pool: mode must be 'max', 'avg' or 'sum', got {mode!r}.")
    return torch.ops.pointlib.pool_mean(feats, *pairs)[0]


def sparse_max_pool(feats: Tensor, kernel_map: KernelMap) -> ScatterMax:
    """Max pooling that also tells where each maximum stood, as `sparse_max_unpool` needs it.

    Args:
        feats: (num_in, C) floating.
        kernel_map: Which input feeds which output.

    Returns:
        ScatterMax: feats (num_out, C), argmax (num_out, C) int64, the lowest row at a tie.

    Raises:
        TypeError, ValueError: If feats is not (num_in, C) floating.
    """
    _check_pool(feats, kernel_map, "sparse_max_pool")
    pairs = (kernel_map.in_index, kernel_map.out_index, kernel_map.num_out)
    return ScatterMax(*torch.ops.pointlib.pool_max(feats, *pairs))


def sparse_max_unpool(feats: Tensor, argmax: Tensor, num_rows: int) -> Tensor:
    """Put pooled values back where the maxima stood.

    Args:
        feats: (M, C) floating.
        argmax: (M, C) int64 from `sparse_max_pool`; -1 drops the value.
        num_rows: Number of voxels before the pooling.

    Returns:
        (num_rows, C); zeros elsewhere, and the sum where a voxel was the maximum of several windows.

    Raises:
        TypeError, ValueError: If a dtype, shape or device differs from the above, or an index is out of range.
    """
    check_feats(feats, "sparse_max_unpool")
    check_index(argmax, feats, "sparse_max_unpool", dims=2, name="argmax")
    if argmax.shape != feats.shape:
        raise ValueError(
            f"sparse_max_unpool: argmax must have the shape of feats {tuple(feats.shape)}, "
            f"got {tuple(argmax.shape)}. Unpool with the argmax of the pooling to undo."
        )
    return torch.ops.pointlib.scatter_elements(feats, argmax, num_rows)


def _pool_mean(
    feats: Tensor, in_index: Tensor, out_index: Tensor, num_out: int
) -> tuple[Tensor, Tensor]:
    """Means, and the number of inputs behind each (1 for none), by sums; for any device."""
    rows, pairs = feats.to(accumulation_dtype(feats)), (in_index, out_index, num_out)
    total = torch.ops.pointlib.pool_sum(rows, *pairs)
    count = torch.ops.pointlib.pool_sum(rows.new_ones(len(feats), 1), *pairs)
    count.clamp_(min=1)
    return (total / count).to(feats.dtype), count


def _check_pool(feats: Tensor, kernel_map: KernelMap, caller: str) -> None:
    check_feats(feats, caller)
    if feats.shape[0] != kernel_map.num_in:
        raise ValueError(
            f"{caller}: feats must have kernel_map.num_in = {kernel_map.num_in} rows, got {feats.shape[0]}. "
            "Use the map of these voxels (or its transpose())."
        )


LIB.define("pool_sum(Tensor feats, Tensor in_index, Tensor out_index, SymInt num_out) -> Tensor")
LIB.define(
    "pool_mean(Tensor feats, Tensor in_index, Tensor out_index, SymInt num_out) -> (Tensor, Tensor)"
)
LIB.define(
    "pool_max(Tensor feats, Tensor in_index, Tensor out_index, SymInt num_out) -> (Tensor, Tensor)"
)
for _device, _functions in (("CPU", cpu), ("CUDA", cuda)):
    LIB.impl("pool_sum", _functions.pool_sum, _device)
    LIB.impl("pool_max", _functions.pool_max, _device)
LIB.impl("pool_mean", _pool_mean, "CompositeExplicitAutograd")
LIB.impl("pool_mean", cuda.pool_mean, "CUDA")


@torch.library.register_fake("pointlib::pool_sum", lib=LIB)
def _pool_sum_fake(feats: Tensor, in_index: Tensor, out_index: Tensor, num_out: int) -> Tensor:
    return feats.new_empty(num_out, feats.shape[1])


@torch.library.register_fake("pointlib::pool_mean", lib=LIB)
def _pool_mean_fake(
    feats: Tensor, in_index: Tensor, out_index: Tensor, num_out: int
) -> tuple[Tensor, Tensor]:
    count = feats.new_empty(num_out, 1, dtype=accumulation_dtype(feats))
    return feats.new_empty(num_out, feats.shape[1]), count


@torch.library.register_fake("pointlib::pool_max", lib=LIB)
def _pool_max_fake(
    feats: Tensor, in_index: Tensor, out_index: Tensor, num_out: int
) -> tuple[Tensor, Tensor]:
    out = feats.new_empty(num_out, feats.shape[1])
    return out, torch.empty_like(out, dtype=torch.int64)


def _pool_sum_setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    feats, in_index, out_index, _ = inputs
    ctx.save_for_backward(in_index, out_index)
    ctx.num_in = feats.shape[0]


def _pool_sum_backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
    in_index, out_index = ctx.saved_tensors
    return torch.ops.pointlib.pool_sum(grad, out_index, in_index, ctx.num_in), None, None, None


def _pool_mean_setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    feats, in_index, out_index, _ = inputs
    ctx.mark_non_differentiable(output[1])
    ctx.save_for_backward(in_index, out_index, output[1])
    ctx.num_in = feats.shape[0]


def _pool_mean_backward(ctx: Any, grad: Tensor, _: Any) -> tuple[Tensor, None, None, None]:
    in_index, out_index, count = ctx.saved_tensors
    shares = torch.ops.pointlib.pool_sum(grad / count, out_index, in_index, ctx.num_in)
    return shares.to(grad.dtype), None, None, None


def _pool_max_setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.save_for_backward(output[1])
    ctx.num_in = inputs[0].shape[0]


def _pool_max_backward(ctx: Any, grad: Tensor, _: Any) -> tuple[Tensor, None, None, None]:
    (argmax,) = ctx.saved_tensors
    return torch.ops.pointlib.scatter_elements(grad, argmax, ctx.num_in), None, None, None


for _name, _backward, _setup in (
    ("pool_sum", _pool_sum_backward, _pool_sum_setup),
    ("pool_mean", _pool_mean_backward, _pool_mean_setup),
    ("pool_max", _pool_max_backward, _pool_max_setup),
):
    torch.library.register_autograd(f"pointlib::{_name}", _backward, setup_context=_setup, lib=LIB)
