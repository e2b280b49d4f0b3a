"""SparseTensor and PointTensor: features on voxels and on points, with the kernel maps of those voxels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from pointlib.ops.coords import check_coords
from pointlib.ops.kernel_map import Triple
from pointlib.sites import SiteMaps, Sites


class SparseTensor:
    """Features on sparse voxels. Immutable: every method returns a new tensor.

    Args:
        feats: (N, C) float features.
        coords: (N, 4) int32 `[batch, x, y, z]`, distinct, x, y, z in voxels of this tensor's resolution. Rows may
            come in any order; lexicographic order, as `voxelize` gives, is the fastest.
        stride: Size of a voxel in input voxels; int or (x, y, z).
        spatial_shape: Extent in voxels of this resolution; None leaves it unbounded. It matters to the `spconv`
            relation and to `dense`.
        batch_size: Number of batch entries; None takes the largest batch index + 1.

    Raises:
        TypeError, ValueError: If a dtype or shape is not as above. Duplicates are found by the first kernel map.

    Example:
        >>> x = SparseTensor(torch.ones(2, 1), torch.tensor([[0, 0, 0, 0], [0, 0, 0, 1]]).int())
        >>> x.num_channels, x.batch_size, len(x)
        (1, 1, 2)
    """

    def __init__(
        self,
        feats: Tensor,
        coords: Tensor,
        stride: int | Sequence[int] = 1,
        spatial_shape: int | Sequence[int] | None = None,
        batch_size: int | None = None,
    ) -> None:
        check_coords(coords, "SparseTensor")
        _check_rows("SparseTensor", feats, coords)
        self.feats = feats
        self.sites = Sites(coords, stride, spatial_shape, batch_size)
        _check_bounds(self.sites)
        self.maps = SiteMaps(self.sites)

    def on(self, sites: Sites, feats: Tensor) -> SparseTensor:
        """Features on other voxels that descend from the same input, as `maps` returned them.

        Args:
            sites: M voxels.
            feats: (M, C).
        """
        _check_rows("SparseTensor.on", feats, sites.coords)
        tensor = object.__new__(SparseTensor)
        tensor.feats, tensor.sites, tensor.maps = feats, sites, self.maps
        return tensor

    @property
    def coords(self) -> Tensor:
        """(N, 4) int32 `[batch, x, y, z]`."""
        return self.sites.coords

    @property
    def stride(self) -> Triple:
        """Size (x, y, z) of a voxel in input voxels."""
        return self.sites.stride

    @property
    def spatial_shape(self) -> Triple | None:
        """Extent (x, y, z) in voxels, or None."""
        return self.sites.spatial_shape

    @property
    def batch_size(self) -> int:
        """Number of batch entries."""
        return self.sites.batch_size

    @property
    def num_channels(self) -> int:
        """C."""
        return self.feats.shape[1]

    @property
    def device(self) -> torch.device:
        """Where the features are."""
        return self.feats.device

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the features."""
        return self.feats.dtype

    def __len__(self) -> int:
        return len(self.feats)

    def __repr__(self) -> str:
        return (
            f"SparseTensor(num_voxels={len(self)}, num_channels={self.num_channels}, stride={self.stride}, "
            f"batch_size={self.batch_size}, dtype={self.dtype}, device={self.device})"
        )

    def with_feats(self, feats: Tensor) -> SparseTensor:
        """The same voxels, and their cached maps, with other features (N, C')."""
        return self.on(self.sites, feats)

    def to(self, *args: Any, **kwargs: Any) -> SparseTensor:
        """As torch.Tensor.to for the features; the voxels follow to the device. Maps stay behind on a move."""
        feats = self.feats.to(*args, **kwargs)
        sites = self.sites.to(feats.device)
        moved = self.on(sites, feats)
        if sites is not self.sites:
            moved.maps = SiteMaps(sites)
        return moved

    def as_points(self) -> PointTensor:
        """The voxels as points at their lower corners, with these features, in units of stride-1 voxels.

        What is cached for the points is kept with the kernel maps.
        """
        scale = torch.tensor([1, *self.stride]).to(self.device, non_blocking=True)
        points = PointTensor(self.feats, (self.coords * scale).float())
        points.cache = self.maps.point_cache(self.sites)
        return points

    def dense(
        self, origin: Sequence[int] | None = None, shape: Sequence[int] | None = None
    ) -> Tensor:
        """Write the features into a dense grid.

        Args:
            origin: Voxel (x, y, z) at index (0, 0, 0) of the grid; 0 by default.
            shape: Extent (x, y, z); `spatial_shape` by default, else just large enough.

        Returns:
            (batch_size, C, X, Y, Z), 0 where there is no voxel. Differentiable.

        Raises:
            ValueError: If a voxel lies outside the grid.
        """
        low = torch.tensor([0, *(origin or (0, 0, 0))], device=self.device)
        index = self.coords.long() - low
        extent = shape or self.spatial_shape
        if extent is None:
            extent = (index[:, 1:].amax(0) + 1).tolist() if len(index) else [0, 0, 0]
        size = torch.tensor([self.batch_size, *extent], device=self.device)
        if len(index) and bool(((index < 0) | (index >= size)).any()):
            raise ValueError(
                f"SparseTensor.dense: voxels must lie in [origin, origin + shape), got {index[:, 1:].amin(0).tolist()} "
                f"to {index[:, 1:].amax(0).tolist()} relative to origin, for shape {tuple(extent)}. "
                "Give origin and shape, or crop first."
            )
        grid = self.feats.new_zeros(*size.tolist(), self.num_channels)
        grid = grid.index_put(tuple(index.unbind(1)), self.feats)
        return grid.permute(0, 4, 1, 2, 3)

    @classmethod
    def from_dense(cls, grid: Tensor) -> SparseTensor:
        """Keep the voxels of a dense grid that hold any non-zero feature.

        Args:
            grid: (B, C, X, Y, Z).
        """
        if grid.dim() != 5:
            raise ValueError(
                f"SparseTensor.from_dense: grid must be (B, C, X, Y, Z), got {tuple(grid.shape)}."
            )
        last = grid.permute(0, 2, 3, 4, 1)
        index = (last != 0).any(-1).nonzero()
        feats = last[tuple(index.unbind(1))]
        x, y, z = grid.shape[2:]
        return cls(feats, index.int(), 1, (x, y, z), grid.shape[0])


