"""Groups of windows against the definition of the order, written with loops, and FlatFormer's published key."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck

from pointlib.ops.windows import SWEEPS, Sweep, group_rows, ungroup_rows, window_groups
from tests.oracles import random_coords

EXTENT = 40


def published_key(coords: Tensor, window: tuple[int, int], sweep: Sweep) -> list[int]:
    """What the authors' code sorts by, for coordinates >= 0: one number, with alternating signs."""
    wx, wy = window
    shift_x, shift_y = (wx // 2, wy // 2) if sweep.shifted else (0, 0)
    rows_of_windows = 2 * (EXTENT // min(window) + 2)
    keys = []
    for b, x, y, _ in coords.tolist():
        (along, across), (w_along, w_across) = (x + shift_x, y + shift_y), (wx, wy)
        if sweep.axis == "y":
            (along, across), (w_along, w_across) = (across, along), (w_across, w_along)
        sign, column = (-1) ** (across // w_across), along % w_along
        window_number = rows_of_windows * (across // w_across) + sign * (along // w_along)
        inside = 2 * w_across * column + (-1) ** column * (across % w_across)
        keys.append(window_number * 4 * w_along * w_across + sign * inside + b * 10**8)
    return keys


@pytest.mark.parametrize("sweep", SWEEPS)
@pytest.mark.parametrize("window", [(13, 13), (4, 7), (1, 5)])
def test_order_is_the_published_one(sweep: Sweep, window: tuple[int, int]) -> None:
    coords = random_coords(np.random.default_rng(0), 500, (EXTENT, EXTENT, 1), batch=3)
    (groups,) = window_groups(coords, window, 1, 3, [sweep])
    assert (
        groups.rows.flatten().tolist() == np.argsort(published_key(coords, window, sweep)).tolist()
    )


def test_neighbours_in_a_full_plane_lie_side_by_side() -> None:
    axis = torch.arange(12)
    xy = torch.cartesian_prod(axis, axis)
    coords = torch.zeros(144, 4, dtype=torch.int32)
    coords[:, 1:3] = xy[torch.randperm(144)] - torch.tensor([6, 8])
    for groups in window_groups(coords, (3, 4), 12, 1):
        steps = coords[groups.rows.flatten(), 1:3].diff(dim=0).abs().sum(1)
        assert (steps == 1).float().mean() > 0.85
    windows = coords[window_groups(coords, (3, 4), 12, 1)[0].rows, 1:3]
    assert windows.div(torch.tensor([3, 4]), rounding_mode="floor").diff(dim=1).eq(0).all()


def padded_by_loop(order: list[int], size: int) -> list[int]:
    """Places of one sample's groups: the tail repeats what stands one group before, or all from the start."""
    places, total = list(order), -(-len(order) // size) * size
    while len(places) < total:
        places.append(places[-size] if len(order) >= size else order[len(places) % len(order)])
    return places


@pytest.mark.parametrize("size", [1, 7, 64])
@pytest.mark.parametrize("counts", [(20, 0, 7, 8), (0, 0), (1,), (70, 5), ()])
def test_groups_have_one_size_and_one_sample(counts: tuple[int, ...], size: int) -> None:
    rows = []
    for b, count in enumerate(counts):
        cells = torch.randperm(400)[:count]
        fields = (torch.full_like(cells, b), cells // 20 - 10, cells % 20, cells % 3)
        rows.append(torch.stack(fields, 1))
    coords = torch.cat([torch.empty(0, 4, dtype=torch.int64), *rows]).int()
    coords = coords[torch.randperm(len(coords))]
    whole = window_groups(coords, (5, 4), 1, len(counts))
    for groups, ordered in zip(
        window_groups(coords, (5, 4), size, len(counts)), whole, strict=True
    ):
        order, expected = ordered.rows.flatten().tolist(), []
        for b in range(len(counts)):
            expected += padded_by_loop([row for row in order if coords[row, 0] == b], size)
        assert groups.rows.shape == (len(expected) // size, size)
        assert groups.rows.flatten().tolist() == expected
        assert groups.rows.flatten()[groups.places].equal(torch.arange(len(coords)))
        assert groups.places.sort()[0].diff().gt(0).all()


def test_rows_of_one_place_keep_their_order() -> None:
    coords = torch.zeros(6, 4, dtype=torch.int32)
    coords[:, 3] = torch.tensor([5, 1, 9, 0, 2, 7])
    assert window_groups(coords, (3, 3), 3, 1)[0].rows.tolist() == [[0, 1, 2], [3, 4, 5]]


def test_grouping_there_and_back() -> None:
    coords = random_coords(np.random.default_rng(0), 30, 9, batch=2)
    feats = torch.randn(len(coords), 4, dtype=torch.float64, requires_grad=True)
    groups = window_groups(coords, (3, 3), 8, 2)[1]
    grouped = group_rows(feats, groups)
    assert grouped.shape == (len(groups.rows), 8, 4)
    assert grouped.equal(feats[groups.rows])
    assert ungroup_rows(grouped, groups).equal(feats)
    assert gradcheck(lambda f: group_rows(f, groups), feats)
    assert gradcheck(lambda g: ungroup_rows(g, groups), grouped.detach().requires_grad_())


def test_far_coordinates_are_sorted_by_wide_keys() -> None:
    coords = torch.tensor([[0, 2**31 - 1, 0, 0], [0, -(2**31), 5, 0], [0, 3, 9, 0]]).int()
    (groups,) = window_groups(coords, (13, 13), 1, 1, [Sweep("x", True)])
    assert groups.rows.flatten().tolist() == [1, 0, 2]


@pytest.mark.gpu
def test_a_gpu_groups_alike() -> None:
    coords = random_coords(np.random.default_rng(0), 3000, (90, 90, 2), batch=4, lower=-20)
    there = window_groups(coords.cuda(), (13, 13), 69, 4)
    for ours, theirs in zip(there, window_groups(coords, (13, 13), 69, 4), strict=True):
        assert ours.rows.cpu().equal(theirs.rows)
        assert ours.places.cpu().equal(theirs.places)
    feats = torch.randn(len(coords), 8).cuda()
    assert ungroup_rows(group_rows(feats, there[0]), there[0]).equal(feats)


COORDS = torch.zeros(3, 4, dtype=torch.int32)


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"coords": COORDS.long()}, TypeError, "coords must be .*int32"),
        ({"coords": COORDS[:, :3]}, ValueError, r"coords must be .*\(3, 3\)"),
        ({"window_shape": (3, 0)}, ValueError, r"window_shape must be .* got \(3, 0\)"),
        ({"window_shape": (3, 3, 1)}, ValueError, r"window_shape must be .* got \(3, 3, 1\)"),
        ({"group_size": 0}, ValueError, r"group_size must be .* got 0"),
        ({"batch_size": 0}, ValueError, r"batch indices in \[0, 0\), got 0"),
        ({"coords": COORDS + 2}, ValueError, r"batch indices in \[0, 1\), got 2"),
        ({"coords": COORDS - 1}, ValueError, r"batch indices in \[0, 1\), got -1"),
        (
            {"sweeps": [Sweep("z", False)]},
            ValueError,
            "axis of a sweep must be 'x' or 'y', got 'z'",
        ),
    ],
)
def test_refuses(change: dict, error: type[Exception], words: str) -> None:
    arguments = {
        "coords": COORDS,
        "window_shape": (3, 3),
        "group_size": 2,
        "batch_size": 1,
        **change,
    }
    with pytest.raises(error, match=words):
        window_groups(**arguments)


def test_refuses_more_windows_than_a_key_holds() -> None:
    coords = torch.tensor([[0, 2**31 - 1, 2**31 - 1, 0], [0, -(2**31), -(2**31), 0]]).int()
    with pytest.raises(ValueError, match=r"coords must span fewer than 2\^63"):
        window_groups(coords, (1, 1), 2, 1)
