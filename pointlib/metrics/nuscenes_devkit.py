"""Scores from nuscenes-devkit's own code: detections (NDS, mAP, errors) and LiDAR segmentation (mIoU)."""

from __future__ import annotations

import contextlib
import io
import json
import logging
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pointlib.files import write_file
from pointlib.metrics.nuscenes_detection import DISTANCES, ERRORS, NuScenesScores

_log = logging.getLogger(__name__)

_FAR = 1e7
"""Metres away from everything: a box there is removed by the devkit's own filter."""


def load_nuscenes(root: str | os.PathLike[str], version: str) -> Any:
    """The devkit's tables, without its chatter.

    Args:
        root: Folder of the dataset.
        version: Such as "v1.0-trainval".

    Returns:
        nuscenes.nuscenes.NuScenes.

    Raises:
        ImportError: If nuscenes-devkit is not installed.
        FileNotFoundError: If the version is not there; the message lists those that are.
    """
    nuscenes = _devkit("nuscenes.nuscenes")
    folder = Path(root) / version
    if not folder.is_dir():
        there = sorted(p.parent.name for p in Path(root).glob("*/scene.json"))
        raise FileNotFoundError(
            f"load_nuscenes: version must be one of those in {root} ({', '.join(there) or 'none'}), got {version!r}"
        )
    return nuscenes.NuScenes(version=version, dataroot=str(root), verbose=False)


def evaluate_detections(
    nusc: Any,
    submission: str | os.PathLike[str],
    split: str,
    out: str | os.PathLike[str] | None = None,
) -> NuScenesScores:
    """Run the devkit's detection evaluation, `detection_cvpr_2019`.

    Args:
        nusc: Of `load_nuscenes`.
        submission: File of `NuScenesSubmission.write`; it must hold every sample of the split.
        split: Such as "val" or "mini_val".
        out: Folder for the devkit's metrics_summary.json and metrics_details.json; None: not kept.

    Returns:
        NuScenesScores.

    Raises:
        ValueError: If the submission has other samples than the split.
    """
    config = _devkit("nuscenes.eval.common.config").config_factory("detection_cvpr_2019")
    evaluation = _devkit("nuscenes.eval.detection.evaluate").DetectionEval
    with tempfile.TemporaryDirectory() as scratch:
        path = _with_a_box(nusc, Path(submission), split, Path(scratch))
        with contextlib.redirect_stdout(io.StringIO()):
            metrics, details = evaluation(
                nusc, config, str(path), split, output_dir=scratch, verbose=False
            ).evaluate()
    names = tuple(config.class_names)
    ap = np.array([[metrics.get_label_ap(name, d) for d in DISTANCES] for name in names])
    errors = np.array([[metrics.get_label_tp(name, e) for e in ERRORS] for name in names])
    if out is not None:
        for name, value in (("summary", metrics.serialize()), ("details", details.serialize())):
            Path(out).mkdir(parents=True, exist_ok=True)
            write_file(Path(out) / f"metrics_{name}.json", json.dumps(value, indent=2))
    tp_errors = {name: float(metrics.tp_errors[name]) for name in ERRORS}
    return NuScenesScores(metrics.nd_score, metrics.mean_ap, tp_errors, ap, errors, names)


def _with_a_box(nusc: Any, submission: Path, split: str, scratch: Path) -> Path:
    """Check the samples; give a submission without any box, at which the devkit fails, one that its filter removes."""
    scenes = _devkit("nuscenes.utils.splits").create_splits_scenes()
    if split not in scenes:
        raise ValueError(
            f"evaluate_detections: split must be one of {', '.join(scenes)}, got {split!r}"
        )
    names = {scene["token"]: scene["name"] for scene in nusc.scene}
    wanted = {s["token"] for s in nusc.sample if names[s["scene_token"]] in set(scenes[split])}
    content = json.loads(submission.read_text())
    given = set(content["results"])
    if given != wanted or not wanted:
        raise ValueError(
            f"evaluate_detections: {submission} must hold the {len(wanted)} samples of {split}, got {len(given)}, of "
            f"which {len(given - wanted)} are foreign; {len(wanted - given)} are missing"
        )
    if any(content["results"].values()):
        return submission
    token = next(iter(wanted))
    content["results"][token] = [
        {
            "sample_token": token,
            "translation": [_FAR, _FAR, 0.0],
            "size": [1.0, 1.0, 1.0],
            "rotation": [1.0, 0.0, 0.0, 0.0],
            "velocity": [0.0, 0.0],
            "detection_name": "car",
            "detection_score": 0.0,
            "attribute_name": "",
        }
    ]
    path = scratch / "submission.json"
    path.write_text(json.dumps(content))
    return path


