"""The files of one PandaSet sequence, and the frames they are in.

PandaSet stores points and cuboids in a world frame whose z axis points up, and for each LiDAR frame a pose of the
vehicle whose axes are x right, y forward, z up and whose origin is at the height of the axles. From those come:

- ego: the same origin, x forward, y left, z up;
- LiDAR: origin at the Pandar64 on the roof, z up as the world's, x forward as seen from above. It is level because the
  pose is not: in sequence 002 it is rolled by 2 degrees while the road is flat in the world. So the ground lies flat,
  cuboids, which are upright in the world, are upright exactly, and `lidar2ego` holds the tilt.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from pointlib.data.pandaset_table import read_table
from pointlib.data.sample import BadSampleError
from pointlib.geometry import quaternion_rotation, rigid_transform, wrap_angle, yaw_rotation

Matrix = npt.NDArray[np.float64]
Sensor = Literal["pandar64", "pandargt", "both"]

SENSORS: Mapping[Sensor, tuple[int, ...]] = {"pandar64": (0,), "pandargt": (1,), "both": (0, 1)}
"""Values of the column `d` of each choice: the Pandar64 turns on the roof, the PandarGT looks forward."""

CAMERAS = (
    "front_camera",
    "front_right_camera",
    "front_left_camera",
    "back_camera",
    "left_camera",
    "right_camera",
)

_PANDAR64_IN_POSE = (0.0, 0.797, 1.846)
"""Place of the Pandar64 in the axes of a pose [m]: what docs/static_extrinsic_calibration.yaml of pandaset-devkit says
about the cameras in its frame, joined with their poses in a frame in which the vehicle stands."""


class Points(NamedTuple):
    """Returns of one frame.

    Attributes:
        xyz: (N, 3) float64 in the world frame [m].
        intensity: (N,) float32, 0 to 255.
        rows: (N,) int64 row of each in the file, and so in its labels.
    """

    xyz: Matrix
    intensity: npt.NDArray[np.float32]
    rows: npt.NDArray[np.int64]


class Cuboids(NamedTuple):
    """Annotated objects of one frame.

    Attributes:
        uuids: (M,) names; an object keeps its own through the sequence.
        labels: (M,) PandaSet's labels.
        boxes: (M, 7) float64 boxes in the world frame, `pointlib.geometry.BOX_COLUMNS`.
        sensors: (M,) int64: -1 for both LiDARs; 0 or 1 if only for that one, as of moving objects that both see.
    """

    uuids: npt.NDArray[Any]
    labels: npt.NDArray[Any]
    boxes: Matrix
    sensors: npt.NDArray[np.int64]


class PandaSetSequence:
    """One sequence of PandaSet on disk.

    Args:
        folder: Such as `pandaset/002`.

    Raises:
        BadSampleError: If its poses or times are missing, broken or fewer than its frames.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self.frames = tuple(sorted(path.name[:2] for path in self.folder.glob("lidar/??.pkl.gz")))
        self._pose2world = _read_poses(self.folder / "lidar" / "poses.json")
        self.times = _read_times(self.folder / "lidar" / "timestamps.json")
        last = int(self.frames[-1]) if self.frames else -1
        if min(len(self._pose2world), len(self.times)) <= last:
            raise BadSampleError(
                f"PandaSetSequence: {self.folder / 'lidar'} must hold a pose and a time for each frame up to "
                f"{last:02d}, got {len(self._pose2world)} poses and {len(self.times)} times. Extract it again."
            )

    def lidar2world(self, frame: str) -> Matrix:
        """(4, 4) from the level LiDAR frame to the world."""
        pose = self._pose2world[int(frame)]
        yaw = np.arctan2(pose[1, 1], pose[0, 1])  # of the pose's y axis, which points forward
        origin = pose[:3, :3] @ np.array(_PANDAR64_IN_POSE) + pose[:3, 3]
        return rigid_transform(yaw_rotation(yaw), origin)

    def ego2world(self, frame: str) -> Matrix:
        """(4, 4) from the vehicle's frame, x forward, y left, z up, to the world."""
        pose = self._pose2world[int(frame)]
        return rigid_transform(
            np.stack([pose[:3, 1], -pose[:3, 0], pose[:3, 2]], axis=1), pose[:3, 3]
        )

    def camera2world(self, camera: str, frame: str) -> Matrix:
        """(4, 4) from a camera's frame, when its image was taken, to the world."""
        return self._camera(camera)[1][int(frame)]

    def camera_time(self, camera: str, frame: str) -> float:
        """When an image was taken [s]."""
        return float(self._camera(camera)[2][int(frame)])

    def intrinsics(self, camera: str) -> Matrix:
        """(3, 3) camera matrix [pixels]."""
        return self._camera(camera)[0]

    def image_path(self, camera: str, frame: str) -> Path:
        """File of an image; it need not exist."""
        return self.folder / "camera" / camera / f"{frame}.jpg"

    def points_path(self, frame: str) -> Path:
        """File of a frame's points."""
        return self.folder / "lidar" / f"{frame}.pkl.gz"

    def points(self, frame: str, sensor: Sensor) -> Points:
        """Read the points of one or both LiDARs.

        Raises:
            BadSampleError: If the file is missing or broken, or holds a coordinate that is not finite.
        """
        path = self.points_path(frame)
        table = _columns(path, "x", "y", "z", "i", "d")
        rows = np.flatnonzero(np.isin(table["d"], SENSORS[sensor]))
        xyz = np.stack([table[name][rows] for name in "xyz"], axis=1).astype(np.float64)
        if not np.isfinite(xyz).all():
            raise BadSampleError(
                f"PandaSetSequence: {path} must hold finite coordinates, got "
                f"{np.count_nonzero(~np.isfinite(xyz).all(1))} points without. Extract the sequence again."
            )
        return Points(xyz, table["i"][rows].astype(np.float32), rows)

    def point_classes(self, frame: str, num_points: int) -> npt.NDArray[np.uint16]:
        """Read the class of each point of a frame's file, both LiDARs.

        Raises:
            BadSampleError: If the file is missing or broken or does not hold `num_points` classes.
        """
        path = self.folder / "annotations" / "semseg" / f"{frame}.pkl.gz"
        classes = _columns(path, "class")["class"]
        if len(classes) != num_points:
            raise BadSampleError(
                f"PandaSetSequence: {path} must have a class for each of the {num_points} points of "
                f"{self.points_path(frame)}, got {len(classes)}. Extract the sequence again."
            )
        if len(classes) and not 0 <= classes.min() <= classes.max() <= 0xFFFF:
            raise BadSampleError(
                f"PandaSetSequence: {path} must hold classes 0..42, got {classes.min()}..{classes.max()}."
            )
        return classes.astype(np.uint16)

    def cuboids(self, frame: str, sensor: Sensor) -> Cuboids:
        """Read the objects that one or both LiDARs see, each once.

        A moving object that both see has two cuboids, one for each, since they see it at different times. For one LiDAR
        those of the other are left out. For both, those of the PandarGT are left out whose sibling (the other cuboid of
        the object) is there, or, where the files do not link them, whose centre lies in one of the Pandar64's.

        Raises:
            BadSampleError: If the file is missing or broken.
        """
        path = self.folder / "annotations" / "cuboids" / f"{frame}.pkl.gz"
        table = _columns(path, "uuid", "label", "yaw", *_BOX_FIELDS, *_LINK_FIELDS)
        boxes = np.stack([table[name].astype(np.float64) for name in (*_BOX_FIELDS, "yaw")], axis=1)
        boxes[:, 6] = wrap_angle(boxes[:, 6] + np.pi / 2)  # PandaSet's is of x, which is the width
        if not np.isfinite(boxes).all() or (boxes[:, 3:6] <= 0).any():
            raise BadSampleError(
                f"PandaSetSequence: {path} must hold finite cuboids of positive size, got others. Extract it again."
            )
        sensors = table["cuboids.sensor_id"].astype(np.int64)
        if sensor == "both":
            keep = ~_twins(table["uuid"], table["cuboids.sibling_id"], sensors, boxes)
        else:
            keep = np.isin(sensors, (-1, *SENSORS[sensor]))
        return Cuboids(table["uuid"][keep], table["label"][keep], boxes[keep], sensors[keep])

    def _camera(self, name: str) -> tuple[Matrix, Matrix, Matrix]:
        """Intrinsics, (F, 4, 4) camera2world and (F,) times."""
        if name not in self._cameras:
            folder = self.folder / "camera" / name
            found = (
                _read_intrinsics(folder / "intrinsics.json"),
                _read_poses(folder / "poses.json"),
                _read_times(folder / "timestamps.json"),
            )
            if min(len(found[1]), len(found[2])) < len(self.times):
                raise BadSampleError(
                    f"PandaSetSequence: {folder} must hold a pose and a time for each of {len(self.times)} frames, got "
                    f"{len(found[1])} and {len(found[2])}. Extract the sequence again."
                )
            self._cameras[name] = found
        return self._cameras[name]

    @cached_property
    def _cameras(self) -> dict[str, tuple[Matrix, Matrix, Matrix]]:
        return {}


