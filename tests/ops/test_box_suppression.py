"""Suppression of boxes and points in boxes against loops, known results and a real scan."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from pointlib.ops.boxes import circle_nms, points_in_boxes, points_in_boxes_all, rotated_nms
from tests.ops.box_oracles import box, iou_by_clipping, random_boxes, vectors

# Suppression


def greedy(overlaps: Tensor, scores: Tensor, groups: Tensor | None = None) -> list[int]:
    """Rows kept, best first; `overlaps` (N, N) bool."""
    order = sorted(range(len(scores)), key=lambda i: (-float(scores[i]), i))
    kept: list[int] = []
    for i in order:
        rivals = [k for k in kept if groups is None or groups[k] == groups[i]]
        if not any(overlaps[i, k] for k in rivals):
            kept.append(i)
    return kept


@pytest.mark.parametrize("threshold", [0.0, 0.2, 0.5, 1.0])
@pytest.mark.parametrize("grouped", [False, True])
def test_rotated_nms_is_greedy(threshold: float, grouped: bool) -> None:
    boxes, scores = random_boxes(80, 20.0), (torch.rand(80) * 20).round()  # with ties
    groups = torch.randint(3, (80,)) if grouped else None
    expected = greedy(iou_by_clipping(boxes, boxes) > threshold + 1e-9, scores, groups)
    actual = rotated_nms(boxes, scores, threshold, groups)
    assert actual.tolist() == expected
    assert rotated_nms(boxes, scores, threshold, groups, max_boxes=5).tolist() == expected[:5]
    wide = torch.cat([boxes, boxes[:, :2]], 1)
    assert torch.equal(rotated_nms(wide, scores, threshold, groups), actual)


@pytest.mark.parametrize("grouped", [False, True])
def test_circle_nms_is_greedy(grouped: bool) -> None:
    centres, scores = torch.rand(80, 3) * 10, (torch.rand(80) * 20).round()
    groups = torch.randint(3, (80,)) if grouped else None
    distance = torch.cdist(centres[:, :2].double(), centres[:, :2].double())
    expected = greedy(distance <= 1.5, scores, groups)
    assert circle_nms(centres, scores, 1.5, groups).tolist() == expected
    assert circle_nms(centres, scores, 1.5, groups, max_boxes=4).tolist() == expected[:4]


def test_equal_scores_keep_their_order_and_nan_comes_last() -> None:
    apart = torch.cat([box(9.0 * i, 0, 0, 4, 2, 1, 0) for i in range(6)])
    scores = torch.tensor([0.5, math.nan, 0.5, 0.9, -math.inf, 0.5])
    for kept in (rotated_nms(apart, scores, 0.1), circle_nms(apart, scores, 1.0)):
        assert kept.tolist() == [3, 0, 2, 5, 1, 4]
    copies = apart[:1].repeat(6, 1)
    assert rotated_nms(copies, scores, 0.1).tolist() == [3]
    assert rotated_nms(copies, scores, 1.0).tolist() == [3, 0, 2, 5, 1, 4]  # not above 1
    assert circle_nms(copies, scores, 0.0).tolist() == [3]


def test_a_suppressed_box_suppresses_nothing() -> None:
    chain = torch.cat([box(1.5 * i, 0, 0, 4, 2, 1, 0) for i in range(3)])
    scores = torch.tensor([0.9, 0.8, 0.7])
    assert rotated_nms(chain, scores, 0.3).tolist() == [0, 2]
    assert circle_nms(chain, scores, 2.0).tolist() == [0, 2]


def test_nms_as_mmcv_has_it(test_data: Path) -> None:
    found = vectors(test_data, "mmcv/nms.json", "test_nms_allclose")
    low, high = found["np_boxes"][0].split(2, 1)
    middle, size = (low + high) / 2, high - low
    zero, one = torch.zeros(len(size), 1), torch.ones(len(size), 1)
    boxes = torch.cat([middle, zero, size, one, zero], 1)
    kept = rotated_nms(boxes, found["np_scores"][0], 0.3)
    assert torch.equal(kept, found["np_inds"][0])


# Points


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_points_in_boxes_as_a_loop_finds_them(dtype: torch.dtype) -> None:
    boxes, points = random_boxes(30, 12.0, dtype), (torch.rand(400, 4, dtype=dtype) - 0.5) * 14
    expected = torch.zeros(400, 30, dtype=torch.bool)
    for m, row in enumerate(boxes.double()):
        turn = complex(math.cos(row[6]), -math.sin(row[6]))
        for n, point in enumerate(points.double()):
            local = complex(*(point[:2] - row[:2]).tolist()) * turn
            inside = abs(local.real) <= row[3] / 2 and abs(local.imag) <= row[4] / 2
            expected[n, m] = inside and abs(point[2] - row[2]) <= row[5] / 2
    actual, first = points_in_boxes_all(points, boxes), points_in_boxes(points, boxes)
    assert expected.any(0).sum() > 10 and (expected.sum(1) > 1).any()
    assert actual.dtype == torch.bool and torch.equal(actual, expected)
    assert first.dtype == torch.int64
    lowest = torch.where(expected.any(1), expected.int().argmax(1), -1)
    assert torch.equal(first, lowest)


def test_faces_belong_to_a_box_and_nan_to_none() -> None:
    unit = box(0, 0, 0, 4, 2, 1, 0)
    inside = [[2, 1, 0.5], [-2, -1, -0.5], [0, 0, 0]]
    outside = [[2.01, 0, 0], [0, 1.01, 0], [0, 0, 0.51], [math.nan, 0, 0], [0, 0, math.inf]]
    found = points_in_boxes(torch.tensor(inside + outside), unit)
    assert found.tolist() == [0] * 3 + [-1] * 5
    turned = torch.cat([unit + box(0, 0, 0, 0, 0, 0, 0.5 * math.pi), unit])
    along_y = torch.tensor([[0.0, 1.9, 0.0], [1.9, 0.0, 0.0], [0.0, 0.0, 0.0]])
    assert points_in_boxes(along_y, turned).tolist() == [0, 1, 0]
    assert points_in_boxes_all(along_y, turned).tolist() == [
        [True, False],
        [False, True],
        [True] * 2,
    ]


def test_points_in_the_boxes_of_a_real_scan(test_data: Path) -> None:
    folder = test_data / "nuscenes" / "scene0061_kf0"
    cloud = np.fromfile(folder / "LIDAR_TOP.pcd.bin", dtype=np.float32).reshape(-1, 5)
    listed = json.loads((folder / "info.json").read_text())["data_list"][0]["instances"]
    boxes = torch.tensor([instance["bbox_3d"] for instance in listed])
    counted = torch.tensor([instance["num_lidar_pts"] for instance in listed])
    inside = points_in_boxes_all(torch.from_numpy(cloud), boxes).sum(0)
    assert len(boxes) == 69 and (inside == counted).sum() >= 60
    assert (inside - counted).abs().max() <= 16
