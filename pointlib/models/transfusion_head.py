"""TransFusionHead: the peaks of a heatmap become queries, a transformer layer turns each into one box.

Bai et al., TransFusion, CVPR 2022, sections 3.1 to 3.3 and 3.6, the part for LiDAR or fused maps. Parameter names,
losses and decoding are those of mit-han-lab/bevfusion (commit db75150), so its checkpoints load unchanged; other than
there, every sample of a batch is decoded.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pointlib.models.box_coding import BevGrid, decode_boxes, encode_boxes
from pointlib.models.detection_loss import (
    gaussian_focal_loss,
    sigmoid_focal_loss,
    weighted_l1_loss,
)
from pointlib.models.detection_output import (
    Candidates,
    detections_of_samples,
    in_range,
    suppress_by_circle,
    suppress_by_overlap,
    with_velocity,
)
from pointlib.models.detection_targets import boxes_on_grid, centre_heatmap, check_bev
from pointlib.models.hungarian_matching import HungarianMatcher
from pointlib.models.prediction_branches import (
    ConvBlock,
    PredictionBranches,
    expect_few_centres,
)
from pointlib.models.query_decoder import QueryDecoderLayer
from pointlib.sensors import Detections, SceneTargets

NUSCENES_CLASSES = (
    "car", "truck", "construction_vehicle", "bus", "trailer",
    "barrier", "motorcycle", "bicycle", "pedestrian", "traffic_cone",
)  # fmt: skip


class QueryPredictions(NamedTuple):
    """What the queries say after one decoder layer.

    Attributes:
        logits: (B, P, C) float32 of each class.
        codes: (B, P, 8 or 10) float32 `box_coding.CODE_COLUMNS`.
    """

    logits: Tensor
    codes: Tensor


class TransFusionOutput(NamedTuple):
    """Queries and what became of them.

    Attributes:
        heatmap: (B, C, X, Y) float32 logits of a centre in each cell.
        query_labels: (B, P) int64 class as which each query was proposed.
        query_scores: (B, P) float32 probability of its peak.
        layers: Predictions after each decoder layer.
    """

    heatmap: Tensor
    query_labels: Tensor
    query_scores: Tensor
    layers: tuple[QueryPredictions, ...]


class TransFusionHead(nn.Module):
    """Queries from a bird's-eye map, one box each.

    The defaults are those published for nuScenes.

    Args:
        in_channels: Features of the map.
        point_cloud_range: x, y, z from, then to [m].
        voxel_size: Edges of a voxel [m].
        out_size_factor: Voxels along an edge of a cell of the map.
        class_names: Classes in the order of labels.
        num_proposals: Queries P of a sample; fewer on a map with fewer cells times classes.
        hidden_channels: Features of a query.
        num_decoder_layers: Each predicts and is trained.
        num_heads: Attention heads.
        ffn_channels: Hidden features of the decoder's linear layers.
        dropout: In the decoder.
        velocity: Whether to regress velocity; without, detections have NaN velocity.
        peak_size: A query is a cell that is the largest among so many by so many around it, of its class. Odd.
            The outer cells of the map, peak_size // 2 of them, are none, as published.
        small_classes: Classes whose every cell may be a query, in the outer cells too: objects that stand closer
            together than cells; None: pedestrian and traffic_cone, if among class_names.
        min_overlap: How wide peaks are in training, see `heatmap.gaussian_radius`.
        min_radius: Smallest radius of a peak in training [cells].
        match_weights: Costs of the assignment of queries to boxes: class, distance of centres, IoU.
        heatmap_weight: Weight of the heatmap's loss.
        class_weight: Weight of the queries' classification loss.
        bbox_weight: Weight of their regression loss.
        code_weights: Weight of each of its columns.
        score_threshold: Detections score more than this.
        post_center_range: Centres of detections are within x, y, z from, then to [m].
        nms_type: "none", "circle" or "rotate": suppress duplicates within a class.
        nms_threshold: Radius [m] of circles, or IoU of rotated boxes; None: as published, 0.41833 m or 0.175.
        nms_classes: Classes to do that in; None: the small classes, as published.
        max_detections: Detections of a sample, the best; None: all queries.
    """

    positions: Tensor

    def __init__(
        self,
        in_channels: int,
        point_cloud_range: Sequence[float],
        voxel_size: Sequence[float],
        out_size_factor: int = 8,
        class_names: Sequence[str] = NUSCENES_CLASSES,
        num_proposals: int = 200,
        hidden_channels: int = 128,
        num_decoder_layers: int = 1,
        num_heads: int = 8,
        ffn_channels: int = 256,
        dropout: float = 0.1,
        velocity: bool = True,
        peak_size: int = 3,
        small_classes: Sequence[str] | None = None,
        min_overlap: float = 0.1,
        min_radius: int = 2,
        match_weights: Sequence[float] = (0.15, 0.25, 0.25),
        heatmap_weight: float = 1.0,
        class_weight: float = 1.0,
        bbox_weight: float = 0.25,
        code_weights: Sequence[float] = (1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 0.2, 0.2),
        score_threshold: float = 0.0,
        post_center_range: Sequence[float] = (-61.2, -61.2, -10.0, 61.2, 61.2, 10.0),
        nms_type: str = "none",
        nms_threshold: float | None = None,
        nms_classes: Sequence[str] | None = None,
        max_detections: int | None = None,
    ) -> None:
        super().__init__()
        self.class_names = tuple(class_names)
        self.in_channels = in_channels
        self.grid = BevGrid.of_voxels(point_cloud_range, voxel_size, out_size_factor)
        self.num_codes = 10 if velocity else 8
        self.num_proposals, self.peak_size = num_proposals, peak_size
        self.min_overlap, self.min_radius = min_overlap, min_radius
        self.matcher = HungarianMatcher(*match_weights)
        self.heatmap_weight, self.class_weight = heatmap_weight, class_weight
        self.bbox_weight, self.code_weights = bbox_weight, tuple(code_weights[: self.num_codes])
        self.score_threshold, self.post_center_range = score_threshold, tuple(post_center_range)
        self.nms_type, self.max_detections = nms_type, max_detections
        if nms_threshold is None:
            nms_threshold = math.sqrt(0.175) if nms_type == "circle" else 0.175
        self.nms_threshold = nms_threshold
        if small_classes is None:
            small_classes = [n for n in ("pedestrian", "traffic_cone") if n in self.class_names]
        nms_classes = small_classes if nms_classes is None else nms_classes
        self._check_arguments(small_classes, nms_classes)
        self._small = [self.class_names.index(name) for name in small_classes]
        self._suppressed = [name in nms_classes for name in self.class_names]

        num_classes = len(self.class_names)
        self.shared_conv = nn.Conv2d(in_channels, hidden_channels, 3, padding=1)
        last = nn.Conv2d(hidden_channels, num_classes, 3, padding=1)
        expect_few_centres(last)
        self.heatmap_head = nn.Sequential(
            ConvBlock(hidden_channels, hidden_channels, kernel_size=3, dims=2), last
        )
        self.class_encoding = nn.Conv1d(num_classes, hidden_channels, 1)
        self.decoder = nn.ModuleList(
            QueryDecoderLayer(hidden_channels, num_heads, ffn_channels, dropout)
            for _ in range(num_decoder_layers)
        )
        branches = {"center": 2, "height": 1, "dim": 3, "rot": 2}
        if velocity:
            branches["vel"] = 2
        self.prediction_heads = nn.ModuleList(
            PredictionBranches(hidden_channels, {**branches, "heatmap": num_classes}, dims=1)
            for _ in range(num_decoder_layers)
        )
        x, y = (torch.arange(size) + 0.5 for size in self.grid.size)
        positions = torch.stack(torch.meshgrid(x, y, indexing="ij"), -1).flatten(0, 1)
        self.register_buffer("positions", positions, persistent=False)

    def forward(self, bev: Tensor) -> TransFusionOutput:
        """Predict from a (B, in_channels, X, Y) map; ValueError if its size is not that of the head's grid."""
        check_bev("TransFusionHead.forward", bev, self.in_channels, self.grid.size)
        features = self.shared_conv(bev)
        heatmap = self.heatmap_head(features).float()
        labels, cells, scores = self._propose(heatmap.detach())
        keys = features.flatten(2).mT
        classes = F.one_hot(labels, len(self.class_names)).mT.to(features.dtype)
        samples = torch.arange(len(cells), device=cells.device)[:, None]
        query = keys[samples, cells] + self.class_encoding(classes).mT
        places = self.positions[cells]
        layers = []
        for decoder, head in zip(self.decoder, self.prediction_heads, strict=True):
            query = decoder(query, keys, places, self.positions[None])
            branches = head(query.mT)
            logits = branches.pop("heatmap").mT
            centre, *others = branches.values()
            codes = torch.cat([centre + places.mT, *others], 1).mT
            layers.append(QueryPredictions(logits, codes))
            places = codes[..., :2].detach()
        return TransFusionOutput(heatmap, labels, scores, tuple(layers))

    def loss(self, output: TransFusionOutput, targets: SceneTargets) -> dict[str, Tensor]:
        """`heatmap`, and `class` and `bbox` of the queries, before the last layer as `layer0/class` ...; to be summed.

        Raises:
            ValueError: If a label is not a class of the head.
            FloatingPointError: If predictions are not finite.
        """
        num_classes, batch_size = len(self.class_names), len(targets.boxes)
        found = boxes_on_grid("TransFusionHead.loss", targets, self.grid, num_classes)
        heatmap = centre_heatmap(
            found, self.grid, batch_size, num_classes, self.min_overlap, self.min_radius
        )
        losses = {"heatmap": self.heatmap_weight * gaussian_focal_loss(output.heatmap, heatmap)}
        matches = [
            self.matcher.match(layer.logits, decode_boxes(layer.codes, self.grid), found, self.grid)
            for layer in output.layers
        ]
        # As published, each layer is divided by the matches of all: their sum is a mean over layers.
        num_matches = max(sum(len(match.queries) for match in matches), 1)
        wanted = encode_boxes(found.boxes, self.grid)[:, : self.num_codes]
        weights = wanted.new_tensor(self.code_weights)
        for number, (layer, match) in enumerate(zip(output.layers, matches, strict=True)):
            prefix = "" if layer is output.layers[-1] else f"layer{number}/"
            logits, codes = layer.logits.flatten(0, 1), layer.codes.flatten(0, 1)
            classes = torch.zeros_like(logits)
            classes[match.queries, found.labels[match.boxes]] = 1
            focal = sigmoid_focal_loss(logits, classes).sum()
            distance = weighted_l1_loss(codes[match.queries], wanted[match.boxes], weights)
            losses[f"{prefix}class"] = self.class_weight * focal / num_matches
            losses[f"{prefix}bbox"] = self.bbox_weight * distance / num_matches
        return losses

    @torch.no_grad()
    def decode(self, output: TransFusionOutput) -> list[Detections]:
        """Boxes of each sample, best first; a score is the probability of the peak times that of the query's class."""
        logits, codes = output.layers[-1]
        batch_size = len(logits)
        labels = output.query_labels
        scores = logits.float().gather(2, labels[..., None])[..., 0].sigmoid() * output.query_scores
        boxes = with_velocity(decode_boxes(codes.float(), self.grid))
        samples = torch.arange(batch_size, device=labels.device)[:, None].expand_as(labels)
        good = (scores > self.score_threshold) & in_range(boxes, self.post_center_range)
        found = Candidates(boxes[good], scores[good], labels[good], samples[good])
        if self.nms_type != "none":
            found = found.take(self._suppress(found))
        return detections_of_samples(found, batch_size, self.max_detections)

    def _propose(self, heatmap: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Class, cell and probability (B, P) of the highest peaks over all classes."""
        probability = heatmap.sigmoid()
        border = self.peak_size // 2
        peak = probability == F.max_pool2d(probability, self.peak_size, 1, border)
        inner = torch.zeros_like(peak[0, 0])
        inner[border : len(inner) - border, border : inner.shape[1] - border] = True
        peak &= inner
        peak[:, self._small] = True
        candidates = (probability * peak).flatten(1)
        best = candidates.topk(min(self.num_proposals, candidates.shape[1]))
        num_cells = heatmap.shape[2] * heatmap.shape[3]
        return best.indices // num_cells, best.indices % num_cells, best.values

    def _suppress(self, found: Candidates) -> Tensor:
        """Rows that stay."""
        suppressed = torch.tensor(self._suppressed, device=found.labels.device)[found.labels]
        rows, free = suppressed.nonzero()[:, 0], (~suppressed).nonzero()[:, 0]
        some = found.take(rows)
        groups = some.samples * len(self.class_names) + some.labels
        each = torch.ones_like(some.scores)
        if self.nms_type == "circle":
            kept = suppress_by_circle(some, groups, each * self.nms_threshold)
        else:
            kept = suppress_by_overlap(some, groups, self.nms_threshold, each)
        return torch.cat([free, rows[kept]])

    def _check_arguments(self, small: Sequence[str], suppressed: Sequence[str]) -> None:
        name = "TransFusionHead"
        unknown = sorted({*small, *suppressed} - {*self.class_names})
        if unknown:
            raise ValueError(
                f"{name}: small_classes and nms_classes must be among {list(self.class_names)}, got {unknown}."
            )
        if self.nms_type not in ("none", "circle", "rotate"):
            raise ValueError(
                f"{name}: nms_type must be 'none', 'circle' or 'rotate', got {self.nms_type!r}."
            )
        if self.peak_size % 2 != 1 or self.num_proposals < 1:
            raise ValueError(
                f"{name}: peak_size must be odd and num_proposals >= 1, "
                f"got {self.peak_size} and {self.num_proposals}."
            )
