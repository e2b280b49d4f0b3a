"""Necks of image backbones: what joins maps of several resolutions into the one that is lifted to bird's-eye view.

Parameter names are those of mit-han-lab/bevfusion (`GeneralizedLSSFPN`, `LSSFPN`) and mmdetection (`FPN`).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class ConvModule(nn.Module):
    """Convolution, with norm also batch norm and ReLU, under OpenMMLab's names."""

    def __init__(
        self, in_channels: int, out_channels: int, kernel_size: int, norm: bool = True
    ) -> None:
        super().__init__()
        padding = kernel_size // 2
        self.conv = nn.Conv2d(
            in_channels, out_channels, kernel_size, padding=padding, bias=not norm
        )
        self.bn = nn.BatchNorm2d(out_channels) if norm else None

    def forward(self, x: Tensor) -> Tensor:
        """(B, in_channels, H, W) -> (B, out_channels, H, W)."""
        x = self.conv(x)
        return x if self.bn is None else F.relu(self.bn(x))


class GeneralizedLSSFPN(nn.Module):
    """Top-down path that concatenates: upsample, join, 1x1, 3x3 (BEVFusion's camera branch).

    Args:
        in_channels: Channels of each map, finest first.
        out_channels: Channels of the results.
        align_corners: Of the bilinear upsampling; False as in all published configurations.
    """

    def __init__(
        self,
        in_channels: Sequence[int] = (192, 384, 768),
        out_channels: int = 256,
        align_corners: bool = False,
    ) -> None:
        super().__init__()
        self.in_channels = tuple(in_channels)
        self.out_channels = out_channels
        self.align_corners = align_corners
        if len(self.in_channels) < 2:
            raise ValueError(
                f"GeneralizedLSSFPN: in_channels must name at least 2 maps, got {self.in_channels}"
            )
        self.lateral_convs = nn.ModuleList()
        self.fpn_convs = nn.ModuleList()
        above = [*[out_channels] * (len(self.in_channels) - 2), self.in_channels[-1]]
        for own, coarser in zip(self.in_channels, above, strict=False):
            self.lateral_convs.append(ConvModule(own + coarser, out_channels, 1))
            self.fpn_convs.append(ConvModule(out_channels, out_channels, 3))

    def forward(self, maps: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Join maps.

        Args:
            maps: One (B, C, h, w) for each of in_channels, finest first.

        Returns:
            (B, out_channels, h, w) of each map but the coarsest; BEVFusion lifts the first.

        Raises:
            ValueError: Another number of maps.
        """
        _check_maps("GeneralizedLSSFPN", maps, self.in_channels)
        joined = [maps[-1]]
        for i in reversed(range(len(maps) - 1)):
            coarser = F.interpolate(
                joined[0], maps[i].shape[2:], mode="bilinear", align_corners=self.align_corners
            )
            x = self.lateral_convs[i](torch.cat([maps[i], coarser], 1))
            joined.insert(0, self.fpn_convs[i](x))
        return tuple(joined[:-1])


class FPN(nn.Module):
    """Feature pyramid (Lin et al., CVPR 2017): 1x1 convolutions, a top-down path that adds, 3x3 convolutions.

    Args:
        in_channels: Channels of each map, finest first.
        out_channels: Channels of the results.
        num_outs: Results, finest first; those beyond the maps are the coarsest result, subsampled by two.
    """

    def __init__(
        self,
        in_channels: Sequence[int] = (512, 1024, 2048),
        out_channels: int = 256,
        num_outs: int | None = None,
    ) -> None:
        super().__init__()
        self.in_channels = tuple(in_channels)
        self.out_channels = out_channels
        self.num_outs = len(self.in_channels) if num_outs is None else num_outs
        if self.num_outs < 1:
            raise ValueError(f"FPN: num_outs must be at least 1, got {num_outs}")
        self.lateral_convs = nn.ModuleList(
            ConvModule(channels, out_channels, 1, norm=False) for channels in self.in_channels
        )
        self.fpn_convs = nn.ModuleList(
            ConvModule(out_channels, out_channels, 3, norm=False)
            for _ in self.in_channels[: self.num_outs]
        )

    def forward(self, maps: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """One (B, C, h, w) for each of in_channels -> num_outs of (B, out_channels, h, w), finest first."""
        _check_maps("FPN", maps, self.in_channels)
        laterals = [conv(x) for conv, x in zip(self.lateral_convs, maps, strict=True)]
        for i in reversed(range(len(laterals) - 1)):
            coarser = F.interpolate(laterals[i + 1], laterals[i].shape[2:], mode="nearest")
            laterals[i] = laterals[i] + coarser
        out = [conv(x) for conv, x in zip(self.fpn_convs, laterals, strict=False)]
        while len(out) < self.num_outs:
            out.append(out[-1][:, :, ::2, ::2])
        return tuple(out)


class LSSFPN(nn.Module):
    """Neck of the bird's-eye encoder of camera-only BEVFusion: two maps joined, then upsampled.

    Args:
        in_indices: The coarse and the fine map among those given.
        in_channels: Channels of both.
        out_channels: Channels of the result.
        scale_factor: Upsampling after joining; 1 for none.
    """

    def __init__(
        self,
        in_indices: tuple[int, int] = (-1, 0),
        in_channels: tuple[int, int] = (512, 128),
        out_channels: int = 256,
        scale_factor: int = 1,
    ) -> None:
        super().__init__()
        self.in_indices = tuple(in_indices)
        self.in_channels = tuple(in_channels)
        self.out_channels = out_channels
        self.fuse = nn.Sequential(
            *_conv_norm_relu(sum(in_channels), out_channels, 1),
            *_conv_norm_relu(out_channels, out_channels, 3),
        )
        self.upsample: nn.Module | None = None
        if scale_factor > 1:
            upsample = nn.Upsample(scale_factor=scale_factor, mode="bilinear", align_corners=True)
            self.upsample = nn.Sequential(upsample, *_conv_norm_relu(out_channels, out_channels, 3))

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """Join the two maps.

        Args:
            maps: (B, C, x, y) maps of an encoder.

        Returns:
            (B, out_channels, X, Y), scale_factor times the size of the fine map.

        Raises:
            ValueError: A map has other channels.
        """
        coarse, fine = (maps[i] for i in self.in_indices)
        _check_maps("LSSFPN", (coarse, fine), self.in_channels)
        coarse = F.interpolate(coarse, fine.shape[2:], mode="bilinear", align_corners=True)
        x = self.fuse(torch.cat([coarse, fine], 1))
        return x if self.upsample is None else self.upsample(x)


def _conv_norm_relu(in_channels: int, out_channels: int, kernel_size: int) -> list[nn.Module]:
    conv = nn.Conv2d(in_channels, out_channels, kernel_size, padding=kernel_size // 2, bias=False)
    return [conv, nn.BatchNorm2d(out_channels), nn.ReLU(inplace=True)]


def _check_maps(name: str, maps: Sequence[Tensor], channels: Sequence[int]) -> None:
    got = [tuple(x.shape) for x in maps]
    if [shape[1] for shape in got] != list(channels):
        raise ValueError(f"{name}: maps must be (B, C, h, w) with C = {list(channels)}, got {got}")
