"""Rows of a dense grid of voxels around and under points, on CUDA."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from pointlib.ops._cuda import engine
from pointlib.ops._cuda.index_check import remember_in_range

SOURCE = "voxel_grid.cu"
BLOCK = 256


def grid_cells(cells: Tensor, resolution: int) -> tuple[Tensor, Tensor]:
    """Voxel row of each point, -1 outside the grid, and how many points are in its voxel."""
    cells, (batch, _, count) = cells.contiguous(), cells.shape
    points, num_rows = batch * count, batch * resolution**3
    rows = cells.new_empty(points, 1, dtype=torch.int64)
    counts = cells.new_empty(points, 1)
    if not points:
        return rows, counts
    held, grid = cells.new_zeros(num_rows), engine.ceil_div(points, BLOCK)
    sizes = (points, count, resolution)
    engine.launch(SOURCE, "pointlib::cell_rows", grid, BLOCK, cells, *sizes, rows, held)
    engine.launch(SOURCE, "pointlib::cell_counts", grid, BLOCK, rows, points, held, counts)
    remember_in_range(rows, num_rows)
    return rows, counts


def trilinear_corners(coords: Tensor, resolution: int) -> tuple[Tensor, Tensor]:
    """The eight voxel rows around each point, -1 where the weight is zero, and the weights."""
    coords, (batch, _, count) = coords.contiguous(), coords.shape
    weights = coords.new_empty(batch * count, 8)
    rows = torch.empty_like(weights, dtype=torch.int64)
    if not rows.numel():
        return rows, weights
    grid = engine.ceil_div(rows.numel(), BLOCK)
    sizes = (batch * count, count, resolution)
    engine.launch(SOURCE, "pointlib::trilinear_corners", grid, BLOCK, coords, *sizes, rows, weights)
    remember_in_range(rows, batch * resolution**3)
    return rows, weights


def variants(capability: int) -> Iterator[tuple[str, str]]:
    """Every kernel of this file, as (source, name)."""
    del capability
    for kernel in ("cell_rows", "cell_counts", "trilinear_corners"):
        yield SOURCE, f"pointlib::{kernel}"
