"""The in-training NDS against nuscenes-devkit's code: on its own test cases, on real truth, on random boxes."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pointlib.geometry import quaternion_rotation
from pointlib.metrics.nuscenes_detection import (
    ATTRIBUTES,
    CLASS_RANGE,
    DISTANCES,
    ERRORS,
    NO_ATTRIBUTE,
    NuScenesDetectionMetric,
    NuScenesScores,
    SceneBoxes,
)

CLASSES = tuple(CLASS_RANGE)


def scene_of(entries: list[dict[str, Any]]) -> SceneBoxes:
    """Boxes as the devkit's JSON holds them."""
    boxes = np.zeros((len(entries), 9))
    for row, entry in zip(boxes, entries, strict=True):
        width, length, height = entry["size"]
        heading = quaternion_rotation(np.array(entry["rotation"], float))[:, 0]
        yaw = np.arctan2(heading[1], heading[0])
        row[:] = (*entry["translation"], length, width, height, yaw, *entry["velocity"])
    labels = [CLASSES.index(entry["detection_name"]) for entry in entries]
    attributes = [
        ATTRIBUTES.index(entry["attribute_name"]) if entry["attribute_name"] else NO_ATTRIBUTE
        for entry in entries
    ]
    scores = [entry["detection_score"] for entry in entries]
    return SceneBoxes(
        boxes,
        np.array(labels, dtype=np.int64),
        np.array(scores, dtype=np.float64),
        np.array(attributes, dtype=np.int64),
    )


def score(truth: dict[str, Any], found: dict[str, Any]) -> NuScenesScores:
    metric = NuScenesDetectionMetric(CLASSES)
    for token in truth:
        true, seen = scene_of(truth[token]), scene_of(found[token])
        metric.truth.append(true)
        metric.found.append(seen)
    return metric.compute()


def devkit_metrics(truth: dict[str, Any], found: dict[str, Any]) -> Any:
    """The devkit's own figures, without tables or filters."""
    pytest.importorskip("nuscenes", reason="needs nuscenes-devkit")
    from nuscenes.eval.common.config import config_factory
    from nuscenes.eval.common.data_classes import EvalBoxes
    from nuscenes.eval.detection.data_classes import DetectionBox
    from nuscenes.eval.detection.evaluate import DetectionEval

    evaluation = object.__new__(DetectionEval)
    evaluation.cfg, evaluation.verbose = config_factory("detection_cvpr_2019"), False
    evaluation.gt_boxes = EvalBoxes.deserialize(truth, DetectionBox)
    evaluation.pred_boxes = EvalBoxes.deserialize(found, DetectionBox)
    return evaluation.evaluate()[0]


def assert_equal(ours: NuScenesScores, devkit: Any, tolerance: float = 1e-9) -> None:
    for name, ap, errors in zip(ours.class_names, ours.ap, ours.class_errors, strict=True):
        expected = [devkit.get_label_ap(name, distance) for distance in DISTANCES]
        np.testing.assert_allclose(ap, expected, atol=tolerance, rtol=0, err_msg=name)
        expected = [devkit.get_label_tp(name, error) for error in ERRORS]
        np.testing.assert_allclose(errors, expected, atol=tolerance, rtol=0, err_msg=name)
    assert ours.mean_ap == pytest.approx(devkit.mean_ap, abs=tolerance)
    assert ours.nds == pytest.approx(devkit.nd_score, abs=tolerance)
    for name, value in devkit.tp_errors.items():
        assert ours.errors[name] == pytest.approx(value, abs=tolerance)


def random_entries(
    rng: np.random.Generator, token: str, count: int, spread: float, is_truth: bool
) -> list[dict[str, Any]]:
    entries = []
    for _ in range(count):
        name = str(rng.choice(CLASSES[:8] if is_truth else CLASSES))
        angle = rng.uniform(-np.pi, np.pi)
        kinds = [a for a in ATTRIBUTES if a.startswith("vehicle")] + [""]
        entries.append(
            {
                "sample_token": token,
                "translation": [*rng.uniform(-spread, spread, 2).tolist(), rng.uniform(-1, 1)],
                "size": rng.uniform(0.5, 5, 3).tolist(),
                "rotation": [np.cos(angle / 2), 0.0, 0.0, np.sin(angle / 2)],
                "velocity": rng.normal(0, 2, 2).tolist()
                if rng.random() < 0.9
                else [np.nan, np.nan],
                "detection_name": name,
                # rounded, so that scores tie
                "detection_score": -1.0 if is_truth else round(float(rng.random()), 2),
                "attribute_name": str(rng.choice(kinds)),
                "num_pts": 5 if is_truth else -1,
            }
        )
    return entries


