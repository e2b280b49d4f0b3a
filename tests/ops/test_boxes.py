"""Overlap of boxes against polygon clipping in float64, and what all operators on boxes promise."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.library import opcheck

from pointlib.ops.boxes import (
    box_iou_3d,
    box_iou_bev,
    circle_nms,
    points_in_boxes,
    points_in_boxes_all,
    rotated_nms,
)
from tests.ops.box_oracles import box, iou_by_clipping, random_boxes, vectors

OPS = torch.ops.pointlib
ABSOLUTE = {torch.float64: 1e-12, torch.float32: 1e-6}
"""Of an IoU: a few roundings of areas that are at most the smaller box's."""


# Overlap


@pytest.mark.parametrize("dtype", ABSOLUTE)
@pytest.mark.parametrize("volume", [False, True])
def test_iou_is_that_of_clipped_polygons(dtype: torch.dtype, volume: bool) -> None:
    boxes, others = random_boxes(40, dtype=dtype), random_boxes(50, dtype=dtype)
    actual = (box_iou_3d if volume else box_iou_bev)(boxes, others)
    expected = iou_by_clipping(boxes, others, volume)
    assert actual.dtype == dtype and (expected > 0.01).double().mean() > 0.3
    torch.testing.assert_close(actual.double(), expected, rtol=0, atol=ABSOLUTE[dtype])


@pytest.mark.parametrize("dtype", ABSOLUTE)
def test_iou_far_from_the_origin_and_at_right_angles(dtype: torch.dtype) -> None:
    boxes = random_boxes(30, dtype=dtype)
    boxes[:, :2] += 100
    boxes[:, 6] = torch.arange(30) % 9 * torch.pi / 4
    expected = iou_by_clipping(boxes, boxes)
    torch.testing.assert_close(
        box_iou_bev(boxes, boxes).double(), expected, rtol=0, atol=ABSOLUTE[dtype]
    )


@pytest.mark.parametrize("dtype", ABSOLUTE)
def test_a_box_with_itself_is_exactly_one(dtype: torch.dtype) -> None:
    boxes = random_boxes(200, 200.0, dtype)
    scales = torch.logspace(-5, 5, 200, dtype=dtype)[:, None]
    boxes = torch.cat([boxes[:, :3], boxes[:, 3:6] * scales, boxes[:, 6:]], 1)
    assert box_iou_bev(boxes, boxes).diagonal().eq(1).all()
    assert box_iou_3d(boxes, boxes).diagonal().eq(1).all()
    turned = boxes + torch.tensor([0, 0, 0, 0, 0, 0, torch.pi], dtype=dtype)
    assert (box_iou_bev(boxes, turned).diagonal() > 1 - 1e-5).all()


@pytest.mark.parametrize("dtype", ABSOLUTE)
def test_iou_is_symmetric_to_the_bit(dtype: torch.dtype) -> None:
    boxes = torch.cat([random_boxes(60, dtype=dtype), random_boxes(1, dtype=dtype).repeat(40, 1)])
    boxes[60:, 6] = torch.arange(40) / 7
    boxes[80:, 3:5] = boxes[80:, 3:5].flip(1)
    for iou in (box_iou_bev, box_iou_3d):
        assert torch.equal(iou(boxes, boxes), iou(boxes, boxes).T)


def test_boxes_that_touch_do_not_overlap() -> None:
    unit = box(0, 0, 0, 2, 1, 1, 0)
    for moved in ((2, 0, 0), (0, 1, 0), (-2, 1, 0), (2, -1, 0)):
        assert box_iou_bev(unit, unit + box(*moved, 0, 0, 0, 0)).item() == 0
    assert box_iou_3d(unit, unit + box(0, 0, 1, 0, 0, 0, 0)).item() == 0
    diamond = box(1 + math.sqrt(0.5), 0, 0, 1, 1, 1, math.pi / 4)  # its corner on the side
    assert box_iou_bev(unit, diamond).item() < 1e-6


@pytest.mark.parametrize(
    ("other", "expected"),
    [
        ((0, 0, 0, 4, 2, 1, math.pi / 2), 4 / 12),
        ((1, 0, 0, 4, 2, 1, 0), 3 / 5),
        ((0, 0, 0, 4, 2, 1, math.pi), 1),
        ((0, 0, 0, 1e-3, 1e-3, 1, 0.3), 1e-6 / 8),
        ((0, 0, 0, 1e4, 1e4, 1, 0.7), 8 / 1e8),
        ((1.5, 0.5, 0, 1e-4, 1e4, 1, 0), 2e-4 / (9 - 2e-4)),
        ((50.0, 49.5, 0, 98, 98, 1, 0), 0.5 / (98 * 98 + 7.5)),
        ((0, 0, 9, 4, 2, 1, 0), 1),
    ],
)
def test_iou_of_known_boxes(other: tuple[float, ...], expected: float) -> None:
    actual = box_iou_bev(box(0, 0, 0, 4, 2, 1, 0), box(*other)).item()
    assert actual == pytest.approx(expected, rel=2e-5)