_BOX_FIELDS = (
    "position.x", "position.y", "position.z", "dimensions.y", "dimensions.x", "dimensions.z"
)  # fmt: skip
_LINK_FIELDS = ("cuboids.sibling_id", "cuboids.sensor_id")


def _twins(
    uuids: npt.NDArray[Any],
    siblings: npt.NDArray[Any],
    sensors: npt.NDArray[np.int64],
    boxes: Matrix,
) -> npt.NDArray[np.bool_]:
    """Which cuboids of the PandarGT show an object that the Pandar64 has a cuboid of, too."""
    first = sensors == 0
    named = {*uuids[first], *siblings[first]} - {"-"}
    twins = np.zeros(len(uuids), dtype=bool)
    for i in np.flatnonzero(sensors == 1):
        offset = boxes[first, :2] - boxes[i, :2]
        turn = yaw_rotation(boxes[first, 6])[:, :2, :2]
        local = np.abs(np.einsum("nji,nj->ni", turn, offset))
        inside = bool((local <= boxes[first, 3:5] / 2).all(1).any())
        twins[i] = uuids[i] in named or siblings[i] in named or inside
    return twins


def _columns(path: Path, *names: str) -> dict[str, npt.NDArray[Any]]:
    table = read_table(path)
    missing = [name for name in names if name not in table]
    if missing:
        raise BadSampleError(
            f"PandaSetSequence: {path} must have the columns {', '.join(names)}, got none named "
            f"{', '.join(missing)}. Is it PandaSet's?"
        )
    for name in names:
        if name not in ("uuid", "label", "cuboids.sibling_id") and table[name].dtype == object:
            raise BadSampleError(
                f"PandaSetSequence: column {name} of {path} must hold numbers, got objects. Extract it again."
            )
    return table


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise BadSampleError(
            f"PandaSetSequence: {path} must be readable JSON, got {error}. Extract the sequence again."
        ) from error


