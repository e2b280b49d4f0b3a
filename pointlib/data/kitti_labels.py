"""Files of KITTI's object benchmark: label_2 and result files, calibration, and its boxes as ours and back.

KITTI writes an object in the rectified frame of camera 0 (x right, y down, z forward): the centre of its bottom face,
height, width, length, and rotation_y about the y axis, 0 along x (readme of KITTI's devkit_object). Ours are upright in
the LiDAR frame. The LiDAR's z and the camera's -y differ by half a degree; as everyone does (OpenPCDet, SECOND), the
bottom centre goes through the full calibration, half the height is added along the LiDAR's z, and
yaw = -rotation_y - pi/2. Both directions invert each other exactly.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pointlib.data.sample import BadSampleError
from pointlib.files import write_file
from pointlib.geometry import box_corners, transform_points, wrap_angle

Floats = npt.NDArray[np.float64]

DONT_CARE = "DontCare"
_NEAR = 0.1  # depth [m] at which boxes that reach behind the camera are cut


@dataclass(frozen=True, eq=False)
class KittiObjects:
    """The objects of one image, as KITTI's files have them.

    `KittiObjects.empty()` has none.

    Attributes:
        names: (M,) type: "Car", "Van", "Truck", "Pedestrian", "Person_sitting", "Cyclist", "Tram", "Misc", "DontCare".
        truncated: (M,) share outside the image, 0 to 1; -1 unknown.
        occluded: (M,) int64 0 visible, 1 partly, 2 largely occluded, 3 unknown; -1 unknown.
        alpha: (M,) angle of observation [rad]; -10 unknown.
        bbox: (M, 4) left, top, right, bottom [pixels].
        size_hwl: (M, 3) height, width, length [m].
        location: (M, 3) bottom centre in the rectified camera frame [m].
        rotation_y: (M,) [rad].
        scores: (M,) of found objects; None in labels.
    """

    names: npt.NDArray[Any]
    truncated: Floats
    occluded: npt.NDArray[np.int64]
    alpha: Floats
    bbox: Floats
    size_hwl: Floats
    location: Floats
    rotation_y: Floats
    scores: Floats | None = None

    def __len__(self) -> int:
        return len(self.names)

    @staticmethod
    def empty() -> KittiObjects:
        """No object, without scores."""
        return _objects(np.zeros(0, dtype=object), np.zeros((0, 14)))

    def select(self, rows: npt.NDArray[Any]) -> KittiObjects:
        """The objects of `rows`, (M,) bool or (K,) int64."""
        parts: dict[str, Any] = {
            name: None if value is None else value[rows] for name, value in vars(self).items()
        }
        return KittiObjects(**parts)

    def difficulty(self) -> npt.NDArray[np.int64]:
        """(M,) 0 easy, 1 moderate, 2 hard, -1 none of them: the lowest at which the benchmark counts an object."""
        height = self.bbox[:, 3] - self.bbox[:, 1]
        found = np.full(len(self), -1, dtype=np.int64)
        limits = ((40, 0, 0.15), (25, 1, 0.3), (25, 2, 0.5))
        for level, (min_height, max_occluded, max_truncated) in reversed(list(enumerate(limits))):
            fits = (height > min_height) & (self.occluded <= max_occluded)
            found[fits & (self.truncated <= max_truncated) & (self.names != DONT_CARE)] = level
        return found


@dataclass(frozen=True, eq=False)
class KittiCalibration:
    """Calibration of one frame.

    Attributes:
        p2: (3, 4) projection of the left colour camera, from the rectified frame of camera 0.
        lidar2rectified: (4, 4) from the LiDAR to the rectified frame of camera 0.
    """

    p2: Floats
    lidar2rectified: Floats

    @property
    def intrinsics(self) -> Floats:
        """(3, 3) camera matrix of the left colour camera [pixels]."""
        return self.p2[:, :3]

    @property
    def lidar2camera(self) -> Floats:
        """(4, 4) from the LiDAR to the left colour camera, whose baseline is what P2's fourth column holds."""
        shift = np.eye(4)
        shift[:3, 3] = np.linalg.solve(self.intrinsics, self.p2[:, 3])
        return shift @ self.lidar2rectified


