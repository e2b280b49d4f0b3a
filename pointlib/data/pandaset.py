"""PandaSet as multi-sensor samples: one or more sweeps, six images, boxes with velocity.

The tree is `SSS/{lidar,camera/NAME,annotations/cuboids,annotations/semseg}/FF...`: 103 sequences of 80 frames at
10 Hz (Xiao et al., "PandaSet", ITSC 2021). `pointlib.data.pandaset_sequence` says what frames the numbers are in.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch.utils.data import Dataset

from pointlib.data.image_file import read_image
from pointlib.data.label_map import load_label_map
from pointlib.data.multi_sensor import CameraImage, MultiSensorSample
from pointlib.data.pandaset_sequence import CAMERAS, SENSORS, PandaSetSequence, Sensor
from pointlib.data.sample import BadSampleError
from pointlib.geometry import invert, transform_boxes, transform_points
from pointlib.ops.boxes import points_in_boxes_all

_log = logging.getLogger(__name__)

CLASS_NAMES = (
    "car",
    "truck",
    "construction_vehicle",
    "bus",
    "trailer",
    "barrier",
    "motorcycle",
    "bicycle",
    "pedestrian",
    "traffic_cone",
)
"""nuScenes' detection classes, so that a network is trained or tested on both."""

CLASS_OF_LABEL: Mapping[str, str] = {
    "Car": "car",
    "Pickup Truck": "truck",
    "Medium-sized Truck": "truck",
    "Semi-truck": "truck",
    "Other Vehicle - Construction Vehicle": "construction_vehicle",
    "Bus": "bus",
    "Towed Object": "trailer",
    "Road Barriers": "barrier",
    "Temporary Construction Barriers": "barrier",
    "Motorcycle": "motorcycle",
    "Motorized Scooter": "motorcycle",
    "Bicycle": "bicycle",
    "Pedestrian": "pedestrian",
    "Pedestrian with Object": "pedestrian",
    "Cones": "traffic_cone",
    "Pylons": "traffic_cone",
}
"""What becomes of PandaSet's labels, after the definitions of nuScenes (where a pickup is a truck)."""

IGNORED_LABELS = frozenset(
    {
        "Animals - Bird",
        "Animals - Other",
        "Construction Signs",
        "Emergency Vehicle",
        "Other Vehicle - Pedicab",
        "Other Vehicle - Uncommon",
        "Personal Mobility Device",
        "Rolling Containers",
        "Signs",
        "Train",
        "Tram / Subway",
        "Trolley",
    }
)
"""Labels that are none of the classes; nuScenes does not score their like either."""


