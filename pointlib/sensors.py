"""What a multi-sensor network is fed, what it is trained towards and what it answers, for any number of samples.

Tensors only: `pointlib.data` makes these and `pointlib.models` reads them, and neither knows the other.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor

T = TypeVar("T", bound="_Movable")


class _Movable:
    """Dataclasses of tensors, of tuples of them, and of each other, that go to a device as one."""

    def to(self: T, device: torch.device | str, non_blocking: bool = False) -> T:
        """The same on another device; copies run asynchronously if pinned and `non_blocking`."""
        return _mapped(self, lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def pin_memory(self: T) -> T:
        """The same in page-locked memory; `DataLoader(pin_memory=True)` calls this."""
        return _mapped(self, lambda tensor: tensor.pin_memory())


def _mapped(value: Any, change: Any) -> Any:
    if isinstance(value, Tensor):
        return change(value)
    if isinstance(value, tuple):
        return tuple(_mapped(item, change) for item in value)
    if isinstance(value, _Movable):
        fields = {name: _mapped(item, change) for name, item in vars(value).items()}
        return type(value)(**fields)
    return value


@dataclass(frozen=True, eq=False)
class CameraBatch(_Movable):
    """The images of B samples with N cameras each, and where their pixels look.

    Attributes:
        images: (B, N, 3, H, W) float32 RGB, normalised with ImageNet's mean and standard deviation.
        intrinsics: (B, N, 3, 3) float32 camera matrix of the recorded image [pixels].
        camera2lidar: (B, N, 4, 4) float32 to the recorded LiDAR frame.
        image_aug: (B, N, 4, 4) float32: from pixels of the recorded image to pixels of `images`, as
            `image_aug @ [u, v, depth, 1]`: resize, crop, flip and rotation.
        present: (B, N) bool; False for a camera whose image is missing and therefore black.
    """

    images: Tensor
    intrinsics: Tensor
    camera2lidar: Tensor
    image_aug: Tensor
    present: Tensor


@dataclass(frozen=True, eq=False)
class SensorBatch(_Movable):
    """B samples of everything that was sensed. A sensor that was not there is None.

    Attributes:
        points: B of (N_i, C) float32 x, y, z [m] in the (augmented) LiDAR frame, intensity, time [s] before the key
            frame; or None.
        cameras: The images; or None.
        lidar_aug: (B, 4, 4) float32 from the recorded to the augmented LiDAR frame: rotation, scale, translation,
            flips. Boxes, maps and points are in the augmented frame.
    """

    points: tuple[Tensor, ...] | None
    cameras: CameraBatch | None
    lidar_aug: Tensor

    @property
    def batch_size(self) -> int:
        """B."""
        return self.lidar_aug.shape[0]

    @property
    def device(self) -> torch.device:
        """Where the tensors are."""
        return self.lidar_aug.device


@dataclass(frozen=True, eq=False)
class SceneTargets(_Movable):
    """What there is to find in B samples.

    Attributes:
        boxes: B of (M_i, 9) float32 boxes with velocity, `pointlib.geometry.BOX_COLUMNS`, augmented LiDAR frame; NaN
            velocity where none is known.
        labels: B of (M_i,) int64 class of each box.
        map_masks: (B, C, X, Y) bool: class c covers cell (x, y); None without map.
    """

    boxes: tuple[Tensor, ...]
    labels: tuple[Tensor, ...]
    map_masks: Tensor | None = None


@dataclass(frozen=True, eq=False)
class Detections(_Movable):
    """Boxes found in one sample, best first.

    Attributes:
        boxes: (K, 9) float32 boxes with velocity, `pointlib.geometry.BOX_COLUMNS`, LiDAR frame.
        scores: (K,) float32 in [0, 1].
        labels: (K,) int64 class.
    """

    boxes: Tensor
    scores: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.scores)


@dataclass(frozen=True, eq=False)
class ScenePrediction(_Movable):
    """The answer of a multi-sensor network to one sample.

    Attributes:
        detections: Boxes; None for a network without a detection head.
        map_probabilities: (C, X, Y) float32 in [0, 1]; None for a network without a map head.
        missing_sensors: Names of inputs that the network has an encoder for and did not get.
    """

    detections: Detections | None = None
    map_probabilities: Tensor | None = None
    missing_sensors: tuple[str, ...] = ()
