"""From camera features to a bird's-eye view: predict depth, lift features into space, add them up in cells.

Papers: Philion and Fidler, Lift, Splat, Shoot, ECCV 2020 (`LSSTransform`); Liu et al., BEVFusion: Multi-Task
Multi-Sensor Fusion with Unified Bird's-Eye View Representation, ICRA 2023 (`DepthLSSTransform`). State-dict names are
those of mit-han-lab/bevfusion. `pointlib.models.bev_depth` has the transform whose depth is supervised.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from pointlib.models.frustum import (
    frustum_points,
    grid_cells,
    image_frustum,
    lidar_depth_images,
)
from pointlib.ops.bev_pool import BevPoolPlan, bev_pool_depth, build_bev_pool_plan
from pointlib.sensors import CameraBatch, SensorBatch

Bound = Sequence[float]


class Lifted(NamedTuple):
    """What each pixel brings to each depth.

    Attributes:
        depth: (B * N, D, h, w) float32 probability of each depth.
        context: (B * N, C, h, w) features.
    """

    depth: Tensor
    context: Tensor


class ViewTransform(nn.Module, ABC):
    """What all transforms share: geometry, pooling and the convolutions after it.

    Subclasses define `build_nets` and `lift`.

    Args:
        in_channels: Channels of the camera features.
        out_channels: Channels of the view, C.
        image_size: Height and width of the augmented images [pixels].
        feature_size: Height and width of the features, h and w.
        xbound: Lower and upper end and cell size of the grid along x [m].
        ybound: Along y.
        zbound: Along z; layers are put side by side in the channels.
        dbound: First depth, end of depths, step [m].
        downsample: 2 follows pooling by convolutions that halve the grid; 1 by none.
        reference_truncation: Cells are found by rounding toward zero, as the published checkpoints need; see
            `pointlib.models.frustum.grid_cells`.

    The sorting of frustum points into cells is kept and used again while calibration and augmentation stay the same,
    so evaluation on one vehicle pays for it once.
    """

    reads_points: ClassVar[bool] = False
    """Whether points help to find the depth, or are what it is trained with."""

    dx: Tensor
    bx: Tensor
    nx: Tensor
    frustum: Tensor

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        image_size: tuple[int, int],
        feature_size: tuple[int, int],
        xbound: Bound,
        ybound: Bound,
        zbound: Bound,
        dbound: Bound,
        downsample: int = 1,
        reference_truncation: bool = False,
    ) -> None:
        super().__init__()
        if downsample not in (1, 2):
            raise ValueError(f"{type(self).__name__}: downsample must be 1 or 2, got {downsample}")
        self.in_channels, self.C = in_channels, out_channels
        self.image_size = (int(image_size[0]), int(image_size[1]))
        self.feature_size = (int(feature_size[0]), int(feature_size[1]))
        self.dbound = tuple(dbound)
        self.reference_truncation = reference_truncation
        self.grid_shape = _grid_shape(type(self).__name__, xbound, ybound, zbound)
        bounds = (xbound, ybound, zbound)
        self.register_buffer("dx", torch.tensor([step for _, _, step in bounds]))
        self.register_buffer("bx", torch.tensor([low + step / 2.0 for low, _, step in bounds]))
        self.register_buffer("nx", torch.tensor(self.grid_shape))
        self.register_buffer("frustum", image_frustum(self.image_size, self.feature_size, dbound))
        self.D = self.frustum.shape[0]
        channels = out_channels * self.grid_shape[2]
        self.out_channels = channels
        self.bev_size = tuple(-(-cells // downsample) for cells in self.grid_shape[:2])
        self.downsample: nn.Module = nn.Identity()
        if downsample == 2:
            layers = [_conv_norm_relu(channels, stride) for stride in (1, 2, 1)]
            self.downsample = nn.Sequential(*(layer for group in layers for layer in group))
        self.build_nets()
        self._plan: BevPoolPlan | None = None
        self._plan_key: tuple[Tensor, ...] = ()

    def forward(self, feats: Tensor, batch: SensorBatch) -> Tensor:
        """Make the bird's-eye view.

        Args:
            feats: (B, N, in_channels, h, w) features of N cameras.
            batch: The cameras' calibration, the augmentation, and points for a transform that reads them.

        Returns:
            (B, out_channels, X, Y) in the augmented LiDAR frame. Cameras that are not present bring nothing.

        Raises:
            ValueError: There are no cameras, or feats or images have another size.
        """
        return self.downsample(self.pool(self.lift(feats, self._check(feats, batch), batch), batch))

    def forward_with_losses(
        self, feats: Tensor, batch: SensorBatch
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """As `forward`, with the losses that the transform itself is trained with: none for most."""
        return self(feats, batch), {}

    @abstractmethod
    def build_nets(self) -> None:
        """Make the layers that `lift` needs; sizes are attributes already."""

    @abstractmethod
    def lift(self, feats: Tensor, cameras: CameraBatch, batch: SensorBatch) -> Lifted:
        """Predict the depths and the context of each pixel of (B, N, in_channels, h, w)."""

    def pool(self, lifted: Lifted, batch: SensorBatch) -> Tensor:
        """Add the lifted features up in the cells of the grid: (B, Z * C, X, Y), before `downsample`."""
        pooled = bev_pool_depth(lifted.depth, lifted.context, self.plan(batch))
        return pooled.transpose(1, 2).flatten(1, 2)

    def plan(self, batch: SensorBatch) -> BevPoolPlan:
        """Which cell each frustum point falls into: the plan of the last call if nothing that decides it changed."""
        cameras = batch.cameras
        assert cameras is not None
        key = (
            *(cameras.intrinsics, cameras.camera2lidar, cameras.image_aug, cameras.present),
            *(batch.lidar_aug, self.frustum, self.bx, self.dx),
        )
        if self._plan is None or not _equal(key, self._plan_key):
            with torch.inference_mode(False):  # a plan made in validation also serves training
                self._plan = self._build_plan(cameras, batch.lidar_aug)
                self._plan_key = tuple(tensor.clone() for tensor in key)
        return self._plan

    def _build_plan(self, cameras: CameraBatch, lidar_aug: Tensor) -> BevPoolPlan:
        if self.frustum.dtype not in (torch.float32, torch.float64):
            raise TypeError(
                f"{type(self).__name__}: frustum must be float32, got {self.frustum.dtype}; "
                "use torch.autocast rather than converting the network"
            )
        points = frustum_points(self.frustum, cameras, lidar_aug)
        points = points.masked_fill(~cameras.present[:, :, None, None, None, None], torch.nan)
        lower = self.bx - self.dx / 2.0
        coords = grid_cells(points, lower, self.dx, self.grid_shape, self.reference_truncation)
        return build_bev_pool_plan(coords, len(points), self.grid_shape)

    def _split(self, x: Tensor) -> Lifted:
        """Channels of a depth net: D logits of depth, then C of context. Softmax is float32 whatever autocast says."""
        depth = x[:, : self.D].softmax(1, dtype=torch.promote_types(x.dtype, torch.float32))
        return Lifted(depth, x[:, self.D : self.D + self.C])

    def _check(self, feats: Tensor, batch: SensorBatch) -> CameraBatch:
        name, cameras = type(self).__name__, batch.cameras
        if cameras is None:
            raise ValueError(f"{name}: batch must have cameras, got None")
        expected = (*cameras.images.shape[:2], self.in_channels, *self.feature_size)
        if tuple(feats.shape) != expected:
            raise ValueError(f"{name}: feats must be {expected}, got {tuple(feats.shape)}")
        if tuple(cameras.images.shape[-2:]) != self.image_size:
            raise ValueError(
                f"{name}: images must be {self.image_size} pixels high and wide, got "
                f"{tuple(cameras.images.shape[-2:])}; give the data and the network the same image_size"
            )
        return cameras


class LSSTransform(ViewTransform):
    """Depth and context of each pixel from one 1x1 convolution; arguments as of `ViewTransform`."""

    def build_nets(self) -> None:
        """See `ViewTransform.build_nets`."""
        self.depthnet = nn.Conv2d(self.in_channels, self.D + self.C, 1)

    def lift(self, feats: Tensor, cameras: CameraBatch, batch: SensorBatch) -> Lifted:
        """See `ViewTransform.lift`."""
        return self._split(self.depthnet(feats.flatten(0, 1)))


class DepthLSSTransform(ViewTransform):
    """Depth and context of each pixel from its features and the LiDAR's depth in the image.

    Arguments as of `ViewTransform`. Without points the depth image is empty. Where several points fall on a pixel the
    nearest counts, and points behind the camera are never drawn; in mit-han-lab/bevfusion the last one written counts,
    and points are moved in place by the augmentation.
    """

    reads_points: ClassVar[bool] = True

    def build_nets(self) -> None:
        """See `ViewTransform.build_nets`."""
        reached = tuple(-(-edge // 8) for edge in self.image_size)
        if reached != self.feature_size:
            raise ValueError(
                f"DepthLSSTransform: feature_size must be an eighth of image_size, {reached}, got {self.feature_size}"
            )
        channels = self.in_channels
        self.dtransform = nn.Sequential(
            *(nn.Conv2d(1, 8, 1), nn.BatchNorm2d(8), nn.ReLU(inplace=True)),
            *(nn.Conv2d(8, 32, 5, 4, 2), nn.BatchNorm2d(32), nn.ReLU(inplace=True)),
            *(nn.Conv2d(32, 64, 5, 2, 2), nn.BatchNorm2d(64), nn.ReLU(inplace=True)),
        )
        self.depthnet = nn.Sequential(
            nn.Conv2d(channels + 64, channels, 3, padding=1),
            *(nn.BatchNorm2d(channels), nn.ReLU(inplace=True)),
            nn.Conv2d(channels, channels, 3, padding=1),
            *(nn.BatchNorm2d(channels), nn.ReLU(inplace=True)),
            nn.Conv2d(channels, self.D + self.C, 1),
        )

    def lift(self, feats: Tensor, cameras: CameraBatch, batch: SensorBatch) -> Lifted:
        """See `ViewTransform.lift`."""
        if batch.points is None:
            depth = feats.new_zeros(*feats.shape[:2], *self.image_size)
        else:
            depth = lidar_depth_images(batch.points, cameras, batch.lidar_aug, self.image_size)
        with torch.autocast(feats.device.type, enabled=False):  # metres do not fit into bfloat16
            depth = depth.to(self.frustum.dtype).flatten(0, 1)[:, None]
            x = self.dtransform(depth)
        feats = feats.flatten(0, 1)
        return self._split(self.depthnet(torch.cat([x.to(feats.dtype), feats], 1)))


def _conv_norm_relu(channels: int, stride: int) -> list[nn.Module]:
    conv = nn.Conv2d(channels, channels, 3, stride, 1, bias=False)
    return [conv, nn.BatchNorm2d(channels), nn.ReLU(inplace=True)]


def _grid_shape(name: str, *bounds: Bound) -> tuple[int, int, int]:
    """Cells along x, y and z."""
    counts = [(high - low) / step for low, high, step in bounds]
    if any(round(count) < 1 or abs(count - round(count)) > 1e-3 for count in counts):
        raise ValueError(
            f"{name}: xbound, ybound and zbound must be (low, high, step) with whole cells between, "
            f"got {[list(bound) for bound in bounds]}"
        )
    x, y, z = (round(count) for count in counts)
    return x, y, z


def _equal(one: tuple[Tensor, ...], other: tuple[Tensor, ...]) -> bool:
    return all(
        a.device == b.device and a.shape == b.shape and torch.equal(a, b)
        for a, b in zip(one, other, strict=True)
    )
