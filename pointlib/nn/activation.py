"""Modules that treat every row alone: activations, dropout, linear.

They take and return a SparseTensor, a PointTensor or a plain (N, C) Tensor.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from torch import Tensor, nn

from pointlib.ops.sparse_conv import sparse_conv
from pointlib.tensor import PointTensor, SparseTensor

Features = TypeVar("Features", Tensor, SparseTensor, PointTensor)
"""Rows of features: (N, C) bare, or on voxels or points."""


def map_feats(function: Callable[[Tensor], Tensor], x: Features) -> Features:
    """Apply `function` to the features of x, (N, C) to (N, C'); voxels, points and their caches are kept."""
    return function(x) if isinstance(x, Tensor) else x.with_feats(function(x.feats))


class ReLU(nn.ReLU):
    """torch.nn.ReLU on features."""

    def forward(self, x: Features) -> Features:
        """Apply to (N, C) features."""
        return map_feats(super().forward, x)


class LeakyReLU(nn.LeakyReLU):
    """torch.nn.LeakyReLU on features."""

    def forward(self, x: Features) -> Features:
        """Apply to (N, C) features."""
        return map_feats(super().forward, x)


class SiLU(nn.SiLU):
    """torch.nn.SiLU on features."""

    def forward(self, x: Features) -> Features:
        """Apply to (N, C) features."""
        return map_feats(super().forward, x)


class GELU(nn.GELU):
    """torch.nn.GELU on features."""

    def forward(self, x: Features) -> Features:
        """Apply to (N, C) features."""
        return map_feats(super().forward, x)


class Dropout(nn.Dropout):
    """torch.nn.Dropout on features: single values are dropped, not rows."""

    def forward(self, x: Features) -> Features:
        """Apply to (N, C) features."""
        return map_feats(super().forward, x)


class Linear(nn.Linear):
    """torch.nn.Linear on features: a convolution of one tap, through the same operator."""

    def forward(self, x: Features) -> Features:
        """Map (N, in_features) to (N, out_features)."""
        return map_feats(self._multiply, x)

    def _multiply(self, feats: Tensor) -> Tensor:
        return sparse_conv(feats, self.weight.t().unsqueeze(0), None, self.bias)
