"""Ground-truth paste: objects of other scenes put into a training scene, where nothing else stands (LiDAR only).

Yan et al., "SECOND: Sparsely Embedded Convolutional Detection", 2018, section 3.2; the counts are those of Zhu et al.,
"Class-balanced Grouping and Sampling for Point Cloud 3D Object Detection", 2019, as BEVFusion trains its LiDAR branch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import torch

from pointlib.data.multi_sensor import MultiSensorSample
from pointlib.data.paste_database import PasteDatabase
from pointlib.ops.boxes import box_iou_bev, points_in_boxes

NUSCENES_COUNTS = {
    "car": 2,
    "truck": 3,
    "construction_vehicle": 7,
    "bus": 4,
    "trailer": 6,
    "barrier": 2,
    "motorcycle": 6,
    "bicycle": 6,
    "pedestrian": 2,
    "traffic_cone": 2,
}
"""Objects of each nuScenes class that a training scene is filled up to."""

_TIME_TOLERANCE = 0.02
"""Sweeps of two scenes that count as the same one differ by less than this [s]."""


@dataclass(frozen=True)
class PasteConfig:
    """Which objects to paste into training scenes. The defaults are BEVFusion's published ones for nuScenes.

    Attributes:
        folder: The database that `tools/prepare_data.py paste-database` wrote.
        counts: For each class, how many of it a scene is filled up to; classes that are not named stay as they are.
        min_points: Points that a pasted object has at least, over all sweeps.
        stop_epoch: First epoch without pasting, counted from 0, so that the last ones see scenes as they are; null
            to paste in all.
    """

    folder: str
    counts: Mapping[str, int] = field(default_factory=lambda: dict(NUSCENES_COUNTS))
    min_points: int = 5
    stop_epoch: int | None = 15


class ObjectPaste:
    """Fills up scenes with objects of a database: `paste(sample, epoch, rng)`.

    An object keeps its place and heading relative to the LiDAR. One that would overlap a box of the scene, or one
    pasted before it, seen from above, is left out; scene points inside a pasted box are removed. Points of several
    sweeps keep their times; sweeps older than the scene's oldest are left out.

    Args:
        database: The objects.
        counts: As of `PasteConfig`.
        min_points: As of `PasteConfig`.
        stop_epoch: As of `PasteConfig`.

    Raises:
        ValueError: A class of `counts` is not the database's, or a number is out of range.
    """

    def __init__(
        self,
        database: PasteDatabase,
        counts: Mapping[str, int] = NUSCENES_COUNTS,
        min_points: int = 5,
        stop_epoch: int | None = 15,
    ) -> None:
        unknown = sorted(set(counts) - set(database.class_names))
        if unknown:
            raise ValueError(
                f"ObjectPaste: counts must name classes of the database, {list(database.class_names)}, got {unknown}."
            )
        if min(counts.values(), default=0) < 0 or min_points < 1:
            raise ValueError(
                f"ObjectPaste: counts must be at least 0 and min_points at least 1, got {dict(counts)} and "
                f"{min_points}."
            )
        self.database = database
        self.min_points = min_points
        self.stop_epoch = stop_epoch
        enough = database.num_points >= min_points
        labels = {name: database.class_names.index(name) for name in counts}
        self._groups = [
            (label, counts[name], np.flatnonzero((database.labels == label) & enough))
            for name, label in labels.items()
        ]

    @classmethod
    def from_config(cls, config: PasteConfig) -> ObjectPaste:
        """Open the database that a config names."""
        return cls(
            PasteDatabase(config.folder), config.counts, config.min_points, config.stop_epoch
        )

    def check_classes(self, class_names: Sequence[str]) -> None:
        """Raise ValueError unless these are the database's classes, in its order."""
        if tuple(class_names) != self.database.class_names:
            raise ValueError(
                f"ObjectPaste: database in {self.database.folder} must be of the classes {list(class_names)}, got "
                f"{list(self.database.class_names)}. Build it from this dataset."
            )

    def __call__(
        self, sample: MultiSensorSample, epoch: int, rng: np.random.Generator
    ) -> MultiSensorSample:
        """Paste into one scene.

        Args:
            sample: As recorded; not changed.
            epoch: From `stop_epoch` on the sample is returned as it is.
            rng: Chooses the objects.

        Returns:
            The sample with boxes, labels and points added, after its own.

        Raises:
            ValueError: Its points have other columns than the database's.
        """
        if self.stop_epoch is not None and epoch >= self.stop_epoch:
            return sample
        if sample.points.shape[1] != self.database.num_columns:
            raise ValueError(
                f"ObjectPaste: points of {sample.path} must have {self.database.num_columns} columns as the "
                f"database's, got {sample.points.shape[1]}."
            )
        rows = self._without_collisions(sample.boxes, self._draw(sample, rng))
        oldest = float(sample.points[:, 4].max(initial=0.0)) + _TIME_TOLERANCE
        clouds = [self.database.points_of(row) for row in rows]
        clouds = [cloud[cloud[:, 4] <= oldest] for cloud in clouds]
        kept = [i for i, cloud in enumerate(clouds) if len(cloud) >= self.min_points]
        if not kept:
            return sample
        rows, clouds = rows[kept], [clouds[i] for i in kept]
        boxes = np.array(self.database.boxes[rows])
        free = points_in_boxes(torch.from_numpy(sample.points), torch.from_numpy(boxes)) < 0
        counts = np.array([len(cloud) for cloud in clouds], dtype=np.int64)
        return sample.replace(
            points=np.concatenate([sample.points[free.numpy()], *clouds]),
            boxes=np.concatenate([sample.boxes, boxes]),
            box_labels=np.concatenate([sample.box_labels, self.database.labels[rows]]),
            box_points=np.concatenate([sample.box_points, counts]),
        )

    def _draw(self, sample: MultiSensorSample, rng: np.random.Generator) -> npt.NDArray[np.int64]:
        """Choose objects of each class of which the scene has too few with points."""
        chosen = [np.empty(0, dtype=np.int64)]
        for label, count, rows in self._groups:
            present = (sample.box_labels == label) & (sample.box_points > 0)
            missing = min(count - int(present.sum()), len(rows))
            if missing > 0:
                chosen.append(rows[rng.choice(len(rows), missing, replace=False)])
        return np.concatenate(chosen)

    def _without_collisions(
        self, boxes: npt.NDArray[np.float32], rows: npt.NDArray[np.int64]
    ) -> npt.NDArray[np.int64]:
        """Keep, in order, objects that overlap neither a box nor an object kept before."""
        candidates = torch.from_numpy(np.array(self.database.boxes[rows]))
        overlaps = (
            box_iou_bev(candidates, torch.cat([torch.from_numpy(boxes), candidates])).numpy() > 0
        )
        free = ~overlaps[:, : len(boxes)].any(1)
        among = overlaps[:, len(boxes) :]
        kept: list[int] = []
        for i in np.flatnonzero(free):
            if not among[i, kept].any():
                kept.append(int(i))
        return rows[kept]