def write_lidarseg(
    out: str | os.PathLike[str], split: str, token: str, classes: npt.NDArray[np.integer[Any]]
) -> Path:
    """Write the prediction of one cloud in the layout of the lidarseg challenge.

    Args:
        out: Folder of the submission.
        split: Such as "val".
        token: Of the LIDAR_TOP sample_data.
        classes: (N,) 1..16, the challenge's classes.

    Returns:
        The file, out/lidarseg/<split>/<token>_lidarseg.bin.

    Raises:
        ValueError: If a class is not one of the 16.
    """
    if len(classes) and not (classes.min() >= 1 and classes.max() <= 16):
        raise ValueError(
            f"write_lidarseg: classes must be 1..16, got {classes.min()}..{classes.max()}; 0 is not an answer"
        )
    path = Path(out) / "lidarseg" / split / f"{token}_lidarseg.bin"
    path.parent.mkdir(parents=True, exist_ok=True)
    write_file(path, classes.astype(np.uint8).tobytes())
    return path


def write_lidarseg_meta(out: str | os.PathLike[str], split: str) -> Path:
    """Write what a submission to the lidarseg challenge says about itself: LiDAR alone, no external data.

    Args:
        out: Folder of the submission.
        split: Such as "test".

    Returns:
        The file, out/<split>/submission.json.
    """
    meta = {"use_camera": False, "use_lidar": True, "use_radar": False, "use_map": False}
    path = Path(out) / split / "submission.json"
    write_file(path, json.dumps({"meta": {**meta, "use_external": False}}))
    return path


def evaluate_lidarseg(
    nusc: Any, results: str | os.PathLike[str], split: str
) -> tuple[float, dict[str, float]]:
    """Run the devkit's lidarseg evaluation; on the scenes of the split that are there, which a warning names.

    Args:
        nusc: Of `load_nuscenes`, with lidarseg labels.
        results: Folder that `write_lidarseg` filled, with a file for each cloud of the split.
        split: Such as "val".

    Returns:
        mIoU in [0, 1], and the IoU of each of the 16 classes (NaN: neither there nor found).

    Raises:
        ValueError: There is no such split, or none of its scenes is there.
        AssertionError: There is no prediction for a cloud; the devkit names the file.
    """
    evaluator = _devkit("nuscenes.eval.lidarseg.evaluate").LidarSegEval
    write_lidarseg_meta(results, split)
    nusc = _with_every_scene(nusc, split)
    with contextlib.redirect_stdout(io.StringIO()):
        scores = evaluator(nusc, str(results), split, verbose=False).evaluate()
    classes = {name: float(v) for name, v in scores["iou_per_class"].items() if name != "ignore"}
    return float(scores["miou"]), classes


class _WithEmptyScenes:
    """A dataset with scenes that hold nothing in place of those that were not downloaded."""

    def __init__(self, nusc: Any, names: Sequence[str]) -> None:
        tokens = {"first_sample_token": "", "last_sample_token": ""}
        self._nusc = nusc
        self._empty = {n: {"token": n, "name": n, "nbr_samples": 0, **tokens} for n in names}
        self.scene = [*nusc.scene, *self._empty.values()]

    def get(self, table: str, token: str) -> Any:
        if table == "scene" and token in self._empty:
            return self._empty[token]
        return self._nusc.get(table, token)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._nusc, name)


def _with_every_scene(nusc: Any, split: str) -> Any:
    """The dataset with every scene of the split, for which the devkit's lidarseg evaluation asks."""
    splits = _devkit("nuscenes.utils.splits").create_splits_scenes()
    if split not in splits:
        raise ValueError(
            f"evaluate_lidarseg: split must be one of {', '.join(splits)}, got {split!r}"
        )
    there = {scene["name"] for scene in nusc.scene}
    missing = [name for name in splits[split] if name not in there]
    if not missing:
        return nusc
    if len(missing) == len(splits[split]):
        raise ValueError(
            f"evaluate_lidarseg: split must have scenes in the dataset, got {split!r}, whose {len(missing)} scenes "
            f"({missing[0]}, ...) are not in {nusc.version}"
        )
    _log.warning(
        "%d of the %d scenes of %s are scored: %s%s missing",
        len(splits[split]) - len(missing), len(splits[split]), split, ", ".join(missing[:3]),
        " is" if len(missing) == 1 else ", ... are" if len(missing) > 3 else " are",
    )  # fmt: skip
    return _WithEmptyScenes(nusc, missing)


def _devkit(module: str) -> Any:
    """A module of nuscenes-devkit."""
    import importlib

    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is not None and error.name.split(".")[0] != "nuscenes":
            raise
        raise ImportError(
            f"nuscenes-devkit must be installed to use {module}; run: pip install 'pointlib[nuscenes]'"
        ) from error
