"""Small convolution stacks side by side, one for each quantity a detection head predicts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn


class ConvBlock(nn.Sequential):
    """Convolution without bias, batch norm, ReLU; parameters `conv` and `bn`, as mmcv names them.

    Args:
        in_channels: Features in.
        out_channels: Features out.
        kernel_size: Odd; the size of the map is kept.
        dims: 1 for sequences (B, C, P), 2 for maps (B, C, X, Y).
    """

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int, dims: int) -> None:
        super().__init__()
        self.conv = _conv(in_channels, out_channels, kernel_size, dims, bias=False)
        self.bn = nn.BatchNorm2d(out_channels) if dims == 2 else nn.BatchNorm1d(out_channels)
        self.activate = nn.ReLU(inplace=True)
        nn.init.kaiming_normal_(self.conv.weight, mode="fan_out", nonlinearity="relu")


class PredictionBranches(nn.Module):
    """For each quantity its own stack on the same features (SeparateHead and FFN of published heads).

    Args:
        in_channels: Features in.
        branches: For each name the number of its outputs. "heatmap" starts at a probability of 0.1.
        hidden_channels: Features between the two convolutions of a branch.
        kernel_size: Of all convolutions.
        dims: 1 for sequences, 2 for maps.
    """

    def __init__(
        self,
        in_channels: int,
        branches: Mapping[str, int],
        hidden_channels: int = 64,
        kernel_size: int = 1,
        dims: int = 2,
    ) -> None:
        super().__init__()
        self.names = tuple(branches)
        for name, outputs in branches.items():
            last = _conv(hidden_channels, outputs, kernel_size, dims, bias=True)
            if name == "heatmap":
                expect_few_centres(last)
            first = ConvBlock(in_channels, hidden_channels, kernel_size, dims)
            self.add_module(name, nn.Sequential(first, last))

    def forward(self, features: Tensor) -> dict[str, Tensor]:
        """Float32 outputs (B, outputs, ...) of each branch on features (B, in_channels, ...)."""
        return {name: self.get_submodule(name)(features).float() for name in self.names}


def _conv(in_channels: int, out_channels: int, kernel_size: int, dims: int, bias: bool) -> Any:
    kind = nn.Conv2d if dims == 2 else nn.Conv1d
    return kind(in_channels, out_channels, kernel_size, padding=kernel_size // 2, bias=bias)


def expect_few_centres(layer: nn.Conv1d | nn.Conv2d) -> None:
    """Start heatmap logits at -2.19, a probability of 0.1, since most cells hold no centre.

    Zhou et al., Objects as Points, 2019, section 4.
    """
    assert layer.bias is not None
    nn.init.constant_(layer.bias, -2.19)
