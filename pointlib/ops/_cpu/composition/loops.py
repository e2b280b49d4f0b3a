"""The inner loops of convolution, scatter, pooling and devoxelization, compiled by numba at their first call.

Each runs on one thread and in a fixed order, so it returns the same bits every time. Rows of features move along pairs
(input row, output row); a pair with a row of -1 is passed over. Rows must be in range: the callers check.
"""

from __future__ import annotations

import numpy as np
from numba import njit


@njit(cache=True, nogil=True)
def add_rows(
    src: np.ndarray,
    in_index: np.ndarray,
    out_index: np.ndarray,
    weights: np.ndarray | None,
    out: np.ndarray,
) -> None:
    """`out[out_index[p]] += weights[p] * src[in_index[p]]`; no weights means 1, zero weights cost nothing."""
    for p in range(len(in_index)):
        i, o = in_index[p], out_index[p]
        if i == -1 or o == -1:
            continue
        if weights is None:
            for c in range(src.shape[1]):
                out[o, c] += src[i, c]
        else:
            weight = weights[p]
            if weight != 0:
                for c in range(src.shape[1]):
                    out[o, c] += weight * src[i, c]


@njit(cache=True, nogil=True)
def max_rows(
    src: np.ndarray,
    in_index: np.ndarray,
    out_index: np.ndarray,
    out: np.ndarray,
    argmax: np.ndarray,
) -> None:
    """Largest `src` value that reaches each output, and its row: the lowest at a tie, the first NaN if any.

    `argmax` comes filled with -1, which marks an output that nothing has reached.
    """
    for p in range(len(in_index)):
        i, o = in_index[p], out_index[p]
        if i == -1 or o == -1:
            continue
        for c in range(src.shape[1]):
            value, best, row = src[i, c], out[o, c], argmax[o, c]
            tie = value == best or (value != value and best != best)
            larger = value > best or (value != value and best == best)
            if row == -1 or larger or (tie and i < row):
                out[o, c] = value
                argmax[o, c] = i


@njit(cache=True, nogil=True)
def add_elements(src: np.ndarray, index: np.ndarray, out: np.ndarray) -> None:
    """`out[index[i, c], c] += src[i, c]`."""
    for i in range(len(index)):
        for c in range(index.shape[1]):
            row = index[i, c]
            if row != -1:
                out[row, c] += src[i, c]


@njit(cache=True, nogil=True)
def accumulate(product: np.ndarray, out_rows: np.ndarray, out: np.ndarray) -> None:
    """`out[out_rows[p]] += product[p]`, several times as fast as index_add_ on rows in cache."""
    for p in range(len(out_rows)):
        row = out_rows[p]
        for c in range(product.shape[1]):
            out[row, c] += product[p, c]


@njit(cache=True, nogil=True)
def block_cuts(
    out_rows: np.ndarray, starts: np.ndarray, rows: int, num_blocks: int
) -> tuple[np.ndarray, bool]:
    """First pair of each block, (num_blocks + 1, K), and whether every tap's output rows ascend."""
    taps = len(starts) - 1
    cuts = np.empty((num_blocks + 1, taps), dtype=np.int64)
    for tap in range(taps):
        block, last = 0, -1
        for at in range(starts[tap], starts[tap + 1]):
            row = out_rows[at]
            if row < last:
                return cuts, False
            last = row
            while block * rows <= row:
                cuts[block, tap] = at
                block += 1
        cuts[block:, tap] = starts[tap + 1]
    return cuts, True
