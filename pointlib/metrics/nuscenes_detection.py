"""The nuScenes detection score, computed during training: equal to nuscenes-devkit's, without its tables or objects.

Caesar et al., "nuScenes: A multimodal dataset for autonomous driving", CVPR 2020, section 4.1; constants of the
devkit's `detection_cvpr_2019`. `tests/metrics/test_nuscenes_detection.py` compares both.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from pointlib.geometry import wrap_angle
from pointlib.metrics.matching import Floats, Integers, match_centres

CLASS_RANGE = {
    "car": 50.0,
    "truck": 50.0,
    "bus": 50.0,
    "trailer": 50.0,
    "construction_vehicle": 50.0,
    "pedestrian": 40.0,
    "motorcycle": 40.0,
    "bicycle": 40.0,
    "traffic_cone": 30.0,
    "barrier": 30.0,
}
"""Distance from the ego vehicle [m] up to which boxes of each class are scored."""

ATTRIBUTES = (
    "pedestrian.moving",
    "pedestrian.sitting_lying_down",
    "pedestrian.standing",
    "cycle.with_rider",
    "cycle.without_rider",
    "vehicle.moving",
    "vehicle.parked",
    "vehicle.stopped",
)
NO_ATTRIBUTE = -1
DISTANCES = (0.5, 1.0, 2.0, 4.0)
"""Distances [m] at which a detection counts as a hit; AP is the mean over them."""
TP_DISTANCE = 2.0
"""The one at which the errors of hits are measured."""
MIN_RECALL = MIN_PRECISION = 0.1
MAX_BOXES = 500
ERRORS = ("trans_err", "scale_err", "orient_err", "vel_err", "attr_err")
"""Errors of hits [m, 1 - IoU, rad, m/s, 1 - accuracy], the devkit's names."""
SHORT_ERRORS = ("mATE", "mASE", "mAOE", "mAVE", "mAAE")
_RECALLS = np.linspace(0, 1, 101)
_FIRST = round(100 * MIN_RECALL) + 1
_NOT_MEASURED = {
    "traffic_cone": ("orient_err", "vel_err", "attr_err"),
    "barrier": ("vel_err", "attr_err"),
}


@dataclass(frozen=True, eq=False)
class SceneBoxes:
    """Boxes of one sample, true or found, in the global frame.

    Attributes:
        boxes: (K, 9) float64, `pointlib.geometry.BOX_COLUMNS` with velocity (NaN: unknown).
        labels: (K,) int64 index into the metric's class names.
        scores: (K,) float64; of no meaning for true boxes.
        attributes: (K,) int64 index into `ATTRIBUTES`, or -1.
    """

    boxes: Floats
    labels: Integers
    scores: Floats
    attributes: Integers

    def select(self, rows: npt.NDArray[np.bool_]) -> SceneBoxes:
        """Return the boxes of `rows`, (K,) bool."""
        return SceneBoxes(
            self.boxes[rows], self.labels[rows], self.scores[rows], self.attributes[rows]
        )


@dataclass(frozen=True, eq=False)
class NuScenesScores:
    """Scores of one evaluation.

    Attributes:
        nds: nuScenes detection score in [0, 1].
        mean_ap: Mean of `ap` in [0, 1].
        errors: Mean error of hits over the classes that have it, by the names of `ERRORS`.
        ap: (C, 4) average precision of each class at each of `DISTANCES`.
        class_errors: (C, 5) error of each class in the order of `ERRORS`; NaN where it is not measured.
        class_names: C names.
    """

    nds: float
    mean_ap: float
    errors: Mapping[str, float]
    ap: Floats
    class_errors: Floats
    class_names: tuple[str, ...]

    def as_dict(self) -> dict[str, Any]:
        """Plain types, for JSON."""
        classes = {}
        for name, ap, errors in zip(self.class_names, self.ap, self.class_errors, strict=True):
            measured = {k: float(e) for k, e in zip(ERRORS, errors, strict=True) if e == e}
            at = {f"ap@{d}": float(a) for d, a in zip(DISTANCES, ap, strict=True)}
            classes[name] = {"ap": float(ap.mean()), **at, **measured}
        short = dict(zip(SHORT_ERRORS, self.errors.values(), strict=True))
        return {"nds": self.nds, "map": self.mean_ap, **short, "classes": classes}

    def table(self) -> str:
        """A plain-text table: AP in percent at each distance, and the errors."""
        head = [
            "class",
            "AP %",
            *(f"@{d:g} m" for d in DISTANCES),
            "ATE",
            "ASE",
            "AOE",
            "AVE",
            "AAE",
        ]
        width = max(len(name) for name in (*self.class_names, "class"))
        lines = [f"{head[0]:<{width}}" + "".join(f"{title:>8}" for title in head[1:])]
        for name, ap, errors in zip(self.class_names, self.ap, self.class_errors, strict=True):
            cells = [100 * ap.mean(), *(100 * ap)]
            shown = [f"{error:8.3f}" if error == error else f"{'-':>8}" for error in errors]
            lines.append(f"{name:<{width}}" + "".join(f"{c:8.2f}" for c in cells) + "".join(shown))
        mean = [100 * self.mean_ap, *(100 * self.ap.mean(0))]
        tail = "".join(f"{error:8.3f}" for error in self.errors.values())
        lines.append(f"{'mean':<{width}}" + "".join(f"{c:8.2f}" for c in mean) + tail)
        lines.append(f"NDS {100 * self.nds:.2f}   mAP {100 * self.mean_ap:.2f}")
        return "\n".join(lines)


