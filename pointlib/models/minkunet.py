"""MinkUNet: a sparse residual U-Net for LiDAR segmentation.

Paper: Choy et al., 4D Spatio-Temporal ConvNets: Minkowski Convolutional Neural Networks, CVPR 2019; in the form of
Tang et al., Searching Efficient 3D Architectures with Sparse Point-Voxel Convolution, ECCV 2020, whose layer
structure and parameter names (mit-han-lab/spvnas) are kept, so its checkpoints load unchanged.
"""

from __future__ import annotations

from torch import Tensor, nn

from pointlib.models._registry import register_model
from pointlib.nn import BatchNorm, Conv3d, Linear, ReLU, conv_norm_act
from pointlib.ops.kernel_map import ConvSpec
from pointlib.tensor import SparseTensor

WIDTHS = (32, 32, 64, 128, 256, 256, 128, 96, 96)
"""Channels of the stem, the four encoder and the four decoder stages at cr = 1."""
SAME_LEVEL, NEXT_LEVEL = ConvSpec(3), ConvSpec(2, stride=2)


class ConvBlock(nn.Module):
    """Convolution, batch norm, ReLU."""

    def __init__(
        self, in_channels: int, out_channels: int, kernel_size: int, stride: int, transposed: bool
    ) -> None:
        super().__init__()
        self.net = nn.Sequential(
            Conv3d(in_channels, out_channels, kernel_size, stride, transposed=transposed),
            BatchNorm(out_channels),
            ReLU(inplace=True),
        )

    def forward(self, x: SparseTensor) -> SparseTensor:
        """Features (N, in_channels) -> (M, out_channels)."""
        conv, norm, relu = self.net
        return conv_norm_act(x, conv, norm, relu)


