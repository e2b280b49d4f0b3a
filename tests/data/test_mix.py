"""PolarMix and LaserMix against their papers' rules, point by point."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest

from pointlib.data import LaserMix, PointCloudSample, PolarMix, RandomChoice, RandomScale
from pointlib.data.mix import apply_transforms, join_samples

Make = Callable[..., PointCloudSample]


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


@pytest.fixture
def pair(make_sample: Make) -> tuple[PointCloudSample, PointCloudSample]:
    """Two scans told apart by their intensity: 0 and 1."""
    one, two = make_sample(400, seed=1), make_sample(300, seed=2)
    one.points[:, 3], two.points[:, 3] = 0.0, 1.0
    return one, two


def rows(sample: PointCloudSample) -> set[tuple[float, ...]]:
    return {tuple(row) for row in sample.points.tolist()}


def test_polar_mix_swaps_a_half_turn(pair: tuple[PointCloudSample, PointCloudSample]) -> None:
    one, two = pair
    mixed = PolarMix(1.0, swap_probability=1.0, paste_probability=0.0)(one, rng(4), lambda: two)
    mine, theirs = (mixed.points[mixed.points[:, 3] == i] for i in (0, 1))
    draws = rng(4)
    draws.random(2)
    start = draws.uniform(-math.pi, 0.0)

    def inside(points: np.ndarray) -> np.ndarray:
        azimuth = np.arctan2(points[:, 1], points[:, 0])
        return (azimuth >= start) & (azimuth < start + math.pi)

    assert not inside(mine).any() and inside(theirs).all()
    assert len(mine) == (~inside(one.points)).sum() and len(theirs) == inside(two.points).sum()


def test_polar_mix_pastes_objects_three_times_around(
    pair: tuple[PointCloudSample, PointCloudSample],
) -> None:
    one, two = pair
    mix = PolarMix(1.0, instance_classes=(0, 5), swap_probability=0.0, paste_probability=1.0)
    mixed = mix(one, rng(), lambda: two)
    assert two.labels is not None and mixed.labels is not None
    objects = np.isin(two.labels, (0, 5))
    count = int(objects.sum())
    assert len(mixed) == 400 + 3 * count
    assert np.array_equal(mixed.points[:400], one.points)
    in_place, once, twice = np.split(mixed.points[400:], 3)
    assert np.array_equal(in_place, two.points[objects])
    for turned, low in ((once, 0.0), (twice, 2 * math.pi / 3)):
        angle = np.arctan2(turned[:, 1], turned[:, 0]) - np.arctan2(in_place[:, 1], in_place[:, 0])
        angle = (
            np.mod(angle - angle[0] + math.pi, 2 * math.pi)
            - math.pi
            + np.mod(angle[0], 2 * math.pi)
        )
        assert np.ptp(angle) < 1e-4 and low <= angle[0] <= low + 2 * math.pi / 3
        assert np.array_equal(turned[:, 2:], in_place[:, 2:])
    assert np.array_equal(mixed.labels[400:], np.tile(two.labels[objects], 3))
    assert mixed.instance is not None and one.instance is not None
    copies = [set(part[part > 0].tolist()) for part in np.split(mixed.instance[400:], 3)]
    assert all(copies) and not set.intersection(*copies)
    assert not (set(one.instance[one.instance > 0].tolist()) & set.union(*copies))


def test_laser_mix_alternates_bands_from_the_top(
    pair: tuple[PointCloudSample, PointCloudSample],
) -> None:
    one, two = pair
    mixed = LaserMix(1.0, num_areas=(4,))(one, rng(), lambda: two)
    edges = np.radians(np.linspace(3.0, -25.0, 5))

    def band(sample: PointCloudSample) -> np.ndarray:
        xyz = sample.points[:, :3]
        pitch = np.arctan2(xyz[:, 2], np.linalg.norm(xyz[:, :2], axis=1))
        return np.searchsorted(
            -edges[1:-1], -pitch, side="right"
        )  # outside counts as the end bands

    want = rows(one.select(band(one) % 2 == 0)) | rows(two.select(band(two) % 2 == 1))
    assert rows(mixed) == want
    assert len(mixed) == len(want)
    assert mixed.path == one.path


def test_laser_mix_draws_the_number_of_bands(
    pair: tuple[PointCloudSample, PointCloudSample],
) -> None:
    one, two = pair
    sizes = {len(LaserMix(1.0)(one, rng(seed), lambda: two)) for seed in range(40)}
    assert len(sizes) == 4  # 3, 4, 5 and 6 bands


@pytest.mark.parametrize("mix", [PolarMix(0.0), LaserMix(0.0)])
def test_probability_zero_reads_no_other_scan(mix: PolarMix | LaserMix, make_sample: Make) -> None:
    def draw() -> PointCloudSample:
        raise AssertionError("no scan is needed")

    sample = make_sample()
    assert mix(sample, rng(), draw) is sample


def test_probability_is_kept(pair: tuple[PointCloudSample, PointCloudSample]) -> None:
    one, two = pair
    changed = sum(LaserMix(0.5)(one, rng(seed), lambda: two) is not one for seed in range(200))
    assert 70 < changed < 130


def test_random_choice_takes_one(pair: tuple[PointCloudSample, PointCloudSample]) -> None:
    one, two = pair
    choice = RandomChoice([LaserMix(1.0), RandomScale(2.0, 2.0)], weights=[1.0, 3.0])
    mixed = [choice(one, rng(seed), lambda: two) for seed in range(200)]
    scaled = sum(np.array_equal(m.points[:, :3], 2 * one.points[:, :3]) for m in mixed)
    assert 120 < scaled < 180
    assert all((m.points[:, 3] == 1).any() for m in mixed if len(m) != 400)


def test_transforms_of_both_kinds_follow_each_other(
    pair: tuple[PointCloudSample, PointCloudSample],
) -> None:
    one, two = pair
    mixed = apply_transforms([LaserMix(1.0, (3,)), RandomScale(2.0, 2.0)], one, rng(), lambda: two)
    plain = LaserMix(1.0, (3,))(one, rng(), lambda: two)
    assert np.allclose(mixed.points[:, :3], 2 * plain.points[:, :3])


def test_scans_without_labels_cannot_be_mixed(make_sample: Make) -> None:
    sample, bare = make_sample(), make_sample(seed=9).replace(labels=None)
    with pytest.raises(ValueError, match="must have labels, got none from scan9"):
        LaserMix(1.0)(sample, rng(), lambda: bare)
    with pytest.raises(ValueError, match="must have labels, got none from scan9"):
        PolarMix(1.0)(sample, rng(), lambda: bare)


def test_join_refuses_other_columns_and_drops_half_known_instances(make_sample: Make) -> None:
    sample = make_sample(5)
    wide = PointCloudSample(np.zeros((2, 5), np.float32), np.zeros(2, np.uint8))
    with pytest.raises(ValueError, match=r"number of columns, got \[4, 5\]"):
        join_samples([sample, wide])
    assert join_samples([sample, sample.replace(instance=None)]).instance is None


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: PolarMix(2.0), "PolarMix: probability must be"),
        (lambda: PolarMix(swap_probability=-1), "swap_probability must be"),
        (lambda: LaserMix(-0.1), "LaserMix: probability must be"),
        (lambda: LaserMix(num_areas=(1,)), "numbers from 2 on"),
        (lambda: LaserMix(min_pitch=1.0), "min_pitch must be below max_pitch"),
        (lambda: RandomChoice([]), "one positive number a transform"),
        (lambda: RandomChoice([RandomScale()], [0.0]), "one positive number a transform"),
    ],
)
def test_wrong_settings_are_refused(make: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()
