"""Pooling over a kernel map's pairs on CUDA, by the reductions of `scatter`."""

from __future__ import annotations

from torch import Tensor

from pointlib.ops._cuda.scatter import max_rows, mean_rows, sum_rows


def pool_sum(feats: Tensor, in_index: Tensor, out_index: Tensor, num_out: int) -> Tensor:
    """Sum of the inputs that the pairs bring to each output."""
    return sum_rows("pool_sum", feats, in_index, out_index, num_out)


def pool_mean(
    feats: Tensor, in_index: Tensor, out_index: Tensor, num_out: int
) -> tuple[Tensor, Tensor]:
    """Mean of the inputs that the pairs bring to each output, and their number (1 for none)."""
    return mean_rows("pool_mean", feats, in_index, out_index, num_out)


def pool_max(
    feats: Tensor, in_index: Tensor, out_index: Tensor, num_out: int
) -> tuple[Tensor, Tensor]:
    """Largest input that the pairs bring to each output and channel, and its row."""
    return max_rows("pool_max", feats, in_index, out_index, num_out)
