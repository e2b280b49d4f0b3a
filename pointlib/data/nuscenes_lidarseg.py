"""nuScenes-lidarseg and panoptic nuScenes as labelled scans: a `ScanSource` for the segmentation pipeline."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt

from pointlib.data.label_map import LabelMap, load_label_map
from pointlib.data.nuscenes import check_options, choose_rows
from pointlib.data.nuscenes_index import load_index
from pointlib.data.nuscenes_sweeps import Sweep, WhenMissing, join_sweeps
from pointlib.data.sample import IGNORE_INDEX, BadSampleError, PointCloudSample
from pointlib.geometry import invert

INSTANCES_PER_CATEGORY = 1000
"""A panoptic label is category * 1000 + instance."""

FULL_INTENSITY = 255
"""Intensity of a full return in the files; in a scan it is 1, as in SemanticKITTI's."""

LabelKind = Literal["lidarseg", "panoptic"]
FrameKind = Literal["sweeps", "key_frames"]


class NuScenesLidarSeg:
    """The labelled clouds of one split of nuScenes. It is a `ScanSource`.

    Points are in LIDAR_TOP's frame, x right, y forward, z up. Intensity, 0 to 255 in the files, is scaled to 0 to 1, so
    that a network may be trained or used on SemanticKITTI and PandaSet too (Pointcept scales it, mmdetection3d and
    Cylinder3D do not).

    With several frames, the earlier clouds are moved into the frame of the last and every point has its time as a fifth
    column. Only key frames are labelled, and only the last one is scored, as in the challenge: points of earlier clouds
    are context and have the label `IGNORE_INDEX`.

    Args:
        root: Folder that holds `samples/`, `sweeps/`, `lidarseg/` (or `panoptic/`) and the folder of the version.
        version: As in `NuScenes`.
        split: As in `NuScenes`.
        labels: "lidarseg"; "panoptic" for classes and instances from the panoptic files; None to read without labels,
            as the test split must be.
        num_frames: Clouds a scan: 1, or more with those before it.
        frames: What earlier clouds are: "sweeps", 0.05 s apart (at most 10 clouds), or "key_frames", 0.5 s apart.
        label_map: "nuscenes_lidarseg", or the path of a YAML file (see `load_label_map`).
        missing_sweeps: As in `NuScenes`; for earlier clouds of either kind.
        index_folder: As in `NuScenes`.
        scenes: As in `NuScenes`.
        frame_stride: As in `NuScenes`.

    Raises:
        ValueError: As `NuScenes`; or the version has no such labels, or numbers its categories unlike the label map.
        ImportError: The index must be built and nuscenes-devkit is not installed.
    """

    def __init__(
        self,
        root: str | Path,
        version: str = "v1.0-trainval",
        split: str = "train",
        labels: LabelKind | None = "lidarseg",
        num_frames: int = 1,
        frames: FrameKind = "sweeps",
        label_map: str | Path = "nuscenes_lidarseg",
        missing_sweeps: WhenMissing = "raise",
        index_folder: str | Path | None = None,
        scenes: list[str] | None = None,
        frame_stride: int = 1,
    ) -> None:
        if labels not in ("lidarseg", "panoptic", None) or frames not in ("sweeps", "key_frames"):
            raise ValueError(
                'NuScenesLidarSeg: labels must be "lidarseg", "panoptic" or None and frames "sweeps" or "key_frames", '
                f"got {labels!r} and {frames!r}."
            )
        check_options("NuScenesLidarSeg", num_frames, frame_stride, missing_sweeps)
        self.root = Path(root)
        self.label_map: LabelMap = load_label_map(label_map)
        self.index = load_index(root, version, index_folder)
        self.rows = choose_rows(self.index, split, scenes)[::frame_stride]
        self.split = split
        self.labels: LabelKind | None = labels
        self._num_frames = num_frames
        self._frames: FrameKind = frames
        self._missing_sweeps: WhenMissing = missing_sweeps
        if labels is not None:
            self._check_labels(split, labels)

    @property
    def class_names(self) -> tuple[str, ...]:
        """Name of each train id."""
        return self.label_map.class_names

    @property
    def num_classes(self) -> int:
        """Number of train ids."""
        return self.label_map.num_classes

    @property
    def with_labels(self) -> bool:
        """Whether scans have labels."""
        return self.labels is not None

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> PointCloudSample:
        """Read one scan; the points of its key frame come first.

        Returns:
            Points (N, 4) with intensity 0 to 1, or (N, 5) with the time before the key frame [s] if there are several
            frames; instances, with panoptic labels, are the labels themselves (category * 1000 + instance), 0 for none.

        Raises:
            IndexError: There is no such scan.
            BadSampleError: A file is missing or broken; the message names it.
        """
        cloud, label_file = self.paths(index)
        points = join_sweeps(cloud, self._earlier(index), self._missing_sweeps)
        columns = 5 if self._num_frames > 1 else 4
        points = np.ascontiguousarray(points[:, :columns])
        points[:, 3] /= FULL_INTENSITY
        if self.labels is None:
            return PointCloudSample(points, path=str(cloud))
        raw, instance = _read_labels(label_file, self.labels)
        num_key = self.num_own_points(points)
        if len(raw) != num_key:
            raise BadSampleError(
                f"NuScenesLidarSeg: {label_file} must have one label for each of the {num_key} points of {cloud}, got "
                f"{len(raw)}. One of the two was not copied completely; extract both again."
            )
        labels = np.full(len(points), IGNORE_INDEX, np.uint8)
        labels[:num_key] = self.label_map.to_train(raw, str(label_file))
        instances = np.zeros(len(points), np.int32)
        instances[:num_key] = instance
        return PointCloudSample(
            points, labels, str(cloud), instances if self.labels == "panoptic" else None
        )

    @staticmethod
    def num_own_points(points: npt.NDArray[np.float32]) -> int:
        """How many points of a scan, the first ones, are of its key frame; the others are of earlier clouds."""
        return len(points) if points.shape[1] < 5 else int(np.count_nonzero(points[:, 4] == 0))

    def paths(self, index: int) -> tuple[Path, Path]:
        """Return the paths of a scan and of its labels; neither need exist."""
        row = self._row(index)
        label_path = self.index.text(f"{self.labels}_path", row) if self.labels else ""
        return self.root / self.index.text("lidar_path", row), self.root / label_path

    def token(self, index: int) -> str:
        """Token of a scan's sample_data, which names its prediction file."""
        return self.index.text("lidar_token", self._row(index))

    def _row(self, index: int) -> int:
        if not 0 <= index < len(self):
            raise IndexError(f"NuScenesLidarSeg: index must be 0..{len(self) - 1}, got {index}.")
        return int(self.rows[index])

    def _earlier(self, index: int) -> list[Sweep]:
        """The clouds to join with a key frame, newest first."""
        row, record = self._row(index), self.index
        now = int(record["sample_timestamp_us"][row])
        if self._frames == "sweeps":
            first, stop = record.sweeps(row)
            return [
                Sweep(
                    self.root / record.text("sweep_path", i),
                    record["sweep2lidar"][i],
                    1e-6 * (now - int(record["sweep_timestamp_us"][i])),
                )
                for i in range(first, min(stop, first + self._num_frames - 1))
            ]
        global2lidar = invert(record["ego2global"][row] @ record["lidar2ego"][row])
        found: list[Sweep] = []
        earlier = int(record["sample_previous"][row])
        while earlier >= 0 and len(found) < self._num_frames - 1:
            pose = global2lidar @ record["ego2global"][earlier] @ record["lidar2ego"][earlier]
            seconds = 1e-6 * (now - int(record["sample_timestamp_us"][earlier]))
            found.append(Sweep(self.root / record.text("lidar_path", earlier), pose, seconds))
            earlier = int(record["sample_previous"][earlier])
        return found

    def _check_labels(self, split: str, labels: LabelKind) -> None:
        """Raise unless the version has labels, numbered as the map says."""
        version = self.index.meta["version"]
        unlabelled = int(np.count_nonzero(self.index[f"{labels}_path"][self.rows] == b""))
        if unlabelled:
            raise ValueError(
                f"NuScenesLidarSeg: every key frame of split {split!r} of {version} must have {labels} labels, got "
                f"{unlabelled} of {len(self.rows)} without. Extract the {labels} archive of this version (with its "
                f"{version}/{labels}.json and category.json), or read with labels=None."
            )
        names = {int(i): name for i, name in self.index.meta["lidarseg_names"].items()}
        wrong = {i: n for i, n in names.items() if self.label_map.raw_names.get(i) != n}
        if wrong:
            i, name = next(iter(wrong.items()))
            raise ValueError(
                f"NuScenesLidarSeg: the label map {self.label_map.name!r} must name raw labels as {version} does, got "
                f"{self.label_map.raw_names.get(i)!r} for {i}, which is {name!r} there ({len(wrong)} differ)."
            )


def _read_labels(
    path: Path, kind: LabelKind
) -> tuple[npt.NDArray[np.uint16], npt.NDArray[np.int32] | int]:
    """Raw classes of all points, and their instances."""
    try:
        if kind == "lidarseg":
            return np.fromfile(path, np.uint8).astype(np.uint16), 0
        with np.load(path, allow_pickle=False) as content:
            panoptic = content["data"].astype(np.int64)
    except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise BadSampleError(
            f"NuScenesLidarSeg: {path} must be a readable file of {kind} labels, got {type(error).__name__} ({error}). "
            f"Extract the {kind} archive again."
        ) from error
    has_instance = panoptic % INSTANCES_PER_CATEGORY > 0
    category = (panoptic // INSTANCES_PER_CATEGORY).astype(np.uint16)
    return category, np.where(has_instance, panoptic, 0).astype(np.int32)
