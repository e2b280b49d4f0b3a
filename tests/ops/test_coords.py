"""Packed coordinate keys, unique and look-up against dictionaries, at and past the edges of the key range."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from pointlib.ops.coords import (
    KeyLayout,
    key_layout,
    lookup_coords,
    pack_coords,
    unique_coords,
    unpack_coords,
)
from tests import oracles

INT32 = torch.iinfo(torch.int32)


def rows(*values: tuple[int, int, int, int]) -> Tensor:
    return torch.tensor(values, dtype=torch.int32).reshape(-1, 4)


def lists_of_rows(max_size: int = 40) -> st.SearchStrategy[list[tuple[int, int, int, int]]]:
    """Rows from tiny grids (many duplicates), from wide ones, and around powers of two: 63 bits at most."""
    edges = st.sampled_from([0, 1, -1, 255, 256, 65535, -65536, 2**19 - 1, -(2**19)])
    axis = st.one_of(st.integers(-3, 3), st.integers(-(2**19), 2**19 - 1), edges)
    return st.lists(st.tuples(st.integers(0, 7), axis, axis, axis), max_size=max_size)


CLOUDS = {
    "empty": rows(),
    "one": rows((3, -7, 0, 2**20)),
    "origin": rows((0, 0, 0, 0)),
    "duplicates": rows(*[(0, 1, 2, 3)] * 5, (0, 1, 2, 2), (0, 1, 2, 3)),
    "negative": rows((0, -1, 0, 0), (0, 0, -1, 0), (0, 0, 0, -1), (0, 0, 0, 0), (1, -9, -9, -9)),
    "sorted": rows((0, 0, 0, 0), (0, 0, 0, 1), (0, 0, 1, -5), (1, -8, 0, 0)),
    "reversed": rows((1, -8, 0, 0), (0, 0, 1, -5), (0, 0, 0, 1), (0, 0, 0, 0)),
    "int32 line": rows((0, INT32.max, 0, 0), (0, INT32.min, 0, 0), (0, -1, 0, 0), (0, 1, 0, 0)),
    "full 63 bits": rows((0, INT32.min, INT32.min, 7), (0, INT32.max, -2, 7), (0, 0, -3, 7)),
}


@pytest.mark.parametrize("name", CLOUDS)
def test_unique_and_lookup_equal_a_dictionary(name: str) -> None:
    check_unique(CLOUDS[name])


@settings(max_examples=150, deadline=None)
@given(lists_of_rows())
def test_unique_and_lookup_equal_a_dictionary_on_any_rows(values: list) -> None:
    check_unique(rows(*values))


def check_unique(coords: Tensor) -> None:
    got = unique_coords(coords)
    distinct, inverse, first, counts = oracles.unique_rows(coords.numpy())
    assert got.coords.dtype == torch.int32 and got.coords.shape == (len(distinct), 4)
    assert {part.dtype for part in got[1:]} == {torch.int64}
    np.testing.assert_array_equal(got.coords.numpy(), distinct)
    np.testing.assert_array_equal(got.inverse.numpy(), inverse)
    np.testing.assert_array_equal(got.first.numpy(), first)
    np.testing.assert_array_equal(got.counts.numpy(), counts)
    assert torch.equal(got.coords[got.inverse], coords)
    assert torch.equal(coords[got.first], got.coords)
    found = lookup_coords(coords, coords)
    np.testing.assert_array_equal(found.numpy(), first[inverse])


@settings(max_examples=100, deadline=None)
@given(lists_of_rows(), lists_of_rows(20))
def test_lookup_finds_exactly_what_is_there(values: list, wanted: list) -> None:
    coords = rows(*values)
    query = rows(*wanted, *values[::2])
    where = {row: index for index, row in reversed(list(enumerate(values)))}
    expected = [where.get(tuple(row), -1) for row in query.tolist()]
    got = lookup_coords(query, coords)
    assert got.dtype == torch.int64
    assert got.tolist() == expected


@settings(max_examples=150, deadline=None)
@given(lists_of_rows().filter(len))
def test_keys_keep_the_lexicographic_order_and_unpack(values: list) -> None:
    coords = rows(*values)
    layout = key_layout(coords)
    keys = pack_coords(coords, layout)
    assert keys.dtype == torch.int64
    assert bool((keys >= 0).all())
    assert torch.equal(unpack_coords(keys, layout), coords)
    assert keys.argsort(stable=True).tolist() == sorted(range(len(values)), key=values.__getitem__)


def test_key_widths_follow_the_extent() -> None:
    layout = key_layout(rows((0, 0, -4, 9), (0, 1, 3, 9)))
    assert layout == KeyLayout(lower=(0, 0, -4, 9), bits=(0, 1, 3, 0))
    wider = key_layout(rows((0, 0, -4, 9), (0, 1, 3, 9)), margin=3)
    assert wider.lower == (0, -3, -7, 6)
    assert wider.bits == (0, 3, 4, 3)


def test_keys_of_a_layout_with_a_margin_order_neighbours_too() -> None:
    coords = rows((0, 0, 0, 0), (0, 5, 5, 5), (1, 0, 0, 0))
    layout = key_layout(coords, margin=2)
    moved = coords + torch.tensor([0, -2, 2, -2], dtype=torch.int32)
    step = pack_coords(moved, layout) - pack_coords(coords, layout)
    assert len(set(step.tolist())) == 1
    assert torch.equal(unpack_coords(pack_coords(moved, layout), layout), moved)


WIDE = rows((0, -(2**30), -(2**30), -(2**30)), (0, 2**30, 2**30, 2**30))
DEEP = rows((0, -(2**19), -(2**19), -(2**19)), (15, 2**19, 2**19, 2**19))


@pytest.mark.parametrize("coords", [WIDE, DEEP], ids=["2^31 on three axes", "2^20 and 16 scans"])
def test_an_extent_past_the_keys_is_refused_with_the_axes_and_the_remedy(coords: Tensor) -> None:
    for call in (
        lambda: unique_coords(coords),
        lambda: lookup_coords(coords[:1], coords[1:]),
        lambda: key_layout(coords),
    ):
        with pytest.raises(ValueError, match=r"63 bits.*x \[.*voxel size"):
            call()


def test_the_last_extent_that_fits_and_the_first_that_does_not() -> None:
    fits = rows((0, 0, 0, 0), (7, 2**20 - 1, 2**20 - 1, 2**20 - 1))
    assert sum(key_layout(fits).bits) == 63
    check_unique(fits.flip(0))
    with pytest.raises(ValueError, match="64"):
        unique_coords(rows((0, 0, 0, 0), (8, 2**20 - 1, 2**20 - 1, 2**20 - 1)))


@pytest.mark.parametrize("dtype", [torch.int64, torch.int16, torch.float32, torch.bool])
def test_other_dtypes_are_refused(dtype: torch.dtype) -> None:
    bad = torch.zeros(3, 4, dtype=dtype)
    good = rows((0, 0, 0, 0))
    with pytest.raises(TypeError, match=r"unique_coords: coords must be \(N, 4\) int32"):
        unique_coords(bad)
    with pytest.raises(TypeError, match="lookup_coords: query must be"):
        lookup_coords(bad, good)
    with pytest.raises(TypeError, match="lookup_coords: coords must be"):
        lookup_coords(good, bad)


@pytest.mark.parametrize("shape", [(4,), (0,), (3, 3), (2, 5), (1, 2, 4), ()])
def test_other_shapes_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"unique_coords: coords must be \(N, 4\) int32.*got"):
        unique_coords(torch.zeros(shape, dtype=torch.int32))


def test_other_types_are_refused() -> None:
    with pytest.raises(TypeError, match="got ndarray"):
        unique_coords(np.zeros((2, 4), np.int32))  # type: ignore[arg-type]


def test_views_with_strides_give_what_their_copies_give() -> None:
    coords = oracles.random_coords(np.random.default_rng(0), 50, extent=5, batch=3, lower=-2)
    transposed = coords.t().contiguous().t()
    every_other = torch.stack([coords, -coords], 1).flatten(0, 1)[::2]
    columns = torch.cat([coords, coords], 1)[:, :4]
    for view in (transposed, every_other, columns):
        assert not view.is_contiguous()
        check_unique(view)
        assert torch.equal(lookup_coords(view, coords), torch.arange(len(coords)))
        assert torch.equal(lookup_coords(coords, view), torch.arange(len(coords)))


def test_inputs_are_left_alone() -> None:
    coords = CLOUDS["duplicates"].clone()
    unique_coords(coords)
    lookup_coords(coords, coords)
    assert torch.equal(coords, CLOUDS["duplicates"])


def test_a_point_outside_the_searched_extent_is_absent() -> None:
    coords = rows((0, 0, 0, 0), (0, 1, 1, 1))
    far = rows((0, 4096, 0, 0), (0, -1, 0, 0), (0, 0, 0, 2), (5, 0, 0, 0), (-1, 1, 1, 1))
    assert lookup_coords(far, coords).tolist() == [-1] * 5
    assert lookup_coords(far, rows()).tolist() == [-1] * 5
    assert lookup_coords(rows(), coords).tolist() == []


@pytest.mark.parametrize("count", [0, 1, 30])
def test_opcheck(count: int) -> None:
    coords = oracles.random_coords(np.random.default_rng(1), count, extent=3)
    coords = torch.cat([coords, coords[: count // 2]])
    keys = pack_coords(coords, key_layout(coords))
    for operator, arguments in (
        (torch.ops.pointlib.unique_coords.default, (coords,)),
        (torch.ops.pointlib.lookup_coords.default, (coords[::2], coords)),
        (torch.ops.pointlib.unique_keys.default, (keys,)),
        (torch.ops.pointlib.lookup_keys.default, (keys[::2], keys)),
    ):
        results = torch.library.opcheck(operator, arguments)
        assert set(results.values()) == {"SUCCESS"}
