"""A small SemanticKITTI tree on disk, made anew for each test that may break it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from pointlib.data import PointCloudSample

TREE = {"00": 3, "08": 2, "11": 1}
RAW_IDS = np.array([0, 10, 40, 50, 70, 252, 99], dtype=np.uint16)


def write_scan(folder: Path, frame: str, seed: int, num_points: int = 60) -> None:
    """Write one scan and its labels, with instance ids in the upper half."""
    rng = np.random.default_rng(seed)
    points = rng.uniform(-5, 5, (num_points, 4)).astype(np.float32)
    (folder / "velodyne").mkdir(parents=True, exist_ok=True)
    (folder / "labels").mkdir(exist_ok=True)
    points.tofile(folder / "velodyne" / f"{frame}.bin")
    words = RAW_IDS[np.arange(num_points) % len(RAW_IDS)].astype(np.uint32) | (7 << 16)
    words.tofile(folder / "labels" / f"{frame}.label")


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """Sequences 00 (3 scans), 08 (2) and 11 (1, without labels) with calibration, poses and times."""
    calibration = "P0: " + "1 " * 12 + "\nTr: 0 -1 0 0.1 0 0 -1 0.2 1 0 0 0.3\n"
    for name, count in TREE.items():
        folder = tmp_path / "sequences" / name
        for i in range(count):
            write_scan(folder, f"{i:06d}", seed=100 * int(name) + i)
        (folder / "calib.txt").write_text(calibration)
        poses = [f"1 0 0 {0.5 * i} 0 1 0 0 0 0 1 {i}\n" for i in range(count)]
        (folder / "poses.txt").write_text("".join(poses))
        (folder / "times.txt").write_text("".join(f"{0.1 * i}\n" for i in range(count)))
    for path in (tmp_path / "sequences" / "11" / "labels").iterdir():
        path.unlink()
    return tmp_path


@pytest.fixture
def make_sample() -> Callable[..., PointCloudSample]:
    """Make a labelled sample with random points inside a cube of 2 x `extent` metres."""

    def make(num_points: int = 200, extent: float = 20.0, seed: int = 0) -> PointCloudSample:
        rng = np.random.default_rng(seed)
        points = rng.uniform(-extent, extent, (num_points, 4)).astype(np.float32)
        return PointCloudSample(
            points=points,
            labels=rng.choice([0, 5, 8, 14, 255], num_points).astype(np.uint8),
            path=f"scan{seed}",
            instance=rng.integers(0, 3, num_points).astype(np.int32),
        )

    return make
