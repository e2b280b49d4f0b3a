"""Each transform does what it says, draws from its generator only, and leaves its input alone."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest

from pointlib.data import (
    BadSampleError,
    PointCloudSample,
    PointRangeCrop,
    RandomFlip,
    RandomJitter,
    RandomPointDrop,
    RandomRotateZ,
    RandomScale,
    RandomTranslate,
    Transform,
)

TRANSFORMS: list[Transform] = [
    RandomRotateZ(),
    RandomScale(),
    RandomFlip(),
    RandomTranslate(),
    RandomJitter(),
    RandomPointDrop(),
    PointRangeCrop((-5, -5, -5, 5, 5, 5)),
]
Make = Callable[..., PointCloudSample]


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


@pytest.mark.parametrize("transform", TRANSFORMS, ids=lambda t: type(t).__name__)
def test_repeatable_and_without_side_effects(transform: Transform, make_sample: Make) -> None:
    sample = make_sample()
    before = sample.points.copy()
    one, two = transform(sample, rng(3)), transform(sample, rng(3))
    assert np.array_equal(sample.points, before)
    assert np.array_equal(one.points, two.points)
    assert one.points.dtype == np.float32
    assert one.path == sample.path
    assert one.labels is not None and len(one.labels) == len(one.points)
    assert one.instance is not None and len(one.instance) == len(one.points)
    assert set(one.points[:, 3].tolist()) <= set(sample.points[:, 3].tolist())


def test_rotation_is_a_turn_about_z(make_sample: Make) -> None:
    sample = make_sample()
    quarter = RandomRotateZ(math.pi / 2, math.pi / 2)(sample, rng())
    x, y, z = sample.points[:, :3].T
    assert np.allclose(quarter.points[:, :3], np.stack([-y, x, z], 1), atol=1e-5)
    turned = RandomRotateZ()(sample, rng(5))
    angle = rng(5).uniform(0, 2 * math.pi)
    matrix = np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    assert np.allclose(turned.points[:, :2], sample.points[:, :2] @ matrix.T, atol=1e-4)


def test_scale_is_one_factor_in_range(make_sample: Make) -> None:
    sample = make_sample()
    for seed in range(20):
        ratio = RandomScale(0.95, 1.05)(sample, rng(seed)).points[:, :3] / sample.points[:, :3]
        assert np.allclose(ratio, ratio[0, 0], rtol=1e-5)
        assert 0.95 <= ratio[0, 0] <= 1.05


def test_flip_mirrors_each_axis_on_its_own(make_sample: Make) -> None:
    sample = make_sample()
    seen = set()
    for seed in range(40):
        signs = RandomFlip()(sample, rng(seed)).points[:, :3] / sample.points[:, :3]
        assert (signs == signs[0]).all()
        seen.add(tuple(signs[0].tolist()))
    assert seen == {(a, b, 1.0) for a in (1.0, -1.0) for b in (1.0, -1.0)}
    assert np.array_equal(RandomFlip(0, 0)(sample, rng()).points, sample.points)


def test_translate_shifts_all_points_alike(make_sample: Make) -> None:
    sample = make_sample()
    shift = RandomTranslate((1.0, 0.0, 2.0))(sample, rng()).points - sample.points
    assert np.allclose(shift, shift[0], atol=1e-5)
    assert shift[0, 0] != 0 and shift[0, 1] == 0 and shift[0, 3] == 0


def test_jitter_shifts_points_apart_within_the_clip(make_sample: Make) -> None:
    sample = make_sample(2000, extent=1.0)
    shift = RandomJitter(0.02, 0.03)(sample, rng()).points - sample.points
    assert np.abs(shift[:, :3]).max() <= 0.03 + 1e-6
    assert 0.01 < shift[:, :3].std() < 0.02
    assert not shift[:, 3].any()


def test_drop_keeps_order_and_pairs(make_sample: Make) -> None:
    sample = make_sample(2000)
    dropped = RandomPointDrop(0.5)(sample, rng(1))
    assert 1000 < len(dropped) < 2000
    rows = {row.tobytes(): i for i, row in enumerate(sample.points)}
    kept = [rows[row.tobytes()] for row in dropped.points]
    assert kept == sorted(kept)
    assert sample.labels is not None
    assert np.array_equal(dropped.labels, sample.labels[kept])


def test_crop_is_half_open() -> None:
    points = np.zeros((3, 4), dtype=np.float32)
    points[:, 0] = (-1.0, 0.0, 1.0)
    cropped = PointRangeCrop((-1, -1, -1, 1, 1, 1))(PointCloudSample(points), rng())
    assert cropped.points[:, 0].tolist() == [-1.0, 0.0]


def test_crop_to_nothing_names_the_scan_and_the_range(make_sample: Make) -> None:
    crop = PointRangeCrop((50, 50, 50, 60, 60, 60))
    with pytest.raises(BadSampleError, match=r"scan0 .* \[50\.0, .*60\.0\], got 0 of 200.*metres"):
        crop(make_sample(), rng())


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: RandomRotateZ(1.0, 0.0), "low must be at most high"),
        (lambda: RandomRotateZ(0.0, math.inf), "both finite"),
        (lambda: RandomScale(0.0, 1.0), "low must be positive"),
        (lambda: RandomFlip(1.5), "x_probability must be a probability"),
        (lambda: RandomTranslate((0.1,)), "std must be three"),
        (lambda: RandomJitter(-1.0), "std and clip must be"),
        (lambda: RandomPointDrop(1.0), r"max_ratio must be in \[0, 1\)"),
        (lambda: PointRangeCrop((0, 0, 0, 1, 1)), "3 minima and 3 larger maxima"),
        (lambda: PointRangeCrop((0, 0, 5, 1, 1, 5)), "3 minima and 3 larger maxima"),
    ],
)
def test_wrong_settings_are_refused(make: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()
