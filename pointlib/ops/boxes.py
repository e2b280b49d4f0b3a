"""Boxes among themselves and around points: overlap, suppression of duplicates, membership.

Boxes are (N, 7) or (N, 9), `pointlib.geometry.BOX_COLUMNS`: centre, size along heading, to its left and up, yaw
counter-clockwise from +x. Nothing here is differentiable. The CPU computes in float64, a GPU in the dtype of the
boxes, so what lies within rounding of a threshold or of a face may fall on either side.

| here                                   | mmcv / mmdetection3d / OpenPCDet                                            |
|----------------------------------------|-----------------------------------------------------------------------------|
| `box_iou_bev`, `box_iou_3d`            | box_iou_rotated, boxes_iou_bev, boxes_iou3d_gpu                             |
| `rotated_nms`, groups for classes      | nms_gpu, nms_bev, nms_rotated, batched_nms                                  |
| `circle_nms`                           | circle_nms, whose `thresh` is the square of our radius                      |
| `points_in_boxes`, `..._all`           | points_in_boxes_part, points_in_boxes_all (their boxes stand on z)          |
"""

from __future__ import annotations

import torch
from torch import Tensor

from pointlib.ops._cpu import boxes as cpu
from pointlib.ops._cuda import boxes as cuda
from pointlib.ops._library import LIB


def box_iou_bev(boxes: Tensor, others: Tensor) -> Tensor:
    """Intersection over union of every pair of boxes, seen from above: exact areas of rotated rectangles.

    Args:
        boxes: (N, 7) or (N, 9) float32 or float64.
        others: (M, 7) or (M, 9) of the same dtype.

    Returns:
        (N, M) in [0, 1] and of the boxes' dtype; the same number for (a, b) and (b, a), exactly 1 for a box with
        itself. 0 for boxes that only touch (a shared sliver of less than 2e-6 of the smaller one, 1e-14 in float64,
        may be rounding and counts as nothing), and for boxes without a positive size or with a NaN or infinity.

    Raises:
        TypeError, ValueError: If a dtype, shape or device differs from the above.

    Example:
        >>> box = torch.tensor([[0.0, 0, 0, 4, 2, 1, 0]])
        >>> box_iou_bev(box, box + torch.tensor([2.0, 0, 5, 0, 0, 0, 0])).tolist()
        [[0.3333333432674408]]
    """
    return _box_iou("box_iou_bev", boxes, others, volume=False)


def box_iou_3d(boxes: Tensor, others: Tensor) -> Tensor:
    """Intersection over union of the volumes of every pair of boxes; arguments, result and errors as `box_iou_bev`."""
    return _box_iou("box_iou_3d", boxes, others, volume=True)


def rotated_nms(
    boxes: Tensor,
    scores: Tensor,
    iou_threshold: float,
    groups: Tensor | None = None,
    max_boxes: int | None = None,
) -> Tensor:
    """Keep the best of boxes that overlap, seen from above.

    In order of falling score each box is kept unless its `box_iou_bev` with one kept before is above the threshold.
    Equal scores keep the order of the boxes; NaN scores come last.

    Args:
        boxes: (N, 7) or (N, 9) float32 or float64.
        scores: (N,) floating.
        iou_threshold: In [0, 1]; 0 suppresses whatever overlaps at all, 1 nothing.
        groups: (N,) int64: only boxes of one group suppress each other, such as of one class, or of one class in one
            sample, `sample * num_classes + label`. None is one group.
        max_boxes: Return no more than so many, the best.

    Returns:
        (K,) int64 rows of boxes, in order of falling score. On a GPU the host waits once, to learn K.

    Raises:
        TypeError, ValueError: If an argument is not as above.

    Example:
        >>> boxes = torch.tensor([[0.0, 0, 0, 4, 2, 1, 0], [0.5, 0, 0, 4, 2, 1, 0], [9.0, 0, 0, 4, 2, 1, 0]])
        >>> rotated_nms(boxes, torch.tensor([0.5, 0.9, 0.1]), iou_threshold=0.2).tolist()
        [1, 2]
    """
    _check_boxes("rotated_nms", "boxes", boxes)
    if not 0 <= iou_threshold <= 1:
        raise ValueError(f"rotated_nms: iou_threshold must be in [0, 1], got {iou_threshold}.")
    order = _by_score("rotated_nms", "boxes", boxes, scores, groups, max_boxes)
    ordered = None if groups is None else groups[order]
    keep = torch.ops.pointlib.rotated_nms_keep(boxes.detach()[order, :7], ordered, iou_threshold)
    return order[keep][:max_boxes]


