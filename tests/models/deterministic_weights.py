"""Weights and inputs that any implementation of a network can regenerate bit for bit.

Golden vectors of another implementation are only comparable when both sides hold the same numbers. Every value
here comes from the raw 64-bit words of PCG64, which NumPy guarantees to be stable, through additions and
multiplications only: no transcendental function whose last bit depends on the platform.
"""

from __future__ import annotations

import math
import zlib
from typing import NamedTuple

import numpy as np
import torch
from torch import nn

CONSTANTS = frozenset({"dx", "bx", "frustum"})
"""Entries that follow from a module's arguments; they are not weights."""


class Cloud(NamedTuple):
    """Voxels of a batch: coords (N, 4) int32 `[batch, x, y, z]`, feats (N, 4) float32 x, y, z [m], intensity."""

    coords: np.ndarray
    feats: np.ndarray


def _uniform(seed: int, shape: tuple[int, ...], low: float = 0.0, high: float = 1.0) -> np.ndarray:
    """Uniform float64 in [low, high) from the upper 53 bits of each PCG64 word."""
    words = np.random.PCG64(seed).random_raw(math.prod(shape))
    unit = (np.asarray(words, dtype=np.uint64) >> np.uint64(11)).astype(np.float64) * 2.0**-53
    return (low + (high - low) * unit).reshape(shape)


def uniform_input(
    seed: int, shape: tuple[int, ...], low: float = -1.0, high: float = 1.0
) -> torch.Tensor:
    """Float32 numbers in [low, high) for a network to read."""
    return torch.from_numpy(_uniform(seed, shape, low, high).astype(np.float32))


def _entry(key: str, shape: tuple[int, ...], is_norm: bool) -> np.ndarray:
    """Value of one state-dict entry; the seed is the CRC-32 of its name."""
    seed = zlib.crc32(key.encode("ascii"))
    name = key.rpartition(".")[2]
    spread = 0.1 * math.sqrt(3.0)  # uniform with standard deviation 0.1
    if name == "running_var" or (name == "weight" and (is_norm or len(shape) == 1)):
        return _uniform(seed, shape, 0.5, 1.5)
    if name.endswith("bias") or name in ("running_mean", "relative_position_bias_table"):
        return _uniform(seed, shape, -spread, spread)
    if name == "weight" and len(shape) == 5:  # sparse convolution of spconv 1.x: (x, y, z, in, out)
        fan_in = float(math.prod(shape[:4]))
    elif name.endswith("weight"):  # nn.Linear: (out, in); nn.Conv2d: (out, in, height, width)
        fan_in = float(math.prod(shape[1:]))
    elif name == "kernel" and len(shape) == 2:  # 1x1x1: (in, out)
        fan_in = float(shape[0])
    elif name == "kernel" and len(shape) == 3:  # (K, in, out)
        fan_in = float(shape[0] * shape[1])
    else:
        raise ValueError(f"fill_state_dict: no rule for {key!r} of shape {shape}")
    bound = math.sqrt(3.0) * math.sqrt(2.0 / fan_in)
    return _uniform(seed, shape, -bound, bound)


def fill_state_dict(module: nn.Module) -> dict[str, torch.Tensor]:
    """Overwrite every parameter and buffer of `module` by the rule of this file; returns the state dict.

    Convolutions and linear layers: zero mean, standard deviation sqrt(2 / fan_in). Norms: weight and running_var in
    [0.5, 1.5), bias and running_mean with standard deviation 0.1. `num_batches_tracked` is 0. Integers and the grid of
    a view transform (`CONSTANTS`) stay as they are. The value of an entry depends on its name and shape only, not on
    the class that owns it.
    """
    state = module.state_dict()
    with torch.no_grad():
        for key, tensor in state.items():
            if key.endswith("num_batches_tracked"):
                tensor.zero_()
                continue
            if not tensor.is_floating_point() or key.rpartition(".")[2] in CONSTANTS:
                continue
            is_norm = f"{key.rpartition('.')[0]}.running_var" in state
            values = _entry(key, tuple(tensor.shape), is_norm).astype(np.float32)
            tensor.copy_(torch.from_numpy(values))
    return state


def _surface(seed: int, side: int, boxes: int) -> np.ndarray:
    """Voxels of a folded ground and the faces of a few boxes, thinned: (N, 3) int64, unique, min 0."""
    x, y = np.meshgrid(np.arange(side), np.arange(side), indexing="ij")
    fold = np.abs((x + 2 * y) % 24 - 12) // 3 + np.abs((3 * x - y) % 40 - 20) // 5
    parts = [np.stack([x.ravel(), y.ravel(), fold.ravel()], axis=1)]
    sizes = np.floor(_uniform(seed + 1, (boxes, 6), 0.0, 1.0) * 1024.0).astype(np.int64)
    for place in sizes:
        length, width, height = 4 + place[:3] % 9
        corner = np.array([place[3] % (side - length), place[4] % (side - width), 3 + place[5] % 3])
        cells = np.indices((length, width, height)).reshape(3, -1).T
        top = np.array([length, width, height]) - 1
        parts.append(cells[((cells == 0) | (cells == top)).any(axis=1)] + corner)
    cells = np.unique(np.concatenate(parts), axis=0)
    cells = cells[_uniform(seed + 2, (len(cells),)) < 0.7]
    return cells - cells.min(axis=0)


def synthetic_cloud() -> Cloud:
    """Batch of two surface-like scenes of different size, about 3,000 voxels; rows in a shuffled order per scene."""
    coords, feats = [], []
    for batch, (side, boxes) in enumerate(((40, 6), (29, 4))):
        seed = 1000 * (batch + 1)
        cells = _surface(seed, side, boxes)
        cells = cells[np.argsort(_uniform(seed + 3, (len(cells),)), kind="stable")]
        inside = _uniform(seed + 4, (len(cells), 3), -0.5, 0.5)
        metres = 0.05 * (cells + inside)
        intensity = _uniform(seed + 5, (len(cells), 1))
        coords.append(np.concatenate([np.full((len(cells), 1), batch), cells], axis=1))
        feats.append(np.concatenate([metres, intensity], axis=1))
    return Cloud(
        np.ascontiguousarray(np.concatenate(coords).astype(np.int32)),
        np.ascontiguousarray(np.concatenate(feats).astype(np.float32)),
    )


def scan_voxels(points: np.ndarray, voxel_size: float = 0.05) -> Cloud:
    """Voxels of one scan as SPVNAS prepares them at test time, rows in the order of the scan.

    Args:
        points: (P, 4) float32 x, y, z [m] in the LiDAR frame, intensity.
        voxel_size: edge of a voxel [m].

    Returns:
        coords `round(xyz / voxel_size)` less the minimum, batch 0; feats of the first point of each voxel.
    """
    cells = np.round(points[:, :3] / voxel_size).astype(np.int32)
    cells -= cells.min(axis=0)
    extent = cells.max(axis=0).astype(np.int64) + 1
    key = (cells[:, 0].astype(np.int64) * extent[1] + cells[:, 1]) * extent[2] + cells[:, 2]
    first = np.sort(np.unique(key, return_index=True)[1])
    batch = np.zeros((len(first), 1), dtype=np.int32)
    return Cloud(
        np.concatenate([batch, cells[first]], axis=1), np.ascontiguousarray(points[first, :4])
    )


def checksum(array: np.ndarray) -> int:
    """CRC-32 of the bytes of a C-contiguous array."""
    return zlib.crc32(np.ascontiguousarray(array).tobytes())
