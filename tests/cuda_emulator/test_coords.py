"""Unique and look-up of keys, and sorted voxels, of the CUDA engine against those of the CPU."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from pointlib.ops import _cpu
from pointlib.ops._cuda import coords as cuda
from pointlib.ops.coords import (
    key_layout,
    lookup_coords,
    pack_coords,
    unique_coords,
    unpack_coords,
)
from tests import oracles
from tests.cuda_emulator.operators import ANY_ARCHITECTURE

pytestmark = ANY_ARCHITECTURE

INT64 = torch.iinfo(torch.int64)
SIZES = (0, 1, 2, 255, 256, 257, 1000)


def random_keys(count: int, distinct: int, seed: int = 0) -> Tensor:
    """Any int64, each a few times, the smallest and the largest among them."""
    rng = np.random.default_rng(seed)
    pool = rng.integers(INT64.min, INT64.max, distinct, endpoint=True)
    pool[:2] = (INT64.min, INT64.max)
    return torch.from_numpy(rng.choice(pool, count))


def same(got: tuple[Tensor, ...], wanted: tuple[Tensor, ...]) -> None:
    for ours, theirs in zip(got, wanted, strict=True):
        assert ours.dtype == theirs.dtype and torch.equal(ours, theirs)


def test_unique_keys() -> None:
    for count in SIZES:
        for distinct in (2, 40, 3000):
            keys = random_keys(count, distinct)
            same(cuda.unique_keys(keys), _cpu.coords.unique_keys(keys))
    strided = random_keys(600, 90)[::2]
    same(cuda.unique_keys(strided), _cpu.coords.unique_keys(strided))


def test_lookup_keys() -> None:
    for count in SIZES:
        for wanted in (0, 1, 300):
            keys = random_keys(count, 50)
            query = torch.cat([random_keys(wanted, 50), random_keys(wanted, 50, seed=1)])
            found = cuda.lookup_keys(query, keys)
            same((found,), (_cpu.coords.lookup_keys(query, keys),))
            assert not wanted or not count or ((found < 0).any() and (found >= 0).any())
    strided = random_keys(600, 90)[::2]
    same((cuda.lookup_keys(strided, strided),), (_cpu.coords.lookup_keys(strided, strided),))


def drawn_with_repeats(count: int, extent: int, lower: int = -4) -> Tensor:
    rng = np.random.default_rng(count)
    rows = [rng.integers(2, size=count), *rng.integers(lower, lower + extent, (3, count))]
    return torch.from_numpy(np.column_stack(rows).astype(np.int32))


def test_unique_coords() -> None:
    for count in SIZES:
        for extent in (2, 8, 2**20):
            coords = drawn_with_repeats(count, extent)
            same(cuda.unique_coords(coords), unique_coords(coords))
    wide = torch.cat([coords, coords], 1)[:, 2:6]
    same(cuda.unique_coords(wide), unique_coords(wide))


def test_distinct_coords_need_no_further_sort(monkeypatch: pytest.MonkeyPatch) -> None:
    coords = drawn_with_repeats(500, 8)
    distinct, *_ = cuda.unique_coords(coords)
    monkeypatch.setattr(torch, "sort", None)
    assert cuda.sorted_sites(distinct).order is None
    found = cuda.lookup_coords(coords, distinct)
    assert torch.equal(distinct[found], coords)


def test_lookup_coords() -> None:
    for count in SIZES:
        for wanted in (0, 1, 300):
            coords, query = drawn_with_repeats(count, 6), drawn_with_repeats(wanted, 9, -5)
            found = cuda.lookup_coords(query, coords)
            same((found,), (lookup_coords(query, coords),))
    assert (found < 0).any() and (found >= 0).any()
    far = torch.tensor([[0, 4096, 0, 0], [0, -9, 0, 0], [0, 0, 0, 20], [5, 0, 0, 0], [-1, 1, 1, 1]])
    assert cuda.lookup_coords(far.int(), coords).tolist() == [-1] * 5


def test_too_wide_coords_are_refused() -> None:
    coords = torch.tensor([[0, -(2**31), 0, 0], [0, 2**31 - 1, 0, 0], [0, 0, -(2**31), 7]]).int()
    messages = []
    for function in (unique_coords, cuda.unique_coords):
        with pytest.raises(ValueError, match="at most 63 bits, got 67") as refused:
            function(coords)
        messages.append(str(refused.value))
    for lookup in (lookup_coords, cuda.lookup_coords):
        for query, rows in ((coords[:1], coords[1:]), (coords, coords[:0]), (coords[:0], coords)):
            with pytest.raises(ValueError, match="at most 63 bits, got 67") as refused:
                lookup(query, rows)
            messages.append(str(refused.value))
    assert len(set(messages)) == 1


@pytest.mark.parametrize("place", ["near", "negative", "far", "ends"])
def test_sorted_sites(place: str) -> None:
    """Keys, bounds and order, in the layout of coords.py; 63 bits at the ends of int32."""
    for count in (1, 256, 257, 3000):
        coords = oracles.random_coords(np.random.default_rng(1), count, 20, batch=3)
        if place == "negative":
            coords[:, 1:] -= 1000
        elif place == "far":
            coords[:, 1] += torch.where(coords[:, 2] > 9, 2**30, -(2**30)).int()
        elif place == "ends":
            coords[:, 3] = torch.where(coords[:, 3] > 9, 2**31 - 1, -(2**31)).int()
            coords = torch.unique(coords, dim=0)[torch.randperm(len(torch.unique(coords, dim=0)))]
        bounds, keys, order = cuda.sorted_sites(coords)
        layout = key_layout(coords)
        assert order is not None
        assert torch.equal(pack_coords(coords, layout)[order.long()], keys)
        assert torch.equal(unpack_coords(keys, layout), coords[order.long()])
        assert (keys[1:] > keys[:-1]).all() and not bounds[8]
        low, high = cuda.read_bounds(bounds.tolist())
        assert (low, high) == (coords.amin(0).tolist(), coords.amax(0).tolist())


def test_a_repeated_voxel_is_told() -> None:
    coords = oracles.random_coords(np.random.default_rng(1), 300, 20)
    assert cuda.sorted_sites(torch.cat([coords, coords[-1:]])).bounds[8] == 1


def test_voxels_are_sorted_once() -> None:
    coords = oracles.random_coords(np.random.default_rng(1), 30, 20)
    first = cuda.sorted_sites(coords)
    assert cuda.sorted_sites(coords) is first
    coords[0] = 100
    assert cuda.sorted_sites(coords) is not first
    assert cuda.sorted_sites(coords).keys[-1] > first.keys[-1]


def test_voxels_may_lie_anywhere_in_memory() -> None:
    """Rows that are not 16-byte aligned, and rows with gaps between them."""
    coords = oracles.random_coords(np.random.default_rng(1), 300, 20)
    shifted = torch.empty(coords.numel() + 1, dtype=torch.int32)[1:].view(-1, 4).copy_(coords)
    wide = torch.cat([coords, coords], 1)[:, :4]
    assert shifted.data_ptr() % 16 and not wide.is_contiguous()
    for other in (shifted, wide):
        for ours, theirs in zip(cuda.sorted_sites(other), cuda.sorted_sites(coords), strict=True):
            assert ours is not None and theirs is not None and torch.equal(ours, theirs)


@pytest.mark.parametrize(
    "function", [cuda.unique_coords, cuda.lookup_coords, cuda.unique_keys, cuda.lookup_keys]
)
def test_registered(function: Callable[..., object]) -> None:
    name = f"pointlib::{function.__name__}"
    assert torch._C._dispatch_has_kernel_for_dispatch_key(name, "CUDA")
