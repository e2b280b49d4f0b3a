"""View transform whose depth knows the camera and is supervised by LiDAR.

Paper: Li et al., BEVDepth: Acquisition of Reliable Depth for Multi-view 3D Object Detection, AAAI 2023, sections 4.1
(explicit depth supervision) and 4.2 (camera-aware depth prediction). Left out: the deformable convolution at the end
of the depth branch and the depth refinement over stacked pillars (4.3). LiDAR is needed in training only.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pointlib.models.frustum import lidar_depth_images
from pointlib.models.resnet import BasicBlock
from pointlib.models.view_transform import Lifted, ViewTransform
from pointlib.sensors import CameraBatch, SensorBatch

NUM_CAMERA_NUMBERS = 27
"""Numbers that describe a camera to the network, of `camera_numbers`."""


class BEVDepthTransform(ViewTransform):
    """Lift with a camera-aware depth net.

    Args:
        *args, **kwargs: As of `ViewTransform`.
        mid_channels: Channels within the depth net; None for in_channels.
        depth_loss_weight: Factor of the loss of depth; 3 as published.
    """

    reads_points: ClassVar[bool] = True

    def __init__(
        self,
        *args: Any,
        mid_channels: int | None = None,
        depth_loss_weight: float = 3.0,
        **kwargs: Any,
    ) -> None:
        self._mid_channels = mid_channels
        super().__init__(*args, **kwargs)
        self.depth_loss_weight = depth_loss_weight

    def build_nets(self) -> None:
        """See `ViewTransform.build_nets`."""
        if any(a % b for a, b in zip(self.image_size, self.feature_size, strict=True)):
            raise ValueError(
                f"BEVDepthTransform: feature_size must divide image_size {self.image_size}, got {self.feature_size}"
            )
        middle = self._mid_channels or self.in_channels
        self.depthnet = CameraAwareDepthNet(self.in_channels, middle, self.C, self.D)

    def lift(self, feats: Tensor, cameras: CameraBatch, batch: SensorBatch) -> Lifted:
        """See `ViewTransform.lift`."""
        numbers = camera_numbers(cameras, batch.lidar_aug, self.image_size)
        return self._split(self.depthnet(feats.flatten(0, 1), numbers.flatten(0, 1)))

    def forward_with_losses(
        self, feats: Tensor, batch: SensorBatch
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The view as of `forward`, and the loss "depth"; none without points."""
        cameras = self._check(feats, batch)
        lifted = self.lift(feats, cameras, batch)
        losses = {}
        if batch.points is not None:
            losses["depth"] = self.depth_loss(lifted.depth, batch)
        return self.downsample(self.pool(lifted, batch)), losses

    def depth_loss(self, depth: Tensor, batch: SensorBatch) -> Tensor:
        """Binary cross entropy between predicted depths and the LiDAR's, over feature cells that a point falls into.

        Args:
            depth: (B * N, D, h, w) float32 of `Lifted`.
            batch: With points and cameras.

        Returns:
            Scalar: summed over depths, averaged over cells, times depth_loss_weight; 0 where no point is seen.
        """
        bins = self.depth_bins(batch)
        with torch.autocast(depth.device.type, enabled=False):
            seen = bins >= 0
            target = F.one_hot(bins.clamp(min=0), self.D).movedim(-1, 1).to(depth.dtype)
            loss = F.binary_cross_entropy(depth, target, reduction="none").sum(1)
            mean = (loss * seen).sum() / seen.sum().clamp(min=1)
            return self.depth_loss_weight * mean

    @torch.no_grad()
    def depth_bins(self, batch: SensorBatch) -> Tensor:
        """Bin of the frustum nearest to the nearest LiDAR point in each feature cell.

        Returns:
            (B * N, h, w) int64; -1 where no point within dbound falls.
        """
        assert batch.points is not None and batch.cameras is not None
        image = lidar_depth_images(batch.points, batch.cameras, batch.lidar_aug, self.image_size)
        rows, columns = self.feature_size
        image = torch.where(image > 0, image, torch.inf).flatten(0, 1)
        cells = image.view(len(image), rows, self.image_size[0] // rows, columns, -1)
        first, _, step = self.dbound
        bins = ((cells.amin((2, 4)) - first) / step).round()
        return torch.where((bins >= 0) & (bins < self.D), bins, -1).long()


class CameraAwareDepthNet(nn.Module):
    """Channels of context and depth are weighed by what is known of the camera (figure 5).

    Args:
        in_channels: Channels of the features.
        mid_channels: Channels of both branches.
        context_channels: Channels of the context, C.
        depth_channels: Depths, D.
    """

    def __init__(
        self, in_channels: int, mid_channels: int, context_channels: int, depth_channels: int
    ) -> None:
        super().__init__()
        self.reduce_conv = nn.Sequential(
            nn.Conv2d(in_channels, mid_channels, 3, padding=1, bias=False),
            nn.BatchNorm2d(mid_channels),
            nn.ReLU(inplace=True),
        )
        self.context_se = CameraGate(mid_channels)
        self.context_conv = nn.Conv2d(mid_channels, context_channels, 1)
        self.depth_se = CameraGate(mid_channels)
        self.depth_conv = nn.Sequential(
            *(BasicBlock(mid_channels, mid_channels) for _ in range(3)),
            ASPP(mid_channels),
            nn.Conv2d(mid_channels, depth_channels, 1),
        )

    def forward(self, feats: Tensor, numbers: Tensor) -> Tensor:
        """(B * N, in_channels, h, w) and (B * N, 27) -> (B * N, D + C, h, w), logits of depth first."""
        x = self.reduce_conv(feats)
        context = self.context_conv(self.context_se(x, numbers))
        return torch.cat([self.depth_conv(self.depth_se(x, numbers)), context], 1)


class CameraGate(nn.Module):
    """Squeeze and excitation (Hu et al., CVPR 2018) whose squeeze is the camera's numbers."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(
            nn.Linear(NUM_CAMERA_NUMBERS, channels),
            nn.ReLU(inplace=True),
            nn.Linear(channels, channels),
            nn.ReLU(inplace=True),
            nn.Linear(channels, channels),
            nn.Sigmoid(),
        )

    def forward(self, x: Tensor, numbers: Tensor) -> Tensor:
        """Multiply each channel of (B, C, h, w) by a gate of (B, 27)."""
        return x * self.mlp(numbers)[:, :, None, None]


class ASPP(nn.Module):
    """Atrous spatial pyramid pooling (Chen et al., DeepLabv3, 2017): dilations 1, 6, 12, 18 and the mean."""

    def __init__(self, channels: int, dilations: Sequence[int] = (1, 6, 12, 18)) -> None:
        super().__init__()
        self.branches = nn.ModuleList(
            _conv_norm_relu(channels, channels, 1 if rate == 1 else 3, rate) for rate in dilations
        )
        # No norm: one value a channel and image has no variance to divide by when the batch is one image.
        self.mean = nn.Sequential(nn.Conv2d(channels, channels, 1), nn.ReLU(inplace=True))
        self.join = _conv_norm_relu((len(dilations) + 1) * channels, channels, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, h, w) -> (B, C, h, w)."""
        mean = self.mean(x.mean((2, 3), keepdim=True)).expand_as(x)
        return self.join(torch.cat([*(branch(x) for branch in self.branches), mean], 1))


def camera_numbers(cameras: CameraBatch, lidar_aug: Tensor, image_size: tuple[int, int]) -> Tensor:
    """Describe each camera: intrinsics, image augmentation, pose and LiDAR augmentation.

    The paper normalises them by a batch norm; here pixels are in units of the image's width, which needs no
    statistics of a handful of calibrations.

    Args:
        cameras: B samples of N cameras.
        lidar_aug: (B, 4, 4) from the recorded to the augmented LiDAR frame.
        image_size: Height and width of the augmented images [pixels].

    Returns:
        (B, N, 27) float32: fx, fy, cx, cy; 2x2 and shift of the image augmentation; 3x4 of camera2lidar; four entries
        of the turn and flip in the plane and the vertical scale of lidar_aug. Zeros for cameras that are not present.
    """
    size = float(image_size[1])
    intrinsics, aug, pose = cameras.intrinsics, cameras.image_aug, cameras.camera2lidar
    turn = lidar_aug[:, None].expand(-1, intrinsics.shape[1], -1, -1)
    focal = torch.stack([intrinsics[..., 0, 0], intrinsics[..., 1, 1]], -1)
    numbers = torch.cat(
        [
            focal / size,
            intrinsics[..., :2, 2] / size,
            aug[..., :2, :2].flatten(-2),
            aug[..., :2, 3] / size,
            pose[..., :3, :].flatten(-2),
            turn[..., :2, :2].flatten(-2),
            turn[..., 2, 2, None],
        ],
        -1,
    )
    return torch.where(cameras.present[..., None], numbers, 0.0)


def _conv_norm_relu(
    in_channels: int, out_channels: int, kernel_size: int, dilation: int
) -> nn.Sequential:
    padding = dilation * (kernel_size // 2)
    conv = nn.Conv2d(
        in_channels, out_channels, kernel_size, padding=padding, dilation=dilation, bias=False
    )
    return nn.Sequential(conv, nn.BatchNorm2d(out_channels), nn.ReLU(inplace=True))
