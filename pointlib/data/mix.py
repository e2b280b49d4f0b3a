"""Augmentation that mixes two labelled scans: PolarMix and LaserMix.

Called as `(sample, rng, draw)`, where `draw()` returns another scan of the data set, chosen by the same `rng`.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

from pointlib.data.sample import PointCloudSample
from pointlib.data.transforms import rotate_z

Transform = Callable[[PointCloudSample, np.random.Generator], PointCloudSample]
"""An augmentation of one scan."""

DrawSample = Callable[[], PointCloudSample]
"""Returns another scan of the data set."""

SEMANTIC_KITTI_THINGS = (0, 1, 2, 3, 4, 5, 6, 7)
"""Train ids of SemanticKITTI that PolarMix pastes: car to motorcyclist."""


class MixTransform(ABC):
    """A transform that needs a second scan."""

    @abstractmethod
    def __call__(
        self, sample: PointCloudSample, rng: np.random.Generator, draw: DrawSample
    ) -> PointCloudSample:
        """Return the mixed scan."""


class PolarMix(MixTransform):
    """Swap a half turn of azimuth with another scan, and paste its objects three times around.

    With `swap_probability` the half turn that starts at an azimuth from U(-pi, 0) comes from the other scan. With
    `paste_probability` the other scan's points of `instance_classes` are added three times: in place, turned by an
    angle from U(0, 2pi/3), and turned by one from U(2pi/3, 4pi/3).

    Args:
        probability: Probability that the transform does anything.
        instance_classes: Train ids of the objects to paste.
        swap_probability: Probability of the swap.
        paste_probability: Probability of pasting.

    Reference: Xiao et al., "PolarMix", NeurIPS 2022; defaults of OpenMMLab's SemanticKITTI configurations.
    """

    def __init__(
        self,
        probability: float = 0.5,
        instance_classes: Sequence[int] = SEMANTIC_KITTI_THINGS,
        swap_probability: float = 0.5,
        paste_probability: float = 1.0,
    ) -> None:
        for name, value in (
            ("probability", probability),
            ("swap_probability", swap_probability),
            ("paste_probability", paste_probability),
        ):
            if not 0 <= value <= 1:
                raise ValueError(f"PolarMix: {name} must be in [0, 1], got {value}.")
        self.probability = probability
        self.instance_classes = tuple(instance_classes)
        self.swap_probability = swap_probability
        self.paste_probability = paste_probability

    def __call__(
        self, sample: PointCloudSample, rng: np.random.Generator, draw: DrawSample
    ) -> PointCloudSample:
        """Return the mixed scan; its points are those kept, those swapped in, then those pasted."""
        if rng.random() >= self.probability:
            return sample
        other = draw()
        parts = [sample]
        if rng.random() < self.swap_probability:
            start = rng.uniform(-math.pi, 0.0)
            parts = [
                sample.select(~_in_half_turn(sample.points, start)),
                other.select(_in_half_turn(other.points, start)),
            ]
        if rng.random() < self.paste_probability:
            labels = _labels(other, "PolarMix")
            objects = other.select(np.isin(labels, self.instance_classes))
            third = 2 * math.pi / 3
            for angle in (0.0, rng.uniform(0.0, third), rng.uniform(third, 2 * third)):
                parts.append(objects.replace(points=rotate_z(objects.points, angle)))
        return join_samples(parts)


class LaserMix(MixTransform):
    """Cut two scans into bands of pitch and take every second band, from the top, from the other scan.

    Args:
        probability: Probability that the transform does anything.
        num_areas: Numbers of bands to choose from.
        min_pitch: Lower end of the lowest band in radians; points below count as inside it.
        max_pitch: Upper end of the highest band in radians; points above count as inside it.

    Reference: Kong et al., "LaserMix for Semi-Supervised LiDAR Semantic Segmentation", CVPR 2023; defaults (3 to 6
    bands, -25 to 3 degrees) of OpenMMLab's SemanticKITTI configurations.
    """

    def __init__(
        self,
        probability: float = 0.5,
        num_areas: Sequence[int] = (3, 4, 5, 6),
        min_pitch: float = math.radians(-25.0),
        max_pitch: float = math.radians(3.0),
    ) -> None:
        if not 0 <= probability <= 1:
            raise ValueError(f"LaserMix: probability must be in [0, 1], got {probability}.")
        if not num_areas or min(num_areas) < 2:
            raise ValueError(
                f"LaserMix: num_areas must be numbers from 2 on, got {list(num_areas)}."
            )
        if not min_pitch < max_pitch:
            raise ValueError(
                f"LaserMix: min_pitch must be below max_pitch (radians), got {min_pitch} and {max_pitch}."
            )
        self.probability = probability
        self.num_areas = tuple(num_areas)
        self.min_pitch, self.max_pitch = min_pitch, max_pitch

    def __call__(
        self, sample: PointCloudSample, rng: np.random.Generator, draw: DrawSample
    ) -> PointCloudSample:
        """Return the mixed scan; its points are the kept ones of `sample`, then those of the other scan."""
        if rng.random() >= self.probability:
            return sample
        other = draw()
        areas = self.num_areas[int(rng.integers(len(self.num_areas)))]
        mine = self._band(sample.points, areas) % 2 == 0
        theirs = self._band(other.points, areas) % 2 == 1
        return join_samples([sample.select(mine), other.select(theirs)])

    def _band(self, points: npt.NDArray[np.float32], areas: int) -> npt.NDArray[np.int64]:
        """Return (N,) int64, the band of each point, 0 the highest."""
        pitch = np.arctan2(points[:, 2], np.hypot(points[:, 0], points[:, 1]))
        height = (self.max_pitch - self.min_pitch) / areas
        return np.clip(np.floor((self.max_pitch - pitch) / height), 0, areas - 1).astype(np.int64)


class RandomChoice(MixTransform):
    """Apply one of several transforms.

    OpenMMLab's strongest SemanticKITTI recipe mixes every scan, one way or the other:
    `RandomChoice([LaserMix(1.0), PolarMix(1.0)])`.

    Args:
        transforms: Transforms of either kind.
        weights: Chance of each, in any unit; None for equal chances.
    """

    def __init__(
        self,
        transforms: Sequence[Transform | MixTransform],
        weights: Sequence[float] | None = None,
    ) -> None:
        chances = np.ones(len(transforms)) if weights is None else np.asarray(weights, float)
        if not len(transforms) or chances.shape != (len(transforms),) or chances.sum() <= 0:
            raise ValueError(
                "RandomChoice: weights must be one positive number a transform, got "
                f"{chances.tolist()} for {len(transforms)} transforms."
            )
        self.transforms = tuple(transforms)
        self.chances = chances / chances.sum()

    def __call__(
        self, sample: PointCloudSample, rng: np.random.Generator, draw: DrawSample
    ) -> PointCloudSample:
        """Return the scan after the transform that was chosen."""
        chosen = self.transforms[int(rng.choice(len(self.transforms), p=self.chances))]
        return apply_transforms([chosen], sample, rng, draw)


def apply_transforms(
    transforms: Sequence[Transform | MixTransform],
    sample: PointCloudSample,
    rng: np.random.Generator,
    draw: DrawSample,
) -> PointCloudSample:
    """Apply transforms of both kinds one after the other."""
    for transform in transforms:
        if isinstance(transform, MixTransform):
            sample = transform(sample, rng, draw)
        else:
            sample = transform(sample, rng)
    return sample


def join_samples(parts: Sequence[PointCloudSample]) -> PointCloudSample:
    """Put the points of several labelled scans into one, under the path of the first.

    Instance ids are kept apart: those of each part are raised above those before it.

    Raises:
        ValueError: If a part has no labels or another number of columns.
    """
    labels = [_labels(part, "join_samples") for part in parts]
    widths = sorted({part.points.shape[1] for part in parts})
    if len(widths) > 1:
        raise ValueError(f"join_samples: parts must have the same number of columns, got {widths}.")
    return PointCloudSample(
        points=np.concatenate([part.points for part in parts]),
        labels=np.concatenate(labels),
        path=parts[0].path,
        instance=_join_instances([part.instance for part in parts]),
    )


def _join_instances(
    parts: Sequence[npt.NDArray[np.int32] | None],
) -> npt.NDArray[np.int32] | None:
    raised, highest = [], 0
    for part in parts:
        if part is None:
            return None
        raised.append(np.where(part > 0, part + highest, 0).astype(np.int32))
        highest = max(highest, int(raised[-1].max(initial=0)))
    return np.concatenate(raised)


def _in_half_turn(points: npt.NDArray[np.float32], start: float) -> npt.NDArray[np.bool_]:
    """Return (N,) bool, whether the azimuth is in [start, start + pi)."""
    azimuth = np.arctan2(points[:, 1], points[:, 0])
    return (azimuth >= start) & (azimuth < start + math.pi)


def _labels(sample: PointCloudSample, caller: str) -> npt.NDArray[np.uint8]:
    if sample.labels is None:
        raise ValueError(
            f"{caller}: sample must have labels, got none from {sample.path}. Mix scans of the training "
            "split only."
        )
    return sample.labels
