"""Inputs of the LiDAR branch that any implementation can regenerate bit for bit, and the published voxelization."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np

from tests.models.deterministic_weights import _uniform

SPARSE_SHAPE = (32, 24, 41)
PILLAR_RANGE = (-2.0, -1.6, -5.0, 2.0, 1.6, 3.0)
PILLAR_SIZE = (0.2, 0.2, 8.0)
PILLAR_POINTS = 4


class HardVoxels(NamedTuple):
    """Points in an array a voxel, voxels in the order of their first points.

    Attributes:
        points: (M, max_points, C) float32, zeros behind the points of a voxel.
        coords: (M, 3) int32 x, y, z.
        counts: (M,) int32.
    """

    points: np.ndarray
    coords: np.ndarray
    counts: np.ndarray


def voxel_batch() -> tuple[np.ndarray, np.ndarray]:
    """Two samples of voxels in SPARSE_SHAPE, lexicographic: coords (N, 4) int32, feats (N, 5) float32."""
    coords = []
    for batch, number in enumerate((700, 300)):
        draws = np.floor(_uniform(77 + batch, (number, 3)) * np.array(SPARSE_SHAPE))
        cells = np.unique(draws.astype(np.int32), axis=0)
        coords.append(np.pad(cells, ((0, 0), (1, 0)), constant_values=batch))
    joined = np.ascontiguousarray(np.concatenate(coords).astype(np.int32))
    return joined, _uniform(79, (len(joined), 5), -1.0, 1.0).astype(np.float32)


def map_batch(channels: int, side: int = 12) -> np.ndarray:
    """Bird's-eye view of two samples: (2, channels, side, side) float32."""
    return _uniform(80, (2, channels, side, side), -1.0, 1.0).astype(np.float32)


def point_clouds() -> list[np.ndarray]:
    """Two clouds of (N, 5) float32 x, y, z [m], intensity, time [s]; some points lie outside PILLAR_RANGE."""
    low, high = np.array([-2.2, -1.8, -5.5, 0, 0]), np.array([2.2, 1.8, 3.5, 255, 0.45])
    return [
        (low + (high - low) * _uniform(81 + sample, (number, 5))).astype(np.float32)
        for sample, number in enumerate((900, 400))
    ]


def hard_voxelize(
    points: np.ndarray,
    voxel_size: tuple[float, ...],
    bounds: tuple[float, ...],
    max_points: int,
    max_voxels: int,
) -> HardVoxels:
    """The published voxelization, point by point."""
    size, low = np.float32(voxel_size), np.float32(bounds[:3])
    grid = np.round((np.float32(bounds[3:]) - low) / size).astype(int)
    number: dict[tuple[int, ...], int] = {}
    rows: list[list[np.ndarray]] = []
    for point in points:
        cell = np.floor((point[:3] - low) / size).astype(int)
        if (cell < 0).any() or (cell >= grid).any():
            continue
        key = tuple(cell.tolist())
        if key not in number:
            if len(rows) == max_voxels:
                continue
            number[key] = len(rows)
            rows.append([])
        if len(rows[number[key]]) < max_points:
            rows[number[key]].append(point)
    array = np.zeros((len(rows), max_points, points.shape[1]), np.float32)
    for row, kept in enumerate(rows):
        array[row, : len(kept)] = kept
    counts = np.array([len(kept) for kept in rows], np.int32)
    return HardVoxels(array, np.array(list(number), np.int32).reshape(-1, 3), counts)


def read_tensor_file(path: Path) -> np.ndarray:
    """Read an NVIDIA `.tensor` file: int32 magic, axes, dtype (1 int32, 2 float16, 3 float32), extents; then data."""
    raw = path.read_bytes()
    magic, axes, kind = np.frombuffer(raw, np.int32, 3)
    assert magic == 0x33FF1101, path
    shape = np.frombuffer(raw, np.int32, axes, offset=12)
    dtype = {1: np.int32, 2: np.float16, 3: np.float32}[int(kind)]
    return np.frombuffer(raw, dtype, offset=12 + 4 * int(axes)).reshape(shape)


def real_voxels(folder: Path) -> tuple[np.ndarray, np.ndarray]:
    """79,745 voxels of 0.075 m of a nuScenes sample: coords (N, 4) int32 `[batch, x, y, z]`, feats (N, 5) float32."""
    feats = read_tensor_file(folder / "centerpoint_in_features.fp16.tensor").astype(np.float32)
    bzyx = read_tensor_file(folder / "centerpoint_in_indices_zyx.int32.tensor")
    return np.ascontiguousarray(bzyx[:, [0, 3, 2, 1]]), feats


def places(shape: tuple[int, ...], number: int) -> np.ndarray:
    """Which entries of a flattened map are stored: `number` int64, spread over it."""
    return np.floor(_uniform(83, (number,)) * np.prod(shape)).astype(np.int64)
