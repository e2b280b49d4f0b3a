"""Overlap, suppression and membership of boxes on the CPU, in float64 whatever the boxes are stored in."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor


def box_iou(boxes: Tensor, others: Tensor, volume: bool) -> Tensor:
    """Intersection over union of every pair, (N, M)."""
    from pointlib.ops._cpu import box_loops

    out = boxes.new_empty(len(boxes), len(others))
    box_loops.iou_matrix(_float64(boxes), _float64(others), volume, out.numpy())
    return out


def rotated_nms_keep(boxes: Tensor, groups: Tensor | None, iou_threshold: float) -> Tensor:
    """Which boxes, in order of their score, no better kept one suppresses."""
    from pointlib.ops._cpu import box_loops

    keep = torch.ones(len(boxes), dtype=torch.bool)
    box_loops.suppress_rotated(
        _float64(boxes), _groups(groups, len(keep)), iou_threshold, keep.numpy()
    )
    return keep


def circle_nms_keep(centres: Tensor, groups: Tensor | None, radius: float) -> Tensor:
    """Which centres, in order of their score, are not within the radius of a better kept one."""
    from pointlib.ops._cpu import box_loops

    keep = torch.ones(len(centres), dtype=torch.bool)
    box_loops.suppress_circle(_float64(centres), _groups(groups, len(keep)), radius, keep.numpy())
    return keep


def points_in_boxes(points: Tensor, boxes: Tensor) -> Tensor:
    """Lowest box that holds each point, or -1."""
    from pointlib.ops._cpu import box_loops

    out = torch.empty(len(points), dtype=torch.int64)
    box_loops.first_box(_float64(points), _float64(boxes), out.numpy())
    return out


def points_in_boxes_all(points: Tensor, boxes: Tensor) -> Tensor:
    """Whether each box holds each point, (N, M)."""
    from pointlib.ops._cpu import box_loops

    out = torch.empty(len(points), len(boxes), dtype=torch.bool)
    box_loops.all_boxes(_float64(points), _float64(boxes), out.numpy())
    return out


def _float64(values: Tensor) -> np.ndarray:
    return values.detach().double().contiguous().numpy()


def _groups(groups: Tensor | None, count: int) -> np.ndarray:
    return np.zeros(count, np.int64) if groups is None else groups.contiguous().numpy()
