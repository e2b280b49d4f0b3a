"""Pruning, cropping and the bird's-eye view."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.autograd import gradcheck

from pointlib.nn.sites import Crop, ToBEV, crop, prune, to_bev
from pointlib.tensor import SparseTensor
from tests import oracles


def voxels(count: int = 60) -> SparseTensor:
    coords = oracles.random_coords(np.random.default_rng(0), count, (5, 6, 4), batch=2)
    feats = torch.randn(len(coords), 3, dtype=torch.float64, requires_grad=True)
    return SparseTensor(feats, coords, stride=2, spatial_shape=(5, 6, 4), batch_size=3)


def test_prune_keeps_order_and_metadata() -> None:
    x = voxels()
    mask = x.feats[:, 0] > 0
    out = prune(x, mask)
    assert torch.equal(out.feats, x.feats[mask]) and torch.equal(out.coords, x.coords[mask])
    assert (out.stride, out.spatial_shape, out.batch_size) == ((2, 2, 2), (5, 6, 4), 3)
    assert len(prune(x, torch.zeros(len(x), dtype=torch.bool))) == 0
    with pytest.raises(TypeError, match="mask must be bool"):
        prune(x, mask.int())
    with pytest.raises(ValueError, match="one entry per voxel"):
        prune(x, mask[1:])


def test_crop_looks_at_space_not_at_the_batch() -> None:
    x = voxels()
    out = crop(x, (0, 2, 1), (3, 6, 4))
    kept = [c for c in x.coords.tolist() if c[1] < 3 and c[2] >= 2 and c[3] >= 1]
    assert out.coords.tolist() == kept and {c[0] for c in kept} == {0, 1}
    assert torch.equal(Crop(maximum=(3, 6, 4))(x).coords, crop(x, None, (3, 6, 4)).coords)
    assert len(crop(x)) == len(x)
    with pytest.raises(ValueError, match="minimum must be"):
        crop(x, (1, 2))


def test_stacked_view_has_z_inside_the_channels() -> None:
    x = voxels()
    view = to_bev(x)
    assert view.shape == (3, 12, 5, 6)
    for (b, i, j, k), feats in zip(x.coords.tolist(), x.feats, strict=True):
        assert torch.equal(view[b, k::4, i, j], feats)
    assert (view != 0).sum() == x.feats.numel()


@pytest.mark.parametrize("mode", ["sum", "mean", "max"])
def test_reduced_views(mode: str) -> None:
    x = voxels()
    view = ToBEV(mode)(x)  # type: ignore[arg-type]
    assert view.shape == (3, 3, 5, 6)
    for b, i, j in np.ndindex(3, 5, 6):
        column = (x.coords[:, :3] == torch.tensor([b, i, j])).all(1)
        expected = torch.zeros(3, dtype=torch.float64)
        if column.any():
            members = x.feats[column]
            expected = members.amax(0) if mode == "max" else getattr(members, mode)(0)
        torch.testing.assert_close(view[b, :, i, j], expected)


@pytest.mark.parametrize("mode", ["stack", "sum", "mean", "max"])
def test_view_gradients_and_refusals(mode: str) -> None:
    x = voxels(8)
    assert gradcheck(lambda f: to_bev(x.with_feats(f), mode), x.feats)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="voxels must lie in"):
        to_bev(x, mode, (2, 2, 2))  # type: ignore[arg-type]
    unbounded = SparseTensor(x.feats, x.coords)
    with pytest.raises(ValueError, match="spatial_shape must be known"):
        to_bev(unbounded, mode)  # type: ignore[arg-type]
    empty = SparseTensor(x.feats[:0], x.coords[:0], 1, (5, 6, 4), 2)
    assert to_bev(empty, mode).abs().sum() == 0  # type: ignore[arg-type]


def test_unknown_mode() -> None:
    with pytest.raises(ValueError, match=r"mode must be one of .* got 'min'"):
        to_bev(voxels(), "min")  # type: ignore[arg-type]
