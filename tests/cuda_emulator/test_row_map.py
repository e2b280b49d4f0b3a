"""The row form of kernel maps against a dense table of the pairs, and how long it is remembered."""

from __future__ import annotations

import gc
import itertools

import numpy as np
import pytest
import torch
from torch import Tensor

from pointlib.ops._cuda import engine, row_map
from pointlib.ops.kernel_map import ConvSpec, KernelMap, build_kernel_map
from tests import oracles
from tests.cuda_emulator.operators import ANY_ARCHITECTURE

pytestmark = ANY_ARCHITECTURE


def map_of(spec: ConvSpec, count: int, extent: int | tuple[int, int, int] = 7) -> KernelMap:
    rng = np.random.default_rng(count)
    coords = oracles.random_coords(rng, 4 * count, extent, batch=2, lower=-3)[:count]
    return build_kernel_map(coords, spec).kernel_map


def rows_of(kernel_map: KernelMap, splits: int = 1) -> row_map.RowMap:
    pairs = (kernel_map.in_index, kernel_map.out_index, kernel_map.offset_ptr)
    return row_map.row_map(*pairs, kernel_map.num_out, splits)


def dense(kernel_map: KernelMap) -> Tensor:
    """Input row of each output row and tap, (M, K), or -1."""
    taps = torch.repeat_interleave(kernel_map.offset_ptr.diff())
    table = torch.full((kernel_map.num_out, kernel_map.kernel_volume), -1)
    table[kernel_map.out_index.long(), taps] = kernel_map.in_index.long()
    return table


