"""The body of tools/evaluate.py for points: opens a split, scores it, writes predictions and the report."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from pointlib.data.nuscenes_lidarseg import NuScenesLidarSeg
from pointlib.engine.evaluate_command import about_evaluation
from pointlib.engine.evaluator import DevkitScores, check_classes, evaluate, write_report
from pointlib.engine.segmentation_sources import LabelledScans, open_scans, scan_traits
from pointlib.metrics.nuscenes_devkit import (
    evaluate_lidarseg,
    load_nuscenes,
    write_lidarseg_meta,
)
from pointlib.models.checkpoint import Checkpoint

Progress = Callable[[Iterator[int], int], Iterator[int]]


def evaluate_points(
    checkpoint: Checkpoint, options: Any, out: Path | None, progress: Progress
) -> list[str]:
    """Scores a segmentation checkpoint; returns what to print.

    Args:
        checkpoint: The trained network.
        options: Of tools/evaluate.py.
        out: Folder of the predictions; None: not kept.
        progress: Wraps the iteration over scans.

    Raises:
        ValueError: There is no such split, or its classes are not those of the checkpoint.
        BadSampleError: A scan is broken; the message names it.
        ImportError: nuScenes is evaluated and nuscenes-devkit is not installed.
    """
    trained_on = checkpoint.info.feed.get("dataset", "semantic_kitti")
    dataset = options.data.dataset or trained_on
    name = options.split or _default_split(checkpoint, dataset == trained_on)
    scans = _open(checkpoint, options, dataset, name)
    check_classes(checkpoint, scans.label_map)
    nusc = None
    if isinstance(scans, NuScenesLidarSeg) and scans.with_labels:
        nusc = load_nuscenes(options.data.root, scans.index.meta["version"])
    absent = options.absent or scan_traits(dataset).absent
    with contextlib.ExitStack() as stack:
        folder = out
        if nusc is not None and out is None:  # the devkit reads predictions from files
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        result = evaluate(
            checkpoint,
            scans,
            device=options.device,
            tta=options.tta,
            precision=options.precision,
            absent=absent,
            num_workers=options.num_workers,
            predictions=folder,
            progress=progress,
        )
        if nusc is not None and folder is not None:
            result = result.with_devkit(DevkitScores(*evaluate_lidarseg(nusc, folder, name)))
    if isinstance(scans, NuScenesLidarSeg) and out is not None:
        write_lidarseg_meta(out, name)
    report = (out or Path(checkpoint.path).parent) / "scores.json"
    about = {
        **about_evaluation(checkpoint, name, options),
        "dataset": dataset,
        "label_map": scans.label_map.name,
        "tta": options.tta,
        "absent": absent,
    }
    write_report(report, result, about)
    lines = [f"{checkpoint.info.describe()}, {result.num_scans} scans of split {name}\n"]
    if result.scores is not None:
        lines.append(result.scores.table() + "\n")
    if result.devkit is not None:
        lines.append(f"nuscenes-devkit: mean IoU {100 * result.devkit.miou:.2f} %\n")
    written = f"\nwritten: {report}" + (f", {out}/{_prediction_folder(scans)}" if out else "")
    return [*lines, result.latency.table(), written]


def _default_split(checkpoint: Checkpoint, same_dataset: bool) -> str:
    """The validation split of the training, if it had a name."""
    split = checkpoint.info.config.get("data", {}).get("val_split")
    return split if same_dataset and isinstance(split, str) else "val"


def _open(checkpoint: Checkpoint, options: Any, dataset: str, split: str) -> LabelledScans:
    """The split, read as in training where the options do not say otherwise."""
    info = checkpoint.info
    trained_with = info.config.get("data", {})
    feed = info.feed or {"unknown_labels": trained_with.get("unknown_labels")}
    keys = {name: value for name, value in feed.items() if name != "dataset"}
    label_map = options.data.label_map
    if dataset == feed.get("dataset", "semantic_kitti"):
        label_map = label_map or trained_with.get("label_map")
    else:  # what the other dataset has no key for goes, except what the network's channels depend on
        keys = {"num_frames": keys["num_frames"]} if keys.get("num_frames", 1) > 1 else {}
    if options.data.version is not None:
        keys["version"] = options.data.version
    sequences = split[0].isdigit()
    return open_scans(
        dataset,
        options.data.root,
        split.split(",") if sequences else split,
        label_map=label_map,
        **keys,
    )


def _prediction_folder(scans: LabelledScans) -> str:
    return "lidarseg" if isinstance(scans, NuScenesLidarSeg) else "sequences"
