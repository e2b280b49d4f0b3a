"""How a sparse convolution is carried out: the choice, from the statistics of its kernel map.

The engine sums a tile of output rows over all taps before it goes to the next tile. Small tiles keep the sums in cache
(output stationary); large ones read the weights of a tap less often (weight stationary, where one tile holds every
row). How many pairs a tap brings to a tile decides between the two, so that is what the prior looks at.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

PAIRS_PER_TAP = 150
"""Pairs that a tap should bring to a tile, on average: about where reading its weights stops to matter."""

TILE_ROWS = (64, 4096)
"""Smallest and largest tile: rows that fill the register blocks, and sums of 256 channels that fit in 4 MiB."""

TILES_PER_THREAD = 4
"""So that threads which got easier tiles find more."""


class MapStatistics(NamedTuple):
    """What the choice needs to know of a kernel map.

    Attributes:
        num_pairs: Pairs of all taps.
        kernel_volume: Number of taps.
        num_out: Output rows.
    """

    num_pairs: int
    kernel_volume: int
    num_out: int


@dataclass(frozen=True)
class Dataflow:
    """One way to carry out a convolution. Every one gives the same bits: a row's terms are summed in one order.

    Attributes:
        tile_rows: Output rows of a tile.
    """

    tile_rows: int


def choose_dataflow(statistics: MapStatistics, threads: int) -> Dataflow:
    """Choose the dataflow of a convolution on the CPU.

    Args:
        statistics: Of the kernel map.
        threads: Number of threads that will share the tiles.

    Returns:
        The dataflow; its tile is a power of two.

    Example:
        >>> choose_dataflow(MapStatistics(345_532, 27, 91_852), threads=2)
        Dataflow(tile_rows=1024)
    """
    smallest, largest = TILE_ROWS
    pairs_per_row = statistics.num_pairs / max(statistics.kernel_volume * statistics.num_out, 1)
    wanted = PAIRS_PER_TAP / max(pairs_per_row, 1e-9)
    shared = statistics.num_out / (TILES_PER_THREAD * threads)
    rows = max(min(wanted, shared, largest), smallest)
    return Dataflow(1 << (int(rows).bit_length() - 1))
