"""Raw point clouds to the voxels and pillars that detectors read.

Coordinates are floor((xyz - low) / voxel_size) in the float32 of the points, also under autocast: cast to half
precision, as mit-han-lab/bevfusion does, one point in fifteen moves to another cell of 0.075 m. The published limits
(so many points a voxel, so many voxels a sample, whichever come first) are options.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from pointlib.ops.coords import UniqueCoords
from pointlib.ops.kernel_map import Triple
from pointlib.ops.scatter import scatter_mean
from pointlib.ops.voxelize import occupied_voxels
from pointlib.tensor import SparseTensor


@dataclass(frozen=True, eq=False)
class GroupedPoints:
    """The points of a batch, each with its voxel.

    Attributes:
        points: (P, C) float32 x, y, z [m] and further features; only points that are kept, in their order.
        voxel: (P,) int64 row of coords.
        coords: (M, 4) int32 `[batch, x, y, z]`, lexicographic order.
        counts: (M,) int64 points of each voxel, at least 1.
        spatial_shape: Extent (x, y, z) of the range in voxels.
        batch_size: Samples, empty ones counted.
    """

    points: Tensor
    voxel: Tensor
    coords: Tensor
    counts: Tensor
    spatial_shape: Triple
    batch_size: int


class PointGrouping(nn.Module):
    """Sort points into voxels.

    Args:
        voxel_size: Edge of a voxel (x, y, z) [m].
        point_cloud_range: (x_min, y_min, z_min, x_max, y_max, z_max) [m], a whole number of voxels; points outside
            are dropped, the upper bound is outside.
        max_points: Points that a voxel keeps, the first ones; None for all.
        max_voxels: Voxels that a sample keeps, those whose first points come first; one number, or one for training
            and one for evaluation; None for all.

    Raises:
        ValueError: If an argument is not as above.
    """

    def __init__(
        self,
        voxel_size: Sequence[float],
        point_cloud_range: Sequence[float],
        max_points: int | None = None,
        max_voxels: int | Sequence[int] | None = None,
    ) -> None:
        super().__init__()
        self.voxel_size = tuple(voxel_size)
        self.point_cloud_range = tuple(point_cloud_range)
        self.spatial_shape = _grid(self.voxel_size, self.point_cloud_range)
        self.max_points = max_points
        limits = (max_voxels,) if isinstance(max_voxels, int) else tuple(max_voxels or (None,))
        if len(limits) > 2 or any(n is not None and n < 1 for n in (max_points, *limits)):
            raise ValueError(
                "PointGrouping: max_points and max_voxels must be at least 1, or None, max_voxels one number or two "
                f"(training, evaluation), got {max_points} and {max_voxels}."
            )
        self.max_voxels = (limits[0], limits[-1])

    def forward(self, points: Sequence[Tensor], batch_size: int | None = None) -> GroupedPoints:
        """Group the points of each sample.

        Args:
            points: B of (N_i, C >= 3) float32 or float64 x, y, z [m] and further features; N_i may be 0.
            batch_size: B, if it is to be checked.

        Raises:
            TypeError: If points are of half precision, which cannot hold coordinates.
            ValueError: If there are not B clouds, they differ in columns, or a coordinate is not finite.
        """
        _check_clouds(points, batch_size)
        rows = torch.cat(list(points))
        sizes = torch.tensor([len(cloud) for cloud in points])
        sample = torch.arange(len(points)).repeat_interleave(sizes).to(rows.device)
        located = torch.cat([sample.to(rows.dtype)[:, None], rows[:, :3]], 1)
        voxels = occupied_voxels(located, self.voxel_size, self.point_cloud_range)
        coords, index = self._limited(voxels, len(points))
        kept = (index >= 0).nonzero().squeeze(1)
        index = index[kept]
        counts = torch.bincount(index, minlength=len(coords))
        return GroupedPoints(
            rows[kept], index, coords, counts, self.spatial_shape, batch_size=len(points)
        )

    def _limited(self, voxels: UniqueCoords, batch_size: int) -> tuple[Tensor, Tensor]:
        """Coordinates of the voxels that are kept, and the voxel of each point that is kept, else -1."""
        coords, index, _, _ = voxels
        if self.max_points is not None:
            index = index.masked_fill(_rank_in_voxel(voxels) >= self.max_points, -1)
        limit = self.max_voxels[0 if self.training else 1]
        if limit is None or len(coords) <= limit:
            return coords, index
        kept = _rank_in_sample(voxels, batch_size) < limit
        number = (kept.cumsum(0) - 1).masked_fill(~kept, -1)
        return coords[kept], torch.where(index >= 0, number[index], -1)

    def extra_repr(self) -> str:
        """Arguments, as printed."""
        return (
            f"voxel_size={self.voxel_size}, point_cloud_range={self.point_cloud_range}, "
            f"max_points={self.max_points}, max_voxels={self.max_voxels}"
        )


class MeanVoxelization(PointGrouping):
    """Average the points of each voxel; arguments as PointGrouping.

    VoxelNet's first step in its simplified form (Yan et al., SECOND, Sensors 2018). Published for nuScenes: 10 points
    a voxel; at 0.075 m 120,000 voxels in training and 160,000 in evaluation, at 0.1 m 90,000 and 120,000. Without
    limits it is the dynamic voxelization of Zhou et al., CoRL 2019.
    """

    def forward(  # type: ignore[override]
        self, points: Sequence[Tensor], batch_size: int | None = None
    ) -> SparseTensor:
        """Clouds, as in PointGrouping, to voxels: (M, C) float32 mean of all columns, spatial_shape of the range."""
        groups = super().forward(points, batch_size)
        feats = scatter_mean(groups.points, groups.voxel, len(groups.coords)).float()
        return SparseTensor(feats, groups.coords, 1, groups.spatial_shape, groups.batch_size)


def _rank_in_voxel(voxels: UniqueCoords) -> Tensor:
    """(N,) int64: how many points of the same voxel come before each point."""
    order = voxels.inverse.argsort(stable=True)  # those outside, -1, come first
    outside = len(order) - voxels.counts.sum()
    start = torch.cat([outside[None], outside + voxels.counts.cumsum(0)])
    ranks = torch.arange(len(order), device=order.device)
    ranks = ranks - start[voxels.inverse[order].clamp(min=0)]
    return torch.empty_like(ranks).index_copy_(0, order, ranks)


def _rank_in_sample(voxels: UniqueCoords, batch_size: int) -> Tensor:
    """(M,) int64: how many voxels of the same sample hold an earlier point than each voxel's first."""
    order = voxels.first.argsort()
    rank = torch.empty_like(order)
    rank[order] = torch.arange(len(order), device=order.device)
    sample = voxels.coords[:, 0].long()
    sizes = torch.bincount(sample, minlength=batch_size)
    return rank - (sizes.cumsum(0) - sizes)[sample]


