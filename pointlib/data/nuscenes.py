"""nuScenes as a source of multi-sensor samples: clouds of up to ten sweeps, six cameras, boxes, the map around.

Points and boxes are in LIDAR_TOP's own frame as nuScenes stores it, x right, y forward, z up, because every published
network is trained in it; `lidar2ego` of a sample leads to x forward, y left, z up.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from pointlib.data.image_file import read_image
from pointlib.data.multi_sensor import CameraImage, MapLayers, MultiSensorSample
from pointlib.data.nuscenes_index import (
    CAMERAS,
    DETECTION_CLASSES,
    MAX_SWEEPS,
    NuScenesIndex,
    load_index,
)
from pointlib.data.nuscenes_map_shapes import NuScenesMaps
from pointlib.data.nuscenes_sweeps import Sweep, WhenMissing, join_sweeps
from pointlib.data.sample import BadSampleError

_VERSIONS = {
    "train": "trainval", "val": "trainval", "train_detect": "trainval", "train_track": "trainval", "test": "test",
    "mini_train": "mini", "mini_val": "mini",
}  # fmt: skip
"""How the version ends that the devkit's splits belong to."""


class NuScenes:
    """The key frames of one split of nuScenes, as recorded: no augmentation. It is a `MultiSensorSource`.

    The index of the tables is built by the first use (minutes, with a progress bar) and memory-mapped afterwards:
    loader processes share it, and nuscenes-devkit is not needed any more.

    Args:
        root: Folder that holds `samples/`, `sweeps/` and the folder of the version.
        version: Folder of the tables: "v1.0-trainval", "v1.0-mini", "v1.0-test".
        split: A split of the devkit ("train", "val", "test", "mini_train", "mini_val", "train_detect", "train_track")
            or of the version's own splits.json.
        num_sweeps: Clouds a sample: 1 for the key frame alone, up to 10 with those before it, the nearest in time first
            (mmdetection3d's configs draw them at random, in evaluation too, so that its scores vary from run to run).
        cameras: Whether to read the six images.
        map: Whether to give the map around (needs maps/expansion of the map expansion pack, version 1.3).
        min_points: Leave out boxes with fewer LiDAR and radar returns: 1 as in training and in the devkit's evaluation;
            0 to keep all.
        missing_cameras: What an image whose file is missing does: "raise", or "allow" to give None in its place.
        missing_sweeps: What a missing sweep does: "raise", or "allow" to join fewer, with a warning in the log.
        index_folder: Where what is built from the tables is kept; None for `pointlib_index` in `root`.
        class_names: Classes to give boxes of, in the order of their labels; None for `DETECTION_CLASSES`.
        scenes: Use only these scenes of the split, for a download that is not complete.
        frame_stride: Use every n-th key frame.

    Attributes:
        root: As given.
        index: What the tables say.
        rows: (len,) int64 row of each sample in the index.

    Raises:
        ValueError: There is no such version, split, scene or class, tables are missing or broken, or the index cannot
            be written; the message says what is there and the remedy.
        ImportError: The index must be built and nuscenes-devkit is not installed.
    """

    def __init__(
        self,
        root: str | Path,
        version: str = "v1.0-trainval",
        split: str = "train",
        num_sweeps: int = 10,
        cameras: bool = True,
        map: bool = False,
        min_points: int = 1,
        missing_cameras: WhenMissing = "raise",
        missing_sweeps: WhenMissing = "raise",
        index_folder: str | Path | None = None,
        class_names: Sequence[str] | None = None,
        scenes: Sequence[str] | None = None,
        frame_stride: int = 1,
    ) -> None:
        check_options("NuScenes", num_sweeps, frame_stride, missing_cameras, missing_sweeps)
        self.root = Path(root)
        self.index = load_index(root, version, index_folder)
        self.rows = choose_rows(self.index, split, scenes)[::frame_stride]
        self._classes = tuple(class_names or DETECTION_CLASSES)
        self._label_of = class_table(self._classes)
        self._num_sweeps = num_sweeps
        self._cameras = CAMERAS if cameras else ()
        self._min_points = min_points
        self._missing_cameras = missing_cameras
        self._missing_sweeps: WhenMissing = missing_sweeps
        locations = sorted({self.index.scene(int(row))["location"] for row in self.rows})
        self._maps = NuScenesMaps(root, locations, index_folder) if map else None

    @property
    def class_names(self) -> tuple[str, ...]:
        """Name of each class of boxes."""
        return self._classes

    @property
    def camera_names(self) -> tuple[str, ...]:
        """Name of each camera, in the order of every sample; empty without cameras."""
        return self._cameras

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> MultiSensorSample:
        """Read one sample.

        Raises:
            IndexError: There is no such sample.
            BadSampleError: A file is missing or broken; the message names it.
        """
        row = self._row(index)
        record = self.index
        path = self.root / record.text("lidar_path", row)
        boxes, labels, points = self._boxes(row)
        lidar2ego = np.array(record["lidar2ego"][row])
        ego2global = np.array(record["ego2global"][row])
        return MultiSensorSample(
            points=join_sweeps(path, self.sweeps(index), self._missing_sweeps),
            boxes=boxes,
            box_labels=labels,
            box_points=points,
            cameras=tuple(self._camera(row, i) for i in range(len(self._cameras))),
            lidar2ego=lidar2ego,
            ego2global=ego2global,
            map=self._map(row, ego2global @ lidar2ego),
            token=record.text("sample_token", row),
            path=str(path),
            timestamp_us=int(record["sample_timestamp_us"][row]),
        )

    def class_counts(self, index: int) -> npt.NDArray[np.int64]:
        """(num_classes,) boxes of each class in a sample, without reading its files; for class-balanced sampling."""
        _, labels, _ = self._boxes(self._row(index))
        return np.bincount(labels, minlength=len(self._classes))

    def sweeps(self, index: int) -> list[Sweep]:
        """What is joined with the key frame of a sample; at most `num_sweeps` - 1, fewer at a scene's start."""
        row = self._row(index)
        first, stop = self.index.sweeps(row)
        stop = min(stop, first + self._num_sweeps - 1)
        seconds = 1e-6 * (
            self.index["sample_timestamp_us"][row] - self.index["sweep_timestamp_us"][first:stop]
        )
        return [
            Sweep(
                self.root / self.index.text("sweep_path", i),
                self.index["sweep2lidar"][i],
                float(seconds[i - first]),
            )
            for i in range(first, stop)
        ]

    def scene(self, index: int) -> dict[str, str]:
        """Name, location and log of a sample's scene."""
        return self.index.scene(self._row(index))

    def token(self, index: int) -> str:
        """Token of a sample, without reading its files."""
        return self.index.text("sample_token", self._row(index))

    def attributes(self, index: int) -> tuple[str, ...]:
        """Name of the attribute of each box of a sample, "" for none; such as "vehicle.parked"."""
        first, stop, kept = self._kept(self._row(index))
        names = [*self.index.meta["attributes"], ""]  # -1 is the last
        return tuple(names[i] for i in self.index["box_attribute"][first:stop][kept])

    def _row(self, index: int) -> int:
        if not 0 <= index < len(self):
            raise IndexError(f"NuScenes: index must be 0..{len(self) - 1}, got {index}.")
        return int(self.rows[index])

    def _kept(self, row: int) -> tuple[int, int, npt.NDArray[np.bool_]]:
        """Span of a key frame's annotations, and which of them are of our classes and have enough points."""
        first, stop = self.index.boxes(row)
        returns = self.index["num_lidar_pts"][first:stop] + self.index["num_radar_pts"][first:stop]
        known = self._label_of[self.index["box_label"][first:stop]] >= 0
        return first, stop, known & (returns >= self._min_points)

    def _boxes(
        self, row: int
    ) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        first, stop, kept = self._kept(row)
        labels = self._label_of[self.index["box_label"][first:stop][kept]]
        points = self.index["num_lidar_pts"][first:stop][kept].astype(np.int64)
        return np.array(self.index["boxes"][first:stop][kept]), labels, points

    def _camera(self, row: int, i: int) -> CameraImage:
        name = self.index.text("camera_path", row, i)
        path = self.root / name
        there = bool(name) and path.is_file()
        if not there and self._missing_cameras == "raise":
            what = f"no file {path}" if name else "none recorded"
            raise BadSampleError(
                f"NuScenes: sample {self.index.text('sample_token', row)} must have an image of {CAMERAS[i]}, got "
                f"{what}. Extract the blobs that hold it (tools/prepare_data.py nuscenes lists what is missing), or "
                'pass missing_cameras="allow".'
            )
        return CameraImage(
            name=CAMERAS[i],
            image=read_image(path) if there else None,
            intrinsics=np.array(self.index["camera_intrinsics"][row, i]),
            lidar2camera=np.array(self.index["lidar2camera"][row, i]),
            path=str(path) if name else "",
            timestamp_us=int(self.index["camera_timestamp_us"][row, i]),
        )

    def _map(self, row: int, lidar2global: npt.NDArray[np.float64]) -> MapLayers | None:
        if self._maps is None:
            return None
        return self._maps.around(self.index.scene(row)["location"], lidar2global)


