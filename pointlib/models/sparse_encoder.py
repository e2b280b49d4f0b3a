"""SparseEncoder: the sparse 3D backbone of VoxelNet detectors, from voxels to a bird's-eye view.

Paper: Yan et al., SECOND: Sparsely Embedded Convolutional Detection, Sensors 2018; in the form of Liu et al.,
BEVFusion, ICRA 2023, whose layer structure, parameter names and shapes (mit-han-lab/bevfusion) are kept, so its
checkpoints load unchanged. All layers of one resolution share one kernel map.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from torch import Tensor, nn

from pointlib.nn import BatchNorm, Conv3d, ReLU, conv_norm_act, to_bev
from pointlib.ops.kernel_map import to_triple
from pointlib.tensor import SparseTensor

BlockType = Literal["basicblock", "conv_module"]
Padding = int | Sequence[int]


class SpconvConv3d(Conv3d):
    """Conv3d that holds its kernel as spconv 1.x does, under its name; arguments as Conv3d.

    A state dict with the layout of spconv 2.x, (C_out, x, y, z, C_in), is recognised by its shape when it is loaded.
    The order of the axes cannot be: mmdetection3d's own encoders and OpenPCDet have z, y, x; transpose theirs first.

    Attributes:
        weight: (x, y, z, C_in, C_out). Its strides are those of the taps' order in `kernel_map.kernel_taps`, so that
            no copy lies between it and the operator.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        kernel = self._parameters.pop("kernel")
        assert kernel is not None
        x, y, z = self.spec.kernel_size
        taps = kernel.detach()
        if self._x_runs_fastest:
            taps = taps.reshape(z, y, x, *taps.shape[-2:]).permute(2, 1, 0, 3, 4)
        self.weight = nn.Parameter(taps.reshape(x, y, z, *taps.shape[-2:]))

    @property
    def kernel(self) -> Tensor:  # type: ignore[override]
        """(K, C_in, C_out) view of weight, or (C_in, C_out) for one tap at stride 1."""
        taps = self.weight.permute(2, 1, 0, 3, 4) if self._x_runs_fastest else self.weight
        return taps.flatten(0, 3 if self.is_pointwise else 2)

    @property
    def _x_runs_fastest(self) -> bool:
        return self.spec.kernel_volume % 2 == 1

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *args: Any) -> None:
        weight, own = state_dict.get(prefix + "weight"), tuple(self.weight.shape)
        other = (own[4], *own[:4])
        if weight is not None and tuple(weight.shape) == other != own:
            state_dict[prefix + "weight"] = weight.permute(1, 2, 3, 4, 0)
        super()._load_from_state_dict(state_dict, prefix, *args)


class SparseConvModule(nn.Sequential):
    """Convolution, batch norm, ReLU."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Padding = 3,
        stride: Padding = 1,
        padding: Padding = 1,
        submanifold: bool = False,
    ) -> None:
        relation: Literal["submanifold", "spconv"] = "submanifold" if submanifold else "spconv"
        super().__init__(
            SpconvConv3d(
                in_channels, out_channels, kernel_size, stride, padding, relation=relation
            ),
            BatchNorm(out_channels, eps=1e-3, momentum=0.01),
            ReLU(inplace=True),
        )

    def forward(self, x: SparseTensor) -> SparseTensor:
        """Features (N, in_channels) -> (M, out_channels)."""
        conv, norm, relu = self
        return conv_norm_act(x, conv, norm, relu)


class SparseBasicBlock(nn.Module):
    """Two 3x3x3 submanifold convolutions with a skip connection."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = SpconvConv3d(channels, channels, 3)
        self.bn1 = BatchNorm(channels, eps=1e-3, momentum=0.01)
        self.relu = ReLU(inplace=True)
        self.conv2 = SpconvConv3d(channels, channels, 3)
        self.bn2 = BatchNorm(channels, eps=1e-3, momentum=0.01)

    def forward(self, x: SparseTensor) -> SparseTensor:
        """Features (N, channels) -> (N, channels)."""
        y = conv_norm_act(x, self.conv1, self.bn1, self.relu)
        return conv_norm_act(y, self.conv2, self.bn2, self.relu, residual=x.feats)


