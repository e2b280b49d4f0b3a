"""The devkit's own evaluation of submissions, and the in-training metric beside it, on a synthetic dataset."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pointlib.geometry import invert, quaternion_rotation, rigid_transform, transform_boxes
from pointlib.metrics.nuscenes_detection import (
    ATTRIBUTES,
    CLASS_RANGE,
    NO_ATTRIBUTE,
    NuScenesDetectionMetric,
    NuScenesScores,
    SceneBoxes,
)
from pointlib.metrics.nuscenes_devkit import (
    evaluate_detections,
    evaluate_lidarseg,
    load_nuscenes,
    write_lidarseg,
)
from pointlib.metrics.nuscenes_submission import NuScenesSubmission, write_submission

pytest.importorskip("nuscenes", reason="needs nuscenes-devkit")
CLASSES = tuple(CLASS_RANGE)
VERSION, SPLIT = "v1.0-mini", "mini_val"
Scene = tuple[str, list[dict[str, Any]], np.ndarray, np.ndarray]


@pytest.fixture(scope="module")
def nusc(synthetic_nuscenes: Path) -> Any:
    return load_nuscenes(synthetic_nuscenes, VERSION)


def pose(record: dict[str, Any]) -> np.ndarray:
    rotation = quaternion_rotation(np.array(record["rotation"]))
    return rigid_transform(rotation, np.array(record["translation"]))


@pytest.fixture(scope="module")
def scenes(nusc: Any) -> list[Scene]:
    """Token, annotations in the form of a submission, lidar2ego and ego2global of each sample of the split."""
    from nuscenes.eval.detection.utils import category_to_detection_name
    from nuscenes.utils.splits import create_splits_scenes

    names = {record["token"]: record["name"] for record in nusc.scene}
    found = []
    for sample in nusc.sample:
        if names[sample["scene_token"]] not in create_splits_scenes()[SPLIT]:
            continue
        entries = []
        for token in sample["anns"]:
            record = nusc.get("sample_annotation", token)
            name = category_to_detection_name(record["category_name"])
            if name is None:
                continue
            attributes = [nusc.get("attribute", a)["name"] for a in record["attribute_tokens"]]
            entries.append(
                {
                    "sample_token": sample["token"],
                    **{key: record[key] for key in ("translation", "size", "rotation")},
                    "velocity": nusc.box_velocity(token)[:2].tolist(),
                    "detection_name": name,
                    "detection_score": 1.0,
                    "attribute_name": attributes[0] if attributes else "",
                    "num_pts": record["num_lidar_pts"] + record["num_radar_pts"],
                }
            )
        data = nusc.get("sample_data", sample["data"]["LIDAR_TOP"])
        lidar2ego = pose(nusc.get("calibrated_sensor", data["calibrated_sensor_token"]))
        ego2global = pose(nusc.get("ego_pose", data["ego_pose_token"]))
        found.append((sample["token"], entries, lidar2ego, ego2global))
    return found


def as_boxes(entries: list[dict[str, Any]]) -> SceneBoxes:
    boxes = np.zeros((len(entries), 9))
    for row, entry in zip(boxes, entries, strict=True):
        width, length, height = entry["size"]
        heading = quaternion_rotation(np.array(entry["rotation"]))[:, 0]
        yaw = np.arctan2(heading[1], heading[0])
        row[:] = (*entry["translation"], length, width, height, yaw, *entry["velocity"])
    kinds = [entry["attribute_name"] for entry in entries]
    return SceneBoxes(
        boxes,
        np.array([CLASSES.index(e["detection_name"]) for e in entries], dtype=np.int64),
        np.array([e["detection_score"] for e in entries], dtype=np.float64),
        np.array([ATTRIBUTES.index(k) if k else NO_ATTRIBUTE for k in kinds], dtype=np.int64),
    )


def visible(entries: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The annotations that are scored, as a submission has them: without returns an object is not in the truth."""
    return [
        {key: value for key, value in entry.items() if key != "num_pts"}
        for entry in entries
        if entry["num_pts"] > 0
    ]


