"""Maps that are built before they are asked for: the same ones, and no others are built then."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

import pointlib.sites
from pointlib.models.minkunet import MinkUNet
from pointlib.models.spvcnn import SPVCNN
from pointlib.ops.kernel_map import ConvSpec
from pointlib.sites import SiteMaps, Sites
from pointlib.tensor import SparseTensor
from tests import oracles

SAME, DOWN = ConvSpec(3), ConvSpec(2, 2)


def scan(count: int = 300) -> SparseTensor:
    coords = oracles.random_coords(np.random.default_rng(0), count, 30, batch=2)
    return SparseTensor(torch.randn(len(coords), 4), coords)


def test_prepared_maps_are_found() -> None:
    coords = scan().coords
    early, late = (SiteMaps(Sites(coords, spatial_shape=(30, 30, 30))) for _ in range(2))
    ours, theirs = early.members[0], late.members[0]
    early.prepare(ours, SAME, DOWN, 3)
    assert len(early.members) == 3
    for level in range(3):
        for spec in (SAME, DOWN)[: 2 if level < 2 else 1]:
            (a, found), (b, wanted) = early.conv(ours, spec), late.conv(theirs, spec)
            assert (a.number, a.stride, a.spatial_shape) == (b.number, b.stride, b.spatial_shape)
            assert torch.equal(a.coords, b.coords)
            assert torch.equal(found.in_index, wanted.in_index)
            assert early.conv(ours, spec)[1] is found
        if level < 2:
            assert early.inverse(a, DOWN)[0] is ours
        ours, theirs = a, b
    assert len(early.members) == 3
    # Another kernel leads to the voxels that are there.
    assert early.conv(early.members[0], ConvSpec(3, 2))[0] is early.members[1]


def test_maps_that_are_there_stay() -> None:
    maps = SiteMaps(scan().sites)
    root = maps.members[0]
    coarse, kernel_map = maps.conv(root, DOWN)
    maps.prepare(root, SAME, DOWN, 3)
    assert len(maps.members) == 2 and maps.conv(root, DOWN)[1] is kernel_map
    maps.prepare(coarse, SAME, DOWN, 2)
    assert len(maps.members) == 3


@pytest.mark.parametrize("network", [MinkUNet, SPVCNN])
def test_networks_prepare_all_their_maps(
    network: type[MinkUNet], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, x = network(cr=0.125).eval(), scan()
    built: list[ConvSpec] = []
    real = pointlib.sites.build_kernel_map

    def build(coords: Any, spec: ConvSpec, *args: Any) -> Any:
        built.append(spec)
        return real(coords, spec, *args)

    monkeypatch.setattr(pointlib.sites, "build_kernel_map", build)
    with torch.inference_mode():
        logits = model(x)
        assert not built
        monkeypatch.setattr(SiteMaps, "prepare", lambda *args, **kwargs: None)
        again = SparseTensor(x.feats, x.coords)
        assert torch.equal(model(again), logits)
    assert len(built) == 9
