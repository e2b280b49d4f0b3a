"""The row form of a kernel map, which output-stationary kernels read: derived from the pairs once, and remembered.

A row has a mask of the taps that feed it and the list of their input rows, so a row costs what it has and not what
it could have. Rows are ordered by the Gray code of their masks: neighbours then differ in few taps, and a tile of
them skips the taps that none of them has.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from pointlib.ops._cuda import engine
from pointlib.ops._cuda.remembered import Remembered, RememberedPair

SOURCE = "row_map.cu"
BLOCK = 256
MAX_PAIRS = 2**31 - 1
_KEYS = {
    8: (torch.int8, "signed char, unsigned char"),
    16: (torch.int16, "short, unsigned short"),
    32: (torch.int32, "int, unsigned int"),
    64: (torch.int64, "long long, unsigned long long"),
}
"""Sort keys by their bits: a radix sort passes over every one of them."""


class RowMap(NamedTuple):
    """Which taps feed each row, from where, and in which order rows are best worked on.

    Attributes:
        mask: (num_out, words) int32, words = ceil(K / 32); bit k % 32 of word k // 32: tap k feeds the row.
        row_ptr: (num_out + 1,) int32, where the neighbours of each row start.
        neighbours: (P,) int32, input rows of the set bits, in tap order. That of row r at tap k is
            `neighbours[row_ptr[r] + popcount(bits of r below k)]`.
        order: (splits, num_out) int32, rows by the Gray rank of their mask in each split's taps, largest first; the
            rarest tap of a split is its highest bit.
        split_ptr: Split s has the taps `split_ptr[s]:split_ptr[s + 1]`.
    """

    mask: Tensor
    row_ptr: Tensor
    neighbours: Tensor
    order: Tensor
    split_ptr: tuple[int, ...]


@dataclass
class _Known:
    """What was derived from two index tensors, and from what else."""

    offset_ptr: Tensor
    num_out: int
    rows: tuple[Tensor, Tensor, Tensor]
    orders: dict[int, Tensor] = field(default_factory=dict)


_known: RememberedPair[_Known] = RememberedPair()
_offsets: Remembered[dict[torch.device, Tensor]] = Remembered()
"""Copies of an offset_ptr on other devices."""


def row_map(
    in_index: Tensor, out_index: Tensor, offset_ptr: Tensor, num_out: int, splits: int = 1
) -> RowMap:
    """The row form of a kernel map; of its transpose, where in_index and out_index change places.

    Remembered for as long as both index tensors live and are not written to (of tensors made under inference_mode,
    torch does not tell). No host synchronisation. What is remembered was made on the stream of the first call; calls
    from another stream must be ordered after it, as for every tensor.

    Args:
        in_index: (P,) int32, input row of each pair, grouped by tap.
        out_index: (P,) int32, output row of each pair; none twice within a tap.
        offset_ptr: (K + 1,) int64 on the CPU; the pairs of tap k are `offset_ptr[k]:offset_ptr[k + 1]`.
        num_out: Number of output rows.
        splits: Contiguous ranges of taps that get an order of their own; 0 for no order.

    Raises:
        ValueError: If there are 2^31 pairs or more, or more splits than taps.
    """
    volume = len(offset_ptr) - 1
    if len(in_index) > MAX_PAIRS:
        raise ValueError(
            f"row_map: in_index must have at most {MAX_PAIRS} pairs, got {len(in_index)}. "
            "Split the batch or use a larger voxel size."
        )
    if not 0 <= splits <= volume:
        raise ValueError(f"row_map: splits must be 0 to {volume} for {volume} taps, got {splits}.")
    known = _remembered(in_index, out_index, offset_ptr, num_out)
    if splits not in known.orders:
        known.orders[splits] = _gray_order(known.rows[0], offset_ptr, splits)
    return RowMap(*known.rows, known.orders[splits], split_ptr(volume, splits))


def remember_rows(
    in_index: Tensor, out_index: Tensor, offset_ptr: Tensor, num_out: int, rows: RowMap
) -> None:
    """Tell `row_map` of rows that were found without pairs; the three tensors then only stand for them."""
    found, orders = rows[:3], {rows.order.shape[0]: rows.order, 0: rows.order[:0]}
    _known.put(in_index, out_index, _Known(offset_ptr.clone(), num_out, found, orders))


def is_known(in_index: Tensor, out_index: Tensor) -> bool:
    """Whether `row_map` has the row form of these pairs already; not of their transpose."""
    return _known.get(in_index, out_index) is not None


def split_ptr(volume: int, splits: int) -> tuple[int, ...]:
    """Taps cut into ranges of equal size, as near as can be."""
    return tuple(split * volume // splits for split in range(splits + 1)) if splits else (0,)


def device_offsets(offset_ptr: Tensor, like: Tensor) -> Tensor:
    """offset_ptr on the device of `like`, copied once and without waiting for it."""
    copies = _offsets.get(offset_ptr)
    if copies is None or like.device not in copies:
        # A copy even on one device, for what is remembered must not hold its tensor.
        copy = offset_ptr.to(like.device, non_blocking=True, copy=True)
        copies = _offsets.put(offset_ptr, {**(copies or {}), like.device: copy})
    return copies[like.device]


def remember_offsets(offset_ptr: Tensor, copy: Tensor) -> None:
    """Tell `device_offsets` of a copy that is there already."""
    _offsets.put(offset_ptr, {copy.device: copy})


def _remembered(in_index: Tensor, out_index: Tensor, offset_ptr: Tensor, num_out: int) -> _Known:
    known = _known.get(in_index, out_index)
    if known and known.num_out == num_out and torch.equal(known.offset_ptr, offset_ptr):
        return known
    rows = _rows(in_index, out_index, offset_ptr, num_out)
    return _known.put(in_index, out_index, _Known(offset_ptr.clone(), num_out, rows))


def _rows(
    in_index: Tensor, out_index: Tensor, offset_ptr: Tensor, num_out: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Mask, row_ptr and neighbours."""
    pairs, volume = len(in_index), len(offset_ptr) - 1
    words = engine.ceil_div(volume, 32)
    mask = out_index.new_zeros(num_out, words)
    if not num_out:
        return mask, out_index.new_zeros(1), torch.empty_like(in_index)
    offsets = device_offsets(offset_ptr, out_index)
    in_index, out_index = in_index.contiguous(), out_index.contiguous()
    grid = engine.ceil_div(pairs, BLOCK)
    sizes = (offsets, pairs, volume, words, mask)
    engine.launch(SOURCE, "pointlib::mark_taps", grid, BLOCK, out_index, *sizes)

    row_ptr = count_taps(mask)

    neighbours = torch.empty_like(in_index)
    indices = (in_index, out_index)
    engine.launch(
        SOURCE, "pointlib::place_neighbours", grid, BLOCK, *indices, *sizes, row_ptr, neighbours
    )
    return mask, row_ptr, neighbours


