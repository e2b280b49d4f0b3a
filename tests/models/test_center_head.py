"""CenterHead: what it is trained towards decodes to the same boxes; batches, classes, precision and bad input."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from pointlib.data.nuscenes_info import NuScenesInfo
from pointlib.models.box_coding import encode_boxes
from pointlib.models.center_head import CenterHead, CenterHeadOutput, TaskMaps
from pointlib.models.detection_targets import boxes_on_grid, centre_heatmap
from pointlib.sensors import SceneTargets
from tests.models.head_scenes import IN_CHANNELS, RANGE, VOXEL, bev_map, scene

WIDE = (-8.0, -19.2, -5.0, 30.4, 0.0, 3.0)  # 24 x 12 cells of 1.6 m
KITTI = ("Pedestrian", "Cyclist", "Car")


def head(**options: Any) -> CenterHead:
    return CenterHead(IN_CHANNELS, RANGE, VOXEL, **{"shared_channels": 8, **options})


def boxes_apart(seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Ten boxes of ten classes in the range WIDE, each in a cell of its own."""
    generator = torch.Generator().manual_seed(seed)
    draw = torch.rand(10, 9, generator=generator)
    cells = torch.stack([torch.arange(10) * 2.0 + 1, torch.arange(10) % 5 * 2.0 + 1], 1)
    boxes = torch.cat([(cells + draw[:, :2] * 0.9) * 1.6, draw[:, 2:]], 1)
    boxes[:, :2] += torch.tensor(WIDE[:2])
    boxes[:, 3:6] = boxes[:, 3:6] * 3 + 0.5
    boxes[:, 6] = (boxes[:, 6] * 2 - 1) * math.pi
    return boxes, torch.randperm(10, generator=generator)


def certain_output(network: CenterHead, targets: SceneTargets) -> CenterHeadOutput:
    """What a perfect network says: high in each centre with the code of its box, low elsewhere."""
    found = boxes_on_grid("test", targets, network.grid, 10)
    size, batch_size = network.grid.size, len(targets.boxes)
    peaks = centre_heatmap(found, network.grid, batch_size, 10, 0.1, 2) == 1
    heatmap = torch.where(peaks, 3.0, -6.0)
    codes = torch.randn(batch_size, 10, *size)
    wanted = encode_boxes(found.boxes, network.grid)
    wanted[:, :2] -= found.cells
    codes[found.samples, :, found.cells[:, 0], found.cells[:, 1]] = wanted
    channels = [[network.class_names.index(name) for name in task] for task in network.tasks]
    return CenterHeadOutput(tuple(TaskMaps(heatmap[:, rows], codes) for rows in channels))


@pytest.mark.parametrize("nms_type", ["rotate", "circle", "none"])
def test_targets_decode_to_the_boxes(nms_type: str) -> None:
    names = [name for task in head().tasks for name in task][::-1]  # labels in another order
    network = CenterHead(IN_CHANNELS, WIDE, VOXEL, class_names=names, nms_type=nms_type)
    assert network.grid.size == (24, 12)
    (first, first_labels), (second, second_labels) = boxes_apart(1), boxes_apart(2)
    targets = SceneTargets((first, second[:4]), (first_labels, second_labels[:4]))
    found = network.decode(certain_output(network, targets))
    for detections, boxes, labels in zip(found, targets.boxes, targets.labels, strict=True):
        assert len(detections) == len(boxes)
        order = torch.cdist(boxes[:, :3], detections.boxes[:, :3]).argmin(1)
        assert torch.equal(detections.labels[order], labels)
        torch.testing.assert_close(detections.boxes[order], boxes, rtol=1e-5, atol=1e-5)
        assert torch.allclose(detections.scores, torch.tensor(3.0).sigmoid())
    for name, value in network.loss(certain_output(network, targets), targets).items():
        assert float(value) < (1e-5 if name.startswith("bbox") else 1e-3), name


