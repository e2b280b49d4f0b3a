"""Output voxels and kernel maps on CUDA: packed keys sorted once for each set of voxels, then one search a column.

Each operator reads the host's share of what it found, counts and bounds, in one transfer; the errors are raised then.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from math import gcd, prod

import torch
from torch import Tensor

from pointlib.ops._cpu.kernel_map import refuse
from pointlib.ops._cuda import coords as sites
from pointlib.ops._cuda import engine
from pointlib.ops._cuda.row_map import remember_offsets

SOURCE = "kernel_map.cu"
BLOCK = 256
WARPS = BLOCK // 32
MAX_CANDIDATES = 2**31 - 1
INT32 = torch.iinfo(torch.int32)


def kernel_map(
    coords: Tensor,
    out_coords: Tensor,
    kernel_size: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    symmetric: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Pairs (input row, output row) of every tap, grouped by tap, in key order of the outputs inside a tap."""
    volume = prod(kernel_size)
    if not len(coords) or not len(out_coords):
        empty = coords.new_empty(0)
        return empty, empty.clone(), torch.zeros(volume + 1, dtype=torch.int64)
    _check_geometry(kernel_size, stride, padding, dilation)
    inputs = sites.sorted_sites(coords)
    outputs = inputs if symmetric else sites.sorted_sites(out_coords)
    geometry = (*kernel_size, *stride, *padding, *dilation)
    num_out, grid = len(out_coords), _grid(len(out_coords), kernel_size, dilation, symmetric)
    blocks, columns = grid

    starts = coords.new_empty(columns, num_out)
    present = coords.new_empty(columns, num_out, dtype=torch.uint8)
    counts = coords.new_empty(volume * blocks + 1, dtype=torch.int64)
    _launch(
        "search_columns",
        grid,
        *(inputs.keys, len(coords), inputs.bounds),
        *(outputs.keys, num_out, outputs.bounds),
        *(*geometry, int(symmetric)),
        *(starts, present, counts),
    )
    places = counts.cumsum(0)
    found = torch.cat([places[::blocks], inputs.bounds, outputs.bounds])
    numbers = found.tolist()  # the one transfer
    _refuse(numbers[-18:-9], numbers[-9:], kernel_size, stride, padding, dilation)
    offset_ptr = torch.tensor(numbers[: volume + 1])
    remember_offsets(offset_ptr, found[: volume + 1])

    in_index, out_index = (coords.new_empty(numbers[volume]) for _ in range(2))
    _launch(
        "write_pairs",
        grid,
        inputs.order,
        outputs.order,
        *(starts, present, places),
        *(num_out, *kernel_size, int(dilation[2] == 1), int(symmetric)),
        *(in_index, out_index),
        shared_bytes=WARPS * 8 * 4,
    )
    return in_index, out_index, offset_ptr


