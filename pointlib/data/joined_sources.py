"""Several multi-sensor datasets as one, in the order given, and small ones kept in memory."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate

import numpy as np
import numpy.typing as npt

from pointlib.data.multi_sensor import MultiSensorSample, MultiSensorSource


class JoinedSources:
    """A `MultiSensorSource` of the samples of several.

    Args:
        sources: With the same classes in the same order, and the same number of cameras.
        keep_in_memory: Whether a sample that was read once is kept, in each loader process by itself: for a handful of
            samples that are read hundreds of times. Samples are shared then: who changes an array changes it for all.

    Raises:
        ValueError: If there is no source, or their classes or numbers of cameras differ.
    """

    def __init__(self, sources: Sequence[MultiSensorSource], keep_in_memory: bool = False) -> None:
        if not sources:
            raise ValueError("JoinedSources: sources must hold at least one, got none.")
        self.sources = tuple(sources)
        first = self.sources[0]
        for number, source in enumerate(self.sources):
            if source.class_names != first.class_names:
                raise ValueError(
                    f"JoinedSources: sources must have the same classes in the same order, got "
                    f"{', '.join(source.class_names)} in number {number}, {', '.join(first.class_names)} in number 0."
                )
            if len(source.camera_names) != len(first.camera_names):
                raise ValueError(
                    f"JoinedSources: sources must have the same number of cameras, got {len(source.camera_names)} in "
                    f"number {number} and {len(first.camera_names)} in number 0."
                )
        self._ends = list(accumulate(len(source) for source in self.sources))
        self._kept: dict[int, MultiSensorSample] | None = {} if keep_in_memory else None

    @property
    def class_names(self) -> tuple[str, ...]:
        """Name of each class of boxes."""
        return self.sources[0].class_names

    @property
    def camera_names(self) -> tuple[str, ...]:
        """Those of the first source; other datasets call the cameras at these places by other names."""
        return self.sources[0].camera_names

    def __len__(self) -> int:
        return self._ends[-1]

    def __getitem__(self, index: int) -> MultiSensorSample:
        """Read one sample.

        Raises:
            IndexError: If there is no such sample.
            BadSampleError: If it is broken.
        """
        if self._kept is not None and index in self._kept:
            return self._kept[index]
        source, place = self._at(index)
        sample = source[place]
        if self._kept is not None:
            self._kept[index] = sample
        return sample

    def class_counts(self, index: int) -> npt.NDArray[np.int64]:
        """(num_classes,) boxes of each class in a sample."""
        source, place = self._at(index)
        return source.class_counts(place)

    def _at(self, index: int) -> tuple[MultiSensorSource, int]:
        if not 0 <= index < len(self):
            raise IndexError(f"JoinedSources: index must be 0..{len(self) - 1}, got {index}.")
        number = bisect_right(self._ends, index)
        return self.sources[number], index - (self._ends[number - 1] if number else 0)