def test_iou_ignores_what_moves_both_boxes() -> None:
    boxes, others = random_boxes(20), random_boxes(20)
    expected, turn = box_iou_3d(boxes, others), 0.83
    c, s = math.cos(turn), math.sin(turn)
    rotation = torch.tensor([[c, s], [-s, c]], dtype=torch.float64)
    moved = []
    for given_boxes in (boxes, others):
        xy = given_boxes[:, :2] @ rotation + torch.tensor([30.0, -7.0], dtype=torch.float64)
        moved.append(
            torch.cat(
                [xy, given_boxes[:, 2:3] + 5, given_boxes[:, 3:6], given_boxes[:, 6:] + turn], 1
            )
        )
    torch.testing.assert_close(box_iou_3d(*moved), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    "bad",
    [
        (0, 0, 0, 0, 2, 1, 0),
        (0, 0, 0, -4, 2, 1, 0),
        (0, 0, 0, -4, -2, 1, 0),
        (math.nan, 0, 0, 4, 2, 1, 0),
        (0, 0, 0, 4, 2, 1, math.nan),
        (0, 0, 0, math.inf, 2, 1, 0),
        (0, math.inf, 0, 4, 2, 1, 0),
        (0, 0, 0, 4, 2, 1, math.inf),
    ],
)
def test_boxes_without_an_area_overlap_nothing(bad: tuple[float, ...]) -> None:
    both = torch.cat([box(*bad), box(0, 0, 0, 4, 2, 1, 0)])
    for iou in (box_iou_bev, box_iou_3d):
        assert iou(both, both).tolist() == [[0, 0], [0, 1]]
    flat = torch.cat([box(0, 0, 0, 4, 2, h, 0) for h in (0, -1, math.nan)])
    assert not box_iou_3d(flat, both).any()


values = st.floats(allow_nan=True, allow_infinity=True, width=32)
sane = st.floats(-50, 50, width=32)


@settings(max_examples=200)
@given(st.lists(st.tuples(*[values | sane] * 7), min_size=2, max_size=4))
def test_any_numbers_give_an_iou_between_zero_and_one(rows: list[tuple[float, ...]]) -> None:
    for dtype in ABSOLUTE:
        boxes = torch.tensor(rows, dtype=dtype)
        for iou in (box_iou_bev, box_iou_3d):
            actual = iou(boxes, boxes)
            assert ((actual >= 0) & (actual <= 1)).all()
            assert torch.equal(actual, actual.T)


def test_iou_as_mmcv_has_it(test_data: Path) -> None:
    found = vectors(test_data, "mmcv/box_iou_rotated.json", "test_box_iou_rotated_cpu")
    flat, others = found["np_boxes1"][0], found["np_boxes2"][0]
    first, second = (
        torch.stack([x, y, 0 * x, w, h, 0 * x + 1, angle], 1)
        for x, y, w, h, angle in (flat.T, others.T)
    )
    expected = found["np_expect_ious"][0]
    torch.testing.assert_close(box_iou_bev(first, second), expected, rtol=0, atol=1e-4)


def test_iou_as_mmdetection3d_has_it(test_data: Path) -> None:
    found = vectors(test_data, "mmdetection3d/rotated_iou_loss.json", "test_rotated_iou_3d_loss")
    loss = 1 - box_iou_3d(found["boxes1"][0], found["boxes2"][0]).diagonal()
    torch.testing.assert_close(loss, found["expect_ious"][0][0], rtol=0, atol=1e-4)
    found = vectors(test_data, "mmdetection3d/box3d.json", "test_boxes3d_overlaps")
    first, second = found["boxes1_tensor"][0], found["boxes2_tensor"][0]
    for standing in (first, second):  # on z, as their boxes do
        standing[:, 2] += standing[:, 5] / 2
    expected = found["expected_iou_tensor"][0]
    torch.testing.assert_close(box_iou_3d(first, second), expected, rtol=1e-4, atol=1e-7)


# All of them


@pytest.mark.parametrize("count", [0, 1])
def test_empty_and_single(count: int) -> None:
    boxes, others, scores = random_boxes(count), random_boxes(3), torch.ones(count)
    assert box_iou_bev(boxes, others).shape == (count, 3)
    assert box_iou_3d(others, boxes).shape == (3, count)
    groups = torch.zeros(count, dtype=torch.int64)
    for kept in (rotated_nms(boxes, scores, 0.5, groups), circle_nms(boxes, scores, 1.0, groups)):
        assert kept.tolist() == list(range(count)) and kept.dtype == torch.int64
    points = torch.zeros(count, 3, dtype=torch.float64)
    assert points_in_boxes(points, others[:0]).tolist() == [-1] * count
    assert points_in_boxes(points, others).shape == (count,)
    assert points_in_boxes_all(points, others).shape == (count, 3)
    assert points_in_boxes_all(points, others[:0]).shape == (count, 0)


