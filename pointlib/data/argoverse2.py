"""Argoverse 2's sensor dataset as samples: LiDAR sweeps, cuboids with velocity, poses.

The tree is `LOG/{sensors/lidar/NS.feather, annotations.feather, city_SE3_egovehicle.feather}` (Wilson et al.,
"Argoverse 2", NeurIPS 2021). A sweep joins both VLP-32C of the roof and is already in the ego-vehicle frame at its
timestamp (x forward, y left, z up, origin at the rear axle), as its cuboids are: that frame is the LiDAR frame here.
Images are not read.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from torch.utils.data import Dataset

from pointlib.data.feather import Column, read_feather
from pointlib.data.multi_sensor import MultiSensorSample
from pointlib.data.sample import BadSampleError
from pointlib.geometry import (
    invert,
    quaternion_rotation,
    rigid_transform,
    transform_boxes,
    transform_points,
)

CLASS_NAMES = (
    "REGULAR_VEHICLE", "PEDESTRIAN", "BOLLARD", "CONSTRUCTION_CONE", "CONSTRUCTION_BARREL", "STOP_SIGN", "BICYCLE",
    "LARGE_VEHICLE", "WHEELED_DEVICE", "BUS", "BOX_TRUCK", "SIGN", "TRUCK", "MOTORCYCLE", "BICYCLIST",
    "VEHICULAR_TRAILER", "TRUCK_CAB", "MOTORCYCLIST", "DOG", "SCHOOL_BUS", "WHEELED_RIDER", "STROLLER",
    "ARTICULATED_BUS", "MESSAGE_BOARD_TRAILER", "MOBILE_PEDESTRIAN_CROSSING_SIGN",
    "WHEELCHAIR",
)  # fmt: skip
"""The 26 categories that the benchmark of 3D detection scores."""

_BOX_FIELDS = ("tx_m", "ty_m", "tz_m", "length_m", "width_m", "height_m")
_NEIGHBOUR_NS = 250_000_000
"""Cuboids further away in time say nothing about a velocity."""


class _Log(NamedTuple):
    """Tables of one log, all sorted by time."""

    poses: dict[str, Column]
    cuboids: dict[str, Column] | None
    annotated_ns: npt.NDArray[np.int64]


class Argoverse2(Dataset[MultiSensorSample]):
    """Sweeps of Argoverse 2 as a `MultiSensorSource` without cameras.

    Intensity is 0 to 255. A box's velocity is its centre's movement over ground between the annotations before and
    after (or to the one there is); `box_points` is the dataset's own `num_interior_pts`.

    Args:
        root: Folder of the logs' folders.
        logs: Logs to read; None for all that are there.
        class_names: Categories that boxes are read of, in the order of the classes; all others are left out.
        num_sweeps: Clouds joined into one through the poses, the sweep's own and those before it.
        min_points: Boxes with fewer returns are left out.

    Raises:
        ValueError: If a log is not there, there is no sweep, or an option makes no sense.
    """

    def __init__(
        self,
        root: str | Path,
        logs: Sequence[str] | None = None,
        class_names: Sequence[str] = CLASS_NAMES,
        num_sweeps: int = 1,
        min_points: int = 1,
    ) -> None:
        if num_sweeps < 1:
            raise ValueError(f"Argoverse2: num_sweeps must be at least 1, got {num_sweeps}.")
        self.root = Path(root)
        self.num_sweeps = num_sweeps
        self.min_points = min_points
        self._class_names = tuple(class_names)
        there = sorted(path.parent.parent.name for path in self.root.glob("*/sensors/lidar"))
        missing = [log for log in logs or () if log not in there]
        self.logs = tuple(there if logs is None else logs)
        self._sweeps = {log: _sweep_times(self.root / log) for log in self.logs if log in there}
        self._index = [(log, i) for log, times in self._sweeps.items() for i in range(len(times))]
        if missing or not self._index:
            raise ValueError(
                f"Argoverse2: {self.root} must hold LOG/sensors/lidar/*.feather for {', '.join(missing) or 'a log'}, "
                f"got {', '.join(there[:8]) or 'none'}. Give the folder that holds the logs' folders."
            )

    @property
    def class_names(self) -> tuple[str, ...]:
        """Name of each class of boxes."""
        return self._class_names

    @property
    def camera_names(self) -> tuple[str, ...]:
        """()."""
        return ()

    def __len__(self) -> int:
        return len(self._index)

    def __getitem__(self, index: int) -> MultiSensorSample:
        """Read one sweep.

        Raises:
            IndexError: If there is no such sweep.
            BadSampleError: If one of its files is missing or broken; the message names the file.
        """
        log, number = self._at(index)
        times = self._sweeps[log]
        now = int(times[number])
        ego2city = self._pose(log, now)
        parts = []
        for time in times[max(number + 1 - self.num_sweeps, 0) : number + 1][::-1]:
            points = _read_points(self._sweep_path(log, int(time)))
            if time != now:
                there2here = invert(ego2city) @ self._pose(log, int(time))
                points = transform_points(points, there2here)
                points[:, 4] = (now - int(time)) * 1e-9
            parts.append(points.astype(np.float32))
        boxes, labels, counts = self._boxes(log, now, ego2city)
        return MultiSensorSample(
            points=np.concatenate(parts),
            boxes=boxes,
            box_labels=labels,
            box_points=counts,
            cameras=(),
            lidar2ego=np.eye(4),
            ego2global=ego2city,
            map=None,
            token=f"{log}/{now}",
            path=str(self._sweep_path(log, now)),
            timestamp_us=now // 1000,
        )

    def class_counts(self, index: int) -> npt.NDArray[np.int64]:
        """(num_classes,) boxes of each class in a sweep, those without returns too."""
        log, number = self._at(index)
        cuboids = _open_log(self.root / log).cuboids
        if cuboids is None:
            return np.zeros(len(self.class_names), dtype=np.int64)
        names = cuboids["category"][cuboids["timestamp_ns"] == self._sweeps[log][number]]
        return np.array([np.count_nonzero(names == name) for name in self.class_names])

    def _at(self, index: int) -> tuple[str, int]:
        if not 0 <= index < len(self):
            raise IndexError(f"Argoverse2: index must be 0..{len(self) - 1}, got {index}.")
        return self._index[index]

    def _sweep_path(self, log: str, time: int) -> Path:
        return self.root / log / "sensors" / "lidar" / f"{time}.feather"

    def _pose(self, log: str, time: int) -> npt.NDArray[np.float64]:
        """(4, 4) from the ego-vehicle frame at a time to the city's."""
        poses = _open_log(self.root / log).poses
        rows = np.flatnonzero(poses["timestamp_ns"] == time)
        if not len(rows):
            raise BadSampleError(
                f"Argoverse2: {self.root / log / 'city_SE3_egovehicle.feather'} must hold a pose at {time} ns, got "
                "none. Download the log again."
            )
        row = rows[0]
        rotation = quaternion_rotation(np.array([poses[name][row] for name in _QUATERNION]))
        return rigid_transform(rotation, [poses[name][row] for name in _BOX_FIELDS[:3]])

    def _boxes(
        self, log: str, time: int, ego2city: npt.NDArray[np.float64]
    ) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """Boxes with velocity at an annotated time, their classes and points; none in a log without annotations."""
        tables = _open_log(self.root / log)
        cuboids = tables.cuboids
        rows = np.zeros(0, dtype=np.int64)
        if cuboids is not None:
            rows = np.flatnonzero(cuboids["timestamp_ns"] == time)
        classes = {name: i for i, name in enumerate(self.class_names)}
        if cuboids is None or not len(rows):
            return np.zeros((0, 9), np.float32), rows, rows
        labels = np.array([classes.get(name, -1) for name in cuboids["category"][rows]])
        counts = cuboids["num_interior_pts"][rows]
        boxes = np.full((len(rows), 9), np.nan)
        boxes[:, :7] = _cuboid_boxes(cuboids, rows)
        boxes[:, 7:] = self._velocities(log, time, rows, boxes, ego2city)
        keep = (labels >= 0) & (counts >= self.min_points)
        return boxes[keep].astype(np.float32), labels[keep], counts[keep].astype(np.int64)

    def _velocities(
        self,
        log: str,
        time: int,
        rows: npt.NDArray[np.int64],
        boxes: npt.NDArray[np.float64],
        ego2city: npt.NDArray[np.float64],
    ) -> npt.NDArray[np.float64]:
        """(M, 2) movement of each cuboid over ground [m/s] in the frame of the sweep, NaN if unknown."""
        tables = _open_log(self.root / log)
        assert tables.cuboids is not None
        times, uuids = tables.annotated_ns, tables.cuboids["track_uuid"]
        place = int(np.searchsorted(times, time))
        ends = []
        for other in (place - 1, place + 1):
            centres: dict[str, npt.NDArray[np.float64]] = {}
            when = time
            if 0 <= other < len(times) and abs(int(times[other]) - time) <= _NEIGHBOUR_NS:
                when = int(times[other])
                theirs = np.flatnonzero(tables.cuboids["timestamp_ns"] == when)
                there2here = invert(ego2city) @ self._pose(log, when)
                moved = transform_boxes(_cuboid_boxes(tables.cuboids, theirs), there2here)
                centres = dict(zip(uuids[theirs], moved[:, :2], strict=True))
            ends.append((when, centres))
        velocity = np.full((len(rows), 2), np.nan)
        for i, uuid in enumerate(uuids[rows]):
            (start, before), (end, after) = (
                (when, centres[uuid]) if uuid in centres else (time, boxes[i, :2])
                for when, centres in ends
            )
            if end > start:
                velocity[i] = (after - before) / ((end - start) * 1e-9)
        return velocity


