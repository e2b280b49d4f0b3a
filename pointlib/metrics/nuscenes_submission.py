"""From detections in the LiDAR frame to nuScenes' global frame, and to the JSON that its evaluation server takes."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pointlib.files import write_file
from pointlib.geometry import transform_boxes, yaw_rotation
from pointlib.metrics.matching import Floats, Integers
from pointlib.metrics.nuscenes_detection import (
    ATTRIBUTES,
    CLASS_RANGE,
    MAX_BOXES,
    NO_ATTRIBUTE,
    SceneBoxes,
)

MOVING_SPEED = 0.2
"""Speed [m/s] above which an object is said to move."""

_VEHICLES = ("car", "truck", "construction_vehicle", "bus", "trailer")
_CYCLES = ("motorcycle", "bicycle")
_AT_REST = {
    **dict.fromkeys(_VEHICLES, "vehicle.parked"),
    **dict.fromkeys(_CYCLES, "cycle.without_rider"),
    "bus": "vehicle.stopped",
    "pedestrian": "pedestrian.standing",
}
_MOVING = {
    **dict.fromkeys(_VEHICLES, "vehicle.moving"),
    **dict.fromkeys(_CYCLES, "cycle.with_rider"),
    "pedestrian": "pedestrian.moving",
}


def attribute_of(class_name: str, speed: float) -> str:
    """The attribute a detection is given, since networks do not predict any: by class and speed.

    Args:
        class_name: One of nuScenes' ten.
        speed: [m/s].

    Returns:
        One of `ATTRIBUTES`, or "" for barriers, cones and other names.

    Example:
        >>> attribute_of("car", 3.0), attribute_of("bus", 0.0), attribute_of("barrier", 0.0)
        ('vehicle.moving', 'vehicle.stopped', '')
    """
    return (_MOVING if speed > MOVING_SPEED else _AT_REST).get(class_name, "")


def scene_boxes(
    boxes: npt.NDArray[np.floating[Any]],
    labels: Integers,
    lidar2ego: Floats,
    ego2global: Floats,
    class_names: Sequence[str],
    scores: npt.NDArray[np.floating[Any]] | None = None,
    attributes: Integers | None = None,
) -> SceneBoxes:
    """Move boxes to the global frame, as the metric takes them.

    Args:
        boxes: (K, 9) with velocity, or (K, 7), LiDAR frame.
        labels: (K,) int64.
        lidar2ego: (4, 4).
        ego2global: (4, 4).
        class_names: Name of each class.
        scores: (K,); None for true boxes.
        attributes: (K,) index into `ATTRIBUTES`; None: guessed by `attribute_of`.

    Returns:
        SceneBoxes, in float64.
    """
    wide = np.full((len(boxes), 9), np.nan)
    wide[:, : boxes.shape[1]] = boxes
    moved = transform_boxes(wide, np.asarray(ego2global) @ np.asarray(lidar2ego))
    if attributes is None:
        speeds = np.linalg.norm(moved[:, 7:9], axis=1)
        names = [attribute_of(class_names[c], s) for c, s in zip(labels, speeds, strict=True)]
        known = [ATTRIBUTES.index(name) if name else NO_ATTRIBUTE for name in names]
        attributes = np.array(known, dtype=np.int64)
    values = np.ones(len(boxes)) if scores is None else np.asarray(scores, dtype=np.float64)
    return SceneBoxes(moved, np.asarray(labels, dtype=np.int64), values, attributes)


@dataclass(eq=False)
class NuScenesSubmission:
    """Collects the detections of all samples of a split and writes results_nusc.json.

    Attributes:
        class_names: Name of each class of the network; all must be nuScenes' own.
        use_camera: Whether images were an input.
        use_lidar: Whether the LiDAR was.
        results: Boxes of each sample, by its token, as the JSON holds them.

    Raises:
        ValueError: If a class is not one of nuScenes'.
    """

    class_names: tuple[str, ...]
    use_camera: bool
    use_lidar: bool
    results: dict[str, list[dict[str, Any]]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        foreign = [name for name in self.class_names if name not in CLASS_RANGE]
        if foreign:
            raise ValueError(
                f"NuScenesSubmission: class_names must be of {', '.join(CLASS_RANGE)}, got {', '.join(foreign)}"
            )

    def add(
        self,
        token: str,
        boxes: npt.NDArray[np.floating[Any]],
        scores: npt.NDArray[np.floating[Any]],
        labels: Integers,
        lidar2ego: Floats,
        ego2global: Floats,
    ) -> None:
        """Add one sample: its best 500 boxes within the range that its class is scored in.

        Args:
            token: Of the sample.
            boxes: (K, 9), LiDAR frame. NaN velocity, of a network that predicts none, is written as rest: JSON has
                no NaN.
            scores: (K,) in [0, 1].
            labels: (K,) int64.
            lidar2ego: (4, 4).
            ego2global: (4, 4).

        Raises:
            ValueError: If a value is not finite, or the token was added before.
        """
        if token in self.results:
            raise ValueError(f"NuScenesSubmission.add: token must be new, got {token} again")
        boxes = boxes.copy()
        boxes[:, 7:] = np.where(np.isnan(boxes[:, 7:]), 0.0, boxes[:, 7:])
        if not (np.isfinite(boxes).all() and np.isfinite(scores).all()):
            raise ValueError(
                f"NuScenesSubmission.add: boxes and scores must be finite, got others for {token}"
            )
        lidar2ego, ego2global = np.asarray(lidar2ego), np.asarray(ego2global)
        scene = scene_boxes(boxes, labels, lidar2ego, ego2global, self.class_names, scores)
        away = np.linalg.norm(scene.boxes[:, :2] - ego2global[:2, 3], axis=1)
        limits = np.array([CLASS_RANGE[name] for name in self.class_names])[scene.labels]
        order = np.argsort(-scene.scores, kind="stable")
        order = order[(away < limits)[order]][:MAX_BOXES]
        turns = (ego2global @ lidar2ego)[:3, :3] @ yaw_rotation(np.asarray(boxes[:, 6], float))
        quaternions = _quaternions(turns)
        self.results[token] = [
            {
                "sample_token": token,
                "translation": scene.boxes[i, :3].tolist(),
                "size": scene.boxes[i, [4, 3, 5]].tolist(),
                "rotation": quaternions[i].tolist(),
                "velocity": scene.boxes[i, 7:9].tolist(),
                "detection_name": self.class_names[scene.labels[i]],
                "detection_score": float(scene.scores[i]),
                "attribute_name": ATTRIBUTES[scene.attributes[i]]
                if scene.attributes[i] >= 0
                else "",
            }
            for i in order.tolist()
        ]

    def write(self, path: str | os.PathLike[str]) -> Path:
        """Write the file: to a temporary name, then renamed.

        Args:
            path: The JSON file.
        """
        write_submission(path, self.results, self.use_camera, self.use_lidar)
        return Path(path)


def write_submission(
    path: str | os.PathLike[str],
    results: Mapping[str, Sequence[Mapping[str, Any]]],
    use_camera: bool,
    use_lidar: bool,
) -> None:
    """Write boxes that are in the form of the JSON already; see `NuScenesSubmission`."""
    meta = {
        "use_camera": use_camera,
        "use_lidar": use_lidar,
        "use_radar": False,
        "use_map": False,
        "use_external": False,
    }
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    write_file(Path(path), json.dumps({"meta": meta, "results": results}))


def _quaternions(rotations: Floats) -> Floats:
    """(K, 3, 3) rotations as (K, 4) unit quaternions w, x, y, z."""
    from scipy.spatial.transform import Rotation

    if not len(rotations):
        return np.zeros((0, 4))
    return Rotation.from_matrix(rotations).as_quat()[:, [3, 0, 1, 2]]
