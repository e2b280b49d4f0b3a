"""Scores and latencies: what a prediction is worth and what it costs."""

from __future__ import annotations

from pointlib.metrics.latency import LatencyMeter, LatencyStats
from pointlib.metrics.segmentation import ConfusionMatrix, SegmentationScores

__all__ = ["ConfusionMatrix", "LatencyMeter", "LatencyStats", "SegmentationScores"]
