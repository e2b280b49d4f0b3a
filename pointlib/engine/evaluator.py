"""Scoring a checkpoint on every raw point of a split, as the benchmark does, with predictions and latencies."""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from pointlib.data import (
    LabelMap,
    PointCloudSample,
    SegmentationBatch,
    SemanticKITTI,
    VoxelizeSegmentation,
    collate_segmentation,
    write_labels,
)
from pointlib.data.nuscenes_lidarseg import NuScenesLidarSeg
from pointlib.data.transforms import rotate_z
from pointlib.engine.segmentation_sources import LabelledScans
from pointlib.files import write_file
from pointlib.metrics import ConfusionMatrix, LatencyMeter, SegmentationScores
from pointlib.metrics.nuscenes_devkit import write_lidarseg
from pointlib.metrics.segmentation import AbsentRule
from pointlib.models.checkpoint import Checkpoint, build_network

Precision = Literal["fp32", "bf16", "fp16"]
AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}


class View(NamedTuple):
    """One way of looking at a scan in test-time augmentation: turn about z (radians), then mirror y."""

    angle: float
    mirror: bool


SINGLE_VIEW = (View(0.0, False),)
TTA_VIEWS = tuple(View(k * np.pi / 2, mirror) for mirror in (False, True) for k in range(4))


class DevkitScores(NamedTuple):
    """What nuscenes-devkit says of the written predictions: mean IoU, and the IoU of each class, in [0, 1]."""

    miou: float
    iou: dict[str, float]

    def as_dict(self) -> dict[str, Any]:
        """Plain types, for JSON; None stands for NaN."""
        iou = {name: None if np.isnan(value) else value for name, value in self.iou.items()}
        return {"miou": self.miou, "iou": iou}


@dataclass(frozen=True)
class Evaluation:
    """Result of one evaluation.

    Attributes:
        scores: Of all labelled points, or None for a split without labels.
        latency: Time of each stage per scan.
        num_scans: Scans predicted.
        devkit: nuscenes-devkit's own scores; None until they were computed.
    """

    scores: SegmentationScores | None
    latency: LatencyMeter
    num_scans: int
    devkit: DevkitScores | None = None

    def with_devkit(self, devkit: DevkitScores) -> Evaluation:
        """The same with the devkit's scores."""
        return dataclasses.replace(self, devkit=devkit)


class TimedScan(NamedTuple):
    """A scan on its way to the network: one batch for each view, and how long it took to get there in seconds.

    Its first `num_own` points are its own; the others, of earlier clouds, are context and get no prediction.
    """

    number: int
    views: list[SegmentationBatch]
    load_s: float
    voxelize_s: float
    num_own: int


class TimedScans(Dataset[TimedScan]):
    """Reads and voxelizes scans in loader workers, with the time of each stage."""

    def __init__(
        self, scans: LabelledScans, voxel_size: float, views: tuple[View, ...] = SINGLE_VIEW
    ) -> None:
        """Every scan is seen in each of `views`."""
        self.scans = scans
        self.views = views
        self._voxelize = VoxelizeSegmentation(voxel_size, max_voxels=None)

    def __len__(self) -> int:
        """Number of scans."""
        return len(self.scans)

    def __getitem__(self, index: int) -> TimedScan:
        """Scan number `index`."""
        start = time.perf_counter()
        sample = self.scans[index]
        loaded = time.perf_counter()
        views = [self._batch(sample, view) for view in self.views]
        voxelize_s = time.perf_counter() - loaded
        num_own = len(sample)
        if isinstance(self.scans, NuScenesLidarSeg):
            num_own = self.scans.num_own_points(sample.points)
        return TimedScan(index, views, loaded - start, voxelize_s, num_own)

    def _batch(self, sample: PointCloudSample, view: View) -> SegmentationBatch:
        points = sample.points
        if view.angle:
            points = rotate_z(points, view.angle)
        if view.mirror:
            points = points * np.asarray([1, -1] + [1] * (points.shape[1] - 2), dtype=np.float32)
        seen = sample.replace(points=points)
        return collate_segmentation([self._voxelize(seen, np.random.default_rng(0))])


