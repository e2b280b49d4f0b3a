"""Data sets whose samples depend on (seed, epoch, index) alone, and what stands in for a broken sample.

`numpy.random.default_rng([seed, epoch, index])` is made anew for each sample and hands out every random number. Which
worker makes it, what was made before and where a run was resumed cannot matter.
"""

from __future__ import annotations

import dataclasses
import logging
from abc import ABC, abstractmethod
from collections.abc import Sized
from typing import Any, Literal, TypeVar

import numpy as np
import torch
from torch.utils.data import Dataset

from pointlib.data.sample import BadSampleError
from pointlib.data.sampler import SampleKey

_log = logging.getLogger(__name__)

MAX_REPLACEMENTS = 16
"""Samples tried in place of a bad one before the pipeline gives up, even with `on_bad_sample="skip"`."""

T = TypeVar("T")


class SeededDataset(Dataset[T], ABC):
    """Samples of a source, made ready for a batch, the same in every run.

    Indices are `SampleKey(epoch, index)` as `EpochSampler` yields them, or plain integers, which take the epoch of
    `set_epoch`. Keys carry the epoch into the workers by themselves; the epoch of `set_epoch` lies in shared memory,
    so that persistent workers see it too, from the next sample they start.

    A subclass says how one sample is made (`make_sample`, a dataclass with a field `skipped`) and what takes it out of
    every score (`without_score`).

    Args:
        source: Where samples come from.
        seed: First part of every sample's seed.
        on_bad_sample: What a broken sample does. "raise" stops with its path. "skip" takes another one in its place,
            index + 1, + 2, ... (the same ones in every run), logs a warning and puts the message into `skipped` of the
            sample and its batch, where the trainer can count it. Use "raise" for evaluation: a sample that stands
            in for another would be scored twice.
        unit: What a sample of the source is called in messages.

    Raises:
        ValueError: If the source is empty or an option does not exist.
    """

    def __init__(
        self,
        source: Sized,
        seed: int = 0,
        on_bad_sample: Literal["raise", "skip"] = "raise",
        unit: str = "sample",
    ) -> None:
        name = type(self).__name__
        if len(source) == 0:
            raise ValueError(f"{name}: source must hold at least one {unit}, got none.")
        if on_bad_sample not in ("raise", "skip"):
            raise ValueError(
                f'{name}: on_bad_sample must be "raise" or "skip", got {on_bad_sample!r}.'
            )
        if seed < 0:
            raise ValueError(f"{name}: seed must be at least 0, got {seed}.")
        self.seed = seed
        self.on_bad_sample = on_bad_sample
        self.unit = unit
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()

    @abstractmethod
    def __len__(self) -> int:
        """Number of samples."""

    @abstractmethod
    def make_sample(self, index: int, epoch: int, rng: np.random.Generator) -> T:
        """Make one sample with nothing but these numbers; raise BadSampleError if its source is broken."""

    @abstractmethod
    def without_score(self, sample: T) -> T:
        """Return the sample such that it counts in no score: it only keeps its process in step."""

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch of plain integer indices, in running workers too."""
        if epoch < 0:
            raise ValueError(
                f"{type(self).__name__}.set_epoch: epoch must be at least 0, got {epoch}."
            )
        self._epoch.fill_(epoch)

    def __getitem__(self, key: SampleKey | int) -> T:
        """Make one sample.

        Raises:
            IndexError: If there is no such sample.
            BadSampleError: If it is broken and `on_bad_sample` is "raise", or too many in a row are.
        """
        if not isinstance(key, SampleKey):
            key = SampleKey(int(self._epoch), int(key))
        if not 0 <= key.index < len(self):
            raise IndexError(
                f"{type(self).__name__}: index must be 0..{len(self) - 1}, got {key.index}."
            )
        sample = self._make_or_replace(key)
        return sample if key.counted else self.without_score(sample)

    def _make_or_replace(self, key: SampleKey) -> T:
        skipped: list[str] = []
        for attempt in range(min(MAX_REPLACEMENTS + 1, len(self))):
            index = (key.index + attempt) % len(self)
            extra = (attempt,) if attempt else ()
            rng = np.random.default_rng([self.seed, key.epoch, key.index, *extra])
            try:
                sample: Any = self.make_sample(index, key.epoch, rng)
            except BadSampleError as error:
                if self.on_bad_sample == "raise":
                    raise
                skipped.append(str(error))
                _log.warning("skipped a bad sample: %s", error)
                continue
            replaced: T = dataclasses.replace(sample, skipped=tuple(skipped))
            return replaced
        raise BadSampleError(
            f"{type(self).__name__}: {self.unit}s from index {key.index} on must not all be bad, got {len(skipped)} "
            f"in a row; the first: {skipped[0]} Run `tools/prepare_data.py check` on the data set."
        )
