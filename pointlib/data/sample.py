"""What moves through the data pipeline: a point cloud, its voxels, and a batch of voxels.

A dataset yields `PointCloudSample`; transforms turn one into another; `voxelize` makes a `VoxelSample` of it (numpy,
cheap to send between processes); `collate_segmentation` joins those into a `SegmentationBatch` of tensors.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from pointlib.tensor import SparseTensor

IGNORE_INDEX = 255
"""Train id of points that are neither trained on nor scored."""


class BadSampleError(ValueError):
    """A file or scan breaks its contract; the message names it. The pipeline can skip such samples."""


@dataclass(frozen=True, eq=False)
class PointCloudSample:
    """One scan.

    Attributes:
        points: (N, 4 or more) float32, x, y, z in metres in the LiDAR frame (x forward, y left, z up), intensity as the
            dataset stores it (SemanticKITTI: 0..1), then further channels.
        labels: (N,) uint8 train ids with `IGNORE_INDEX`, or None if the scan has no labels.
        path: File the scan was read from; it stands in every message about the scan.
        instance: (N,) int32 instance ids inside the scan, 0 for none, or None.

    Raises:
        TypeError: If an array has another dtype.
        ValueError: If an array has another shape.
    """

    points: npt.NDArray[np.float32]
    labels: npt.NDArray[np.uint8] | None = None
    path: str = "<memory>"
    instance: npt.NDArray[np.int32] | None = None

    def __post_init__(self) -> None:
        _check_array(self.points, "points", np.float32)
        if self.points.ndim != 2 or self.points.shape[1] < 4:
            raise ValueError(
                "PointCloudSample: points must be (N, 4 or more) [x, y, z, intensity, ...], got "
                f"{self.points.shape} from {self.path}. Add a column of zeros if there is no intensity."
            )
        for name, dtype in (("labels", np.uint8), ("instance", np.int32)):
            value = getattr(self, name)
            if value is None:
                continue
            _check_array(value, name, dtype)
            if value.shape != (len(self.points),):
                raise BadSampleError(
                    f"PointCloudSample: {name} must have one entry for each of the "
                    f"{len(self.points)} points, got shape {value.shape} from {self.path}. Check that "
                    "the label file belongs to this scan and was copied completely."
                )

    def __len__(self) -> int:
        return len(self.points)

    def replace(self, **changes: Any) -> PointCloudSample:
        """Return a copy with some fields changed."""
        return dataclasses.replace(self, **changes)

    def select(self, rows: npt.NDArray[np.bool_] | npt.NDArray[np.int64]) -> PointCloudSample:
        """Return the points of `rows`, (N,) bool or (K,) int64, with their labels and instances."""
        return self.replace(
            points=self.points.compress(rows, axis=0)
            if rows.dtype == np.bool_
            else self.points.take(rows, axis=0),
            labels=None if self.labels is None else self.labels[rows],
            instance=None if self.instance is None else self.instance[rows],
        )


@dataclass(frozen=True, eq=False)
class VoxelSample:
    """One scan as voxels, still numpy.

    Attributes:
        coords: (M, 3) int32 voxel indices [x, y, z], unique, smallest 0 on each axis.
        feats: (M, C) float32 features of the voxels.
        labels: (M,) uint8 train ids of the voxels, or None.
        inverse: (N,) int64 voxel of each raw point, -1 for a point whose voxel was left out.
        point_labels: (N,) uint8 train ids of the raw points, or None.
        path: File of the scan.
        skipped: Messages of the bad samples this one stands in for.
    """

    coords: npt.NDArray[np.int32]
    feats: npt.NDArray[np.float32]
    labels: npt.NDArray[np.uint8] | None
    inverse: npt.NDArray[np.int64]
    point_labels: npt.NDArray[np.uint8] | None
    path: str
    skipped: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class SegmentationBatch:
    """Several scans as one sparse tensor, with what is needed to score every raw point.

    Attributes:
        voxels: `feats` (M, C) float32 x, y, z [m], intensity of the point kept in each voxel; `coords` (M, 4) int32
            [batch, x, y, z].
        labels: (M,) int64 train ids of the voxels with `IGNORE_INDEX`, or None.
        inverse: (P,) int64 row of `voxels` of each raw point, counted over the whole batch; -1 for a point whose
            voxel was left out by the voxel cap (training only).
        point_labels: (P,) int64 train ids of the raw points, or None.
        point_batch: (P,) int64 scan of each raw point, 0..batch_size-1.
        paths: File of each scan.
        skipped: Messages of the bad samples that were replaced while this batch was made.
    """

    voxels: SparseTensor
    labels: Tensor | None
    inverse: Tensor
    point_labels: Tensor | None
    point_batch: Tensor
    paths: tuple[str, ...]
    skipped: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.paths)

    def to(self, device: torch.device | str, non_blocking: bool = False) -> SegmentationBatch:
        """Return the batch on `device`; copies run asynchronously if pinned and `non_blocking`."""
        moved: dict[str, Any] = {
            name: value.to(device, non_blocking=non_blocking)
            for name, value in vars(self).items()
            if isinstance(value, Tensor)
        }
        voxels = self.voxels.to(device, non_blocking=non_blocking)
        return dataclasses.replace(self, voxels=voxels, **moved)

    def pin_memory(self) -> SegmentationBatch:
        """Return the batch in page-locked memory; `DataLoader(pin_memory=True)` calls this."""
        pinned: dict[str, Any] = {
            name: value.pin_memory()
            for name, value in vars(self).items()
            if isinstance(value, Tensor)
        }
        voxels = SparseTensor(
            self.voxels.feats.pin_memory(),
            self.voxels.coords.pin_memory(),
            stride=self.voxels.stride,
            spatial_shape=self.voxels.spatial_shape,
            batch_size=self.voxels.batch_size,
        )
        return dataclasses.replace(self, voxels=voxels, **pinned)


def collate_segmentation(samples: Sequence[VoxelSample]) -> SegmentationBatch:
    """Join voxelized scans into a batch; the `collate_fn` of a DataLoader.

    Args:
        samples: One or more samples of `SegmentationDataset`, all with labels or all without.

    Returns:
        The batch; scan i has batch index i.

    Raises:
        ValueError: If there is no sample, or only some have labels.
        TypeError: If a sample is not a `VoxelSample`.
    """
    if not samples:
        raise ValueError("collate_segmentation: samples must hold at least one sample, got none.")
    for sample in samples:
        if not isinstance(sample, VoxelSample):
            raise TypeError(
                f"collate_segmentation: samples must be VoxelSample, got {type(sample).__name__}. "
                "Wrap the dataset in SegmentationDataset, which voxelizes."
            )
    voxel_counts = [len(sample.coords) for sample in samples]
    coords = np.empty((sum(voxel_counts), 4), dtype=np.int32)
    coords[:, 0] = np.repeat(np.arange(len(samples), dtype=np.int32), voxel_counts)
    np.concatenate([sample.coords for sample in samples], out=coords[:, 1:])
    feats = np.concatenate([sample.feats for sample in samples])
    voxels = SparseTensor(
        torch.from_numpy(feats), torch.from_numpy(coords), batch_size=len(samples)
    )
    point_counts = [len(sample.inverse) for sample in samples]
    return SegmentationBatch(
        voxels=voxels,
        labels=_join_labels([sample.labels for sample in samples]),
        inverse=_join_inverse([sample.inverse for sample in samples], voxel_counts),
        point_labels=_join_labels([sample.point_labels for sample in samples]),
        point_batch=torch.repeat_interleave(torch.tensor(point_counts)),
        paths=tuple(sample.path for sample in samples),
        skipped=tuple(message for sample in samples for message in sample.skipped),
    )


def _join_labels(parts: Sequence[npt.NDArray[np.uint8] | None]) -> Tensor | None:
    present = [part for part in parts if part is not None]
    if not present:
        return None
    if len(present) != len(parts):
        raise ValueError(
            "collate_segmentation: samples must all have labels or all have none, got "
            f"{len(present)} of {len(parts)} with labels. Use one split for a loader."
        )
    return torch.from_numpy(np.concatenate(present).astype(np.int64))


def _join_inverse(parts: Sequence[npt.NDArray[np.int64]], voxel_counts: Sequence[int]) -> Tensor:
    """Shift each scan's voxel rows by the voxels before it; -1 stays -1."""
    joined = np.concatenate(parts)
    starts = np.cumsum([0, *voxel_counts[:-1]])
    shift = np.repeat(starts, [len(part) for part in parts])
    return torch.from_numpy(np.where(joined >= 0, joined + shift, -1))


def _check_array(value: object, name: str, dtype: type[np.generic]) -> None:
    if not isinstance(value, np.ndarray) or value.dtype != dtype:
        got = value.dtype if isinstance(value, np.ndarray) else type(value).__name__
        raise TypeError(
            f"PointCloudSample: {name} must be a numpy array of {np.dtype(dtype)}, got {got}. "
            f"Convert it with .astype(np.{np.dtype(dtype)})."
        )