def test_real_boxes_come_back(test_data: Path) -> None:
    """Of the 68 boxes around one key frame, all 53 within the range, barriers in a row and people in a group."""
    info = test_data / "nuscenes" / "scene0061_kf0" / "info.json"
    sample = NuScenesInfo(info, cameras=False, min_points=0)[0]
    boxes, labels = torch.from_numpy(sample.boxes), torch.from_numpy(sample.box_labels)
    targets = SceneTargets((boxes,), (labels,))
    network = CenterHead(IN_CHANNELS, (-54, -54, -5, 54, 54, 3), (0.075, 0.075, 0.2))
    (found,) = network.decode(certain_output(network, targets))
    inside = (boxes[:, :2].abs() < 54).all(1)
    assert len(found) == int(inside.sum()) == 53
    order = torch.cdist(boxes[inside][:, :3], found.boxes[:, :3]).argmin(1)
    turn = found.boxes[order, 6] - boxes[inside][:, 6]
    assert float((turn.sin().abs() + 1 - turn.cos()).max()) < 1e-5
    torch.testing.assert_close(found.boxes[order, :6], boxes[inside, :6], rtol=1e-5, atol=2e-5)
    assert torch.equal(found.labels[order], labels[inside])


def test_suppression_limits_and_order() -> None:
    network = head(nms_type="none", max_per_task=7, max_detections=30, score_threshold=0.05)
    output = network.eval()(bev_map())
    found = network.decode(output)
    for detections in found:
        assert len(detections) == 30
        assert torch.equal(detections.scores, detections.scores.sort(descending=True).values)
        task_of_label = torch.tensor([0, 1, 1, 2, 2, 3, 4, 4, 5, 5])
        assert int(torch.bincount(task_of_label[detections.labels]).max()) <= 7
    strict = head(score_threshold=0.999)
    assert [len(detections) for detections in strict.decode(output)] == [0, 0]
    beyond = head(post_center_range=(50, 50, -10, 60, 60, 10))
    assert [len(detections) for detections in beyond.decode(output)] == [0, 0]
    assert beyond.decode(output)[0].boxes.shape == (0, 9)


def two_pedestrians(distance: float, label: int) -> SceneTargets:
    """Two boxes, 0.8 m wide, on both sides of the border of two cells."""
    boxes = torch.tensor([[1.6, 0.8, 0, 0.8, 0.8, 1.7, 0, 0, 0]]).repeat(2, 1)
    boxes[:, 0] += torch.tensor([-0.5, 0.5]) * distance
    return SceneTargets((boxes,), (torch.tensor([label, label]),))


@pytest.mark.parametrize(("nms_type", "count"), [("none", 2), ("circle", 1), ("rotate", 1)])
def test_close_boxes_suppress_each_other(nms_type: str, count: int) -> None:
    network = head(nms_type=nms_type)
    (found,) = network.decode(certain_output(network, two_pedestrians(0.4, 8)))
    assert len(found) == count


def test_scaled_suppression() -> None:
    names = [name for task in head().tasks for name in task][::-1]  # labels in another order
    targets = two_pedestrians(2.0, names.index("pedestrian"))
    # 2 m wide they touch; 3.2 m wide their IoU is 0.23.
    for scale, count in ((1.0, 2), (2.5, 2), (4.0, 1)):
        scales = [[1.0], [1.0] * 2, [1.0] * 2, [1.0], [1.0] * 2, [scale, 1.0]]
        network = head(nms_scale=scales, class_names=names)
        (found,) = network.decode(certain_output(network, targets))
        assert len(found) == count
        torch.testing.assert_close(found.boxes[:, 3:6], targets.boxes[0][:count, 3:6])


def test_samples_of_a_batch_do_not_touch() -> None:
    network = head().eval()
    bev = bev_map()
    with torch.no_grad():
        both = network.decode(network(bev))
        for sample in range(2):
            (alone,) = network.decode(network(bev[sample : sample + 1]))
            assert torch.equal(alone.labels, both[sample].labels)
            torch.testing.assert_close(alone.boxes, both[sample].boxes, rtol=1e-4, atol=1e-4)
            torch.testing.assert_close(alone.scores, both[sample].scores)


