"""Argoverse 2: every cuboid holds exactly the points that the dataset says; frames, velocities, broken files."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from pointlib.data.argoverse2 import CLASS_NAMES, Argoverse2
from pointlib.data.multi_sensor import MultiSensorSample
from pointlib.data.sample import BadSampleError
from pointlib.ops.boxes import points_in_boxes_all

pytest.importorskip("pyarrow", reason="needs pyarrow")

NS = 315973157959879000


@pytest.fixture(scope="module")
def root(test_data: Path) -> Path:
    folder = test_data / "argoverse2"
    if not (folder / "adcf7d18" / "sensors" / "lidar").is_dir():
        pytest.skip(f"no log of Argoverse 2 in {folder}")
    return folder


@pytest.fixture(scope="module")
def sample(root: Path) -> MultiSensorSample:
    return Argoverse2(root, ["adcf7d18"], min_points=0)[0]


@pytest.fixture
def tree(root: Path, tmp_path: Path) -> Path:
    shutil.copytree(root / "adcf7d18", tmp_path / "adcf7d18", copy_function=os.symlink)
    return tmp_path


def test_boxes_hold_the_points_that_the_dataset_says(sample: MultiSensorSample) -> None:
    inside = points_in_boxes_all(torch.from_numpy(sample.points), torch.from_numpy(sample.boxes))
    assert len(sample.boxes) == 47 and sample.box_points.sum() > 15_000
    np.testing.assert_array_equal(inside.sum(0).numpy(), sample.box_points)


def test_a_sweep_is_in_the_ego_frame(sample: MultiSensorSample) -> None:
    assert sample.points.shape == (100660, 5) and not sample.points[:, 4].any()
    assert sample.token == f"adcf7d18/{NS}" and sample.timestamp_us == NS // 1000
    cars = sample.boxes[sample.box_labels == CLASS_NAMES.index("REGULAR_VEHICLE")]
    bottom = cars[:, 2] - cars[:, 5] / 2
    near = np.hypot(cars[:, 0], cars[:, 1]) < 30
    assert near.sum() > 8 and np.abs(bottom[near] + 0.33).max() < 0.6  # the axle is above the road
    np.testing.assert_array_equal(sample.lidar2ego, np.eye(4))
    np.testing.assert_allclose(sample.ego2global[:3, 3], [1468.9, 211.5, 13.1], atol=0.5)


def test_velocities_are_plausible(sample: MultiSensorSample) -> None:
    speed = np.hypot(sample.boxes[:, 7], sample.boxes[:, 8])
    assert np.isfinite(speed).all() and speed.max() < 15
    moving = speed > 3
    heading = np.stack([np.cos(sample.boxes[:, 6]), np.sin(sample.boxes[:, 6])], axis=1)
    along = (heading * sample.boxes[:, 7:]).sum(1)
    assert moving.sum() == 4 and (along[moving] > 0.97 * speed[moving]).all()
    walking = speed[sample.box_labels == CLASS_NAMES.index("PEDESTRIAN")]
    assert 0.5 < walking.max() < 2.5
    assert (speed[sample.box_labels == CLASS_NAMES.index("BOLLARD")] < 0.05).all()


def test_counts_and_filters(root: Path) -> None:
    source = Argoverse2(root, class_names=("PEDESTRIAN", "BUS"), min_points=10)
    assert source.class_counts(0).tolist() == [16, 3] and source.camera_names == ()
    sample = source[0]
    assert set(sample.box_labels) <= {0, 1} and sample.box_points.min() >= 10
    assert len(CLASS_NAMES) == len(set(CLASS_NAMES)) == 26


def test_a_test_log_has_no_boxes(tree: Path) -> None:
    (tree / "adcf7d18" / "annotations.feather").unlink()
    source = Argoverse2(tree)
    assert source[0].boxes.shape == (0, 9) and source.class_counts(0).sum() == 0


def test_sweeps_are_joined_through_the_poses(tree: Path) -> None:
    """The same cloud at an earlier pose: its points move as the vehicle did, and get an age."""
    lidar = tree / "adcf7d18" / "sensors" / "lidar"
    earlier = 315973157899927214  # the first pose, 60 ms before
    shutil.copy(lidar / f"{NS}.feather", lidar / f"{earlier}.feather")
    joined = Argoverse2(tree, num_sweeps=2)[1]
    alone = Argoverse2(tree)[1]
    assert len(joined.points) == 2 * len(alone.points)
    np.testing.assert_array_equal(joined.points[:100660], alone.points)
    np.testing.assert_allclose(joined.points[100660:, 4], 0.059952, atol=1e-5)
    poses = [Argoverse2(tree)[i].ego2global for i in range(2)]
    first = np.append(joined.points[100660, :3].astype(np.float64), 1)
    as_recorded = np.append(alone.points[0, :3].astype(np.float64), 1)
    np.testing.assert_allclose(poses[1] @ first, poses[0] @ as_recorded, atol=1e-4)


def test_wrong_arguments(root: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"for 00000000, got adcf7d18"):
        Argoverse2(root, ["00000000"])
    with pytest.raises(ValueError, match="for a log, got none"):
        Argoverse2(tmp_path)
    with pytest.raises(ValueError, match="num_sweeps must be at least 1, got 0"):
        Argoverse2(root, num_sweeps=0)


@pytest.mark.parametrize(
    ("name", "source", "message"),
    [
        (f"sensors/lidar/{NS}.feather", None, r"sensors/lidar/315973157959879000\.feather"),
        (f"sensors/lidar/{NS}.feather", "annotations.feather", "must have the columns x, y, z"),
        ("annotations.feather", "city_SE3_egovehicle.feather", "none named track_uuid, category"),
        ("city_SE3_egovehicle.feather", None, r"city_SE3_egovehicle\.feather"),
    ],
)
def test_broken_files_are_named(
    tree: Path, root: Path, name: str, source: str | None, message: str
) -> None:
    path = tree / "adcf7d18" / name
    path.unlink()
    path.write_bytes(b"" if source is None else (root / "adcf7d18" / source).read_bytes())
    with pytest.raises(BadSampleError, match=message):
        Argoverse2(tree)[0]