def evaluate(
    checkpoint: Checkpoint,
    scans: LabelledScans,
    *,
    device: torch.device | str = "cpu",
    tta: bool = False,
    precision: Precision = "fp32",
    absent: AbsentRule = "zero",
    num_workers: int = 2,
    predictions: Path | None = None,
    progress: Callable[[Iterator[int], int], Iterator[int]] | None = None,
) -> Evaluation:
    """Predicts every raw point of `scans` and scores those with a label. Points of earlier clouds have none.

    Args:
        checkpoint: The trained network.
        scans: What to predict; scored if it has labels.
        device: Where the network runs.
        tta: Average the class probabilities of eight views: four quarter turns about z, each also mirrored.
        precision: "fp32", or autocast to "bf16" or "fp16".
        absent: IoU of classes without ground truth, see `ConfusionMatrix.compute`.
        num_workers: Processes that read and voxelize; 0: this one.
        predictions: Folder for predictions in the layout of the benchmark: sequences/XX/predictions/NNNNNN.label of raw
            ids (SemanticKITTI; PandaSet, which has no benchmark, likewise), or lidarseg/<split>/<token>_lidarseg.bin
            (nuScenes); None: not written.
        progress: Wraps the iteration over scans given the number of scans, for a progress bar.

    Returns:
        Scores and latencies.

    Raises:
        ValueError: The classes of the data are not those of the checkpoint.
        BadSampleError: A scan is broken; the message names it.
    """
    check_classes(checkpoint, scans.label_map)
    device = torch.device(device)
    network = build_network(checkpoint).to(device)
    matrix = ConfusionMatrix(scans.num_classes, class_names=scans.class_names)
    meter = LatencyMeter()
    dataset = TimedScans(scans, checkpoint.info.voxel_size, TTA_VIEWS if tta else SINGLE_VIEW)
    loader: DataLoader[Any] = DataLoader(dataset, None, num_workers=num_workers)

    def steps() -> Iterator[int]:
        for scan in loader:
            meter.add("load", scan.load_s)
            meter.add("voxelize", scan.voxelize_s)
            if (
                scan.number == 0
            ):  # allocations and first-use compilation are not part of the latency
                _predict(network, scan.views[:1], device, precision)
            with meter.measure("forward", device):
                labels = _predict(network, scan.views, device, precision)
            truth = scan.views[0].point_labels
            if truth is not None:
                matrix.update(labels, truth)
            if predictions is not None:
                with meter.measure("write"):
                    _write_prediction(predictions, scans, scan.number, labels[: scan.num_own])
            yield scan.number

    shown = steps() if progress is None else progress(steps(), len(dataset))
    num_scans = sum(1 for _ in shown)
    scores = matrix.compute(absent) if scans.with_labels else None
    return Evaluation(scores, meter, num_scans)


@torch.inference_mode()
def _predict(
    network: nn.Module, views: list[SegmentationBatch], device: torch.device, precision: Precision
) -> Tensor:
    """(N,) int64 classes of the raw points, on the CPU."""
    votes: Tensor | None = None
    for view in views:
        batch = view.to(device)
        with torch.autocast(device.type, AUTOCAST.get(precision), enabled=precision in AUTOCAST):
            logits = network(batch.voxels)
        if len(views) == 1:
            return logits.float().argmax(1)[batch.inverse].cpu()
        probabilities = logits.float().softmax(1)[batch.inverse]
        votes = probabilities if votes is None else votes + probabilities
    assert votes is not None
    return votes.argmax(1).cpu()


def _write_prediction(folder: Path, scans: LabelledScans, index: int, labels: Tensor) -> None:
    raw = scans.label_map.to_raw(labels.numpy())
    if isinstance(scans, NuScenesLidarSeg):
        write_lidarseg(folder, scans.split, scans.token(index), raw)
        return
    if isinstance(scans, SemanticKITTI):
        scan_path, _ = scans.paths(index)
        sequence, frame = scan_path.parents[1].name, scan_path.stem
    else:
        sequence, frame = scans.token(index).split("/")
    target = folder / "sequences" / sequence / "predictions"
    target.mkdir(parents=True, exist_ok=True)
    write_labels(target / f"{frame}.label", raw)


def check_classes(checkpoint: Checkpoint, label_map: LabelMap) -> None:
    """Refuses data whose classes differ from the checkpoint's.

    Raises:
        ValueError: They differ; the message names the first difference.
    """
    trained, given = list(checkpoint.info.class_names), list(label_map.class_names)
    if trained != given:
        raise ValueError(
            f"evaluate: data must have the {len(trained)} classes of {checkpoint.path} "
            f"({', '.join(trained[:3])}, ...), "
            f"got {len(given)} of the label map {label_map.name!r} ({', '.join(given[:3])}, ...); "
            "choose the label map of the training with --data.label_map"
        )


def write_report(path: Path, result: Evaluation, about: dict[str, Any]) -> None:
    """Writes scores and latencies as JSON.

    Args:
        path: The file.
        result: From `evaluate`.
        about: What was evaluated: checkpoint, split, options.
    """
    report = {
        **about,
        "num_scans": result.num_scans,
        "scores": None if result.scores is None else result.scores.as_dict(),
        "nuscenes_devkit": None if result.devkit is None else result.devkit.as_dict(),
        "latency": {stage: s.as_dict() for stage, s in result.latency.stats().items()},
    }
    write_file(path, json.dumps(report, indent=2) + "\n")
