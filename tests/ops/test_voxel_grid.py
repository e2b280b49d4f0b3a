"""Dense voxel grids against loops over points and torch's own interpolation."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck
from torch.library import opcheck

from pointlib.ops.voxel_grid import avg_voxelize, trilinear_devoxelize
from tests.tolerances import assert_close

OPS = torch.ops.pointlib
DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]
COUNTS = [0, 1, 40, 333]


def average_by_loop(feats: Tensor, cells: Tensor, resolution: int) -> Tensor:
    """Float64 average, one voxel at a time."""
    grid = torch.zeros(*feats.shape[:2], *[resolution] * 3, dtype=torch.float64)
    for b, cell in itertools.product(
        range(len(feats)), itertools.product(range(resolution), repeat=3)
    ):
        members = (cells[b] == torch.tensor(cell)[:, None]).all(0)
        if members.any():
            grid[(b, slice(None), *cell)] = feats[b].double()[:, members].mean(1)
    return grid


def interpolate_by_loop(grid: Tensor, coords: Tensor) -> Tensor:
    """Float64 trilinear interpolation with zeros outside, one point and corner at a time."""
    resolution = grid.shape[2]
    out = torch.zeros(*grid.shape[:2], coords.shape[2], dtype=torch.float64)
    for b, n in itertools.product(range(len(grid)), range(coords.shape[2])):
        x, y, z = coords[b, :, n].tolist()
        for i, j, k in itertools.product(*((math.floor(v), math.floor(v) + 1) for v in (x, y, z))):
            if all(0 <= v < resolution for v in (i, j, k)):
                weight = (1 - abs(x - i)) * (1 - abs(y - j)) * (1 - abs(z - k))
                out[b, :, n] += weight * grid[b, :, i, j, k].double()
    return out


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("count", COUNTS)
def test_averages_as_a_loop_does(count: int, dtype: torch.dtype) -> None:
    feats = torch.randn(2, 5, count, dtype=torch.float64).to(dtype)
    cells = torch.randint(-1, 5, (2, 3, count), dtype=torch.int32)  # some outside of 4
    grid = avg_voxelize(feats, cells, 4)
    assert grid.dtype == dtype
    assert_close(grid, average_by_loop(feats, cells, 4))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("count", COUNTS)
def test_interpolates_as_a_loop_does(count: int, dtype: torch.dtype) -> None:
    grid = torch.randn(2, 5, 4, 4, 4, dtype=torch.float64).to(dtype)
    coords = torch.rand(2, 3, count) * 6 - 1.5  # some outside
    coords[:, :, ::3] = coords[:, :, ::3].round()
    out = trilinear_devoxelize(grid, coords)
    assert out.dtype == dtype
    weights = torch.float32  # of float64 features too, as coordinates are
    precision = weights if dtype == torch.float64 else dtype
    assert_close(out, interpolate_by_loop(grid, coords), precision)


def test_interpolates_as_grid_sample_does() -> None:
    grid, coords = torch.randn(2, 5, 6, 6, 6), torch.rand(2, 3, 50) * 7 - 1
    places = (coords.transpose(1, 2).flip(2) / 5 * 2 - 1)[:, :, None, None]
    expected = torch.nn.functional.grid_sample(grid.double(), places.double(), align_corners=True)
    torch.testing.assert_close(
        trilinear_devoxelize(grid, coords).double(), expected[..., 0, 0], rtol=1e-4, atol=1e-5
    )


def test_gradients() -> None:
    feats = torch.randn(2, 3, 7, dtype=torch.float64, requires_grad=True)
    cells = torch.randint(-1, 3, (2, 3, 7), dtype=torch.int32)
    grid = torch.randn(2, 3, 2, 2, 2, dtype=torch.float64, requires_grad=True)
    coords = torch.rand(2, 3, 7) * 2 - 0.5
    for check in (gradcheck, gradgradcheck):
        assert check(lambda f: avg_voxelize(f, cells, 2), feats)
        assert check(lambda g: trilinear_devoxelize(g, coords), grid)


def test_a_point_in_a_voxel_reads_that_voxel_alone() -> None:
    grid = torch.full((1, 2, 3, 3, 3), math.nan)
    grid[0, :, 2, 1, 0] = torch.tensor([1.5, -2.0])
    out = trilinear_devoxelize(grid, torch.tensor([[[2.0], [1.0], [0.0]]]))
    assert out.tolist() == [[[1.5], [-2.0]]]


def test_points_that_are_nowhere_bring_and_take_nothing() -> None:
    nowhere = torch.tensor([math.nan, math.inf, -math.inf, 1e30, -1.0, 2.0])
    coords = torch.ones(1, 3, 6)
    coords[0, 1] = nowhere
    assert trilinear_devoxelize(torch.ones(1, 2, 2, 2, 2), coords).eq(0).all()
    cells = torch.zeros(1, 3, 2, dtype=torch.int32)
    cells[0, 2] = torch.tensor([-(2**31), 2**31 - 1])
    assert avg_voxelize(torch.ones(1, 2, 2), cells, 2).eq(0).all()


def test_round_trip_of_one_point_a_voxel() -> None:
    cells = torch.tensor(list(itertools.product(range(3), repeat=3)), dtype=torch.int32).T[None]
    feats = torch.randn(1, 4, 27)
    assert trilinear_devoxelize(avg_voxelize(feats, cells, 3), cells.float()).equal(feats)


def test_grids_are_laid_out_for_a_convolution() -> None:
    grid = avg_voxelize(torch.randn(2, 3, 9), torch.zeros(2, 3, 9, dtype=torch.int32), 4)
    assert grid.is_contiguous(memory_format=torch.channels_last_3d)


def test_empty_batch() -> None:
    none = torch.empty(0, 3, 5)
    assert avg_voxelize(none, none.int(), 2).shape == (0, 3, 2, 2, 2)
    assert trilinear_devoxelize(torch.empty(0, 4, 2, 2, 2), none).shape == (0, 4, 5)


def test_opcheck() -> None:
    cells = torch.randint(-1, 3, (2, 3, 7), dtype=torch.int32)
    opcheck(OPS.grid_cells, (cells, 2))
    opcheck(OPS.trilinear_corners, (torch.rand(2, 3, 7) * 3 - 1, 2))


def test_non_contiguous_input() -> None:
    feats, cells = torch.randn(2, 9, 4).mT, torch.randint(0, 3, (2, 9, 3), dtype=torch.int32).mT
    grid = avg_voxelize(feats, cells, 3)
    assert grid.equal(avg_voxelize(feats.contiguous(), cells.contiguous(), 3))
    coords = torch.rand(2, 9, 3).mT
    out = trilinear_devoxelize(grid, coords)
    assert out.equal(trilinear_devoxelize(grid.contiguous(), coords.contiguous()))


def test_compiles_without_a_break() -> None:
    torch._dynamo.reset()

    def branch(feats: Tensor, coords: Tensor) -> Tensor:
        return trilinear_devoxelize(avg_voxelize(feats, coords.round().int(), 4), coords)

    compiled = torch.compile(branch, fullgraph=True, dynamic=True, backend="aot_eager")
    for count in (9, 12):
        feats, coords = torch.randn(2, 5, count, requires_grad=True), torch.rand(2, 3, count) * 3
        assert compiled(feats, coords).equal(branch(feats, coords))
        (grad,) = torch.autograd.grad(compiled(feats, coords).square().sum(), feats)
        (expected,) = torch.autograd.grad(branch(feats, coords).square().sum(), feats)
        assert grad.equal(expected)


@pytest.mark.gpu
def test_a_gpu_agrees() -> None:
    feats, coords = torch.randn(2, 24, 2000), torch.rand(2, 3, 2000) * 17 - 1
    results = []
    for device in ("cpu", "cuda"):
        given = feats.to(device).requires_grad_()
        grid = avg_voxelize(given, coords.round().int().to(device), 16)
        out = trilinear_devoxelize(grid, coords.to(device))
        (grad,) = torch.autograd.grad(out.square().sum(), given)
        results.append([grid.cpu(), out.cpu(), grad.cpu()])
    for theirs, ours in zip(*results, strict=True):
        assert_close(ours, theirs)


FEATS, COORDS, GRID = torch.zeros(2, 4, 5), torch.zeros(2, 3, 5), torch.zeros(2, 4, 3, 3, 3)
CELLS = COORDS.int()


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda: avg_voxelize(FEATS.int(), CELLS, 3), TypeError, "feats must be .*got torch.int32"),
        (lambda: avg_voxelize(FEATS[0], CELLS, 3), ValueError, r"feats must be .*got \(4, 5\)"),
        (lambda: avg_voxelize(FEATS, COORDS, 3), TypeError, r"cells must .*int32.*\.int\(\)"),
        (lambda: avg_voxelize(FEATS, CELLS.mT, 3), ValueError, r"transpose\(1, 2\)"),
        (lambda: avg_voxelize(FEATS, CELLS[:1], 3), ValueError, "cells must be of as many clouds"),
        (lambda: avg_voxelize(FEATS, CELLS.to("meta"), 3), ValueError, "on their device.* meta"),
        (lambda: avg_voxelize(FEATS, CELLS[:, :, 1:], 3), ValueError, "each of 5 points, got 4"),
        (lambda: avg_voxelize(FEATS, CELLS, 0), ValueError, "resolution must be >= 1, got 0"),
        (lambda: trilinear_devoxelize(GRID.int(), COORDS), TypeError, "grid must .*torch.int32"),
        (lambda: trilinear_devoxelize(FEATS, COORDS), ValueError, r"grid must .*got \(2, 4, 5\)"),
        (lambda: trilinear_devoxelize(GRID[..., 1:], COORDS), ValueError, r"got \(2, 4, 3, 3, 2\)"),
        (lambda: trilinear_devoxelize(GRID, COORDS.double()), TypeError, "coords must .*float64"),
        (lambda: trilinear_devoxelize(GRID, FEATS), ValueError, r"coords must .*got \(2, 4, 5\)"),
        (lambda: trilinear_devoxelize(GRID, COORDS[:1]), ValueError, "coords must be of as many"),
    ],
)
def test_refuses(call, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        call()
