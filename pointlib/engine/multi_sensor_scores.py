"""Scores of boxes and maps while training: nuScenes' metrics without its tables, summed over processes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.distributed
from torch import Tensor

from pointlib.data.lidar_transforms import in_range
from pointlib.data.multi_sensor_batch import MultiSensorBatch
from pointlib.metrics.centre_recall import CentreRecall, CentreRecallScores
from pointlib.metrics.map_segmentation import MapIoU, MapScores
from pointlib.metrics.nuscenes_detection import (
    MAX_BOXES,
    NO_ATTRIBUTE,
    NuScenesDetectionMetric,
    NuScenesScores,
    SceneBoxes,
)
from pointlib.metrics.nuscenes_submission import scene_boxes
from pointlib.sensors import Detections, ScenePrediction


@dataclass(frozen=True)
class SceneScores:
    """What was computed; None where the network has no such head.

    Attributes:
        detection: Attributes are not predicted here: `nds` below leaves their error out.
        map: Of map segmentation.
        recall: Share of the boxes in the network's range that were found to 2 m.
    """

    detection: NuScenesScores | None
    map: MapScores | None
    recall: CentreRecallScores | None = None

    @property
    def nds(self) -> float:
        """NuScenes detection score over mAP and the four errors that are measured."""
        assert self.detection is not None
        errors = [v for k, v in self.detection.errors.items() if k != "attr_err"]
        hits = sum(max(0.0, 1.0 - error) for error in errors)
        return (5 * self.detection.mean_ap + hits) / (5 + len(errors))

    def values(self) -> dict[str, float]:
        """Numbers to log, by name."""
        found: dict[str, float] = {}
        if self.detection is not None:
            found |= {"nds": self.nds, "map": self.detection.mean_ap, **self.detection.errors}
            found.pop("attr_err", None)
            ap = self.detection.ap.mean(1)
            names = self.detection.class_names
            found |= {f"ap/{name}": float(v) for name, v in zip(names, ap, strict=True)}
        if self.recall is not None:
            found["recall_2m"] = self.recall.recall
        if self.map is not None:
            found["map_miou"] = self.map.miou
            best = self.map.iou.max(dim=1).values
            found |= {
                f"iou/{name}": float(v) for name, v in zip(self.map.class_names, best, strict=True)
            }
        return found

    def table(self) -> str:
        """Plain-text tables."""
        parts = []
        if self.detection is not None:
            parts.append(self.detection.table().rpartition("\n")[0])
            parts.append(
                f"mAP {100 * self.detection.mean_ap:.2f}   NDS without attributes {100 * self.nds:.2f}"
            )
        if self.recall is not None:
            parts.append(f"centres found to 2 m\n{self.recall.table()}")
        if self.map is not None:
            parts.append(self.map.table())
        return "\n".join(parts)


class SceneScorer:
    """Collects samples.

    Args:
        class_names: Classes of boxes; empty without a detection head.
        map_classes: Classes of the map; empty without a map head.
        point_cloud_range: x, y, z from, then to [m]: boxes whose centre, seen from above, is outside do not count for
            the recall.
    """

    def __init__(
        self,
        class_names: Sequence[str],
        map_classes: Sequence[str],
        point_cloud_range: Sequence[float],
    ) -> None:
        self.point_cloud_range = tuple(point_cloud_range)
        self.recall = CentreRecall(tuple(class_names)) if class_names else None
        self.detection = NuScenesDetectionMetric(tuple(class_names)) if class_names else None
        self.map = MapIoU(tuple(map_classes)) if map_classes else None

    def update(self, batch: MultiSensorBatch, predictions: Sequence[ScenePrediction]) -> None:
        """Add the samples of a batch that count."""
        assert batch.targets is not None
        masks = batch.targets.map_masks
        for i, prediction in enumerate(predictions):
            if batch.counted and not batch.counted[i]:
                continue
            if self.detection is not None and prediction.detections is not None:
                found = prediction.detections
                truth = batch.targets.boxes[i], batch.targets.labels[i], None
                self.detection.update(
                    self._in_world(batch, i, *truth),
                    self._in_world(batch, i, found.boxes, found.labels, found.scores),
                    batch.ego2global[i, :3, 3].numpy(),
                )
                self._update_recall(batch.targets.boxes[i], batch.targets.labels[i], found)
            if self.map is not None and prediction.map_probabilities is not None:
                if masks is None:
                    raise ValueError(
                        f"SceneScorer: {batch.paths[i]} must have a map, got none; set data.map_grid"
                    )
                self.map.update(prediction.map_probabilities[None].cpu(), masks[i : i + 1].cpu())

    def _update_recall(self, boxes: Tensor, labels: Tensor, found: Detections) -> None:
        assert self.recall is not None
        truth = boxes.cpu().numpy()
        inside = in_range(truth, self.point_cloud_range, bev=True)
        parts = (found.boxes, found.labels, found.scores)
        self.recall.update(
            truth[inside], labels.cpu().numpy()[inside], *(part.detach().cpu().numpy() for part in parts)
        )  # fmt: skip

    def _in_world(
        self,
        batch: MultiSensorBatch,
        sample: int,
        boxes: Tensor,
        labels: Tensor,
        scores: Tensor | None,
    ) -> SceneBoxes:
        """Boxes of a sample in the global frame without attributes; detections at most 500, best first."""
        rows = slice(0, None if scores is None else MAX_BOXES)
        return scene_boxes(
            boxes[rows].detach().cpu().numpy(),
            labels[rows].cpu().numpy(),
            batch.lidar2ego[sample].numpy(),
            batch.ego2global[sample].numpy(),
            self.detection.class_names if self.detection is not None else (),
            None if scores is None else scores[rows].detach().cpu().numpy(),
            np.full(len(labels[rows]), NO_ATTRIBUTE),
        )

    def summed_over_processes(self) -> SceneScorer:
        """The same with what every process of the run collected."""
        if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
            return self
        gathered: list[Any] = [None] * torch.distributed.get_world_size()
        torch.distributed.all_gather_object(gathered, (self.detection, self.map, self.recall))
        total = SceneScorer((), (), self.point_cloud_range)
        (total.detection, total.map, total.recall), *others = gathered
        for detection, mapped, recall in others:
            if total.recall is not None:
                total.recall.merge(recall)
            if total.detection is not None:
                total.detection.merge(detection)
            if total.map is not None:
                total.map.merge(mapped)
        return total

    def compute(self) -> SceneScores:
        """Score everything collected."""
        return SceneScores(
            None if self.detection is None else self.detection.compute(),
            None if self.map is None else self.map.compute(),
            None if self.recall is None else self.recall.compute(),
        )
