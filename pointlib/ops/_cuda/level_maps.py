"""The voxels and kernel maps of all levels of a U-Net on CUDA, pairs and all, for one transfer to the host."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor

from pointlib.ops._cuda import coords as sites
from pointlib.ops._cuda import pyramid
from pointlib.ops._cuda.pyramid import PyramidPlan
from pointlib.ops._cuda.row_map import RowMap, remember_rows
from pointlib.ops.kernel_map import ConvSpec


def level_maps(
    coords: Tensor,
    levels: int,
    kernel_size: Sequence[int],
    down_size: Sequence[int],
    down_stride: Sequence[int],
) -> list[Tensor]:
    """Maps as ops/level_maps.py lists them; their row forms are remembered.

    Coords that this cannot map, because they repeat, are too many or span more than 60 bits, take the operators that
    build one map, which say what is wrong.
    """
    from pointlib.ops.level_maps import level_by_level

    geometry = (levels, kernel_size, down_size, down_stride)
    same, down = ConvSpec(kernel_size), ConvSpec(down_size, down_stride, relation="minkowski")
    if not 0 < len(coords) <= pyramid.most_voxels(levels, same, down):
        return level_by_level(coords, *geometry)
    plan = PyramidPlan([len(coords)] * levels, 0, same, down, coords)
    coords_read = sites.aligned(coords)
    count, status = coords.new_full((1,), len(coords), dtype=torch.int64), coords.new_zeros(1)
    bounds = sites.bounds_of(coords_read, count)
    found = plan.find_sites(coords_read, count, bounds, status)
    searches, places = [], []
    for spec in (same, down):
        blocks = plan.begins[-1] // pyramid.BLOCK
        counts = found.keys.new_empty(blocks * spec.kernel_volume + 1)
        searches.append(plan.search(found, bounds, spec, counts))
        places.append(counts.cumsum(0))
    ends = [_tap_places(plan, spec, p) for spec, p in zip((same, down), places, strict=True)]
    numbers = torch.cat([found.counts, status.long(), *ends]).tolist()  # the one transfer
    live, (refused, *ends_read) = numbers[:levels], numbers[levels:]
    if refused:
        return level_by_level(coords, *geometry)
    split = levels * same.kernel_volume + 1
    offsets = (ends_read[:split], ends_read[split:])
    indices = []
    for search, place, own in zip(searches, places, offsets, strict=True):
        in_index, out_index = (coords.new_empty(own[-1]) for _ in range(2))
        arguments = (*search.arguments, place, in_index, out_index)
        pyramid.launch(
            "write_level_pairs", search.grid, *arguments, shared_bytes=pyramid.BLOCK // 32 * 32
        )
        indices.append((in_index, out_index))
    num_neighbours = offsets[0][-1] + 2 * offsets[1][-1]
    rows = plan.rows_of(searches[0], searches[1], num_neighbours, status)
    return _listed(plan, coords, found, live, (same, down), offsets, indices, rows)


def _tap_places(plan: PyramidPlan, spec: ConvSpec, places: Tensor) -> Tensor:
    """Where the pairs of each level and tap start, and the end of all; (levels * taps + 1,) on the device."""
    volume, starts = spec.kernel_volume, []
    for begin, end in pairwise(plan.begins):
        blocks, first = (end - begin) // pyramid.BLOCK, begin // pyramid.BLOCK * volume
        starts += [first + tap * blocks for tap in range(volume)]
    index = torch.tensor([*starts, plan.begins[-1] // pyramid.BLOCK * volume])
    return places.index_select(0, index.to(places.device, non_blocking=True))


def _listed(
    plan: PyramidPlan,
    coords: Tensor,
    found: pyramid.LevelSites,
    live: list[int],
    specs: tuple[ConvSpec, ConvSpec],
    offsets: tuple[list[int], list[int]],
    indices: list[tuple[Tensor, Tensor]],
    rows: tuple[Tensor, Tensor, Tensor],
) -> list[Tensor]:
    """What belongs to each level, cut out of what belongs to all, and remembered."""
    total, listed = plan.begins[-1], list[Tensor]()

    def rows_at(number: int, level: int) -> RowMap:
        first = number * total + plan.begins[level]
        last, words = first + live[level], -(-specs[min(number, 1)].kernel_volume // 32)
        mask, row_ptr, neighbours = rows
        own = (mask[first:last, :words].contiguous(), row_ptr[first : last + 1])
        return RowMap(*own, neighbours, mask.new_empty(0, live[level]), (0,))

    for level, begin in enumerate(plan.begins[:-1]):
        end, own_coords = begin + live[level], coords
        keys, bounds = found.keys[begin:end], found.bounds[level]
        if level == 0:
            sites.remember_sorted(coords, bounds, keys, found.order)
        else:
            own_coords = found.coords[begin:end]
            sites.remember_sorted(own_coords, bounds, keys)
            listed.append(own_coords)
        for number, spec in enumerate(specs[: 2 if level else 1]):
            volume = spec.kernel_volume
            own = offsets[number][level * volume : (level + 1) * volume + 1]
            offset_ptr = torch.tensor(own) - own[0]
            ends = [index[own[0] : own[-1]] for index in indices[number]]
            listed += [*ends, offset_ptr]
            remember_rows(ends[0], ends[1], offset_ptr, live[level], rows_at(number, level))
            if number == 1:
                finer = rows_at(2, level - 1)
                remember_rows(ends[1], ends[0], offset_ptr, live[level - 1], finer)
    return listed
