"""How the threads of a block share rows of features, as cuda/rows.cuh has it."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from pointlib.ops._cuda import engine
from pointlib.ops._cuda.types import accumulator

BLOCK = 256
MAX_LANES = 64
"""Vectors of a row that one block takes; longer rows are continued by other blocks."""
VECTOR_BYTES = 16


class Layout(NamedTuple):
    """A block's share of rows.

    Attributes:
        vector: Channels of a thread.
        vectors: Of a row.
        lanes: Threads of a row.
        groups: Rows of a block.
        columns: Blocks side by side that a row takes.
    """

    vector: int
    vectors: int
    lanes: int
    groups: int
    columns: int

    def grid(self, rows: int, each: int = 1) -> tuple[int, int]:
        """Blocks for so many rows, with `each` rows a group."""
        return engine.ceil_div(rows, self.groups * each), self.columns


def layout(vectors: int, vector: int = 1) -> Layout:
    """Share out rows of `vectors` (>= 1) vectors of `vector` channels."""
    columns = engine.ceil_div(vectors, MAX_LANES)
    lanes = engine.ceil_div(vectors, columns)
    return Layout(vector, vectors, lanes, BLOCK // lanes, columns)


def feature_layout(channels: int, *feats: Tensor | None) -> Layout:
    """Share out rows of features, with 16-byte vectors where every tensor has whole and aligned ones.

    Args:
        channels: C >= 1.
        feats: (N, C) contiguous, of one dtype; None is passed over.
    """
    given = [t for t in feats if t is not None]
    vector = widest(given[0].dtype)
    aligned = all(t.data_ptr() % VECTOR_BYTES == 0 for t in given)
    if channels % vector or not aligned:
        vector = 1
    return layout(channels // vector, vector)


def parameter(value: Tensor | None, feats: Tensor) -> Tensor | None:
    """A parameter (C,) in the dtype that the features are summed in, aligned for vectors."""
    if value is None:
        return None
    value = value.detach().to(accumulator(feats.dtype)).contiguous()
    return value if value.data_ptr() % VECTOR_BYTES == 0 else value.clone()


def widest(dtype: torch.dtype) -> int:
    """Channels of a 16-byte vector."""
    return VECTOR_BYTES // dtype.itemsize
