"""The body of tools/evaluate.py for boxes and maps: opens a split, scores it, writes the report."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

from pointlib.data.kitti_object import KITTIObject
from pointlib.data.multi_sensor import MultiSensorSample, MultiSensorSource
from pointlib.data.multi_sensor_batch import MultiSensorBatch
from pointlib.data.nuscenes import NuScenes
from pointlib.engine.compare_sensors import (
    ALL_SENSORS,
    UNTRAINED,
    comparison,
    comparison_table,
    sensor_variants,
    untrained,
)
from pointlib.engine.kitti_results import KittiResults
from pointlib.engine.multi_sensor_evaluator import (
    OnPrediction,
    SceneEvaluation,
    evaluate_scenes,
    score_submission,
    write_scene_report,
)
from pointlib.engine.multi_sensor_sources import Needs, open_source
from pointlib.files import write_file
from pointlib.models.checkpoint import Checkpoint
from pointlib.sensors import ScenePrediction, SceneTargets

Progress = Callable[[Iterator[int], int], Iterator[int]]


class Draw(Protocol):
    """Writes the picture of one sample: `pointlib.viz.draw_prediction`, which is not ours to import."""

    def __call__(
        self,
        sample: MultiSensorSample,
        targets: SceneTargets | None,
        prediction: ScenePrediction,
        class_names: Sequence[str],
        folder: str | Path,
        *,
        map_classes: Sequence[str],
        extent: float,
        map_extent: float,
        min_score: float,
    ) -> Path:
        """The file."""


def evaluate_boxes_and_maps(
    checkpoint: Checkpoint, options: Any, out: Path | None, progress: Progress, draw: Draw
) -> list[str]:
    """Scores a multi-sensor checkpoint; returns what to print."""
    target = out or Path(checkpoint.path).parent
    if not options.compare:
        return _evaluate(checkpoint, options, target, progress, draw)[1]
    if options.without:
        raise ValueError(
            "evaluate: --compare takes each sensor away by itself; leave --without out"
        )
    lines: list[str] = []
    results: dict[str, SceneEvaluation] = {}
    for name, without in sensor_variants(checkpoint).items():
        chosen = copy.copy(options)
        chosen.without = without
        chosen.pictures = options.pictures if name == ALL_SENSORS else 0
        folder = target if name == ALL_SENSORS else target / name.replace(" ", "_")
        scored = untrained(checkpoint) if name == UNTRAINED else checkpoint
        results[name], shown = _evaluate(scored, chosen, folder, progress, draw)
        lines = lines or shown
    write_file(target / "comparison.json", json.dumps(comparison(results), indent=2) + "\n")
    return [*lines, "\n" + comparison_table(results), f"written: {target / 'comparison.json'}"]


def _evaluate(
    checkpoint: Checkpoint, options: Any, target: Path, progress: Progress, draw: Draw
) -> tuple[SceneEvaluation, list[str]]:
    """Scores once, into `target`; what came out, and what to print."""
    trained_with = checkpoint.info.config.get("data", {})
    feed = checkpoint.info.feed
    dataset = options.data.dataset or feed.get("dataset", "nuscenes")
    version = options.data.version or trained_with.get("version", "v1.0-trainval")
    split = options.split or trained_with.get("val_split", "val")
    opened: list[MultiSensorSource] = []

    annotated = not (isinstance(split, str) and split.endswith("test"))
    asked: list[Needs] = []

    # frames that training left out are left out here
    missing_cameras = trained_with.get("missing_cameras", "raise")
    if dataset != "pandaset" and missing_cameras == "skip":
        missing_cameras = "raise"

    def open_split(needs: Needs) -> MultiSensorSource:
        asked.append(needs)
        opened.append(
            open_source(
                dataset,
                options.data.root,
                split,
                needs,
                version,
                feed.get("num_sweeps", 1),
                min_points=trained_with.get("min_box_points", 1),
                missing_cameras=missing_cameras,
            )
        )
        return opened[0]

    kitti: list[KittiResults] = []

    def on_prediction(number: int, batch: MultiSensorBatch, prediction: ScenePrediction) -> None:
        source = opened[0]
        if isinstance(source, KITTIObject) and prediction.detections is not None:
            if not kitti:
                kitti.append(KittiResults(source, target / "kitti"))
            kitti[0].add(number, prediction.detections)
        if number < options.pictures:
            needs = asked[0]
            draw(
                opened[0][number],
                batch.targets,
                prediction,
                needs.class_names,
                target / "pictures",
                map_classes=needs.map_classes,
                extent=needs.point_cloud_range[3],
                map_extent=needs.map_scope[0][1] if needs.map_scope else 50.0,
                min_score=options.score_threshold,
            )

    looking = options.pictures or dataset == "kitti"
    drawing: OnPrediction | None = on_prediction if looking else None
    result = evaluate_scenes(
        checkpoint,
        open_split,
        device=options.device,
        precision=options.precision,
        without=options.without,
        annotated=annotated,
        num_workers=options.num_workers,
        out=target if dataset == "nuscenes" else None,
        on_prediction=drawing,
        progress=progress,
    )
    source = opened[0]
    if result.submission is not None and annotated and isinstance(source, NuScenes):
        devkit = score_submission(source, version, str(split), result.submission, target)
        result = result.with_devkit(devkit)
    about = {**about_evaluation(checkpoint, split, options), "without": list(options.without)}
    official = kitti[0].compute() if kitti and annotated else None
    if official is not None:
        about["kitti"] = official.as_dict()
    report = target / "scores.json"
    write_scene_report(report, result, {**about, "version": version})
    lines = _summary(checkpoint, result, split, options.without)
    lines += [f"\nKITTI\n{official.table()}"] if official is not None else []
    return result, [*lines, f"\nwritten: {report}"]


def about_evaluation(checkpoint: Checkpoint, split: Any, options: Any) -> dict[str, Any]:
    """What was evaluated and how, for the report."""
    return {
        "checkpoint": checkpoint.path,
        "network": checkpoint.info.describe(),
        "split": split,
        "precision": options.precision,
        "device": str(options.device),
    }


def _summary(checkpoint: Checkpoint, result: Any, split: Any, without: list[str]) -> list[str]:
    taken = f", without {' and '.join(without)}" if without else ""
    lines = [f"{checkpoint.info.network}, {result.num_samples} samples of split {split}{taken}\n"]
    if result.missing:
        lacking = ", ".join(f"{name} in {count}" for name, count in sorted(result.missing.items()))
        lines.append(f"missing sensors: {lacking} of {result.num_samples} samples\n")
    if result.devkit is not None:
        lines.append("nuscenes-devkit\n" + result.devkit.table() + "\n")
    elif result.scores is not None and result.scores.detection is not None:
        lines.append(result.scores.table() + "\n")
    if result.scores is not None and result.scores.map is not None:
        lines.append(result.scores.map.table() + "\n")
    return [*lines, result.latency.table()]
