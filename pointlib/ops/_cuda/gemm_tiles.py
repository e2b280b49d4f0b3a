"""Tiles of the implicit GEMM: which there are, what each is called and needs, and which suits a convolution.

What stands here says again what cuda/implicit_gemm.cu computes from the same numbers.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from pointlib.ops._cuda.engine import ceil_div
from pointlib.ops._cuda.types import ELEMENTS
from pointlib.ops.dataflow import Dataflow, MapStatistics, half_octave

WARPS = {
    (128, 128): (4, 2),
    (128, 96): (4, 2),
    (128, 64): (4, 1),
    (64, 128): (2, 2),
    (64, 96): (2, 2),
    (64, 64): (2, 2),
    (32, 64): (2, 2),
    (128, 32): (4, 1),
    (64, 32): (4, 1),
}
"""(output rows, output channels) of a tile -> how its warps lie, on tensor cores."""
SLICES = {
    **dict.fromkeys([(128, 128), (128, 96), (64, 96)], (64,)),
    **dict.fromkeys([(128, 64), (64, 128), (64, 64), (32, 64)], (64, 128)),
    **dict.fromkeys([(128, 32), (64, 32)], (32, 64)),
}
"""The same -> bytes of a row that may be multiplied at a time, for which registers suffice."""
EXACT_WARPS = {
    torch.float32: {(128, 64): (4, 2), (64, 64): (2, 2), (64, 32): (2, 2)},
    torch.float64: {(64, 32): (2, 2)},
}
"""Warps without tensor cores."""
MAX_SPLITS = 4
MAX_CANDIDATES = 6

CYCLES_PER_BLOCK = 2500
"""To find its rows and their first neighbours, and to write."""
CYCLES_PER_STEP = 60
"""Barrier and addresses of one slice."""
CYCLES_PER_LAUNCH = 3000
BYTES_PER_CYCLE = 32
"""Of a multiprocessor, from the cache that all of them share."""


@dataclass(frozen=True)
class GemmTile:
    """What a block does at a time.

    Attributes:
        rows: Output rows.
        cols: Output channels.
        slice_bytes: Of the input channels that are multiplied at a time.
        exact: By fused multiply-add, not on tensor cores.
    """

    rows: int
    cols: int
    slice_bytes: int = 64
    exact: bool = False

    def warps(self, dtype: torch.dtype) -> tuple[int, int]:
        """How the block's warps lie over its rows and channels."""
        return (EXACT_WARPS[dtype] if self.exact else WARPS)[self.rows, self.cols]

    def threads(self, dtype: torch.dtype) -> int:
        """Of the block."""
        down, across = self.warps(dtype)
        return 32 * down * across

    def resident(self, dtype: torch.dtype) -> int:
        """Blocks that share a multiprocessor, by its registers, and wait at different times."""
        sums = 32 if self.exact else self.rows * self.cols // self.threads(dtype)
        sums = max(sums, 32) if dtype == torch.float32 else sums
        registers = 96 if sums <= 16 else 128 if sums <= 48 else 168
        return 65536 // self.threads(dtype) // registers

    def stages(self, capability: int) -> int:
        """Slices in shared memory: those under way, and the one that is multiplied."""
        if capability < 80:
            return 2
        return 3 if self.slice_bytes == 128 else 4

    def shared_bytes(self, dtype: torch.dtype, capability: int) -> int:
        """Of the block."""
        depth = self.slice_bytes // dtype.itemsize
        stage = self.rows * self.slice_bytes + depth * self.cols * dtype.itemsize
        sums = self.rows * (self.cols + 8) * max(dtype.itemsize, 4)
        row_tile = 4 * (self.rows + 32 * self.rows + self.rows + 1)
        return max(self.stages(capability) * stage, sums) + row_tile

    def kernel(self, dtype: torch.dtype, capability: int, width: int) -> str:
        """Its name expression. `width`: bytes that features are copied by."""
        name = ELEMENTS[dtype]
        math = "Tf32" if dtype == torch.float32 else f"TensorCores<{name}>"
        shape = (self.rows, self.cols, self.slice_bytes // dtype.itemsize)
        numbers = (*shape, *self.warps(dtype), self.stages(capability), width)
        math = f"Exact<{name}>" if self.exact else math
        return f"pointlib::implicit_gemm<pointlib::{math}, {', '.join(map(str, numbers))}>"


@dataclass(frozen=True)
class Plan:
    """How one convolution is carried out.

    Attributes:
        tile: Of a block.
        splits: Launches that share the taps, each with rows in an order of its own; 0 for one, rows in place.
    """

    tile: GemmTile
    splits: int = 1

    @property
    def dataflow(self) -> Dataflow:
        """As it is kept by tuning."""
        tile = self.tile
        return Dataflow(tile.rows, tile.cols, self.splits, slice_bytes=tile.slice_bytes)

    @classmethod
    def of(cls, dataflow: Dataflow, exact: bool) -> Plan:
        """Read what tuning has kept."""
        sizes = (dataflow.tile_rows, dataflow.tile_channels, dataflow.slice_bytes)
        return cls(GemmTile(*sizes, exact), dataflow.splits)

    def exists(
        self, dtype: torch.dtype, channels: Sequence[int], taps: int, capability: int
    ) -> bool:
        """Whether there is a kernel for it: what was tuned by another version, or for one input, may have none."""
        known = tiles(dtype, self.tile.exact, copy_width(dtype, channels), capability)
        return self.tile in known and 0 <= self.splits <= min(MAX_SPLITS, taps)


def copy_width(dtype: torch.dtype, channels: Sequence[int]) -> int:
    """Bytes that rows of features are copied by, 16, 8 or 4: the most that every row begins at a multiple of.

    Odd numbers of 2-byte channels count as 16, for such rows are padded.
    """
    rows = [c * dtype.itemsize for c in channels if c * dtype.itemsize % 4 == 0]
    return next(width for width in (16, 8, 4) if all(row % width == 0 for row in rows))


def tiles(dtype: torch.dtype, exact: bool, width: int, capability: int) -> Iterator[GemmTile]:
    """All that a kernel exists for; one, where features are copied by less than 16 bytes."""
    shapes = EXACT_WARPS[dtype] if exact else WARPS
    if width < 16:
        shape = (64, 64) if (64, 64) in shapes else (64, 32)
        yield GemmTile(*shape, exact=exact)
        return
    for shape in shapes:
        if dtype == torch.float32 and shape == (64, 128):
            continue  # which takes too many registers
        for slice_bytes in (64,) if exact else SLICES[shape]:
            tile = GemmTile(*shape, slice_bytes, exact)
            if capability >= 80 or (
                slice_bytes < 128 and tile.shared_bytes(dtype, capability) <= 64 << 10
            ):
                yield tile


def redundancy(statistics: MapStatistics, rows: int, splits: int) -> float:
    """Products that tiles of `rows` carry out for each one that is needed.

    Fitted to maps of LiDAR scans (SemanticKITTI, nuScenes, Waymo; 3^3 taps): 2.0 for 128 sorted rows, 1.4 in two
    splits, 1.2 in three; 1.6 for 32 rows.
    """
    dense = 1 / max(statistics.density, 1e-9)
    if splits == 0:
        return max(1.0, 0.7 * dense)
    return min(1 + (rows / 128) ** 0.5 / splits**1.6, max(dense, 1.0))


def products_per_cycle(dtype: torch.dtype, exact: bool, capability: int) -> int:
    """Of a multiprocessor, at most. The large devices, of every generation, have twice the small ones'."""
    large = capability in (80, 90, 100)
    if dtype == torch.float64:
        return 32 if large else 2
    if exact:
        return 64 if capability <= 80 else 128
    return (1024 if large else 512) * 2 // dtype.itemsize


def cost(
    plan: Plan,
    statistics: MapStatistics,
    dtype: torch.dtype,
    channels: Sequence[int],
    c_out: int,
    capability: int,
    num_sms: int,
) -> float:
    """What the prior expects of a plan, in cycles."""
    tile, launches = plan.tile, max(plan.splits, 1)
    taps_needed = statistics.num_pairs / max(statistics.num_out, 1)
    taps = taps_needed * redundancy(statistics, tile.rows, plan.splits)
    multiplied = taps_needed * redundancy(
        statistics, tile.rows if tile.exact else 16, plan.splits
    )  # tensor cores skip sixteen rows that lack a tap
    slices = sum(ceil_div(c * dtype.itemsize, tile.slice_bytes) for c in channels)
    products = multiplied * tile.rows * tile.cols * slices * tile.slice_bytes / dtype.itemsize
    moved = taps_needed * tile.rows * sum(channels) * dtype.itemsize
    moved += taps * tile.cols * slices * tile.slice_bytes
    moved += tile.rows * tile.cols * (dtype.itemsize + 8 * (launches - 1))
    rate = products_per_cycle(dtype, tile.exact, capability)
    waiting = taps * slices * CYCLES_PER_STEP + launches * CYCLES_PER_BLOCK
    block = max(products / rate, moved / BYTES_PER_CYCLE) + waiting / tile.resident(dtype)
    blocks = ceil_div(statistics.num_out, tile.rows) * ceil_div(c_out, tile.cols)
    return ceil_div(blocks, num_sms) * block + launches * CYCLES_PER_LAUNCH


def candidate_plans(
    statistics: MapStatistics,
    dtype: torch.dtype,
    channels: Sequence[int],
    c_out: int,
    exact: bool,
    capability: int,
    num_sms: int,
) -> list[Plan]:
    """The plans worth timing, at most six, best first by the prior.

    Args:
        statistics: Of the kernel map.
        dtype: That is multiplied.
        channels: Input channels of each feature matrix.
        c_out: Output channels.
        exact: By fused multiply-add, not on tensor cores.
        capability: Compute capability, 75 to 120.
        num_sms: Multiprocessors of the device.
    """
    most = min(MAX_SPLITS, statistics.kernel_volume) if statistics.kernel_volume > 1 else 0
    width = copy_width(dtype, channels)
    plans = [
        Plan(tile, splits)
        for tile in tiles(dtype, exact, width, capability)
        for splits in range(most + 1)
    ]
    sizes = (statistics, dtype, channels, c_out, capability, num_sms)
    return sorted(plans, key=lambda plan: cost(plan, *sizes))[:MAX_CANDIDATES]


def choose_plan(
    statistics: MapStatistics,
    dtype: torch.dtype,
    channels: Sequence[int],
    c_out: int,
    exact: bool,
    capability: int,
    num_sms: int,
) -> Plan:
    """The prior's first candidate for a map of about this size and density: they are rounded, and choices remembered.

    Example:
        >>> scan = MapStatistics(num_pairs=286_000, kernel_volume=27, num_out=94_625)
        >>> choose_plan(scan, torch.float16, [96], 96, False, capability=90, num_sms=132)
        Plan(tile=GemmTile(rows=128, cols=96, slice_bytes=64, exact=False), splits=1)
    """
    rounded = (half_octave(statistics.num_out), half_octave(statistics.density))
    sizes = (dtype, tuple(channels), c_out, exact, capability, num_sms)
    return _first_plan(rounded, statistics.kernel_volume, *sizes)


@functools.cache
def _first_plan(
    rounded: tuple[float, float],
    volume: int,
    dtype: torch.dtype,
    channels: tuple[int, ...],
    c_out: int,
    exact: bool,
    capability: int,
    num_sms: int,
) -> Plan:
    """`rounded`: log2 of the output rows and of the density."""
    rows = round(2 ** rounded[0])
    statistics = MapStatistics(round(2 ** rounded[1] * rows * volume), volume, rows)
    return candidate_plans(statistics, dtype, channels, c_out, exact, capability, num_sms)[0]
