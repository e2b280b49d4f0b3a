"""Scatter reductions and their gathers by the compiled engine."""

from __future__ import annotations

import torch
from torch import Tensor

from pointlib.ops._cpu import engine
from pointlib.ops._cpu.composition import scatter as composition
from pointlib.ops._cpu.composition.scatter import LONG_SUM, check_rows

ELEMENTS = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2, torch.float64: 3}
"""As Element in csrc/rows_element.h."""


@engine.or_composition(composition.scatter_sum)
def scatter_sum(src: Tensor, index: Tensor, num_rows: int) -> Tensor:
    """Sum of the rows of `src` that `index` sends to each output row."""
    return sum_rows("scatter_sum", src, None, index, num_rows)


@engine.or_composition(composition.gather_rows)
def gather_rows(src: Tensor, index: Tensor) -> Tensor:
    """`src[index]`, a zero row where the index is -1."""
    src, index = src.contiguous(), index.long().contiguous()
    out = src.new_empty(len(index), src.shape[1])
    row_bytes = src.shape[1] * src.element_size()
    outside = engine.call(
        *("pl_gather_rows", src, len(src), row_bytes, index, len(index), out),
        engine.num_threads(),
    )
    if outside:
        check_rows("gather_rows", index, len(src))
    return out


@engine.or_composition(composition.scatter_max)
def scatter_max(src: Tensor, index: Tensor, num_rows: int) -> tuple[Tensor, Tensor]:
    """Largest value sent to each output row and channel, and the row it came from."""
    return max_rows("scatter_max", src, None, index, num_rows)


@engine.or_composition(composition.scatter_elements)
def scatter_elements(src: Tensor, index: Tensor, num_rows: int) -> Tensor:
    """`out[index[i, c], c] += src[i, c]`, -1 sends nowhere."""
    src, index = src.contiguous(), index.long().contiguous()
    out = src.new_empty(num_rows, src.shape[1])
    outside = engine.call(
        *("pl_scatter_elements", element("scatter_elements", src), src, *src.shape, index),
        *(out, num_rows, engine.num_threads()),
    )
    if outside:
        check_rows("scatter_elements", index, num_rows)
    return out


@engine.or_composition(composition.gather_elements)
def gather_elements(src: Tensor, index: Tensor) -> Tensor:
    """`src[index[i, c], c]`, zero where the index is -1."""
    src, index = src.contiguous(), index.long().contiguous()
    out = src.new_empty(index.shape)
    outside = engine.call(
        *("pl_gather_elements", element("gather_elements", src), src, *src.shape, index),
        *(len(index), out, engine.num_threads()),
    )
    if outside:
        check_rows("gather_elements", index, len(src))
    return out


def sum_rows(
    caller: str,
    src: Tensor,
    in_index: Tensor | None,
    out_index: Tensor,
    num_out: int,
    weights: Tensor | None = None,
    each: int = 1,
) -> Tensor:
    """Sum over pairs, in their order, of `weights[p] * src[in_index[p]]` into row `out_index[p]`.

    Args:
        caller: Name for messages.
        src: (N, C) floating.
        in_index: (P,) input row of each pair, or -1; None for row `p // each`.
        out_index: (P,) int32 or int64 output row of each pair, or -1.
        num_out: Number of output rows.
        weights: (P,) contiguous, of the dtype that src is summed in, or None for 1.
        each: Pairs that share an input row, where in_index is None.

    Returns:
        (num_out, C) of src's dtype.
    """
    src, pairs = src.contiguous(), out_index.numel()
    in_rows, out_rows = _rows(in_index, out_index), out_index.contiguous()
    out = src.new_empty(num_out, src.shape[1])
    outside = engine.call(
        *("pl_sum_rows", element(caller, src), src, *src.shape, in_rows, each),
        *(out_rows, out_rows.element_size(), weights, pairs),
        *(int(pairs >= LONG_SUM * num_out), out, num_out, engine.num_threads()),
    )
    if outside:
        _refuse(caller, len(src), in_index, out_index, num_out)
    return out


def max_rows(
    caller: str, src: Tensor, in_index: Tensor | None, out_index: Tensor, num_out: int
) -> tuple[Tensor, Tensor]:
    """Largest value over pairs for each output row and channel (0 if no pair), and its row (-1).

    Arguments as in `sum_rows`.
    """
    src, in_rows, out_rows = src.contiguous(), _rows(in_index, out_index), out_index.contiguous()
    out = src.new_empty(num_out, src.shape[1])
    argmax = torch.empty_like(out, dtype=torch.int64)
    outside = engine.call(
        *("pl_max_rows", element(caller, src), src, *src.shape, in_rows),
        *(out_rows, out_rows.element_size(), len(out_rows)),
        *(int(len(out_rows) >= LONG_SUM * num_out), out, argmax, num_out, engine.num_threads()),
    )
    if outside:
        _refuse(caller, len(src), in_index, out_index, num_out)
    return out, argmax


def element(caller: str, feats: Tensor) -> int:
    """The engine's number of a dtype.

    Raises:
        TypeError: If the engine has none.
    """
    if feats.dtype not in ELEMENTS:
        raise TypeError(
            f"{caller}: features must be float32, bfloat16, float16 or float64, got {feats.dtype}. "
            "Convert with .float()."
        )
    return ELEMENTS[feats.dtype]


def _rows(in_index: Tensor | None, out_index: Tensor) -> Tensor | None:
    """Input rows of the width of the output rows."""
    return None if in_index is None else in_index.to(out_index.dtype).contiguous()


def _refuse(
    caller: str, num_in: int, in_index: Tensor | None, out_index: Tensor, num_out: int
) -> None:
    if in_index is not None:
        check_rows(caller, in_index, num_in)
    check_rows(caller, out_index, num_out)
