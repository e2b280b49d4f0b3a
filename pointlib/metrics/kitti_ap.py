"""The average precision of KITTI's object benchmark: 2D, bird's eye, 3D and orientation, at 40 and at 11 recalls.

Geiger et al., "Are we ready for autonomous driving?", CVPR 2012, section 3; 40 recalls after Simonelli et al.,
"Disentangling monocular 3D object detection", ICCV 2019. What counts, what is ignored and how boxes are matched follow
the benchmark's C++ evaluator, as OpenPCDet's and mmdetection3d's Python versions of it do.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch

from pointlib.metrics.kitti_matching import count_matches, matched_scores
from pointlib.ops.boxes import box_iou_3d, box_iou_bev

Floats = npt.NDArray[np.float64]

DIFFICULTIES = ("easy", "moderate", "hard")
METRICS = ("bbox", "bev", "3d", "aos")

MIN_OVERLAPS: Mapping[str, tuple[float, float, float]] = {
    "Car": (0.7, 0.7, 0.7),
    "Pedestrian": (0.5, 0.5, 0.5),
    "Cyclist": (0.5, 0.5, 0.5),
    "Van": (0.7, 0.7, 0.7),
    "Truck": (0.7, 0.7, 0.7),
    "Person_sitting": (0.5, 0.5, 0.5),
}
"""Overlap that a match must exceed, in the image, in bird's eye and in 3D: the benchmark's."""

LOOSE_MIN_OVERLAPS: Mapping[str, tuple[float, float, float]] = {
    "Car": (0.7, 0.5, 0.5),
    "Pedestrian": (0.5, 0.25, 0.25),
    "Cyclist": (0.5, 0.25, 0.25),
    "Van": (0.7, 0.5, 0.5),
    "Truck": (0.5, 0.5, 0.5),
    "Person_sitting": (0.5, 0.25, 0.25),
}
"""The second table that papers give beside it."""

_MIN_HEIGHT = (40, 25, 25)  # pixels
_MAX_OCCLUSION = (0, 1, 2)
_MAX_TRUNCATION = (0.15, 0.3, 0.5)
_NEIGHBOURS = {"Car": "van", "Pedestrian": "person_sitting"}  # neither right nor wrong
_RECALLS = 41
_NO_ALPHA = -10.0


class KittiAnnotations(Protocol):
    """Objects of one image, true or found: `pointlib.data.kitti_labels.KittiObjects` is one.

    Attributes:
        names: (M,) KITTI's types.
        truncated: (M,) share outside the image.
        occluded: (M,) 0 visible, 1 partly, 2 largely occluded, 3 unknown.
        alpha: (M,) angle of observation [rad]; -10 for none.
        bbox: (M, 4) left, top, right, bottom [pixels].
        size_hwl: (M, 3) height, width, length [m].
        location: (M, 3) bottom centre in the rectified camera frame [m].
        rotation_y: (M,) [rad].
        scores: (M,) of found objects; None for the truth.
    """

    @property
    def names(self) -> npt.NDArray[Any]: ...
    @property
    def truncated(self) -> Floats: ...
    @property
    def occluded(self) -> npt.NDArray[np.int64]: ...
    @property
    def alpha(self) -> Floats: ...
    @property
    def bbox(self) -> Floats: ...
    @property
    def size_hwl(self) -> Floats: ...
    @property
    def location(self) -> Floats: ...
    @property
    def rotation_y(self) -> Floats: ...
    @property
    def scores(self) -> Floats | None: ...


@dataclass(frozen=True, eq=False)
class KittiScores:
    """Scores of one evaluation.

    Attributes:
        class_names: C names.
        ap40: (C, 4, 3) percent, by class, `METRICS` and `DIFFICULTIES`: mean precision at recalls 1/40 .. 40/40.
        ap11: (C, 4, 3) percent: mean precision at recalls 0, 1/10 .. 1.
        precision: (C, 4, 3, 41) in [0, 1] at recalls 0, 1/40 .. 1; orientation similarity for "aos".
        counted: (C, 3) true objects that must be found, by difficulty. Without any, AP is 0, as in the reference.
    """

    class_names: tuple[str, ...]
    ap40: Floats
    ap11: Floats
    precision: Floats
    counted: npt.NDArray[np.int64]

    def as_dict(self) -> dict[str, float]:
        """Such as "Car/3d_moderate_ap40" -> percent, for a logger or JSON."""
        return {
            f"{name}/{metric}_{difficulty}_{points}": float(values[c, m, d])
            for points, values in (("ap40", self.ap40), ("ap11", self.ap11))
            for c, name in enumerate(self.class_names)
            for m, metric in enumerate(METRICS)
            for d, difficulty in enumerate(DIFFICULTIES)
        }

    def table(self) -> str:
        """A plain-text table of AP at 40 recalls: a row for each class and metric, a column for each difficulty."""
        lines = [f"{'AP40 %':<24}" + "".join(f"{name:>10}" for name in DIFFICULTIES)]
        for c, name in enumerate(self.class_names):
            for m, metric in enumerate(METRICS):
                numbers = "".join(f"{value:>10.2f}" for value in self.ap40[c, m])
                lines.append(f"{name + ' ' + metric:<24}{numbers}")
        return "\n".join(lines)


def kitti_ap(
    truths: Sequence[KittiAnnotations],
    predictions: Sequence[KittiAnnotations],
    class_names: Sequence[str] = ("Car", "Pedestrian", "Cyclist"),
    min_overlaps: Mapping[str, tuple[float, float, float]] = MIN_OVERLAPS,
) -> KittiScores:
    """Score detections as KITTI's object benchmark does.

    An object counts at a difficulty if it is large, visible and whole enough for it. Matches with others of its class,
    with vans (for cars) and with sitting persons (for pedestrians) are neither right nor wrong; nor, in the image,
    are detections of which a share above the minimum overlap lies in a "DontCare" region.

    Args:
        truths: For each image its true objects, "DontCare" among them.
        predictions: For each image, in the same order, the objects found, with scores. Their 2D boxes decide what is
            too small to count, in every metric.
        class_names: What to score.
        min_overlaps: For each class the overlap that a match must exceed in the image, in bird's eye and in 3D;
            `LOOSE_MIN_OVERLAPS` is the other usual table.

    Returns:
        The scores. Orientation is 0 if no prediction has an alpha.

    Raises:
        ValueError: If the lengths differ, predictions have no scores, or a class has no overlap.
    """
    _check(truths, predictions, class_names, min_overlaps)
    with_aos = any((p.alpha != _NO_ALPHA).any() for p in predictions)
    overlaps = [_overlaps(truths, predictions, metric) for metric in range(3)]
    shape = (len(class_names), len(METRICS), len(DIFFICULTIES))
    precision = np.zeros((*shape, _RECALLS))
    counted = np.zeros((len(class_names), len(DIFFICULTIES)), dtype=np.int64)
    for c, name in enumerate(class_names):
        for d in range(len(DIFFICULTIES)):
            frames = _Frames.of(truths, predictions, name, d)
            counted[c, d] = np.count_nonzero(frames.truth_state == 0)
            for m in range(3):
                curve = frames.curve(overlaps[m], min_overlaps[name][m], in_image=m == 0)
                precision[c, m, d] = curve[0]
                if m == 0 and with_aos:
                    precision[c, METRICS.index("aos"), d] = curve[1]
    return KittiScores(
        class_names=tuple(class_names),
        ap40=100 * precision[..., 1:].mean(-1),
        ap11=100 * precision[..., ::4].mean(-1),
        precision=precision,
        counted=counted,
    )


@dataclass(frozen=True, eq=False)
class _Frames:
    """All images joined, seen by one class at one difficulty.

    States: 0 counts, 1 may be matched but does not count, -1 does not exist.
    """

    truth_starts: npt.NDArray[np.int64]
    found_starts: npt.NDArray[np.int64]
    truth_state: npt.NDArray[np.int8]
    found_state: npt.NDArray[np.int8]
    scores: Floats
    truth_alpha: Floats
    found_alpha: Floats
    dont_care: Floats

    @staticmethod
    def of(
        truths: Sequence[KittiAnnotations],
        predictions: Sequence[KittiAnnotations],
        class_name: str,
        difficulty: int,
    ) -> _Frames:
        return _Frames(
            truth_starts=_starts(truths),
            found_starts=_starts(predictions),
            truth_state=_join([_truth_state(t, class_name, difficulty) for t in truths], np.int8),
            found_state=_join(
                [_found_state(p, class_name, difficulty) for p in predictions], np.int8
            ),
            scores=_join([p.scores for p in predictions], np.float64),
            truth_alpha=_join([t.alpha for t in truths], np.float64),
            found_alpha=_join([p.alpha for p in predictions], np.float64),
            dont_care=_join(
                [_in_dont_care(t, p) for t, p in zip(truths, predictions, strict=True)], np.float64
            ),
        )

    def curve(self, overlaps: Floats, min_overlap: float, in_image: bool) -> tuple[Floats, Floats]:
        """(41,) precision and (41,) orientation similarity at the recalls, each the best at this recall or beyond."""
        arguments = (overlaps, self.truth_starts, self.found_starts, self.truth_state, self.found_state,
                     self.scores, min_overlap)  # fmt: skip
        num_counted = int(np.count_nonzero(self.truth_state == 0))
        thresholds = _thresholds(matched_scores(*arguments), num_counted)
        dont_care = self.dont_care if in_image else np.zeros_like(self.dont_care)
        counts = count_matches(
            *arguments, self.truth_alpha, self.found_alpha, dont_care, thresholds
        )
        found = np.maximum(counts[:, 0] + counts[:, 1], 1)
        curves = np.zeros((2, _RECALLS))
        for curve, good in zip(curves, (counts[:, 0], counts[:, 2]), strict=True):
            curve[: len(thresholds)] = np.maximum.accumulate((good / found)[::-1])[::-1]
        return curves[0], curves[1]


def _thresholds(scores: Floats, num_counted: int) -> Floats:
    """Scores at which the recall is nearest to 0, 1/40, ..: at most 41, falling."""
    thresholds: list[float] = []
    recall = 0.0
    ordered = np.sort(scores)[::-1]
    for i, score in enumerate(ordered):
        here = (i + 1) / num_counted
        following = (i + 2) / num_counted if i + 1 < len(ordered) else here
        if following - recall < recall - here and i + 1 < len(ordered):
            continue
        thresholds.append(float(score))
        recall += 1 / (_RECALLS - 1)
    return np.array(thresholds)


def _truth_state(truth: KittiAnnotations, class_name: str, difficulty: int) -> npt.NDArray[np.int8]:
    names = np.char.lower(truth.names.astype(str))
    hard = (
        (truth.occluded > _MAX_OCCLUSION[difficulty])
        | (truth.truncated > _MAX_TRUNCATION[difficulty])
        | (truth.bbox[:, 3] - truth.bbox[:, 1] <= _MIN_HEIGHT[difficulty])
    )
    state = np.full(len(names), -1, dtype=np.int8)
    state[names == class_name.lower()] = 0
    state[(state == 0) & hard] = 1
    state[names == _NEIGHBOURS.get(class_name, "")] = 1
    return state


def _found_state(found: KittiAnnotations, class_name: str, difficulty: int) -> npt.NDArray[np.int8]:
    names = np.char.lower(found.names.astype(str))
    state = np.where(names == class_name.lower(), 0, -1).astype(np.int8)
    # of any class, as in the reference
    state[np.abs(found.bbox[:, 3] - found.bbox[:, 1]) < _MIN_HEIGHT[difficulty]] = 1
    return state


def _in_dont_care(truth: KittiAnnotations, found: KittiAnnotations) -> Floats:
    """(M,) largest share of each found 2D box that one "DontCare" region covers."""
    regions = truth.bbox[truth.names.astype(str) == "DontCare"]
    shared, area, _ = _intersections(found.bbox, regions)
    covered = np.divide(shared, area[:, None], out=np.zeros_like(shared), where=shared > 0)
    return covered.max(1, initial=0.0)


def _overlaps(
    truths: Sequence[KittiAnnotations], predictions: Sequence[KittiAnnotations], metric: int
) -> Floats:
    """Overlap of each true with each found object of the same image, image after image, flat."""
    parts = []
    for truth, found in zip(truths, predictions, strict=True):
        if metric == 0:
            shared, truth_area, found_area = _intersections(truth.bbox, found.bbox)
            joined = truth_area[:, None] + found_area - shared
            part = np.divide(shared, joined, out=np.zeros_like(shared), where=shared > 0)
        else:
            iou = box_iou_bev if metric == 1 else box_iou_3d
            part = iou(_upright(truth), _upright(found)).numpy()
        parts.append(part.reshape(-1))
    return _join(parts, np.float64)


def _intersections(boxes: Floats, others: Floats) -> tuple[Floats, Floats, Floats]:
    """(N, M) shared areas and the (N,) and (M,) areas of image boxes."""
    low = np.maximum(boxes[:, None, :2], others[None, :, :2])
    high = np.minimum(boxes[:, None, 2:], others[None, :, 2:])
    areas = [(b[:, 2] - b[:, 0]) * (b[:, 3] - b[:, 1]) for b in (boxes, others)]
    return np.clip(high - low, 0, None).prod(-1), areas[0], areas[1]


def _upright(objects: KittiAnnotations) -> torch.Tensor:
    """(M, 7) boxes with z up: x is the camera's depth, y its left."""
    height, width, length = objects.size_hwl.T
    x, y, z = objects.location.T
    columns = [z, -x, height / 2 - y, length, width, height, -objects.rotation_y - np.pi / 2]
    return torch.from_numpy(np.stack(columns, axis=1).astype(np.float64))


def _starts(frames: Sequence[KittiAnnotations]) -> npt.NDArray[np.int64]:
    return np.cumsum([0, *(len(frame.names) for frame in frames)])


def _join(parts: Sequence[Any], dtype: type[np.generic]) -> npt.NDArray[Any]:
    return np.concatenate([np.zeros(0, dtype), *parts]).astype(dtype)


def _check(
    truths: Sequence[KittiAnnotations],
    predictions: Sequence[KittiAnnotations],
    class_names: Sequence[str],
    min_overlaps: Mapping[str, tuple[float, float, float]],
) -> None:
    if len(truths) != len(predictions):
        raise ValueError(
            f"kitti_ap: predictions must have an entry for each of the {len(truths)} images, got {len(predictions)}. "
            "Give an empty one for an image in which nothing was found."
        )
    for i, found in enumerate(predictions):
        if found.scores is None or not np.isfinite(found.scores).all():
            raise ValueError(
                f"kitti_ap: predictions must have finite scores, got none or others at {i}."
            )
    missing = [name for name in class_names if name not in min_overlaps]
    if missing:
        raise ValueError(
            f"kitti_ap: min_overlaps must have every class of class_names, got none for {', '.join(missing)}."
        )