@pytest.mark.parametrize("seed", range(4))
def test_equals_the_devkit_on_random_boxes(seed: int) -> None:
    rng = np.random.default_rng(seed)
    tokens = [f"sample{i}" for i in range(7)]
    truth = {t: random_entries(rng, t, int(rng.integers(0, 40)), 12, True) for t in tokens}
    found = {t: random_entries(rng, t, int(rng.integers(0, 60)), 12, False) for t in tokens}
    assert_equal(score(truth, found), devkit_metrics(truth, found))


def perturbed(truth: dict[str, Any], seed: int) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    found: dict[str, Any] = {}
    for token, entries in truth.items():
        found[token] = []
        for entry in entries:
            if rng.random() < 0.2:
                continue
            changed = {
                **entry,
                "translation": (np.array(entry["translation"]) + rng.normal(0, 0.6, 3)).tolist(),
                "size": (np.array(entry["size"]) * rng.uniform(0.8, 1.2, 3)).tolist(),
                "velocity": (np.array(entry["velocity"]) + rng.normal(0, 0.5, 2)).tolist(),
                "detection_score": float(rng.random()),
            }
            found[token] += [changed] * int(rng.integers(1, 3))
    return found


def test_equals_the_devkit_on_perturbed_truth() -> None:
    rng = np.random.default_rng(9)
    tokens = [f"sample{i}" for i in range(12)]
    truth = {t: random_entries(rng, t, 30, 40, True) for t in tokens}
    found = perturbed(truth, 3)
    ours = score(truth, found)
    assert 0.05 < ours.nds < 0.95
    assert_equal(ours, devkit_metrics(truth, found))


def test_real_truth_gives_the_figures_of_the_devkit(test_data: Path) -> None:
    path = test_data / "vectors/nuscenes-devkit/detection_realgt_dev.json.gz"
    content = json.loads(gzip.decompress(path.read_bytes()))
    ours = score(content["gt"], content["results"])
    expected = content["expected"]
    for name, ap in zip(ours.class_names, ours.ap, strict=True):
        wanted = expected["label_aps"][name]
        np.testing.assert_allclose(ap, [wanted[str(d)] for d in DISTANCES], atol=1e-9)


def test_the_devkits_own_cases(test_data: Path) -> None:
    content = json.loads(
        (test_data / "vectors/nuscenes-devkit/detection_ap_tp_cases.json").read_text()
    )
    defaults = content["defaults"]

    def entries(boxes: list[dict[str, Any]], token: str) -> list[dict[str, Any]]:
        full = [{**defaults, **box} for box in boxes]
        return [
            {
                "sample_token": token,
                "translation": box["trans"],
                "size": box["size"],
                # the cases leave the rotation at zero, which is none
                "rotation": box["rot"] if any(box["rot"]) else [1, 0, 0, 0],
                "velocity": box["vel"],
                "detection_name": box["name"],
                "detection_score": float(box["score"]),
                "attribute_name": box["attr"],
            }
            for box in full
        ]

    for case in content["ap_cases"]:
        tokens = {**case["gts"], **case["preds"]}
        truth = {t: entries(case["gts"].get(t, []), t) for t in tokens}
        found = {t: entries(case["preds"].get(t, []), t) for t in tokens}
        scores = score(truth, found)
        at = DISTANCES.index(case["dist_th"])
        label = CLASSES.index(case["detection_name"])
        assert scores.ap[label, at] == pytest.approx(case["devkit_ap"], abs=1e-9), case
    for case in content["tp_cases"]:
        tokens = {**case["gts"], **case["preds"]}
        truth = {t: entries(case["gts"].get(t, []), t) for t in tokens}
        found = {t: entries(case["preds"].get(t, []), t) for t in tokens}
        scores = score(truth, found)
        label = CLASSES.index(case["detection_name"])
        error = scores.class_errors[label, ERRORS.index(case["metric_name"])]
        assert error == pytest.approx(case["devkit_error"], abs=1e-9), case


