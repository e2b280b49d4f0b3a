"""Scenes turned, shifted, scaled and mirrored: points, boxes and the matrix say the same."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pointlib.data.lidar_transforms import (
    LidarAugmentConfig,
    augment_boxes,
    augment_points,
    crop_points,
    draw_lidar_aug,
    in_range,
    lidar_aug_matrix,
)
from pointlib.data.sample import BadSampleError
from pointlib.geometry import box_corners, wrap_angle
from tests.data.multi_sensor_scenes import RANGE, fill_box, make_scene

# What mit-han-lab/bevfusion db75150 computes; made by running its GlobalRotScaleTrans and RandomFlip3D.
GOLDEN = json.loads(
    (Path(__file__).parents[1] / "golden" / "bevfusion_augmentation.json").read_text()
)["scenes"]


def from_published(boxes: np.ndarray) -> np.ndarray:
    """Boxes from upstream's x, y, z of the bottom, w, l, h, yaw = -yaw - pi / 2."""
    x, y, bottom, w, l, h, yaw, vx, vy = boxes.T  # noqa: E741
    return np.stack([x, y, bottom + h / 2, l, w, h, wrap_angle(-yaw - np.pi / 2), vx, vy], 1)


@pytest.mark.parametrize("case", GOLDEN)
def test_matrix_and_boxes_are_the_published_ones(case: dict[str, Any]) -> None:
    """Upstream turns by -theta."""
    matrix = lidar_aug_matrix(
        -case["theta"], case["translation"], case["scale"], case["flip_x"], case["flip_y"]
    )
    assert np.allclose(matrix[:3], case["matrix"], atol=1e-6)
    boxes = augment_boxes(from_published(np.array(case["boxes"])), matrix)
    expected = from_published(np.array(case["augmented"]))
    assert np.allclose(np.delete(boxes, 6, 1), np.delete(expected, 6, 1), atol=1e-5)
    assert np.abs(wrap_angle(boxes[:, 6] - expected[:, 6])).max() < 1e-6


@pytest.mark.parametrize("seed", range(6))
def test_points_boxes_and_matrix_agree(seed: int) -> None:
    """Points at corners, in boxes and moving with them stay there; distances grow by the scale alone."""
    rng = np.random.default_rng(seed)
    lidar_aug = draw_lidar_aug(LidarAugmentConfig(), rng)
    boxes = make_scene(seed).boxes.astype(np.float64)
    moved = augment_boxes(boxes, lidar_aug)
    corners = augment_points(box_corners(boxes).reshape(-1, 3), lidar_aug).reshape(-1, 8, 3)
    expected = box_corners(moved)
    for mine, theirs in zip(corners, expected, strict=True):  # a mirror changes their order
        distance = np.linalg.norm(mine[:, None] - theirs, axis=2)
        assert distance.min(0).max() < 1e-9 and distance.min(1).max() < 1e-9
    # The front stays the front, and a second later the box is where its points are.
    front = boxes.copy()
    front[:, :2] += np.stack([np.cos(boxes[:, 6]), np.sin(boxes[:, 6])], 1)
    ahead = augment_boxes(front, lidar_aug)[:, :2] - moved[:, :2]
    assert np.allclose(np.arctan2(ahead[:, 1], ahead[:, 0]), moved[:, 6])
    later = boxes.copy()
    later[:, :2] += boxes[:, 7:]
    assert np.allclose(augment_boxes(later, lidar_aug)[:, :2], moved[:, :2] + moved[:, 7:])


