"""PandaSet as scans with a class for each point."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from torch.utils.data import Dataset

from pointlib.data.label_map import LabelMap, load_label_map
from pointlib.data.pandaset import open_sequences
from pointlib.data.pandaset_sequence import PandaSetSequence, Sensor
from pointlib.data.sample import PointCloudSample
from pointlib.geometry import invert, transform_points


class PandaSetSegmentation(Dataset[PointCloudSample]):
    """Scans of PandaSet with a class for each point: a `ScanSource` for `SegmentationDataset`.

    76 of the 103 sequences have point classes; frames without are left out.

    Args:
        root: As of `PandaSet`.
        split: As of `PandaSet`.
        sensor: As of `PandaSet`.
        label_map: "pandaset" (nuScenes-lidarseg's 16 classes) or the path of a YAML file (see `load_label_map`).
        frame_stride: Read every n-th frame of each sequence.

    Raises:
        ValueError: If an option does not exist, a sequence is not there, or no frame has classes.
        BadSampleError: If the poses or times of a sequence are missing or broken.
    """

    def __init__(
        self,
        root: str | Path,
        split: str | Sequence[str] | None = None,
        sensor: Sensor = "pandar64",
        label_map: str | Path = "pandaset",
        frame_stride: int = 1,
    ) -> None:
        if frame_stride < 1:
            raise ValueError(
                f"PandaSetSegmentation: frame_stride must be at least 1, got {frame_stride}."
            )
        self.label_map: LabelMap = load_label_map(label_map)
        self.sensor: Sensor = sensor
        self._index = [
            (sequence, frame)
            for sequence in open_sequences(root, split, sensor)
            for frame in sequence.frames[::frame_stride]
            if (sequence.folder / "annotations" / "semseg" / f"{frame}.pkl.gz").is_file()
        ]
        if not self._index:
            raise ValueError(
                f"PandaSetSegmentation: root must hold frames with annotations/semseg, got none in {root}. 76 of the "
                "103 sequences have them: choose others."
            )

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
        """Whether scans have labels: all have, frames without are left out."""
        return True

    def token(self, index: int) -> str:
        """Sequence and frame of a scan, such as "002/00"."""
        sequence, frame = self._at(index)
        return f"{sequence.folder.name}/{frame}"

    def __len__(self) -> int:
        return len(self._index)

    def __getitem__(self, index: int) -> PointCloudSample:
        """Read one scan: x, y, z [m] in the level LiDAR frame, and intensity from 0 to 1.

        Raises:
            IndexError: If there is no such scan.
            BadSampleError: If its files are missing or broken; the message names the file.
        """
        sequence, frame = self._at(index)
        path = sequence.points_path(frame)
        points = sequence.points(frame, "both")
        classes = sequence.point_classes(frame, len(points.xyz))
        if self.sensor != "both":
            points = sequence.points(frame, self.sensor)
        xyz = transform_points(points.xyz, invert(sequence.lidar2world(frame)))
        return PointCloudSample(
            points=np.column_stack([xyz, points.intensity / 255]).astype(np.float32),
            labels=self.label_map.to_train(classes[points.rows], str(path)),
            path=str(path),
        )

    def _at(self, index: int) -> tuple[PandaSetSequence, str]:
        if not 0 <= index < len(self):
            raise IndexError(
                f"PandaSetSegmentation: index must be 0..{len(self) - 1}, got {index}."
            )
        return self._index[index]
