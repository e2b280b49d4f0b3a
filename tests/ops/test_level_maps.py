"""The maps of all levels against those that are built one by one."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from pointlib.ops.kernel_map import ConvSpec, KernelMap, build_kernel_map
from pointlib.ops.level_maps import LevelMaps, build_level_maps
from tests import oracles

SAME, DOWN = ConvSpec(3), ConvSpec(2, 2)
CASES = [
    (SAME, DOWN, 5),
    (SAME, ConvSpec(3, (2, 1, 4), relation="minkowski"), 3),
    (ConvSpec((1, 5, 3)), ConvSpec((3, 1, 2), 3), 2),
    (ConvSpec(5), DOWN, 2),
    (SAME, DOWN, 1),
    (SAME, DOWN, 9),
]


def cloud(count: int, extent: int = 20) -> Tensor:
    rng = np.random.default_rng(count)
    return oracles.random_coords(rng, 3 * count, extent, batch=2, lower=-7)[:count]


def same_map(ours: KernelMap | None, theirs: KernelMap) -> None:
    assert ours is not None
    assert torch.equal(ours.in_index, theirs.in_index)
    assert torch.equal(ours.out_index, theirs.out_index)
    assert torch.equal(ours.offset_ptr, theirs.offset_ptr)
    sizes = ("num_in", "num_out", "identity_tap")
    assert all(getattr(ours, name) == getattr(theirs, name) for name in sizes)


def check(levels: list[LevelMaps], coords: Tensor, same: ConvSpec, down: ConvSpec) -> None:
    assert levels[0].coords is coords and levels[0].down is None
    for number, level in enumerate(levels):
        if number:
            coarse = build_kernel_map(coords, down)
            same_map(level.down, coarse.kernel_map)
            coords = coarse.coords
        assert torch.equal(level.coords, coords)
        same_map(level.same, build_kernel_map(coords, same).kernel_map)


@pytest.mark.parametrize(("same", "down", "levels"), CASES)
@pytest.mark.parametrize("count", [0, 1, 300])
def test_levels_are_those_built_one_by_one(
    same: ConvSpec, down: ConvSpec, levels: int, count: int
) -> None:
    coords = cloud(count)
    built = build_level_maps(coords, same, down, levels)
    assert len(built) == levels
    check(built, coords, same, down)


def test_opcheck() -> None:
    arguments = (cloud(40), 3, [3, 3, 3], [2, 2, 2], [2, 2, 2])
    results = torch.library.opcheck(torch.ops.pointlib.level_maps.default, arguments)
    assert set(results.values()) == {"SUCCESS"}


def test_refusals() -> None:
    coords = cloud(30)
    for same, down, levels in (
        (ConvSpec(2), DOWN, 2),
        (ConvSpec(3, dilation=2), DOWN, 2),
        (DOWN, DOWN, 2),
        (SAME, ConvSpec(3, 2, relation="spconv"), 2),
        (SAME, ConvSpec(2, 2, padding=1), 2),
        (SAME, DOWN, 0),
    ):
        with pytest.raises(ValueError, match="build_level_maps: same must be submanifold"):
            build_level_maps(coords, same, down, levels)
    with pytest.raises(ValueError, match="coords must be distinct, got duplicates"):
        build_level_maps(torch.cat([coords, coords[:1]]), SAME, DOWN, 2)
    with pytest.raises(TypeError, match="build_level_maps: coords must be"):
        build_level_maps(coords.long(), SAME, DOWN, 2)
