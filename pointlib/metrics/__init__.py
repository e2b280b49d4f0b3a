"""Scores and latencies: what a prediction is worth and what it costs."""

from __future__ import annotations

from pointlib.metrics.centre_recall import CentreRecall, CentreRecallScores
from pointlib.metrics.kitti_ap import KittiScores, kitti_ap
from pointlib.metrics.latency import LatencyMeter, LatencyStats
from pointlib.metrics.map_segmentation import MapIoU, MapScores
from pointlib.metrics.nuscenes_detection import (
    NuScenesDetectionMetric,
    NuScenesScores,
    SceneBoxes,
)
from pointlib.metrics.nuscenes_submission import NuScenesSubmission, scene_boxes
from pointlib.metrics.segmentation import ConfusionMatrix, SegmentationScores

__all__ = [
    # points
    "ConfusionMatrix",
    "SegmentationScores",
    # boxes
    "NuScenesDetectionMetric",
    "NuScenesScores",
    "SceneBoxes",
    "scene_boxes",
    "NuScenesSubmission",
    "CentreRecall",
    "CentreRecallScores",
    "kitti_ap",
    "KittiScores",
    # maps
    "MapIoU",
    "MapScores",
    # time
    "LatencyMeter",
    "LatencyStats",
]
