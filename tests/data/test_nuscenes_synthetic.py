"""The reader on a generated nuScenes dataset, against the devkit on the same."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pointlib.data import DETECTION_CLASSES, NuScenes, NuScenesLidarSeg
from pointlib.data.nuscenes_check import check_files
from pointlib.data.nuscenes_index import load_index
from pointlib.data.synthetic_nuscenes import generate_nuscenes

pytest.importorskip("nuscenes")
VERSION = "v1.0-mini"


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return generate_nuscenes(
        tmp_path_factory.mktemp("nuscenes"),
        scenes=["scene-0061"],
        samples_per_scene=2,
        workers=1,
        image_size=(64, 36),
        sweeps=2,
        beams=8,
        azimuth_steps=180,
        progress=False,
    )


@pytest.fixture(scope="module")
def nusc(root: Path) -> Any:
    from nuscenes.nuscenes import NuScenes as Devkit

    return Devkit(VERSION, str(root), verbose=False)


@pytest.mark.slow
def test_samples_equal_the_devkits(root: Path, nusc: Any) -> None:
    from nuscenes.eval.common.loaders import load_gt
    from nuscenes.eval.detection.data_classes import DetectionBox
    from nuscenes.utils.data_classes import LidarPointCloud
    from pyquaternion import Quaternion

    truth = load_gt(nusc, "mini_train", DetectionBox, verbose=False)
    source = NuScenes(root, VERSION, "mini_train", num_sweeps=10, map=True, min_points=0)
    assert len(source) == 2
    for i in range(2):
        sample = source[i]
        cloud, times = LidarPointCloud.from_file_multisweep(
            nusc, nusc.get("sample", sample.token), "LIDAR_TOP", "LIDAR_TOP", 10
        )
        own = (sample.points[:, 4] == 0) & (np.abs(sample.points[:, :2]) < 1).all(1)
        np.testing.assert_allclose(sample.points[~own, :4], cloud.points.T, atol=1e-5)
        np.testing.assert_allclose(sample.points[~own, 4], times[0], atol=1e-6)
        lidar2global = sample.ego2global @ sample.lidar2ego
        boxes = truth[sample.token]
        assert len(boxes) == len(sample.boxes) > 5
        for box, row, label in zip(boxes, sample.boxes, sample.box_labels, strict=True):
            assert DETECTION_CLASSES[label] == box.detection_name
            centre = lidar2global @ [*row[:3], 1.0]
            np.testing.assert_allclose(centre[:3], box.translation, atol=1e-4)
            np.testing.assert_allclose(row[[4, 3, 5]], box.size, atol=1e-6)
            heading = lidar2global[:2, :2] @ [np.cos(row[6]), np.sin(row[6])]
            ahead = Quaternion(box.rotation).rotation_matrix[:2, 0]
            np.testing.assert_allclose(heading / np.linalg.norm(heading), ahead, atol=2e-3)
            velocity = lidar2global[:2, :2] @ row[7:]
            np.testing.assert_allclose(velocity, box.velocity, atol=0.05, rtol=0.02)
        assert sample.map is not None and sample.map.polygons["drivable_area"]


@pytest.mark.slow
def test_labels_and_files(root: Path) -> None:
    for kind in ("lidarseg", "panoptic"):
        scan = NuScenesLidarSeg(root, VERSION, "mini_train", labels=kind, num_frames=3)[1]
        assert scan.labels is not None and len(np.unique(scan.labels)) > 5
    reports = check_files(root, load_index(root, VERSION), read=True, progress=False)
    assert not any(report.missing or report.broken for report in reports)
    assert sum(report.files for report in reports) == 2 * 9 + 4
