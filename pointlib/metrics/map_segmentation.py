"""How well a bird's-eye map is segmented: intersection over union of each class at several thresholds.

Liu et al., "BEVFusion", ICRA 2023, section 4.2: classes may overlap, so each is its own binary problem, and each is
given the best of seven thresholds.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

THRESHOLDS = (0.35, 0.40, 0.45, 0.50, 0.55, 0.60, 0.65)
_EPSILON = 1e-7  # of the published definition: a class that nobody has and nobody finds scores 0


@dataclass(frozen=True, eq=False)
class MapScores:
    """Scores of one evaluation.

    Attributes:
        iou: (C, 7) float32 of each class at each of `THRESHOLDS`.
        class_names: C names.
    """

    iou: Tensor
    class_names: tuple[str, ...]

    @property
    def miou(self) -> float:
        """Mean over the classes of the best over the thresholds."""
        return float(self.iou.max(dim=1).values.mean())

    def as_dict(self) -> dict[str, Any]:
        """Plain types, for JSON."""
        classes = {
            name: {
                "iou": float(row.max()),
                **{f"iou@{t:.2f}": float(v) for t, v in zip(THRESHOLDS, row, strict=True)},
            }
            for name, row in zip(self.class_names, self.iou, strict=True)
        }
        return {"miou": self.miou, "classes": classes}

    def table(self) -> str:
        """A plain-text table: IoU in percent, best and at each threshold."""
        width = max(len(name) for name in (*self.class_names, "class"))
        lines = [
            f"{'class':<{width}}{'IoU %':>8}" + "".join(f"{f'@{t:.2f}':>8}" for t in THRESHOLDS)
        ]
        for name, row in zip(self.class_names, self.iou, strict=True):
            cells = [float(row.max()), *row.tolist()]
            lines.append(f"{name:<{width}}" + "".join(f"{100 * cell:8.2f}" for cell in cells))
        lines.append(f"{'mean':<{width}}{100 * self.miou:8.2f}")
        return "\n".join(lines)


class MapIoU:
    """Counts cells; sums over updates, devices and processes are exact.

    Args:
        class_names: Name of each class.
        device: Where to count.

    Example:
        >>> metric = MapIoU(("road",))
        >>> metric.update(torch.tensor([[[[0.9, 0.4]]]]), torch.tensor([[[[True, False]]]]))
        >>> round(metric.compute().miou, 6)
        1.0
    """

    def __init__(
        self, class_names: tuple[str, ...], device: torch.device | str | None = None
    ) -> None:
        self.class_names = tuple(class_names)
        shape = (3, len(self.class_names), len(THRESHOLDS))
        self.counts = torch.zeros(shape, dtype=torch.int64, device=device)
        """(3, C, 7) hits, false alarms and misses."""

    def update(self, probabilities: Tensor, masks: Tensor) -> None:
        """Count the cells of a batch.

        Args:
            probabilities: (B, C, X, Y) floating, in [0, 1].
            masks: (B, C, X, Y) bool truth.

        Raises:
            ValueError: If the shapes differ or are not of C classes.
        """
        classes = len(self.class_names)
        if probabilities.shape != masks.shape or probabilities.shape[1:2] != (classes,):
            raise ValueError(
                f"MapIoU.update: probabilities and masks must both be (B, {classes}, X, Y), got "
                f"{tuple(probabilities.shape)} and {tuple(masks.shape)}"
            )
        device = self.counts.device
        found = probabilities.detach().float().to(device).transpose(0, 1).flatten(1)[..., None]
        truth = masks.to(device).bool().transpose(0, 1).flatten(1)[..., None]
        found = found >= torch.tensor(THRESHOLDS, device=device)
        self.counts += torch.stack(
            [(found & truth).sum(1), (found & ~truth).sum(1), (~found & truth).sum(1)]
        )

    def merge(self, other: MapIoU) -> None:
        """Add what another process counted."""
        self.counts += other.counts.to(self.counts.device)

    def compute(self) -> MapScores:
        """Score everything counted so far."""
        hits, alarms, misses = self.counts.cpu().float()
        return MapScores(hits / (hits + alarms + misses + _EPSILON), self.class_names)
