"""The share of boxes that were found: by a detection of their class whose centre is near, seen from above."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from pointlib.metrics.matching import Integers, match_centres


@dataclass(frozen=True, eq=False)
class CentreRecallScores:
    """Scores of one evaluation.

    Attributes:
        found: (C,) int64 objects of each class that were found.
        objects: (C,) int64 objects of each class.
        detections: (C,) int64 detections of each class that were counted.
        class_names: C names.
    """

    found: Integers
    objects: Integers
    detections: Integers
    class_names: tuple[str, ...]

    @property
    def recall(self) -> float:
        """Found objects / objects, over all classes; NaN without any object."""
        return float(self.found.sum() / self.objects.sum()) if self.objects.sum() else float("nan")

    @property
    def precision(self) -> float:
        """Found objects / detections, over all classes; NaN without any detection."""
        total = self.detections.sum()
        return float(self.found.sum() / total) if total else float("nan")

    def table(self) -> str:
        """A plain-text table: recall in percent, objects and detections of each class."""
        width = max(len(name) for name in (*self.class_names, "class"))
        lines = [f"{'class':<{width}}{'recall %':>10}{'objects':>9}{'detections':>12}"]
        rows = zip(self.class_names, self.found, self.objects, self.detections, strict=True)
        for name, found, objects, detections in rows:
            share = f"{100 * found / objects:10.1f}" if objects else f"{'-':>10}"
            lines.append(f"{name:<{width}}{share}{objects:9d}{detections:12d}")
        total = f"{100 * self.recall:10.1f}{self.objects.sum():9d}{self.detections.sum():12d}"
        lines.append(f"{'all':<{width}}{total}   precision {100 * self.precision:.1f} %")
        return "\n".join(lines)


class CentreRecall:
    """Collects samples; each object is found by one detection at most, the best first.

    Args:
        class_names: Name of each class.
        distance: Largest distance of the centres [m].
        min_score: Detections below it are not counted.
    """

    def __init__(
        self, class_names: tuple[str, ...], distance: float = 2.0, min_score: float = 0.0
    ) -> None:
        self.class_names = tuple(class_names)
        self.distance = distance
        self.min_score = min_score
        self.counts = np.zeros((3, len(self.class_names)), dtype=np.int64)

    def update(
        self,
        truth: npt.NDArray[np.floating[Any]],
        truth_labels: Integers,
        boxes: npt.NDArray[np.floating[Any]],
        labels: Integers,
        scores: npt.NDArray[np.floating[Any]],
    ) -> None:
        """Add one sample; all boxes in one frame.

        Args:
            truth: (M, 7 or 9) true boxes.
            truth_labels: (M,) int64.
            boxes: (K, 7 or 9) detections.
            labels: (K,) int64.
            scores: (K,).
        """
        for label in range(len(self.class_names)):
            mine = truth[truth_labels == label, :2].astype(np.float64)
            rows = (labels == label) & (scores >= self.min_score)
            theirs = boxes[rows, :2].astype(np.float64)
            scenes = [np.zeros(len(part), dtype=np.int64) for part in (mine, theirs)]
            _, match = match_centres(
                mine, scenes[0], theirs, scenes[1], scores[rows].astype(np.float64), self.distance
            )
            self.counts[:, label] += (int((match >= 0).sum()), len(mine), len(theirs))

    def merge(self, other: CentreRecall) -> None:
        """Add what another process counted."""
        self.counts += other.counts

    def compute(self) -> CentreRecallScores:
        """Score everything counted so far."""
        found, objects, detections = self.counts.copy()
        return CentreRecallScores(found, objects, detections, self.class_names)
