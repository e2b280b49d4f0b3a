"""Merging sparse tensors: concatenation and addition on the same voxels, addition over the union of voxels."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from pointlib.ops.coords import unique_coords
from pointlib.ops.scatter import scatter_sum
from pointlib.tensor import SparseTensor


def cat(tensors: Sequence[SparseTensor]) -> SparseTensor:
    """Concatenate channels.

    Args:
        tensors: One or more tensors on the same voxels in the same order.

    Returns:
        (N, sum of C) on the voxels, and with the kernel maps, of the first.

    Raises:
        ValueError: If there is none, or their voxels differ.
    """
    check_same_sites(tensors, "cat")
    return tensors[0].with_feats(torch.cat([x.feats for x in tensors], dim=1))


def add(x: SparseTensor, y: SparseTensor) -> SparseTensor:
    """Add features on the same voxels.

    Raises:
        ValueError: If the voxels differ; `union_add` adds over their union.
    """
    check_same_sites((x, y), "add")
    return x.with_feats(x.feats + y.feats)


def union_add(x: SparseTensor, y: SparseTensor) -> SparseTensor:
    """Add features over the union of voxels; where only one tensor has a voxel the other counts as 0.

    Returns:
        Voxels in lexicographic order; x's own order and kernel maps if both are on the same voxels.

    Raises:
        ValueError: If stride or channels differ, or both have a spatial_shape and these differ.
    """
    if x.sites is y.sites:
        return add(x, y)
    shapes = {shape for shape in (x.spatial_shape, y.spatial_shape) if shape is not None}
    if x.stride != y.stride or x.num_channels != y.num_channels or len(shapes) > 1:
        raise ValueError(
            "union_add: x and y must have the same stride, channels and spatial_shape, "
            f"got strides {x.stride} and {y.stride}, channels {x.num_channels} and {y.num_channels}, "
            f"spatial_shapes {x.spatial_shape} and {y.spatial_shape}."
        )
    unique = unique_coords(torch.cat([x.coords, y.coords]))
    feats = scatter_sum(torch.cat([x.feats, y.feats]), unique.inverse, len(unique.coords))
    shape = x.spatial_shape if x.spatial_shape == y.spatial_shape else None
    batch_size = max(x.batch_size, y.batch_size)
    return SparseTensor(feats, unique.coords, x.stride, shape, batch_size)


def check_same_sites(tensors: Sequence[SparseTensor], caller: str) -> None:
    """Raise ValueError unless there are tensors, all on the same voxels in the same order."""
    if not tensors:
        raise ValueError(f"{caller}: tensors must hold at least one tensor, got none.")
    first = tensors[0]
    for position, other in enumerate(tensors):
        if other.sites is first.sites:
            continue
        if other.stride != first.stride or not torch.equal(other.coords, first.coords):
            raise ValueError(
                f"{caller}: tensors must be on the same voxels in the same order, got {len(first)} voxels of "
                f"stride {first.stride} and, at position {position}, {len(other)} of stride {other.stride}. "
                "Bring them there with a transposed convolution of the encoder's own arguments, or use union_add."
            )
