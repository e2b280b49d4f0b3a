"""Row numbers checked on the device, so that the host need not wait to know that they are in range."""

from __future__ import annotations

import torch
from torch import Tensor

from pointlib.ops._cuda.remembered import Remembered

_checked: Remembered[int] = Remembered()
"""Of an index, the number of rows that it was found to be within."""


def range_flag(index: Tensor, num_rows: int) -> Tensor | None:
    """True, for a kernel to make False where an entry is neither -1 nor in [0, num_rows); None if it is known."""
    known = _checked.get(index)
    if known is not None and known <= num_rows:
        return None
    return index.new_ones((), dtype=torch.bool)


def assert_in_range(flag: Tensor | None, index: Tensor, num_rows: int, caller: str) -> None:
    """Fail on the device, when it comes there, if an index was out of range. The kernels read nothing in that case.

    Args:
        flag: Of `range_flag`, after the kernel.
        index: Index that was checked.
        num_rows: Rows that there are.
        caller: Name for the message.
    """
    if flag is None:
        return
    torch._assert_async(
        flag,
        f"{caller}: index must be in [0, {num_rows}), or -1 for none. "
        "The index belongs to other features, or the number of output rows is too small.",
    )
    remember_in_range(index, num_rows)


def remember_in_range(index: Tensor, num_rows: int) -> None:
    """Spare an index the check, because it was made within range."""
    _checked.put(index, num_rows)
