"""Semantic segmentation scores from one int64 confusion matrix.

The numbers equal those of semantic-kitti-api's evaluator (`auxiliary/np_ioueval.py`) to the last bit: integer
counts, and the same float64 operations in the same order at the end.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

AbsentRule = Literal["zero", "one", "skip"]


@dataclass(frozen=True)
class SegmentationScores:
    """Scores of one evaluation.

    Attributes:
        iou: (C,) float64, intersection over union of each class, in [0, 1]; NaN for a class that is left out.
        miou: Mean of `iou` over all C classes but those left out: the benchmark's figure.
        miou_present: Mean of `iou` over the classes that occur in the ground truth; NaN if none does.
        accuracy: Correct points / labelled points that were given a class.
        support: (C,) int64, ground-truth points of each class.
        class_names: C names, or () when none were given.
    """

    iou: NDArray[np.float64]
    miou: float
    miou_present: float
    accuracy: float
    support: NDArray[np.int64]
    class_names: tuple[str, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """Plain types, for JSON: names map to IoU, absent classes keep their value; None stands for NaN."""
        names = self.class_names or tuple(str(i) for i in range(len(self.iou)))
        return {
            "miou": _plain(self.miou),
            "miou_present": _plain(self.miou_present),
            "accuracy": self.accuracy,
            "iou": {name: _plain(v) for name, v in zip(names, self.iou, strict=True)},
            "support": {name: int(n) for name, n in zip(names, self.support, strict=True)},
        }

    def table(self, present_only: bool = False) -> str:
        """A plain-text table: class, IoU in percent, ground-truth points.

        Args:
            present_only: Leave out the rows of classes that no ground-truth point has.
        """
        names = self.class_names or tuple(str(i) for i in range(len(self.iou)))
        width = max(len("classes present"), *(len(name) for name in names))
        lines = [f"{'class':<{width}}  {'IoU %':>7}  {'points':>12}"]
        for name, iou, count in zip(names, self.iou, self.support, strict=True):
            if present_only and not count:
                continue
            shown = f"{'-':>7}" if np.isnan(iou) else f"{100 * iou:7.2f}"
            lines.append(f"{name:<{width}}  {shown}  {count:12,d}")
        total = int(self.support.sum())
        lines.append(f"{'mean IoU':<{width}}  {100 * self.miou:7.2f}  {total:12,d}")
        lines.append(f"{'classes present':<{width}}  {100 * self.miou_present:7.2f}")
        lines.append(f"{'accuracy':<{width}}  {100 * self.accuracy:7.2f}")
        return "\n".join(lines)


class ConfusionMatrix:
    """Counts (prediction, target) pairs; sums over updates, devices and processes are exact.

    Rows are predictions, columns are targets. A point whose target is `ignore_index` is not counted. A point
    whose *prediction* is `ignore_index` ("no class") is a miss for its target and a false alarm for nobody, as
    class 0 is in semantic-kitti-api; it sits in the extra last row.

    Example:
        >>> import torch
        >>> matrix = ConfusionMatrix(num_classes=2)
        >>> matrix.update(torch.tensor([0, 1, 1]), torch.tensor([0, 0, 255]))
        >>> matrix.compute().iou.round(3).tolist()
        [0.5, 0.0]
    """

    def __init__(
        self,
        num_classes: int,
        ignore_index: int = 255,
        class_names: tuple[str, ...] | list[str] = (),
        device: torch.device | str = "cpu",
    ) -> None:
        """Starts from zero counts.

        Args:
            num_classes: C >= 1.
            ignore_index: Target value of points that are not scored; outside [0, C).
            class_names: C names for the scores, or ().
            device: Where the counts live; `update` accepts tensors of that device.

        Raises:
            ValueError: An argument breaks its contract.
        """
        if num_classes < 1:
            raise ValueError(f"ConfusionMatrix: num_classes must be >= 1, got {num_classes}")
        if 0 <= ignore_index < num_classes:
            raise ValueError(
                f"ConfusionMatrix: ignore_index must lie outside [0, {num_classes}), got {ignore_index}"
            )
        if class_names and len(class_names) != num_classes:
            raise ValueError(
                f"ConfusionMatrix: class_names must have {num_classes} entries, got {len(class_names)}"
            )
        self.num_classes = num_classes
        self.ignore_index = ignore_index
        self.class_names = tuple(class_names)
        self.counts = torch.zeros(num_classes + 1, num_classes, dtype=torch.int64, device=device)

    def update(self, pred: Tensor, target: Tensor) -> None:
        """Adds one prediction.

        Args:
            pred: (P,) integer class ids in [0, C), or `ignore_index` for "no class".
            target: (P,) integer class ids in [0, C), or `ignore_index`.

        Raises:
            ValueError: Shapes differ or an id is outside its range.
        """
        if pred.shape != target.shape:
            raise ValueError(
                f"ConfusionMatrix.update: pred and target must have one shape, got {tuple(pred.shape)} "
                f"and {tuple(target.shape)}"
            )
        device = self.counts.device
        pred, target = pred.reshape(-1).to(device).long(), target.reshape(-1).to(device).long()
        scored = target != self.ignore_index
        pred, target = pred[scored], target[scored]
        unclassified = pred == self.ignore_index
        self._check_range("pred", pred.masked_fill(unclassified, 0))
        self._check_range("target", target)
        pred = pred.masked_fill(unclassified, self.num_classes)
        cells = (self.num_classes + 1) * self.num_classes
        index = pred * self.num_classes + target
        self.counts += torch.bincount(index, minlength=cells).view_as(self.counts)

    def _check_range(self, name: str, ids: Tensor) -> None:
        if ids.numel() == 0:
            return
        low, high = (int(v) for v in torch.aminmax(ids))
        if low < 0 or high >= self.num_classes:
            raise ValueError(
                f"ConfusionMatrix.update: {name} must hold ids in [0, {self.num_classes}) or "
                f"{self.ignore_index}, got {low if low < 0 else high}; map the labels to train ids first"
            )

    def reset(self) -> None:
        """Sets all counts to zero."""
        self.counts.zero_()

    def to(self, device: torch.device | str) -> ConfusionMatrix:
        """A copy of this matrix on `device`."""
        copy = ConfusionMatrix(self.num_classes, self.ignore_index, self.class_names, device)
        copy.counts.copy_(self.counts)
        return copy

    def summed_over_processes(self) -> ConfusionMatrix:
        """A copy whose counts are summed over all processes; itself copied when there is one process."""
        copy = self.to(self.counts.device)
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            torch.distributed.all_reduce(copy.counts)
        return copy

    def compute(self, absent: AbsentRule = "zero") -> SegmentationScores:
        """Scores of everything counted so far in this process.

        Args:
            absent: IoU of a class that no ground-truth point has: "zero" as semantic-kitti-api (and the
                benchmark) does, "one" as the SPVNAS repository does; the latter reports higher figures. "skip" as
                nuscenes-devkit does: NaN, and not part of the mean, if no point is predicted as the class either.

        Returns:
            The scores.
        """
        if absent not in get_args(AbsentRule):
            raise ValueError(
                f"ConfusionMatrix.compute: absent must be one of {', '.join(get_args(AbsentRule))}, got {absent!r}"
            )
        counts = self.counts.cpu().numpy()
        support = counts.sum(axis=0)
        predicted = counts[: self.num_classes].sum(axis=1)
        tp = np.diag(counts[: self.num_classes]).copy()
        iou = tp / (tp + (predicted - tp) + (support - tp) + 1e-15)
        if absent == "one":
            iou = np.where(support == 0, 1.0, iou)
        if absent == "skip":
            iou = np.where(support + predicted == 0, np.nan, iou)
        counted = iou[~np.isnan(iou)]
        present = support > 0
        return SegmentationScores(
            iou=iou,
            miou=float(counted.mean()) if len(counted) else float("nan"),
            miou_present=float(iou[present].mean()) if present.any() else float("nan"),
            accuracy=float(tp.sum() / (predicted.sum() + 1e-15)),
            support=support,
            class_names=self.class_names,
        )


def _plain(value: float) -> float | None:
    """A number that JSON has."""
    return None if np.isnan(value) else float(value)
