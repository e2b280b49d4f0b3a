"""Unique and look-up of voxels and their keys on CUDA, and the sorted keys of voxels that kernel maps search."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from pointlib.ops._cuda import engine
from pointlib.ops._cuda.remembered import Remembered

SOURCE = "coords.cu"
BLOCK = 256
WARPS = BLOCK // 32
BOUNDS_BYTES = WARPS * 8 * 8
"""Shared memory of the kernels that gather bounds."""
_SIGN = 2**63


class SortedSites(NamedTuple):
    """Voxels in the order of their keys; see cuda/coords.cuh.

    Attributes:
        bounds: (9,) int64, what `read_bounds` reads, and whether a voxel comes twice.
        keys: (N,) int64, ascending, in the layout of exactly these bounds.
        order: (N,) int32, row of each key; None where row i has key i.
    """

    bounds: Tensor
    keys: Tensor
    order: Tensor | None


_sites: Remembered[SortedSites] = Remembered()


def unique_coords(coords: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Distinct coords in lexicographic order, and the rows as `unique_keys` has them. One transfer."""
    if not len(coords):
        rows = coords.new_empty(0, dtype=torch.int64)
        return coords.new_empty(0, 4), rows, rows.clone(), rows.clone()
    coords = aligned(coords)
    bounds, keys = _pack(coords)
    ordered, rows = torch.sort(keys, stable=True)
    places = count_firsts(ordered, negative_is_absent=False)
    *bound, number = torch.cat([bounds, places[-1:]]).tolist()
    check_width(*read_bounds(bound))
    distinct, *others = _write_distinct(ordered, rows, places, number)
    out_coords = coords.new_empty(number, 4)
    launch("unpack_voxels", number, distinct, number, bounds, out_coords)
    remember_sorted(out_coords, bounds, distinct)
    return (out_coords, *others)  # type: ignore[return-value]


def lookup_coords(query: Tensor, coords: Tensor) -> Tensor:
    """Row of `coords` that holds each queried voxel (the first one), or -1. One transfer, of the bounds."""
    found = query.new_full((len(query),), -1, dtype=torch.int64)
    boxes = []
    if len(query):
        query = aligned(query)
        boxes.append(bounds_of(query))
    if len(coords):
        within = sorted_sites(coords)
        boxes.append(within.bounds)
        arguments = (query, len(query), within.keys, within.order, len(coords), within.bounds)
        launch("find_voxels", len(query), *arguments, found)
    if boxes:
        bounds = [read_bounds(box) for box in torch.stack(boxes).tolist()]
        low, high = zip(*bounds, strict=True)
        check_width(
            [min(axis) for axis in zip(*low, strict=True)],
            [max(axis) for axis in zip(*high, strict=True)],
        )
    return found


def check_width(low: list[int], high: list[int]) -> None:
    """Raise unless keys of these bounds fit an int64."""
    from pointlib.ops.coords import KeyLayout

    KeyLayout.covering(low, high)