def read_object_calibration(path: str | Path) -> KittiCalibration:
    """Read a calib/NNNNNN.txt of the object benchmark.

    Raises:
        BadSampleError: If the file is missing, or P2, R0_rect or Tr_velo_to_cam is, or has other than its 12, 9 and 12
            finite numbers.
    """
    matrices = {}
    for line in _read_lines(path, "read_object_calibration"):
        name, _, values = line.partition(":")
        matrices[name.strip()] = values.split()
    shapes = {"P2": (3, 4), "R0_rect": (3, 3), "Tr_velo_to_cam": (3, 4)}
    found = {}
    for name, shape in shapes.items():
        try:
            found[name] = np.array(matrices[name], dtype=np.float64).reshape(shape)
        except (KeyError, ValueError) as error:
            raise BadSampleError(
                f"read_object_calibration: {path} must hold '{name}:' and {shape[0] * shape[1]} numbers, got "
                f"{' '.join(matrices.get(name, ['no such line']))[:80]}. Download KITTI's calibration again."
            ) from error
    lidar2camera, rectify = np.eye(4), np.eye(4)
    lidar2camera[:3] = found["Tr_velo_to_cam"]
    rectify[:3, :3] = found["R0_rect"]
    lidar2rectified = rectify @ lidar2camera
    rotation = lidar2rectified[:3, :3]
    rigid = np.abs(rotation @ rotation.T - np.eye(3)).max() < 1e-3
    if not rigid or not np.isfinite(found["P2"]).all() or found["P2"][0, 0] <= 0:
        raise BadSampleError(
            f"read_object_calibration: {path} must hold rotations in R0_rect and Tr_velo_to_cam and a camera in "
            "P2, got others. Download KITTI's calibration again."
        )
    return KittiCalibration(found["P2"], lidar2rectified)


def read_objects(path: str | Path) -> KittiObjects:
    """Read a label_2 file (15 columns) or a result file (16, the last a score).

    Args:
        path: The file; an empty one holds no object.

    Returns:
        Its objects, "DontCare" among them. `scores` is None unless the lines have 16 columns.

    Raises:
        BadSampleError: If the file cannot be read or a line has another number of columns or a word for a number.
    """
    lines = [line.split() for line in _read_lines(path, "read_objects")]
    columns = len(lines[0]) if lines else 15
    for number, words in enumerate(lines, start=1):
        if len(words) != columns or columns not in (15, 16):
            raise BadSampleError(
                f"read_objects: {path} line {number} must have 15 columns (16 with a score), got {len(words)}: "
                f"{' '.join(words)[:80]!r}."
            )
    try:
        rows = np.array([words[1:] for words in lines], dtype=np.float64)
    except ValueError as error:
        raise BadSampleError(
            f"read_objects: {path} must hold numbers after the type, got {error}."
        ) from error
    rows = rows.reshape(len(lines), columns - 1)
    return _objects(np.array([words[0] for words in lines], dtype=object), rows)


def _objects(names: npt.NDArray[Any], rows: Floats) -> KittiObjects:
    """Take the columns after the type apart, 14 or, with a score, 15."""
    return KittiObjects(
        names=names,
        truncated=rows[:, 0],
        occluded=rows[:, 1].astype(np.int64),
        alpha=rows[:, 2],
        bbox=rows[:, 3:7],
        size_hwl=rows[:, 7:10],
        location=rows[:, 10:13],
        rotation_y=rows[:, 13],
        scores=rows[:, 14] if rows.shape[1] == 15 else None,
    )


def write_objects(path: str | Path, objects: KittiObjects) -> None:
    """Write a result file (16 columns, four decimals), or, without scores, a label file (15 columns).

    Args:
        path: Such as `data/000123.txt`; missing folders are made. The benchmark wants a file for every image, also for
            one in which nothing was found.
        objects: What it will hold.
    """
    numbers = np.column_stack(
        [objects.alpha, objects.bbox, objects.size_hwl, objects.location, objects.rotation_y]
        + ([] if objects.scores is None else [objects.scores])
    )
    lines = [
        f"{name} {truncated:.2f} {occluded:d} " + " ".join(f"{value:.4f}" for value in row) + "\n"
        for name, truncated, occluded, row in zip(
            objects.names, objects.truncated, objects.occluded, numbers, strict=True
        )
    ]
    write_file(path, "".join(lines))


