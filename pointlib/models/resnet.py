"""Residual networks: ResNet of images, and the encoder of bird's-eye views in camera-only BEVFusion.

Paper: He et al., Deep Residual Learning for Image Recognition, CVPR 2016; strides stand in the 3x3 convolution of a
bottleneck ("ResNet V1.5"). Parameter names are torchvision's, which mmdetection uses too; `GeneralizedResNet` has
those of mit-han-lab/bevfusion.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a skip connection.

    Args:
        in_channels: Channels of the input.
        width: Channels of the convolutions; `expansion` times as many come out.
        stride: Of the first 3x3 convolution.
    """

    expansion = 1

    def __init__(self, in_channels: int, width: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, width, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = _projection(in_channels, width, stride)

    def forward(self, x: Tensor) -> Tensor:
        """(B, in_channels, H, W) -> (B, width, H / stride, W / stride)."""
        y = self.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        return self.relu(y + (self.downsample(x) if self.downsample is not None else x))


class Bottleneck(nn.Module):
    """1x1, 3x3 and 1x1 convolution and a skip connection; arguments as of `BasicBlock`."""

    expansion = 4

    def __init__(self, in_channels: int, width: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, 4 * width, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(4 * width)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = _projection(in_channels, 4 * width, stride)

    def forward(self, x: Tensor) -> Tensor:
        """(B, in_channels, H, W) -> (B, 4 * width, H / stride, W / stride)."""
        y = self.relu(self.bn1(self.conv1(x)))
        y = self.relu(self.bn2(self.conv2(y)))
        y = self.bn3(self.conv3(y))
        return self.relu(y + (self.downsample(x) if self.downsample is not None else x))


Block = BasicBlock | Bottleneck
DEPTHS: dict[int, tuple[type[Block], tuple[int, ...]]] = {
    18: (BasicBlock, (2, 2, 2, 2)),
    34: (BasicBlock, (3, 4, 6, 3)),
    50: (Bottleneck, (3, 4, 6, 3)),
    101: (Bottleneck, (3, 4, 23, 3)),
    152: (Bottleneck, (3, 8, 36, 3)),
}
"""Block and number of blocks of each stage, by number of layers (table 1)."""


class ResNet(nn.Module):
    """Maps of an image at strides 4, 8, 16 and 32.

    Args:
        depth: Layers, one of `DEPTHS`.
        out_indices: Stages to return, 0 to 3.
        frozen_stages: -1 trains all; 0 freezes the stem, i > 0 also the first i stages.
        norm_eval: Whether batch norms keep the statistics they were loaded with, as mmdetection does by default: few
            images a batch estimate them badly.
        with_cp: Whether blocks are recomputed in the backward pass rather than their activations kept.
        in_channels: Channels of the image.
        base_channels: Channels of the stem; 64 as published.
    """

    def __init__(
        self,
        depth: int = 50,
        out_indices: Sequence[int] = (1, 2, 3),
        frozen_stages: int = -1,
        norm_eval: bool = False,
        with_cp: bool = False,
        in_channels: int = 3,
        base_channels: int = 64,
    ) -> None:
        super().__init__()
        if depth not in DEPTHS:
            raise ValueError(f"ResNet: depth must be one of {sorted(DEPTHS)}, got {depth}")
        block, counts = DEPTHS[depth]
        if not set(out_indices) <= set(range(len(counts))):
            raise ValueError(f"ResNet: out_indices must be among 0 to 3, got {list(out_indices)}")
        self.out_indices = tuple(out_indices)
        self.frozen_stages = frozen_stages
        self.norm_eval = norm_eval
        self.with_cp = with_cp
        self.conv1 = nn.Conv2d(in_channels, base_channels, 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(base_channels)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, 2, 1)
        channels = base_channels
        widths = [base_channels * 2**i for i in range(len(counts))]
        for i, (count, width) in enumerate(zip(counts, widths, strict=True)):
            stage = residual_stage(block, channels, width, count, stride=1 if i == 0 else 2)
            self.add_module(f"layer{i + 1}", stage)
            channels = width * block.expansion
        self.out_channels = tuple(widths[i] * block.expansion for i in self.out_indices)
        _initialize(self)
        self.train()

    def forward(self, images: Tensor) -> list[Tensor]:
        """Encode images.

        Args:
            images: (B, in_channels, H, W) normalised RGB.

        Returns:
            For each of out_indices, (B, C, h, w).

        Raises:
            ValueError: Another shape.
        """
        channels = self.conv1.in_channels
        if images.dim() != 4 or images.shape[1] != channels:
            raise ValueError(
                f"ResNet: images must be (B, {channels}, H, W), got {tuple(images.shape)}"
            )
        x = self.maxpool(self.relu(self.bn1(self.conv1(images))))
        maps = []
        for i in range(1 + max(self.out_indices)):
            for block in self.get_submodule(f"layer{i + 1}").children():
                if self.with_cp and torch.is_grad_enabled():
                    x = checkpoint(block, x, use_reentrant=False)
                else:
                    x = block(x)
            if i in self.out_indices:
                maps.append(x)
        return maps

    def train(self, mode: bool = True) -> ResNet:
        """Set training mode; frozen stages, and with norm_eval all batch norms, stay in evaluation mode."""
        super().train(mode)
        if self.frozen_stages >= 0:
            stages = [f"layer{i + 1}" for i in range(self.frozen_stages)]
            for name in ("conv1", "bn1", *stages):
                self.get_submodule(name).eval().requires_grad_(False)
        if self.norm_eval:
            for module in self.modules():
                if isinstance(module, _BatchNorm):
                    module.eval()
        return self


class GeneralizedResNet(nn.ModuleList):
    """Stages of basic blocks over a bird's-eye view, without a stem.

    Args:
        in_channels: Channels of the view.
        blocks: For each stage, its number of blocks, channels and stride.
    """

    def __init__(self, in_channels: int, blocks: Sequence[tuple[int, int, int]]) -> None:
        super().__init__()
        self.out_channels = tuple(width for _, width, _ in blocks)
        for count, width, stride in blocks:
            self.append(residual_stage(BasicBlock, in_channels, width, count, stride))
            in_channels = width
        _initialize(self)

    def forward(self, x: Tensor) -> list[Tensor]:
        """(B, in_channels, X, Y) -> the map after each stage."""
        maps = []
        for stage in self:
            x = stage(x)
            maps.append(x)
        return maps


def residual_stage(
    block: type[Block], in_channels: int, width: int, count: int, stride: int
) -> nn.Sequential:
    """Blocks of one resolution; the first may have a stride and change the channels."""
    rest = [block(width * block.expansion, width) for _ in range(count - 1)]
    return nn.Sequential(block(in_channels, width, stride), *rest)


def _projection(in_channels: int, out_channels: int, stride: int) -> nn.Sequential | None:
    """What a skip connection passes where the shape changes."""
    if stride == 1 and in_channels == out_channels:
        return None
    conv = nn.Conv2d(in_channels, out_channels, 1, stride, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(out_channels))


def _initialize(network: nn.Module) -> None:
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
