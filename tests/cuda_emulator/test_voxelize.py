"""Devoxelization as on a GPU against the CPU operators, and the public functions of voxelize over it."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from pointlib.ops._cpu import voxelize as cpu
from pointlib.ops._cuda import coords, scatter
from pointlib.ops._cuda import voxelize as cuda
from pointlib.ops.coords import unique_coords
from pointlib.ops.voxelize import devoxelize, trilinear_map, voxelize
from tests.cuda_emulator.operators import ANY_ARCHITECTURE, OnDevice
from tests.tolerances import assert_close

pytestmark = ANY_ARCHITECTURE


def corners_of(points: int, corners: int, voxels: int) -> tuple[Tensor, Tensor]:
    """Index with absent voxels, and weights with zeros."""
    index, weights = torch.randint(-1, voxels, (points, corners)), torch.rand(points, corners)
    weights[torch.rand(points, corners) < 0.2] = 0
    return index, weights


@pytest.mark.parametrize("channels", [1, 3, 4, 17, 64, 257])
@pytest.mark.parametrize("points", [0, 1, 255, 256, 257])
def test_sizes(points: int, channels: int) -> None:
    feats, (index, weights) = torch.randn(40, channels), corners_of(points, 8, 40)
    oracle = cpu.devoxelize(feats.double(), index, weights.double())
    assert_close(cuda.devoxelize(feats, index, weights), oracle)
    grad = torch.randn(points, channels)
    oracle = cpu.devoxelize_transpose(grad.double(), index, weights.double(), 40)
    assert_close(cuda.devoxelize_transpose(grad, index, weights, 40), oracle)


@pytest.mark.parametrize("corners", [0, 1, 5, 70])
@pytest.mark.parametrize(
    ("dtype", "channels"),
    [(torch.float64, 6), (torch.float16, 24), (torch.bfloat16, 7), (torch.float32, 8)],
)
def test_dtypes(dtype: torch.dtype, channels: int, corners: int) -> None:
    feats, (index, weights) = torch.randn(40, channels).to(dtype), corners_of(60, corners, 40)
    for factors in (weights, weights.double(), weights.half()):
        ours = cuda.devoxelize(feats, index, factors)
        assert ours.dtype == dtype
        assert_close(ours, cpu.devoxelize(feats.double(), index, factors.double()))


def test_transpose_of_weights_of_every_dtype() -> None:
    grad, (index, weights) = torch.randn(60, 4), corners_of(60, 8, 40)
    for factors in (weights, weights.double(), weights.half()):
        ours = cuda.devoxelize_transpose(grad, index, factors, 40)
        assert ours.dtype == torch.float32
        oracle = cpu.devoxelize_transpose(grad.double(), index, factors.double(), 40)
        assert_close(ours, oracle)


def test_every_point_in_one_voxel() -> None:
    grad, index = torch.randn(700, 4), torch.zeros(700, 8, dtype=torch.int64)
    weights = torch.rand(700, 8)
    oracle = cpu.devoxelize_transpose(grad.double(), index, weights.double(), 2)
    assert_close(cuda.devoxelize_transpose(grad, index, weights, 2), oracle)


def test_a_voxel_of_no_weight_may_hold_anything() -> None:
    feats = torch.tensor([[1.0, 2, 3, 4], [float("nan")] * 4])
    index, weights = torch.tensor([[0, 1], [1, -1]]), torch.tensor([[0.5, 0.0], [0.0, 1.0]])
    assert cuda.devoxelize(feats, index, weights).tolist() == [[0.5, 1, 1.5, 2], [0] * 4]
    assert cuda.devoxelize_transpose(feats, index, weights, 2)[0].tolist() == [0.5, 1, 1.5, 2]


def test_refuses_voxels_that_do_not_exist() -> None:
    index, weights = torch.tensor([[0, 2]]), torch.ones(1, 2)
    with pytest.raises(RuntimeError, match=r"devoxelize: index must be in \[0, 2\), or -1"):
        cuda.devoxelize(torch.randn(2, 4), index, weights)
    with pytest.raises(RuntimeError, match=r"devoxelize_transpose: index must be in \[0, 2\)"):
        cuda.devoxelize_transpose(torch.randn(1, 4), index, weights, 2)


# The public functions


def on_device() -> OnDevice:
    return OnDevice(
        scatter_sum=scatter.scatter_sum,
        scatter_mean=scatter.scatter_mean,
        scatter_max=scatter.scatter_max,
        gather_rows=scatter.gather_rows,
        scatter_elements=scatter.scatter_elements,
        devoxelize=cuda.devoxelize,
        devoxelize_transpose=cuda.devoxelize_transpose,
        unique_coords=coords.unique_coords,
        lookup_coords=coords.lookup_coords,
        trilinear_map=cuda.trilinear_map,
    )


def scan(points: int) -> Tensor:
    """`[batch, x, y, z]` of two scans, some points in one voxel."""
    return torch.cat([torch.randint(0, 2, (points, 1)), torch.randn(points, 3) * 2], 1)


@pytest.mark.parametrize("bounds", [None, (-2.0, -2.0, -1.0, 2.0, 2.0, 1.0)])
@pytest.mark.parametrize("reduce", ["mean", "sum", "max"])
def test_voxelize(reduce: str, bounds: tuple[float, ...] | None) -> None:
    points = scan(500)
    here, there = (points.clone().requires_grad_() for _ in range(2))
    with on_device() as mode:
        ours = voxelize(points, here, 0.5, reduce, bounds)  # type: ignore[arg-type]
        ours.feats.square().sum().backward()
    assert mode.calls["unique_coords"] == 1
    theirs = voxelize(points, there, 0.5, reduce, bounds)  # type: ignore[arg-type]
    theirs.feats.square().sum().backward()
    assert torch.equal(ours.coords, theirs.coords)
    assert torch.equal(ours.inverse, theirs.inverse)
    assert_close(ours.feats, theirs.feats)
    assert here.grad is not None and there.grad is not None
    assert_close(here.grad, there.grad)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("count", [0, 1, 63, 64, 65, 300])
def test_corners_of_points(count: int, dtype: torch.dtype) -> None:
    """On a lattice in one axis, beyond the voxels, and of voxels in any order."""
    points = scan(count).to(dtype)
    points[: count // 2, 2] = points[: count // 2, 2].round()
    points[: count // 4, 3] *= 1e4
    voxels = unique_coords(scan(200).floor().int()).coords
    for sites in (voxels, voxels.flip(0), voxels[:0]):
        ours = cuda.trilinear_map(points, sites)
        theirs = trilinear_map(points, sites)
        assert torch.equal(ours[0], theirs.corners)
        assert_close(ours[1], theirs.weights)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), 2.0**31, -(2.0**31) - 512])
def test_refuses_points_that_have_no_voxel(bad: float) -> None:
    points, voxels = torch.zeros(3, 4), torch.zeros(1, 4).int()
    points[1, 2] = bad
    with pytest.raises(RuntimeError, match="trilinear_map: points must be finite"):
        cuda.trilinear_map(points, voxels)


def test_refuses_voxels_that_come_twice() -> None:
    with pytest.raises(RuntimeError, match="coords be distinct"):
        cuda.trilinear_map(torch.zeros(3, 4), torch.zeros(2, 4).int())


@pytest.mark.parametrize("lattice", [False, True], ids=["between voxels", "on voxels"])
def test_trilinear_interpolation(lattice: bool) -> None:
    points = scan(300).round() if lattice else scan(300)
    voxels = voxelize(points[::2], points[::2], 1.0).coords
    feats, weights = torch.randn(len(voxels), 4), []
    results = []
    for mode in (on_device(), None):
        values = feats.clone().requires_grad_()
        if mode is None:
            found = trilinear_map(points, voxels)
            out = devoxelize(values, *found)
            out.square().sum().backward()
        else:
            with mode:
                found = trilinear_map(points, voxels)
                out = devoxelize(values, *found)
                out.square().sum().backward()
            assert mode.calls["devoxelize"] == mode.calls["devoxelize_transpose"] == 1
        weights.append(found)
        results.append((out, values.grad))
    assert torch.equal(weights[0].corners, weights[1].corners)
    assert_close(weights[0].weights, weights[1].weights)
    for ours, theirs in zip(*results, strict=True):
        assert_close(ours, theirs)
