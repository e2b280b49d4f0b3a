"""SPVCNN's exchange between points and voxels."""

from __future__ import annotations

import pytest
import torch
from torch.autograd import gradcheck

from pointlib.nn import point_voxel
from pointlib.nn.point_voxel import initial_voxelize, point_to_voxel, voxel_to_point
from pointlib.ops.coords import unique_coords
from pointlib.tensor import PointTensor, SparseTensor


def points(count: int = 60, dtype: torch.dtype = torch.float32) -> PointTensor:
    xyz = (torch.rand(count, 3) - 0.5) * 8
    coords = torch.cat([torch.randint(0, 2, (count, 1)), xyz], 1)
    return PointTensor(torch.randn(count, 3, dtype=dtype, requires_grad=True), coords)


def cells(z: PointTensor, stride: float) -> torch.Tensor:
    return torch.cat([z.coords[:, :1], (z.coords[:, 1:] / stride).floor()], 1).int()


def test_initial_voxelize_averages_and_rescales() -> None:
    z = points()
    x, scaled = initial_voxelize(z, point_size=0.1, voxel_size=0.2, batch_size=4)
    assert torch.equal(scaled.coords[:, 1:], z.coords[:, 1:] * 0.1 / 0.2)
    assert torch.equal(scaled.coords[:, 0], z.coords[:, 0])
    assert torch.equal(x.coords, unique_coords(cells(scaled, 1)).coords)
    assert x.batch_size == 4 and x.stride == (1, 1, 1)
    for coord, feats in zip(x.coords, x.feats, strict=True):
        inside = (cells(scaled, 1) == coord).all(1)
        torch.testing.assert_close(feats, z.feats[inside].mean(0))
    same, unmoved = initial_voxelize(z)
    assert unmoved is z and len(same) <= len(z)


def test_points_that_miss_every_voxel_go_nowhere() -> None:
    z = PointTensor(
        torch.tensor([[1.0], [3.0], [100.0]]),
        torch.tensor([[0, 2.5, 0, 0], [0, 3.9, 1, 1], [0, 40, 0, 0]]),
    )
    voxels = SparseTensor(torch.zeros(2, 1), torch.tensor([[0, 0, 0, 0], [0, 1, 0, 0]]).int(), 2)
    assert point_to_voxel(voxels, z).feats.tolist() == [[0], [2]]
    assert voxel_to_point(voxels.with_feats(torch.ones(2, 1)), z).feats[2] == 0


@pytest.mark.parametrize("stride", [1, 4, (1, 2, 4)])
def test_point_to_voxel_averages(stride: int | tuple) -> None:
    z = points()
    at = cells(z, torch.tensor(stride))
    coords = unique_coords(at).coords[::2].contiguous()
    voxels = SparseTensor(torch.zeros(len(coords), 1), coords, stride)
    out = point_to_voxel(voxels, z)
    assert out.sites is voxels.sites
    for coord, feats in zip(coords, out.feats, strict=True):
        torch.testing.assert_close(feats, z.feats[(at == coord).all(1)].mean(0))


def test_voxel_to_point_reproduces_a_linear_function() -> None:
    grid = torch.cartesian_prod(*map(torch.arange, (2, 5, 5, 5))) - torch.tensor([0, 2, 2, 2])
    slopes = torch.tensor([1.0, -2.0, 0.5])
    voxels = SparseTensor((grid[:, 1:] * slopes).sum(1, keepdim=True), grid.int(), stride=2)
    z = points()
    expected = (z.coords[:, 1:] / 2 * slopes).sum(1, keepdim=True)
    torch.testing.assert_close(voxel_to_point(voxels, z).feats, expected, rtol=1e-5, atol=1e-5)
    nearest = voxel_to_point(voxels, z, nearest=True).feats
    torch.testing.assert_close(nearest, (cells(z, 2)[:, 1:] * slopes).sum(1, keepdim=True))


def test_found_once_for_each_set_of_voxels(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    search = point_voxel.trilinear_map
    monkeypatch.setattr(point_voxel, "trilinear_map", lambda *a: calls.append(a) or search(*a))
    z = points()
    coords = unique_coords(cells(z, 1)).coords
    first, second = (SparseTensor(torch.randn(len(coords), 2), coords) for _ in range(2))
    y = voxel_to_point(first, z)
    point_to_voxel(first.with_feats(first.feats + 1), y)
    voxel_to_point(first, z, nearest=True)
    assert len(calls) == 1
    voxel_to_point(
        second, z
    )  # as large and of the same stride, but other voxels as far as anyone knows
    assert len(calls) == 2


def test_gradients() -> None:
    z = points(12, torch.float64)
    coords = unique_coords(cells(z, 2)).coords
    voxels = SparseTensor(torch.randn(len(coords), 2).double().requires_grad_(), coords, 2)
    assert gradcheck(lambda f: voxel_to_point(voxels.with_feats(f), z).feats, voxels.feats)
    assert gradcheck(lambda f: point_to_voxel(voxels, z.with_feats(f)).feats, z.feats)