def test_augmentation_covers_its_ranges() -> None:
    rng = np.random.default_rng(0)
    drawn = np.stack([draw_lidar_aug(LidarAugmentConfig(), rng) for _ in range(2000)])
    scale = np.linalg.norm(drawn[:, :3, 2], axis=1)
    assert 0.9 <= scale.min() < 0.905 and 1.095 < scale.max() <= 1.1
    mirrored = np.linalg.det(drawn[:, :3, :3]) < 0
    assert 900 < mirrored.sum() < 1100
    assert (
        900 < (drawn[:, 0, 0] < 0).sum() < 1100
    )  # at most 45 degrees: a flip of x shows in the sign
    assert 900 < (drawn[:, 1, 1] < 0).sum() < 1100
    shift = drawn[:, :3, 3] / scale[:, None]
    assert np.abs(shift.std(0) - 0.5).max() < 0.03 and np.abs(shift.mean(0)).max() < 0.05
    turn = np.arcsin(np.abs(drawn[:, 1, 0]) / scale)
    assert math.pi / 4 * 0.98 < turn.max() <= math.pi / 4
    still = LidarAugmentConfig(0.0, 0.0, (1.0, 1.0), 0.0, 0.0)
    assert np.array_equal(draw_lidar_aug(still, rng), np.eye(4))


def test_other_columns_and_input_stay() -> None:
    scene = make_scene()
    before = scene.points.copy()
    moved = augment_points(scene.points, lidar_aug_matrix(0.3, [1, 2, 3], 1.1, True, False))
    assert moved.dtype == np.float32
    assert np.array_equal(scene.points, before)
    assert np.array_equal(moved[:, 3:], before[:, 3:])
    assert not np.array_equal(moved[:, :3], before[:, :3])
    unknown = scene.boxes.copy()
    unknown[:, 7:] = np.nan
    moved_boxes = augment_boxes(unknown, lidar_aug_matrix(0.3, [1, 2, 3], 1.1, True, False))
    assert np.isnan(moved_boxes[:, 7:]).all() and np.isfinite(moved_boxes[:, :7]).all()


def test_range() -> None:
    points = np.array(
        [[-40, 0, 0], [40, 0, 0], [39.9, 0, 0], [0, 0, 3], [0, 0, -5], [np.nan, 0, 0]], np.float32
    )
    assert in_range(points, RANGE).tolist() == [True, False, True, False, True, False]
    assert in_range(points, RANGE, bev=True).tolist() == [True, False, True, True, True, False]


def test_cropped_points_are_shuffled_only_on_demand() -> None:
    points = make_scene(num_background=2000).points
    points[:50, 0] = 100.0
    kept = crop_points(points, RANGE, None, "scan")
    assert np.array_equal(kept, points[50:])
    mixed = crop_points(points, RANGE, np.random.default_rng(0), "scan")
    assert not np.array_equal(mixed, kept)
    assert np.array_equal(mixed[np.lexsort(mixed.T)], kept[np.lexsort(kept.T)])
    assert len(crop_points(points[:0], RANGE, None, "scan")) == 0
    with pytest.raises(BadSampleError, match=r"scan must have points inside.*got 0 of 50"):
        crop_points(points[:50], RANGE, None, "scan")


def test_points_stay_in_their_boxes() -> None:
    rng = np.random.default_rng(5)
    box = make_scene().boxes[:1].astype(np.float64)
    inside = fill_box(box[0], 50, rng)
    lidar_aug = draw_lidar_aug(LidarAugmentConfig(), rng)
    moved = augment_points(inside, lidar_aug)
    *centre, length, width, height, yaw, _, _ = augment_boxes(box, lidar_aug)[0].tolist()
    local = moved - centre
    along = local[:, 0] * math.cos(yaw) + local[:, 1] * math.sin(yaw)
    left = -local[:, 0] * math.sin(yaw) + local[:, 1] * math.cos(yaw)
    assert (
        np.abs(np.stack([along, left, local[:, 2]], 1)) <= np.array([length, width, height]) / 2
    ).all()


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("rotation", 45.0),
        ("translation", -1.0),
        ("scale", (1.1, 0.9)),
        ("flip_x", 2),
        ("flip_y", -1),
    ],
)
def test_wrong_options_are_named(option: str, value: Any) -> None:
    with pytest.raises(ValueError, match=f"LidarAugmentConfig: {option} must be"):
        LidarAugmentConfig(**{option: value})