def ours(scenes: list[Scene], found: dict[str, list[dict[str, Any]]]) -> NuScenesScores:
    metric = NuScenesDetectionMetric(CLASSES)
    for token, entries, _, ego2global in scenes:
        points = np.array([entry["num_pts"] for entry in entries])
        truth, boxes = as_boxes(entries), as_boxes(found[token])
        metric.update(truth, boxes, ego2global[:3, 3], num_points=points)
    return metric.compute()


def assert_same(first: NuScenesScores, second: NuScenesScores, tolerance: float = 1e-6) -> None:
    """The devkit has the classes in its own order."""
    order = [second.class_names.index(name) for name in first.class_names]
    np.testing.assert_allclose(first.ap, second.ap[order], atol=tolerance)
    np.testing.assert_allclose(first.class_errors, second.class_errors[order], atol=tolerance)
    assert first.nds == pytest.approx(second.nds, abs=tolerance)
    assert first.mean_ap == pytest.approx(second.mean_ap, abs=tolerance)


def test_truth_scores_one_in_every_class_that_is_there(
    nusc: Any, scenes: list[Scene], tmp_path: Path
) -> None:
    results = {token: visible(entries) for token, entries, _, _ in scenes}
    write_submission(tmp_path / "truth.json", results, use_camera=False, use_lidar=True)
    scores = evaluate_detections(nusc, tmp_path / "truth.json", SPLIT, tmp_path / "devkit")
    assert (tmp_path / "devkit/metrics_summary.json").is_file()
    metric_truth = ours(scenes, results)
    assert_same(metric_truth, scores)
    there = scores.ap.max(1) > 0
    # The devkit's mean precision over 90 bins is 1 to within rounding, and a class that is not there scores 0.
    assert there.sum() >= 4
    np.testing.assert_allclose(scores.ap[there], 1.0, atol=1e-9)
    errors = scores.class_errors[there]
    np.testing.assert_allclose(errors[errors == errors], 0.0, atol=1e-6)
    assert scores.mean_ap == pytest.approx(there.mean())


def test_the_whole_way_from_the_lidar_frame_keeps_truth_true(
    nusc: Any, scenes: list[Scene], tmp_path: Path
) -> None:
    submission = NuScenesSubmission(CLASSES, use_camera=False, use_lidar=True)
    for token, entries, lidar2ego, ego2global in scenes:
        scene = as_boxes(visible(entries))
        boxes = transform_boxes(scene.boxes, invert(ego2global @ lidar2ego)).astype(np.float32)
        boxes[:, 7:] = np.nan_to_num(boxes[:, 7:])
        submission.add(token, boxes, scene.scores, scene.labels, lidar2ego, ego2global)
    scores = evaluate_detections(nusc, submission.write(tmp_path / "own.json"), SPLIT)
    there = scores.ap.max(1) > 0
    np.testing.assert_allclose(scores.ap[there], 1.0, atol=1e-9)
    # Boxes stay upright in the frame of a LiDAR that is tilted: heading and velocity lose what the tilt takes.
    errors = np.nan_to_num(scores.class_errors[there][:, :4])
    assert (errors <= [1e-4, 1e-4, 1e-3, 1e-2]).all()


def test_an_empty_submission_scores_nothing(nusc: Any, scenes: list[Scene], tmp_path: Path) -> None:
    results: dict[str, list[dict[str, Any]]] = {token: [] for token, *_ in scenes}
    write_submission(tmp_path / "empty.json", results, use_camera=True, use_lidar=False)
    scores = evaluate_detections(nusc, tmp_path / "empty.json", SPLIT)
    assert scores.nds == 0.0
    assert scores.mean_ap == 0.0