def objects_to_boxes(objects: KittiObjects, calibration: KittiCalibration) -> Floats:
    """Turn KITTI's boxes into ours.

    Returns:
        (M, 7) float64 boxes in the LiDAR frame, `pointlib.geometry.BOX_COLUMNS`. "DontCare" has none.
    """
    rectified2lidar = np.linalg.inv(calibration.lidar2rectified)  # rigid but for rounding
    centres = transform_points(objects.location, rectified2lidar)
    centres[:, 2] += objects.size_hwl[:, 0] / 2
    yaw = wrap_angle(-objects.rotation_y - np.pi / 2)
    return np.column_stack([centres, objects.size_hwl[:, ::-1], yaw])


def boxes_to_objects(
    boxes: npt.NDArray[Any],
    names: npt.NDArray[Any],
    scores: npt.NDArray[Any] | None,
    calibration: KittiCalibration,
    image_size: tuple[int, int],
) -> KittiObjects:
    """Turn our boxes into KITTI's, with the 2D boxes that the benchmark filters by.

    Args:
        boxes: (M, 7) or (M, 9) boxes in the LiDAR frame.
        names: (M,) KITTI's types.
        scores: (M,) or None.
        calibration: Of the frame.
        image_size: Height and width [pixels].

    Returns:
        The objects that the image shows any part of, in the order of the boxes; truncated and occluded are -1.
    """
    boxes = np.asarray(boxes, dtype=np.float64)
    bottoms = boxes[:, :3] - np.array([0.0, 0.0, 0.5]) * boxes[:, 5:6]
    location = transform_points(bottoms, calibration.lidar2rectified)
    rotation_y = wrap_angle(-boxes[:, 6] - np.pi / 2)
    bbox = _image_boxes(boxes, calibration, image_size)
    objects = KittiObjects(
        names=np.asarray(names, dtype=object),
        truncated=np.full(len(boxes), -1.0),
        occluded=np.full(len(boxes), -1, dtype=np.int64),
        alpha=wrap_angle(rotation_y - np.arctan2(location[:, 0], location[:, 2])),
        bbox=bbox,
        size_hwl=boxes[:, [5, 4, 3]],
        location=location,
        rotation_y=rotation_y,
        scores=None if scores is None else np.asarray(scores, dtype=np.float64),
    )
    return objects.select((bbox[:, 2] > bbox[:, 0]) & (bbox[:, 3] > bbox[:, 1]))


_EDGES = np.array(
    [(0, 1), (1, 2), (2, 3), (3, 0), (4, 5), (5, 6), (6, 7), (7, 4), (0, 4), (1, 5), (2, 6), (3, 7)]
)  # fmt: skip


def _image_boxes(
    boxes: Floats, calibration: KittiCalibration, image_size: tuple[int, int]
) -> Floats:
    """(M, 4) bounds of each box in the image, cut at its border; empty for one that it does not show."""
    height, width = image_size
    found = np.zeros((len(boxes), 4))
    for i, corners in enumerate(box_corners(boxes)):
        local = transform_points(corners, calibration.lidar2camera)
        start, end = local[_EDGES[:, 0]], local[_EDGES[:, 1]]
        crosses = (start[:, 2] < _NEAR) != (end[:, 2] < _NEAR)
        share = (_NEAR - start[crosses, 2:]) / (end[crosses, 2:] - start[crosses, 2:])
        cut = start[crosses] + share * (end[crosses] - start[crosses])
        seen = np.concatenate([local[local[:, 2] >= _NEAR], cut])
        if len(seen):
            pixels = (seen @ calibration.intrinsics.T)[:, :2] / seen[:, 2:]
            bounds = np.concatenate([pixels.min(0), pixels.max(0)])
            found[i] = np.clip(bounds, 0, [width - 1, height - 1, width - 1, height - 1])
    return found


def _read_lines(path: str | Path, caller: str) -> list[str]:
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise BadSampleError(
            f"{caller}: path must be a readable text file, got {path} ({error}). Extract KITTI again."
        ) from error
    return [line for line in lines if line.strip()]
