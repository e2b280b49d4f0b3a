"""The sample that the BEVFusion benchmark runs on: read from disk, or made up where there is no data."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt

from pointlib.data.image_transforms import ImageConfig
from pointlib.data.multi_sensor import CameraImage, MultiSensorSample
from pointlib.data.multi_sensor_batch import MultiSensorBatch, collate_multi_sensor
from pointlib.data.multi_sensor_pipeline import MultiSensorPipeline
from pointlib.data.nuscenes_info import NuScenesInfo

RANGE = (-54.0, -54.0, -5.0, 54.0, 54.0, 3.0)
TEN_SWEEPS = "nuscenes/nvidia_10sweep/ff9eff4389a740848f9a56ad749a4ae8.f16.bin"
KEY_FRAME = "nuscenes/scene0061_kf0"
YAWS = (0, -55, 55, 180, 110, -110)
"""Degrees from forward of nuScenes' cameras, counter-clockwise, in the order of every sample."""


def read(data: Path, ten_sweeps: bool) -> tuple[MultiSensorBatch, str]:
    """One sample, prepared as for evaluation but with the boxes that training would see.

    Args:
        data: Folder with nuscenes/.
        ten_sweeps: Take the points of ten sweeps of another scene.

    Returns:
        A batch of one, and where it comes from.
    """
    folder = data / KEY_FRAME
    if folder.is_dir():
        sample = NuScenesInfo(folder / "info.json", num_sweeps=1)[0]
        source = "nuScenes scene-0061, first key frame"
        if ten_sweeps:
            points = np.fromfile(data / TEN_SWEEPS, np.float16).reshape(-1, 5).astype(np.float32)
            sample = sample.replace(points=points)
            source += ", points of ten sweeps of another scene"
    else:
        sample, source = made_up(10 if ten_sweeps else 1), "made up: the data was not found"
    pipeline = MultiSensorPipeline(RANGE, training=False, image=ImageConfig())
    prepared = pipeline(sample, 0, np.random.default_rng(0))
    return collate_multi_sensor([prepared]), source


def made_up(sweeps: int) -> MultiSensorSample:
    """A sample of nuScenes' sizes: 32 beams over flat ground among walls, noise as images, boxes on the ground."""
    rng = np.random.default_rng(0)
    boxes = np.zeros((40, 9), np.float32)
    boxes[:, :2] = rng.uniform(-45, 45, (40, 2))
    boxes[:, 2:6] = (-1.0, 4.5, 1.9, 1.7)
    boxes[:, 6] = rng.uniform(-np.pi, np.pi, 40)
    forward = np.array(
        [[0.0, -1, 0], [0, 0, -1], [1, 0, 0]]
    )  # LiDAR axes of a camera that looks along +x
    cameras = []
    for number, yaw in enumerate(np.radians(YAWS)):
        turn = np.array([[np.cos(yaw), np.sin(yaw), 0], [-np.sin(yaw), np.cos(yaw), 0], [0, 0, 1]])
        pose = np.eye(4)
        pose[:3, :3] = forward @ turn
        cameras.append(
            CameraImage(
                name=f"camera {number}",
                image=rng.integers(0, 256, (900, 1600, 3), dtype=np.uint8),
                intrinsics=np.array([[1266.0, 0, 800], [0, 1266, 450], [0, 0, 1]]),
                lidar2camera=pose,
                path="made up",
            )
        )
    return MultiSensorSample(
        points=np.concatenate([sweep(rng, age) for age in range(sweeps)]),
        boxes=boxes,
        box_labels=np.zeros(40, np.int64),
        box_points=np.full(40, 50),
        cameras=tuple(cameras),
        lidar2ego=np.eye(4),
        ego2global=np.eye(4),
        map=None,
        token="made-up",
        timestamp_us=0,
        path="made up",
    )


def sweep(rng: np.random.Generator, age: int) -> npt.NDArray[np.float32]:
    """(N, 5) points of one sweep, `age` twentieths of a second old, from a sensor that drives 0.5 m in between."""
    elevation = np.radians(np.linspace(-30, 10, 32))[:, None]
    azimuth = np.linspace(0, 2 * np.pi, 1085, endpoint=False)[None]
    ground = 1.84 / np.maximum(-np.tan(elevation), 1e-3)
    wall = 12 + 25 * np.abs(np.sin(3 * azimuth)) ** 3 + 4 * np.sin(17 * azimuth)
    reach = np.minimum(ground, wall) + rng.normal(0, 0.02, (32, 1085))
    xyz = np.stack(
        [
            reach * np.cos(azimuth) - 0.5 * age,
            reach * np.sin(azimuth),
            reach * np.tan(elevation),
        ],
        axis=-1,
    ).reshape(-1, 3)
    rest = np.stack([rng.uniform(0, 100, len(xyz)), np.full(len(xyz), 0.05 * age)], axis=1)
    return np.concatenate([xyz, rest], axis=1).astype(np.float32)
