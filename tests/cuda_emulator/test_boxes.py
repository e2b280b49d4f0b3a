"""Boxes on CUDA against the CPU operators, which compute in float64."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from pointlib.ops._cpu import boxes as cpu
from pointlib.ops._cuda import boxes as cuda
from tests.cuda_emulator.emulator import Emulator
from tests.ops.box_oracles import random_boxes

ABSOLUTE = {torch.float64: 1e-12, torch.float32: 5e-6}
"""Of an IoU: roundings of areas that are at most the smaller box's, and slivers that count as nothing."""


def some_boxes(dtype: torch.dtype) -> Tensor:
    """Overlapping, equal, touching, turned by right angles, tiny, huge and useless ones."""
    plain = random_boxes(20, 6.0, dtype)
    known = [
        (0, 0, 0, 4, 2, 1, 0),
        (2, 0, 0, 4, 2, 1, 0),
        (0, 2, 0, 4, 2, 1, 0),
        (0, 0, 0, 4, 2, 1, math.pi / 2),
        (0, 0, 1, 4, 2, 1, math.pi),
        (0, 0, 0, 1e-3, 1e-3, 1, 0.3),
        (0, 0, 0, 1e4, 1e4, 1, 0.7),
        (0, 0, 0, 0, 2, 1, 0),
        (0, 0, 0, -4, -2, 1, 0),
        (math.nan, 0, 0, 4, 2, 1, 0),
        (0, 0, 0, 4, 2, 1, math.nan),
        (0, 0, 0, 4, 2, math.nan, 0),
        (0, 0, 0, math.inf, 2, 1, 0),
    ]
    far = random_boxes(6, 3.0, dtype) + torch.tensor([100, -90, 0, 0, 0, 0, 0], dtype=dtype)
    turned = plain[:1].repeat(4, 1)
    turned[:, 6] += torch.arange(1, 5, dtype=dtype) / 3
    return torch.cat([plain, plain[:3], turned, torch.tensor(known, dtype=dtype), far])


@pytest.mark.parametrize(
    ("dtype", "volume"), [(torch.float32, False), (torch.float32, True), (torch.float64, True)]
)
def test_iou(emulator: Emulator, dtype: torch.dtype, volume: bool) -> None:
    boxes = some_boxes(dtype)
    actual = cuda.box_iou(boxes, boxes, volume)
    expected = cpu.box_iou(boxes.double(), boxes.double(), volume)
    assert actual.dtype == dtype
    torch.testing.assert_close(actual.double(), expected, rtol=0, atol=ABSOLUTE[dtype])
    assert torch.equal(actual, actual.T)
    solid = expected.diagonal() == 1
    assert solid.sum() > 30 and actual.diagonal()[solid].eq(1).all()
    assert ((actual >= 0) & (actual <= 1)).all()


def test_iou_of_more_boxes_than_a_block_has_threads(emulator: Emulator) -> None:
    for count, others in ((0, 3), (3, 0), (1, 1), (2, 128), (3, 129)):
        boxes, second = random_boxes(count), random_boxes(others)
        actual = cuda.box_iou(boxes.float(), second.float(), False)
        expected = cpu.box_iou(boxes.float(), second.float(), False)
        torch.testing.assert_close(actual, expected, rtol=0, atol=5e-6)


@pytest.mark.parametrize("count", [0, 1, 31, 32, 33, 64, 100])
@pytest.mark.parametrize("grouped", [False, True])
def test_rotated_nms(emulator: Emulator, count: int, grouped: bool) -> None:
    boxes = random_boxes(count, 12.0, torch.float32)
    groups = torch.randint(3, (count,)) if grouped else None
    actual = cuda.rotated_nms_keep(boxes, groups, 0.15)
    expected = cpu.rotated_nms_keep(boxes, groups, 0.15)
    assert actual.dtype == torch.bool and torch.equal(actual, expected)
    assert count < 30 or 0 < actual.sum() < count


def test_rotated_nms_in_float64(emulator: Emulator) -> None:
    boxes = torch.cat([random_boxes(60, 12.0), some_boxes(torch.float64)])
    for threshold in (0.0, 0.3, 1.0):
        actual = cuda.rotated_nms_keep(boxes, None, threshold)
        assert torch.equal(actual, cpu.rotated_nms_keep(boxes, None, threshold))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_circle_nms(emulator: Emulator, dtype: torch.dtype) -> None:
    for count, radius in ((0, 1.0), (1, 1.0), (32, 0.0), (90, 1.0)):
        centres = (torch.rand(count, 2) * 16).round().to(dtype) / 2
        groups = torch.randint(2, (count,))
        for given in (None, groups):
            actual = cuda.circle_nms_keep(centres, given, radius)
            assert torch.equal(actual, cpu.circle_nms_keep(centres, given, radius))


def test_a_long_chain_is_settled_one_after_the_other(emulator: Emulator) -> None:
    steps = torch.arange(300, dtype=torch.float32)
    chain = torch.stack(
        [steps, 0 * steps], 1
    )  # each is suppressed by its predecessor, if that is kept
    keep = cuda.circle_nms_keep(chain, None, 1.0)
    assert torch.equal(keep, torch.arange(300) % 2 == 0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_points_in_boxes(emulator: Emulator, dtype: torch.dtype) -> None:
    points = ((torch.rand(300, 3) - 0.5) * 14).to(dtype)
    points[7], points[8, 2] = torch.nan, torch.inf
    for num_boxes in (0, 1, 31, 128, 140):
        boxes = random_boxes(num_boxes, 12.0, dtype)
        boxes[1::9, 3] = torch.nan
        assert torch.equal(cuda.points_in_boxes(points, boxes), cpu.points_in_boxes(points, boxes))
        actual = cuda.points_in_boxes_all(points, boxes)
        assert torch.equal(actual, cpu.points_in_boxes_all(points, boxes))
    assert (cuda.points_in_boxes(points, boxes) >= 0).any()


def test_faces_belong_to_a_box(emulator: Emulator) -> None:
    unit = torch.tensor([[0.0, 0, 0, 4, 2, 1, 0]])
    points = torch.tensor([[2.0, 1, 0.5], [-2, -1, -0.5], [2.01, 0, 0], [0, 0, 0.51]])
    assert cuda.points_in_boxes(points, unit).tolist() == [0, 0, -1, -1]
    assert cuda.points_in_boxes(points[:0], unit).tolist() == []
    assert cuda.points_in_boxes_all(points[:0], unit).shape == (0, 1)


def test_too_many_boxes_are_refused(emulator: Emulator) -> None:
    with pytest.raises(ValueError, match="rotated_nms: there must be at most 262144 boxes"):
        cuda.rotated_nms_keep(torch.empty(2**18 + 1, 7), None, 0.5)
