"""Output voxels and kernel maps on the CPU: sort packed keys once, then merge sorted columns of taps.

The taps of one (x, y) column differ only in z, the lowest field of a key. So one pointer into the sorted input keys
serves a whole column: it moves forward with the sorted outputs, and a short walk from it visits the column's taps.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import numpy as np
import torch
from torch import Tensor

from pointlib.ops._cpu.composition.coords import sort_keys

Layout = tuple[np.ndarray, np.ndarray]
"""Lower bounds and left shifts of batch, x, y, z."""


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
    from pointlib.ops._cpu.composition import map_loops as loops

    volume = prod(kernel_size)
    inputs, outputs = coords.contiguous().numpy(), out_coords.contiguous().numpy()
    if not len(inputs) or not len(outputs):
        empty = coords.new_empty(0)
        return empty, empty.clone(), torch.zeros(volume + 1, dtype=torch.int64)
    scale, pad = np.array(stride), np.array(padding)
    reach = np.array(dilation) * (np.array(kernel_size) - 1)
    (in_low, in_high), (out_low, out_high) = loops.bounds(inputs), loops.bounds(outputs)
    lower = np.concatenate([[min(in_low[0], out_low[0])], out_low[1:] * scale - pad])
    upper = np.concatenate([[max(in_high[0], out_high[0])], out_high[1:] * scale - pad + reach])
    layout = _layout(np.minimum(lower, in_low), np.maximum(upper, in_high))

    in_keys = loops.pack(inputs, np.ones(3, dtype=np.int64), np.zeros(3, dtype=np.int64), *layout)
    in_order, in_keys = sort_keys(in_keys)
    _refuse_duplicates(in_keys)
    if symmetric:
        out_order, out_keys = in_order, in_keys - int(np.dot(pad, 1 << layout[1][1:]))
    else:
        out_order, out_keys = sort_keys(loops.pack(outputs, scale, -pad, *layout))
        _refuse_duplicates(out_keys)
    in_index, out_index, offset_ptr = loops.merge_columns(
        np.append(in_keys, np.iinfo(np.int64).max),
        out_keys,
        np.array(kernel_size),
        np.array(dilation) << layout[1][1:],
        symmetric,
    )
    if not _is_identity(in_order):
        in_index = in_order.astype(np.int32)[in_index]
    if not _is_identity(out_order):
        out_index = out_order.astype(np.int32)[out_index]
    return torch.from_numpy(in_index), torch.from_numpy(out_index), torch.from_numpy(offset_ptr)


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
    from pointlib.ops._cpu.composition import map_loops as loops

    inputs, scale = coords.contiguous().numpy(), np.array(stride)
    if not reachable:
        return _distinct(loops.floor_divide(inputs, scale))
    size, pad, step = np.array(kernel_size), np.array(padding), np.array(dilation)
    bounds = np.array(shape if shape is not None else [])
    return _distinct(loops.reachable(inputs, size, scale, pad, step, bounds))


def generative_sites(
    coords: Tensor,
    kernel_size: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
) -> Tensor:
    """Distinct fine voxels `stride * in + dilation * tap - padding` over all inputs and taps."""
    taps = np.array([(0, *tap) for tap in np.ndindex(*kernel_size)])
    offsets = taps * np.array([1, *dilation]) - np.array([0, *padding])
    origin = coords.long().contiguous().numpy() * np.array([1, *stride])
    return _distinct((origin[:, None] + offsets).reshape(-1, 4))


def _distinct(coords: np.ndarray) -> Tensor:
    """Distinct rows of (N, 4) int64, sorted, as int32."""
    from pointlib.ops._cpu.composition import map_loops as loops

    if not len(coords):
        return torch.empty(0, 4, dtype=torch.int32)
    low, high = loops.bounds(coords)
    int32 = np.iinfo(np.int32)
    if low.min() < int32.min or high.max() > int32.max:
        raise ValueError(
            f"kernel_map: coords must lead to outputs that fit int32, got outputs from {low.tolist()} to "
            f"{high.tolist()}. Crop the points to a range or use a larger voxel size."
        )
    layout = _layout(low, high)
    unit = np.ones(3, dtype=np.int64)
    keys = np.sort(loops.pack(coords, unit, np.zeros(3, dtype=np.int64), *layout))
    keys = keys[np.append(True, keys[1:] != keys[:-1])]
    return torch.from_numpy(loops.unpack(keys, *layout))


def _refuse_duplicates(sorted_keys: np.ndarray) -> None:
    from pointlib.ops._cpu.composition import map_loops as loops

    if loops.has_equal_neighbours(sorted_keys):
        raise ValueError(
            "kernel_map: coords must be distinct, got duplicates. Merge points that share a voxel first "
            "(pointlib.ops.voxelize, pointlib.ops.unique_coords)."
        )


def _layout(lower: np.ndarray, upper: np.ndarray) -> Layout:
    from pointlib.ops.coords import KeyLayout

    layout = KeyLayout.covering(lower.tolist(), upper.tolist())
    return np.array(layout.lower), np.array(layout.shifts)


def _is_identity(order: np.ndarray) -> bool:
    return bool(np.all(order[1:] > order[:-1]))
