"""Pooling modules: local ones over a kernel map, their inverses, and global ones over each batch entry."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor, nn

from pointlib.ops.kernel_map import ConvSpec, Relation
from pointlib.ops.pooling import PoolMode, sparse_max_pool, sparse_max_unpool, sparse_pool
from pointlib.ops.scatter import scatter_max, scatter_mean, scatter_sum
from pointlib.tensor import SparseTensor


class _Pool3d(nn.Module):
    """The window that local pooling modules share; MaxPool3d documents the arguments."""

    def __init__(
        self,
        kernel_size: int | Sequence[int] = 2,
        stride: int | Sequence[int] | None = None,
        padding: int | Sequence[int] | None = None,
        dilation: int | Sequence[int] = 1,
        relation: Relation | None = None,
    ) -> None:
        super().__init__()
        stride = kernel_size if stride is None else stride
        self.spec = ConvSpec(kernel_size, stride, padding, dilation, relation)

    def extra_repr(self) -> str:
        """Arguments, as printed."""
        spec = self.spec
        return (
            f"kernel_size={spec.kernel_size}, stride={spec.stride}, padding={spec.padding}, "
            f"dilation={spec.dilation}, {spec.relation}"
        )

    def _pool(self, x: SparseTensor, mode: PoolMode) -> SparseTensor:
        sites, kernel_map = x.maps.conv(x.sites, self.spec)
        return x.on(sites, sparse_pool(x.feats, kernel_map, mode))


class PooledWithArgmax(NamedTuple):
    """A pooled tensor and where its maxima stood.

    Attributes:
        tensor: SparseTensor of M voxels.
        argmax: (M, C) int64 input row, or -1.
    """

    tensor: SparseTensor
    argmax: Tensor


class MaxPool3d(_Pool3d):
    """Maximum of the voxels present under each window.

    Args:
        kernel_size: Voxels per axis; int or (x, y, z).
        stride: Input voxels per output voxel; None for kernel_size.
        padding: Voxels; None for the relation's default (centred, or 0 for `spconv`).
        dilation: Input voxels between taps.
        relation: Which outputs exist, see `pointlib.ops.kernel_map`; None means submanifold at stride 1 and minkowski
            otherwise.
    """

    def forward(self, x: SparseTensor) -> SparseTensor:
        """Pool (N, C) features into (M, C)."""
        return self._pool(x, "max")

    def with_argmax(self, x: SparseTensor) -> PooledWithArgmax:
        """Pool, and keep what MaxUnpool3d needs."""
        sites, kernel_map = x.maps.conv(x.sites, self.spec)
        pooled = sparse_max_pool(x.feats, kernel_map)
        return PooledWithArgmax(x.on(sites, pooled.feats), pooled.argmax)


class AvgPool3d(_Pool3d):
    """Average of the voxels present under each window. Arguments as in `MaxPool3d`."""

    def forward(self, x: SparseTensor) -> SparseTensor:
        """Pool (N, C) features into (M, C)."""
        return self._pool(x, "avg")


class SumPool3d(_Pool3d):
    """Sum of the voxels under each window. Arguments as in `MaxPool3d`."""

    def forward(self, x: SparseTensor) -> SparseTensor:
        """Pool (N, C) features into (M, C)."""
        return self._pool(x, "sum")


class Unpool3d(_Pool3d):
    """Spread features over the voxels that a pooling or convolution of the same arguments came from.

    A voxel takes the average of the outputs it fed, so it copies its only one where windows do not overlap.
    """

    def forward(self, x: SparseTensor) -> SparseTensor:
        """Spread (M, C) features over (N, C)."""
        sites, kernel_map = x.maps.inverse(x.sites, self.spec)
        return x.on(sites, sparse_pool(x.feats, kernel_map, "avg"))


class MaxUnpool3d(_Pool3d):
    """Put features back where the maxima stood that a MaxPool3d of the same arguments chose; zeros elsewhere."""

    def forward(self, x: SparseTensor, argmax: Tensor) -> SparseTensor:
        """Spread (M, C) features over (N, C); argmax (M, C) comes from `MaxPool3d.with_argmax`."""
        sites, _ = x.maps.inverse(x.sites, self.spec)
        return x.on(sites, sparse_max_unpool(x.feats, argmax, len(sites)))


class GlobalMaxPool(nn.Module):
    """Maximum over the voxels of each batch entry; 0 for an empty one."""

    def forward(self, x: SparseTensor) -> Tensor:
        """Reduce (N, C) features to (batch_size, C)."""
        return scatter_max(x.feats, x.coords[:, 0].long(), x.batch_size).feats


class GlobalAvgPool(nn.Module):
    """Average over the voxels of each batch entry; 0 for an empty one."""

    def forward(self, x: SparseTensor) -> Tensor:
        """Reduce (N, C) features to (batch_size, C)."""
        return scatter_mean(x.feats, x.coords[:, 0].long(), x.batch_size)


class GlobalSumPool(nn.Module):
    """Sum over the voxels of each batch entry."""

    def forward(self, x: SparseTensor) -> Tensor:
        """Reduce (N, C) features to (batch_size, C)."""
        return scatter_sum(x.feats, x.coords[:, 0].long(), x.batch_size)