def circle_nms(
    centres: Tensor,
    scores: Tensor,
    radius: float,
    groups: Tensor | None = None,
    max_boxes: int | None = None,
) -> Tensor:
    """Keep the best of boxes whose centres are close, seen from above (Yin et al., "CenterPoint", CVPR 2021).

    As `rotated_nms`, but a box is suppressed where its centre is within the radius of one kept before.

    Args:
        centres: (N, 2 or more) float32 or float64, x and y [m] first; so boxes will do.
        scores: (N,) floating.
        radius: [m], included. The `min_radius` of published CenterPoint and BEVFusion configs is compared with squared
            distances: pass its square root.
        groups: As of `rotated_nms`.
        max_boxes: As of `rotated_nms`.

    Returns:
        (K,) int64 rows of centres, in order of falling score.

    Raises:
        TypeError, ValueError: If an argument is not as above.

    Example:
        >>> circle_nms(torch.tensor([[0.0, 0], [3, 4], [9, 9]]), torch.tensor([0.1, 0.2, 0.3]), 5.0).tolist()
        [2, 1]
    """
    _check_floating("circle_nms", "centres", centres)
    if centres.dim() != 2 or centres.shape[1] < 2:
        raise ValueError(
            f"circle_nms: centres must be (N, 2 or more) [x, y, ...], got {tuple(centres.shape)}."
        )
    if not radius >= 0:
        raise ValueError(f"circle_nms: radius must be >= 0 metres, got {radius}.")
    order = _by_score("circle_nms", "centres", centres, scores, groups, max_boxes)
    ordered = None if groups is None else groups[order]
    keep = torch.ops.pointlib.circle_nms_keep(centres.detach()[order, :2], ordered, radius)
    return order[keep][:max_boxes]


def points_in_boxes(points: Tensor, boxes: Tensor) -> Tensor:
    """Find the box that holds each point; faces belong to a box.

    Args:
        points: (N, 3 or more) float32 or float64, x, y, z [m] first.
        boxes: (M, 7) or (M, 9) of the same dtype and frame.

    Returns:
        (N,) int64 row of boxes, the lowest where several hold the point, or -1.

    Raises:
        TypeError, ValueError: If a dtype, shape or device differs from the above.

    Example:
        >>> box = torch.tensor([[0.0, 0, 0, 4, 2, 1, 0]])
        >>> points_in_boxes(torch.tensor([[2.0, 1, 0.5], [0, 1.1, 0]]), box).tolist()
        [0, -1]
    """
    return torch.ops.pointlib.points_in_boxes(*_points("points_in_boxes", points, boxes))


def points_in_boxes_all(points: Tensor, boxes: Tensor) -> Tensor:
    """Find all boxes that hold each point: (N, M) bool; arguments and errors as `points_in_boxes`."""
    return torch.ops.pointlib.points_in_boxes_all(*_points("points_in_boxes_all", points, boxes))


def _box_iou(caller: str, boxes: Tensor, others: Tensor, volume: bool) -> Tensor:
    _check_boxes(caller, "boxes", boxes)
    _check_boxes(caller, "others", others)
    _check_same(caller, "others", others, "boxes", boxes)
    return torch.ops.pointlib.box_iou(boxes.detach()[:, :7], others.detach()[:, :7], volume)


def _points(caller: str, points: Tensor, boxes: Tensor) -> tuple[Tensor, Tensor]:
    _check_floating(caller, "points", points)
    if points.dim() != 2 or points.shape[1] < 3:
        raise ValueError(
            f"{caller}: points must be (N, 3 or more) [x, y, z, ...], got {tuple(points.shape)}."
        )
    _check_boxes(caller, "boxes", boxes)
    _check_same(caller, "boxes", boxes, "points", points)
    return points.detach()[:, :3], boxes.detach()[:, :7]