def test_opcheck() -> None:
    boxes, others, groups = random_boxes(6), random_boxes(5), torch.randint(2, (6,))
    opcheck(OPS.box_iou, (boxes, others, False))
    opcheck(OPS.rotated_nms_keep, (boxes, groups, 0.3))
    opcheck(OPS.rotated_nms_keep, (boxes, None, 0.3))
    opcheck(OPS.circle_nms_keep, (boxes[:, :2], None, 1.0))
    opcheck(OPS.points_in_boxes, (boxes[:, :3], others))
    opcheck(OPS.points_in_boxes_all, (boxes[:, :3], others))


def test_predictions_that_need_a_gradient_are_taken() -> None:
    boxes, scores = random_boxes(6).requires_grad_(), torch.rand(6, requires_grad=True)
    assert not box_iou_3d(boxes, boxes).requires_grad
    assert len(rotated_nms(boxes, scores, 0.1)) and len(circle_nms(boxes, scores, 1.0))
    assert not points_in_boxes(boxes, boxes).requires_grad


def test_non_contiguous_input() -> None:
    boxes = random_boxes(14).t().contiguous().t()[::2]
    packed, scores = boxes.contiguous(), torch.rand(14)[::2]
    assert not boxes.is_contiguous()
    assert torch.equal(box_iou_3d(boxes, boxes), box_iou_3d(packed, packed))
    assert torch.equal(rotated_nms(boxes, scores, 0.1), rotated_nms(packed, scores.clone(), 0.1))
    assert torch.equal(points_in_boxes(boxes, boxes), points_in_boxes(packed, packed))


def test_compiles_without_a_break() -> None:
    torch._dynamo.reset()

    def assign(boxes: Tensor, others: Tensor) -> Tensor:
        best = box_iou_3d(boxes, others).amax(1) + box_iou_bev(boxes, others).amax(1)
        return best * points_in_boxes_all(boxes, others).sum(1) + points_in_boxes(boxes, others)

    compiled = torch.compile(assign, fullgraph=True, dynamic=True, backend="aot_eager")
    for count in (5, 8):
        boxes, others = random_boxes(count), random_boxes(4)
        assert torch.equal(compiled(boxes, others), assign(boxes, others))


BOXES = torch.ones(3, 7)


@pytest.mark.parametrize(
    ("function", "arguments", "error", "words"),
    [
        (box_iou_bev, (BOXES.half(), BOXES), TypeError, r"box_iou_bev: boxes must be .*float16"),
        (box_iou_3d, (BOXES, None), TypeError, "box_iou_3d: others must be .* got NoneType"),
        (box_iou_bev, (BOXES[:, :5], BOXES), ValueError, r"boxes must be \(N, 7\).*got \(3, 5\)"),
        (box_iou_bev, (BOXES, BOXES.double()), ValueError, "others must be torch.float32 on cpu"),
        (rotated_nms, (BOXES, torch.ones(2), 0.5), ValueError, r"scores must be \(3,\) on cpu"),
        (rotated_nms, (BOXES, torch.ones(3).int(), 0.5), TypeError, r"scores must be .*int32"),
        (rotated_nms, (BOXES, torch.ones(3), 1.5), ValueError, "iou_threshold must be in .* 1.5"),
        (rotated_nms, (BOXES, torch.ones(3), 0.5, torch.ones(3)), TypeError, "groups must be"),
        (
            rotated_nms,
            (BOXES, torch.ones(3), 0.5, torch.ones(4).long()),
            ValueError,
            r"groups must be \(3,\) .* got \(4,\)",
        ),
        (rotated_nms, (BOXES, torch.ones(3), 0.5, None, -1), ValueError, "max_boxes must be >= 0"),
        (circle_nms, (BOXES[:, :1], torch.ones(3), 1.0), ValueError, r"centres must be \(N, 2"),
        (circle_nms, (BOXES, torch.ones(3), -1.0), ValueError, "radius must be >= 0 metres, got -"),
        (circle_nms, (BOXES, torch.ones(3), math.nan), ValueError, "radius must be >= 0 metres"),
        (points_in_boxes, (BOXES[:, :2], BOXES), ValueError, r"points must be \(N, 3 or more\)"),
        (points_in_boxes, (BOXES.long(), BOXES), TypeError, "points must be a float32 or float64"),
        (points_in_boxes_all, (BOXES.double(), BOXES), ValueError, "boxes must be torch.float64"),
        (points_in_boxes, (BOXES, BOXES.to("meta")), ValueError, "boxes must be .* on cpu"),
    ],
)
def test_refuses(function: Any, arguments: tuple, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        function(*arguments)
