"""Sparse convolution as a module: submanifold, strided, transposed and generative."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import nn

from pointlib.ops.kernel_map import ConvSpec, KernelMap, Relation
from pointlib.ops.sparse_conv import sparse_conv
from pointlib.sites import Sites
from pointlib.tensor import SparseTensor


class Conv3d(nn.Module):
    """Convolve a SparseTensor; `pointlib.ops.kernel_map` states the index relation.

    Args:
        in_channels: C_in.
        out_channels: C_out.
        kernel_size: Taps per axis, 1 to 7; int or (x, y, z).
        stride: Input voxels per output voxel (per input voxel, where transposed); int or (x, y, z).
        padding: Voxels; None for the relation's default (centred, or 0 for `spconv`).
        dilation: Input voxels between taps.
        groups: Channel groups; C_in for depthwise.
        bias: Add a learned bias.
        transposed: Go back to the voxels that the convolution of the same kernel_size, stride, padding, dilation
            and relation came from.
        generative: Transposed, onto every voxel that is reached.
        relation: Which outputs exist: "submanifold", "minkowski" or "spconv"; None means submanifold at stride 1
            and minkowski otherwise.

    Attributes:
        kernel: (K, C_in / groups, C_out), taps in the order of `kernel_map.kernel_taps`; (C_in / groups, C_out) for
            one tap at stride 1, as in torchsparse.
        bias: (C_out,) or None.

    Raises:
        ValueError: If an argument is out of range.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | Sequence[int] = 3,
        stride: int | Sequence[int] = 1,
        padding: int | Sequence[int] | None = None,
        dilation: int | Sequence[int] = 1,
        groups: int = 1,
        bias: bool = False,
        transposed: bool = False,
        generative: bool = False,
        relation: Relation | None = None,
    ) -> None:
        super().__init__()
        if in_channels < 1 or out_channels < 1:
            raise ValueError(
                f"Conv3d: in_channels and out_channels must be at least 1, got {in_channels} and {out_channels}."
            )
        if groups < 1 or in_channels % groups or out_channels % groups:
            raise ValueError(
                f"Conv3d: groups must divide in_channels and out_channels, got groups {groups}, "
                f"in_channels {in_channels}, out_channels {out_channels}."
            )
        self.spec = ConvSpec(kernel_size, stride, padding, dilation, relation)
        self.in_channels = in_channels
        self.out_channels = out_channels
        self.groups = groups
        self.transposed = transposed or generative
        self.generative = generative
        taps = self.spec.kernel_volume
        shape = (taps, in_channels // groups, out_channels)
        self.is_pointwise = taps == 1 and self.spec.stride == (1, 1, 1) and not self.transposed
        self.kernel = nn.Parameter(torch.empty(shape[1:] if self.is_pointwise else shape))
        self.bias = nn.Parameter(torch.empty(out_channels)) if bias else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw kernel and bias from U(-b, b), b = 1 / sqrt(fan in), the fan in being that of the output."""
        channels = self.out_channels if self.transposed else self.in_channels
        bound = 1 / math.sqrt(channels * self.spec.kernel_volume / self.groups)
        nn.init.uniform_(self.kernel, -bound, bound)
        if self.bias is not None:
            nn.init.uniform_(self.bias, -bound, bound)

    def forward(self, x: SparseTensor) -> SparseTensor:
        """Convolve x, (N, C_in) features, into (M, C_out) on the voxels of the output."""
        self.check_input(x.num_channels, x)
        sites, kernel_map = self.map_of(x)
        kernel = self.kernel.unsqueeze(0) if self.is_pointwise else self.kernel
        feats = sparse_conv(x.feats, kernel, kernel_map, self.bias, self.groups)
        return x.on(sites, feats)

    def check_input(self, channels: int, x: SparseTensor) -> None:
        """Raise unless `channels` channels of the dtype of x are what the layer takes."""
        if channels != self.in_channels:
            raise ValueError(f"Conv3d: x must have {self.in_channels} channels, got {channels}.")
        if x.dtype != self.kernel.dtype and not torch.is_autocast_enabled(x.device.type):
            raise TypeError(
                f"Conv3d: x must have the parameters' dtype {self.kernel.dtype}, got {x.dtype}. "
                "Convert one of them with .to(), or use torch.autocast."
            )

    def map_of(self, x: SparseTensor) -> tuple[Sites, KernelMap | None]:
        """The output's voxels and the pairs that feed them; None for pairs where every row feeds itself alone."""
        if self.is_pointwise and self.spec.padding == (0, 0, 0):
            return x.sites, None
        if self.generative:
            return x.maps.generative(x.sites, self.spec)
        if self.transposed:
            return x.maps.inverse(x.sites, self.spec)
        return x.maps.conv(x.sites, self.spec)

    def extra_repr(self) -> str:
        """Arguments, as printed."""
        kind = (
            "generative"
            if self.generative
            else "transposed"
            if self.transposed
            else self.spec.relation
        )
        return (
            f"{self.in_channels}, {self.out_channels}, kernel_size={self.spec.kernel_size}, stride={self.spec.stride}, "
            f"padding={self.spec.padding}, dilation={self.spec.dilation}, groups={self.groups}, "
            f"bias={self.bias is not None}, {kind}"
        )