def boxes_at(*centres: tuple[float, float], label: int = 0) -> SceneBoxes:
    boxes = np.array([[x, y, 0.0, 4, 2, 1.5, 0, 0, 0] for x, y in centres]).reshape(-1, 9)
    count = len(boxes)
    return SceneBoxes(
        boxes, np.full(count, label), np.linspace(1, 0.5, count), np.full(count, NO_ATTRIBUTE)
    )


def test_only_what_is_in_range_has_points_and_is_no_bicycle_in_a_rack_counts() -> None:
    metric = NuScenesDetectionMetric(CLASSES)
    cars = boxes_at((110.0, 0.0), (140.0, 0.0), (161.0, 0.0))
    metric.update(cars, cars, (110.0, 0.0, 0.0), num_points=np.array([3, 0, 5]))
    assert len(metric.truth[0].labels) == 1  # one without points, one beyond 50 m
    assert len(metric.found[0].labels) == 2
    bicycles = boxes_at((3.0, 4.0), (8.0, 4.0), label=CLASSES.index("bicycle"))
    rack = np.array([[3.0, 4.0, 0.0, 6.0, 1.0, 2.0, np.pi / 2]])
    metric.update(bicycles, bicycles, (0.0, 0.0), bicycle_racks=rack)
    assert metric.truth[1].boxes[:, 0].tolist() == [8.0]
    rack[0, :2] = (110.0, 0.0)
    metric.update(cars, cars, (110.0, 0.0), bicycle_racks=rack)
    assert len(metric.truth[2].labels) == 2  # a car in a rack counts


def test_truth_itself_scores_all_there_is_and_nothing_scores_nothing() -> None:
    rng = np.random.default_rng(0)
    metric, empty = NuScenesDetectionMetric(CLASSES), NuScenesDetectionMetric(CLASSES)
    nothing = boxes_at()
    for label, name in enumerate(CLASSES):
        truth = boxes_at(*rng.uniform(-20, 20, (6, 2)).tolist(), label=label)
        kind = {"pedestrian": 2, "bicycle": 3, "motorcycle": 3}.get(name, 5)
        truth = SceneBoxes(truth.boxes, truth.labels, truth.scores, np.full(6, kind))
        metric.update(truth, truth, (0.0, 0.0))
        empty.update(truth, nothing, (0.0, 0.0))
    assert metric.compute().nds == pytest.approx(1.0)
    assert empty.compute().nds == 0.0


def test_merged_processes_score_as_one() -> None:
    rng = np.random.default_rng(5)
    tokens = [f"s{i}" for i in range(6)]
    truth = {t: random_entries(rng, t, 25, 10, True) for t in tokens}
    found = perturbed(truth, 1)
    parts = [NuScenesDetectionMetric(CLASSES), NuScenesDetectionMetric(CLASSES)]
    for number, token in enumerate(tokens):
        parts[number >= 3].update(scene_of(truth[token]), scene_of(found[token]), np.zeros(2))
    whole = NuScenesDetectionMetric(CLASSES)
    for token in tokens:
        whole.update(scene_of(truth[token]), scene_of(found[token]), np.zeros(2))
    parts[0].merge(parts[1])
    assert parts[0].compute().as_dict() == whole.compute().as_dict()
    assert "NDS" in whole.compute().table()


def test_bad_input_is_named() -> None:
    metric = NuScenesDetectionMetric(CLASSES)
    with pytest.raises(ValueError, match="there must be samples"):
        metric.compute()
    many = boxes_at(*[(float(i), 0.0) for i in range(501)])
    with pytest.raises(ValueError, match="at most 500"):
        metric.update(many, many, (0.0, 0.0))
    bad = boxes_at((0.0, 0.0))
    bad.scores[0] = np.nan
    with pytest.raises(ValueError, match="finite scores"):
        metric.update(bad, bad, (0.0, 0.0))
