"""CenterHead: boxes as the peaks of a heatmap, each with its size, heading and velocity read off the same cell.

Yin et al., Center-based 3D Object Detection and Tracking, CVPR 2021, section 4. Parameter names, losses and decoding
are those of mit-han-lab/bevfusion (commit db75150), so its checkpoints load unchanged.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from pointlib.models.box_coding import BevGrid, decode_boxes, encode_boxes
from pointlib.models.detection_loss import gaussian_focal_loss, weighted_l1_loss
from pointlib.models.detection_output import (
    Candidates,
    detections_of_samples,
    first_of_groups,
    in_range,
    suppress_by_circle,
    suppress_by_overlap,
    with_velocity,
)
from pointlib.models.detection_targets import boxes_on_grid, centre_heatmap, check_bev
from pointlib.models.prediction_branches import ConvBlock, PredictionBranches
from pointlib.sensors import Detections, SceneTargets

NUSCENES_TASKS = (
    ("car",),
    ("truck", "construction_vehicle"),
    ("bus", "trailer"),
    ("barrier",),
    ("motorcycle", "bicycle"),
    ("pedestrian", "traffic_cone"),
)
"""Classes that share a heatmap: of similar size, so that they may suppress each other."""


class TaskMaps(NamedTuple):
    """What the head says in each cell about the classes of one task.

    Attributes:
        heatmap: (B, classes of the task, X, Y) float32 logits.
        codes: (B, 8 or 10, X, Y) float32 `box_coding.CODE_COLUMNS`, x and y less the cell.
    """

    heatmap: Tensor
    codes: Tensor


class CenterHeadOutput(NamedTuple):
    """Maps of every task."""

    tasks: tuple[TaskMaps, ...]


class CenterHead(nn.Module):
    """Heatmaps and box codes from a bird's-eye map.

    The defaults are those published for nuScenes.

    Args:
        in_channels: Features of the map.
        point_cloud_range: x, y, z from, then to [m].
        voxel_size: Edges of a voxel [m].
        out_size_factor: Voxels along an edge of a cell of the map.
        tasks: Names of the classes of each task.
        class_names: Names in the order of labels; None: the order of the tasks.
        velocity: Whether to regress velocity; without, detections have NaN velocity.
        shared_channels: Features of the convolution that all tasks share.
        min_overlap: How wide peaks are, see `heatmap.gaussian_radius`.
        min_radius: Smallest radius of a peak [cells].
        bbox_weight: Weight of the regression loss.
        code_weights: Weight of each of its columns.
        score_threshold: Detections score more than this.
        post_center_range: Centres of detections are within x, y, z from, then to [m].
        max_candidates: Cells of a task that are looked at, the best.
        nms_type: "circle", "rotate" or "none", for all tasks or for each.
        nms_radius: For circles: radius [m] of each task, 0 for none. Published configs hold its square.
        nms_iou_threshold: For rotated boxes.
        nms_scale: For rotated boxes: for each task and class the factor on length and width while suppressing; 1 for
            all if None.
        max_per_task: Detections of a task after suppression, the best.
        max_detections: Detections of a sample, the best.
    """

    def __init__(
        self,
        in_channels: int,
        point_cloud_range: Sequence[float],
        voxel_size: Sequence[float],
        out_size_factor: int = 8,
        tasks: Sequence[Sequence[str]] = NUSCENES_TASKS,
        class_names: Sequence[str] | None = None,
        velocity: bool = True,
        shared_channels: int = 64,
        min_overlap: float = 0.1,
        min_radius: int = 2,
        bbox_weight: float = 0.25,
        code_weights: Sequence[float] = (1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 0.2, 0.2),
        score_threshold: float = 0.1,
        post_center_range: Sequence[float] = (-61.2, -61.2, -10.0, 61.2, 61.2, 10.0),
        max_candidates: int = 500,
        nms_type: str | Sequence[str] = "rotate",
        nms_radius: Sequence[float] = (2.0, 3.4641, 3.1623, 1.0, 0.92195, 0.41833),
        nms_iou_threshold: float = 0.2,
        nms_scale: Sequence[Sequence[float]] | None = None,
        max_per_task: int = 83,
        max_detections: int = 500,
    ) -> None:
        super().__init__()
        names = [name for task in tasks for name in task]
        self.class_names = tuple(class_names or names)
        self.tasks = tuple(tuple(task) for task in tasks)
        if sorted(names) != sorted(self.class_names) or len(set(names)) != len(names):
            raise ValueError(
                f"CenterHead: tasks must hold each class of {list(self.class_names)} once, got {names}."
            )
        nms_types = [nms_type] * len(tasks) if isinstance(nms_type, str) else list(nms_type)
        scales = nms_scale or [[1.0] * len(task) for task in tasks]
        _check_suppression(nms_types, scales, nms_radius, self.tasks)
        self.in_channels = in_channels
        self.grid = BevGrid.of_voxels(point_cloud_range, voxel_size, out_size_factor)
        self.num_codes = 10 if velocity else 8
        self.min_overlap, self.min_radius = min_overlap, min_radius
        self.bbox_weight, self.code_weights = bbox_weight, tuple(code_weights[: self.num_codes])
        self.score_threshold, self.post_center_range = score_threshold, tuple(post_center_range)
        self.max_candidates = max_candidates
        self.max_per_task, self.max_detections = max_per_task, max_detections
        self.nms_iou_threshold = nms_iou_threshold
        # Labels count classes in the order of class_names, channels in the order of the tasks.
        self._label_of_channel = [self.class_names.index(name) for name in names]
        self._channel_of_label = [names.index(name) for name in self.class_names]
        self._first_channel = [sum(map(len, tasks[:task])) for task in range(len(tasks))]
        self._scale_of_channel = [float(scale) for task in scales for scale in task]
        self._rotated = [kind == "rotate" for kind in nms_types]
        self._radius = [
            float(nms_radius[task]) if kind == "circle" else 0.0
            for task, kind in enumerate(nms_types)
        ]
        self.shared_conv = ConvBlock(in_channels, shared_channels, kernel_size=3, dims=2)
        branches = {"reg": 2, "height": 1, "dim": 3, "rot": 2}
        if velocity:
            branches["vel"] = 2
        self.task_heads = nn.ModuleList(
            PredictionBranches(shared_channels, {**branches, "heatmap": len(task)}, kernel_size=3)
            for task in tasks
        )

    def forward(self, bev: Tensor) -> CenterHeadOutput:
        """Predict from a (B, in_channels, X, Y) map; ValueError if its size is not that of the head's grid."""
        check_bev("CenterHead.forward", bev, self.in_channels, self.grid.size)
        shared = self.shared_conv(bev)
        tasks = []
        for head in self.task_heads:
            maps = head(shared)
            heatmap = maps.pop("heatmap")
            tasks.append(TaskMaps(heatmap, torch.cat(list(maps.values()), 1)))
        return CenterHeadOutput(tuple(tasks))

    def loss(self, output: CenterHeadOutput, targets: SceneTargets) -> dict[str, Tensor]:
        """Heatmap and regression loss of each task, `heatmap/task0`, `bbox/task0` ...: scalars to be summed.

        Raises:
            ValueError: If a label is not a class of the head.
        """
        num_classes = len(self.class_names)
        found = boxes_on_grid("CenterHead.loss", targets, self.grid, num_classes)
        channel_of_label = torch.tensor(self._channel_of_label, device=found.labels.device)
        found = found._replace(labels=channel_of_label[found.labels])
        heatmap = centre_heatmap(
            found, self.grid, len(targets.boxes), num_classes, self.min_overlap, self.min_radius
        )
        codes = encode_boxes(found.boxes, self.grid)[:, : self.num_codes]
        codes[:, :2] -= found.cells
        weights = codes.new_tensor(self.code_weights)
        losses = {}
        for task, maps in enumerate(output.tasks):
            channels = slice(
                self._first_channel[task], self._first_channel[task] + maps.heatmap.shape[1]
            )
            losses[f"heatmap/task{task}"] = gaussian_focal_loss(maps.heatmap, heatmap[:, channels])
            mine = (found.labels >= channels.start) & (found.labels < channels.stop)
            x, y = found.cells[mine].unbind(1)
            predicted = maps.codes[found.samples[mine], :, x, y]
            total = weighted_l1_loss(predicted, codes[mine], weights)
            losses[f"bbox/task{task}"] = self.bbox_weight * total / (mine.sum() + 1e-4)
        return losses

    @torch.no_grad()
    def decode(self, output: CenterHeadOutput) -> list[Detections]:
        """Boxes of each sample, best first."""
        parts, tasks = zip(
            *(self._candidates(task, maps) for task, maps in enumerate(output.tasks)), strict=True
        )
        found = Candidates(*(torch.cat(columns) for columns in zip(*parts, strict=True)))
        task = torch.cat(tasks)
        groups = found.samples * len(self.tasks) + task
        rotated = torch.tensor(self._rotated, device=task.device)[task].nonzero()[:, 0]
        others = (~torch.tensor(self._rotated, device=task.device))[task].nonzero()[:, 0]
        channel = torch.tensor(self._channel_of_label, device=task.device)[found.labels]
        scales = found.boxes.new_tensor(self._scale_of_channel)[channel]
        radii = found.boxes.new_tensor(self._radius)[task]
        kept = []
        if len(rotated):
            rows = suppress_by_overlap(
                found.take(rotated), groups[rotated], self.nms_iou_threshold, scales[rotated]
            )
            kept.append(rotated[rows])
        if len(others):
            rows = suppress_by_circle(found.take(others), groups[others], radii[others])
            kept.append(others[rows])
        keep = torch.cat(kept) if kept else groups
        keep = keep[first_of_groups(groups[keep], self.max_per_task)]
        batch_size = len(output.tasks[0].heatmap)
        return detections_of_samples(found.take(keep), batch_size, self.max_detections)

    def _candidates(self, task: int, maps: TaskMaps) -> tuple[Candidates, Tensor]:
        """The best cells of one task that are good enough, and (N,) the task."""
        batch_size, _, size_x, size_y = maps.heatmap.shape
        scores = maps.heatmap.float().sigmoid().flatten(1)
        best = scores.topk(min(self.max_candidates, scores.shape[1]))
        cell = best.indices % (size_x * size_y)
        codes = maps.codes.float().flatten(2).gather(2, _each(cell, self.num_codes)).mT
        codes[..., :2] += torch.stack([cell // size_y, cell % size_y], -1)
        boxes = with_velocity(decode_boxes(codes, self.grid))
        label_of_channel = torch.tensor(self._label_of_channel, device=cell.device)
        labels = label_of_channel[self._first_channel[task] + best.indices // (size_x * size_y)]
        samples = torch.arange(batch_size, device=cell.device)[:, None].expand_as(cell)
        good = (best.values > self.score_threshold) & in_range(boxes, self.post_center_range)
        found = Candidates(boxes[good], best.values[good], labels[good], samples[good])
        return found, torch.full_like(found.labels, task)


def _each(cell: Tensor, channels: int) -> Tensor:
    """(B, K) cells for each of so many channels: (B, channels, K)."""
    return cell[:, None].expand(-1, channels, -1)


def _check_suppression(
    nms_types: Sequence[str],
    scales: Sequence[Sequence[float]],
    radii: Sequence[float],
    tasks: Sequence[Sequence[str]],
) -> None:
    if len(nms_types) != len(tasks) or not {*nms_types} <= {"circle", "rotate", "none"}:
        raise ValueError(
            f"CenterHead: nms_type must be 'circle', 'rotate' or 'none', one or for each of {len(tasks)} tasks, "
            f"got {list(nms_types)}."
        )
    if [len(scale) for scale in scales] != [len(task) for task in tasks]:
        raise ValueError(
            f"CenterHead: nms_scale must be one number for each class of each task, got {list(scales)}."
        )
    if "circle" in nms_types and len(radii) != len(tasks):
        raise ValueError(
            f"CenterHead: nms_radius must be one radius for each of {len(tasks)} tasks, got {list(radii)}."
        )