def splits_of(index: NuScenesIndex) -> dict[str, list[str]]:
    """Splits that belong to a version and have scenes there, with the names of these, sorted."""
    version, splits = index.meta["version"], sorted(index.meta["splits"].items())
    return {
        split: scenes
        for split, scenes in splits
        if scenes and version.endswith(_VERSIONS.get(split, ""))
    }


def choose_rows(
    index: NuScenesIndex, split: str, scenes: Sequence[str] | None = None
) -> npt.NDArray[np.int64]:
    """Rows of the key frames of a split.

    Args:
        index: The version's index.
        split: Name of a split.
        scenes: Only these scenes of it; None for all.

    Raises:
        ValueError: There is no such split in this version, or a scene is not of it.
    """
    splits, version = splits_of(index), index.meta["version"]
    if split not in splits:
        belongs = f"; it belongs to v1.0-{_VERSIONS[split]}" if split in _VERSIONS else ""
        raise ValueError(
            f"NuScenes: split must be one of version {version} ({', '.join(splits) or 'none'}), got {split!r}{belongs}."
        )
    wanted = set(splits[split])
    foreign = sorted(set(scenes or ()) - wanted)
    if foreign or (scenes is not None and not scenes):
        raise ValueError(
            f"NuScenes: scenes must name some of the {len(wanted)} of split {split!r}, got "
            f"{', '.join(foreign) or 'none'}; there are {', '.join(sorted(wanted)[:4])}, ..."
        )
    return index.rows_of(wanted if scenes is None else set(scenes))


