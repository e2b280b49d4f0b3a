"""PointPillars: points to a bird's-eye view through columns of points.

Paper: Lang et al., PointPillars: Fast Encoders for Object Detection from Point Clouds, CVPR 2019. Layer structure and
parameter names are those of mit-han-lab/bevfusion and mmdetection3d, so their checkpoints load unchanged.

The published network works on (pillars, max_points, C) arrays, zeros behind the points of a pillar. These zeros take
part: they enter the batch statistics, and as relu(batch norm(0)) the maximum of every pillar that is not full. Here a
pillar's zeros are rows of their own behind the points (in evaluation one row, as they are all equal), which gives the
published numbers without the array; `max_points=None` leaves them out, as dynamic encoders do.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from pointlib.models.point_voxelization import GroupedPoints
from pointlib.nn import BatchNorm
from pointlib.ops.scatter import gather_rows, scatter_max, scatter_mean


class PFNLayer(nn.Module):
    """Linear layer, batch norm and ReLU on every point, then the maximum of each pillar.

    Args:
        in_channels: Features of a point.
        out_channels: Features of the result; of a point and its pillar together where the layer is not the last.
        last_layer: Return pillars and not points.
    """

    def __init__(self, in_channels: int, out_channels: int, last_layer: bool) -> None:
        super().__init__()
        self.last_layer = last_layer
        units = out_channels if last_layer else out_channels // 2
        self.linear = nn.Linear(in_channels, units, bias=False)
        self.norm = BatchNorm(units, eps=1e-3, momentum=0.01)

    def forward(self, rows: Tensor, pillar: Tensor, num_pillars: int) -> Tensor:
        """Encode.

        Args:
            rows: (R, in_channels) features of points.
            pillar: (R,) int64 pillar of each.
            num_pillars: M.

        Returns:
            (M, out_channels) for the last layer, else (R, out_channels): of the point, then of its pillar.
        """
        x = torch.relu(self.norm(self.linear(rows)))
        largest = scatter_max(x, pillar, num_pillars).feats
        return largest if self.last_layer else torch.cat([x, gather_rows(largest, pillar)], 1)


class PillarFeatureNet(nn.Module):
    """One feature vector for each pillar.

    Points are decorated with their offsets from the mean of the pillar's points (x, y, z) and from the pillar's centre
    (x, y), and with their range where `with_distance`.

    Args:
        in_channels: Columns of a point.
        feat_channels: Channels of each layer.
        with_distance: Add the distance from the sensor.
        voxel_size: Edge of a pillar (x, y, z) [m]; x and y count.
        point_cloud_range: (x_min, y_min, z_min, x_max, y_max, z_max) [m]; x_min and y_min count.
        max_points: Rows of a pillar in the published array; None for no zero rows.
    """

    def __init__(
        self,
        in_channels: int = 5,
        feat_channels: Sequence[int] = (64, 64),
        with_distance: bool = False,
        voxel_size: Sequence[float] = (0.2, 0.2, 8.0),
        point_cloud_range: Sequence[float] = (-51.2, -51.2, -5.0, 51.2, 51.2, 3.0),
        max_points: int | None = 20,
    ) -> None:
        super().__init__()
        if not feat_channels:
            raise ValueError("PillarFeatureNet: feat_channels must name a layer, got none.")
        self.in_channels = in_channels
        self.with_distance = with_distance
        self.max_points = max_points
        self.pillar_size = tuple(voxel_size[:2])
        self.first_centre = tuple(
            edge / 2 + low for edge, low in zip(voxel_size[:2], point_cloud_range[:2], strict=True)
        )
        widths = [in_channels + 5 + with_distance, *feat_channels]
        self.pfn_layers = nn.ModuleList(
            PFNLayer(a, b, last_layer=number == len(feat_channels) - 1)
            for number, (a, b) in enumerate(pairwise(widths))
        )

    def forward(self, groups: GroupedPoints) -> Tensor:
        """Encode the points of M pillars to (M, feat_channels[-1]).

        Raises:
            ValueError: If the points have other columns, or a pillar more than max_points.
        """
        if groups.points.shape[1] != self.in_channels:
            raise ValueError(
                f"PillarFeatureNet: points must have {self.in_channels} columns, got {groups.points.shape[1]}."
            )
        rows, pillar = self._decorate(groups), groups.voxel
        if self.max_points is not None:
            absent = self._absent(groups.counts)
            empty = torch.repeat_interleave(absent)
            rows = torch.cat([rows, rows.new_zeros(len(empty), rows.shape[1])])
            pillar = torch.cat([pillar, empty])
        for layer in self.pfn_layers:
            rows = layer(rows, pillar, len(groups.counts))
        return rows

    def _absent(self, counts: Tensor) -> Tensor:
        """Zero rows of each pillar: all in training, where they are counted, else one if there is any."""
        assert self.max_points is not None
        absent = self.max_points - counts
        if len(absent) and int(absent.min()) < 0:
            raise ValueError(
                f"PillarFeatureNet: pillars must hold at most max_points {self.max_points} points, got "
                f"{int(counts.max())}. Group points with the same limit, or use max_points=None."
            )
        return absent if self.training else absent.clamp(max=1)

    @torch.no_grad()
    def _decorate(self, groups: GroupedPoints) -> Tensor:
        """(P, in_channels + 5 or 6) in the points' dtype."""
        points, xyz = groups.points, groups.points[:, :3]
        mean = scatter_mean(xyz, groups.voxel, len(groups.coords))
        size, first = points.new_tensor(self.pillar_size), points.new_tensor(self.first_centre)
        centre = groups.coords[:, 1:3].to(points.dtype) * size + first
        parts = [points, xyz - mean[groups.voxel], xyz[:, :2] - centre[groups.voxel]]
        if self.with_distance:
            parts.append(xyz.norm(dim=1, keepdim=True))
        return torch.cat(parts, 1)


