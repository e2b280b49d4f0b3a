"""Overlap, suppression and membership of boxes on CUDA, in the dtype of the boxes."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from pointlib.ops._cuda import engine
from pointlib.ops._cuda.types import ELEMENTS

SOURCE = "boxes.cu"
WARP = 32
BLOCK = 128
SETTLE_BLOCK = 256
MAX_GRID_Y = 65535
BOX_TILE = 128
"""Boxes that a block of points_in_boxes holds at once, of TEST_NUMBERS numbers each."""
TEST_NUMBERS = 8
MOST_ROWS = 1 << 18
"""Rows that suppression takes: its masks have an eighth of a byte for every pair."""
_DTYPES = (torch.float32, torch.float64)


def box_iou(boxes: Tensor, others: Tensor, volume: bool) -> Tensor:
    """Intersection over union of every pair, (N, M)."""
    out = boxes.new_empty(len(boxes), len(others))
    grid = (engine.ceil_div(len(others), BLOCK), min(len(boxes), MAX_GRID_Y))
    kernel = _kernel("box_iou", boxes.dtype, str(volume).lower())
    arguments = (boxes.contiguous(), others.contiguous(), out, *out.shape)
    engine.launch(SOURCE, kernel, grid, BLOCK, *arguments)
    return out


def rotated_nms_keep(boxes: Tensor, groups: Tensor | None, iou_threshold: float) -> Tensor:
    """Which boxes, in order of their score, no better kept one suppresses."""
    return _keep("rotated_nms", "OverlapAbove", boxes, groups, iou_threshold)


def circle_nms_keep(centres: Tensor, groups: Tensor | None, radius: float) -> Tensor:
    """Which centres, in order of their score, are not within the radius of a better kept one."""
    return _keep("circle_nms", "CentreWithin", centres, groups, radius)


def points_in_boxes(points: Tensor, boxes: Tensor) -> Tensor:
    """Lowest box that holds each point, or -1."""
    out = points.new_empty(len(points), dtype=torch.int64)
    kernel, grid = _kernel("points_in_boxes", points.dtype), engine.ceil_div(len(points), BLOCK)
    tensors = (points.contiguous(), boxes.contiguous(), out)
    engine.launch(
        *(SOURCE, kernel, grid, BLOCK),
        *(*tensors, len(points), len(boxes), BOX_TILE),
        shared_bytes=BOX_TILE * TEST_NUMBERS * points.element_size(),
    )
    return out


def points_in_boxes_all(points: Tensor, boxes: Tensor) -> Tensor:
    """Whether each box holds each point, (N, M)."""
    out = points.new_empty(len(points), len(boxes), dtype=torch.bool)
    block = min(engine.ceil_div(len(boxes), WARP) * WARP, BLOCK)  # boxes are often few
    if not out.numel():
        return out
    grid = (engine.ceil_div(len(boxes), block), min(len(points), MAX_GRID_Y))
    kernel = _kernel("points_in_boxes_all", points.dtype)
    engine.launch(
        SOURCE, kernel, grid, block, points.contiguous(), boxes.contiguous(), out, *out.shape
    )
    return out


def _keep(caller: str, test: str, rows: Tensor, groups: Tensor | None, limit: float) -> Tensor:
    count, words = len(rows), engine.ceil_div(len(rows), WARP)
    if count > MOST_ROWS:
        raise ValueError(
            f"{caller}: there must be at most {MOST_ROWS} boxes, got {count}. Take those of the best scores first."
        )
    keep = rows.new_empty(count, dtype=torch.bool)
    if not count:
        return keep
    masks = rows.new_empty(count, words, dtype=torch.int32)
    engine.launch(
        *(SOURCE, _kernel("suppression_masks", rows.dtype, f"pointlib::{test}")),
        *((engine.ceil_div(words * WARP, BLOCK), min(count, MAX_GRID_Y)), BLOCK),
        *(rows.contiguous(), None if groups is None else groups.contiguous()),
        *(rows.new_full((1,), limit), masks, count, words),
    )
    engine.launch(
        *(SOURCE, "pointlib::settle_suppression", 1, SETTLE_BLOCK, masks, keep, count, words),
        shared_bytes=4 * (words + 1),
    )
    return keep


def _kernel(name: str, dtype: torch.dtype, *more: str) -> str:
    return f"pointlib::{name}<{', '.join([ELEMENTS[dtype], *more])}>"


def variants(capability: int) -> Iterator[tuple[str, str]]:
    """Every kernel of this file, as (source, name)."""
    del capability
    for dtype in _DTYPES:
        for volume in ("false", "true"):
            yield SOURCE, _kernel("box_iou", dtype, volume)
        for test in ("OverlapAbove", "CentreWithin"):
            yield SOURCE, _kernel("suppression_masks", dtype, f"pointlib::{test}")
        yield SOURCE, _kernel("points_in_boxes", dtype)
        yield SOURCE, _kernel("points_in_boxes_all", dtype)
    yield SOURCE, "pointlib::settle_suppression"
