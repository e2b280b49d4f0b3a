"""Class-balanced sampling: every class has the same share of the samples drawn."""

from __future__ import annotations

import numpy as np
import pytest

from pointlib.data.class_balance import balanced_indices
from tests.data.multi_sensor_scenes import CLASSES, MemorySource, make_scene


def test_every_class_gets_the_same_share() -> None:
    """Cars in all samples, pedestrians in a tenth, barriers in a fiftieth: each draws a third."""
    scenes = []
    for i in range(500):
        labels = [0] + [1] * (i % 10 == 0) + [2, 2] * (i % 50 == 1)
        scenes.append(make_scene(num_boxes=1).replace(box_labels=np.array(labels), token=str(i)))
    source = MemorySource(scenes)
    chosen = balanced_indices(source, seed=5)
    share = (500 + 50 + 10) // 3
    assert chosen.shape == (3 * share,) and chosen.dtype == np.int64
    assert (chosen[share : 2 * share] % 10 == 0).all()
    assert set(chosen[2 * share :]) == set(range(1, 500, 50))
    assert np.array_equal(chosen, balanced_indices(source, seed=5))
    assert not np.array_equal(chosen, balanced_indices(source, seed=6))


def test_classes_that_never_occur_are_left_out(caplog: pytest.LogCaptureFixture) -> None:
    scenes = [make_scene(num_boxes=1).replace(box_labels=np.array([0])) for _ in range(4)]
    assert len(balanced_indices(MemorySource(scenes))) == 4
    assert f"no sample has an object of {CLASSES[1]}, {CLASSES[2]}" in caplog.text
    empty = [scene.replace(box_labels=np.zeros(0, np.int64)) for scene in scenes]
    with pytest.raises(ValueError, match="must have annotated objects, got 4 samples without"):
        balanced_indices(MemorySource(empty))