def _by_score(
    caller: str,
    argument: str,
    rows: Tensor,
    scores: Tensor,
    groups: Tensor | None,
    max_boxes: int | None,
) -> Tensor:
    """Rows by falling score, after checking what the two suppressions share."""
    count = (rows.shape[0],)
    if not isinstance(scores, Tensor) or not scores.is_floating_point():
        got = str(scores.dtype) if isinstance(scores, Tensor) else type(scores).__name__
        raise TypeError(f"{caller}: scores must be an (N,) floating tensor, got {got}.")
    if groups is not None and (not isinstance(groups, Tensor) or groups.dtype != torch.int64):
        got = str(groups.dtype) if isinstance(groups, Tensor) else type(groups).__name__
        raise TypeError(f"{caller}: groups must be an (N,) int64 tensor, got {got}. Use .long().")
    for name, tensor in (("scores", scores), ("groups", groups)):
        if tensor is not None and (tensor.shape != count or tensor.device != rows.device):
            raise ValueError(
                f"{caller}: {name} must be {count} on {rows.device} as {argument} are, "
                f"got {tuple(tensor.shape)} on {tensor.device}."
            )
    if max_boxes is not None and max_boxes < 0:
        raise ValueError(f"{caller}: max_boxes must be >= 0 or None, got {max_boxes}.")
    numbers = scores.detach().nan_to_num(-torch.inf, torch.inf, -torch.inf)
    return numbers.sort(descending=True, stable=True).indices


def _check_floating(caller: str, argument: str, value: Tensor) -> None:
    if not isinstance(value, Tensor) or value.dtype not in (torch.float32, torch.float64):
        got = str(value.dtype) if isinstance(value, Tensor) else type(value).__name__
        raise TypeError(
            f"{caller}: {argument} must be a float32 or float64 tensor, got {got}. Convert with .float()."
        )


def _check_boxes(caller: str, argument: str, boxes: Tensor) -> None:
    _check_floating(caller, argument, boxes)
    if boxes.dim() != 2 or boxes.shape[1] not in (7, 9):
        raise ValueError(
            f"{caller}: {argument} must be (N, 7) [x, y, z, l, w, h, yaw] or (N, 9), got {tuple(boxes.shape)}."
        )


def _check_same(caller: str, argument: str, value: Tensor, like_name: str, like: Tensor) -> None:
    if value.dtype != like.dtype or value.device != like.device:
        raise ValueError(
            f"{caller}: {argument} must be {like.dtype} on {like.device} as {like_name} are, "
            f"got {value.dtype} on {value.device}."
        )


LIB.define("box_iou(Tensor boxes, Tensor others, bool volume) -> Tensor")
LIB.define("rotated_nms_keep(Tensor boxes, Tensor? groups, float iou_threshold) -> Tensor")
LIB.define("circle_nms_keep(Tensor centres, Tensor? groups, float radius) -> Tensor")
LIB.define("points_in_boxes(Tensor points, Tensor boxes) -> Tensor")
LIB.define("points_in_boxes_all(Tensor points, Tensor boxes) -> Tensor")
for _name in (
    "box_iou",
    "rotated_nms_keep",
    "circle_nms_keep",
    "points_in_boxes",
    "points_in_boxes_all",
):
    LIB.impl(_name, getattr(cpu, _name), "CPU")
    LIB.impl(_name, getattr(cuda, _name), "CUDA")


@torch.library.register_fake("pointlib::box_iou", lib=LIB)
def _iou_fake(boxes: Tensor, others: Tensor, volume: bool) -> Tensor:
    return boxes.new_empty(boxes.shape[0], others.shape[0])


@torch.library.register_fake("pointlib::rotated_nms_keep", lib=LIB)
@torch.library.register_fake("pointlib::circle_nms_keep", lib=LIB)
def _keep_fake(rows: Tensor, groups: Tensor | None, limit: float) -> Tensor:
    return rows.new_empty(rows.shape[0], dtype=torch.bool)


@torch.library.register_fake("pointlib::points_in_boxes", lib=LIB)
def _points_fake(points: Tensor, boxes: Tensor) -> Tensor:
    return points.new_empty(points.shape[0], dtype=torch.int64)


@torch.library.register_fake("pointlib::points_in_boxes_all", lib=LIB)
def _points_all_fake(points: Tensor, boxes: Tensor) -> Tensor:
    return points.new_empty(points.shape[0], boxes.shape[0], dtype=torch.bool)