@dataclass(eq=False)
class NuScenesDetectionMetric:
    """Collects samples and scores them; `merge` joins what several processes collected.

    Args:
        class_names: Name of each class. What nuScenes treats differently by name (range, what is measured) follows
            its own names; other names are scored up to 50 m with every error.
    """

    class_names: tuple[str, ...] = tuple(CLASS_RANGE)
    truth: list[SceneBoxes] = field(default_factory=list)
    found: list[SceneBoxes] = field(default_factory=list)

    def update(
        self,
        truth: SceneBoxes,
        found: SceneBoxes,
        ego_position: Sequence[float] | Floats,
        num_points: Integers | None = None,
        bicycle_racks: Floats | None = None,
    ) -> None:
        """Add one sample, without the boxes that are not scored.

        Args:
            truth: The true boxes.
            found: The detections, at most 500.
            ego_position: (3,) or (2,) of the vehicle in the global frame [m].
            num_points: (M,) LiDAR and radar returns of the true boxes; those without any are not scored. None: all are.
            bicycle_racks: (R, 7) boxes in the global frame; bicycles and motorcycles in them are not scored.

        Raises:
            ValueError: If there are too many detections, or a score or size is not a usable number.
        """
        name = "NuScenesDetectionMetric.update"
        if len(found.scores) > MAX_BOXES:
            raise ValueError(
                f"{name}: found must be at most {MAX_BOXES} boxes, got {len(found.scores)}; keep the best"
            )
        if not np.isfinite(found.scores).all() or not (found.boxes[:, 3:6] > 0).all():
            raise ValueError(f"{name}: found must have finite scores and positive sizes")
        if num_points is not None:
            truth = truth.select(num_points != 0)
        racks = np.zeros((0, 7)) if bicycle_racks is None else bicycle_racks
        kept = [self._scored(boxes, np.asarray(ego_position), racks) for boxes in (truth, found)]
        self.truth.append(kept[0])
        self.found.append(kept[1])

    def merge(self, other: NuScenesDetectionMetric) -> None:
        """Add the samples that another process collected."""
        self.truth += other.truth
        self.found += other.found

    def _scored(self, scene: SceneBoxes, ego: Floats, racks: Floats) -> SceneBoxes:
        """The boxes within their class' range and outside bicycle racks."""
        away = scene.boxes[:, :2] - ego[:2]
        limits = np.array([CLASS_RANGE.get(name, 50.0) for name in self.class_names])
        rows = np.sqrt((away * away).sum(1)) < limits[scene.labels]
        cycles = [i for i, n in enumerate(self.class_names) if n in ("bicycle", "motorcycle")]
        for rack in racks:
            offset = scene.boxes[:, :3] - rack[:3]
            cos, sin = np.cos(rack[6]), np.sin(rack[6])
            local = np.stack(
                [
                    offset[:, 0] * cos + offset[:, 1] * sin,
                    offset[:, 1] * cos - offset[:, 0] * sin,
                    offset[:, 2],
                ],
                1,
            )
            inside = (np.abs(local) <= rack[3:6] / 2).all(1)
            rows &= ~(inside & np.isin(scene.labels, cycles))
        return scene.select(rows)

    def compute(self) -> NuScenesScores:
        """Score everything added so far.

        Raises:
            ValueError: If nothing was added.
        """
        if not self.truth:
            raise ValueError("NuScenesDetectionMetric.compute: there must be samples, got none")
        ap = np.zeros((len(self.class_names), len(DISTANCES)))
        errors = np.full((len(self.class_names), len(ERRORS)), np.nan)
        truth, truth_scene = _join(self.truth)
        found, found_scene = _join(self.found)
        for label, name in enumerate(self.class_names):
            mine, theirs = truth.labels == label, found.labels == label
            curves = [
                _Curves.of(
                    truth.select(mine), truth_scene[mine], found.select(theirs), found_scene[theirs],
                    distance, period=np.pi if name == "barrier" else 2 * np.pi,
                )
                for distance in DISTANCES
            ]  # fmt: skip
            ap[label] = [curve.average_precision() for curve in curves]
            at_tp = curves[DISTANCES.index(TP_DISTANCE)]
            for column, error in enumerate(ERRORS):
                if error not in _NOT_MEASURED.get(name, ()):
                    errors[label, column] = at_tp.mean_error(column)
        measured = [e[e == e] for e in errors.T]
        means = {k: float(e.mean()) for k, e in zip(ERRORS, measured, strict=True) if len(e)}
        mean_ap = float(ap.mean())
        hits = sum(max(0.0, 1.0 - error) for error in means.values())
        nds = float((5 * mean_ap + hits) / (5 + len(means)))
        return NuScenesScores(nds, mean_ap, means, ap, errors, tuple(self.class_names))


