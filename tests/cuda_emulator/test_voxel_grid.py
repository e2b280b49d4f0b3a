"""Rows of dense voxel grids as on a GPU against the CPU operators, and the public functions over them."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from pointlib.ops._cpu import voxel_grid as cpu
from pointlib.ops._cuda import voxel_grid as cuda
from pointlib.ops._cuda import voxelize
from pointlib.ops.voxel_grid import avg_voxelize, trilinear_devoxelize
from tests.cuda_emulator.operators import ANY_ARCHITECTURE, OnDevice, same_bits
from tests.tolerances import assert_close

pytestmark = ANY_ARCHITECTURE
SIZES = [(0, 3), (2, 0), (1, 1), (2, 127), (2, 128), (1, 257)]


@pytest.mark.parametrize(("batch", "count"), SIZES)
@pytest.mark.parametrize("resolution", [1, 3, 32])
def test_cells(batch: int, count: int, resolution: int) -> None:
    cells = torch.randint(-1, resolution + 1, (batch, 3, count), dtype=torch.int32)
    cells[:, :, 50::50] = torch.tensor([2**31 - 1, -(2**31), 0], dtype=torch.int32)[:, None]
    ours, theirs = cuda.grid_cells(cells, resolution), cpu.grid_cells(cells, resolution)
    assert all(same_bits(a, b) for a, b in zip(ours, theirs, strict=True))


@pytest.mark.parametrize(("batch", "count"), SIZES)
@pytest.mark.parametrize("resolution", [1, 3, 32])
def test_corners(batch: int, count: int, resolution: int) -> None:
    coords = torch.rand(batch, 3, count) * (resolution + 2) - 1.5
    coords[:, :, ::3] = coords[:, :, ::3].round()
    coords[:, 0, 10::50], coords[:, 1, 11::50] = math.nan, math.inf
    coords[:, 2, 12::50] = -1e30
    ours = cuda.trilinear_corners(coords, resolution)
    theirs = cpu.trilinear_corners(coords, resolution)
    assert all(same_bits(a, b) for a, b in zip(ours, theirs, strict=True))


def there_and_back(feats: Tensor, coords: Tensor) -> Tensor:
    """Voxels and back to points, as in PVConv without its convolutions."""
    grid = avg_voxelize(feats, coords.round().int(), 5)
    return trilinear_devoxelize(grid.square(), coords)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_public_functions_and_their_gradients(dtype: torch.dtype) -> None:
    feats, coords = torch.randn(2, 8, 90).to(dtype), torch.rand(2, 3, 90) * 6 - 1
    here, there = (feats.clone().requires_grad_() for _ in range(2))
    mode = OnDevice(
        grid_cells=cuda.grid_cells,
        trilinear_corners=cuda.trilinear_corners,
        devoxelize=voxelize.devoxelize,
        devoxelize_transpose=voxelize.devoxelize_transpose,
    )
    with mode:
        ours = there_and_back(here, coords)
        ours.square().sum().backward()
    assert all(mode.calls.values())
    theirs = there_and_back(there, coords)
    theirs.square().sum().backward()
    assert_close(ours, theirs)
    assert here.grad is not None and there.grad is not None
    assert_close(here.grad, there.grad)


def test_transposed_input() -> None:
    cells = torch.randint(0, 4, (2, 9, 3), dtype=torch.int32).mT
    coords = torch.rand(2, 9, 3).mT * 3
    assert cuda.grid_cells(cells, 4)[0].equal(cpu.grid_cells(cells, 4)[0])
    assert cuda.trilinear_corners(coords, 4)[0].equal(cpu.trilinear_corners(coords, 4)[0])
