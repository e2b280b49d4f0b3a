"""One moment seen by several sensors: a LiDAR cloud of one or more sweeps, camera images, boxes, the map around.

Datasets (nuScenes, PandaSet, KITTI) yield `MultiSensorSample`, as recorded; `pointlib.data.multi_sensor_pipeline`
augments it and turns it into tensors.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]
Matrix = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class CameraImage:
    """One camera's picture at this moment.

    Attributes:
        name: Such as "CAM_FRONT"; the order of cameras is the dataset's and the same in every sample.
        image: (H, W, 3) uint8 RGB; None if the file is missing and the dataset was told to go on without.
        intrinsics: (3, 3) camera matrix [pixels].
        lidar2camera: (4, 4) from the LiDAR frame at the LiDAR's time to the camera frame at the camera's time; the
            motion of the vehicle between both is in it.
        path: File of the image.
        timestamp_us: When it was taken [us].
    """

    name: str
    image: npt.NDArray[np.uint8] | None
    intrinsics: Matrix
    lidar2camera: Matrix
    path: str
    timestamp_us: int = 0


@dataclass(frozen=True, eq=False)
class MapLayers:
    """The map around a sample, as shapes in the LiDAR frame seen from above.

    Attributes:
        polygons: For each layer, polygons; each a list of rings (K, 2) float64 x, y [m]: the outline, then holes.
        lines: For each layer, lines (K, 2) float64 x, y [m].
    """

    polygons: Mapping[str, list[list[Matrix]]]
    lines: Mapping[str, list[Matrix]]


@dataclass(frozen=True, eq=False)
class MultiSensorSample:
    """One key frame with everything known about it, not augmented.

    Attributes:
        points: (N, 5) float32 x, y, z [m] in the LiDAR frame of the key frame, intensity as the dataset stores it,
            time before the key frame [s], 0 for the key frame's own points, which come first.
        boxes: (M, 9) float32, `pointlib.geometry.BOX_COLUMNS` with velocity (NaN: unknown), LiDAR frame.
        box_labels: (M,) int64 index into the dataset's `class_names`.
        box_points: (M,) int64 LiDAR returns in each box, as the dataset counts them.
        cameras: The cameras, in the dataset's order; empty if not asked for.
        lidar2ego: (4, 4) float64.
        ego2global: (4, 4) float64 at the LiDAR's time.
        map: Shapes of the map; None if not asked for or not there.
        token: Unique name of the sample.
        path: File of the key frame's cloud; it stands in every message about the sample.
        timestamp_us: Time of the LiDAR's key frame [us].
    """

    points: Floats
    boxes: Floats
    box_labels: npt.NDArray[np.int64]
    box_points: npt.NDArray[np.int64]
    cameras: tuple[CameraImage, ...]
    lidar2ego: Matrix
    ego2global: Matrix
    map: MapLayers | None
    token: str
    path: str
    timestamp_us: int

    def replace(self, **changes: Any) -> MultiSensorSample:
        """Return a copy with some fields changed."""
        return dataclasses.replace(self, **changes)


class MultiSensorSource(Protocol):
    """A dataset of multi-sensor samples."""

    @property
    def class_names(self) -> tuple[str, ...]:
        """Name of each class of boxes."""

    @property
    def camera_names(self) -> tuple[str, ...]:
        """Name of each camera, in the order of every sample; empty without cameras."""

    def __len__(self) -> int:
        """Number of samples."""

    def __getitem__(self, index: int, /) -> MultiSensorSample:
        """Read one sample; raise BadSampleError if it is broken."""

    def class_counts(self, index: int) -> npt.NDArray[np.int64]:
        """(num_classes,) boxes of each class in a sample, without reading its files; for class-balanced sampling."""
