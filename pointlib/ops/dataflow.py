"""How a sparse convolution is carried out: what was tuned for it, else a prior from the statistics of its kernel map.

On the CPU the engine sums a tile of output rows over all taps before it goes to the next tile. Small tiles keep the
sums in cache (output stationary); large ones read the weights of a tap less often (weight stationary, where one tile
holds every row). How many pairs a tap brings to a tile decides between the two, so that is what the prior looks at.
On a GPU there are more ways, named by `Dataflow.kind`; `pointlib.ops.tune` times them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch

from pointlib.ops import tuned_choices
from pointlib.ops.tuned_choices import Kind

PAIRS_PER_TAP = 150
"""Pairs that a tap should bring to a tile, on average: about where reading its weights stops to matter."""

TILE_ROWS = (64, 4096)
"""Smallest and largest tile: rows that fill the register blocks, and sums of 256 channels that fit in 4 MiB."""

TILES_PER_THREAD = 4
"""So that threads which got easier tiles find more."""

Operation = Literal["forward", "grad_weight"]


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

    @property
    def density(self) -> float:
        """Share of (output row, tap) that have a pair, 0 to 1."""
        return self.num_pairs / max(self.kernel_volume * self.num_out, 1)


class Workload(NamedTuple):
    """One convolution, as far as it matters for how to carry it out.

    Attributes:
        operation: "forward" (the input gradient is one too, over the transposed map) or "grad_weight".
        dtype: Of the features.
        c_in: Input channels.
        c_out: Output channels.
        statistics: Of the kernel map.
    """

    operation: Operation
    dtype: torch.dtype
    c_in: int
    c_out: int
    statistics: MapStatistics

    @property
    def flops(self) -> int:
        """Operations that are needed: two for each pair and weight."""
        return 2 * self.statistics.num_pairs * self.c_in * self.c_out

    def key(self, device: str) -> str:
        """What a tuned choice is kept under; sizes and densities share one within a factor of sqrt(2).

        Example:
            >>> Workload("forward", torch.float32, 4, 32, MapStatistics(345_532, 27, 91_852)).key("cpu")
            'cpu/forward/float32/4x32/K27/N2^16.5/d2^-3.0'
        """
        rows = half_octave(self.statistics.num_out)
        density = half_octave(self.statistics.density)
        dtype = str(self.dtype).removeprefix("torch.")
        channels, taps = f"{self.c_in}x{self.c_out}", self.statistics.kernel_volume
        return f"{device}/{self.operation}/{dtype}/{channels}/K{taps}/N2^{rows}/d2^{density}"


def half_octave(value: float) -> float:
    """log2, rounded to a half; that of the smallest positive value for 0."""
    return round(2 * math.log2(max(value, 2**-10))) / 2


@dataclass(frozen=True)
class Dataflow:
    """One way to carry out a convolution.

    On the CPU all of them give the same bits. On a GPU each gives the same bits run after run.

    Attributes:
        tile_rows: Output rows of a tile; for "split_pairs", a weight gradient, the pairs that are summed together.
        tile_channels: Output channels of a tile; 0 for all.
        splits: Parts that the taps are divided into, each with its own order of rows; 0 where rows stay in place.
        kind: What stays while the rest streams by.
        slice_bytes: Of the input channels that a tile multiplies at a time; 0 for all.
    """

    tile_rows: int
    tile_channels: int = 0
    splits: int = 0
    kind: Kind = "output_stationary"
    slice_bytes: int = 0

    def __str__(self) -> str:
        name = self.kind.replace("_", " ")
        if self.kind == "split_pairs":
            return f"{name} by {self.tile_rows}"
        if self.kind != "output_stationary":
            return name
        sizes = (self.tile_rows, self.tile_channels, self.slice_bytes)
        tile = "x".join(str(size) for size in sizes if size)
        parts = ("", ", sorted", *(f", sorted, {n} splits" for n in (2, 3, 4)))[self.splits]
        return f"{name}, tile {tile}{parts}"


def tuned_dataflow(workload: Workload, device: str) -> Dataflow | None:
    """What was found best on this device for such a workload; None if it was never tuned."""
    known = tuned_choices.load()
    if not known:
        return None
    choice = known.get(workload.key(device))
    return None if choice is None else Dataflow(**choice)


def cpu_dataflow(statistics: MapStatistics, threads: int) -> Dataflow:
    """The prior of the CPU.

    Args:
        statistics: Of the kernel map.
        threads: Number of threads that will share the tiles.

    Returns:
        The dataflow; its tile is a power of two.

    Example:
        >>> cpu_dataflow(MapStatistics(345_532, 27, 91_852), threads=2)
        Dataflow(tile_rows=1024, tile_channels=0, splits=0, kind='output_stationary', slice_bytes=0)
    """
    smallest, largest = TILE_ROWS
    wanted = PAIRS_PER_TAP / max(statistics.density, 1e-9)
    shared = statistics.num_out / (TILES_PER_THREAD * threads)
    rows = max(min(wanted, shared, largest), smallest)
    return Dataflow(1 << (int(rows).bit_length() - 1))


def cpu_candidates(statistics: MapStatistics, threads: int) -> list[Dataflow]:
    """Dataflows worth timing on the CPU: the prior first, then tiles of up to four times more or fewer rows."""
    prior = cpu_dataflow(statistics, threads)
    rows = (prior.tile_rows // 2, prior.tile_rows * 2, prior.tile_rows // 4, prior.tile_rows * 4)
    smallest, largest = TILE_ROWS
    return [prior, *(Dataflow(r) for r in rows if smallest <= r <= largest)]
