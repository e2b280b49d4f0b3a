"""A multi-sensor sample that is ready for a network, and a batch of them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from pointlib.sensors import CameraBatch, SceneTargets, SensorBatch

Floats = npt.NDArray[np.float32]
Matrix = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class PreparedCameras:
    """The N images of a sample; attributes as of `pointlib.sensors.CameraBatch` without its first axis."""

    images: Floats
    intrinsics: Floats
    camera2lidar: Floats
    image_aug: Floats
    present: npt.NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class PreparedTargets:
    """What there is to find in a sample; attributes as of `pointlib.sensors.SceneTargets` without its first axis."""

    boxes: Floats
    labels: npt.NDArray[np.int64]
    map_masks: npt.NDArray[np.bool_] | None


@dataclass(frozen=True, eq=False)
class PreparedSample:
    """One sample as `MultiSensorDataset` yields it.

    Attributes:
        points: (N, C) float32 in the augmented LiDAR frame; None without LiDAR.
        cameras: The images; None without cameras.
        lidar_aug: (4, 4) float64 from the recorded to the augmented LiDAR frame.
        targets: None if not asked for.
        token: Unique name of the sample.
        path: File of its cloud.
        lidar2ego: (4, 4) float64.
        ego2global: (4, 4) float64.
        skipped: Messages of the bad samples this one stands in for.
        counted: False for a sample that only fills up a process' share and must not be scored.
    """

    points: Floats | None
    cameras: PreparedCameras | None
    lidar_aug: Matrix
    targets: PreparedTargets | None
    token: str
    path: str
    lidar2ego: Matrix
    ego2global: Matrix
    skipped: tuple[str, ...] = ()
    counted: bool = True


@dataclass(frozen=True, eq=False)
class MultiSensorBatch:
    """Several samples: what the network sees, what it should say, and whose they are.

    Attributes:
        sensors: Input of the network.
        targets: What there is to find; None if not asked for.
        tokens: Unique name of each sample.
        paths: File of each sample's cloud.
        lidar2ego: (B, 4, 4) float64; stays on the CPU, since it serves to write results.
        ego2global: (B, 4, 4) float64; stays on the CPU.
        skipped: Messages of the bad samples that were replaced while this batch was made.
        counted: For each sample, False if it only fills up a process' share and must not be scored.
    """

    sensors: SensorBatch
    targets: SceneTargets | None
    tokens: tuple[str, ...]
    paths: tuple[str, ...]
    lidar2ego: Tensor
    ego2global: Tensor
    skipped: tuple[str, ...] = ()
    counted: tuple[bool, ...] = ()

    def __len__(self) -> int:
        return len(self.tokens)

    def to(self, device: torch.device | str, non_blocking: bool = False) -> MultiSensorBatch:
        """Return the batch with sensors and targets on `device`; asynchronously if pinned and `non_blocking`."""
        return dataclasses.replace(
            self,
            sensors=self.sensors.to(device, non_blocking),
            targets=None if self.targets is None else self.targets.to(device, non_blocking),
        )

    def pin_memory(self) -> MultiSensorBatch:
        """Return the batch in page-locked memory; `DataLoader(pin_memory=True)` calls this."""
        return dataclasses.replace(
            self,
            sensors=self.sensors.pin_memory(),
            targets=None if self.targets is None else self.targets.pin_memory(),
        )


def collate_multi_sensor(samples: Sequence[PreparedSample]) -> MultiSensorBatch:
    """Join samples into a batch; the `collate_fn` of a DataLoader.

    Args:
        samples: One or more samples of one `MultiSensorDataset`.

    Returns:
        The batch; sample i has batch index i.

    Raises:
        ValueError: There is no sample, or some have a sensor, targets, a map or a number of cameras that others lack.
        TypeError: A sample is not a `PreparedSample`.
    """
    if not samples:
        raise ValueError("collate_multi_sensor: samples must hold at least one sample, got none.")
    for sample in samples:
        if not isinstance(sample, PreparedSample):
            raise TypeError(
                f"collate_multi_sensor: samples must be PreparedSample, got {type(sample).__name__}. "
                "Wrap the source in MultiSensorDataset, which prepares them."
            )
    points = _all_or_none("points", [sample.points for sample in samples])
    sensors = SensorBatch(
        points=None if points is None else tuple(map(torch.from_numpy, points)),
        cameras=_join_cameras([sample.cameras for sample in samples]),
        lidar_aug=_stack([sample.lidar_aug.astype(np.float32) for sample in samples]),
    )
    return MultiSensorBatch(
        sensors=sensors,
        targets=_join_targets([sample.targets for sample in samples]),
        tokens=tuple(sample.token for sample in samples),
        paths=tuple(sample.path for sample in samples),
        lidar2ego=_stack([sample.lidar2ego for sample in samples]),
        ego2global=_stack([sample.ego2global for sample in samples]),
        skipped=tuple(message for sample in samples for message in sample.skipped),
        counted=tuple(sample.counted for sample in samples),
    )


def _join_cameras(parts: Sequence[PreparedCameras | None]) -> CameraBatch | None:
    cameras = _all_or_none("cameras", parts)
    if cameras is None:
        return None
    shapes = sorted({part.images.shape for part in cameras})
    if len(shapes) > 1:
        raise ValueError(
            f"collate_multi_sensor: samples must have images of one shape (cameras, 3, H, W), got {shapes}. "
            "Use one source and one ImageConfig for a loader."
        )
    names = [field.name for field in dataclasses.fields(CameraBatch)]
    return CameraBatch(
        **{name: _stack([getattr(part, name) for part in cameras]) for name in names}
    )


def _join_targets(parts: Sequence[PreparedTargets | None]) -> SceneTargets | None:
    targets = _all_or_none("targets", parts)
    if targets is None:
        return None
    masks = _all_or_none("map_masks", [part.map_masks for part in targets])
    return SceneTargets(
        boxes=tuple(torch.from_numpy(part.boxes) for part in targets),
        labels=tuple(torch.from_numpy(part.labels) for part in targets),
        map_masks=None if masks is None else _stack(masks),
    )


def _all_or_none(name: str, parts: Sequence[Any]) -> list[Any] | None:
    present = [part for part in parts if part is not None]
    if present and len(present) != len(parts):
        raise ValueError(
            f"collate_multi_sensor: samples must all have {name} or none, got {len(present)} of {len(parts)} with "
            "them. Use one source and one pipeline for a loader."
        )
    return present or None


def _stack(parts: Sequence[npt.NDArray[Any]]) -> Tensor:
    join: Callable[..., npt.NDArray[Any]] = np.stack
    return torch.from_numpy(join(parts))
