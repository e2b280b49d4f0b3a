"""Rows of a dense grid of voxels around and under points, in torch: little work beside the features'."""

from __future__ import annotations

import torch
from torch import Tensor


def grid_cells(cells: Tensor, resolution: int) -> tuple[Tensor, Tensor]:
    """Voxel row of each point, -1 outside the grid, and how many points are in its voxel."""
    inside = ((cells >= 0) & (cells < resolution)).all(1)
    rows = torch.where(inside, _rows(cells.long().unbind(1), resolution), -1).flatten()
    held = torch.bincount(rows[rows >= 0], minlength=len(cells) * resolution**3)
    count = torch.ones_like(rows)
    count[rows >= 0] = held[rows[rows >= 0]]
    return rows[:, None], count.int()[:, None]


def trilinear_corners(coords: Tensor, resolution: int) -> tuple[Tensor, Tensor]:
    """The eight voxel rows around each point, -1 where the weight is zero, and the weights."""
    low = coords.floor()
    place = torch.stack([low, low + 1], -1)
    share = torch.stack([1 - (coords - low), coords - low], -1)
    inside = (place >= 0) & (place < resolution)
    x, y, z = torch.where(inside, share, 0).unbind(1)
    weights = x[..., :, None, None] * y[..., None, :, None] * z[..., None, None, :]
    x, y, z = torch.where(inside, place, 0).long().unbind(1)
    axes = (x[..., :, None, None], y[..., None, :, None], z[..., None, None, :])
    rows = torch.where(weights == 0, -1, _rows(axes, resolution))
    return rows.view(-1, 8), weights.reshape(-1, 8)


def _rows(axes: tuple[Tensor, ...], resolution: int) -> Tensor:
    """Row of each cell (x, y, z) of a batch's grids, z fastest; each (B, ...)."""
    x, y, z = axes
    rows = (x * resolution + y) * resolution + z
    batch = torch.arange(len(rows)).view(-1, *[1] * (rows.dim() - 1))
    return rows + batch * resolution**3
