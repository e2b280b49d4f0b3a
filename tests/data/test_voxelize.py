"""Voxels against a literal retelling of the published pipeline, and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from pointlib.data import BadSampleError, PointCloudSample, SemanticKITTI, VoxelizeSegmentation
from pointlib.data.voxelize import MAX_AXIS_VOXELS, unique_voxels


def rng() -> np.random.Generator:
    return np.random.default_rng(0)


def published(points: np.ndarray, voxel_size: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Integer voxels, first point of each and inverse, as SPVNAS takes them, by np.unique over rows."""
    voxels = np.round(points[:, :3] / voxel_size).astype(np.int32)
    voxels -= voxels.min(0, keepdims=True)
    _, first, inverse = np.unique(voxels, axis=0, return_index=True, return_inverse=True)
    return voxels, first, inverse.reshape(-1)


@pytest.mark.parametrize("voxel_size", [0.05, 0.3, 7.0])
def test_equals_the_published_pipeline(
    make_sample: Callable[..., PointCloudSample], voxel_size: float
) -> None:
    sample = make_sample(3000, extent=3.0)
    got = VoxelizeSegmentation(voxel_size)(sample, rng())
    voxels, first, inverse = published(sample.points, voxel_size)
    assert np.array_equal(got.coords, voxels[first])
    assert np.array_equal(got.feats, sample.points[first])
    assert np.array_equal(got.labels, sample.labels[first])
    assert np.array_equal(got.inverse, inverse)
    assert np.array_equal(got.point_labels, sample.labels)


def test_equals_the_published_pipeline_on_a_real_scan(test_data: Path) -> None:
    sample = SemanticKITTI(test_data / "semantickitti", ["00"])[0]
    got = VoxelizeSegmentation(0.05)(sample, rng())
    voxels, first, inverse = published(sample.points, 0.05)
    assert len(got.coords) == 91_852
    assert np.array_equal(got.coords, voxels[first])
    assert np.array_equal(got.feats, sample.points[first])
    assert np.array_equal(got.inverse, inverse)


@given(
    hnp.arrays(
        np.int32,
        st.tuples(st.integers(1, 40), st.just(3)),
        elements=st.one_of(st.integers(0, 3), st.integers(0, MAX_AXIS_VOXELS - 1)),
    )
)
def test_unique_voxels_against_np_unique(voxels: np.ndarray) -> None:
    first, inverse = unique_voxels(voxels)
    _, want_first, want_inverse = np.unique(voxels, axis=0, return_index=True, return_inverse=True)
    assert np.array_equal(first, want_first)
    assert np.array_equal(inverse, want_inverse.reshape(-1))


def test_wide_keys_leave_no_room_for_the_row() -> None:
    top = MAX_AXIS_VOXELS - 1
    voxels = np.array([[top] * 3, [0, 0, 0], [top] * 3, [0, 0, top]] * 4, dtype=np.int32)
    first, inverse = unique_voxels(voxels)  # 60 bits of voxel + 4 of row
    assert first.tolist() == [1, 3, 0]
    assert inverse.tolist() == [2, 0, 2, 1] * 4


def test_cap_draws_a_subset_in_order(make_sample: Callable[..., PointCloudSample]) -> None:
    sample = make_sample(500)
    whole = VoxelizeSegmentation(0.5)(sample, rng())
    capped = VoxelizeSegmentation(0.5, max_voxels=100)(sample, rng())
    again = VoxelizeSegmentation(0.5, max_voxels=100)(sample, rng())
    other = VoxelizeSegmentation(0.5, max_voxels=100)(sample, np.random.default_rng(1))
    assert len(capped.coords) == 100 < len(whole.coords)
    assert np.array_equal(capped.coords, again.coords)
    assert not np.array_equal(capped.coords, other.coords)
    assert np.array_equal(capped.coords, np.unique(capped.coords, axis=0))
    assert {tuple(c) for c in capped.coords} < {tuple(c) for c in whole.coords}
    kept = capped.inverse >= 0
    assert np.array_equal(capped.coords[capped.inverse[kept]], whole.coords[whole.inverse[kept]])
    assert set(capped.inverse[kept]) == set(range(100))


def test_a_cap_that_is_not_reached_changes_nothing(
    make_sample: Callable[..., PointCloudSample],
) -> None:
    sample = make_sample(50)
    whole = VoxelizeSegmentation(0.5)(sample, rng())
    capped = VoxelizeSegmentation(0.5, max_voxels=len(whole.coords))(sample, rng())
    assert np.array_equal(whole.inverse, capped.inverse)


def test_one_point_and_many_equal_points() -> None:
    for count in (1, 5):
        got = VoxelizeSegmentation(0.05)(
            PointCloudSample(np.full((count, 4), 3.7, dtype=np.float32)), rng()
        )
        assert got.coords.tolist() == [[0, 0, 0]]
        assert got.inverse.tolist() == [0] * count
        assert got.labels is None


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ([np.nan, 0, 0, 0], "finite, got 1 with NaN"),
        ([0, np.inf, 0, 0], "finite, got 1 with NaN or Inf"),
        ([1e6, 0, 0, 0], r"span at most 1048576 voxels .* 1e\+06, .* Crop them"),
        ([3e38, 0, 0, 0], "finite|span"),
    ],
)
def test_bad_coordinates_are_refused_with_the_path(row: list[float], message: str) -> None:
    points = np.zeros((4, 4), dtype=np.float32)
    points[2] = row
    with pytest.raises(BadSampleError, match=message) as error:
        VoxelizeSegmentation(0.05)(PointCloudSample(points, path="dir/7.bin"), rng())
    assert "dir/7.bin" in str(error.value)


def test_far_from_the_origin_is_refused_rather_than_wrapped() -> None:
    points = np.full((2, 4), 3e9, dtype=np.float32)
    with pytest.raises(BadSampleError, match="near the origin"):
        VoxelizeSegmentation(1.0)(PointCloudSample(points), rng())


def test_no_point_is_refused() -> None:
    empty = PointCloudSample(np.zeros((0, 4), dtype=np.float32), path="dir/7.bin")
    with pytest.raises(BadSampleError, match=r"dir/7\.bin must have at least one point, got 0"):
        VoxelizeSegmentation(0.05)(empty, rng())


@pytest.mark.parametrize(
    "arguments", [{"voxel_size": 0.0}, {"voxel_size": float("nan")}, {"max_voxels": 0}]
)
def test_wrong_settings_are_refused(arguments: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=f"{next(iter(arguments))} must be"):
        VoxelizeSegmentation(**arguments)  # type: ignore[arg-type]
