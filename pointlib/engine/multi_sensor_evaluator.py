"""Scoring a multi-sensor checkpoint on a split: predictions, map scores, the benchmark's evaluation, latencies."""

from __future__ import annotations

import dataclasses
import json
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch.utils.data import DataLoader, Dataset

from pointlib.data.multi_sensor import MultiSensorSource
from pointlib.data.multi_sensor_batch import MultiSensorBatch, collate_multi_sensor
from pointlib.data.multi_sensor_pipeline import MultiSensorDataset
from pointlib.data.nuscenes import NuScenes
from pointlib.engine.evaluator import AUTOCAST, Precision
from pointlib.engine.multi_sensor_data import make_pipeline
from pointlib.engine.multi_sensor_scores import SceneScorer, SceneScores
from pointlib.engine.multi_sensor_sources import ImageAugmentConfig, Needs, check_classes
from pointlib.engine.sensor_dropout import SENSORS, without_sensors
from pointlib.engine.stage_timer import timed_stages
from pointlib.files import write_file
from pointlib.metrics import LatencyMeter
from pointlib.metrics.nuscenes_detection import NuScenesScores
from pointlib.metrics.nuscenes_submission import NuScenesSubmission
from pointlib.models.checkpoint import Checkpoint, build_network
from pointlib.sensors import ScenePrediction

SUBMISSION = "results_nusc.json"
OnPrediction = Callable[[int, MultiSensorBatch, ScenePrediction], None]


@dataclass(frozen=True)
class SceneEvaluation:
    """Result of one evaluation.

    Attributes:
        scores: As in training, None for a split without annotations.
        latency: Time of each stage per sample.
        num_samples: Samples predicted.
        missing: How many samples lacked each sensor that the network has an encoder for.
        submission: File with the boxes in the benchmark's form; None without boxes or without a folder for it.
        devkit: What nuscenes-devkit says of it; None until `score_submission`.
    """

    scores: SceneScores | None
    latency: LatencyMeter
    num_samples: int
    missing: dict[str, int] = field(default_factory=dict)
    submission: Path | None = None
    devkit: NuScenesScores | None = None

    def with_devkit(self, devkit: NuScenesScores) -> SceneEvaluation:
        """The same with the devkit's scores."""
        return dataclasses.replace(self, devkit=devkit)


class TimedSample(NamedTuple):
    """A sample on its way to the network, and how long it took to read and prepare [s]."""

    number: int
    batch: MultiSensorBatch
    prepare_s: float


class TimedSamples(Dataset[TimedSample]):
    """Reads and prepares samples in loader workers, with the time it takes."""

    def __init__(self, samples: MultiSensorDataset) -> None:
        """Of these samples."""
        self.samples = samples

    def __len__(self) -> int:
        """Number of samples."""
        return len(self.samples)

    def __getitem__(self, index: int) -> TimedSample:
        """Sample number `index`."""
        start = time.perf_counter()
        batch = collate_multi_sensor([self.samples[index]])
        return TimedSample(index, batch, time.perf_counter() - start)


def evaluate_scenes(
    checkpoint: Checkpoint,
    open_split: Callable[[Needs], MultiSensorSource],
    *,
    device: torch.device | str = "cpu",
    precision: Precision = "fp32",
    without: Collection[str] = (),
    annotated: bool = True,
    num_workers: int = 2,
    out: Path | None = None,
    on_prediction: OnPrediction | None = None,
    progress: Callable[[Iterator[int], int], Iterator[int]] | None = None,
) -> SceneEvaluation:
    """Predicts every sample of a split and scores boxes and maps.

    Args:
        checkpoint: The trained network.
        open_split: Opens the split, given what the network needs.
        device: Where the network runs.
        precision: "fp32", or autocast to "bf16" or "fp16"; coordinates stay float32.
        without: Sensors that are taken away: "camera", "lidar". The network must have an encoder for another.
        annotated: Whether the split has boxes and maps to score against.
        num_workers: Processes that read and prepare; 0: this one.
        out: Folder for the submission of a network with boxes; None: not written.
        on_prediction: Called with the number, the batch of one and the prediction of each sample, such as to draw.
        progress: Wraps the iteration over samples given their number, for a progress bar.

    Returns:
        Scores and latencies.

    Raises:
        ValueError: The classes of the data are not those of the checkpoint, or no sensor is left.
        BadSampleError: A sample is broken; the message names it.
    """
    device = torch.device(device)
    network: Any = build_network(checkpoint).to(device)
    left = [name for name in network.encoders if name not in without]
    if set(without) - set(SENSORS) or not left:
        raise ValueError(
            f"evaluate_scenes: without must be of {', '.join(SENSORS)} and leave one of the network's sensors "
            f"({', '.join(network.encoders)}), got {', '.join(without)}"
        )
    needs = Needs.of(network)
    source = open_split(needs)
    check_classes(source, needs)
    image = ImageAugmentConfig(test_resize=checkpoint.info.feed.get("test_resize", 0.48))
    samples = MultiSensorDataset(source, make_pipeline(needs, image, with_targets=annotated))
    scorer = SceneScorer(needs.class_names, needs.map_classes, needs.point_cloud_range)
    submission = _new_submission(needs, without) if out is not None else None
    meter, missing = LatencyMeter(), Counter[str]()
    loader: DataLoader[Any] = DataLoader(TimedSamples(samples), None, num_workers=num_workers)

    def steps() -> Iterator[int]:
        for number, batch, prepare_s in loader:
            seen = _without(batch, without)
            if number == 0:  # allocations and first-use compilation are not part of the latency
                _predict(network, seen, device, precision, LatencyMeter())
            meter.add("prepare", prepare_s)
            start = time.perf_counter()
            prediction = _predict(network, seen, device, precision, meter)
            meter.add("end to end", prepare_s + time.perf_counter() - start)
            missing.update(_camera_names(prediction.missing_sensors, source.camera_names))
            if annotated:
                scorer.update(batch, [prediction])
            if submission is not None:
                _add(submission, batch, prediction)
            if on_prediction is not None:
                on_prediction(number, seen, prediction)
            yield number

    shown = steps() if progress is None else progress(steps(), len(samples))
    num_samples = sum(1 for _ in shown)
    path = None
    if submission is not None and out is not None:
        out.mkdir(parents=True, exist_ok=True)
        path = submission.write(out / SUBMISSION)
    scores = scorer.compute() if annotated else None
    return SceneEvaluation(scores, meter, num_samples, dict(missing), path)