def _read_poses(path: Path) -> Matrix:
    """(F, 4, 4) poses of a sensor: its frame to the world."""
    try:
        poses = [
            rigid_transform(
                quaternion_rotation(np.array([pose["heading"][axis] for axis in "wxyz"])),
                [pose["position"][axis] for axis in "xyz"],
            )
            for pose in _read_json(path)
        ]
    except (KeyError, TypeError, ValueError) as error:
        if isinstance(error, BadSampleError):
            raise
        raise BadSampleError(
            f"PandaSetSequence: {path} must be a list of position and heading, got {type(error).__name__}: {error}."
        ) from error
    return np.stack(poses) if poses else np.zeros((0, 4, 4))


def _read_times(path: Path) -> Matrix:
    """(F,) seconds, which must rise."""
    times = np.asarray(_read_json(path), dtype=np.float64)
    if times.ndim != 1 or not np.isfinite(times).all() or (np.diff(times) <= 0).any():
        raise BadSampleError(
            f"PandaSetSequence: {path} must be a list of rising times in seconds, got others."
        )
    return times


def _read_intrinsics(path: Path) -> Matrix:
    content = _read_json(path)
    try:
        fx, fy, cx, cy = (float(content[name]) for name in ("fx", "fy", "cx", "cy"))
    except (KeyError, TypeError, ValueError) as error:
        raise BadSampleError(
            f"PandaSetSequence: {path} must hold fx, fy, cx and cy, got {content!r}."
        ) from error
    return np.array([[fx, 0.0, cx], [0.0, fy, cy], [0.0, 0.0, 1.0]])
