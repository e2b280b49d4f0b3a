"""Joining the bird's-eye views of several sensors into one.

Paper: Liu et al., BEVFusion, ICRA 2023, section 3.3. Parameter names are those of mit-han-lab/bevfusion.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from pointlib.registry import Registry

FUSERS: Registry[nn.Module] = Registry("fuser")


def _conv_bn_relu(in_channels: int, out_channels: int) -> list[nn.Module]:
    return [
        nn.Conv2d(in_channels, out_channels, 3, padding=1, bias=False),
        nn.BatchNorm2d(out_channels),
        nn.ReLU(inplace=True),
    ]


@FUSERS.register("conv")
class ConvFuser(nn.Sequential):
    """One 3x3 convolution over the channels of all sensors. A sensor that is missing brings zeros.

    Args:
        in_channels: Channels of each sensor's view, in the order of the encoders.
        out_channels: Channels of the joined view.
    """

    def __init__(self, in_channels: Sequence[int], out_channels: int) -> None:
        super().__init__(*_conv_bn_relu(sum(in_channels), out_channels))
        self.out_channels = out_channels

    def forward(self, views: Sequence[Tensor], present: Tensor) -> Tensor:  # type: ignore[override]
        """Join views.

        Args:
            views: One (B, in_channels, X, Y) for each sensor, zeros where it is missing.
            present: (B, sensors) bool; not needed here.

        Returns:
            (B, out_channels, X, Y).
        """
        joined: Tensor = super().forward(torch.cat(list(views), dim=1))
        return joined


@FUSERS.register("add")
class AddFuser(nn.Module):
    """The mean of the sensors' views, each after a convolution of its own; over the sensors that are present.

    Args:
        in_channels: Channels of each sensor's view, in the order of the encoders.
        out_channels: Channels of the joined view.
    """

    def __init__(self, in_channels: Sequence[int], out_channels: int) -> None:
        super().__init__()
        self.out_channels = out_channels
        self.transforms = nn.ModuleList(
            nn.Sequential(*_conv_bn_relu(channels, out_channels)) for channels in in_channels
        )

    def forward(self, views: Sequence[Tensor], present: Tensor) -> Tensor:
        """Join views; arguments and result as of `ConvFuser.forward`, zeros where no sensor is present."""
        weights = present.to(views[0].dtype)
        weights = weights / weights.sum(1, keepdim=True).clamp_min(1)
        joined = torch.zeros(())
        for view, weight, transform in zip(views, weights.T, self.transforms, strict=True):
            joined = joined.to(view) + weight[:, None, None, None] * transform(view)
        return joined
