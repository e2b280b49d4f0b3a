"""Samples refuse wrong arrays; batches index every raw point's voxel."""

from __future__ import annotations

import pickle
from collections.abc import Callable

import numpy as np
import pytest
import torch

from pointlib.data import (
    BadSampleError,
    PointCloudSample,
    VoxelizeSegmentation,
    VoxelSample,
    collate_segmentation,
)

POINTS = np.zeros((3, 4), dtype=np.float32)
RNG = np.random.default_rng(0)


@pytest.mark.parametrize(
    ("fields", "error", "message"),
    [
        (
            {"points": POINTS.astype(np.float64)},
            TypeError,
            r"points must be .* float32, got float64",
        ),
        ({"points": [[0.0] * 4]}, TypeError, "points must be .* got list"),
        ({"points": POINTS[:, :3]}, ValueError, r"points must be \(N, 4 or more\).*got \(3, 3\)"),
        ({"points": POINTS[0]}, ValueError, "points must be"),
        ({"labels": np.zeros(3, np.int64)}, TypeError, "labels must be .* uint8, got int64"),
        ({"labels": np.zeros(2, np.uint8)}, BadSampleError, r"labels .* each of the 3 .* a\.bin"),
        ({"instance": np.zeros(3, np.uint16)}, TypeError, "instance must be .* int32, got uint16"),
    ],
)
def test_wrong_dtype_or_shape_is_refused(
    fields: dict[str, object], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        PointCloudSample(**{"points": POINTS, "path": "a.bin", **fields})  # type: ignore[arg-type]


def test_select_by_mask_and_by_rows_agree(make_sample: Callable[..., PointCloudSample]) -> None:
    sample = make_sample(20)
    mask = np.arange(20) % 3 == 0
    by_mask, by_rows = sample.select(mask), sample.select(np.flatnonzero(mask))
    for one, two in zip(vars(by_mask).values(), vars(by_rows).values(), strict=True):
        assert np.array_equal(one, two)
    assert np.array_equal(by_mask.points, sample.points[mask])


def voxelized(make_sample: Callable[..., PointCloudSample], *sizes: int) -> list[VoxelSample]:
    voxelize = VoxelizeSegmentation(0.5)
    return [voxelize(make_sample(n, 2.0, seed=n), RNG) for n in sizes]


def test_batch_indexes_the_voxel_of_every_raw_point(
    make_sample: Callable[..., PointCloudSample],
) -> None:
    sizes = (300, 1, 200)
    parts = voxelized(make_sample, *sizes)
    batch = collate_segmentation(parts)
    assert len(batch) == batch.voxels.batch_size == 3
    assert batch.voxels.coords.dtype == torch.int32
    assert batch.inverse.dtype == batch.point_batch.dtype == torch.int64
    assert torch.bincount(batch.point_batch).tolist() == list(sizes)
    assert torch.equal(batch.voxels.coords[batch.inverse, 0].long(), batch.point_batch)
    voxel_of = torch.cat(
        [torch.from_numpy(p.coords[p.inverse]).long() for p in parts]
    )  # per-scan oracle
    assert torch.equal(batch.voxels.coords[batch.inverse, 1:].long(), voxel_of)
    assert batch.labels is not None and batch.point_labels is not None
    assert batch.labels.dtype == torch.int64 and len(batch.labels) == len(batch.voxels)
    assert len(batch.point_labels) == sum(sizes)
    assert batch.paths == ("scan300", "scan1", "scan200")


def test_points_without_a_voxel_stay_minus_one(
    make_sample: Callable[..., PointCloudSample],
) -> None:
    voxelize = VoxelizeSegmentation(0.5, max_voxels=10)
    batch = collate_segmentation([voxelize(make_sample(seed=i), RNG) for i in range(2)])
    assert len(batch.voxels) == 20
    for i in range(2):
        rows = batch.inverse[batch.point_batch == i]
        assert rows.min() == -1
        assert set(rows[rows >= 0].tolist()) == set(range(10 * i, 10 * i + 10))


def test_batch_without_labels(make_sample: Callable[..., PointCloudSample]) -> None:
    voxelize = VoxelizeSegmentation(0.5)
    parts = [voxelize(make_sample(50).replace(labels=None), RNG)]
    batch = collate_segmentation(parts)
    assert batch.labels is None and batch.point_labels is None


def test_collate_refuses_what_it_cannot_join(
    make_sample: Callable[..., PointCloudSample],
) -> None:
    voxelize = VoxelizeSegmentation(0.5)
    with pytest.raises(ValueError, match="at least one sample, got none"):
        collate_segmentation([])
    with pytest.raises(TypeError, match="must be VoxelSample, got PointCloudSample"):
        collate_segmentation([make_sample()])  # type: ignore[list-item]
    mixed = [
        voxelize(make_sample().replace(labels=labels), RNG)
        for labels in (None, make_sample().labels)
    ]
    with pytest.raises(ValueError, match="got 1 of 2 with labels"):
        collate_segmentation(mixed)


def test_batch_moves_and_travels_between_processes(
    make_sample: Callable[..., PointCloudSample],
) -> None:
    batch = collate_segmentation(voxelized(make_sample, 30, 20))
    for other in (batch.to("cpu"), pickle.loads(pickle.dumps(batch))):
        assert torch.equal(other.voxels.feats, batch.voxels.feats)
        assert torch.equal(other.voxels.coords, batch.voxels.coords)
        assert torch.equal(other.inverse, batch.inverse)
        assert other.paths == batch.paths and other.voxels.batch_size == 2


@pytest.mark.gpu
def test_pinned_batch_moves_to_the_device(make_sample: Callable[..., PointCloudSample]) -> None:
    batch = collate_segmentation(voxelized(make_sample, 30, 20)).pin_memory()
    assert batch.inverse.is_pinned() and batch.voxels.feats.is_pinned()
    moved = batch.to("cuda", non_blocking=True)
    torch.cuda.synchronize()
    assert moved.voxels.coords.is_cuda and moved.labels is not None and moved.labels.is_cuda
    assert torch.equal(moved.voxels.feats.cpu(), batch.voxels.feats)
