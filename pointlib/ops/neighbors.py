"""Neighbours in clouds of points, and features taken from them: what PointNet++ and PVCNN are made of.

Layouts are theirs: points (B, 3, N), features (B, C, N), every cloud of a batch with as many points. Coordinates are
constants: no gradient flows to them. Every implementation and device rounds a squared distance alike, as
`fma(dz, dz, fma(dy, dy, dx * dx))` in float32, and orders equal ones by the points' numbers, so all find the same.

A point that is NaN or infinite, or so far away that the square of its distance is, is nobody's neighbour.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from pointlib.ops._cpu import neighbors as cpu
from pointlib.ops._cuda import neighbors as cuda
from pointlib.ops._library import LIB
from pointlib.ops.scatter import gather_rows
from pointlib.ops.voxelize import devoxelize


class Neighbors(NamedTuple):
    """The nearest points of each query.

    Attributes:
        indices: (B, M, K) int64 number of a point in its cloud, or -1 for none.
        dist2: (B, M, K) float32 squared distance, ascending; infinity where there is none.
    """

    indices: Tensor
    dist2: Tensor


class Interpolation(NamedTuple):
    """What `three_interpolate` takes.

    Attributes:
        indices: (B, M, 3) int64 number of a point in its cloud, or -1 for none.
        weights: (B, M, 3) float32, 0 where there is none, otherwise they add up to 1.
    """

    indices: Tensor
    weights: Tensor


def farthest_point_sampling(points: Tensor, num_samples: int) -> Tensor:
    """Choose points that lie far apart: point 0, then again and again the one farthest from all chosen before it.

    Section 3.2 of Qi et al., "PointNet++: Deep Hierarchical Feature Learning on Point Sets in a Metric Space",
    NeurIPS 2017. Of equally far points the lowest number is taken. Where every location has been taken, point 0 is
    chosen again. A point that is not finite is not chosen, unless it is point 0.

    Args:
        points: (B, 3, N) float32.
        num_samples: M, at most N.

    Returns:
        (B, M) int64 number of each chosen point in its cloud.

    Raises:
        TypeError, ValueError: If points is not as above, or num_samples is not in [0, N].

    Example:
        >>> line = torch.tensor([[[0.0, 1.0, 5.0, 9.0]] * 3])
        >>> farthest_point_sampling(line, 3).tolist()
        [[0, 3, 2]]
    """
    _check_points(points, "farthest_point_sampling", "points")
    if not 0 <= num_samples <= points.shape[2]:
        raise ValueError(
            f"farthest_point_sampling: num_samples must be in [0, N] for N = {points.shape[2]} points, "
            f"got {num_samples}. Repeat points, or sample fewer."
        )
    return torch.ops.pointlib.farthest_point_sampling(points.detach(), num_samples)


def ball_query(centers: Tensor, points: Tensor, radius: float, num_neighbors: int) -> Tensor:
    """Find the first points of each center's ball, in the order of their numbers.

    As in PointNet++, where fewer than num_neighbors points lie in a ball, its first one is repeated.

    Args:
        centers: (B, 3, M) float32.
        points: (B, 3, N) float32.
        radius: In the points' unit; points of less than this distance are in the ball.
        num_neighbors: U, how many points to return.

    Returns:
        (B, M, U) int64 number of each point in its cloud; -1 where the ball is empty, which `grouping` makes zeros.
        (The originals say 0 there. A ball around one of the points is never empty.)

    Raises:
        TypeError, ValueError: If a tensor is not as above, radius is negative or NaN, or num_neighbors is negative.

    Example:
        >>> line = torch.tensor([[[0.0, 1.0, 5.0, 9.0], [0.0] * 4, [0.0] * 4]])
        >>> ball_query(line[:, :, 1:3], line, radius=2.0, num_neighbors=3).tolist()
        [[[0, 1, 0], [2, 2, 2]]]
    """
    _check_pair(centers, points, "ball_query", "centers")
    if not radius >= 0:
        raise ValueError(f"ball_query: radius must be >= 0, got {radius}.")
    if num_neighbors < 0:
        raise ValueError(f"ball_query: num_neighbors must be >= 0, got {num_neighbors}.")
    centers, points, radius2 = centers.detach(), points.detach(), float(radius) ** 2
    return torch.ops.pointlib.ball_query(centers, points, radius2, num_neighbors)


def knn(queries: Tensor, points: Tensor, k: int) -> Neighbors:
    """Find the k nearest points of each query; a query that is one of the points finds itself too.

    Args:
        queries: (B, 3, M) float32.
        points: (B, 3, N) float32.
        k: K, at most N.

    Returns:
        Neighbors, by distance and then by number.

    Raises:
        TypeError, ValueError: If a tensor is not as above, or k is not in [0, N].

    Example:
        >>> line = torch.tensor([[[0.0, 1.0, 5.0, 9.0], [0.0] * 4, [0.0] * 4]])
        >>> knn(line[:, :, 2:3], line, k=2).indices.tolist()
        [[[2, 1]]]
    """
    _check_pair(queries, points, "knn", "queries")
    if not 0 <= k <= points.shape[2]:
        raise ValueError(f"knn: k must be in [0, N] for N = {points.shape[2]} points, got {k}.")
    return Neighbors(*torch.ops.pointlib.knn(queries.detach(), points.detach(), k))


def three_nn(queries: Tensor, points: Tensor) -> Interpolation:
    """Find the three nearest points of each query, weighted by the inverse of their squared distance.

    Equation 2 of PointNet++ with k = 3 and p = 2. As in PVCNN, squared distances are clamped to [1e-10, 1e10], so a
    point takes part in its own place alone, or nearly; without dividing by zero.

    Args:
        queries: (B, 3, M) float32.
        points: (B, 3, N) float32; of fewer than three points all are taken.

    Returns:
        Interpolation.

    Raises:
        TypeError, ValueError: If a tensor is not as above.
    """
    _check_pair(queries, points, "three_nn", "queries")
    queries, points, k = queries.detach(), points.detach(), min(3, points.shape[2])
    indices, dist2 = torch.ops.pointlib.knn(queries, points, k)
    inverse = torch.where(indices < 0, 0, dist2.clamp(1e-10, 1e10).reciprocal())
    weights = inverse / inverse.sum(2, keepdim=True).clamp(min=1e-10)
    missing = (0, 3 - k)
    return Interpolation(
        torch.nn.functional.pad(indices, missing, value=-1),
        torch.nn.functional.pad(weights, missing),
    )


def three_interpolate(feats: Tensor, indices: Tensor, weights: Tensor) -> Tensor:
    """Interpolate features: `out[b, :, m] = sum_k weights[b, m, k] * feats[b, :, indices[b, m, k]]`.

    Differentiable in feats and weights.

    Args:
        feats: (B, C, N) floating. float16 and bfloat16 are summed in float32 and rounded once.
        indices: (B, M, K) int64 from `three_nn`, or of any other number K of neighbours; -1 for none.
        weights: (B, M, K) floating.

    Returns:
        (B, C, M) of feats' dtype, a view of (B, M, C).

    Raises:
        TypeError, ValueError: If a dtype, shape or device differs from the above, or an index is out of range.

    Example:
        >>> line = torch.tensor([[[0.0, 1.0, 5.0, 9.0], [0.0] * 4, [0.0] * 4]])
        >>> three_interpolate(line, *three_nn(line[:, :, :1] + 0.5, line)).shape
        torch.Size([1, 3, 1])
    """
    check_cloud_feats(feats, "three_interpolate")
    _check_index(indices, feats, "three_interpolate", (3,))
    if not weights.is_floating_point() or weights.shape != indices.shape:
        raise ValueError(
            f"three_interpolate: weights must be floating, of the shape of indices {tuple(indices.shape)}, "
            f"got {weights.dtype} {tuple(weights.shape)}."
        )
    if weights.device != feats.device:
        raise ValueError(
            f"three_interpolate: weights must be on {feats.device} as the features are, got {weights.device}."
        )
    rows = torch.ops.pointlib.batch_rows(indices, feats.shape[2]).view_as(weights.flatten(0, 1))
    out = devoxelize(cloud_rows(feats), rows, weights.flatten(0, 1))
    return out.view(*indices.shape[:2], feats.shape[1]).transpose(1, 2)


def grouping(feats: Tensor, indices: Tensor) -> Tensor:
    """Take the features of neighbours, or of sampled points; differentiable, with a deterministic gradient.

    Args:
        feats: (B, C, N) floating, coordinates (C = 3) too.
        indices: (B, M, U) int64 from `ball_query` or `knn`, or (B, M) from `farthest_point_sampling`; -1 for zeros.

    Returns:
        (B, C, M, U) in torch's channels_last layout, or (B, C, M), a view of (B, M, C); of feats' dtype.

    Raises:
        TypeError, ValueError: If a dtype, shape or device differs from the above, or an index is out of range.

    Example:
        >>> grouping(torch.tensor([[[1.0, 2.0, 3.0]]]), torch.tensor([[[2, 0], [1, -1]]])).tolist()
        [[[[3.0, 1.0], [2.0, 0.0]]]]
    """
    check_cloud_feats(feats, "grouping")
    _check_index(indices, feats, "grouping", (2, 3))
    rows = torch.ops.pointlib.batch_rows(indices, feats.shape[2])
    out = gather_rows(cloud_rows(feats), rows)
    return out.view(*indices.shape, feats.shape[1]).movedim(-1, 1)


def cloud_rows(feats: Tensor) -> Tensor:
    """Features (B, C, N) of the clouds of a batch as rows (B * N, C)."""
    batch, channels, count = feats.shape
    return feats.transpose(1, 2).reshape(batch * count, channels)


def check_cloud_feats(feats: Tensor, caller: str) -> None:
    """Raise unless `feats` is (B, C, N) of a floating dtype.

    Raises:
        TypeError: If it is no floating tensor.
        ValueError: If it is not of three dimensions.
    """
    if not isinstance(feats, Tensor) or not feats.is_floating_point():
        got = str(feats.dtype) if isinstance(feats, Tensor) else type(feats).__name__
        raise TypeError(
            f"{caller}: feats must be a (B, C, N) floating tensor, got {got}. Convert with .float()."
        )
    if feats.dim() != 3:
        raise ValueError(
            f"{caller}: feats must be of shape (B, C, N), got {tuple(feats.shape)}. Use [None] for one cloud."
        )


def check_planes(coords: Tensor, caller: str, name: str, dtype: torch.dtype, remedy: str) -> None:
    """Raise unless `coords` is (B, 3, N) of a dtype.

    Raises:
        TypeError: If it is no tensor of that dtype.
        ValueError: If its shape is another.
    """
    if not isinstance(coords, Tensor) or coords.dtype != dtype:
        got = str(coords.dtype) if isinstance(coords, Tensor) else type(coords).__name__
        raise TypeError(
            f"{caller}: {name} must be a (B, 3, N) tensor of {dtype}, got {got}. {remedy}"
        )
    if coords.dim() != 3 or coords.shape[1] != 3:
        raise ValueError(
            f"{caller}: {name} must be of shape (B, 3, N), got {tuple(coords.shape)}. "
            "Use .transpose(1, 2) for (B, N, 3), [None] for one cloud."
        )


def _check_points(points: Tensor, caller: str, name: str) -> None:
    remedy = "Convert with .float(); subtract what large coordinates have in common first."
    check_planes(points, caller, name, torch.float32, remedy)


def _check_pair(centers: Tensor, points: Tensor, caller: str, name: str) -> None:
    _check_points(centers, caller, name)
    _check_points(points, caller, "points")
    if len(centers) != len(points) or centers.device != points.device:
        raise ValueError(
            f"{caller}: {name} must be of as many clouds as points, on their device, got {len(centers)} on "
            f"{centers.device} for {len(points)} on {points.device}."
        )


def _check_index(indices: Tensor, feats: Tensor, caller: str, dims: tuple[int, ...]) -> None:
    if not isinstance(indices, Tensor) or indices.dtype != torch.int64:
        got = str(indices.dtype) if isinstance(indices, Tensor) else type(indices).__name__
        raise TypeError(
            f"{caller}: indices must be an int64 tensor, got {got}. Convert with .long()."
        )
    if indices.dim() not in dims or len(indices) != len(feats):
        wanted = " or ".join(str(n) for n in dims)
        raise ValueError(
            f"{caller}: indices must have {wanted} dimensions and as many clouds as feats, {len(feats)}, "
            f"got shape {tuple(indices.shape)}."
        )
    if indices.device != feats.device:
        raise ValueError(
            f"{caller}: indices must be on {feats.device} as the features are, got {indices.device}. "
            "Move it with .to()."
        )


LIB.define("farthest_point_sampling(Tensor points, SymInt num_samples) -> Tensor")
LIB.define(
    "ball_query(Tensor centers, Tensor points, float radius2, SymInt num_neighbors) -> Tensor"
)
LIB.define("knn(Tensor queries, Tensor points, SymInt k) -> (Tensor, Tensor)")
LIB.define("batch_rows(Tensor index, SymInt num_rows) -> Tensor")
for _name in ("farthest_point_sampling", "ball_query", "knn", "batch_rows"):
    LIB.impl(_name, getattr(cpu, _name), "CPU")
    LIB.impl(_name, getattr(cuda, _name), "CUDA")


@torch.library.register_fake("pointlib::farthest_point_sampling", lib=LIB)
def _farthest_point_sampling_fake(points: Tensor, num_samples: int) -> Tensor:
    return points.new_empty(points.shape[0], num_samples, dtype=torch.int64)


@torch.library.register_fake("pointlib::ball_query", lib=LIB)
def _ball_query_fake(centers: Tensor, points: Tensor, radius2: float, num_neighbors: int) -> Tensor:
    shape = (centers.shape[0], centers.shape[2], num_neighbors)
    return centers.new_empty(shape, dtype=torch.int64)


@torch.library.register_fake("pointlib::knn", lib=LIB)
def _knn_fake(queries: Tensor, points: Tensor, k: int) -> tuple[Tensor, Tensor]:
    dist2 = queries.new_empty(queries.shape[0], queries.shape[2], k)
    return torch.empty_like(dist2, dtype=torch.int64), dist2


@torch.library.register_fake("pointlib::batch_rows", lib=LIB)
def _batch_rows_fake(index: Tensor, num_rows: int) -> Tensor:
    return index.new_empty(index.numel())