def count_taps(mask: Tensor) -> Tensor:
    """row_ptr of (M, words) masks, M > 0."""
    rows, words = mask.shape
    counts, grid = mask.new_empty(rows + 1), engine.ceil_div(rows, BLOCK)
    engine.launch(SOURCE, "pointlib::count_taps", grid, BLOCK, mask, rows, words, counts)
    return counts.cumsum(0, dtype=torch.int32)


def _gray_order(mask: Tensor, offset_ptr: Tensor, splits: int) -> Tensor:
    """Rows by Gray rank, (splits, rows) int32. Splits of more than 64 taps are folded to 64 bits."""
    (rows, words), volume = mask.shape, len(offset_ptr) - 1
    if not rows or not splits:
        return mask.new_empty(splits, rows)
    width = engine.ceil_div(volume, splits)
    fold = engine.ceil_div(width, 64)
    bits = next(bits for bits in _KEYS if engine.ceil_div(width, fold) <= bits)
    keys = mask.new_empty(splits, rows, dtype=_KEYS[bits][0])
    grid = (engine.ceil_div(rows, BLOCK), splits)
    offsets = device_offsets(offset_ptr, mask)
    engine.launch(
        *(SOURCE, _rank_kernel(bits), grid, BLOCK),
        *(mask, rows, words, offsets, volume, splits, fold, keys),
        shared_bytes=8 * width,
    )
    return torch.sort(keys, dim=1, stable=True).indices.int()


def _rank_kernel(bits: int) -> str:
    return f"pointlib::rank_rows<{_KEYS[bits][1]}>"


def variants(capability: int) -> Iterator[tuple[str, str]]:
    """Every kernel of this file, as (source, name)."""
    del capability
    names = ["mark_taps", "count_taps", "place_neighbours"]
    yield from ((SOURCE, f"pointlib::{name}") for name in names)
    yield from ((SOURCE, _rank_kernel(bits)) for bits in _KEYS)
