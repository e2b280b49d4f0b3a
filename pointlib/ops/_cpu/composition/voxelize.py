"""Devoxelization on the CPU: weighted sums of a few voxel rows per point, and the transpose."""

from __future__ import annotations

import torch
from torch import Tensor

from pointlib.ops._cpu.composition.scatter import add_rows


def devoxelize(feats: Tensor, index: Tensor, weights: Tensor) -> Tensor:
    """`sum_k weights[n, k] * feats[index[n, k]]`."""
    voxels, points, factors = _pairs(index, weights)
    return add_rows("devoxelize", feats, voxels, points, len(index), factors)


def devoxelize_transpose(grad: Tensor, index: Tensor, weights: Tensor, num_rows: int) -> Tensor:
    """`out[index[n, k]] += weights[n, k] * grad[n]`."""
    voxels, points, factors = _pairs(index, weights)
    return add_rows("devoxelize_transpose", grad, points, voxels, num_rows, factors)


def _pairs(index: Tensor, weights: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    points = torch.arange(len(index)).repeat_interleave(index.shape[1])
    return index.reshape(-1), points, weights.reshape(-1)
