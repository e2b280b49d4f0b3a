"""KITTI's side files."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from pointlib.data import (
    BadSampleError,
    read_calibration,
    read_camera_poses,
    read_lidar2world,
    read_times,
)


def test_real_calibration_and_poses(test_data: Path, tmp_path: Path) -> None:
    source = test_data / "semantickitti/sequences/00"
    (tmp_path / "calib.txt").write_bytes((source / "calib.txt").read_bytes())
    (tmp_path / "poses.txt").write_bytes((source / "poses_first100.txt").read_bytes())
    calibration = read_calibration(tmp_path / "calib.txt")
    assert sorted(calibration) == ["P0", "P1", "P2", "P3", "Tr"]
    rotation = calibration["Tr"][:3, :3]
    assert np.allclose(rotation @ rotation.T, np.eye(3), atol=1e-6)
    poses = read_lidar2world(tmp_path)
    assert poses.shape == (100, 4, 4)
    assert np.allclose(poses[0], np.eye(4), atol=1e-6)
    # The car drives forward, along the LiDAR's x, on nearly flat ground.
    forward, left, up = np.diff(poses[:30, :3, 3], axis=0).T
    assert (forward > 0.5).all() and (np.abs(left) < 0.2).all() and (np.abs(up) < 0.1).all()


def test_times(tree: Path) -> None:
    assert read_times(tree / "sequences/00/times.txt").tolist() == [0.0, 0.1, 0.2]


@pytest.mark.parametrize(
    ("read", "text", "message"),
    [
        (read_calibration, "Tr 1 2 3", "line 1 must be 'NAME: 12 numbers'"),
        (
            read_calibration,
            "P0: " + "1 " * 12 + "\nTr: 1 2 3",
            "line 2 .* 12 numbers .* got 3 words",
        ),
        (read_camera_poses, "1 " * 11 + "x", "line 1 .* could not convert"),
        (read_times, "0.1\nsoon\n", "one number a line, got .*soon"),
    ],
)
def test_broken_lines_are_named(
    tmp_path: Path, read: Callable[[Path], object], text: str, message: str
) -> None:
    path = tmp_path / "file.txt"
    path.write_text(text)
    with pytest.raises(BadSampleError, match=message) as error:
        read(path)
    assert str(path) in str(error.value)


def test_missing_files_and_entries_are_named(tree: Path) -> None:
    folder = tree / "sequences/00"
    (folder / "calib.txt").write_text("P0: " + "1 " * 12)
    with pytest.raises(BadSampleError, match=r"must hold 'Tr:' .* got \['P0'\]"):
        read_lidar2world(folder)
    (folder / "calib.txt").unlink()
    with pytest.raises(BadSampleError, match=r"calib\.txt \(.*No such file"):
        read_lidar2world(folder)


def test_empty_poses(tmp_path: Path) -> None:
    (tmp_path / "poses.txt").write_text("")
    assert read_camera_poses(tmp_path / "poses.txt").shape == (0, 4, 4)