class PointPillarsScatter(nn.Module):
    """Pillars to a dense map.

    Args:
        in_channels: Channels of a pillar.
        output_shape: Extent (x, y) of the map in pillars.
    """

    def __init__(self, in_channels: int = 64, output_shape: Sequence[int] = (512, 512)) -> None:
        super().__init__()
        self.in_channels = in_channels
        self.output_shape = (output_shape[0], output_shape[1])

    def forward(self, feats: Tensor, coords: Tensor, batch_size: int) -> Tensor:
        """Write features into the map.

        Args:
            feats: (M, in_channels).
            coords: (M, 4) int32 `[batch, x, y, z]`, distinct, z 0.
            batch_size: B.

        Returns:
            (B, in_channels, X, Y), 0 where there is no pillar.
        """
        grid = feats.new_zeros(batch_size, *self.output_shape, feats.shape[1])
        b, x, y, _ = coords.long().unbind(1)
        return grid.index_put((b, x, y), feats).permute(0, 3, 1, 2)


class PointPillarsEncoder(nn.Module):
    """PillarFeatureNet, then PointPillarsScatter. The defaults are those of mit-han-lab/bevfusion for nuScenes.

    Args:
        in_channels, feat_channels, with_distance, voxel_size, point_cloud_range, max_points: As in PillarFeatureNet.
        output_shape: As in PointPillarsScatter.
    """

    def __init__(
        self,
        in_channels: int = 5,
        feat_channels: Sequence[int] = (64, 64),
        with_distance: bool = False,
        voxel_size: Sequence[float] = (0.2, 0.2, 8.0),
        point_cloud_range: Sequence[float] = (-51.2, -51.2, -5.0, 51.2, 51.2, 3.0),
        max_points: int | None = 20,
        output_shape: Sequence[int] = (512, 512),
    ) -> None:
        super().__init__()
        self.pts_voxel_encoder = PillarFeatureNet(
            in_channels, feat_channels, with_distance, voxel_size, point_cloud_range, max_points
        )
        self.pts_middle_encoder = PointPillarsScatter(feat_channels[-1], output_shape)

    def forward(self, groups: GroupedPoints) -> Tensor:
        """Points in pillars, as PointGrouping gives them, to (B, feat_channels[-1], X, Y).

        Raises:
            ValueError: If the points were grouped into another grid.
        """
        x, y, z = groups.spatial_shape
        if (x, y) != self.pts_middle_encoder.output_shape or z != 1:
            raise ValueError(
                f"PointPillarsEncoder: points must be grouped into {self.pts_middle_encoder.output_shape} pillars of "
                f"one voxel in height, got {groups.spatial_shape}."
            )
        feats = self.pts_voxel_encoder(groups)
        return self.pts_middle_encoder(feats, groups.coords, groups.batch_size)