class PointTensor:
    """Features on points, in units of the finest voxels. Immutable.

    Args:
        feats: (N, C) float features.
        coords: (N, 4) float `[batch, x, y, z]`; x, y, z in voxels of stride 1, fractions allowed.

    Raises:
        TypeError, ValueError: If a dtype or shape is not as above.
    """

    def __init__(self, feats: Tensor, coords: Tensor) -> None:
        if not coords.is_floating_point():
            raise TypeError(
                f"PointTensor: coords must be floating [batch, x, y, z], got {coords.dtype}. Convert with .float()."
            )
        if coords.dim() != 2 or coords.shape[1] != 4:
            raise ValueError(
                f"PointTensor: coords must be (N, 4) [batch, x, y, z], got {tuple(coords.shape)}."
            )
        _check_rows("PointTensor", feats, coords)
        self.feats = feats
        self.coords = coords
        self.cache: dict[Any, Any] = {}
        """What is computed once for these points, keyed by what it was computed against."""

    @property
    def num_channels(self) -> int:
        """C."""
        return self.feats.shape[1]

    def __len__(self) -> int:
        return len(self.feats)

    def with_feats(self, feats: Tensor) -> PointTensor:
        """The same points, and what is cached for them, with other features (N, C')."""
        points = PointTensor(feats, self.coords)
        points.cache = self.cache
        return points

    def to(self, *args: Any, **kwargs: Any) -> PointTensor:
        """As torch.Tensor.to for the features; the coordinates follow to the device only."""
        feats = self.feats.to(*args, **kwargs)
        return PointTensor(feats, self.coords.to(feats.device))


def _check_rows(caller: str, feats: Tensor, coords: Tensor) -> None:
    if feats.dim() != 2 or feats.shape[0] != coords.shape[0]:
        raise ValueError(
            f"{caller}: feats must be (N, C) with one row a coordinate, got {tuple(feats.shape)} "
            f"for {coords.shape[0]} coordinates."
        )
    if not feats.is_floating_point():
        raise TypeError(
            f"{caller}: feats must be floating, got {feats.dtype}. Convert with .float()."
        )
    if feats.device != coords.device:
        raise ValueError(
            f"{caller}: feats and coords must be on one device, got {feats.device} and {coords.device}."
        )


def _check_bounds(sites: Sites) -> None:
    if sites.coords.is_meta:
        return
    low, high = [0, 0, 0, 0], [-1, -1, -1, -1]
    if len(sites):
        low, high = torch.stack(torch.aminmax(sites.coords, dim=0)).tolist()
    if low[0] < 0 or high[0] >= sites.batch_size or sites.batch_size < 0:
        raise ValueError(
            "SparseTensor: batch_size must be larger than every batch index, and those >= 0, "
            f"got batch_size {sites.batch_size} for indices {low[0]} to {high[0]}."
        )
    shape = sites.spatial_shape
    outside = shape and any(h >= n for h, n in zip(high[1:], shape, strict=True))
    if shape is not None and (outside or min(low[1:]) < 0):
        raise ValueError(
            f"SparseTensor: coords must lie in [0, spatial_shape), got {low[1:]} to {high[1:]} for {shape}. "
            "Crop the points, or leave spatial_shape out."
        )
