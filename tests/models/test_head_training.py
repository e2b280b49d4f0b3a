"""Heads learn: from maps with boxes painted into them, a small head learns to find the boxes of maps it has not seen.

Painting and scoring know nothing of heads, so whatever is wrong between targets, map axes and decoding shows here: x
for y, left for right turning, length for width, another sample's boxes. The grid is not square, nor are its cells.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from pointlib.models.center_head import CenterHead
from pointlib.models.transfusion_head import TransFusionHead
from pointlib.sensors import Detections, SceneTargets

CLASSES = ("car", "pedestrian", "bus")
RANGE = (-8.0, -4.0, -3.0, 16.0, 8.8, 2.0)
VOXEL = (0.25, 0.2, 0.2)
CELL = (1.0, 0.8)
SIZE = (24, 16)
CHANNELS = 13
GRID = (CHANNELS, RANGE, VOXEL, 4)


def random_scenes(count: int, generator: torch.Generator) -> tuple[Tensor, SceneTargets]:
    """Maps (count, 13, 24, 16), and the 1 to 4 boxes painted into the cell of their centre, apart from each other."""
    bev = torch.zeros(count, CHANNELS, *SIZE)
    boxes, labels = [], []
    for sample in range(count):
        number = int(torch.randint(1, 5, (), generator=generator))
        # One box to a block of 6 x 8 cells keeps them apart.
        block = torch.randperm(8, generator=generator)[:number]
        inside = torch.rand(number, 2, generator=generator) * torch.tensor([4.0, 6.0]) + 1
        cells = torch.stack([block // 2 * 6, block % 2 * 8], 1) + inside
        draw = torch.rand(number, 7, generator=generator)
        box = torch.zeros(number, 9)
        box[:, :2] = cells * torch.tensor(CELL) + torch.tensor(RANGE[:2])
        box[:, 2] = draw[:, 0] * 2 - 2
        box[:, 3:6] = torch.tensor([2.0, 1.0, 1.0]) + draw[:, 1:4] * torch.tensor([4.0, 1.0, 2.0])
        box[:, 6] = (draw[:, 4] * 2 - 1) * math.pi
        box[:, 7:] = draw[:, 5:] * 10 - 5
        label = torch.randint(0, 3, (number,), generator=generator)
        for row, name, (x, y) in zip(box, label, cells.tolist(), strict=True):
            bev[sample, name, int(x), int(y)] = 1
            bev[sample, 3:, int(x), int(y)] = torch.stack(
                [
                    torch.tensor(x % 1), torch.tensor(y % 1), row[2], row[3] / 4, row[4], row[5],
                    row[6].cos(), row[6].sin(), row[7] / 5, row[8] / 5,
                ]
            )  # fmt: skip
        boxes.append(box)
        labels.append(label)
    return bev, SceneTargets(tuple(boxes), tuple(labels))


def train(head: Any, steps: int, learning_rate: float) -> None:
    """A few hundred steps of AdamW on scenes that never repeat."""
    generator = torch.Generator().manual_seed(1)
    optimizer = torch.optim.AdamW(head.parameters(), lr=learning_rate)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, learning_rate, total_steps=steps)
    head.train()
    for _ in range(steps):
        bev, targets = random_scenes(4, generator)
        loss = torch.stack(list(head.loss(head(bev), targets).values())).sum()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(head.parameters(), 10.0)
        optimizer.step()
        schedule.step()


def assert_found(found: list[Detections], targets: SceneTargets) -> None:
    """Each box is found by a detection of its own, and no other detection scores as high as 0.3."""
    pairs = []
    for detections, boxes, labels in zip(found, targets.boxes, targets.labels, strict=True):
        sure = detections.scores > 0.3
        assert int(sure.sum()) == len(boxes)
        nearest = torch.cdist(boxes[:, :2], detections.boxes[sure, :2]).argmin(1)
        assert torch.equal(nearest.sort().values, torch.arange(len(boxes)))
        assert torch.equal(detections.labels[sure][nearest], labels)
        pairs.append(torch.stack([detections.boxes[sure][nearest], boxes], 1))
    ours, true = torch.cat(pairs).unbind(1)
    turn = (ours[:, 6] - true[:, 6] + math.pi) % (2 * math.pi) - math.pi
    errors = {
        "centre [m]": ((ours[:, :2] - true[:, :2]).norm(dim=1), 0.3, 0.9),
        "height of the centre [m]": ((ours[:, 2] - true[:, 2]).abs(), 0.25, 1.0),
        "log of sizes": ((ours[:, 3:6] / true[:, 3:6]).log().abs(), 0.25, 1.0),
        "yaw [rad]": (turn.abs(), 0.2, 0.8),
        "velocity [m/s]": ((ours[:, 7:] - true[:, 7:]).abs(), 0.6, 3.0),
    }
    for name, (error, mean, largest) in errors.items():
        assert float(error.mean()) < mean, name
        assert float(error.max()) < largest, name


HEADS: dict[str, Callable[[], Any]] = {
    "center": lambda: CenterHead(
        *GRID, tasks=(("car", "bus"), ("pedestrian",)), class_names=CLASSES,
        shared_channels=16, min_radius=1, code_weights=[1.0] * 10,
    ),
    "transfusion": lambda: TransFusionHead(
        *GRID, class_names=CLASSES, num_proposals=8, hidden_channels=32, num_heads=4,
        ffn_channels=64, dropout=0.0, min_radius=1, code_weights=[1.0] * 10,
    ),
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "steps", "learning_rate"), [("center", 240, 1.5e-2), ("transfusion", 350, 1e-2)]
)
def test_a_small_head_learns_to_find_boxes(name: str, steps: int, learning_rate: float) -> None:
    head = HEADS[name]()
    train(head, steps, learning_rate)
    bev, targets = random_scenes(32, torch.Generator().manual_seed(2))
    with torch.no_grad():
        found = head.eval().decode(head(bev))
    assert_found(found, targets)
