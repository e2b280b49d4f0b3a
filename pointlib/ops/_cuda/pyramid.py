"""The maps of all levels of a U-Net in one pass and without the host, so that a CUDA graph can hold them.

Every level has a fixed number of rows, its capacity; how many of them are voxels stands on the device. All levels are
sorted together, searched together and ordered together, so the number of launches does not depend on theirs.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from pointlib.ops._cpu.kernel_map import refuse
from pointlib.ops._cuda import coords as sites
from pointlib.ops._cuda import engine
from pointlib.ops._cuda.row_map import RowMap, count_taps, split_ptr
from pointlib.ops.kernel_map import ConvSpec, kernel_taps

SOURCE = "pyramid.cu"
BLOCK = 256
ALIGNMENT = BLOCK
"""Rows that capacities are rounded up to, so that every level starts with a block."""
MAX_LEVELS = 7
MAX_TAPS = 2**31 - 1
KEY_BITS = 60
"""Bits of a key below its level."""
_RANK_KERNELS = {torch.int32: "rank_levels<int>", torch.int64: "rank_levels<long long>"}


class PyramidLevel(NamedTuple):
    """One level of a U-Net.

    Attributes:
        coords: (capacity, 4) int32 `[batch, x, y, z]`, at this level's resolution; `num_voxels` voxels come first,
            on level 0 those that were given, elsewhere in lexicographic order with zeros behind.
        num_voxels: (1,) int64, on the device.
        same: Map from this level to itself.
        down: Map from the finer level to this one; None on level 0.
        up: The transposed map from the coarser level to this one; None on the last level.
    """

    coords: Tensor
    num_voxels: Tensor
    same: RowMap
    down: RowMap | None
    up: RowMap | None


class Pyramid(NamedTuple):
    """What `PyramidPlan.build` found.

    Attributes:
        levels: From fine to coarse.
        status: (1,) int32 on the device; `check_status` takes its value. Anything but 0 makes the maps unusable.
    """

    levels: tuple[PyramidLevel, ...]
    status: Tensor


class PyramidPlan:
    """Capacities and constants, made once for a network and a device.

    Args:
        capacities: Most voxels of each level, fine to coarse; rounded up to multiples of 256.
        num_neighbours: Most neighbours of all maps together.
        same: Submanifold convolution with an odd, centred kernel.
        down: Strided convolution of the `minkowski` relation that leads from each level to the next.
        like: Any tensor on the device.
        splits: Ranges of taps that get an order of their own.

    Raises:
        ValueError: If there are too many levels or too large ones, or a spec is of another kind.
    """

    def __init__(
        self,
        capacities: Sequence[int],
        num_neighbours: int,
        same: ConvSpec,
        down: ConvSpec,
        like: Tensor,
        splits: int = 1,
    ) -> None:
        self.capacities = [engine.ceil_div(c, ALIGNMENT) * ALIGNMENT for c in capacities]
        self.volume = max(same.kernel_volume, down.kernel_volume)
        rows = 3 * sum(self.capacities)
        if not 1 <= len(capacities) <= MAX_LEVELS or rows * self.volume > MAX_TAPS:
            raise ValueError(
                f"PyramidPlan: capacities must be of 1 to {MAX_LEVELS} levels, with 3 * rows * taps below 2^31, "
                f"got {list(capacities)} for {self.volume} taps."
            )
        if not same.is_symmetric or down.relation != "minkowski":
            raise ValueError(
                "PyramidPlan: same must be submanifold with an odd, centred kernel, and down of relation 'minkowski', "
                f"got {same} and {down}."
            )
        if max(*same.dilation, *down.dilation) > 1:
            raise ValueError(f"PyramidPlan: dilation must be 1, got {same} and {down}.")
        self.num_neighbours, self.same, self.down, self.splits = num_neighbours, same, down, splits
        self.begins = [0]
        table: list[list[int]] = []
        for level, capacity in enumerate(self.capacities):
            table.append([self.begins[-1], *(s**level for s in down.stride)])
            self.begins.append(self.begins[-1] + capacity)
        table.append([self.begins[-1], 1, 1, 1])
        group_bits = (3 * len(self.capacities) * splits - 1).bit_length()
        bits, self.rank_width = _rank_bits((same, down, down), splits, 63 - group_bits)
        self.rank_dtype = torch.int32 if group_bits + self.rank_width <= 32 else torch.int64
        self._table = torch.tensor(table).to(like.device)
        self._bits = torch.tensor(bits).to(like.device)

    def build(self, coords: Tensor, count: Tensor) -> Pyramid:
        """Find the voxels and maps of all levels. The host reads nothing.

        Args:
            coords: (capacity of level 0, 4) int32 `[batch, x, y, z]`; distinct in the first rows.
            count: (1,) int64 on the device, how many rows that is.
        """
        if len(coords) != self.capacities[0]:
            raise ValueError(
                f"PyramidPlan.build: coords must have the {self.capacities[0]} rows of level 0, got {len(coords)}; "
                "fill it up with any rows"
            )
        coords, status = sites.aligned(coords), coords.new_zeros(1)
        bounds = sites.bounds_of(coords, count)
        found = self.find_sites(coords, count, bounds, status)
        maps = self._row_maps(found, bounds, status)
        levels, last = [], len(self.capacities) - 1
        for level, (begin, end) in enumerate(pairwise(self.begins)):
            levels.append(
                PyramidLevel(
                    coords if level == 0 else found.coords[begin:end],
                    found.counts[level : level + 1],
                    self._row_map(maps, 0, level),
                    self._row_map(maps, 1, level) if level > 0 else None,
                    self._row_map(maps, 2, level) if level < last else None,
                )
            )
        return Pyramid(tuple(levels), status)

    def find_sites(
        self, coords: Tensor, count: Tensor, bounds: Tensor, status: Tensor
    ) -> LevelSites:
        """The voxels of all levels, each in its range of rows."""
        rows, number = coords.shape[0], len(self.capacities)
        levels, candidates = (self._table, number), rows * number
        keys = coords.new_empty(candidates, dtype=torch.int64)
        grid = (engine.ceil_div(rows, BLOCK), number)
        launch("pack_levels", grid, coords, rows, count, bounds, *levels, keys, status)
        keys, indices = torch.sort(keys)
        places = sites.count_firsts(keys, negative_is_absent=False)
        firsts, counts = keys.new_empty(number), keys.new_empty(number)
        level_bounds, total = keys.new_empty(number, 9), self.begins[-1]
        launch(
            *("count_levels", 1, keys, places, candidates, *levels, bounds),
            *(firsts, counts, level_bounds, status),
        )
        site_keys, order = keys.new_empty(total), coords.new_empty(rows)
        all_coords = coords.new_zeros(total, 4)
        found = LevelSites(site_keys, all_coords, counts, order, level_bounds)
        launch(
            *("write_levels", engine.ceil_div(candidates, BLOCK)),
            *(keys, indices, places, candidates, firsts, bounds, *levels),
            *(site_keys, found.coords, order, status),
        )
        return found

    def _row_maps(
        self, found: LevelSites, bounds: Tensor, status: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Mask, row_ptr, neighbours and order of three maps of all levels: same, down and up."""
        same, down = self.search(found, bounds, self.same), self.search(found, bounds, self.down)
        mask, row_ptr, neighbours = self.rows_of(same, down, self.num_neighbours, status)
        mask.mul_(status == 0)  # or kernels would look for neighbours that have no place
        return mask, row_ptr, neighbours, self._order(mask)

    def rows_of(
        self, same: Search, down: Search, num_neighbours: int, status: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Mask, row_ptr and neighbours of the three maps, each of all levels, one after the other."""
        total, words = self.begins[-1], engine.ceil_div(self.volume, 32)
        mask = status.new_zeros(3 * total, words)
        visits = ((same, 0), (down, 0), (down, 1))
        parts = mask.split(total)
        for part, (search, is_reversed) in zip(parts, visits, strict=True):
            launch("mark_levels", search.grid, *search.arguments, is_reversed, words, part)
        row_ptr = count_taps(mask)
        neighbours = mask.new_empty(num_neighbours)
        own_ptrs = row_ptr[:-1].split(total)
        for part, own_ptr, (search, is_reversed) in zip(parts, own_ptrs, visits, strict=True):
            launch(
                *("place_levels", search.grid),
                *(*search.arguments, is_reversed, words, part, own_ptr),
                *(num_neighbours, neighbours, status),
            )
        return mask, row_ptr, neighbours

    def search(
        self, found: LevelSites, bounds: Tensor, spec: ConvSpec, counts: Tensor | None = None
    ) -> Search:
        """Search the columns of one convolution at all levels; counts, if given, get the pairs of every block."""
        total, symmetric = self.begins[-1], int(spec is self.same)
        columns = spec.kernel_size[0] * spec.kernel_size[1]
        columns = columns // 2 + 1 if symmetric else columns
        starts = found.coords.new_empty(columns, total)
        present = starts.new_empty(columns, total, dtype=torch.uint8)
        grid, levels = (engine.ceil_div(total, BLOCK), columns), (self._table, len(self.capacities))
        step = 1 - symmetric
        launch(
            *("search_levels", grid, found.keys, found.counts, bounds, *levels, step),
            *(*spec.kernel_size, *spec.padding, symmetric, starts, present, counts),
        )
        arguments = (*levels, found.counts, found.order, starts, present)
        return Search(grid, (*arguments, step, *spec.kernel_size, symmetric))

    def _order(self, mask: Tensor) -> Tensor:
        """Rows of each map, level and split by Gray rank, one after the other, (3 * rows * splits,) int32."""
        (rows, words), levels = mask.shape, (self._table, len(self.capacities))
        keys = mask.new_empty(self.splits * rows, dtype=self.rank_dtype)
        launch(
            *(_RANK_KERNELS[self.rank_dtype], (engine.ceil_div(rows, BLOCK), self.splits), *levels),
            *(mask, 3, words, self._bits, self.volume, self.splits, self.rank_width, keys),
        )
        indices = torch.sort(keys, stable=True).indices
        order = mask.new_empty(len(keys))
        grid = engine.ceil_div(len(keys), BLOCK)
        launch("take_level_order", grid, *levels, indices, len(keys), order)
        return order

    def _row_map(
        self, maps: tuple[Tensor, Tensor, Tensor, Tensor], number: int, level: int
    ) -> RowMap:
        """The rows of one level in one of the three maps."""
        mask, row_ptr, neighbours, order = maps
        volume = (self.same if number == 0 else self.down).kernel_volume
        begin, end = (number * self.begins[-1] + self.begins[level + i] for i in (0, 1))
        own_order = order[begin * self.splits : end * self.splits].view(self.splits, -1)
        words = engine.ceil_div(volume, 32)
        own_mask = mask[begin:end, :words].contiguous()
        own_ptr = row_ptr[begin : end + 1]
        return RowMap(own_mask, own_ptr, neighbours, own_order, split_ptr(volume, self.splits))


class Search(NamedTuple):
    """Grid and first arguments of the kernels that visit what was found."""

    grid: tuple[int, int]
    arguments: tuple[engine.Argument, ...]


def most_voxels(levels: int, same: ConvSpec, down: ConvSpec) -> int:
    """How many may be on every level; 0 for too many levels."""
    if levels > MAX_LEVELS:
        return 0
    taps = 3 * levels * max(same.kernel_volume, down.kernel_volume)
    return MAX_TAPS // taps // ALIGNMENT * ALIGNMENT


class LevelSites(NamedTuple):
    """Voxels of all levels: keys without their level, coords, counts, the row of each key on level 0, and bounds."""

    keys: Tensor
    coords: Tensor
    counts: Tensor
    order: Tensor
    bounds: Tensor


def check_status(status: int) -> None:
    """Raise what a pyramid's status says.

    Raises:
        ValueError: If the coords could not be mapped.
    """
    if status & 1:
        refuse(1, [], [])
    if status & 2:
        raise ValueError(
            f"pyramid: coords must span at most {KEY_BITS} bits. Crop the points to a range or use a larger voxel size."
        )
    if status:
        what = "voxels of a level" if status & 4 else "neighbours"
        raise ValueError(
            f"pyramid: the scan must fit the capacities, got more {what} than they allow. "
            "Make a plan with larger ones, or run the scan without one."
        )


def _rank_bits(specs: Sequence[ConvSpec], splits: int, most: int) -> tuple[list[list[int]], int]:
    """Where each tap stands in the Gray rank of its split: 64 * split + bit; and how many bits there are at most.

    Taps far from the centre, above and below it above all, are rare in LiDAR scans, and get the highest bits.
    """
    volume = max(spec.kernel_volume for spec in specs)
    rows, width = [], 0
    for spec in specs:
        taps, ends = kernel_taps(spec.kernel_size), split_ptr(spec.kernel_volume, splits)
        fold = engine.ceil_div(engine.ceil_div(spec.kernel_volume, splits), most)
        row = [0] * volume
        for split, (first, end) in enumerate(pairwise(ends)):
            by_rarity = sorted(range(first, end), key=lambda tap: _distance(taps[tap], spec))
            for place, tap in enumerate(by_rarity):
                row[tap] = 64 * split + place // fold
                width = max(width, place // fold + 1)
        rows.append(row)
    return rows, width


def _distance(tap: Sequence[int], spec: ConvSpec) -> int:
    x, y, z = (abs(2 * t - k + 1) for t, k in zip(tap, spec.kernel_size, strict=True))
    return 2 * (x + y) + 5 * z


def launch(
    name: str, grid: engine.Grid, *arguments: engine.Argument, shared_bytes: int = 0
) -> None:
    """Launch a kernel of pyramid.cu."""
    engine.launch(SOURCE, f"pointlib::{name}", grid, BLOCK, *arguments, shared_bytes=shared_bytes)


def variants(capability: int) -> Iterator[tuple[str, str]]:
    """Every kernel of this file, as (source, name)."""
    del capability
    names = (
        *("pack_levels", "count_levels", "write_levels", "search_levels"),
        *(
            "mark_levels",
            "place_levels",
            "write_level_pairs",
            *_RANK_KERNELS.values(),
            "take_level_order",
        ),
    )
    yield from ((SOURCE, f"pointlib::{name}") for name in names)
