"""Changing which voxels there are: prune, crop, and the step to a dense bird's-eye view."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from pointlib.ops.kernel_map import to_triple
from pointlib.ops.scatter import scatter_max, scatter_mean, scatter_sum
from pointlib.tensor import SparseTensor

BevMode = Literal["stack", "sum", "mean", "max"]


def prune(x: SparseTensor, mask: Tensor) -> SparseTensor:
    """Keep the voxels that a mask selects.

    Args:
        x: N voxels.
        mask: (N,) bool, True to keep.

    Returns:
        The kept voxels in the same order; stride, spatial_shape and batch_size are x's. Differentiable.

    Raises:
        TypeError, ValueError: If mask is not (N,) bool.
    """
    if mask.dtype != torch.bool:
        raise TypeError(f"prune: mask must be bool, got {mask.dtype}. Compare it with a threshold.")
    if mask.shape != (len(x),):
        raise ValueError(
            f"prune: mask must have one entry per voxel, got {tuple(mask.shape)} for {len(x)} voxels."
        )
    return SparseTensor(x.feats[mask], x.coords[mask], x.stride, x.spatial_shape, x.batch_size)


def crop(
    x: SparseTensor,
    minimum: Sequence[int] | None = None,
    maximum: Sequence[int] | None = None,
) -> SparseTensor:
    """Keep the voxels inside a box; coordinates do not move.

    Args:
        x: Voxels.
        minimum: (x, y, z) in voxels of x, inclusive; None leaves the side open.
        maximum: (x, y, z) in voxels of x, exclusive; None leaves the side open.

    Returns:
        The kept voxels in the same order; stride, spatial_shape and batch_size are x's.

    Raises:
        ValueError: If a bound is not three ints.
    """
    xyz = x.coords[:, 1:]
    inside = torch.ones_like(xyz, dtype=torch.bool)
    if minimum is not None:
        inside &= xyz >= xyz.new_tensor(_bound(minimum, "minimum"))
    if maximum is not None:
        inside &= xyz < xyz.new_tensor(_bound(maximum, "maximum"))
    return prune(x, inside.all(1))


def to_bev(
    x: SparseTensor, mode: BevMode = "stack", spatial_shape: Sequence[int] | None = None
) -> Tensor:
    """Turn voxels into a dense bird's-eye view.

    Args:
        x: Voxels in [0, spatial_shape).
        mode: "stack" puts z into the channels, channel `c * Z + z`; "sum", "mean" and "max" reduce over the voxels
            present in each column.
        spatial_shape: (X, Y, Z) in voxels; x's own by default.

    Returns:
        (batch_size, C * Z, X, Y) for "stack", else (batch_size, C, X, Y); 0 where there is no voxel. Differentiable.

    Raises:
        ValueError: If neither x nor the caller gives spatial_shape, a voxel lies outside it, or mode is another.
    """
    shape = spatial_shape or x.spatial_shape
    if shape is None:
        raise ValueError(
            "to_bev: spatial_shape must be known, got None from the caller and from x. Pass (X, Y, Z) in voxels."
        )
    size_x, size_y, size_z = to_triple(shape, "to_bev", "spatial_shape", 1)
    if mode == "stack":
        return x.dense(shape=(size_x, size_y, size_z)).permute(0, 1, 4, 2, 3).flatten(1, 2)
    reductions = {
        "sum": scatter_sum,
        "mean": scatter_mean,
        "max": lambda *args: scatter_max(*args).feats,
    }
    if mode not in reductions:
        raise ValueError(f"to_bev: mode must be one of {get_args(BevMode)}, got {mode!r}.")
    xyz = x.coords[:, 1:]
    if bool(((xyz < 0) | (xyz >= xyz.new_tensor((size_x, size_y, size_z)))).any()):
        raise ValueError(
            f"to_bev: voxels must lie in [0, {(size_x, size_y, size_z)}), got {xyz.amin(0).tolist()} to "
            f"{xyz.amax(0).tolist()}. Crop first, or pass a larger spatial_shape."
        )
    b, column_x, column_y, _ = x.coords.long().unbind(1)
    column = (b * size_x + column_x) * size_y + column_y
    columns = reductions[mode](x.feats, column, x.batch_size * size_x * size_y)
    return columns.view(x.batch_size, size_x, size_y, -1).permute(0, 3, 1, 2)


class Crop(nn.Module):
    """`crop` as a module."""

    def __init__(
        self, minimum: Sequence[int] | None = None, maximum: Sequence[int] | None = None
    ) -> None:
        super().__init__()
        self.minimum = minimum
        self.maximum = maximum

    def forward(self, x: SparseTensor) -> SparseTensor:
        """Keep the voxels inside the box."""
        return crop(x, self.minimum, self.maximum)


class ToBEV(nn.Module):
    """`to_bev` as a module."""

    def __init__(self, mode: BevMode = "stack", spatial_shape: Sequence[int] | None = None) -> None:
        super().__init__()
        self.mode: BevMode = mode
        self.spatial_shape = spatial_shape

    def forward(self, x: SparseTensor) -> Tensor:
        """Turn (N, C) voxels into (batch_size, C * Z or C, X, Y)."""
        return to_bev(x, self.mode, self.spatial_shape)


def _bound(values: Sequence[int], name: str) -> list[int]:
    if len(values) != 3:
        raise ValueError(f"crop: {name} must be (x, y, z) in voxels, got {values!r}.")
    return [int(value) for value in values]