@dataclass(frozen=True, eq=False)
class _Curves:
    """Precision, confidence and errors of one class at 101 recalls.

    Attributes:
        precision: (101,).
        confidence: (101,) score at which each recall is reached, 0 where it is not.
        errors: (101, 5) mean error of the hits up to there.
    """

    precision: Floats
    confidence: Floats
    errors: Floats

    @classmethod
    def of(
        cls,
        truth: SceneBoxes,
        truth_scene: Integers,
        found: SceneBoxes,
        found_scene: Integers,
        distance: float,
        period: float,
    ) -> _Curves:
        """Match at one distance and resample."""
        boxes, others = truth.boxes[:, :2], found.boxes[:, :2]
        order, match = match_centres(
            boxes, truth_scene, others, found_scene, found.scores, distance
        )
        hit = match >= 0
        if not hit.any():
            zeros = np.zeros(len(_RECALLS))
            return cls(zeros, zeros, np.ones((len(_RECALLS), len(ERRORS))))
        scores = found.scores[order]
        hits, misses = np.cumsum(hit).astype(float), np.cumsum(~hit).astype(float)
        recall = hits / float(len(boxes))
        precision = np.interp(_RECALLS, recall, hits / (misses + hits), right=0)
        confidence = np.interp(_RECALLS, recall, scores, right=0)
        errors = _errors(truth, match[hit], found, order[hit], period)
        resampled = [
            np.interp(confidence[::-1], scores[hit][::-1], _running_mean(column)[::-1])[::-1]
            for column in errors
        ]
        return cls(precision, confidence, np.stack(resampled, 1))

    def average_precision(self) -> float:
        """Mean of the precision above 0.1 at recalls above 0.1."""
        above = np.maximum(self.precision[_FIRST:] - MIN_PRECISION, 0)
        return float(above.mean()) / (1.0 - MIN_PRECISION)

    def mean_error(self, column: int) -> float:
        """Mean of one error from recall 0.11 to the highest reached; 1 if that is lower."""
        reached = np.flatnonzero(self.confidence)
        last = reached[-1] if len(reached) else 0
        return float(self.errors[_FIRST : last + 1, column].mean()) if last >= _FIRST else 1.0


def _errors(
    truth: SceneBoxes, matched: Integers, found: SceneBoxes, hits: Integers, period: float
) -> list[Floats]:
    """The errors of pairs of boxes, in the order of `ERRORS`; NaN where the truth is not known."""
    a, b = truth.boxes[matched], found.boxes[hits]
    smaller = np.minimum(a[:, 3:6], b[:, 3:6]).prod(1)
    union = a[:, 3:6].prod(1) + b[:, 3:6].prod(1) - smaller
    turn = (a[:, 6] - b[:, 6] + period / 2) % period - period / 2
    known = truth.attributes[matched]
    wrong = (known != found.attributes[hits]).astype(float)
    return [
        np.linalg.norm(b[:, :2] - a[:, :2], axis=1),
        1 - smaller / union,
        np.abs(wrap_angle(turn)),
        np.linalg.norm(b[:, 7:9] - a[:, 7:9], axis=1),
        np.where(known == NO_ATTRIBUTE, np.nan, wrong),
    ]


def _running_mean(values: Floats) -> Floats:
    """Mean up to each value, leaving out NaN; ones if nothing else is there."""
    known = ~np.isnan(values)
    if not known.any():
        return np.ones(len(values))
    counts = np.cumsum(known)
    return np.divide(np.nancumsum(values), counts, out=np.zeros(len(values)), where=counts != 0)


def _join(scenes: Sequence[SceneBoxes]) -> tuple[SceneBoxes, Integers]:
    """All boxes as one, and the number of the scene of each."""
    parts = [
        np.concatenate([getattr(scene, name) for scene in scenes])
        for name in ("boxes", "labels", "scores", "attributes")
    ]
    counts = [len(scene.labels) for scene in scenes]
    return SceneBoxes(*parts), np.repeat(np.arange(len(scenes)), counts)
