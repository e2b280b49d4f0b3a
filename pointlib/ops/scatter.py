"""Reductions of feature rows by index, and the gathers that undo them.

One rule for every index here and in `pooling` and `voxelize`: a row number, or -1 for a row that goes nowhere (and, in
a gather, comes back as zeros). An index that is out of range is an error at once on the CPU, and on CUDA, where nobody
waits for it, a device assertion.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from pointlib.ops._cpu import scatter as cpu
from pointlib.ops._cuda import scatter as cuda
from pointlib.ops._library import LIB


class ScatterMax(NamedTuple):
    """Largest values and where they came from.

    Attributes:
        feats: (num_rows, C), zeros where nothing was sent.
        argmax: (num_rows, C) int64, row of the input that held the value (the lowest at a tie), or -1.
    """

    feats: Tensor
    argmax: Tensor


def scatter_sum(src: Tensor, index: Tensor, num_rows: int) -> Tensor:
    """Add up rows that share an index.

    Args:
        src: (N, C) floating. float16 and bfloat16 are summed in float32 and rounded once.
        index: (N,) int64 output row of each input row, or -1 to leave it out.
        num_rows: Number of output rows.

    Returns:
        (num_rows, C) of src's dtype; rows that nothing was sent to are zero. The order of summation is fixed.

    Raises:
        TypeError, ValueError: If a dtype, shape or device differs from the above, or an index is out of range.

    Example:
        >>> scatter_sum(torch.ones(3, 1), torch.tensor([1, 1, -1]), 3).tolist()
        [[0.0], [2.0], [0.0]]
    """
    check_scatter(src, index, num_rows, "scatter_sum")
    return torch.ops.pointlib.scatter_sum(src, index, num_rows)


def scatter_mean(src: Tensor, index: Tensor, num_rows: int) -> Tensor:
    """Average rows that share an index; arguments, result and errors as in `scatter_sum`."""
    check_scatter(src, index, num_rows, "scatter_mean")
    return torch.ops.pointlib.scatter_mean(src, index, num_rows)[0]


def scatter_max(src: Tensor, index: Tensor, num_rows: int) -> ScatterMax:
    """Take the channel-wise maximum of rows that share an index.

    Arguments and errors as in `scatter_sum`. A NaN wins over every number. The gradient goes to `argmax` alone.

    Example:
        >>> scatter_max(torch.tensor([[1.0], [3.0], [3.0]]), torch.tensor([0, 0, 0]), 2).argmax.tolist()
        [[1], [-1]]
    """
    check_scatter(src, index, num_rows, "scatter_max")
    return ScatterMax(*torch.ops.pointlib.scatter_max(src, index, num_rows))


def gather_rows(src: Tensor, index: Tensor) -> Tensor:
    """Take rows by index: the transpose of `scatter_sum`, with a deterministic gradient.

    Args:
        src: (M, C) floating.
        index: (N,) int64 row of src, or -1 for a row of zeros.

    Returns:
        (N, C).

    Raises:
        TypeError, ValueError: If a dtype, shape or device differs from the above, or an index is out of range.
    """
    check_feats(src, "gather_rows", "src")
    check_index(index, src, "gather_rows", dims=1)
    return torch.ops.pointlib.gather_rows(src, index)


def _scatter_mean(src: Tensor, index: Tensor, num_rows: int) -> tuple[Tensor, Tensor]:
    """Means, and the number of rows behind each (1 for none), by sums; for any device."""
    rows = src.to(accumulation_dtype(src))
    total = torch.ops.pointlib.scatter_sum(rows, index, num_rows)
    count = torch.ops.pointlib.scatter_sum(rows.new_ones(len(src), 1), index, num_rows)
    count.clamp_(min=1)
    return (total / count).to(src.dtype), count


def accumulation_dtype(feats: Tensor) -> torch.dtype:
    """Dtype to reduce in: float64 for float64, else float32."""
    return torch.promote_types(feats.dtype, torch.float32)


def check_feats(feats: Tensor, caller: str, name: str = "feats") -> None:
    """Raise unless `feats` is (N, C) of a floating dtype.

    Raises:
        TypeError: If it is no floating tensor.
        ValueError: If it is not of two dimensions.
    """
    if not isinstance(feats, Tensor) or not feats.is_floating_point():
        got = str(feats.dtype) if isinstance(feats, Tensor) else type(feats).__name__
        raise TypeError(
            f"{caller}: {name} must be an (N, C) floating tensor, got {got}. Convert with .float()."
        )
    if feats.dim() != 2:
        raise ValueError(
            f"{caller}: {name} must be of shape (N, C), got {tuple(feats.shape)}. Use [:, None] for one channel."
        )


def check_index(index: Tensor, feats: Tensor, caller: str, dims: int, name: str = "index") -> None:
    """Raise unless `index` is int64, of `dims` dimensions and on the device of `feats`.

    Raises:
        TypeError: If it is no int64 tensor.
        ValueError: If its shape or device is another.
    """
    if not isinstance(index, Tensor) or index.dtype != torch.int64:
        got = str(index.dtype) if isinstance(index, Tensor) else type(index).__name__
        raise TypeError(
            f"{caller}: {name} must be an int64 tensor, got {got}. Convert with .long()."
        )
    if index.dim() != dims:
        raise ValueError(
            f"{caller}: {name} must have {dims} dimension(s), got shape {tuple(index.shape)}."
        )
    if index.device != feats.device:
        raise ValueError(
            f"{caller}: {name} must be on {feats.device} as the features are, got {index.device}. "
            "Move it with .to()."
        )


def check_scatter(src: Tensor, index: Tensor, num_rows: int, caller: str) -> None:
    """Check the arguments that the scatter reductions share."""
    check_feats(src, caller, "src")
    check_index(index, src, caller, dims=1)
    if index.shape[0] != src.shape[0]:
        raise ValueError(
            f"{caller}: index must have one entry per row of src, got {index.shape[0]} for {src.shape[0]} rows."
        )
    if num_rows < 0:
        raise ValueError(f"{caller}: num_rows must be >= 0, got {num_rows}.")


LIB.define("scatter_sum(Tensor src, Tensor index, SymInt num_rows) -> Tensor")
LIB.define("scatter_mean(Tensor src, Tensor index, SymInt num_rows) -> (Tensor, Tensor)")
LIB.define("gather_rows(Tensor src, Tensor index) -> Tensor")
LIB.define("scatter_max(Tensor src, Tensor index, SymInt num_rows) -> (Tensor, Tensor)")
LIB.define("scatter_elements(Tensor src, Tensor index, SymInt num_rows) -> Tensor")
LIB.define("gather_elements(Tensor src, Tensor index) -> Tensor")
for _name in ("scatter_sum", "gather_rows", "scatter_max", "scatter_elements", "gather_elements"):
    LIB.impl(_name, getattr(cpu, _name), "CPU")
    LIB.impl(_name, getattr(cuda, _name), "CUDA")
LIB.impl("scatter_mean", _scatter_mean, "CompositeExplicitAutograd")
LIB.impl("scatter_mean", cuda.scatter_mean, "CUDA")


@torch.library.register_fake("pointlib::scatter_sum", lib=LIB)
@torch.library.register_fake("pointlib::scatter_elements", lib=LIB)
def _scatter_fake(src: Tensor, index: Tensor, num_rows: int) -> Tensor:
    return src.new_empty(num_rows, src.shape[1])


@torch.library.register_fake("pointlib::scatter_mean", lib=LIB)
def _scatter_mean_fake(src: Tensor, index: Tensor, num_rows: int) -> tuple[Tensor, Tensor]:
    count = src.new_empty(num_rows, 1, dtype=accumulation_dtype(src))
    return src.new_empty(num_rows, src.shape[1]), count


@torch.library.register_fake("pointlib::gather_rows", lib=LIB)
@torch.library.register_fake("pointlib::gather_elements", lib=LIB)
def _gather_fake(src: Tensor, index: Tensor) -> Tensor:
    return src.new_empty(index.shape[0], src.shape[1])


@torch.library.register_fake("pointlib::scatter_max", lib=LIB)
def _scatter_max_fake(src: Tensor, index: Tensor, num_rows: int) -> tuple[Tensor, Tensor]:
    out = src.new_empty(num_rows, src.shape[1])
    return out, torch.empty_like(out, dtype=torch.int64)


def _save_index(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    ctx.save_for_backward(inputs[1])
    ctx.num_rows = inputs[0].shape[0]


def _save_count(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.mark_non_differentiable(output[1])
    ctx.save_for_backward(inputs[1], output[1])


def _save_argmax(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.save_for_backward(output[1])
    ctx.num_rows = inputs[0].shape[0]


def _scatter_sum_backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
    return torch.ops.pointlib.gather_rows(grad, *ctx.saved_tensors), None, None


def _scatter_mean_backward(ctx: Any, grad: Tensor, _: Any) -> tuple[Tensor, None, None]:
    index, count = ctx.saved_tensors
    return torch.ops.pointlib.gather_rows((grad / count).to(grad.dtype), index), None, None


def _gather_rows_backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
    return torch.ops.pointlib.scatter_sum(grad, *ctx.saved_tensors, ctx.num_rows), None


def _scatter_elements_backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
    return torch.ops.pointlib.gather_elements(grad, *ctx.saved_tensors), None, None


def _gather_elements_backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
    return torch.ops.pointlib.scatter_elements(grad, *ctx.saved_tensors, ctx.num_rows), None


def _scatter_max_backward(ctx: Any, grad: Tensor, _: Any) -> tuple[Tensor, None, None]:
    return torch.ops.pointlib.scatter_elements(grad, *ctx.saved_tensors, ctx.num_rows), None, None


for _name, _backward, _setup in (
    ("scatter_sum", _scatter_sum_backward, _save_index),
    ("scatter_mean", _scatter_mean_backward, _save_count),
    ("gather_rows", _gather_rows_backward, _save_index),
    ("scatter_elements", _scatter_elements_backward, _save_index),
    ("gather_elements", _gather_elements_backward, _save_index),
    ("scatter_max", _scatter_max_backward, _save_argmax),
):
    torch.library.register_autograd(f"pointlib::{_name}", _backward, setup_context=_setup, lib=LIB)