class SparseEncoder(nn.Module):
    """Four stages of sparse convolutions, then z folded into channels. The defaults are those of nuScenes at 0.075 m.

    Args:
        in_channels: Features of a voxel.
        sparse_shape: Extent (x, y, z) of the grid in voxels. Published ones have one voxel more in z than the range of
            the points; it decides the extents further down.
        output_channels: Channels of the last convolution, which halves z once more.
        encoder_channels: Output channels of each block of each stage. A "basicblock" stage ends with the strided
            convolution to the next and its last has none; a "conv_module" stage but the first begins with one.
        encoder_paddings: Padding of each, an int or (x, y, z); only strided convolutions heed it.
        base_channels: Channels of the first convolution.
        block_type: "basicblock": residual blocks, as for nuScenes; "conv_module": plain convolutions, as in SECOND.

    Raises:
        ValueError: If the stages do not fit each other, or are deeper than the grid.
    """

    def __init__(
        self,
        in_channels: int = 5,
        sparse_shape: Sequence[int] = (1440, 1440, 41),
        output_channels: int = 128,
        encoder_channels: Sequence[Sequence[int]] = (
            (16, 16, 32),
            (32, 32, 64),
            (64, 64, 128),
            (128, 128),
        ),
        encoder_paddings: Sequence[Sequence[Padding]] = (
            (0, 0, 1),
            (0, 0, 1),
            (0, 0, (1, 1, 0)),
            (0, 0),
        ),
        base_channels: int = 16,
        block_type: BlockType = "basicblock",
    ) -> None:
        super().__init__()
        _check_stages(encoder_channels, encoder_paddings, block_type)
        self.in_channels = in_channels
        self.sparse_shape = to_triple(sparse_shape, "SparseEncoder", "sparse_shape", 1)
        self.conv_input = SparseConvModule(in_channels, base_channels, submanifold=True)
        self.encoder_layers = nn.Sequential()
        channels = base_channels
        for number, (widths, paddings) in enumerate(
            zip(encoder_channels, encoder_paddings, strict=True)
        ):
            down = _strided_block(block_type, number, len(widths), len(encoder_channels))
            stage = nn.Sequential()
            for place, (width, padding) in enumerate(zip(widths, paddings, strict=True)):
                stage.append(_block(block_type, channels, width, padding, place == down))
                channels = width
            self.encoder_layers.add_module(f"encoder_layer{number + 1}", stage)
        self.conv_out = SparseConvModule(
            channels, output_channels, kernel_size=(1, 1, 3), stride=(1, 1, 2), padding=0
        )
        self.bev_shape = self._bev_shape()

    def forward(self, voxels: SparseTensor) -> Tensor:
        """Encode a batch.

        Args:
            voxels: (N, in_channels) features inside sparse_shape, at stride 1. There may be none.

        Returns:
            (B, output_channels * Z, X, Y), channel c * Z + z; 0 where nothing was near. X, Y, Z: `bev_shape`.

        Raises:
            ValueError: If the voxels are not as above.
        """
        if voxels.num_channels != self.in_channels or voxels.stride != (1, 1, 1):
            raise ValueError(
                f"SparseEncoder: voxels must have {self.in_channels} channels at stride (1, 1, 1), "
                f"got {voxels.num_channels} at {voxels.stride}."
            )
        given = voxels.spatial_shape
        if given is not None and any(
            mine < n for mine, n in zip(self.sparse_shape, given, strict=True)
        ):
            raise ValueError(
                f"SparseEncoder: voxels must lie in sparse_shape {self.sparse_shape}, got a grid of {given}. "
                "Let sparse_shape cover point_cloud_range / voxel_size."
            )
        if given != self.sparse_shape:
            voxels = SparseTensor(
                voxels.feats, voxels.coords, 1, self.sparse_shape, voxels.batch_size
            )
        return to_bev(self.conv_out(self.encoder_layers(self.conv_input(voxels))))

    def _bev_shape(self) -> tuple[int, int, int]:
        """Extent (X, Y, Z) of the output in cells."""
        shape = self.sparse_shape
        for module in self.modules():
            if isinstance(module, Conv3d):
                shape = module.spec.output_shape(shape)
        if min(shape) < 1:
            raise ValueError(
                f"SparseEncoder: sparse_shape must leave a voxel at the last stage, got {self.sparse_shape}, "
                f"of which {shape} is left. Use a larger grid or fewer stages."
            )
        return shape


def _strided_block(block_type: BlockType, stage: int, blocks: int, stages: int) -> int | None:
    """Which block of a stage is the strided convolution."""
    if block_type == "basicblock":
        return blocks - 1 if stage < stages - 1 else None
    return 0 if stage else None


def _block(
    block_type: BlockType, in_channels: int, out_channels: int, padding: Padding, strided: bool
) -> nn.Module:
    if strided:
        return SparseConvModule(in_channels, out_channels, stride=2, padding=padding)
    if block_type == "conv_module":
        return SparseConvModule(in_channels, out_channels, submanifold=True)
    if in_channels != out_channels:
        raise ValueError(
            "SparseEncoder: encoder_channels must keep the channels in a residual block, got "
            f"{out_channels} after {in_channels}. Change them in the last block of a stage."
        )
    return SparseBasicBlock(out_channels)


def _check_stages(
    channels: Sequence[Sequence[int]], paddings: Sequence[Sequence[Padding]], block_type: str
) -> None:
    if block_type not in ("basicblock", "conv_module"):
        raise ValueError(
            f"SparseEncoder: block_type must be 'basicblock' or 'conv_module', got {block_type!r}."
        )
    sizes = [len(stage) for stage in channels]
    if not sizes or not all(sizes) or sizes != [len(stage) for stage in paddings]:
        raise ValueError(
            "SparseEncoder: encoder_paddings must give one padding for each of encoder_channels, "
            f"got {paddings} for {channels}."
        )
