"""From the LiDAR frame to the JSON of the evaluation server, against pyquaternion's and the devkit's arithmetic."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from pointlib.geometry import quaternion_rotation, rigid_transform
from pointlib.metrics.nuscenes_detection import CLASS_RANGE
from pointlib.metrics.nuscenes_submission import NuScenesSubmission, attribute_of, scene_boxes

CLASSES = tuple(CLASS_RANGE)


def poses(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """A tilted LiDAR on a tilted vehicle."""
    lidar = quaternion_rotation(np.array([0.7, 0.01, 0.02, -0.7]))
    ego = quaternion_rotation(np.array([0.9, 0.02, -0.03, *rng.uniform(0.2, 0.5, 1)]))
    return rigid_transform(lidar, [0.9, 0.0, 1.8]), rigid_transform(ego, [600.0, 1600.0, 0.4])


def random_boxes(rng: np.random.Generator, count: int) -> np.ndarray:
    boxes = rng.uniform(-30, 30, (count, 9))
    boxes[:, 3:6] = rng.uniform(0.5, 5, (count, 3))
    boxes[:, 6] = rng.uniform(-np.pi, np.pi, count)
    boxes[:, 7:] = rng.normal(0, 3, (count, 2))
    return boxes.astype(np.float32)


def test_boxes_arrive_where_the_devkits_own_box_does(tmp_path: Path) -> None:
    quaternion = pytest.importorskip("pyquaternion", reason="needs nuscenes-devkit").Quaternion
    from nuscenes.utils.data_classes import Box

    rng = np.random.default_rng(0)
    lidar2ego, ego2global = poses(rng)
    boxes, scores = random_boxes(rng, 20), rng.random(20)
    submission = NuScenesSubmission(CLASSES, use_camera=True, use_lidar=False)
    submission.add("t", boxes, scores, np.zeros(20, np.int64), lidar2ego, ego2global)
    content = json.loads(submission.write(tmp_path / "out/results_nusc.json").read_text())
    assert content["meta"]["use_camera"] and not content["meta"]["use_lidar"]
    assert len(content["results"]["t"]) == 20
    for entry, row in zip(content["results"]["t"], np.argsort(-scores), strict=True):
        length, width, height = boxes[row, 3:6]
        expected = Box(
            boxes[row, :3].astype(float),
            [width, length, height],
            quaternion(axis=[0, 0, 1], radians=float(boxes[row, 6])),
            velocity=(*boxes[row, 7:9].astype(float), 0.0),
        )
        for pose in (lidar2ego, ego2global):
            expected.rotate(quaternion(matrix=pose[:3, :3], atol=1e-6))
            expected.translate(pose[:3, 3])
        np.testing.assert_allclose(entry["translation"], expected.center, atol=1e-6)
        np.testing.assert_allclose(entry["size"], expected.wlh, atol=1e-6)
        np.testing.assert_allclose(entry["velocity"], expected.velocity[:2], atol=1e-6)
        turned = quaternion(entry["rotation"]).rotation_matrix
        np.testing.assert_allclose(turned, expected.orientation.rotation_matrix, atol=1e-6)
        assert entry["detection_score"] == scores[row]
        speed = float(np.linalg.norm(entry["velocity"]))
        assert entry["attribute_name"] == attribute_of("car", speed)


def test_the_metric_is_given_the_same_boxes() -> None:
    rng = np.random.default_rng(1)
    lidar2ego, ego2global = poses(rng)
    boxes = random_boxes(rng, 15)
    labels = rng.integers(0, 10, 15)
    scene = scene_boxes(boxes, labels, lidar2ego, ego2global, CLASSES, np.ones(15))
    submission = NuScenesSubmission(CLASSES, use_camera=False, use_lidar=True)
    submission.add("t", boxes, np.ones(15), labels, lidar2ego, ego2global)
    written = submission.results["t"]
    kept = [e["translation"] for e in written]
    for entry in written:
        heading = quaternion_rotation(np.array(entry["rotation"]))[:, 0]
        row = int(np.argmin(np.abs(scene.boxes[:, :3] - entry["translation"]).sum(1)))
        assert np.arctan2(heading[1], heading[0]) == pytest.approx(scene.boxes[row, 6], abs=1e-6)
        np.testing.assert_allclose(scene.boxes[row, 3:6], np.array(entry["size"])[[1, 0, 2]])
    assert 0 < len(kept) <= 15


def test_only_the_best_500_within_range() -> None:
    boxes = np.zeros((600, 9), np.float32)
    boxes[:, 3:6] = 1
    boxes[:10, 0] = 49.0  # out of a cone's range of 30 m
    scores = np.linspace(1, 0, 600)
    submission = NuScenesSubmission(("traffic_cone",), use_camera=False, use_lidar=True)
    submission.add("t", boxes, scores, np.zeros(600, np.int64), np.eye(4), np.eye(4))
    found = [entry["detection_score"] for entry in submission.results["t"]]
    assert found == scores[10:510].tolist()


def test_bad_input_is_named() -> None:
    with pytest.raises(ValueError, match="got tram"):
        NuScenesSubmission(("car", "tram"), use_camera=True, use_lidar=True)
    submission = NuScenesSubmission(("car",), use_camera=True, use_lidar=True)
    none = np.zeros((0, 9)), np.zeros(0), np.zeros(0, np.int64), np.eye(4), np.eye(4)
    submission.add("t", *none)
    assert submission.results == {"t": []}
    with pytest.raises(ValueError, match="t again"):
        submission.add("t", *none)
    with pytest.raises(ValueError, match="finite"):
        submission.add(
            "u", np.full((1, 9), np.nan), np.ones(1), np.zeros(1, np.int64), np.eye(4), np.eye(4)
        )


def test_unknown_velocity_is_rest() -> None:
    boxes = np.ones((1, 9), np.float32)
    boxes[:, 7:] = np.nan
    submission = NuScenesSubmission(("car",), use_camera=False, use_lidar=True)
    submission.add("t", boxes, np.ones(1), np.zeros(1, np.int64), np.eye(4), np.eye(4))
    assert submission.results["t"][0]["velocity"] == [0.0, 0.0]
    assert submission.results["t"][0]["attribute_name"] == "vehicle.parked"
    assert np.isnan(boxes[:, 7:]).all()