class PandaSet(Dataset[MultiSensorSample]):
    """Frames of PandaSet as a `MultiSensorSource`.

    Points, boxes and matrices are in a level LiDAR frame at the Pandar64 (x forward, y left, z up), see
    `pointlib.data.pandaset_sequence`; intensity is 0 to 255. Sweeps are joined through the poses; those of one
    sequence's first frames are fewer. A box's velocity is its centre's movement between the frames before and after
    (or to the one there is), NaN if there is none or if the cuboid is the PandarGT's own: its time is not known.

    Args:
        root: Folder that holds the sequences' folders, `002` and so on.
        split: "train", "val" or "test" (see `label_maps/pandaset.yaml`), a list of sequences such as ["002"], or None
            for all that are there.
        sensor: "pandar64" (the LiDAR on the roof), "pandargt" (the one that looks forward), or "both".
        sweeps: Clouds joined into one, the frame's own and those before it.
        cameras: Whether to read images.
        missing_images: What a frame without all six images does: "raise" a BadSampleError when it is read, "skip" it
            (`skipped_frames` names those), or "black" to give None for the image.
        min_points: Boxes with fewer returns in the frame's own cloud are left out.

    Raises:
        ValueError: If an option does not exist, a sequence is not there, or no frame is left.
        BadSampleError: If the poses or times of a sequence are missing or broken.
    """

    def __init__(
        self,
        root: str | Path,
        split: str | Sequence[str] | None = None,
        sensor: Sensor = "pandar64",
        sweeps: int = 1,
        cameras: bool = True,
        missing_images: Literal["raise", "skip", "black"] = "raise",
        min_points: int = 1,
    ) -> None:
        _check_choice("PandaSet", "missing_images", missing_images, ("raise", "skip", "black"))
        if sweeps < 1:
            raise ValueError(f"PandaSet: sweeps must be at least 1, got {sweeps}.")
        self.sensor: Sensor = sensor
        self.sweeps = sweeps
        self.cameras = cameras
        self.missing_images = missing_images
        self.min_points = min_points
        self.sequences = open_sequences(root, split, sensor)
        self.skipped_frames: tuple[str, ...] = ()
        self._index = [(s, f) for s in self.sequences for f in _annotated_frames(s)]
        if cameras and missing_images == "skip":
            self._skip_frames_without_images()
        if not self._index:
            raise ValueError(
                f"PandaSet: root must hold frames with lidar and annotations/cuboids, got none in {root}"
                + (f" but {len(self.skipped_frames)} without images" if self.skipped_frames else "")
                + '. Extract the sequences again, or read with missing_images="black".'
            )

    @property
    def class_names(self) -> tuple[str, ...]:
        """Name of each class of boxes: nuScenes' ten."""
        return CLASS_NAMES

    @property
    def camera_names(self) -> tuple[str, ...]:
        """Name of each camera, in the order of every sample; empty without cameras."""
        return CAMERAS if self.cameras else ()

    def __len__(self) -> int:
        return len(self._index)

    def __getitem__(self, index: int) -> MultiSensorSample:
        """Read one frame.

        Raises:
            IndexError: If there is no such frame.
            BadSampleError: If one of its files is missing or broken; the message names the file.
        """
        sequence, frame = self._at(index)
        lidar2world = sequence.lidar2world(frame)
        ego2world = sequence.ego2world(frame)
        points = self._join_sweeps(sequence, frame)
        boxes, labels, counts = self._boxes(sequence, frame, points[points[:, 4] == 0])
        return MultiSensorSample(
            points=points,
            boxes=boxes,
            box_labels=labels,
            box_points=counts,
            cameras=tuple(self._image(sequence, frame, name) for name in self.camera_names),
            lidar2ego=invert(ego2world) @ lidar2world,
            ego2global=ego2world,
            map=None,
            token=f"{sequence.folder.name}/{frame}",
            path=str(sequence.points_path(frame)),
            timestamp_us=_microseconds(sequence.times[int(frame)]),
        )

    def class_counts(self, index: int) -> npt.NDArray[np.int64]:
        """(10,) boxes of each class in a frame, those without returns too; reads its small cuboids file alone."""
        sequence, frame = self._at(index)
        labels = _class_indices(sequence.cuboids(frame, self.sensor).labels, frame, sequence)
        return np.bincount(labels[labels >= 0], minlength=len(CLASS_NAMES)).astype(np.int64)

    def _at(self, index: int) -> tuple[PandaSetSequence, str]:
        if not 0 <= index < len(self):
            raise IndexError(f"PandaSet: index must be 0..{len(self) - 1}, got {index}.")
        return self._index[index]

    def _skip_frames_without_images(self) -> None:
        kept, skipped = [], []
        for sequence, frame in self._index:
            if all(sequence.image_path(name, frame).is_file() for name in CAMERAS):
                kept.append((sequence, frame))
            else:
                skipped.append(f"{sequence.folder.name}/{frame}")
        if skipped:
            _log.warning(
                "PandaSet: %d of %d frames lack images and are skipped: %s%s",
                len(skipped), len(self._index), ", ".join(skipped[:8]), ", ..." if len(skipped) > 8 else "",
            )  # fmt: skip
        self._index, self.skipped_frames = kept, tuple(skipped)

    def _join_sweeps(self, sequence: PandaSetSequence, frame: str) -> npt.NDArray[np.float32]:
        """(N, 5) points in the LiDAR frame of `frame`, its own first."""
        place = sequence.frames.index(frame)
        world2lidar = invert(sequence.lidar2world(frame))
        parts = []
        for other in sequence.frames[max(place + 1 - self.sweeps, 0) : place + 1][::-1]:
            points = sequence.points(other, self.sensor)
            part = np.empty((len(points.xyz), 5), dtype=np.float32)
            part[:, :3] = transform_points(points.xyz, world2lidar)
            part[:, 3] = points.intensity
            part[:, 4] = sequence.times[int(frame)] - sequence.times[int(other)]
            parts.append(part)
        return np.concatenate(parts)

    def _boxes(
        self, sequence: PandaSetSequence, frame: str, points: npt.NDArray[np.float32]
    ) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """Boxes with velocity in the LiDAR frame, their classes and how many of the points they hold."""
        cuboids = sequence.cuboids(frame, self.sensor)
        velocity = _velocities(sequence, frame, self.sensor)
        world = np.concatenate([cuboids.boxes, velocity], axis=1)
        boxes = transform_boxes(world, invert(sequence.lidar2world(frame))).astype(np.float32)
        labels = _class_indices(cuboids.labels, frame, sequence)
        inside = points_in_boxes_all(torch.from_numpy(points), torch.from_numpy(boxes))
        counts = inside.sum(0).numpy()
        keep = (labels >= 0) & (counts >= self.min_points)
        return boxes[keep], labels[keep], counts[keep]

    def _image(self, sequence: PandaSetSequence, frame: str, name: str) -> CameraImage:
        path = sequence.image_path(name, frame)
        image = None
        if path.is_file() or self.missing_images != "black":
            image = read_image(path)
        lidar2camera = invert(sequence.camera2world(name, frame)) @ sequence.lidar2world(frame)
        return CameraImage(
            name=name,
            image=image,
            intrinsics=sequence.intrinsics(name),
            lidar2camera=lidar2camera,
            path=str(path),
            timestamp_us=_microseconds(sequence.camera_time(name, frame)),
        )


