"""Boxes for the tests: random ones, their overlap by polygon clipping, and the vectors of other projects."""

from __future__ import annotations

import itertools
import json
import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor


def corners_of(box: list[float]) -> list[tuple[float, float]]:
    """Footprint corners, counter-clockwise."""
    x, y, _, length, width, _, yaw = box
    c, s = math.cos(yaw), math.sin(yaw)
    local = ((1, 1), (-1, 1), (-1, -1), (1, -1))
    halves = [(u * length / 2, v * width / 2) for u, v in local]
    return [(x + c * u - s * v, y + s * u + c * v) for u, v in halves]


def clipped_area(box: list[float], other: list[float]) -> float:
    """Area of the intersection: the corners of one, cut by each side of the other in turn."""
    polygon, frame = corners_of(box), corners_of(other)
    for (ax, ay), (bx, by) in itertools.pairwise([*frame, frame[0]]):
        sides = [(bx - ax) * (y - ay) - (by - ay) * (x - ax) for x, y in polygon]
        cut = []
        for i, (p, d) in enumerate(zip(polygon, sides, strict=True)):
            q, e = polygon[i - 1], sides[i - 1]
            if (d < 0) != (e < 0):
                t = d / (d - e)
                cut.append((p[0] + t * (q[0] - p[0]), p[1] + t * (q[1] - p[1])))
            if d >= 0:
                cut.append(p)
        polygon = cut
    if not polygon:
        return 0.0
    x0, y0 = polygon[0]
    moved = [(x - x0, y - y0) for x, y in polygon]
    pairs = zip(moved, [*moved[1:], moved[0]], strict=True)
    return sum(px * qy - qx * py for (px, py), (qx, qy) in pairs) / 2


def iou_by_clipping(boxes: Tensor, others: Tensor, volume: bool = False) -> Tensor:
    """(N, M) float64."""
    out = torch.zeros(len(boxes), len(others), dtype=torch.float64)
    for i, a in enumerate(boxes[:, :7].double().tolist()):
        for j, b in enumerate(others[:, :7].double().tolist()):
            shared, size, other = clipped_area(a, b), a[3] * a[4], b[3] * b[4]
            if volume:
                top, bottom = (
                    min(a[2] + a[5] / 2, b[2] + b[5] / 2),
                    max(a[2] - a[5] / 2, b[2] - b[5] / 2),
                )
                shared *= max(top - bottom, 0)
                size, other = size * a[5], other * b[5]
            out[i, j] = shared / (size + other - shared)
    return out


def random_boxes(count: int, extent: float = 4.0, dtype: torch.dtype = torch.float64) -> Tensor:
    """Boxes of cars and pedestrians around the origin, so close that most overlap."""
    centres = (torch.rand(count, 3, dtype=torch.float64) - 0.5) * extent
    sizes = torch.rand(count, 3, dtype=torch.float64) * 4 + 0.3
    yaw = (torch.rand(count, 1, dtype=torch.float64) - 0.5) * 14
    return torch.cat([centres, sizes, yaw], 1).to(dtype)


def box(*values: float) -> Tensor:
    return torch.tensor([values], dtype=torch.float32)


def vectors(test_data: Path, name: str, function: str) -> dict[str, list[Any]]:
    """Arrays of an upstream unit test by name, in the order they occur."""
    path = test_data / "vectors" / name
    case = next(c for c in json.loads(path.read_text())["cases"] if c["function"] == function)
    found: dict[str, list[Any]] = {}
    for key, value in case["values"]:
        array = torch.tensor(value["data"]) if isinstance(value, dict) else value
        found.setdefault(key, []).append(array)
    return found
