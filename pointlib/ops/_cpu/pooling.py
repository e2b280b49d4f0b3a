"""Pooling over a kernel map's pairs by the compiled engine."""

from __future__ import annotations

from torch import Tensor

from pointlib.ops._cpu import engine
from pointlib.ops._cpu.composition import pooling as composition
from pointlib.ops._cpu.scatter import max_rows, sum_rows


@engine.or_composition(composition.pool_sum)
def pool_sum(feats: Tensor, in_index: Tensor, out_index: Tensor, num_out: int) -> Tensor:
    """Sum of the inputs that the pairs bring to each output."""
    return sum_rows("pool_sum", feats, in_index, out_index, num_out)


@engine.or_composition(composition.pool_max)
def pool_max(
    feats: Tensor, in_index: Tensor, out_index: Tensor, num_out: int
) -> tuple[Tensor, Tensor]:
    """Largest input that the pairs bring to each output and channel, and its row."""
    return max_rows("pool_max", feats, in_index, out_index, num_out)
