"""Which query is responsible for which box: the assignment of lowest total cost, at most one query to a box.

Carion et al., DETR, ECCV 2020, section 3.1, with the costs of TransFusion (Bai et al., CVPR 2022, section 3.6).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from pointlib.models.box_coding import BevGrid
from pointlib.models.detection_targets import GridBoxes
from pointlib.ops.boxes import box_iou_3d


class Matches(NamedTuple):
    """Pairs of all samples; K is the sum over samples of the smaller of the numbers of queries and boxes.

    Attributes:
        queries: (K,) int64 rows of the queries of all samples, `sample * P + query`.
        boxes: (K,) int64 rows of the boxes of all samples.
    """

    queries: Tensor
    boxes: Tensor


@dataclass(frozen=True)
class HungarianMatcher:
    """Weights of the costs; the defaults are published for nuScenes.

    Attributes:
        class_weight: Of the focal loss a query would have for the class of the box.
        centre_weight: Of the L1 distance of centres seen from above, in units of the map's extent.
        iou_weight: Of the IoU of the volumes, which lowers the cost.
        alpha: Of the focal loss.
        gamma: Of the focal loss.
    """

    class_weight: float = 0.15
    centre_weight: float = 0.25
    iou_weight: float = 0.25
    alpha: float = 0.25
    gamma: float = 2.0

    def cost(
        self, logits: Tensor, predicted: Tensor, boxes: Tensor, labels: Tensor, grid: BevGrid
    ) -> Tensor:
        """Cost of every pair.

        Args:
            logits: (P, C) float32 class logits of the queries.
            predicted: (P, 7 or 9) float32 boxes of the queries.
            boxes: (M, 9) float32 boxes to find.
            labels: (M,) int64 their classes.
            grid: Cells of the map.

        Returns:
            (P, M) float32.
        """
        probability = logits.sigmoid()
        positive = -(probability + 1e-12).log() * self.alpha * (1 - probability) ** self.gamma
        negative = -(1 - probability + 1e-12).log() * (1 - self.alpha) * probability**self.gamma
        class_cost = (positive - negative)[:, labels]
        extent = boxes.new_tensor(grid.size)
        centres = grid.to_cells(predicted[:, :2]) / extent
        targets = grid.to_cells(boxes[:, :2]) / extent
        centre_cost = (centres[:, None] - targets).abs().sum(-1)
        iou = box_iou_3d(predicted[:, :7].contiguous(), boxes[:, :7].contiguous())
        return (
            self.class_weight * class_cost
            + self.centre_weight * centre_cost
            - self.iou_weight * iou
        )

    @torch.no_grad()
    def match(
        self, logits: Tensor, predicted: Tensor, targets: GridBoxes, grid: BevGrid
    ) -> Matches:
        """Match the queries of every sample of a batch.

        Args:
            logits: (B, P, C) float32.
            predicted: (B, P, 7 or 9) float32.
            targets: Boxes to find.
            grid: Cells of the map.

        Raises:
            FloatingPointError: If a cost is not finite, that is, the network has diverged.
        """
        from scipy.optimize import (
            linear_sum_assignment,
        )  # slow to import, and needed in training alone

        batch_size, num_queries = logits.shape[:2]
        counts = torch.bincount(targets.samples, minlength=batch_size).tolist()
        per_sample = zip(
            logits,
            predicted,
            targets.boxes.split(counts),
            targets.labels.split(counts),
            strict=True,
        )
        costs = [self.cost(*sample, grid) for sample in per_sample]
        # One copy for all samples, since a copy waits for the device.
        flat = torch.cat([cost.flatten() for cost in costs]).cpu()
        if not bool(flat.isfinite().all()):
            raise FloatingPointError(
                "HungarianMatcher.match: predictions must be finite, got NaN or infinity; training has diverged: "
                "lower the learning rate or clip gradients."
            )
        queries, boxes = [], []
        parts = flat.split([num_queries * count for count in counts])
        for sample, (part, count) in enumerate(zip(parts, counts, strict=True)):
            rows, columns = linear_sum_assignment(part.view(num_queries, count).numpy())
            queries.append(torch.from_numpy(rows) + sample * num_queries)
            boxes.append(torch.from_numpy(columns) + sum(counts[:sample]))
        return Matches(torch.cat(queries).to(logits.device), torch.cat(boxes).to(logits.device))
