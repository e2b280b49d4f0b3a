"""Scatter reductions and their gathers on the CPU.

Half-precision features are summed in float32 and rounded once. Sums of many rows into few are carried in float64.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

LONG_SUM = 64
"""Rows per output, on average, from which a sum is carried in float64."""


def scatter_sum(src: Tensor, index: Tensor, num_rows: int) -> Tensor:
    """Sum of the rows of `src` that `index` sends to each output row."""
    return add_rows("scatter_sum", src, torch.arange(len(src)), index, num_rows)


def gather_rows(src: Tensor, index: Tensor) -> Tensor:
    """`src[index]`, a zero row where the index is -1."""
    check_rows("gather_rows", index, len(src))
    if not len(src):
        return src.new_zeros(len(index), src.shape[1])
    rows = src.index_select(0, index.clamp(min=0))
    return rows.masked_fill_((index < 0)[:, None], 0)


def scatter_max(src: Tensor, index: Tensor, num_rows: int) -> tuple[Tensor, Tensor]:
    """Largest value sent to each output row and channel, and the row it came from."""
    return max_rows("scatter_max", src, torch.arange(len(src)), index, num_rows)


def scatter_elements(src: Tensor, index: Tensor, num_rows: int) -> Tensor:
    """`out[index[i, c], c] += src[i, c]`, -1 sends nowhere."""
    from pointlib.ops._cpu.composition import loops

    check_rows("scatter_elements", index, num_rows)
    values = as_array(src)
    out = np.zeros((num_rows, src.shape[1]), dtype=values.dtype)
    loops.add_elements(values, as_array(index), out)
    return torch.from_numpy(out).to(src.dtype)


def gather_elements(src: Tensor, index: Tensor) -> Tensor:
    """`src[index[i, c], c]`, zero where the index is -1."""
    check_rows("gather_elements", index, len(src))
    if not len(src):
        return src.new_zeros(index.shape)
    return src.gather(0, index.clamp(min=0)).masked_fill_(index < 0, 0)


def add_rows(
    caller: str,
    src: Tensor,
    in_index: Tensor,
    out_index: Tensor,
    num_out: int,
    weights: Tensor | None = None,
) -> Tensor:
    """Sum over pairs, in their order, of `weights[p] * src[in_index[p]]` into row `out_index[p]`."""
    from pointlib.ops._cpu.composition import loops

    check_rows(caller, in_index, len(src))
    check_rows(caller, out_index, num_out)
    values = as_array(src)
    wide = len(in_index) >= LONG_SUM * num_out
    out = np.zeros((num_out, src.shape[1]), dtype=np.float64 if wide else values.dtype)
    factors = None if weights is None else as_array(weights)
    loops.add_rows(values, as_array(in_index), as_array(out_index), factors, out)
    return torch.from_numpy(out).to(src.dtype)


def max_rows(
    caller: str, src: Tensor, in_index: Tensor, out_index: Tensor, num_out: int
) -> tuple[Tensor, Tensor]:
    """Largest value over pairs for each output row and channel (0 if no pair), and its row (-1)."""
    from pointlib.ops._cpu.composition import loops

    check_rows(caller, in_index, len(src))
    check_rows(caller, out_index, num_out)
    values = as_array(src)
    out = np.zeros((num_out, src.shape[1]), dtype=values.dtype)
    argmax = np.full(out.shape, -1, dtype=np.int64)
    loops.max_rows(values, as_array(in_index), as_array(out_index), out, argmax)
    return torch.from_numpy(out).to(src.dtype), torch.from_numpy(argmax)


def as_array(tensor: Tensor) -> np.ndarray:
    """Contiguous numpy view; half precision, which numba does not know, becomes float32."""
    tensor = tensor.detach().contiguous()
    return (tensor.float() if tensor.dtype in (torch.bfloat16, torch.float16) else tensor).numpy()


def check_rows(caller: str, index: Tensor, num_rows: int) -> None:
    """Raise unless every entry of `index` is a row of `num_rows`, or -1."""
    if not index.numel():
        return
    low, high = (int(bound) for bound in torch.aminmax(index))
    if low < -1 or high >= num_rows:
        raise ValueError(
            f"{caller}: index must be in [0, {num_rows}), or -1 for none, got {low if low < -1 else high}. "
            "The index belongs to other features, or the number of output rows is too small."
        )
