"""Scatter reductions and their gathers on CUDA: one owner per output row, a fixed order of summation, no atomics."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from pointlib.ops._cuda import engine
from pointlib.ops._cuda.index_check import assert_in_range, range_flag, remember_in_range
from pointlib.ops._cuda.rows import (
    BLOCK,
    feature_layout,
    layout,
    widest,
)
from pointlib.ops._cuda.segments import TILE, Segments, segments
from pointlib.ops._cuda.types import ELEMENTS, accumulator

SOURCE = "scatter.cu"
MERGE_BLOCKS = 1024
GATHER_EACH = 4
"""Rows of a group, as in gather_rows of scatter.cu."""
_UNITS = {
    16: ("uint4", torch.int32),
    8: ("long long", torch.int64),
    4: ("int", torch.int32),
    2: ("short", torch.int16),
}
"""What rows are copied by: bytes, name, and the dtype to view features as."""


def scatter_sum(src: Tensor, index: Tensor, num_rows: int) -> Tensor:
    """Sum of the rows of `src` that `index` sends to each output row."""
    return sum_rows("scatter_sum", src, None, index, num_rows)


def scatter_mean(src: Tensor, index: Tensor, num_rows: int) -> tuple[Tensor, Tensor]:
    """Mean of the rows of `src` that `index` sends to each output row, and their number (1 for none)."""
    return mean_rows("scatter_mean", src, None, index, num_rows)


def scatter_max(src: Tensor, index: Tensor, num_rows: int) -> tuple[Tensor, Tensor]:
    """Largest value sent to each output row and channel, and the row it came from."""
    return max_rows("scatter_max", src, None, index, num_rows)


def scatter_elements(src: Tensor, index: Tensor, num_rows: int) -> Tensor:
    """`out[index[i, c], c] += src[i, c]`, -1 sends nowhere."""
    rows, channels = src.shape
    if not channels or not num_rows:
        return src.new_zeros(num_rows, channels)
    flag, share = range_flag(index, num_rows), layout(channels)
    places = index.new_empty(index.shape, dtype=torch.int64)
    engine.launch(
        *(SOURCE, "pointlib::element_places", share.grid(rows), BLOCK, index.long().contiguous()),
        *(rows, channels, num_rows, share.lanes, places, flag),
    )
    assert_in_range(flag, index, num_rows, "scatter_elements")
    remember_in_range(places, num_rows * channels)
    elements = (src.reshape(-1, 1), None, places, num_rows * channels)
    return sum_rows("scatter_elements", *elements).view(num_rows, channels)


def gather_rows(src: Tensor, index: Tensor) -> Tensor:
    """`src[index]`, a zero row where the index is -1."""
    src, (rows, channels) = src.contiguous(), (len(index), src.shape[1])
    out = src.new_empty(rows, channels)
    if not out.numel():
        return out
    row_bytes, flag = channels * src.element_size(), range_flag(index, len(src))
    unit = _unit(row_bytes, src, out)
    share = layout(row_bytes // unit)
    engine.launch(
        *(SOURCE, _gather_kernel("rows", unit), share.grid(rows, GATHER_EACH), BLOCK),
        *(
            _as_units(src, unit),
            len(src),
            share.vectors,
            index.long().contiguous(),
            rows,
            share.lanes,
        ),
        *(_as_units(out, unit), flag),
    )
    assert_in_range(flag, index, len(src), "gather_rows")
    return out


def gather_elements(src: Tensor, index: Tensor) -> Tensor:
    """`src[index[i, c], c]`, zero where the index is -1."""
    src, (rows, channels) = src.contiguous(), index.shape
    out = src.new_empty(rows, channels)
    if not out.numel():
        return out
    flag, unit, share = range_flag(index, len(src)), src.element_size(), layout(channels)
    engine.launch(
        *(SOURCE, _gather_kernel("elements", unit), share.grid(rows), BLOCK),
        *(_as_units(src, unit), *src.shape, index.long().contiguous(), rows, share.lanes),
        *(_as_units(out, unit), flag),
    )
    assert_in_range(flag, index, len(src), "gather_elements")
    return out


def sum_rows(
    caller: str,
    src: Tensor,
    in_index: Tensor | None,
    out_index: Tensor,
    num_out: int,
    weights: Tensor | None = None,
    each: int = 1,
) -> Tensor:
    """Sum over pairs, in their order, of `weights[p] * src[in_index[p]]` into row `out_index[p]`.

    Args:
        caller: Name for messages.
        src: (N, C) floating.
        in_index: (P,) source row of each pair, or -1; None for row `p // each`.
        out_index: int32 or int64 output row of each pair, or -1; P entries.
        num_out: Number of output rows.
        weights: P entries, contiguous, of the dtype that src is summed in, or None for 1.
        each: Pairs that share a source row, where in_index is None.

    Returns:
        (num_out, C) of src's dtype.
    """
    keep_pair = weights is not None
    found = segments(caller, in_index, out_index, len(src), num_out, each, keep_pair)
    out = src.new_empty(num_out, src.shape[1])
    _reduce("Sum", src, found, out, weights=weights)
    return out


def mean_rows(
    caller: str, src: Tensor, in_index: Tensor | None, out_index: Tensor, num_out: int
) -> tuple[Tensor, Tensor]:
    """Mean over pairs for each output row (0 if no pair), and (num_out, 1) the number of pairs, but at least 1.

    Arguments as in `sum_rows`.
    """
    found = segments(caller, in_index, out_index, len(src), num_out)
    out = src.new_empty(num_out, src.shape[1])
    counts = src.new_empty(num_out, 1, dtype=accumulator(src.dtype))
    _reduce("Sum", src, found, out, counts=counts)
    return out, counts


def max_rows(
    caller: str, src: Tensor, in_index: Tensor | None, out_index: Tensor, num_out: int
) -> tuple[Tensor, Tensor]:
    """Largest value over pairs for each output row and channel (0 if no pair), and its row (-1).

    Arguments as in `sum_rows`.
    """
    found = segments(caller, in_index, out_index, len(src), num_out)
    out = src.new_empty(num_out, src.shape[1])
    argmax = torch.empty_like(out, dtype=torch.int64)
    _reduce("Max", src, found, out, argmax=argmax)
    remember_in_range(argmax, len(src))
    return out, argmax


def _reduce(
    reduction: str,
    src: Tensor,
    found: Segments,
    out: Tensor,
    argmax: Tensor | None = None,
    counts: Tensor | None = None,
    weights: Tensor | None = None,
) -> None:
    src, pairs, (num_out, channels) = src.contiguous(), len(found.source), out.shape
    if not out.numel():
        if counts is not None:
            counts.copy_(found.starts.diff().clamp(min=1)[:, None])
        return
    share, tiles = feature_layout(channels, src, out), len(found.ends) if pairs > TILE else 0
    state_bytes, partial = _partial(reduction, src, tiles)
    shared_bytes = share.vector * BLOCK * state_bytes if tiles else 0
    name = _element_name(reduction, src.dtype, share.vector)
    pair = None if weights is None else found.pair
    grid = (tiles + share.grid(num_out)[0], share.columns)
    engine.launch(
        *(SOURCE, f"pointlib::reduce_rows<{name}>", grid, BLOCK, src, share.vectors, found.source),
        *(pair, weights, found.starts, found.ends, num_out, TILE, tiles, share.lanes),
        *(partial, out, argmax, counts),
        shared_bytes=shared_bytes,
    )
    if tiles:
        merge = (min(tiles, MERGE_BLOCKS), share.columns)
        engine.launch(
            *(SOURCE, f"pointlib::merge_tiles<{name}>", merge, BLOCK, partial, share.vectors),
            *(found.starts, found.ends, TILE, tiles, share.lanes, out, argmax, counts),
            shared_bytes=shared_bytes,
        )


def _partial(reduction: str, src: Tensor, tiles: int) -> tuple[int, Tensor]:
    """Bytes of Op::Wide in scatter.cu, and room for (tiles, 2, channels) of them."""
    count = 2 * tiles * src.shape[1]
    if reduction == "Max":  # a value and a row
        state_bytes = 2 * accumulator(src.dtype).itemsize
        return state_bytes, src.new_empty(count * state_bytes, dtype=torch.uint8)
    wide = torch.float64 if src.dtype.itemsize >= 4 else torch.float32
    return wide.itemsize, src.new_empty(count, dtype=wide)


def _unit(row_bytes: int, *tensors: Tensor) -> int:
    """Most bytes that rows can be copied by."""
    return next(
        unit
        for unit in _UNITS
        if row_bytes % unit == 0 and all(t.data_ptr() % unit == 0 for t in tensors)
    )


def _as_units(feats: Tensor, unit: int) -> Tensor:
    """The same memory as integers."""
    return feats.view(-1).view(_UNITS[unit][1])


def _element_name(reduction: str, dtype: torch.dtype, vector: int) -> str:
    return f"pointlib::{reduction}<{ELEMENTS[dtype]}>, {vector}"


def _gather_kernel(what: str, unit: int) -> str:
    return f"pointlib::gather_{what}<{_UNITS[unit][0]}>"


def variants(capability: int) -> Iterator[tuple[str, str]]:
    """Every kernel of this file, as (source, name)."""
    del capability
    for kernel in ("reduce_rows", "merge_tiles"):
        for reduction in ("Sum", "Max"):
            for dtype in ELEMENTS:
                for vector in (1, widest(dtype)):
                    name = _element_name(reduction, dtype, vector)
                    yield SOURCE, f"pointlib::{kernel}<{name}>"
    yield from ((SOURCE, _gather_kernel("rows", unit)) for unit in _UNITS)
    yield from ((SOURCE, _gather_kernel("elements", unit)) for unit in (2, 4, 8))
    yield SOURCE, "pointlib::element_places"