def conv_sites(
    coords: Tensor,
    kernel_size: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    reachable: bool,
    shape: Sequence[int] | None,
) -> Tensor:
    """Distinct outputs of a convolution: floor(in / stride), or all that a tap reaches inside `shape`."""
    if not len(coords):
        return coords.new_empty(0, 4)
    _check_geometry(kernel_size, stride, padding, dilation)
    if reachable:
        ends = (-1, -1, -1) if shape is None else tuple(shape)
        # Of the taps of an axis, only one in stride / gcd(stride, dilation) leads anywhere.
        steps = (s // gcd(s, d) for s, d in zip(stride, dilation, strict=True))
        most = [engine.ceil_div(k, step) for k, step in zip(kernel_size, steps, strict=True)]
        geometry = (*kernel_size, *stride, *padding, *dilation)
        return _reached_sites(coords, (*geometry, 0, *ends), most)
    rows, inputs = len(coords), sites.sorted_sites(coords)
    bounds, keys = torch.zeros_like(inputs.bounds), torch.empty_like(inputs.keys)
    grid = engine.ceil_div(rows, BLOCK)
    _launch("pack_floors", grid, sites.aligned(coords), rows, inputs.bounds, *stride, bounds, keys)
    return _distinct(coords, bounds, keys)


def generative_sites(
    coords: Tensor,
    kernel_size: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
) -> Tensor:
    """Distinct fine voxels `stride * in + dilation * tap - padding` over all inputs and taps."""
    if not len(coords):
        return coords.new_empty(0, 4)
    _check_geometry(kernel_size, stride, padding, dilation)
    geometry = (*kernel_size, *stride, *padding, *dilation)
    return _reached_sites(coords, (*geometry, 1, -1, -1, -1), kernel_size)


def _reached_sites(coords: Tensor, reach: Sequence[int], most: Sequence[int]) -> Tensor:
    """Distinct voxels that the taps reach, at most most[axis] of them from each coordinate of an axis."""
    rows, candidates = len(coords), prod(most)
    if rows * candidates > MAX_CANDIDATES:
        raise ValueError(
            f"kernel_map: coords must reach at most {MAX_CANDIDATES} voxels before they are made distinct, "
            f"got {rows} coords with up to {candidates} each. Split the batch or use a smaller kernel."
        )
    coords = sites.aligned(coords)
    bounds = coords.new_zeros(9, dtype=torch.int64)
    grid = engine.ceil_div(rows, BLOCK * 4)
    _launch("bound_reached", grid, coords, rows, *reach, bounds, shared_bytes=sites.BOUNDS_BYTES)
    keys = coords.new_empty(candidates * rows, dtype=torch.int64)
    grid_of_all = (engine.ceil_div(rows, BLOCK), candidates)
    _launch("pack_reached", grid_of_all, coords, rows, *reach, bounds, most[1], most[2], keys)
    return _distinct(coords, bounds, keys)


def _distinct(coords: Tensor, bounds: Tensor, keys: Tensor) -> Tensor:
    """Voxels of the distinct keys that are not negative, in order and remembered as sorted."""
    keys = torch.sort(keys).values
    places = sites.count_firsts(keys, negative_is_absent=True)
    *bound, number = torch.cat([bounds, places[-1:]]).tolist()  # the one transfer
    low, high = sites.read_bounds(bound)
    if number:
        if min(low) < INT32.min or max(high) > INT32.max:
            refuse(3, low, high)
        sites.check_width(low, high)
    distinct, out_coords = keys.new_empty(number), coords.new_empty(number, 4)
    grid = engine.ceil_div(len(keys), BLOCK)
    _launch("write_sites", grid, keys, places, len(keys), bounds, distinct, out_coords)
    sites.remember_sorted(out_coords, bounds, distinct)
    return out_coords


def _check_geometry(
    kernel_size: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
) -> None:
    """Raise unless the kernels' integers hold every coordinate that this geometry leads to."""
    fits = min(*kernel_size, *stride, *dilation) > 0 <= min(padding) and max(kernel_size) <= 7
    if not fits or max(*stride, *padding, *dilation) > INT32.max:
        raise ValueError(
            "kernel_map: kernel_size must be 1 to 7, stride and dilation 1 to 2^31 - 1, padding 0 to 2^31 - 1, "
            f"got {(*kernel_size, *stride, *padding, *dilation)}."
        )


def _refuse(
    in_bounds: list[int],
    out_bounds: list[int],
    kernel_size: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
) -> None:
    """Raise unless inputs and all that the outputs read span at most 63 bits, and neither repeat."""
    (low, high), (out_low, out_high) = sites.read_bounds(in_bounds), sites.read_bounds(out_bounds)
    low[0], high[0] = min(low[0], out_low[0]), max(high[0], out_high[0])
    axes = zip(kernel_size, stride, padding, dilation, strict=True)
    for axis, (k, s, p, d) in enumerate(axes, start=1):
        low[axis] = min(low[axis], out_low[axis] * s - p)
        high[axis] = max(high[axis], out_high[axis] * s - p + d * (k - 1))
    sites.check_width(low, high)
    if in_bounds[8] or out_bounds[8]:
        refuse(1, low, high)


def _grid(
    num_out: int, kernel_size: Sequence[int], dilation: Sequence[int], symmetric: bool
) -> tuple[int, int]:
    """Blocks of outputs, and columns that are searched: struct Column in cuda/kernel_map.cu."""
    columns = kernel_size[0] * kernel_size[1]
    if symmetric:
        columns = columns // 2 + 1
    return engine.ceil_div(num_out, BLOCK), columns * (1 if dilation[2] == 1 else kernel_size[2])


def _launch(
    name: str, grid: engine.Grid, *arguments: engine.Argument, shared_bytes: int = 0
) -> None:
    engine.launch(SOURCE, f"pointlib::{name}", grid, BLOCK, *arguments, shared_bytes=shared_bytes)


def variants(capability: int) -> Iterator[tuple[str, str]]:
    """Every kernel of this file, as (source, name)."""
    del capability
    names = (
        *("search_columns", "write_pairs"),
        *("pack_floors", "bound_reached", "pack_reached", "write_sites"),
    )
    yield from ((SOURCE, f"pointlib::{name}") for name in names)
