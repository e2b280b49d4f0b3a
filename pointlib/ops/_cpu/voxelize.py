"""Devoxelization by the compiled engine: weighted sums of a few voxel rows per point, and the transpose."""

from __future__ import annotations

import torch
from torch import Tensor

from pointlib.ops._cpu import engine
from pointlib.ops._cpu.composition import voxelize as composition
from pointlib.ops._cpu.composition.scatter import LONG_SUM, check_rows
from pointlib.ops._cpu.scatter import element, sum_rows


@engine.or_composition(composition.devoxelize)
def devoxelize(feats: Tensor, index: Tensor, weights: Tensor) -> Tensor:
    """`sum_k weights[n, k] * feats[index[n, k]]`."""
    if _finer(weights, feats) or index.shape[1] >= LONG_SUM:
        return composition.devoxelize(feats, index, weights)
    factors = _factors(weights, feats)
    feats, index = feats.contiguous(), index.long().contiguous()
    points, corners = index.shape
    out = feats.new_empty(points, feats.shape[1])
    outside = engine.call(
        *("pl_devoxelize", element("devoxelize", feats), feats, *feats.shape, index, factors),
        *(points, corners, out, engine.num_threads()),
    )
    if outside:
        check_rows("devoxelize", index, len(feats))
    return out


@engine.or_composition(composition.devoxelize_transpose)
def devoxelize_transpose(grad: Tensor, index: Tensor, weights: Tensor, num_rows: int) -> Tensor:
    """`out[index[n, k]] += weights[n, k] * grad[n]`."""
    if _finer(weights, grad):
        return composition.devoxelize_transpose(grad, index, weights, num_rows)
    factors = _factors(weights, grad)
    caller, corners = "devoxelize_transpose", max(index.shape[1], 1)
    return sum_rows(caller, grad, None, index, num_rows, factors, each=corners)


def _finer(weights: Tensor, feats: Tensor) -> bool:
    """Whether float64 weights meet other features: products in float64 are the composition's."""
    return weights.dtype == torch.float64 and feats.dtype != torch.float64


def _factors(weights: Tensor, feats: Tensor) -> Tensor:
    """Weights in the dtype that the features are summed in, which holds them exactly."""
    return weights.to(torch.promote_types(feats.dtype, torch.float32)).contiguous()
