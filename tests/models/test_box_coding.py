"""Boxes and their published encodings: round trips, hand-written values, vectors of mmdetection3d's own tests."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from torch import Tensor

from pointlib.models.box_coding import (
    BevGrid,
    boxes_from_published,
    decode_boxes,
    encode_boxes,
    published_boxes,
)

GRID = BevGrid.of_voxels((-54.0, -27.0, -5.0, 54.0, 53.0, 3.0), (0.075, 0.05, 0.2), 8)


def random_boxes(count: int, columns: int = 9) -> Tensor:
    """Anywhere on the grid, up to 15 m long, turned anyhow."""
    draw = torch.rand(count, 9, dtype=torch.float64)
    low = torch.tensor([-54.0, -27, -4, 0.3, 0.3, 0.3, -math.pi, -20, -20], dtype=torch.float64)
    high = torch.tensor([54.0, 53, 2, 15, 5, 5, math.pi, 20, 20], dtype=torch.float64)
    return (low + draw * (high - low))[:, :columns]


def assert_same_boxes(found: Tensor, boxes: Tensor, bound: float) -> None:
    """Within the bound, relative to numbers above 1: float32 has 4e-6 m steps at 54 m."""
    difference = found - boxes
    difference[:, 6] = (difference[:, 6] + math.pi) % (2 * math.pi) - math.pi
    assert float((difference.abs() / boxes.abs().clamp(min=1)).max()) < bound


@pytest.mark.parametrize("columns", [7, 9])
@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 1e-5), (torch.float64, 1e-12)])
def test_round_trips(columns: int, dtype: torch.dtype, bound: float) -> None:
    boxes = random_boxes(2000, columns).to(dtype)
    assert_same_boxes(boxes_from_published(published_boxes(boxes)), boxes, bound)
    codes = encode_boxes(boxes, GRID)
    assert codes.shape == (2000, columns + 1)
    assert_same_boxes(decode_boxes(codes, GRID), boxes, bound)
    stacked = decode_boxes(codes.view(4, 500, -1), GRID)  # any leading axes
    assert torch.equal(stacked.flatten(0, 1), decode_boxes(codes, GRID))


def test_codes_by_hand() -> None:
    # 4 m long, 2 m wide, 1.5 m high, heading along +y, in the cell (100, 70) of 0.6 x 0.4 m.
    box = torch.tensor([[6.3, 1.2, 0.5, 4.0, 2.0, 1.5, math.pi / 2, 3.0, -1.0]])
    width, length, height = (math.log(value) for value in (2.0, 4.0, 1.5))
    expected = [100.5, 70.5, 0.5, width, length, height, 0.0, -1.0, 3.0, -1.0]
    assert encode_boxes(box, GRID)[0].tolist() == pytest.approx(expected, abs=1e-4)
    lower = [6.3, 1.2, -0.25, 2.0, 4.0, 1.5, -math.pi, 3.0, -1.0]
    assert published_boxes(box)[0].tolist() == pytest.approx(lower, abs=1e-5)


def test_lower_faces_are_those_of_mmdetection3d(test_data: Path) -> None:
    path = test_data / "vectors" / "mmdetection3d" / "box3d.json"
    cases = json.loads(path.read_text())["cases"]
    case = next(case for case in cases if case["function"] == "test_lidar_boxes3d")
    values = dict(reversed(case["values"]))  # of values with one name, the first
    centred, lowered = (
        torch.tensor(values[name]["data"]) for name in ("gravity_center_box", "expected_tensor")
    )
    # Centres alone: its sizes and angles are those of releases since 1.0.
    as_ours = torch.cat([centred[:, :3], centred[:, [4, 3, 5, 6]]], 1)
    torch.testing.assert_close(published_boxes(as_ours)[:, :6], lowered[:, :6])


def test_grid() -> None:
    assert GRID.size == (180, 200)
    corners = torch.tensor([[-54.0, -27.0], [54.0, 53.0]])
    cells = torch.tensor([[0.0, 0.0], [180.0, 200.0]])
    torch.testing.assert_close(GRID.to_cells(corners), cells)
    torch.testing.assert_close(GRID.to_metres(cells), corners)


@pytest.mark.parametrize(
    ("point_cloud_range", "voxel_size", "factor", "message"),
    [
        ((-54, -54, 54, 54), (0.1, 0.1), 8, "point_cloud_range must be 6 numbers"),
        ((-54, -54, -5, 54, 54, 3), (0.1, 0.0), 8, "voxel_size must be positive"),
        ((-54, -54, -5, 54, 54, 3), (0.1, 0.1), 0, "out_size_factor >= 1"),
        ((-54, -54, -5, 54, 54, 3), (0.075, 0.07), 8, "whole number of cells of 0.56 m along y"),
        ((54, -54, -5, -54, 54, 3), (0.075, 0.075), 8, "along x, got -180"),
    ],
)
def test_impossible_grids(
    point_cloud_range: tuple[float, ...], voxel_size: tuple[float, ...], factor: int, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        BevGrid.of_voxels(point_cloud_range, voxel_size, factor)


@pytest.mark.parametrize("function", [published_boxes, boxes_from_published])
def test_wrong_columns(function: object) -> None:
    with pytest.raises(ValueError, match=r"must be \(N, 7\) or \(N, 9\), got \(2, 8\)"):
        function(torch.zeros(2, 8))  # type: ignore[operator]
    with pytest.raises(ValueError, match="8 or 10 columns"):
        decode_boxes(torch.zeros(2, 9), GRID)
    with pytest.raises(ValueError, match=r"got \(2, 8\)"):
        encode_boxes(torch.zeros(2, 8), GRID)
