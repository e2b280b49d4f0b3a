"""The parts of BEVFusion networks, made from plain sizes; defaults are mit-han-lab/bevfusion's for nuScenes.

Every part is given the place of its map on the ground, so that the maps of all parts have the same cells.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from pointlib.models.bev_depth import BEVDepthTransform
from pointlib.models.bev_segmentation_head import BEVSegmentationHead
from pointlib.models.center_head import CenterHead
from pointlib.models.image_necks import FPN, LSSFPN, GeneralizedLSSFPN
from pointlib.models.pillars import PointPillarsEncoder
from pointlib.models.point_voxelization import MeanVoxelization, PointGrouping
from pointlib.models.resnet import GeneralizedResNet, ResNet
from pointlib.models.second import SECOND, SECONDFPN
from pointlib.models.sparse_encoder import SparseEncoder
from pointlib.models.swin import SwinTransformer
from pointlib.models.transfusion_head import TransFusionHead
from pointlib.models.view_transform import DepthLSSTransform, LSSTransform
from pointlib.registry import Registry
from pointlib.sensors import SensorBatch

Sizes = Mapping[str, Any]
"""Keyword arguments of a part that replace its defaults; "name" chooses another part of the same kind."""
Scope = tuple[tuple[float, float, float], tuple[float, float, float]]


@dataclass(frozen=True)
class Ground:
    """Where a bird's-eye map lies.

    Attributes:
        point_cloud_range: x, y, z from, then to [m].
        voxel_size: Edges of a voxel [m].
        stride: Voxels along an edge of a cell of the map.
    """

    point_cloud_range: Sequence[float]
    voxel_size: Sequence[float]
    stride: int = 8

    def scope(self, parts: int = 1) -> Scope:
        """From, to and step along x and y, with cells `parts` times as fine [m]."""
        low, high = self.point_cloud_range[:2], self.point_cloud_range[3:5]
        steps = [self.stride * edge / parts for edge in self.voxel_size[:2]]
        x, y = zip(low, high, steps, strict=True)
        return x, y

    def voxels(self) -> tuple[int, int, int]:
        """Extent x, y, z of the range in voxels."""
        low, high = self.point_cloud_range[:3], self.point_cloud_range[3:]
        x, y, z = (
            round((b - a) / edge) for a, b, edge in zip(low, high, self.voxel_size, strict=True)
        )
        return x, y, z

    def cells(self) -> tuple[int, int]:
        """Extent x, y of the map in cells."""
        x, y, _ = self.voxels()
        return x // self.stride, y // self.stride


class CameraEncoder(nn.ModuleDict):
    """Images to a bird's-eye view: backbone, neck (its finest map), view transform.

    Args:
        backbone: Images to maps.
        neck: Maps to maps of one width.
        vtransform: Maps of cameras to (B, C, X, Y).
        view_shape: C, X and Y.
    """

    def __init__(
        self,
        backbone: nn.Module,
        neck: nn.Module,
        vtransform: nn.Module,
        view_shape: tuple[int, int, int],
    ) -> None:
        super().__init__({"backbone": backbone, "neck": neck, "vtransform": vtransform})
        self.view_shape = view_shape
        self.image_size = vtransform.image_size
        self.reads_points = bool(vtransform.reads_points)

    def forward(self, batch: SensorBatch) -> tuple[Tensor, dict[str, Tensor]]:
        """(B, C, X, Y) of a batch with cameras, and the losses of the view transform itself, if it has any."""
        assert batch.cameras is not None
        images = batch.cameras.images
        maps = self["neck"](self["backbone"](images.flatten(0, 1)))
        feats = maps[0].unflatten(0, images.shape[:2])
        view, losses = self["vtransform"].forward_with_losses(feats, batch)  # type: ignore[operator]
        return view, losses

    def is_present(self, batch: SensorBatch) -> Tensor:
        """(B,) bool: whether any camera has an image."""
        if batch.cameras is None:
            return torch.zeros(batch.batch_size, dtype=torch.bool, device=batch.device)
        return batch.cameras.present.any(1)


class LidarEncoder(nn.ModuleDict):
    """Points to a bird's-eye view: voxels or pillars, then a backbone.

    Args:
        voxelize: `(points, batch_size)` to what the backbone takes.
        backbone: Voxels to (B, C, X, Y).
        view_shape: C, X and Y.
    """

    def __init__(
        self, voxelize: nn.Module, backbone: nn.Module, view_shape: tuple[int, int, int]
    ) -> None:
        super().__init__({"voxelize": voxelize, "backbone": backbone})
        self.view_shape = view_shape

    def forward(self, batch: SensorBatch) -> tuple[Tensor, dict[str, Tensor]]:
        """(B, C, X, Y) of a batch with points, and no losses."""
        assert batch.points is not None
        return self["backbone"](self["voxelize"](batch.points, batch.batch_size)), {}

    def is_present(self, batch: SensorBatch) -> Tensor:
        """(B,) bool: whether there is any point."""
        clouds = batch.points or ()
        counts = [len(points) for points in clouds] or [0] * batch.batch_size
        return torch.tensor(counts, device=batch.device) > 0


IMAGE_BACKBONES: Registry[Any] = Registry("image backbone")
IMAGE_NECKS: Registry[Any] = Registry("image neck")
VIEW_TRANSFORMS: Registry[Any] = Registry("view transform")
CAMERA_ENCODERS: Registry[CameraEncoder] = Registry("camera encoder")
LIDAR_ENCODERS: Registry[LidarEncoder] = Registry("LiDAR encoder")
DECODERS: Registry[dict[str, nn.Module]] = Registry("decoder")
OBJECT_HEADS: Registry[nn.Module] = Registry("object head")
MAP_HEADS: Registry[nn.Module] = Registry("map head")

IMAGE_BACKBONES.register("swin")(SwinTransformer)
IMAGE_BACKBONES.register("resnet")(ResNet)
IMAGE_NECKS.register("generalized_lss_fpn")(GeneralizedLSSFPN)
VIEW_TRANSFORMS.register("lss")(LSSTransform)
VIEW_TRANSFORMS.register("depth_lss")(DepthLSSTransform)
VIEW_TRANSFORMS.register("bev_depth")(BEVDepthTransform)
OBJECT_HEADS.register("center")(CenterHead)
OBJECT_HEADS.register("transfusion")(TransFusionHead)
MAP_HEADS.register("segmentation")(BEVSegmentationHead)


@IMAGE_NECKS.register("fpn")
def finest_fpn(in_channels: Sequence[int], out_channels: int) -> FPN:
    """A feature pyramid of which the finest map alone is made: nothing reads the others."""
    return FPN(in_channels, out_channels, num_outs=1)


@CAMERA_ENCODERS.register("lift_splat")
def lift_splat(
    ground: Ground,
    image_size: Sequence[int],
    backbone: str = "swin",
    backbone_args: Sizes | None = None,
    neck: str = "generalized_lss_fpn",
    neck_channels: int = 256,
    view_transform: str = "depth_lss",
    view_args: Sizes | None = None,
    out_channels: int = 80,
    zbound: Sequence[float] = (-10.0, 10.0, 20.0),
    dbound: Sequence[float] = (1.0, 60.0, 0.5),
    downsample: int = 2,
    reference_truncation: bool = True,
) -> CameraEncoder:
    """Images to a bird's-eye view.

    Args:
        ground: Where the view lies.
        image_size: Height and width of the images [pixels].
        backbone: "swin" or "resnet".
        backbone_args: Its arguments.
        neck: "generalized_lss_fpn" or "fpn".
        neck_channels: Channels of the neck's maps.
        view_transform: "depth_lss" (depth from images and points), "lss" (from images) or "bev_depth" (from images,
            supervised by points).
        view_args: Its further arguments.
        out_channels: Channels of the view.
        zbound: Height from, to and step [m]; one step.
        dbound: Depth bins from, to and step [m].
        downsample: Cells of the first view along an edge of a cell of the result.
        reference_truncation: Round points toward cell 0 as the published checkpoints need; False rounds down.
    """
    image = IMAGE_BACKBONES.create(backbone, **(backbone_args or {}))
    stride = 4 * 2 ** min(image.out_indices)
    height, width = image_size
    xbound, ybound = ground.scope(downsample)
    transform = VIEW_TRANSFORMS.create(
        view_transform,
        in_channels=neck_channels,
        out_channels=out_channels,
        image_size=(height, width),
        feature_size=(-(-height // stride), -(-width // stride)),
        xbound=xbound,
        ybound=ybound,
        zbound=tuple(zbound),
        dbound=tuple(dbound),
        downsample=downsample,
        reference_truncation=reference_truncation,
        **(view_args or {}),
    )
    joined = IMAGE_NECKS.create(neck, in_channels=image.out_channels, out_channels=neck_channels)
    return CameraEncoder(image, joined, transform, (out_channels, *ground.cells()))


@LIDAR_ENCODERS.register("voxelnet")
def voxelnet(
    ground: Ground,
    in_channels: int = 5,
    max_points: int | None = 10,
    max_voxels: Sequence[int] | None = (120_000, 160_000),
    base_channels: int = 16,
    encoder_channels: Sequence[Sequence[int]] = (
        (16, 16, 32),
        (32, 32, 64),
        (64, 64, 128),
        (128, 128),
    ),
    encoder_paddings: Sequence[Sequence[Any]] = ((0, 0, 1), (0, 0, 1), (0, 0, (1, 1, 0)), (0, 0)),
    output_channels: int = 128,
) -> LidarEncoder:
    """Means of voxels, then sparse convolutions; other arguments as of `SparseEncoder`.

    Args:
        ground: Where the view lies; of stride 8.
        in_channels: Columns of a point.
        max_points: Points that a voxel keeps; null for all.
        max_voxels: Voxels of a sample in training and in evaluation; null for all.
    """
    x, y, z = ground.voxels()
    voxelize = MeanVoxelization(ground.voxel_size, ground.point_cloud_range, max_points, max_voxels)
    backbone = SparseEncoder(
        in_channels,
        (x, y, z + 1),
        output_channels,
        encoder_channels,
        encoder_paddings,
        base_channels,
    )
    height = backbone.bev_shape[2]
    return LidarEncoder(voxelize, backbone, (output_channels * height, *ground.cells()))


@LIDAR_ENCODERS.register("pointpillars")
def pointpillars(
    ground: Ground,
    in_channels: int = 5,
    max_points: int | None = 20,
    max_voxels: Sequence[int] | None = (30_000, 60_000),
    feat_channels: Sequence[int] = (64, 64),
) -> LidarEncoder:
    """Columns of points; arguments as of `voxelnet` and `PointPillarsEncoder`. Its map is as fine as the pillars."""
    x, y, _ = ground.voxels()
    voxelize = PointGrouping(ground.voxel_size, ground.point_cloud_range, max_points, max_voxels)
    backbone = PointPillarsEncoder(
        in_channels=in_channels,
        feat_channels=feat_channels,
        voxel_size=ground.voxel_size,
        point_cloud_range=ground.point_cloud_range,
        max_points=max_points,
        output_shape=(x, y),
    )
    return LidarEncoder(voxelize, backbone, (feat_channels[-1], x, y))


@DECODERS.register("second")
def second(
    in_channels: int,
    out_channels: Sequence[int] = (128, 256),
    layer_nums: Sequence[int] = (5, 5),
    layer_strides: Sequence[int] = (1, 2),
    neck_channels: Sequence[int] = (256, 256),
    upsample_strides: Sequence[float] = (1, 2),
) -> dict[str, nn.Module]:
    """SECOND and its FPN; arguments as of `SECOND` and `SECONDFPN`."""
    return {
        "backbone": SECOND(in_channels, out_channels, layer_nums, layer_strides),
        "neck": SECONDFPN(out_channels, neck_channels, upsample_strides),
    }


@DECODERS.register("resnet")
def resnet(
    in_channels: int,
    blocks: Sequence[Sequence[int]] = ((2, 128, 2), (2, 256, 2), (2, 512, 1)),
    neck_channels: int = 256,
) -> dict[str, nn.Module]:
    """The camera-only decoder, arguments as of `GeneralizedResNet`; its neck brings the first map's size back."""
    stages = [(count, width, stride) for count, width, stride in blocks]
    widths = [width for _, width, _ in stages]
    return {
        "backbone": GeneralizedResNet(in_channels, stages),
        "neck": LSSFPN((-1, 0), (widths[-1], widths[0]), neck_channels, stages[0][2]),
    }


def make_part(registry: Registry[Any], default: str, sizes: Sizes | None, **derived: Any) -> Any:
    """Make a part.

    Args:
        registry: Parts of its kind.
        default: Which one, unless `sizes` has a "name".
        sizes: Arguments that replace its defaults.
        **derived: Arguments that follow from other parts.

    Raises:
        ValueError: There is no part of this name.
        TypeError: A size is none of its arguments.
    """
    given = dict(sizes or {})
    return registry.create(given.pop("name", default), **{**derived, **given})
