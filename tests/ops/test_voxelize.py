"""Voxelize, devoxelize and trilinear maps against dictionaries and loops over points."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck
from torch.library import opcheck

from pointlib.ops.coords import unique_coords
from pointlib.ops.voxelize import devoxelize, trilinear_map, voxelize
from tests.tolerances import assert_close

OPS = torch.ops.pointlib
CORNERS = list(itertools.product((0, 1), repeat=3))


def cloud(count: int = 200, span: float = 6.0, dtype: torch.dtype = torch.float32) -> Tensor:
    """Points `[batch, x, y, z]` around the origin, two batch entries."""
    xyz = (torch.rand(count, 3, dtype=dtype) - 0.5) * span
    return torch.cat([torch.randint(0, 2, (count, 1)).to(dtype), xyz], 1)


def trilinear_by_loop(points: Tensor, coords: Tensor) -> tuple[Tensor, Tensor]:
    """Corner rows and renormalised weights of each point, in float64."""
    rows = {tuple(c): r for r, c in enumerate(coords.tolist())}
    index = torch.full((len(points), 8), -1)
    weights = torch.zeros(len(points), 8, dtype=torch.float64)
    for n, (b, *xyz) in enumerate(points.double().tolist()):
        base = [math.floor(v) for v in xyz]
        for k, corner in enumerate(CORNERS):
            weight = 1.0
            for v, low, up in zip(xyz, base, corner, strict=True):
                weight *= v - low if up else 1 - (v - low)
            cell = (int(b), *(low + up for low, up in zip(base, corner, strict=True)))
            if cell in rows and (weight or k == 0):
                index[n, k], weights[n, k] = rows[cell], weight
    return index, weights / (weights.sum(1, keepdim=True) + 1e-8)


@pytest.mark.parametrize("reduce", ["mean", "sum", "max"])
@pytest.mark.parametrize("size", [0.7, (0.5, 1.0, 2.0)])
def test_voxelize_groups_as_a_dictionary_does(size: float | tuple, reduce: str) -> None:
    points, feats = cloud(), torch.randn(200, 3)
    coords, reduced, inverse = voxelize(points, feats, size, reduce)
    edges = torch.tensor(size).expand(3)
    groups: dict[tuple[int, ...], list[int]] = {}
    for n, point in enumerate(points):
        cell = (point[1:] / edges).floor().int().tolist()
        groups.setdefault((int(point[0]), *cell), []).append(n)
    assert [tuple(c) for c in coords.tolist()] == sorted(groups)
    for row, cell in enumerate(sorted(groups)):
        members = feats[groups[cell]].double()
        expected = {"mean": members.mean, "sum": members.sum, "max": members.amax}[reduce](0)
        assert_close(reduced[row], expected)
        assert (inverse[groups[cell]] == row).all()


def test_range_drops_points_and_moves_the_origin() -> None:
    points = torch.tensor([[0, -1.0, 0, 0], [0, 0.9, 0, 0], [0, 1.0, 0, 0], [1, -1.01, 0, 0]])
    feats = torch.arange(4.0)[:, None]
    coords, mean, inverse = voxelize(points, feats, 0.5, point_cloud_range=(-1, -1, -1, 1, 1, 1))
    assert coords.tolist() == [[0, 0, 2, 2], [0, 3, 2, 2]]
    assert mean.tolist() == [[0], [1]]
    assert inverse.tolist() == [0, 1, -1, -1]
    nothing = voxelize(points, feats, 0.5, point_cloud_range=(5, 5, 5, 6, 6, 6))
    assert nothing.coords.shape == (0, 4) and nothing.inverse.tolist() == [-1] * 4


@pytest.mark.parametrize("reduce", ["mean", "sum", "max"])
def test_voxelize_is_differentiable_in_feats(reduce: str) -> None:
    points, feats = cloud(20, 2.0), torch.randn(20, 2, dtype=torch.float64, requires_grad=True)
    bounds = (-0.9, -0.9, -0.9, 0.9, 0.9, 0.9)
    assert gradcheck(lambda f: voxelize(points, f, 0.5, reduce, bounds).feats, feats)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_trilinear_map_as_a_loop_does(dtype: torch.dtype) -> None:
    points = cloud(300, 5.0, dtype)
    points[:40, 1] = points[:40, 1].round()
    points[:20, 1:] = points[:20, 1:].round()
    coords = unique_coords(cloud(150, 5.0).floor().int()).coords
    coords = coords[torch.randperm(len(coords))]
    corners, weights = trilinear_map(points, coords)
    expected, expected_weights = trilinear_by_loop(points, coords)
    assert weights.dtype == dtype
    assert torch.equal(corners, expected)
    torch.testing.assert_close(weights.double(), expected_weights, rtol=1e-4, atol=1e-6)


def test_lattice_points_take_one_corner_with_the_result_of_the_general_way() -> None:
    coords = unique_coords(cloud(100, 5.0).floor().int()).coords
    points = torch.cat([coords.float(), coords.float() + torch.tensor([0, 9, 0, 0])])
    general = trilinear_map(torch.cat([points, torch.full((1, 4), 0.5)]), coords)
    for fast, slow in zip(trilinear_map(points, coords), general, strict=True):
        assert torch.equal(fast, slow[:-1])
    feats = torch.randn(len(coords), 4)
    back = devoxelize(feats, *trilinear_map(points, coords))
    assert torch.equal(back[: len(coords)], feats)


def test_voxels_of_another_batch_entry_are_not_corners() -> None:
    coords = torch.tensor([[1, 0, 0, 0]], dtype=torch.int32)
    corners, weights = trilinear_map(torch.tensor([[0, 0.2, 0.2, 0.2], [1, 0.2, 0.2, 0.2]]), coords)
    assert corners.tolist() == [[-1] * 8, [0] + [-1] * 7]
    assert weights.sum(1).tolist() == [0, 1]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_devoxelize_as_a_loop_does(dtype: torch.dtype) -> None:
    feats = torch.randn(30, 5).to(dtype)
    index, weights = torch.randint(-1, 30, (50, 8)), torch.rand(50, 8)
    expected = torch.zeros(50, 5, dtype=torch.float64)
    for n, k in itertools.product(range(50), range(8)):
        if index[n, k] >= 0:
            expected[n] += weights[n, k].double() * feats[index[n, k]].double()
    assert_close(devoxelize(feats, index, weights), expected)
    nearest = devoxelize(feats, index[:, 0])
    assert torch.equal(nearest, torch.where(index[:, :1] >= 0, feats[index[:, 0]], 0))


def test_devoxelize_gradients() -> None:
    index = torch.randint(-1, 6, (5, 4))
    feats = torch.randn(6, 2, dtype=torch.float64, requires_grad=True)
    weights = torch.rand(5, 4, dtype=torch.float64).requires_grad_()
    assert gradcheck(lambda f, w: devoxelize(f, index, w), (feats, weights))
    assert gradgradcheck(lambda f, w: devoxelize(f, index, w), (feats, weights))


def test_opcheck() -> None:
    index, weights = torch.randint(-1, 6, (5, 8)), torch.rand(5, 8, requires_grad=True)
    opcheck(OPS.devoxelize, (torch.randn(6, 2, requires_grad=True), index, weights))
    grad = torch.randn(5, 2, requires_grad=True)
    opcheck(OPS.devoxelize_transpose, (grad, index, weights, 6))
    opcheck(OPS.trilinear_map, (torch.rand(5, 4), torch.zeros(1, 4).int()))


def test_a_voxel_without_weight_does_not_reach_a_point() -> None:
    feats = torch.tensor([[float("nan")], [2.0]])
    out = devoxelize(feats, torch.tensor([[0, 1]]), torch.tensor([[0.0, 1.0]]))
    assert out.tolist() == [[2.0]]


def test_empty_and_single() -> None:
    none = torch.empty(0, 4)
    voxels = voxelize(none, torch.empty(0, 2), 0.1)
    assert voxels.coords.shape == (0, 4) and voxels.feats.shape == (0, 2)
    assert trilinear_map(none, voxels.coords).corners.shape == (0, 8)
    point = torch.tensor([[0, 0.5, 0.5, 0.5]])
    corners, weights = trilinear_map(point, voxels.coords)
    assert corners.tolist() == [[-1] * 8] and weights.tolist() == [[0] * 8]
    assert devoxelize(voxels.feats, corners, weights).tolist() == [[0, 0]]
    alone = trilinear_map(point, torch.zeros(1, 4).int()).weights
    torch.testing.assert_close(alone, torch.eye(1, 8))
    assert voxelize(point, point, (1, 1, 1)).coords.tolist() == [[0, 0, 0, 0]]


def test_non_contiguous_input() -> None:
    points, feats = cloud(50).t().contiguous().t(), torch.randn(50, 6)[:, ::2]
    plain = voxelize(points.contiguous(), feats.contiguous(), 0.5)
    for strided, expected in zip(voxelize(points, feats, 0.5), plain, strict=True):
        assert torch.equal(strided, expected)


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"points": torch.zeros(2, 3)}, ValueError, r"points must be \(N, 4\).*got \(2, 3\)"),
        ({"points": torch.zeros(2, 4).int()}, TypeError, "points must be .* floating"),
        ({"points": torch.zeros(2, 4).half()}, ValueError, "float32 or float64.*float16"),
        ({"points": torch.tensor([[0, 0, 0, 0], [0, math.nan, 0, 0]])}, ValueError, "row 1"),
        ({"points": torch.full((2, 4), 1e12)}, ValueError, "fit int32.*1e\\+13"),
        ({"feats": torch.zeros(3, 1)}, ValueError, "one row per point"),
        ({"voxel_size": 0}, ValueError, "voxel_size must be positive"),
        ({"voxel_size": (1, 1)}, ValueError, "voxel_size must be positive"),
        ({"reduce": "median"}, ValueError, "reduce must be 'mean', 'sum' or 'max'"),
        ({"point_cloud_range": (0, 0, 0)}, ValueError, "point_cloud_range must be"),
        ({"point_cloud_range": (0, 0, 0, 1, 1, 0)}, ValueError, "minimum below its maximum"),
    ],
)
def test_voxelize_refuses(change: dict, error: type[Exception], words: str) -> None:
    arguments = {"points": torch.zeros(2, 4), "feats": torch.zeros(2, 1), "voxel_size": 0.1}
    with pytest.raises(error, match=words):
        voxelize(**{**arguments, **change})


def test_devoxelize_refuses() -> None:
    feats, index = torch.zeros(3, 1), torch.zeros(2, 8, dtype=torch.int64)
    with pytest.raises(ValueError, match="weights must have the shape of index"):
        devoxelize(feats, index, torch.zeros(2, 7))
    with pytest.raises(TypeError, match="int64 tensor, got torch"):
        devoxelize(feats, index.int(), torch.zeros(2, 8))
    with pytest.raises(ValueError, match=r"devoxelize: index must be in \[0, 3\).*got 3"):
        devoxelize(feats, index + 3, torch.zeros(2, 8))
    with pytest.raises(ValueError, match="finite"):
        trilinear_map(torch.full((1, 4), math.inf), torch.zeros(1, 4).int())
