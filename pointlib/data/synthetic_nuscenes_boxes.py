"""Boxes of annotated things in a synthetic nuScenes scene, and which of them are in each other's way."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch

from pointlib.ops.boxes import box_iou_bev

TOLERANCE = 0.85
"""Share of its length and width a box needs for itself; corners of boxes are mostly empty."""


class ThingBox(NamedTuple):
    """An annotated thing at one time.

    Args:
        instance: its number within the scene. category: nuScenes name. attribute: nuScenes name or "".
        centre: (3,) float64 [m] on the map. size: (3,) float64 length, width, height [m]. yaw: [rad].
    """

    instance: int
    category: str
    attribute: str
    centre: np.ndarray
    size: np.ndarray
    yaw: float


def meetings(boxes: Sequence[ThingBox], others: Sequence[ThingBox]) -> np.ndarray:
    """(len(boxes), len(others)) bool: seen from above, one reaches into the other."""
    meets: np.ndarray = (box_iou_bev(_rows(boxes), _rows(others)) > 0).numpy()
    return meets


def in_the_way(boxes: Sequence[ThingBox], standing: Sequence[ThingBox]) -> set[int]:
    """Instances of the boxes that reach into one that stands already, or into one before them that may stay."""
    every = [*standing, *boxes]
    meets = meetings(every, every)
    stays = np.arange(len(every)) < len(standing)
    for number in range(len(standing), len(every)):
        stays[number] = not (meets[number, :number] & stays[:number]).any()
    return {box.instance for box, kept in zip(every, stays, strict=True) if not kept}


def _rows(boxes: Sequence[ThingBox]) -> torch.Tensor:
    rows = [[*box.centre, *(TOLERANCE * box.size), box.yaw] for box in boxes]
    return torch.from_numpy(np.array(rows, np.float64).reshape(-1, 7))