def open_sequences(
    root: str | Path, split: str | Sequence[str] | None, sensor: str
) -> tuple[PandaSetSequence, ...]:
    """Open the sequences of a split.

    Args:
        root: Folder that holds the sequences' folders.
        split: "train", "val", "test", a list of sequences, or None for all that are there.
        sensor: Checked here, since every reader takes it.

    Returns:
        The sequences, in the order of the split or of their names. Of a named split those that are there.

    Raises:
        ValueError: If the root holds none of them, or one of a list is not there; the message names what is.
        BadSampleError: If the poses or times of a sequence are missing or broken.
    """
    _check_choice("PandaSet", "sensor", sensor, tuple(SENSORS))
    root = Path(root)
    there = sorted(path.parent.name for path in root.glob("[0-9][0-9][0-9]/lidar"))
    splits = load_label_map("pandaset").splits
    if isinstance(split, str):
        _check_choice("PandaSet", "split", split, tuple(splits))
        wanted = [name for name in splits[split] if name in there]
        if len(wanted) < len(splits[split]):
            _log.warning("PandaSet: %s holds %d of the %d sequences of split %s",
                         root, len(wanted), len(splits[split]), split)  # fmt: skip
    else:
        wanted = list(there if split is None else split)
    missing = [name for name in wanted if name not in there]
    if missing or not wanted:
        raise ValueError(
            f"PandaSet: {root} must hold the sequences {', '.join(missing) or split or '002, ...'}, got "
            f"{', '.join(there) or 'none'}. Give the folder that holds the folders 001, 002, ... as root, and choose "
            "sequences that are there."
        )
    return tuple(PandaSetSequence(root / name) for name in wanted)


def _annotated_frames(sequence: PandaSetSequence) -> list[str]:
    folder = sequence.folder / "annotations" / "cuboids"
    return [frame for frame in sequence.frames if (folder / f"{frame}.pkl.gz").is_file()]


def _class_indices(
    labels: npt.NDArray[Any], frame: str, sequence: PandaSetSequence
) -> npt.NDArray[np.int64]:
    """(M,) class of each label; -1 for those that are ignored."""
    unknown = sorted({str(label) for label in labels} - set(CLASS_OF_LABEL) - IGNORED_LABELS)
    if unknown:
        raise BadSampleError(
            f"PandaSet: labels of frame {frame} in {sequence.folder} must be PandaSet's, got {', '.join(unknown)}."
        )
    index = {name: i for i, name in enumerate(CLASS_NAMES)}
    return np.array([index.get(CLASS_OF_LABEL.get(label, ""), -1) for label in labels], dtype=int)


def _velocities(sequence: PandaSetSequence, frame: str, sensor: Sensor) -> npt.NDArray[np.float64]:
    """(M, 2) movement of each cuboid over ground in the world frame [m/s], NaN if unknown."""
    here = sequence.cuboids(frame, sensor)
    around = []
    for step in (-1, 1):
        other = f"{int(frame) + step:02d}"
        use = other if other in _annotated_frames(sequence) else frame
        cuboids = here if use == frame else sequence.cuboids(use, sensor)
        places = dict(zip(cuboids.uuids, cuboids.boxes[:, :2], strict=True))
        around.append((float(sequence.times[int(use)]), places))
    velocity = np.full((len(here.uuids), 2), np.nan)
    now = float(sequence.times[int(frame)])
    for i, uuid in enumerate(here.uuids):
        (start, before), (end, after) = (
            (time, places[uuid]) if uuid in places else (now, here.boxes[i, :2])
            for time, places in around
        )
        if end > start and here.sensors[i] != 1:
            velocity[i] = (after - before) / (end - start)
    return velocity


def _microseconds(seconds: float) -> int:
    return round(float(seconds) * 1e6)


def _check_choice(owner: str, argument: str, value: object, choices: Sequence[str]) -> None:
    if value not in choices:
        raise ValueError(f"{owner}: {argument} must be one of {', '.join(choices)}, got {value!r}.")
