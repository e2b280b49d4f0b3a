"""Points to a dense grid of voxels and back, as PVConv needs it: average voxelization, trilinear devoxelization.

Section 4.1 of Liu et al., "Point-Voxel CNN for Efficient 3D Deep Learning", NeurIPS 2019, in the layouts of its code:
features (B, C, N), coordinates (B, 3, N), grids (B, C, R, R, R). Coordinates are constants: no gradient flows to them.
"""

from __future__ import annotations

import torch
from torch import Tensor

from pointlib.ops._cpu import voxel_grid as cpu
from pointlib.ops._cuda import voxel_grid as cuda
from pointlib.ops._library import LIB
from pointlib.ops.neighbors import check_cloud_feats, check_planes, cloud_rows
from pointlib.ops.scatter import accumulation_dtype
from pointlib.ops.voxelize import devoxelize


def avg_voxelize(feats: Tensor, cells: Tensor, resolution: int) -> Tensor:
    """Average the features of the points in each voxel; differentiable in feats, deterministic both ways.

    Args:
        feats: (B, C, N) floating. float16 and bfloat16 are summed in float32 and rounded once.
        cells: (B, 3, N) int32 voxel `[x, y, z]` of each point; points outside [0, resolution) are left out.
        resolution: R, voxels along each edge of the grid.

    Returns:
        (B, C, R, R, R) of feats' dtype, zero where no point is, in torch's channels_last_3d layout.

    Raises:
        TypeError, ValueError: If a tensor is not as above, or resolution is not positive.

    Example:
        >>> feats = torch.tensor([[[1.0, 3.0, 5.0]]])
        >>> cells = torch.tensor([[[0, 0, 1], [0, 0, 1], [0, 0, 0]]], dtype=torch.int32)
        >>> avg_voxelize(feats, cells, 2).flatten().tolist()
        [2.0, 0.0, 0.0, 0.0, 0.0, 0.0, 5.0, 0.0]
    """
    check_cloud_feats(feats, "avg_voxelize")
    check_planes(cells, "avg_voxelize", "cells", torch.int32, "Convert with .round().int().")
    _check_same_clouds(feats, cells, "avg_voxelize", "cells")
    if cells.shape[2] != feats.shape[2]:
        raise ValueError(
            f"avg_voxelize: cells must have a voxel for each of {feats.shape[2]} points, got {cells.shape[2]}."
        )
    if resolution < 1:
        raise ValueError(f"avg_voxelize: resolution must be >= 1, got {resolution}.")
    rows, count = torch.ops.pointlib.grid_cells(cells, resolution)
    weights = count.to(accumulation_dtype(feats)).reciprocal()
    num_rows = feats.shape[0] * resolution**3
    grid = torch.ops.pointlib.devoxelize_transpose(cloud_rows(feats), rows, weights, num_rows)
    return grid.view(feats.shape[0], *[resolution] * 3, feats.shape[1]).movedim(-1, 1)


def trilinear_devoxelize(grid: Tensor, coords: Tensor) -> Tensor:
    """Interpolate a grid's features at points; differentiable in grid, deterministic both ways.

    Voxel `c` carries its features at the point `c`, so a point with integer coordinates takes one voxel's features
    unchanged. What lies outside the grid counts as zeros.

    Args:
        grid: (B, C, R, R, R) floating. float16 and bfloat16 are summed in float32 and rounded once.
        coords: (B, 3, N) float32, in voxels. Weights are float32 too, whatever the grid is.

    Returns:
        (B, C, N) of grid's dtype, a view of (B, N, C).

    Raises:
        TypeError, ValueError: If a tensor is not as above.

    Example:
        >>> grid = torch.arange(8.0).view(1, 1, 2, 2, 2)
        >>> trilinear_devoxelize(grid, torch.tensor([[[0.5], [0.0], [1.0]]])).tolist()
        [[[3.0]]]
    """
    if not isinstance(grid, Tensor) or not grid.is_floating_point():
        got = str(grid.dtype) if isinstance(grid, Tensor) else type(grid).__name__
        raise TypeError(
            f"trilinear_devoxelize: grid must be a (B, C, R, R, R) floating tensor, got {got}. "
            "Convert with .float()."
        )
    if grid.dim() != 5 or len(set(grid.shape[2:])) != 1:
        raise ValueError(
            f"trilinear_devoxelize: grid must be of shape (B, C, R, R, R), got {tuple(grid.shape)}."
        )
    remedy = "Convert with .float()."
    check_planes(coords, "trilinear_devoxelize", "coords", torch.float32, remedy)
    _check_same_clouds(grid, coords, "trilinear_devoxelize", "coords")
    batch, channels, resolution = grid.shape[:3]
    rows, weights = torch.ops.pointlib.trilinear_corners(coords.detach(), resolution)
    feats = grid.movedim(1, -1).reshape(batch * resolution**3, channels)
    out = devoxelize(feats, rows, weights)
    return out.view(batch, coords.shape[2], channels).transpose(1, 2)


def _check_same_clouds(feats: Tensor, coords: Tensor, caller: str, name: str) -> None:
    if len(coords) != len(feats) or coords.device != feats.device:
        raise ValueError(
            f"{caller}: {name} must be of as many clouds as the features, on their device, got {len(coords)} on "
            f"{coords.device} for {len(feats)} on {feats.device}."
        )


LIB.define("grid_cells(Tensor cells, SymInt resolution) -> (Tensor, Tensor)")
LIB.define("trilinear_corners(Tensor coords, SymInt resolution) -> (Tensor, Tensor)")
for _name in ("grid_cells", "trilinear_corners"):
    LIB.impl(_name, getattr(cpu, _name), "CPU")
    LIB.impl(_name, getattr(cuda, _name), "CUDA")


@torch.library.register_fake("pointlib::grid_cells", lib=LIB)
def _grid_cells_fake(cells: Tensor, resolution: int) -> tuple[Tensor, Tensor]:
    count = cells.new_empty(cells.shape[0] * cells.shape[2], 1)
    return torch.empty_like(count, dtype=torch.int64), count


@torch.library.register_fake("pointlib::trilinear_corners", lib=LIB)
def _trilinear_corners_fake(coords: Tensor, resolution: int) -> tuple[Tensor, Tensor]:
    weights = coords.new_empty(coords.shape[0] * coords.shape[2], 8)
    return torch.empty_like(weights, dtype=torch.int64), weights
