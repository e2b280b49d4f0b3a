"""The body of tools/evaluate.py for boxes and maps: opens a split, scores it, writes the report."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

from pointlib.data.multi_sensor import MultiSensorSample, MultiSensorSource
from pointlib.data.multi_sensor_batch import MultiSensorBatch
from pointlib.data.nuscenes import NuScenes
from pointlib.engine.multi_sensor_evaluator import (
    OnPrediction,
    evaluate_scenes,
    score_submission,
    write_scene_report,
)
from pointlib.engine.multi_sensor_sources import Needs, open_source
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
    trained_with = checkpoint.info.config.get("data", {})
    feed = checkpoint.info.feed
    dataset = options.data.dataset or feed.get("dataset", "nuscenes")
    version = options.data.version or trained_with.get("version", "v1.0-trainval")
    split = options.split or trained_with.get("val_split", "val")
    opened: list[MultiSensorSource] = []

    target = out or Path(checkpoint.path).parent
    annotated = not (isinstance(split, str) and split.endswith("test"))
    asked: list[Needs] = []

    def open_split(needs: Needs) -> MultiSensorSource:
        asked.append(needs)
        opened.append(
            open_source(
                dataset, options.data.root, split, needs, version, feed.get("num_sweeps", 1)
            )
        )
        return opened[0]

    def on_prediction(number: int, batch: MultiSensorBatch, prediction: ScenePrediction) -> None:
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

    drawing: OnPrediction | None = on_prediction if options.pictures else None
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
    report = target / "scores.json"
    write_scene_report(report, result, {**about, "version": version})
    return [*_summary(checkpoint, result, split, options.without), f"\nwritten: {report}"]


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
