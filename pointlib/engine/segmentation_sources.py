"""Datasets with a class for each point, by name: which keys each takes, how it is opened, what is particular to it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

from pointlib.data import SemanticKITTI
from pointlib.data.mix import SEMANTIC_KITTI_THINGS
from pointlib.data.nuscenes_lidarseg import FrameKind, NuScenesLidarSeg
from pointlib.data.pandaset_segmentation import PandaSetSegmentation
from pointlib.data.pandaset_sequence import Sensor
from pointlib.metrics.segmentation import AbsentRule

ScanDatasetName = Literal["semantic_kitti", "nuscenes", "pandaset"]
ScanSplit = str | Sequence[str]
LabelledScans = SemanticKITTI | NuScenesLidarSeg | PandaSetSegmentation


@dataclass(frozen=True)
class ScanTraits:
    """What is particular to a dataset.

    Attributes:
        label_map: The label map in use when none is named.
        absent: How its benchmark counts classes without ground truth, see `ConfusionMatrix.compute`.
        things: Train ids of the objects that PolarMix pastes.
        pitch: Field of view of its sensor, which LaserMix cuts into bands: from, to [rad].
        defaults: The keys that other datasets do not have, and their values when they are not given.
    """

    label_map: str
    absent: AbsentRule
    things: tuple[int, ...]
    pitch: tuple[float, float]
    defaults: Mapping[str, Any]


def _degrees(low: float, high: float) -> tuple[float, float]:
    return math.radians(low), math.radians(high)


SCAN_DATASETS: Mapping[str, ScanTraits] = {
    "semantic_kitti": ScanTraits(
        "official",
        "zero",
        SEMANTIC_KITTI_THINGS,
        _degrees(-25, 3),
        {"unknown_labels": "raise"},
    ),
    "nuscenes": ScanTraits(
        "nuscenes_lidarseg",
        "skip",
        tuple(range(10)),
        _degrees(-30, 10),
        {"version": "v1.0-trainval", "num_frames": 1, "frames": "sweeps"},
    ),
    "pandaset": ScanTraits(
        "pandaset", "skip", tuple(range(10)), _degrees(-25, 15), {"sensor": "pandar64"}
    ),
}
"""The datasets by name. The first ten classes of nuScenes-lidarseg, which PandaSet shares, are its things."""


def scan_traits(dataset: str) -> ScanTraits:
    """What is particular to a dataset.

    Raises:
        ValueError: There is no such dataset.
    """
    if dataset not in SCAN_DATASETS:
        raise ValueError(
            f"scan_traits: dataset must be one of {', '.join(get_args(ScanDatasetName))}, got {dataset!r}"
        )
    return SCAN_DATASETS[dataset]


def dataset_keys(dataset: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """The keys that a dataset has and others have not, with their values.

    Args:
        dataset: Its name.
        given: Any of these keys; None stands for the default.

    Returns:
        Every key of the dataset.

    Raises:
        ValueError: There is no such dataset, or a key belongs to another one.
    """
    keys = dict(scan_traits(dataset).defaults)
    for name, value in given.items():
        if value is None:
            continue
        if name not in keys:
            owners = [owner for owner, traits in SCAN_DATASETS.items() if name in traits.defaults]
            raise ValueError(
                f"dataset_keys: data.{name} must not be given for the dataset {dataset!r}, got {value!r}; it belongs "
                f"to {', '.join(owners) or 'no dataset'}. Remove the key, or choose data.dataset."
            )
        keys[name] = value
    return keys


def open_scans(
    dataset: str,
    root: str,
    split: ScanSplit,
    *,
    label_map: str | None = None,
    frame_stride: int = 1,
    unknown_labels: Literal["raise", "ignore"] | None = None,
    version: str | None = None,
    num_frames: int | None = None,
    frames: FrameKind | None = None,
    sensor: Sensor | None = None,
) -> LabelledScans:
    """Open a split of a dataset. A test split has no labels.

    Args:
        dataset: Its name.
        root: Its folder.
        split: Name of a split, or a list of sequences (not of nuScenes).
        label_map: Name of a label map or a YAML file; None: the dataset's own.
        frame_stride: Every n-th scan of each sequence; of nuScenes, of all.
        unknown_labels: SemanticKITTI: what a raw label that the map lacks does, "raise" or "ignore".
        version: nuScenes: the folder of its tables.
        num_frames: nuScenes: clouds a scan. The earlier ones are context, with the time as a fifth column.
        frames: nuScenes: what the earlier clouds are, "sweeps" or "key_frames".
        sensor: PandaSet: "pandar64", "pandargt" or "both".

    Returns:
        The scans; intensity is 0 to 1 in all datasets.

    Raises:
        ValueError: There is no such dataset or split, or a key belongs to another dataset.
    """
    keys = dataset_keys(
        dataset,
        {
            "unknown_labels": unknown_labels,
            "version": version,
            "num_frames": num_frames,
            "frames": frames,
            "sensor": sensor,
        },
    )
    label_map = label_map or scan_traits(dataset).label_map
    if dataset == "nuscenes":
        if not isinstance(split, str):
            raise ValueError(
                f"open_scans: split must be the name of a split of nuScenes, such as 'val', got {list(split)}"
            )
        return NuScenesLidarSeg(
            root,
            split=split,
            labels=None if split.endswith("test") else "lidarseg",
            label_map=label_map,
            frame_stride=frame_stride,
            **keys,
        )
    split = split if isinstance(split, str) else list(split)
    if dataset == "pandaset":
        return PandaSetSegmentation(
            root, split, label_map=label_map, frame_stride=frame_stride, **keys
        )
    return SemanticKITTI(root, split, label_map=label_map, frame_stride=frame_stride, **keys)