def class_table(class_names: Sequence[str]) -> npt.NDArray[np.int64]:
    """(11,) label of each of `DETECTION_CLASSES` among `class_names`, -1 for others and for no class.

    Raises:
        ValueError: A name is unknown or comes twice.
    """
    unknown = [name for name in class_names if name not in DETECTION_CLASSES]
    if unknown or len(set(class_names)) != len(class_names) or not class_names:
        raise ValueError(
            f"NuScenes: class_names must be distinct names of {', '.join(DETECTION_CLASSES)}, got "
            f"{', '.join(unknown or class_names) or 'none'}."
        )
    table = np.full(len(DETECTION_CLASSES) + 1, -1)
    for label, name in enumerate(class_names):
        table[DETECTION_CLASSES.index(name)] = label
    return table


def check_options(
    function: str, num_sweeps: int, frame_stride: int, *when_missing: WhenMissing
) -> None:
    """Raise ValueError unless the options of a source of nuScenes samples make sense."""
    if not 1 <= num_sweeps <= MAX_SWEEPS:
        raise ValueError(f"{function}: num_sweeps must be 1..{MAX_SWEEPS}, got {num_sweeps}.")
    if frame_stride < 1:
        raise ValueError(f"{function}: frame_stride must be at least 1, got {frame_stride}.")
    for value in when_missing:
        if value not in ("raise", "allow"):
            raise ValueError(
                f'{function}: missing_cameras and missing_sweeps must be "raise" or "allow", got {value!r}.'
            )
