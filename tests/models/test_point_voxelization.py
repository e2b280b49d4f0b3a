"""Points grouped into voxels: against a loop over points, upstream's test vector, limits, empty clouds, bad input."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pointlib.models.point_voxelization import MeanVoxelization, PointGrouping
from tests.models.lidar_branch_inputs import (
    PILLAR_RANGE,
    PILLAR_SIZE,
    hard_voxelize,
    point_clouds,
)

SIZE, BOUNDS = (0.4, 0.5, 0.8), (-2.0, -1.5, -5.0, 2.0, 1.5, 3.0)
NUSCENES_SIZE, NUSCENES_BOUNDS = (0.075, 0.075, 0.2), (-54.0, -54.0, -5.0, 54.0, 54.0, 3.0)


def clouds() -> list[torch.Tensor]:
    return [torch.from_numpy(cloud) for cloud in point_clouds()]


def expected(
    samples: list[torch.Tensor],
    size: tuple[float, ...],
    bounds: tuple[float, ...],
    max_points: int,
    max_voxels: int,
) -> dict[tuple[int, ...], np.ndarray]:
    """Voxel -> the points it keeps, by the published loop."""
    kept = {}
    for sample, cloud in enumerate(samples):
        found = hard_voxelize(cloud.numpy(), size, bounds, max_points, max_voxels)
        for points, coords, count in zip(*found, strict=True):
            kept[(sample, *coords.tolist())] = points[:count]
    return kept


@pytest.mark.parametrize(
    ("max_points", "max_voxels"), [(None, None), (1, None), (3, 40), (2, 1), (None, 25), (3, 10**6)]
)
def test_groups_are_those_of_the_published_loop(
    max_points: int | None, max_voxels: int | None
) -> None:
    samples = clouds()
    groups = PointGrouping(SIZE, BOUNDS, max_points, max_voxels)(samples)
    want = expected(samples, SIZE, BOUNDS, max_points or 10**6, max_voxels or 10**6)
    assert [tuple(row) for row in groups.coords.tolist()] == sorted(want)
    for number, points in enumerate(want[key] for key in sorted(want)):
        got = groups.points[groups.voxel == number]
        assert got.tolist() == points.tolist()  # the same points in the same order
        assert int(groups.counts[number]) == len(points)


def test_mean_of_each_voxel() -> None:
    samples = clouds()
    voxels = MeanVoxelization(SIZE, BOUNDS, 3, 40)(samples, batch_size=2)
    want = expected(samples, SIZE, BOUNDS, 3, 40)
    means = np.stack([want[key].astype(np.float64).mean(0) for key in sorted(want)])
    np.testing.assert_allclose(voxels.feats.numpy(), means, rtol=1e-6, atol=1e-5)
    assert voxels.spatial_shape == (10, 6, 10)
    assert voxels.batch_size == 2


def test_limits_of_training_and_evaluation_differ() -> None:
    voxelize = MeanVoxelization(SIZE, BOUNDS, max_voxels=(5, 7))
    assert len(voxelize(clouds())) == 10
    assert len(voxelize.eval()(clouds())) == 14


def test_upstream_vector(test_data: Path) -> None:
    """mmdetection3d's own test; its coordinates are z, y, x and NumPy's generator is seeded with 0."""
    path = test_data / "vectors" / "mmdetection3d" / "voxel_generator.json"
    case: dict[str, Any] = dict(json.loads(path.read_text())["cases"][0]["values"])
    points = np.random.RandomState(0).uniform(0, 4, (20, 3)).astype(np.float32)
    groups = PointGrouping(
        case["voxel_size"], case["point_cloud_range"], case["max_num_points"], 20000
    )([torch.from_numpy(points)])
    got = dict(zip(map(tuple, groups.coords[:, 1:].tolist()), groups.counts.tolist(), strict=True))
    coords = np.array(case["expected_coors"]["data"])[:, ::-1]
    counts = case["expected_num_points_per_voxel"]["data"]
    assert got == dict(zip(map(tuple, coords.tolist()), counts, strict=True))


def test_coordinates_stay_in_single_precision_under_autocast() -> None:
    generator = torch.Generator().manual_seed(0)
    cloud = torch.rand(4000, 5, generator=generator) * 108 - 54
    voxelize = MeanVoxelization(NUSCENES_SIZE, (-54, -54, -60, 54, 54, 60), 10, 120_000)
    plain = voxelize([cloud])
    with torch.autocast("cpu", torch.bfloat16):
        again = voxelize([cloud])
    assert torch.equal(plain.coords, again.coords)
    assert torch.equal(plain.feats, again.feats)
    low, size = np.float32([-54, -54, -60]), np.float32(NUSCENES_SIZE)
    cells = np.unique(np.floor((cloud[:, :3].numpy() - low) / size).astype(int), axis=0)
    assert plain.coords[:, 1:].tolist() == cells.tolist()
    moved = np.unique(np.floor((cloud[:, :3].half().numpy() - low) / size).astype(int), axis=0)
    assert len(moved) != len(cells) or (moved != cells).any()  # half precision would not do


def test_order_of_points_decides_nothing_but_the_limits() -> None:
    cloud = clouds()[0]
    shuffled = cloud[torch.randperm(len(cloud), generator=torch.Generator().manual_seed(1))]
    dynamic, hard = MeanVoxelization(SIZE, BOUNDS), MeanVoxelization(SIZE, BOUNDS, 2)
    assert torch.equal(dynamic([cloud]).coords, dynamic([shuffled]).coords)
    torch.testing.assert_close(dynamic([cloud]).feats, dynamic([shuffled]).feats)
    assert not torch.allclose(hard([cloud]).feats, hard([shuffled]).feats)
    assert torch.equal(hard([cloud]).feats, hard([cloud.clone()]).feats)


def test_samples_do_not_mix_and_empty_ones_count() -> None:
    samples = clouds()
    voxelize = MeanVoxelization(SIZE, BOUNDS, 3, 40)
    empty = samples[0].new_zeros(0, 5)
    outside = samples[0] + 100
    joined = voxelize([empty, samples[0], outside, samples[1], empty])
    assert joined.batch_size == 5
    assert sorted(set(joined.coords[:, 0].tolist())) == [1, 3]
    alone = [voxelize([cloud]) for cloud in samples]
    assert torch.equal(joined.feats, torch.cat([x.feats for x in alone]))
    assert torch.equal(joined.coords[:, 1:], torch.cat([x.coords[:, 1:] for x in alone]))
    nothing = voxelize([empty, empty])
    assert len(nothing) == 0
    assert nothing.batch_size == 2
    assert nothing.feats.shape == (0, 5)


def test_points_on_the_bounds() -> None:
    cloud = torch.tensor([[-2.0, -1.5, -5.0], [2.0, 0, 0], [0, 1.5, 0], [0, 0, 3.0]])
    assert PointGrouping(SIZE, BOUNDS)([cloud]).coords.tolist() == [[0, 0, 0, 0]]


def test_points_are_left_alone() -> None:
    samples = clouds()
    before = [cloud.clone() for cloud in samples]
    MeanVoxelization(SIZE, BOUNDS, 3, 40)(samples)
    assert all(torch.equal(a, b) for a, b in zip(samples, before, strict=True))


@pytest.mark.parametrize(
    ("points", "error", "message"),
    [
        ([], ValueError, "one cloud a sample"),
        ([torch.zeros(1, 3), torch.zeros(1, 4)], ValueError, "the same for all samples"),
        ([torch.zeros(4)], ValueError, r"must be \(N, C\)"),
        ([torch.zeros(1, 2)], ValueError, "C >= 3"),
        ([torch.zeros(1, 5).half()], TypeError, "Half precision moves points"),
        ([torch.full((1, 4), float("nan"))], ValueError, "must be finite"),
    ],
)
def test_bad_points(points: list[torch.Tensor], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        PointGrouping(SIZE, BOUNDS)(points)


def test_a_cloud_too_few() -> None:
    with pytest.raises(ValueError, match="got 2 for 3"):
        PointGrouping(SIZE, BOUNDS)(clouds(), batch_size=3)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (((0.3, 0.3, 0.3), BOUNDS), "whole number of voxels"),
        (((0.4, 0.5), BOUNDS), "three positive numbers"),
        (((0.4, 0.5, -0.8), BOUNDS), "three positive numbers"),
        ((SIZE, BOUNDS[:5]), "six"),
        ((SIZE, BOUNDS[3:] + BOUNDS[:3]), "whole number of voxels"),
        ((SIZE, BOUNDS, 0), "at least 1"),
        ((SIZE, BOUNDS, 1, (1, 2, 3)), "one number or two"),
        ((PILLAR_SIZE, PILLAR_RANGE, 1, (0, 5)), "at least 1"),
    ],
)
def test_bad_arguments(arguments: tuple[Any, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PointGrouping(*arguments)
