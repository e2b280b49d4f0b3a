"""Datasets joined: which sample comes from where, and what does not fit together."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from pointlib.data.joined_sources import JoinedSources
from pointlib.data.nuscenes_info import NuScenesInfo
from pointlib.data.pandaset import PandaSet


class Source:
    """Samples that are their names."""

    def __init__(self, name: str, size: int, classes: str = "ab", cameras: int = 0) -> None:
        self.name, self.size, self.reads = name, size, 0
        self.class_names = tuple(classes)
        self.camera_names = ("camera",) * cameras

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> str:
        self.reads += 1
        return f"{self.name}{index}"

    def class_counts(self, index: int) -> np.ndarray:
        return np.array([index, self.size])


def test_samples_come_in_order() -> None:
    joined = JoinedSources([Source("x", 2), Source("y", 0), Source("z", 3)])  # type: ignore[list-item]
    assert len(joined) == 5
    assert [joined[i] for i in range(5)] == ["x0", "x1", "z0", "z1", "z2"]  # type: ignore[comparison-overlap]
    assert joined.class_counts(3).tolist() == [1, 3]
    for index in (-1, 5):
        with pytest.raises(IndexError, match=r"index must be 0\.\.4"):
            joined[index]


def test_samples_are_read_once_if_they_are_kept() -> None:
    for keep, reads in ((True, 2), (False, 6)):
        source = Source("x", 2)
        joined = JoinedSources([source], keep)  # type: ignore[list-item]
        assert [joined[i % 2] for i in range(6)] == ["x0", "x1"] * 3  # type: ignore[comparison-overlap]
        assert source.reads == reads


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match="got none"):
        JoinedSources([])
    with pytest.raises(ValueError, match="same classes in the same order, got b, a in number 1"):
        JoinedSources([Source("x", 1), Source("y", 1, "ba")])  # type: ignore[list-item]
    with pytest.raises(ValueError, match="same number of cameras, got 6 in number 1 and 0"):
        JoinedSources([Source("x", 1), Source("y", 1, cameras=6)])  # type: ignore[list-item]


def test_pandaset_and_nuscenes_fit(test_data: Path) -> None:
    info = test_data / "nuscenes/scene0061_kf0/info.json"
    joined = JoinedSources(
        [PandaSet(test_data / "pandaset", missing_images="skip"), NuScenesInfo(info, num_sweeps=1)]
    )
    assert [joined[i].token[:6] for i in range(3)] == ["002/00", "002/04", "ca9a28"]
    assert len(joined[2].cameras) == len(joined[0].cameras) == len(joined.camera_names) == 6