def unique_keys(keys: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Distinct keys in ascending order, the inverse, the first row of each, and how many rows hold each."""
    if not len(keys):
        return keys.new_empty(0), keys.new_empty(0), keys.new_empty(0), keys.new_empty(0)
    ordered, rows = torch.sort(keys, stable=True)
    places = count_firsts(ordered, negative_is_absent=False)
    return _write_distinct(ordered, rows, places, int(places[-1]))


def _write_distinct(
    ordered: Tensor, rows: Tensor, places: Tensor, number: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """What `unique_keys` returns, from sorted keys, the row of each, and the distinct ones up to it."""
    count, inverse = len(ordered), torch.empty_like(ordered)
    distinct, first = ordered.new_empty(number), ordered.new_empty(number)
    starts = ordered.new_empty(number + 1)
    launch("write_distinct", count, ordered, rows, places, count, distinct, inverse, first, starts)
    return distinct, inverse, first, starts.diff()


def lookup_keys(query: Tensor, keys: Tensor) -> Tensor:
    """Row of `keys` that holds each queried key (the first one), or -1."""
    ordered, rows = torch.sort(keys, stable=True)
    query, found = query.contiguous(), torch.empty_like(query)
    launch("find_rows", len(query), query, len(query), ordered, rows, len(keys), found)
    return found


def sorted_sites(coords: Tensor) -> SortedSites:
    """The voxels of (N, 4) coords, N > 0, sorted; at most once for each tensor."""
    return _sites.get(coords) or _sites.put(coords, _sort_sites(coords))


def remember_sorted(
    coords: Tensor, bounds: Tensor, keys: Tensor, order: Tensor | None = None
) -> None:
    """Tell `sorted_sites` of distinct voxels, and of the row of each key if they are not in order."""
    _sites.put(coords, SortedSites(bounds, keys, order))


def _sort_sites(coords: Tensor) -> SortedSites:
    rows, coords = len(coords), aligned(coords)
    if rows > torch.iinfo(torch.int32).max:
        raise ValueError(
            f"kernel map: coords must have fewer than 2^31 rows, got {rows}. Split the batch."
        )
    bounds, keys = _pack(coords)
    keys, indices = torch.sort(keys, stable=True)
    order = coords.new_empty(rows)
    launch("take_order", rows, keys, indices, rows, order, bounds)
    return SortedSites(bounds, keys, order)


def _pack(coords: Tensor) -> tuple[Tensor, Tensor]:
    """Bounds of aligned coords, and their keys within these."""
    rows, bounds = len(coords), bounds_of(coords)
    keys = coords.new_empty(rows, dtype=torch.int64)
    launch("pack_voxels", rows, coords, rows, bounds, keys)
    return bounds, keys


def bounds_of(coords: Tensor, live: Tensor | None = None) -> Tensor:
    """Bounds of aligned coords, or of the first `live` of them, (1,) int64; see SortedSites."""
    rows, bounds = len(coords), coords.new_zeros(9, dtype=torch.int64)
    sizes = {"rows_per_thread": 8, "shared_bytes": BOUNDS_BYTES}
    launch("bound_voxels", rows, coords, rows, live, bounds, **sizes)
    return bounds


def aligned(coords: Tensor) -> Tensor:
    """Contiguous coords whose rows can be read as one 16-byte vector each."""
    coords = coords.contiguous()
    return coords if coords.data_ptr() % 16 == 0 else coords.clone()


def count_firsts(keys: Tensor, negative_is_absent: bool) -> Tensor:
    """Number of distinct keys up to each of the ascending keys, (N,) int32."""
    flags = keys.new_empty(len(keys), dtype=torch.int32)
    launch("mark_firsts", len(keys), keys, len(keys), int(negative_is_absent), flags)
    return flags.cumsum(0, dtype=torch.int32)


def read_bounds(bounds: list[int]) -> tuple[list[int], list[int]]:
    """Lowest and highest `[batch, x, y, z]`, inclusive, of what the kernels store; low > high for no voxel."""
    unsigned = [value % 2**64 for value in bounds[:8]]
    return [_SIGN - 1 - u for u in unsigned[:4]], [u - _SIGN for u in unsigned[4:]]


def launch(
    name: str,
    rows: int,
    *arguments: engine.Argument,
    rows_per_thread: int = 1,
    shared_bytes: int = 0,
) -> None:
    """Launch a kernel of coords.cu over rows."""
    grid = engine.ceil_div(rows, BLOCK * rows_per_thread)
    engine.launch(SOURCE, f"pointlib::{name}", grid, BLOCK, *arguments, shared_bytes=shared_bytes)


def variants(capability: int) -> Iterator[tuple[str, str]]:
    """Every kernel of this file, as (source, name)."""
    del capability
    names = (
        *("bound_voxels", "pack_voxels", "unpack_voxels", "take_order"),
        *("mark_firsts", "write_distinct", "find_rows", "find_voxels"),
    )
    yield from ((SOURCE, f"pointlib::{name}") for name in names)