@torch.inference_mode()
def _predict(
    network: Any,
    batch: MultiSensorBatch,
    device: torch.device,
    precision: Precision,
    meter: LatencyMeter,
) -> ScenePrediction:
    """Prediction of a batch of one, on the CPU."""
    with meter.measure("to device", device):
        sensors = batch.sensors.to(device)
    autocast = torch.autocast(
        device.type, AUTOCAST.get(precision, torch.bfloat16), enabled=precision in AUTOCAST
    )
    with autocast, timed_stages(network, meter, device):
        outputs = network(sensors)
    with meter.measure("decode", device):
        (prediction,) = network.decode(outputs, sensors)
        found: ScenePrediction = prediction.to("cpu")
    return found


def _without(batch: MultiSensorBatch, names: Collection[str]) -> MultiSensorBatch:
    return (
        dataclasses.replace(batch, sensors=without_sensors(batch.sensors, names))
        if names
        else batch
    )


def _new_submission(needs: Needs, without: Collection[str]) -> NuScenesSubmission | None:
    if not needs.class_names:
        return None
    use_camera = needs.image_size is not None and "camera" not in without
    use_lidar = needs.points and "lidar" not in without
    return NuScenesSubmission(needs.class_names, use_camera, use_lidar)


def _add(
    submission: NuScenesSubmission, batch: MultiSensorBatch, prediction: ScenePrediction
) -> None:
    found = prediction.detections
    assert found is not None
    submission.add(
        batch.tokens[0],
        found.boxes.numpy(),
        found.scores.numpy(),
        found.labels.numpy(),
        batch.lidar2ego[0].numpy(),
        batch.ego2global[0].numpy(),
    )


def _camera_names(missing: Collection[str], cameras: tuple[str, ...]) -> list[str]:
    """Turns "camera 3" into the camera's own name."""
    return [
        cameras[int(name.split()[1])] if name.startswith("camera ") and cameras else name
        for name in missing
    ]


def score_submission(
    source: NuScenes, version: str, split: str, submission: Path, out: Path
) -> NuScenesScores:
    """What nuscenes-devkit says of a submission; its own files go to `out`.

    Raises:
        ImportError: nuscenes-devkit is not installed.
    """
    from pointlib.metrics.nuscenes_devkit import evaluate_detections, load_nuscenes

    return evaluate_detections(load_nuscenes(source.root, version), submission, split, out)


def write_scene_report(path: Path, result: SceneEvaluation, about: dict[str, Any]) -> None:
    """Writes scores and latencies as JSON.

    Args:
        path: The file.
        result: From `evaluate_scenes`.
        about: What was evaluated: checkpoint, split, options.
    """
    scores = result.scores
    detection = None if scores is None or scores.detection is None else scores.detection.as_dict()
    mapped = None if scores is None or scores.map is None else scores.map.as_dict()
    if detection is not None and scores is not None:
        detection = {**detection, "nds": scores.nds}
    report = {
        **about,
        "num_samples": result.num_samples,
        "missing_sensors": result.missing,
        "detection_without_attributes": detection,
        "recall_2m": None if scores is None or scores.recall is None else scores.recall.recall,
        "map": mapped,
        "nuscenes_devkit": None if result.devkit is None else result.devkit.as_dict(),
        "latency": {stage: s.as_dict() for stage, s in result.latency.stats().items()},
    }
    write_file(path, json.dumps(report, indent=2) + "\n")
