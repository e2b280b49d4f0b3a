"""The inner loops of kernel maps, compiled by numba when a map is first built.

Keys are those of pointlib/ops/coords.py: int64, ascending, and a fixed move of a voxel is a fixed difference.
"""

from __future__ import annotations

import numpy as np
from numba import njit


@njit(cache=True, nogil=True)
def bounds(coords: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Smallest and largest coordinate of each column of a non-empty (N, 4), int64."""
    low, high = coords[0].astype(np.int64), coords[0].astype(np.int64)
    for i in range(len(coords)):
        for axis in range(4):
            low[axis] = min(low[axis], coords[i, axis])
            high[axis] = max(high[axis], coords[i, axis])
    return low, high


@njit(cache=True, nogil=True)
def pack(
    coords: np.ndarray, scale: np.ndarray, shift: np.ndarray, lower: np.ndarray, left: np.ndarray
) -> np.ndarray:
    """Keys of `[batch, scale * xyz + shift]`."""
    keys = np.empty(len(coords), dtype=np.int64)
    for i in range(len(coords)):
        key = (np.int64(coords[i, 0]) - lower[0]) << left[0]
        for axis in range(3):
            at = coords[i, axis + 1] * scale[axis] + shift[axis]
            key += (at - lower[axis + 1]) << left[axis + 1]
        keys[i] = key
    return keys


@njit(cache=True, nogil=True)
def unpack(keys: np.ndarray, lower: np.ndarray, left: np.ndarray) -> np.ndarray:
    """Coordinates (N, 4) int32 of keys."""
    coords = np.empty((len(keys), 4), dtype=np.int32)
    for i in range(len(keys)):
        rest = keys[i]
        for axis in range(4):
            at = rest >> left[axis]
            rest -= at << left[axis]
            coords[i, axis] = at + lower[axis]
    return coords


@njit(cache=True, nogil=True)
def floor_divide(coords: np.ndarray, stride: np.ndarray) -> np.ndarray:
    """`[batch, floor(xyz / stride)]` without repeating the row before, int64."""
    outputs = np.empty((len(coords), 4), dtype=np.int64)
    count = 0
    for i in range(len(coords)):
        batch = np.int64(coords[i, 0])
        x, y, z = coords[i, 1] // stride[0], coords[i, 2] // stride[1], coords[i, 3] // stride[2]
        if count > 0:
            last = outputs[count - 1]
            if z == last[3] and y == last[2] and x == last[1] and batch == last[0]:
                continue
        outputs[count, 0] = batch
        outputs[count, 1] = x
        outputs[count, 2] = y
        outputs[count, 3] = z
        count += 1
    return outputs[:count]


@njit(cache=True, nogil=True)
def reachable(
    coords: np.ndarray,
    size: np.ndarray,
    stride: np.ndarray,
    padding: np.ndarray,
    dilation: np.ndarray,
    shape: np.ndarray,
) -> np.ndarray:
    """Every output that a tap of each input reaches, repeats included, int64; `shape` is empty or (3,)."""
    hits = np.empty((3, size.max()), dtype=np.int64)
    num_hits = np.zeros(3, dtype=np.int64)
    capacity = len(coords)
    outputs = np.empty((capacity, 4), dtype=np.int64)
    count = 0
    for i in range(len(coords)):
        for axis in range(3):
            num_hits[axis] = 0
            for tap in range(size[axis]):
                at = np.int64(coords[i, axis + 1]) + padding[axis] - dilation[axis] * tap
                out = at // stride[axis]
                inside = len(shape) == 0 or (out >= 0 and out < shape[axis])
                if out * stride[axis] == at and inside:
                    hits[axis, num_hits[axis]] = out
                    num_hits[axis] += 1
        needed = count + num_hits[0] * num_hits[1] * num_hits[2]
        if needed > capacity:
            capacity = max(2 * capacity, needed)
            grown = np.empty((capacity, 4), dtype=np.int64)
            grown[:count] = outputs[:count]
            outputs = grown
        for x in hits[0, : num_hits[0]]:
            for y in hits[1, : num_hits[1]]:
                for z in hits[2, : num_hits[2]]:
                    outputs[count, 0] = coords[i, 0]
                    outputs[count, 1] = x
                    outputs[count, 2] = y
                    outputs[count, 3] = z
                    count += 1
    return outputs[:count]


@njit(cache=True, nogil=True)
def has_equal_neighbours(keys: np.ndarray) -> bool:
    for i in range(len(keys) - 1):
        if keys[i] == keys[i + 1]:
            return True
    return False


@njit(cache=True, nogil=True)
def merge_columns(
    in_keys: np.ndarray, out_keys: np.ndarray, size: np.ndarray, step: np.ndarray, symmetric: bool
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Pairs of every tap.

    Args:
        in_keys: (N + 1,) ascending keys of the inputs, then a sentinel larger than any.
        out_keys: (M,) ascending keys of tap 0 of each output.
        size: (3,) taps per axis.
        step: (3,) key difference between neighbouring taps of an axis.
        symmetric: Tap k is the mirror image of tap K - 1 - k: search the columns before the central one, and the
            lower half of that.
    """
    volume = size[0] * size[1] * size[2]
    x_fastest = volume % 2 == 1
    central = size[0] * size[1] // 2
    in_rows = np.empty((volume, len(out_keys)), dtype=np.int32)
    out_rows = np.empty((volume, len(out_keys)), dtype=np.int32)
    counts = np.zeros(volume, dtype=np.int64)
    searched = np.zeros(volume, dtype=np.bool_)
    taps = np.empty(size[2], dtype=np.int64)
    for x in range(size[0]):
        for y in range(size[1]):
            column = x * size[1] + y
            depth = size[2]
            if symmetric and column >= central:
                depth = size[2] // 2 if column == central else 0
            for z in range(depth):
                taps[z] = x + size[0] * (y + size[1] * z) if x_fastest else z + size[2] * column
                searched[taps[z]] = True
            if depth:
                targets = out_keys + (x * step[0] + y * step[1])
                merge_column(in_keys, targets, step[2], taps[:depth], in_rows, out_rows, counts)
    if symmetric:
        for tap in range(volume):
            if not searched[tap]:
                counts[tap] = counts[volume - 1 - tap]
        counts[volume // 2] = len(out_keys)

    offset_ptr = np.zeros(volume + 1, dtype=np.int64)
    offset_ptr[1:] = np.cumsum(counts)
    in_index = np.empty(offset_ptr[-1], dtype=np.int32)
    out_index = np.empty(offset_ptr[-1], dtype=np.int32)
    for tap in range(volume):
        start, count, mirror = offset_ptr[tap], counts[tap], volume - 1 - tap
        if searched[tap]:
            in_index[start : start + count] = in_rows[tap, :count]
            out_index[start : start + count] = out_rows[tap, :count]
        elif tap != mirror:
            in_index[start : start + count] = out_rows[mirror, :count]
            out_index[start : start + count] = in_rows[mirror, :count]
        else:
            for i in range(count):
                in_index[start + i] = i
                out_index[start + i] = i
    return in_index, out_index, offset_ptr


@njit(cache=True, nogil=True)
def merge_column(
    in_keys: np.ndarray,
    targets: np.ndarray,
    step: int,
    taps: np.ndarray,
    in_rows: np.ndarray,
    out_rows: np.ndarray,
    counts: np.ndarray,
) -> None:
    """Append the pairs of the taps of one column; `targets` are the ascending keys of its first tap."""
    head = 0
    for i in range(len(targets)):
        target = targets[i]
        while in_keys[head] < target:
            head += 1
        at = head
        for tap in taps:
            while in_keys[at] < target:
                at += 1
            if in_keys[at] == target and at + 1 < len(in_keys):  # a key may equal the sentinel
                slot = counts[tap]
                in_rows[tap, slot] = at
                out_rows[tap, slot] = i
                counts[tap] = slot + 1
            target += step
