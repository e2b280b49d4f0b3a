"""Taking sensors away: at random in training, so that a network learns to do without, and by name in evaluation."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection
from dataclasses import dataclass

import torch

from pointlib.sensors import CameraBatch, SensorBatch

SENSORS = ("camera", "lidar")


@dataclass(frozen=True)
class SensorDropout:
    """How often a training sample loses a sensor; never both at once.

    Attributes:
        camera: Probability of losing all cameras.
        lidar: Probability of losing all points.
    """

    camera: float = 0.0
    lidar: float = 0.0

    def __post_init__(self) -> None:
        if min(self.camera, self.lidar) < 0 or self.camera + self.lidar > 1:
            raise ValueError(
                "SensorDropout: camera and lidar must be at least 0 and at most 1 together, got "
                f"{self.camera} and {self.lidar}"
            )

    def __call__(self, batch: SensorBatch) -> SensorBatch:
        """Drop with torch's random numbers; batches with one sensor pass unchanged."""
        if batch.cameras is None or batch.points is None or self.camera + self.lidar == 0:
            return batch
        draws = torch.rand(batch.batch_size).tolist()
        no_camera = [draw < self.camera for draw in draws]
        no_lidar = [self.camera <= draw < self.camera + self.lidar for draw in draws]
        points = tuple(
            cloud[:0] if gone else cloud for cloud, gone in zip(batch.points, no_lidar, strict=True)
        )
        kept = ~torch.tensor(no_camera, device=batch.device)
        return dataclasses.replace(batch, points=points, cameras=_keep(batch.cameras, kept))


def without_sensors(batch: SensorBatch, names: Collection[str]) -> SensorBatch:
    """The batch as if some sensors did not exist.

    Args:
        batch: All that was sensed.
        names: Of "camera" and "lidar".

    Raises:
        ValueError: There is no such sensor.
    """
    unknown = sorted(set(names) - set(SENSORS))
    if unknown:
        raise ValueError(
            f"without_sensors: names must be of {', '.join(SENSORS)}, got {', '.join(unknown)}"
        )
    return dataclasses.replace(
        batch,
        points=None if "lidar" in names else batch.points,
        cameras=None if "camera" in names else batch.cameras,
    )


def _keep(cameras: CameraBatch, kept: torch.Tensor) -> CameraBatch:
    """Black images for the samples that are not kept: (B,) bool."""
    if bool(kept.all()):
        return cameras
    images = cameras.images * kept[:, None, None, None, None]
    return dataclasses.replace(cameras, images=images, present=cameras.present & kept[:, None])
