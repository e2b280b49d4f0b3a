"""The training and evaluation pipeline: read a scan, augment it, voxelize it, all repeatable to the bit.

A sample depends on (seed, epoch, index) alone: `numpy.random.default_rng([seed, epoch, index])` is made anew for each
and hands out every random number. Which worker makes it, what was made before and where a run was resumed
cannot matter.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from typing import Literal, Protocol

import numpy as np
import torch
from torch.utils.data import Dataset

from pointlib.data.mix import LaserMix, MixTransform, PolarMix, Transform, apply_transforms
from pointlib.data.sample import IGNORE_INDEX, BadSampleError, PointCloudSample, VoxelSample
from pointlib.data.sampler import SampleKey
from pointlib.data.transforms import (
    RandomFlip,
    RandomJitter,
    RandomPointDrop,
    RandomRotateZ,
    RandomScale,
    RandomTranslate,
)
from pointlib.data.voxelize import VoxelizeSegmentation

_log = logging.getLogger(__name__)

MAX_REPLACEMENTS = 16
"""Scans tried in place of a bad one before the pipeline gives up, even with `on_bad_sample="skip"`."""


class ScanSource(Protocol):
    """What `SegmentationDataset` reads from: SemanticKITTI, or anything with a length and scans by index."""

    def __len__(self) -> int:
        """Number of scans."""

    def __getitem__(self, index: int, /) -> PointCloudSample:
        """Read one scan; raise BadSampleError if it is broken."""


class SegmentationDataset(Dataset[VoxelSample]):
    """Scans of a source, augmented and voxelized.

    Indices are `SampleKey(epoch, index)` as `EpochSampler` yields them, or plain integers, which take the epoch of
    `set_epoch`. Keys carry the epoch into the workers by themselves; the epoch of `set_epoch` lies in shared memory,
    so that persistent workers see it too, from the next sample they start.

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
        if len(source) == 0:
            raise ValueError("SegmentationDataset: source must hold at least one scan, got none.")
        if on_bad_sample not in ("raise", "skip"):
            raise ValueError(
                f'SegmentationDataset: on_bad_sample must be "raise" or "skip", got {on_bad_sample!r}.'
            )
        if seed < 0:
            raise ValueError(f"SegmentationDataset: seed must be at least 0, got {seed}.")
        self.source = source
        self.voxelize = voxelize
        self.transforms = tuple(transforms)
        self.seed = seed
        self.on_bad_sample = on_bad_sample
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()

    def __len__(self) -> int:
        return len(self.source)

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch of plain integer indices, in running workers too."""
        if epoch < 0:
            raise ValueError(
                f"SegmentationDataset.set_epoch: epoch must be at least 0, got {epoch}."
            )
        self._epoch.fill_(epoch)

    def __getitem__(self, key: SampleKey | int) -> VoxelSample:
        """Make one sample.

        Raises:
            IndexError: If there is no such scan.
            BadSampleError: If the scan is broken and `on_bad_sample` is "raise", or too many in a row are.
        """
        if not isinstance(key, SampleKey):
            key = SampleKey(int(self._epoch), int(key))
        if not 0 <= key.index < len(self):
            raise IndexError(
                f"SegmentationDataset: index must be 0..{len(self) - 1}, got {key.index}."
            )
        sample = self._make_or_replace(key)
        return sample if key.counted else _without_score(sample)

    def _make_or_replace(self, key: SampleKey) -> VoxelSample:
        skipped: list[str] = []
        for attempt in range(min(MAX_REPLACEMENTS + 1, len(self))):
            index = (key.index + attempt) % len(self)
            extra = (attempt,) if attempt else ()
            rng = np.random.default_rng([self.seed, key.epoch, key.index, *extra])
            try:
                sample = self._make(index, rng)
            except BadSampleError as error:
                if self.on_bad_sample == "raise":
                    raise
                skipped.append(str(error))
                _log.warning("skipped a bad sample: %s", error)
                continue
            return VoxelSample(**{**vars(sample), "skipped": tuple(skipped)})
        raise BadSampleError(
            f"SegmentationDataset: scans from index {key.index} on must not all be bad, got {len(skipped)} in a "
            f"row; the first: {skipped[0]} Run `tools/prepare_data.py check` on the data set."
        )

    def _make(self, index: int, rng: np.random.Generator) -> VoxelSample:
        def draw() -> PointCloudSample:
            return self.source[int(rng.integers(len(self.source)))]

        sample = apply_transforms(self.transforms, self.source[index], rng, draw)
        return self.voxelize(sample, rng)


def segmentation_transforms(
    rotation: float = 2 * math.pi,
    scale: float = 0.05,
    flip: float = 0.0,
    jitter: float = 0.0,
    translation: float = 0.0,
    drop: float = 0.0,
    polar_mix: float = 0.0,
    laser_mix: float = 0.0,
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

    Returns:
        The transforms, in the order mix, drop, flip, rotate, scale, translate, jitter; those that would do nothing are
        left out.
    """
    candidates: list[tuple[float, Transform | MixTransform]] = [
        (laser_mix, LaserMix(laser_mix)),
        (polar_mix, PolarMix(polar_mix)),
        (drop, RandomPointDrop(drop)),
        (flip, RandomFlip(flip, flip)),
        (rotation, RandomRotateZ(0.0, rotation)),
        (scale, RandomScale(1.0 - scale, 1.0 + scale)),
        (translation, RandomTranslate((translation,) * 3)),
        (jitter, RandomJitter(jitter, 5 * jitter)),
    ]
    return [transform for amount, transform in candidates if amount > 0]


def _without_score(sample: VoxelSample) -> VoxelSample:
    """Return the sample with every label ignored: it only keeps its process in step."""
    changes = {
        name: None if labels is None else np.full_like(labels, IGNORE_INDEX)
        for name, labels in (("labels", sample.labels), ("point_labels", sample.point_labels))
    }
    return VoxelSample(**{**vars(sample), **changes})