_QUATERNION = ("qw", "qx", "qy", "qz")


@lru_cache(maxsize=4)
def _open_log(folder: Path) -> _Log:
    """The tables of a log; a test log has no annotations."""
    poses = _table(folder / "city_SE3_egovehicle.feather", "timestamp_ns", *_QUATERNION, *_BOX_FIELDS[:3])  # fmt: skip
    path = folder / "annotations.feather"
    if not path.exists():
        return _Log(poses, None, np.zeros(0, dtype=np.int64))
    cuboids = _table(
        path, "timestamp_ns", "track_uuid", "category", "num_interior_pts", *_QUATERNION, *_BOX_FIELDS
    )  # fmt: skip
    return _Log(poses, cuboids, np.unique(cuboids["timestamp_ns"]))


def _sweep_times(folder: Path) -> npt.NDArray[np.int64]:
    """Times of the sweeps of a log [ns], rising."""
    names = [path.stem for path in (folder / "sensors" / "lidar").glob("*.feather")]
    return np.array(sorted(int(name) for name in names if name.isdigit()), dtype=np.int64)


def _read_points(path: Path) -> npt.NDArray[np.float64]:
    """(N, 5) x, y, z, intensity, 0."""
    table = _table(path, "x", "y", "z", "intensity")
    points = np.zeros((len(table["x"]), 5))
    for column, name in enumerate(("x", "y", "z", "intensity")):
        points[:, column] = table[name]
    if not np.isfinite(points).all():
        raise BadSampleError(f"Argoverse2: {path} must hold finite coordinates, got others.")
    return points


def _cuboid_boxes(
    cuboids: dict[str, Column], rows: npt.NDArray[np.int64]
) -> npt.NDArray[np.float64]:
    """(M, 7) boxes in the ego-vehicle frame of their time; cuboids are upright in it."""
    rotation = quaternion_rotation(np.stack([cuboids[name][rows] for name in _QUATERNION], axis=1))
    yaw = np.arctan2(rotation[:, 1, 0], rotation[:, 0, 0])
    return np.column_stack([*(cuboids[name][rows] for name in _BOX_FIELDS), yaw])


def _table(path: Path, *names: str) -> dict[str, Column]:
    table = read_feather(path)
    missing = [name for name in names if name not in table]
    if missing:
        raise BadSampleError(
            f"Argoverse2: {path} must have the columns {', '.join(names)}, got none named {', '.join(missing)}."
        )
    return table
