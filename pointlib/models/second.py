"""SECOND and SECONDFPN: the dense 2D backbone and neck of bird's-eye detectors.

Paper: Yan et al., SECOND: Sparsely Embedded Convolutional Detection, Sensors 2018, with the pyramid of Lang et al.,
PointPillars, CVPR 2019. Layer structure and parameter names are those of mmdetection3d and mit-han-lab/bevfusion, so
their checkpoints load unchanged.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class SECOND(nn.Module):
    """Stages of 3x3 convolutions; the first of each has the stride. The defaults are those of BEVFusion at 0.075 m.

    Args:
        in_channels: Channels of the bird's-eye view.
        out_channels: Channels of each stage.
        layer_nums: Convolutions of each stage behind its first.
        layer_strides: Stride of each stage.

    Raises:
        ValueError: If the three lists differ in length.
    """

    def __init__(
        self,
        in_channels: int = 256,
        out_channels: Sequence[int] = (128, 256),
        layer_nums: Sequence[int] = (5, 5),
        layer_strides: Sequence[int] = (1, 2),
    ) -> None:
        super().__init__()
        if not len(out_channels) == len(layer_nums) == len(layer_strides) > 0:
            raise ValueError(
                "SECOND: out_channels, layer_nums and layer_strides must have one entry a stage, got "
                f"{out_channels}, {layer_nums} and {layer_strides}."
            )
        self.out_channels = tuple(out_channels)
        self.blocks = nn.ModuleList()
        for width, layers, stride in zip(out_channels, layer_nums, layer_strides, strict=True):
            stage = _conv_norm_relu(in_channels, width, stride)
            for _ in range(layers):
                stage += _conv_norm_relu(width, width)
            self.blocks.append(nn.Sequential(*stage))
            in_channels = width
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """(B, in_channels, X, Y) -> one (B, out_channels[i], X / s, Y / s) a stage, s the product of strides so far."""
        maps = []
        for block in self.blocks:
            x = block(x)
            maps.append(x)
        return tuple(maps)


class SECONDFPN(nn.Module):
    """Bring the maps of SECOND to one resolution and stack them. The defaults are those of BEVFusion at 0.075 m.

    Args:
        in_channels: Channels of each map.
        out_channels: Channels that each contributes.
        upsample_strides: Cells of the output per cell of each map; a fraction, such as 0.5, reduces.
        use_conv_for_no_stride: Let a map of stride 1 pass a convolution in place of a transposed one.

    Raises:
        ValueError: If the lists differ in length.
    """

    def __init__(
        self,
        in_channels: Sequence[int] = (128, 256),
        out_channels: Sequence[int] = (256, 256),
        upsample_strides: Sequence[float] = (1, 2),
        use_conv_for_no_stride: bool = True,
    ) -> None:
        super().__init__()
        if not len(in_channels) == len(out_channels) == len(upsample_strides) > 0:
            raise ValueError(
                "SECONDFPN: in_channels, out_channels and upsample_strides must have one entry a map, got "
                f"{in_channels}, {out_channels} and {upsample_strides}."
            )
        self.out_channels = sum(out_channels)
        self.deblocks = nn.ModuleList(
            nn.Sequential(
                _resample(c_in, c_out, stride, use_conv_for_no_stride),
                nn.BatchNorm2d(c_out, eps=1e-3, momentum=0.01),
                nn.ReLU(inplace=True),
            )
            for c_in, c_out, stride in zip(in_channels, out_channels, upsample_strides, strict=True)
        )

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """Maps (B, in_channels[i], X / s_i, Y / s_i) -> (B, sum of out_channels, X, Y).

        Raises:
            ValueError: If there are more or fewer maps, or their resolutions do not fit the strides.
        """
        if len(maps) != len(self.deblocks):
            raise ValueError(
                f"SECONDFPN: maps must be {len(self.deblocks)} tensors, got {len(maps)}."
            )
        resampled = [deblock(x) for deblock, x in zip(self.deblocks, maps, strict=True)]
        if len({x.shape[2:] for x in resampled}) > 1:
            raise ValueError(
                "SECONDFPN: maps must have one resolution after upsample_strides, got "
                f"{[tuple(x.shape[2:]) for x in resampled]}. Use a grid that the strides divide."
            )
        return torch.cat(resampled, 1)


def _conv_norm_relu(in_channels: int, out_channels: int, stride: int = 1) -> list[nn.Module]:
    return [
        nn.Conv2d(in_channels, out_channels, 3, stride, padding=1, bias=False),
        nn.BatchNorm2d(out_channels, eps=1e-3, momentum=0.01),
        nn.ReLU(inplace=True),
    ]


def _resample(in_channels: int, out_channels: int, stride: float, plain: bool) -> nn.Module:
    if stride > 1 or (stride == 1 and not plain):
        step = round(stride)
        layer = nn.ConvTranspose2d(in_channels, out_channels, step, step, bias=False)
        nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
        return layer
    step = round(1 / stride)
    return nn.Conv2d(in_channels, out_channels, step, step, bias=False)
