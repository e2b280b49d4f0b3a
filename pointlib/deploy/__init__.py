"""Models in use: points in, labels out."""

from __future__ import annotations

from pointlib.deploy.file_prediction import find_point_clouds, predict_files
from pointlib.deploy.graph import GraphNetwork
from pointlib.deploy.predictor import Prediction, Predictor, load_predictor

__all__ = [
    "GraphNetwork",
    "Prediction",
    "Predictor",
    "find_point_clouds",
    "load_predictor",
    "predict_files",
]
