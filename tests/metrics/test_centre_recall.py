"""Recall by centre distance, on cases counted by hand."""

from __future__ import annotations

import math

import numpy as np

from pointlib.metrics.centre_recall import CentreRecall


def boxes(*centres: tuple[float, float]) -> np.ndarray:
    return np.array([[x, y, 0, 4, 2, 1.5, 0] for x, y in centres], np.float32).reshape(-1, 7)


def test_each_object_is_found_once_by_its_own_class() -> None:
    metric = CentreRecall(("car", "pedestrian"), distance=2.0)
    truth, labels = boxes((0, 0), (10, 0), (20, 0)), np.array([0, 0, 1])
    found = boxes((0.5, 0), (1, 0), (12.5, 0), (20, 1), (20, 0))
    metric.update(
        truth, labels, found, np.array([0, 0, 0, 1, 0]), np.array([0.9, 0.8, 0.7, 0.6, 0.5])
    )
    scores = metric.compute()
    assert scores.found.tolist() == [1, 1]
    assert scores.objects.tolist() == [2, 1]
    assert scores.detections.tolist() == [4, 1]
    assert scores.recall == 2 / 3
    assert scores.precision == 2 / 5
    assert "66.7" in scores.table()


def test_scores_below_the_threshold_do_not_count_and_parts_add_up() -> None:
    whole, part = (CentreRecall(("car",), min_score=0.5) for _ in range(2))
    for metric in (whole, part):
        metric.update(
            boxes((0, 0)),
            np.array([0]),
            boxes((0, 0), (3, 0)),
            np.array([0, 0]),
            np.array([0.4, 0.9]),
        )
    whole.merge(part)
    assert whole.compute().found.tolist() == [0]
    assert whole.compute().detections.tolist() == [2]


def test_nothing_to_find_has_no_recall() -> None:
    metric = CentreRecall(("car",))
    none = np.zeros(0, dtype=np.int64)
    metric.update(boxes(), none, boxes(), none, np.zeros(0))
    assert math.isnan(metric.compute().recall)