def gray_ranks(present: Tensor, fold: int) -> list[int]:
    """Place of each row's taps, (M, taps) bool, in the binary-reflected Gray code whose highest bits are the rarest
    taps; bit i is set by any of `fold` taps from i * fold on.
    """
    by_rarity = present[:, torch.sort(present.sum(0), descending=True, stable=True).indices]
    ranks = []
    for taps in by_rarity.tolist():
        code = sum(
            1 << i // fold
            for i, has in enumerate(taps)
            if has and not any(taps[i // fold * fold : i])
        )
        ranks.append(code)
        while code := code >> 1:
            ranks[-1] ^= code
    return ranks


def check(kernel_map: KernelMap, splits: int) -> None:
    rows, table = rows_of(kernel_map, splits), dense(kernel_map)
    volume, present = kernel_map.kernel_volume, table >= 0
    assert {t.dtype for t in rows[:4]} == {torch.int32}  # type: ignore[union-attr]
    assert rows.mask.shape == (kernel_map.num_out, engine.ceil_div(volume, 32))
    bits = (rows.mask[:, :, None] >> torch.arange(32) & 1).bool().flatten(1)
    assert torch.equal(bits[:, :volume], present) and not bits[:, volume:].any()
    assert torch.equal(rows.row_ptr[1:].long(), present.sum(1).cumsum(0))
    assert rows.row_ptr[0] == 0
    assert torch.equal(rows.neighbours.long(), table[present])

    ends = rows.split_ptr
    assert ends[0] == 0 and len(ends) == splits + 1 and ends[-1] == (volume if splits else 0)
    widths = [high - low for low, high in itertools.pairwise(ends)]
    assert not widths or max(widths) - min(widths) <= 1
    assert rows.order.shape == (splits, kernel_map.num_out)
    fold = engine.ceil_div(max(widths, default=1), 64)
    for split, order in enumerate(rows.order.tolist()):
        ranks = gray_ranks(present[:, ends[split] : ends[split + 1]], fold)
        assert order == sorted(range(len(ranks)), key=lambda row: -ranks[row])


@pytest.mark.parametrize("splits", [0, 1, 2, 3])
def test_rows_hold_the_pairs(splits: int) -> None:
    for count in (1, 255, 256, 257):
        kernel_map = map_of(ConvSpec(3), count)
        check(kernel_map, splits)
        check(kernel_map.transpose(), splits)


@pytest.mark.parametrize(
    ("spec", "splits"),
    [
        (ConvSpec(1), 1),
        (ConvSpec(2, 2), 1),  # 8 taps: keys of 8 bits
        (ConvSpec((4, 4, 2), relation="submanifold"), 1),  # 32 taps: one full word
        (ConvSpec((4, 4, 4), relation="submanifold"), 1),  # 64 taps: no fold yet
        (ConvSpec((5, 1, 7)), 2),
        (ConvSpec(5), 1),
        (ConvSpec(5), 4),  # a split that starts inside a word and ends inside the next
        (ConvSpec(7), 1),
        (ConvSpec(7), 4),
    ],
)
def test_any_kernel(spec: ConvSpec, splits: int) -> None:
    kernel_map = map_of(spec, 120, (4, 4, 6))
    check(kernel_map, splits)
    check(kernel_map.transpose(), splits)


def test_rows_without_taps() -> None:
    """Outputs that nothing feeds, no output, and no pair at all."""
    coords = oracles.random_coords(np.random.default_rng(0), 30, 4)
    outs = torch.cat([coords, coords + 50])
    check(build_kernel_map(coords, ConvSpec(3), out_coords=outs).kernel_map, 2)
    check(build_kernel_map(coords, ConvSpec(3), out_coords=coords + 50).kernel_map, 2)
    check(build_kernel_map(coords, ConvSpec(3), out_coords=coords[:0]).kernel_map, 2)
    check(build_kernel_map(coords[:0], ConvSpec(3)).kernel_map, 2)


def test_what_is_derived_is_remembered() -> None:
    kernel_map = map_of(ConvSpec(3), 50)
    ends = (kernel_map.in_index, kernel_map.out_index)
    assert not row_map.is_known(*ends)
    first = rows_of(kernel_map, 1)
    assert row_map.is_known(*ends) and not row_map.is_known(*ends[::-1])
    again, split = rows_of(kernel_map, 1), rows_of(kernel_map, 2)
    for old, new in zip(first[:4], again[:4], strict=True):
        assert old is new
    assert split.mask is first.mask and split.order is not first.order
    assert rows_of(kernel_map.transpose()).mask is not first.mask
    assert rows_of(kernel_map, 1).mask is first.mask  # and the transpose did not push it out


def test_inference_tensors_are_remembered_too() -> None:
    with torch.inference_mode():
        kernel_map = map_of(ConvSpec(3), 50)
        assert kernel_map.in_index.is_inference()
        check(kernel_map, 1)
        assert rows_of(kernel_map).mask is rows_of(kernel_map).mask


@pytest.mark.parametrize("written", ["in_index", "out_index", "offset_ptr"])
def test_what_is_written_to_is_derived_anew(written: str) -> None:
    kernel_map = map_of(ConvSpec((3, 1, 1)), 80)
    check(kernel_map, 1)
    if written == "offset_ptr":  # the last pair of the second tap becomes one of the third
        end = int(kernel_map.offset_ptr[2])
        assert kernel_map.out_index[end - 1] not in kernel_map.out_index[end:]
        kernel_map.offset_ptr[2] -= 1
    else:
        index: Tensor = getattr(kernel_map, written)
        index.copy_(kernel_map.num_out - 1 - index)
    check(kernel_map, 1)


def test_another_map_with_the_same_outputs_is_told_apart() -> None:
    kernel_map = map_of(ConvSpec(3), 50)
    rows_of(kernel_map)
    other = (kernel_map.in_index.flip(0), kernel_map.out_index, kernel_map.offset_ptr)
    sizes = (kernel_map.num_in, kernel_map.num_out)
    check(KernelMap(*other, *sizes), 1)
    check(kernel_map, 1)
    longer = row_map.row_map(kernel_map.in_index, *other[1:], kernel_map.num_out + 3)
    assert len(longer.mask) == kernel_map.num_out + 3 and not longer.mask[-3:].any()


def test_nothing_outlives_the_pairs() -> None:
    kernel_map = map_of(ConvSpec(3), 50)
    gc.collect()
    before = len(row_map._known), len(row_map._offsets)
    rows = rows_of(kernel_map)
    assert (len(row_map._known), len(row_map._offsets)) > before
    del kernel_map
    gc.collect()
    assert (len(row_map._known), len(row_map._offsets)) == before
    assert rows.neighbours.numel()


def test_refusals() -> None:
    kernel_map = map_of(ConvSpec((3, 1, 1)), 10)
    with pytest.raises(ValueError, match="row_map: splits must be 0 to 3 for 3 taps, got 4"):
        rows_of(kernel_map, 4)
    many = torch.zeros(1, dtype=torch.int32).expand(2**31)
    with pytest.raises(ValueError, match="row_map: in_index must have at most 2147483647 pairs"):
        row_map.row_map(many, many, kernel_map.offset_ptr, 10)
