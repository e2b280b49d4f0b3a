"""Pairs of a kernel map cut into chunks of one tap each: the work list of kernels that go through the pairs."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from pointlib.ops._cuda import engine
from pointlib.ops._cuda.remembered import Remembered


class Chunks(NamedTuple):
    """Chunks in the order of the pairs.

    Attributes:
        num_chunks: Number of chunks, C.
        bounds: (C + 1,) int64 on the device; chunk c has the pairs `bounds[c]:bounds[c + 1]`.
        taps: (C,) int64 on the device, the tap of each chunk.
        tap_ptr: (K + 1,) int64 on the device; tap k has the chunks `tap_ptr[k]:tap_ptr[k + 1]`.
    """

    num_chunks: int
    bounds: Tensor
    taps: Tensor
    tap_ptr: Tensor


_known: Remembered[dict[tuple[int, torch.device], Chunks]] = Remembered()
"""From offset_ptr to its chunks of each size on each device."""


def chunk_pairs(offset_ptr: Tensor, size: int, like: Tensor) -> Chunks:
    """Cut the pairs of every tap into equal chunks, as few as can be. Remembered for as long as offset_ptr lives.

    Args:
        offset_ptr: (K + 1,) int64 on the CPU; the pairs of tap k are `offset_ptr[k]:offset_ptr[k + 1]`.
        size: Pairs of a chunk, at most.
        like: Any tensor on the device.
    """
    known = _known.get(offset_ptr)
    if known is None:
        known = _known.put(offset_ptr, {})
    key = (size, like.device)
    if key not in known:
        known[key] = _cut(offset_ptr, size, like.device)
    return known[key]


def chunk_rows(rows: int, size: int, like: Tensor) -> Chunks:
    """The same for one tap through which every row, of one at least, feeds itself; made on the device."""
    count = engine.ceil_div(rows, size)
    numbers = torch.arange(count + 1, dtype=torch.int64, device=like.device)
    bounds = (numbers * size).clamp_(max=rows)
    return Chunks(count, bounds, torch.zeros_like(numbers[:count]), numbers[:2] * count)


def _cut(offset_ptr: Tensor, size: int, device: torch.device) -> Chunks:
    pairs = offset_ptr.diff()
    chunks = (pairs + size - 1) // size
    tap_ptr = torch.cat([chunks.new_zeros(1), chunks.cumsum(0)])
    count, volume = int(tap_ptr[-1]), len(pairs)
    taps = torch.arange(volume).repeat_interleave(chunks)
    place = torch.arange(count) - tap_ptr[taps]
    starts = offset_ptr[taps] + pairs[taps] * place // chunks[taps]
    packed = torch.cat([starts, offset_ptr[-1:], taps, tap_ptr]).to(device, non_blocking=True)
    return Chunks(count, *packed.split([count + 1, count, volume + 1]))
