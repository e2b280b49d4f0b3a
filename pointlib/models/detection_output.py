"""From candidates of a detection head to the boxes of each sample: range, suppression of duplicates, order."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from pointlib.ops.boxes import circle_nms, rotated_nms
from pointlib.sensors import Detections


class Candidates(NamedTuple):
    """Boxes of a batch in one row, in any order.

    Attributes:
        boxes: (N, 9) float32, `pointlib.geometry.BOX_COLUMNS` with velocity.
        scores: (N,) float32.
        labels: (N,) int64 class.
        samples: (N,) int64 sample.
    """

    boxes: Tensor
    scores: Tensor
    labels: Tensor
    samples: Tensor

    def take(self, rows: Tensor) -> Candidates:
        """Some of them, by index or bool mask."""
        return Candidates(*(values[rows] for values in self))


def with_velocity(boxes: Tensor) -> Tensor:
    """(..., 7) boxes as (..., 9) boxes with unknown velocity, NaN; (..., 9) unchanged."""
    if boxes.shape[-1] == 9:
        return boxes
    return torch.cat([boxes, boxes.new_full((*boxes.shape[:-1], 2), torch.nan)], -1)


def in_range(boxes: Tensor, post_center_range: Sequence[float]) -> Tensor:
    """(...) whether the centre of each (..., 9) box is within x, y, z from and to [m], limits included."""
    limits = boxes.new_tensor(post_center_range)
    return ((boxes[..., :3] >= limits[:3]) & (boxes[..., :3] <= limits[3:])).all(-1)


def suppress_by_circle(candidates: Candidates, groups: Tensor, radii: Tensor) -> Tensor:
    """Rows that stay when a centre may not be within a radius of a better one of its group.

    Args:
        candidates: N boxes.
        groups: (N,) int64.
        radii: (N,) radius [m] of each row's group; 0 or less suppresses nothing.

    Returns:
        (K,) int64 rows, by falling score.
    """
    free = radii <= 0
    # One call for all groups: in units of its own radius, every group's radius is 1.
    scaled = candidates.boxes[:, :2].double() / torch.where(free, 1.0, radii)[:, None].double()
    alone = groups.max() + 1 + torch.arange(len(groups), device=groups.device) if len(groups) else 0
    return circle_nms(scaled, candidates.scores, 1.0, torch.where(free, alone, groups))


def suppress_by_overlap(
    candidates: Candidates, groups: Tensor, iou_threshold: float, scales: Tensor
) -> Tensor:
    """Rows that stay when a box may not overlap a better one of its group.

    Args:
        candidates: N boxes.
        groups: (N,) int64.
        iou_threshold: Largest IoU seen from above.
        scales: (N,) factor on length and width of each box, for suppression only.

    Returns:
        (K,) int64 rows, by falling score.
    """
    boxes = candidates.boxes[:, :7].clone()
    boxes[:, 3:5] *= scales[:, None]
    return rotated_nms(boxes, candidates.scores, iou_threshold, groups)


def first_of_groups(groups: Tensor, limit: int) -> Tensor:
    """(N,) whether a row is among the first `limit` rows of its group.

    Example:
        >>> first_of_groups(torch.tensor([7, 3, 7, 7, 3]), 2).tolist()
        [True, True, True, False, True]
    """
    if not len(groups):
        return torch.zeros(0, dtype=torch.bool, device=groups.device)
    order = groups.argsort(stable=True)
    counts = torch.bincount(groups)
    starts = (counts.cumsum(0) - counts)[groups[order]]
    rank = torch.empty_like(groups)
    rank[order] = torch.arange(len(groups), device=groups.device) - starts
    return rank < limit


def detections_of_samples(
    candidates: Candidates, batch_size: int, max_detections: int | None = None
) -> list[Detections]:
    """Split a batch into samples, best first.

    Args:
        candidates: Boxes that stay.
        batch_size: B; a sample without candidates has no detections.
        max_detections: The best so many of each sample; None: all.
    """
    ranked = candidates.take(candidates.scores.sort(descending=True, stable=True).indices)
    found = []
    for sample in range(batch_size):
        rows = (ranked.samples == sample).nonzero()[:, 0][:max_detections]
        found.append(Detections(ranked.boxes[rows], ranked.scores[rows], ranked.labels[rows]))
    return found
