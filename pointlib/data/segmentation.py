"""The training and evaluation pipeline: read a scan, augment it, voxelize it, all repeatable to the bit.

A sample depends on (seed, epoch, index) alone; `pointlib.data.seeded_dataset` sees to that.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, Protocol

import numpy as np

from pointlib.data.mix import (
    SEMANTIC_KITTI_THINGS,
    LaserMix,
    MixTransform,
    PolarMix,
    Transform,
    apply_transforms,
)
from pointlib.data.sample import IGNORE_INDEX, PointCloudSample, VoxelSample
from pointlib.data.seeded_dataset import SeededDataset
from pointlib.data.transforms import (
    RandomFlip,
    RandomJitter,
    RandomPointDrop,
    RandomRotateZ,
    RandomScale,
    RandomTranslate,
)
from pointlib.data.voxelize import VoxelizeSegmentation


class ScanSource(Protocol):
    """What `SegmentationDataset` reads from: SemanticKITTI, or anything with a length and scans by index."""

    def __len__(self) -> int:
        """Number of scans."""

    def __getitem__(self, index: int, /) -> PointCloudSample:
        """Read one scan; raise BadSampleError if it is broken."""


class SegmentationDataset(SeededDataset[VoxelSample]):
    """Scans of a source, augmented and voxelized.

    Indices are `SampleKey(epoch, index)` as `EpochSampler` yields them, or plain integers; see `SeededDataset`.

    Args:
        source: Where scans come from.
        voxelize: Last step, from points to voxels.
        transforms: Augmentation, in order; none for evaluation. `segmentation_transforms` makes the published ones.
        seed: First part of every sample's seed.
        on_bad_sample: What a broken scan does. "raise" stops with its path. "skip" takes another scan in its place,
            index + 1, + 2, ... (the same ones in every run), logs a warning and puts the message into `skipped` of the
            sample and its batch, where the trainer can count it. Use "raise" for evaluation: a scan that stands
            in for another would be scored twice.

    Raises:
        ValueError: If the source is empty or an option does not exist.
    """

    def __init__(
        self,
        source: ScanSource,
        voxelize: VoxelizeSegmentation,
        transforms: Sequence[Transform | MixTransform] = (),
        seed: int = 0,
        on_bad_sample: Literal["raise", "skip"] = "raise",
    ) -> None:
        super().__init__(source, seed, on_bad_sample, unit="scan")
        self.source = source
        self.voxelize = voxelize
        self.transforms = tuple(transforms)

    def __len__(self) -> int:
        return len(self.source)

    def make_sample(self, index: int, epoch: int, rng: np.random.Generator) -> VoxelSample:
        """Read, augment and voxelize one scan."""

        def draw() -> PointCloudSample:
            return self.source[int(rng.integers(len(self.source)))]

        sample = apply_transforms(self.transforms, self.source[index], rng, draw)
        return self.voxelize(sample, rng)

    def without_score(self, sample: VoxelSample) -> VoxelSample:
        """Return the sample with every label ignored."""
        changes = {
            name: None if labels is None else np.full_like(labels, IGNORE_INDEX)
            for name, labels in (("labels", sample.labels), ("point_labels", sample.point_labels))
        }
        return VoxelSample(**{**vars(sample), **changes})


def segmentation_transforms(
    rotation: float = 2 * math.pi,
    scale: float = 0.05,
    flip: float = 0.0,
    jitter: float = 0.0,
    translation: float = 0.0,
    drop: float = 0.0,
    polar_mix: float = 0.0,
    laser_mix: float = 0.0,
    *,
    things: Sequence[int] = SEMANTIC_KITTI_THINGS,
    pitch: tuple[float, float] = (math.radians(-25.0), math.radians(3.0)),
) -> list[Transform | MixTransform]:
    """Make the augmentation of a training run from plain numbers; the defaults are SPVNAS' published ones.

    Args:
        rotation: Turn about z by an angle from U(0, rotation), radians; 0 for none.
        scale: Scale by a factor from U(1 - scale, 1 + scale).
        flip: Probability of mirroring x, and of mirroring y.
        jitter: Standard deviation of each point's own shift in metres, cut off at five times that.
        translation: Standard deviation of the scan's shift on each axis in metres.
        drop: Largest share of points left out.
        polar_mix: Probability of PolarMix.
        laser_mix: Probability of LaserMix. Both mixes come first, on the scans as recorded.
        things: Train ids of the objects that PolarMix pastes; the default is SemanticKITTI's.
        pitch: Lower and upper end of LaserMix' bands, radians; the default is SemanticKITTI's.

    Returns:
        The transforms, in the order mix, drop, flip, rotate, scale, translate, jitter; those that would do nothing are
        left out.
    """
    candidates: list[tuple[float, Transform | MixTransform]] = [
        (laser_mix, LaserMix(laser_mix, min_pitch=pitch[0], max_pitch=pitch[1])),
        (polar_mix, PolarMix(polar_mix, things)),
        (drop, RandomPointDrop(drop)),
        (flip, RandomFlip(flip, flip)),
        (rotation, RandomRotateZ(0.0, rotation)),
        (scale, RandomScale(1.0 - scale, 1.0 + scale)),
        (translation, RandomTranslate((translation,) * 3)),
        (jitter, RandomJitter(jitter, 5 * jitter)),
    ]
    return [transform for amount, transform in candidates if amount > 0]