@pytest.mark.parametrize("seed", [0, 1])
def test_the_metric_of_training_agrees_on_perturbed_truth(
    nusc: Any, scenes: list[Scene], tmp_path: Path, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    results: dict[str, list[dict[str, Any]]] = {}
    for token, entries, _, _ in scenes:
        results[token] = []
        for entry in entries:
            for _ in range(int(rng.integers(0, 3))):
                changed = dict(entry, detection_score=round(float(rng.random()), 2))
                changed["translation"] = (
                    np.array(entry["translation"]) + rng.normal(0, 0.8, 3)
                ).tolist()
                changed["size"] = (np.array(entry["size"]) * rng.uniform(0.7, 1.3, 3)).tolist()
                changed["velocity"] = (
                    np.nan_to_num(entry["velocity"]) + rng.normal(0, 0.3, 2)
                ).tolist()
                if rng.random() < 0.2:
                    changed["detection_name"] = str(rng.choice(CLASSES))
                    changed["attribute_name"] = ""
                changed.pop("num_pts")
                results[token].append(changed)
    write_submission(tmp_path / "seen.json", results, use_camera=False, use_lidar=True)
    devkit = evaluate_detections(nusc, tmp_path / "seen.json", SPLIT)
    assert 0.0 < devkit.nds < 0.9
    assert_same(ours(scenes, results), devkit)


def test_other_samples_than_the_split_are_refused(
    nusc: Any, scenes: list[Scene], tmp_path: Path
) -> None:
    write_submission(tmp_path / "few.json", {scenes[0][0]: []}, use_camera=True, use_lidar=True)
    with pytest.raises(ValueError, match=rf"{len(scenes) - 1} are missing"):
        evaluate_detections(nusc, tmp_path / "few.json", SPLIT)
    with pytest.raises(ValueError, match="split must be one of"):
        evaluate_detections(nusc, tmp_path / "few.json", "minival")


def test_versions_that_are_there_are_named(synthetic_nuscenes: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"\(v1\.0-mini\), got 'v1\.0-test'"):
        load_nuscenes(synthetic_nuscenes, "v1.0-test")


def write_lidarseg_truth(nusc: Any, tokens: Iterable[str], out: Path, split: str) -> None:
    """Predictions that are right wherever there is a class."""
    from nuscenes.eval.lidarseg.utils import LidarsegClassMapper

    mapper = LidarsegClassMapper(nusc)
    for token in tokens:
        data = nusc.get("sample", token)["data"]["LIDAR_TOP"]
        path = Path(nusc.dataroot) / nusc.get("lidarseg", data)["filename"]
        fine = np.fromfile(path, np.uint8)
        coarse = mapper.convert_label(fine)
        assert coarse.max() <= 16
        write_lidarseg(out, split, data, np.where(coarse == 0, 1, coarse))


def test_lidarseg_truth_scores_one_by_the_devkit(
    nusc: Any, scenes: list[Scene], tmp_path: Path
) -> None:
    write_lidarseg_truth(nusc, (token for token, *_ in scenes), tmp_path, SPLIT)
    miou, classes = evaluate_lidarseg(nusc, tmp_path, SPLIT)
    assert miou == pytest.approx(1.0)
    assert len(classes) == 16
    assert json.loads((tmp_path / SPLIT / "submission.json").read_text())["meta"]["use_lidar"]
    with pytest.raises(ValueError, match=r"must be 1\.\.16"):
        write_lidarseg(tmp_path, SPLIT, "x", np.array([0, 3]))


def test_lidarseg_scores_the_scenes_that_are_there(
    nusc: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The dataset has one of the eight scenes of mini_train."""
    (scene,) = (s for s in nusc.scene if s["name"] == "scene-0061")
    tokens = [s["token"] for s in nusc.sample if s["scene_token"] == scene["token"]]
    write_lidarseg_truth(nusc, tokens, tmp_path, "mini_train")
    assert evaluate_lidarseg(nusc, tmp_path, "mini_train")[0] == pytest.approx(1.0)
    assert "1 of the 8 scenes of mini_train are scored: scene-0553" in caplog.text
    with pytest.raises(ValueError, match=r"whose 150 scenes .* are not in v1.0-mini"):
        evaluate_lidarseg(nusc, tmp_path, "test")
    with pytest.raises(ValueError, match="split must be one of"):
        evaluate_lidarseg(nusc, tmp_path, "mini_trane")
