"""KITTI's own evaluation of a detector: result files, and the benchmark's average precision."""

from __future__ import annotations

from pathlib import Path

from pointlib.data.kitti_labels import KittiObjects, write_objects
from pointlib.data.kitti_object import KITTIObject
from pointlib.metrics.kitti_ap import KittiScores, kitti_ap
from pointlib.sensors import Detections


class KittiResults:
    """Collects the detections of a split.

    Args:
        source: The split.
        folder: Where result files go, one for each frame, as the benchmark wants them; None: not written.
    """

    def __init__(self, source: KITTIObject, folder: Path | None) -> None:
        self.source = source
        self.folder = folder
        self._found: dict[int, KittiObjects] = {}

    def add(self, number: int, detections: Detections) -> None:
        """Add what was found in a frame; boxes that the image does not show are no result."""
        found = self.source.found_objects(
            number,
            detections.boxes.numpy(),
            detections.scores.numpy(),
            detections.labels.numpy(),
        )
        self._found[number] = found
        if self.folder is not None:
            write_objects(self.folder / f"{self.source.frames[number]}.txt", found)

    def compute(self) -> KittiScores:
        """Score the frames that were added."""
        numbers = sorted(self._found)
        return kitti_ap(
            [self.source.objects(number) for number in numbers],
            [self._found[number] for number in numbers],
            self.source.class_names,
        )
