"""Pairs (source row, output row) sorted by output row: what a reduction reads to be deterministic."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from pointlib.ops._cuda import engine
from pointlib.ops._cuda.index_check import assert_in_range, range_flag
from pointlib.ops._cuda.remembered import RememberedPair
from pointlib.ops._cuda.rows import BLOCK

SOURCE = "segments.cu"
TILE = 256
"""Sorted pairs that are folded at once where an output row has more of them than this."""
LIMIT = 2**31 - 1
_KEYS = {torch.int8: "signed char", torch.int16: "short", torch.int32: "int"}
"""Sort keys by their width: a radix sort passes over every byte."""
_INDICES = {torch.int32: "int", torch.int64: "long long"}


class Segments(NamedTuple):
    """Pairs by output row, in their own order within one.

    Attributes:
        starts: (rows + 1,) int32, first pair of each output row; those after the last row's go nowhere.
        source: (P,) int32, source row of each pair, or -1.
        pair: (P,) int32, number of each pair before sorting; None if that was not asked for.
        ends: (tiles, 2) int32, the rows of more than TILE pairs that the first and the last pair of a tile belong to,
            or -1.
    """

    starts: Tensor
    source: Tensor
    pair: Tensor | None
    ends: Tensor


@dataclass
class _Known:
    """Segments of two index tensors, and what else they come from."""

    sizes: tuple[object, ...]
    segments: Segments


_known: RememberedPair[_Known] = RememberedPair()


def segments(
    caller: str,
    in_index: Tensor | None,
    out_index: Tensor,
    num_in: int,
    num_out: int,
    each: int = 1,
    keep_pair: bool = False,
) -> Segments:
    """Sort pairs by output row. Remembered for as long as both index tensors live and are not written to.

    Args:
        caller: Name for messages.
        in_index: (P,) source row of each pair, or -1; None for row `p // each`.
        out_index: Output row of each pair, or -1; int32 or int64 of any shape, P entries.
        num_in: Number of source rows.
        num_out: Number of output rows.
        each: Pairs that share a source row, where in_index is None.
        keep_pair: Whether the pairs' numbers are wanted.

    Raises:
        ValueError: If there are 2^31 pairs or rows, or more.
    """
    largest = max(out_index.numel(), num_in, num_out)
    if largest >= LIMIT:
        raise ValueError(
            f"{caller}: pairs and rows must be fewer than {LIMIT}, got {largest}. Reduce them in parts."
        )
    sizes = (num_in, num_out, each)
    known = _known.get(in_index, out_index)
    if known is None or known.sizes != sizes or (keep_pair and known.segments.pair is None):
        found = _sorted(caller, in_index, out_index, num_in, num_out, each, keep_pair)
        known = _known.put(in_index, out_index, _Known(sizes, found))
    return known.segments


def _sorted(
    caller: str,
    in_index: Tensor | None,
    out_index: Tensor,
    num_in: int,
    num_out: int,
    each: int,
    keep_pair: bool,
) -> Segments:
    index, pairs = out_index.reshape(-1).contiguous(), out_index.numel()
    tiles = engine.ceil_div(pairs, TILE)
    keys = index.new_empty(pairs, dtype=_key_dtype(num_out))
    flag, kernel = range_flag(out_index, num_out), _keys_kernel(index.dtype, keys.dtype)
    rows = None if in_index is None else in_index.reshape(-1).int().contiguous()
    grid = engine.ceil_div(pairs, BLOCK)
    engine.launch(SOURCE, kernel, grid, BLOCK, index, rows, pairs, num_out, keys, flag)
    assert_in_range(flag, out_index, num_out, caller)

    keys, order = torch.sort(keys, stable=True)
    starts, source = (index.new_empty(n, dtype=torch.int32) for n in (num_out + 1, pairs))
    pair = torch.empty_like(source) if keep_pair else None
    ends = index.new_empty(tiles, 2, dtype=torch.int32)
    flag = None if in_index is None else range_flag(in_index, num_in)
    kernel, grid = _pairs_kernel(keys.dtype), engine.ceil_div(max(pairs, num_out + 1), BLOCK)
    sizes, outputs = (each, pairs, num_in, num_out, TILE), (starts, source, pair, ends, flag)
    engine.launch(SOURCE, kernel, grid, BLOCK, keys, order, rows, *sizes, *outputs)
    if in_index is not None:
        assert_in_range(flag, in_index, num_in, caller)
    return Segments(starts, source, pair, ends)


def _key_dtype(num_rows: int) -> torch.dtype:
    return next(dtype for dtype in _KEYS if num_rows <= torch.iinfo(dtype).max)


def _keys_kernel(index: torch.dtype, keys: torch.dtype) -> str:
    return f"pointlib::segment_keys<{_INDICES[index]}, {_KEYS[keys]}>"


def _pairs_kernel(keys: torch.dtype) -> str:
    return f"pointlib::segment_pairs<{_KEYS[keys]}>"


def variants(capability: int) -> Iterator[tuple[str, str]]:
    """Every kernel of this file, as (source, name)."""
    del capability
    for keys in _KEYS:
        yield from ((SOURCE, _keys_kernel(index, keys)) for index in _INDICES)
        yield SOURCE, _pairs_kernel(keys)