def test_every_parameter_learns_also_beside_an_empty_sample() -> None:
    network = head()
    boxes = scene((14,), close=False).boxes[0]
    # An odd number for each task: signs, the gradient of L1, cannot cancel.
    labels = torch.tensor([0, 1, 2, 2, 3, 4, 4, 5, 6, 7, 7, 8, 9, 9])
    targets = SceneTargets((boxes, boxes[:0]), (labels, labels[:0]))
    losses = network.loss(network(bev_map()), targets)
    assert list(losses) == [
        f"{kind}/task{task}" for task in range(6) for kind in ("heatmap", "bbox")
    ]
    torch.stack(list(losses.values())).sum().backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name
        assert parameter.grad.any(), name


def test_no_boxes_at_all() -> None:
    network = head()
    empty = SceneTargets((torch.zeros(0, 9),) * 2, (torch.zeros(0, dtype=torch.long),) * 2)
    losses = network.loss(network(bev_map()), empty)
    assert all(value.isfinite() for value in losses.values())
    assert all(float(losses[f"bbox/task{task}"].detach()) == 0 for task in range(6))
    torch.stack(list(losses.values())).sum().backward()
    assert all(parameter.grad.isfinite().all() for parameter in network.parameters())


def test_unknown_velocities_count_nothing() -> None:
    network = head()
    output, targets = network(bev_map()), scene()
    boxes = [box.clone() for box in targets.boxes]
    boxes[0][3, 7:] = torch.nan
    known = network.loss(output, targets)
    unknown = network.loss(output, SceneTargets(tuple(boxes), targets.labels))
    task = "bbox/task" + str([0, 1, 1, 2, 2, 3, 4, 4, 5, 5][int(targets.labels[0][3])])
    for name, value in unknown.items():
        assert value.isfinite()
        assert (float(value.detach()) < float(known[name].detach())) == (name == task)


def test_three_classes_without_velocity() -> None:
    network = head(tasks=[KITTI[:2], KITTI[2:]], velocity=False, nms_radius=(0.5, 2.0))
    assert "task_heads.0.vel.0.conv.weight" not in network.state_dict()
    output = network(bev_map())
    targets = scene()
    labels = tuple(label % 3 for label in targets.labels)
    losses = network.loss(output, SceneTargets(targets.boxes, labels))
    torch.stack(list(losses.values())).sum().backward()
    (detections, _) = network.decode(output)
    assert detections.boxes.shape[1] == 9
    assert detections.boxes[:, :7].isfinite().all() and detections.boxes[:, 7:].isnan().all()
    assert {*detections.labels.tolist()} <= {0, 1, 2}


def test_autocast_and_repetition() -> None:
    network = head().eval()
    bev, targets = bev_map(), scene()
    whole = network.loss(network(bev), targets)
    assert whole == network.loss(network(bev), targets)  # bit for bit
    with torch.autocast("cpu", torch.bfloat16):
        output = network(bev)
        half = network.loss(output, targets)
        (detections, _) = network.decode(output)
    assert detections.boxes.dtype == detections.scores.dtype == torch.float32
    for name, value in half.items():
        assert value.dtype == torch.float32
        assert float(value.detach()) == pytest.approx(float(whole[name].detach()), rel=0.05)


def test_bad_input() -> None:
    network = head()
    with pytest.raises(ValueError, match=r"bev must be \(B, 8, 24, 24\).*got \(2, 8, 24, 12\)"):
        network(bev_map()[..., :12])
    output = network(bev_map())
    targets = scene()
    wrong = SceneTargets(targets.boxes, (targets.labels[0] + 1, targets.labels[1]))
    with pytest.raises(ValueError, match=r"labels must be in \[0, 10\)"):
        network.loss(output, wrong)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tasks": [["car"], ["car", "bus"]]}, "once"),
        ({"class_names": ["car"]}, "tasks must hold each class"),
        ({"nms_type": "soft"}, "nms_type must be"),
        ({"nms_type": ["circle"]}, "each of 6 tasks"),
        ({"nms_scale": [[1.0]] * 6}, "nms_scale must be"),
        ({"nms_type": "circle", "nms_radius": [1.0]}, "nms_radius must be"),
    ],
)
def test_bad_arguments(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        head(**options)