def _grid(voxel_size: tuple[float, ...], bounds: tuple[float, ...]) -> Triple:
    if len(voxel_size) != 3 or len(bounds) != 6 or not all(edge > 0 for edge in voxel_size):
        raise ValueError(
            "PointGrouping: voxel_size must be three positive numbers and point_cloud_range six, "
            f"got {voxel_size} and {bounds}."
        )
    x, y, z = (
        (high - low) / edge
        for low, high, edge in zip(bounds[:3], bounds[3:], voxel_size, strict=True)
    )
    if any(cells < 0.5 or abs(cells - round(cells)) > 1e-3 for cells in (x, y, z)):
        raise ValueError(
            "PointGrouping: point_cloud_range must span a whole number of voxels on each axis, "
            f"got {(x, y, z)} for range {bounds} and voxel_size {voxel_size}."
        )
    return (round(x), round(y), round(z))


def _check_clouds(points: Sequence[Tensor], batch_size: int | None) -> None:
    if not points or len(points) != (batch_size or len(points)):
        raise ValueError(
            f"PointGrouping: points must hold one cloud a sample, got {len(points)} for "
            f"{batch_size or 'at least one'}. Give an empty cloud, (0, C), for a sample without points."
        )
    for cloud in points:
        if cloud.dtype not in (torch.float32, torch.float64):
            raise TypeError(
                f"PointGrouping: points must be float32 or float64, got {cloud.dtype}. Half precision moves points "
                "to other voxels; keep the coordinates as they were read."
            )
        like = points[0]
        if cloud.dim() != 2 or cloud.shape[1] < 3 or cloud.shape[1:] != like.shape[1:]:
            raise ValueError(
                "PointGrouping: points must be (N, C) with C >= 3, and C the same for all samples, "
                f"got {[tuple(other.shape) for other in points]}."
            )
