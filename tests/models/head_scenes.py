"""Small inputs for detection and map heads that any implementation can regenerate bit for bit.

A map of 24 x 24 cells of 1.6 m, two samples with 16 and 7 boxes of ten classes, headings over the full circle. As in
deterministic_weights.py, every number comes from raw 64-bit words of PCG64 through additions and multiplications.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from pointlib.sensors import SceneTargets

RANGE = (-19.2, -19.2, -5.0, 19.2, 19.2, 3.0)
VOXEL = (0.2, 0.2, 0.2)
IN_CHANNELS = 8
CELLS = 24
NUM_BOXES = (16, 7)


def numbers(seed: int, shape: tuple[int, ...], low: float = 0.0, high: float = 1.0) -> np.ndarray:
    """Uniform float64 in [low, high)."""
    words = np.random.PCG64(seed).random_raw(math.prod(shape))
    unit = (np.asarray(words, dtype=np.uint64) >> np.uint64(11)).astype(np.float64) * 2.0**-53
    return (low + (high - low) * unit).reshape(shape)


def bev_map(batch_size: int = 2, channels: int = IN_CHANNELS, cells: int = CELLS) -> Tensor:
    """(B, channels, cells, cells) float32 with standard deviation 1."""
    values = numbers(1, (batch_size, channels, cells, cells), -math.sqrt(3), math.sqrt(3))
    return torch.from_numpy(values.astype(np.float32))


def scene(counts: tuple[int, ...] = NUM_BOXES, close: bool = True) -> SceneTargets:
    """Boxes within the range, whose centres keep 0.02 cells from the borders of cells.

    Args:
        counts: Boxes of each sample. Up to ten, and not close, they are of different classes: then one assignment is
            the best, where boxes of one class may change places for the same sum of L1 distances.
        close: Put the second box of each sample into the cell of the first, with its class.
    """
    boxes, labels = [], []
    for sample, count in enumerate(counts):
        seed = 100 * (sample + 1)
        cells = np.floor(numbers(seed, (count, 2), 0, CELLS)) + numbers(
            seed + 1, (count, 2), 0.02, 0.98
        )
        if close:
            cells[1] = cells[0] + 0.01
        box = np.zeros((count, 9))
        box[:, :2] = cells * 1.6 + RANGE[0]
        box[:, 2] = numbers(seed + 2, (count,), -2.5, 0.5)
        box[:, 3] = numbers(seed + 3, (count,), 0.5, 11.0)
        box[:, 4] = numbers(seed + 4, (count,), 0.5, 3.0)
        box[:, 5] = numbers(seed + 5, (count,), 0.8, 3.5)
        box[:, 6] = numbers(seed + 6, (count,), -math.pi, math.pi)
        box[:, 7:] = numbers(seed + 7, (count, 2), -9, 9)
        label = np.arange(count) * 3 % 10
        if close:
            label[1] = label[0]
        boxes.append(torch.from_numpy(box.astype(np.float32)))
        labels.append(torch.from_numpy(label))
    return SceneTargets(tuple(boxes), tuple(labels))