class ResidualBlock(nn.Module):
    """Two 3x3x3 submanifold convolutions with a skip connection, projected where the channels change."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.net = nn.Sequential(
            Conv3d(in_channels, out_channels, 3),
            BatchNorm(out_channels),
            ReLU(inplace=True),
            Conv3d(out_channels, out_channels, 3),
            BatchNorm(out_channels),
        )
        self.downsample: nn.Module = nn.Identity()
        if in_channels != out_channels:
            self.downsample = nn.Sequential(
                Conv3d(in_channels, out_channels, 1), BatchNorm(out_channels)
            )
        self.relu = ReLU(inplace=True)

    def forward(self, x: SparseTensor, skip: SparseTensor | None = None) -> SparseTensor:
        """Features (N, in_channels) -> (N, out_channels); the channels of `skip` follow those of x."""
        conv1, norm1, relu1, conv2, norm2 = self.net
        residual, projected = x.feats, isinstance(self.downsample, nn.Sequential)
        if isinstance(self.downsample, nn.Sequential):
            conv, norm = self.downsample
            residual = conv_norm_act(x, conv, norm, skip=skip).feats
        x = conv_norm_act(x, conv1, norm1, relu1, skip)
        return conv_norm_act(
            x, conv2, norm2, self.relu, residual=residual, overwrite_residual=projected
        )


class MinkUNet(nn.Module):
    """Encoder of strides 1 to 16 and decoder back, skip connections at every stride.

    Args:
        in_channels: Features of a voxel.
        num_classes: Classes to score.
        cr: Channel ratio; every width is int(cr * its width in WIDTHS).

    The three point transforms are SPVCNN's; here they hold parameters that nothing reads, as in the original.
    """

    def __init__(self, in_channels: int = 4, num_classes: int = 19, cr: float = 1.0) -> None:
        super().__init__()
        if cr <= 0 or int(cr * min(WIDTHS)) < 1:
            raise ValueError(
                f"MinkUNet: cr must give every stage a channel (>= {1 / min(WIDTHS)}), got {cr}."
            )
        self.in_channels = in_channels
        self.num_classes = num_classes
        cs = [int(cr * width) for width in WIDTHS]
        self.stem = nn.Sequential(
            *(Conv3d(in_channels, cs[0], 3), BatchNorm(cs[0]), ReLU(inplace=True)),
            *(Conv3d(cs[0], cs[0], 3), BatchNorm(cs[0]), ReLU(inplace=True)),
        )
        self.stage1 = _encoder_stage(cs[0], cs[1])
        self.stage2 = _encoder_stage(cs[1], cs[2])
        self.stage3 = _encoder_stage(cs[2], cs[3])
        self.stage4 = _encoder_stage(cs[3], cs[4])
        self.up1 = _decoder_stage(cs[4], cs[5], skip=cs[3])
        self.up2 = _decoder_stage(cs[5], cs[6], skip=cs[2])
        self.up3 = _decoder_stage(cs[6], cs[7], skip=cs[1])
        self.up4 = _decoder_stage(cs[7], cs[8], skip=cs[0])
        self.classifier = nn.Sequential(Linear(cs[8], num_classes))
        self.point_transforms = nn.ModuleList(
            nn.Sequential(Linear(a, b), BatchNorm(b), ReLU())
            for a, b in ((cs[0], cs[4]), (cs[4], cs[6]), (cs[6], cs[8]))
        )

    def forward(self, x: SparseTensor) -> Tensor:
        """Score every voxel.

        Args:
            x: (N, in_channels) features on voxels of stride 1.

        Returns:
            (N, num_classes) logits, in the order of x.
        """
        levels = list(self.encode(x))
        y = levels.pop()
        for up in (self.up1, self.up2, self.up3, self.up4):
            deconv, refine = up.children()
            first, second = refine.children()
            y = deconv(y)  # one name, so that no stage's features outlive their last use
            y = second(first(y, levels.pop()))
        return self.classifier(y.feats)

    def encode(self, x: SparseTensor) -> tuple[SparseTensor, ...]:
        """Voxels of stride 1 -> features at strides 1, 2, 4, 8, 16."""
        check_input(self, x)
        x.maps.prepare(x.sites, SAME_LEVEL, NEXT_LEVEL, levels=5)
        conv1, norm1, relu1, conv2, norm2, relu2 = self.stem
        x = conv_norm_act(x, conv1, norm1, relu1)
        levels = [conv_norm_act(x, conv2, norm2, relu2)]
        for stage in (self.stage1, self.stage2, self.stage3, self.stage4):
            levels.append(stage(levels[-1]))
        return tuple(levels)


def check_input(model: MinkUNet, x: SparseTensor) -> None:
    """Raise ValueError unless x is what the network takes."""
    name = type(model).__name__
    if x.num_channels != model.in_channels or x.stride != (1, 1, 1):
        raise ValueError(
            f"{name}: x must have {model.in_channels} channels at stride (1, 1, 1), "
            f"got {x.num_channels} at {x.stride}."
        )
    if not len(x):
        raise ValueError(f"{name}: x must hold at least one voxel, got none. Skip empty scans.")


def _encoder_stage(in_channels: int, out_channels: int) -> nn.Sequential:
    return nn.Sequential(
        ConvBlock(in_channels, in_channels, 2, stride=2, transposed=False),
        ResidualBlock(in_channels, out_channels),
        ResidualBlock(out_channels, out_channels),
    )


def _decoder_stage(in_channels: int, out_channels: int, skip: int) -> nn.ModuleList:
    return nn.ModuleList(
        [
            ConvBlock(in_channels, out_channels, 2, stride=2, transposed=True),
            nn.Sequential(
                ResidualBlock(out_channels + skip, out_channels),
                ResidualBlock(out_channels, out_channels),
            ),
        ]
    )


@register_model()
def minkunet(in_channels: int = 4, num_classes: int = 19, cr: float = 1.0) -> MinkUNet:
    """MinkUNet at any channel ratio cr."""
    return MinkUNet(in_channels, num_classes, cr)


@register_model()
def minkunet_cr0p5(in_channels: int = 4, num_classes: int = 19) -> MinkUNet:
    """MinkUNet, 5.5 M parameters."""
    return MinkUNet(in_channels, num_classes, cr=0.5)


@register_model()
def minkunet_cr0p64(in_channels: int = 4, num_classes: int = 19) -> MinkUNet:
    """MinkUNet, 8.8 M parameters."""
    return MinkUNet(in_channels, num_classes, cr=0.64)


@register_model()
def minkunet_cr1p0(in_channels: int = 4, num_classes: int = 19) -> MinkUNet:
    """MinkUNet, 21.8 M parameters."""
    return MinkUNet(in_channels, num_classes, cr=1.0)
