"""Small multi-sensor scenes made by hand: a street of boxes, cameras that look at it, a source in memory."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from pointlib.data.image_transforms import ImageConfig
from pointlib.data.lidar_transforms import LidarAugmentConfig
from pointlib.data.multi_sensor import CameraImage, MultiSensorSample
from pointlib.data.multi_sensor_pipeline import MultiSensorPipeline
from pointlib.data.sample import BadSampleError
from pointlib.geometry import invert, rigid_transform, yaw_rotation

CLASSES = ("car", "pedestrian", "barrier")
RANGE = (-40.0, -40.0, -5.0, 40.0, 40.0, 3.0)
SMALL = ImageConfig((48, 80), (0.45, 0.65), 0.55, rotation=0.1)
TRAINING = MultiSensorPipeline(RANGE, True, LidarAugmentConfig(), SMALL)
EVALUATION = MultiSensorPipeline(RANGE, False, image=SMALL)


def make_camera(
    name: str, yaw: float, image: np.ndarray | None, size: tuple[int, int] = (90, 160)
) -> CameraImage:
    """A camera 1 m in front of the LiDAR that looks towards `yaw`; its image has `size` (height, width)."""
    camera2forward = np.array([[0.0, 0, 1], [-1, 0, 0], [0, -1, 0]])
    rotation = yaw_rotation(np.array(yaw)) @ camera2forward
    position = [math.cos(yaw), math.sin(yaw), -0.3]
    height, width = size
    return CameraImage(
        name=name,
        image=image,
        intrinsics=np.array([[0.8 * width, 0, width / 2], [0, 0.8 * width, height / 2], [0, 0, 1]]),
        lidar2camera=invert(rigid_transform(rotation, position)),
        path=f"{name}.jpg",
    )


def fill_box(box: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    """(count, 3) points inside a box, not nearer than 2 % to a face."""
    local = rng.uniform(-0.48, 0.48, (count, 3)) * box[3:6]
    return local @ yaw_rotation(np.array(float(box[6]))).T + box[:3]


def make_scene(
    seed: int = 0,
    num_boxes: int = 6,
    num_background: int = 400,
    num_cameras: int = 0,
    sweeps: int = 3,
    first_x: float = -30.0,
) -> MultiSensorSample:
    """Boxes in a row along x, 10 m apart, 20 points in each; background below them, on the ground."""
    rng = np.random.default_rng(seed)
    boxes = np.zeros((num_boxes, 9))
    boxes[:, 0] = first_x + 10 * np.arange(num_boxes) + rng.uniform(-1, 1, num_boxes)
    boxes[:, 1] = rng.uniform(-5, 5, num_boxes)
    boxes[:, 3:6] = rng.uniform([3, 1.5, 1.2], [5, 2, 2], (num_boxes, 3))
    boxes[:, 6] = rng.uniform(-np.pi, np.pi, num_boxes)
    boxes[:, 7:] = rng.normal(size=(num_boxes, 2))
    parts = [fill_box(box, 20, rng) for box in boxes]
    ground = rng.uniform(-35, 35, (num_background, 3))
    ground[:, 2] = -2.0
    xyz = np.concatenate([*parts, ground])
    others = np.stack([rng.uniform(0, 255, len(xyz)), 0.05 * rng.integers(0, sweeps, len(xyz))], 1)
    images = [rng.integers(0, 256, (90, 160, 3), dtype=np.uint8) for _ in range(num_cameras)]
    return MultiSensorSample(
        points=np.concatenate([xyz, others], 1).astype(np.float32),
        boxes=boxes.astype(np.float32),
        box_labels=np.arange(num_boxes) % len(CLASSES),
        box_points=np.full(num_boxes, 20),
        cameras=tuple(
            make_camera(f"CAM_{i}", 2 * math.pi * i / num_cameras, image)
            for i, image in enumerate(images)
        ),
        lidar2ego=rigid_transform(np.eye(3), [0.9, 0.0, 1.8]),
        ego2global=rigid_transform(yaw_rotation(np.array(0.3)), [1000.0, 2000.0, 0.0]),
        map=None,
        token=f"token{seed}",
        path=f"scene{seed}.bin",
        timestamp_us=1_000_000 * seed,
    )


class MemorySource:
    """Samples in a list; those in `broken` raise BadSampleError."""

    def __init__(self, samples: Sequence[MultiSensorSample], broken: Sequence[int] = ()) -> None:
        self.samples = list(samples)
        self.broken = tuple(broken)
        self.class_names = CLASSES
        self.camera_names = tuple(camera.name for camera in self.samples[0].cameras)

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int, /) -> MultiSensorSample:
        if index in self.broken:
            raise BadSampleError(f"{self.samples[index].path} must be readable, got garbage.")
        return self.samples[index]

    def class_counts(self, index: int) -> np.ndarray:
        return np.bincount(self.samples[index].box_labels, minlength=len(CLASSES))


def make_source(count: int = 5, broken: tuple[int, ...] = (), cameras: int = 2) -> MemorySource:
    """Scenes with images, each another."""
    return MemorySource([make_scene(i, num_cameras=cameras) for i in range(count)], broken)
