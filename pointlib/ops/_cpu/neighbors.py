"""Neighbours in clouds of points by the compiled engine, and the checked numbering of batched rows."""

from __future__ import annotations

import torch
from torch import Tensor

from pointlib.ops._cpu import engine
from pointlib.ops._cpu.composition import neighbors as composition
from pointlib.ops._cpu.composition.scatter import check_rows


@engine.or_composition(composition.farthest_point_sampling)
def farthest_point_sampling(points: Tensor, num_samples: int) -> Tensor:
    """Again and again the point that is farthest from all chosen before it."""
    points, (batch, _, count) = points.contiguous(), points.shape
    out = torch.empty(batch, num_samples, dtype=torch.int64)
    threads = engine.num_threads()
    engine.call("pl_farthest_point_sampling", points, batch, count, num_samples, out, threads)
    return out


@engine.or_composition(composition.ball_query)
def ball_query(centers: Tensor, points: Tensor, radius2: float, num_neighbors: int) -> Tensor:
    """The first points of less than `radius2` to each center."""
    centers, points, (batch, _, num_centers) = (
        centers.contiguous(),
        points.contiguous(),
        centers.shape,
    )
    out = torch.empty(batch, num_centers, num_neighbors, dtype=torch.int64)
    engine.call(
        *("pl_ball_query", centers, points, batch, num_centers, points.shape[2], radius2),
        *(num_neighbors, out, engine.num_threads()),
    )
    return out


@engine.or_composition(composition.knn)
def knn(queries: Tensor, points: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k nearest points, by distance and then by number, and their squared distances."""
    queries, points, (batch, _, num_queries) = (
        queries.contiguous(),
        points.contiguous(),
        queries.shape,
    )
    dist2 = queries.new_empty(batch, num_queries, k)
    index = torch.empty(batch, num_queries, k, dtype=torch.int64)
    engine.call(
        *("pl_knn", queries, points, batch, num_queries, points.shape[2], k),
        *(dist2, index, engine.num_threads()),
    )
    return index, dist2


def batch_rows(index: Tensor, num_rows: int) -> Tensor:
    """Rows of the clouds of a batch laid end to end, -1 for -1."""
    check_rows("batch_rows", index, num_rows)
    first = torch.arange(len(index)).view(-1, *[1] * (index.dim() - 1)) * num_rows
    return torch.where(index < 0, index, index + first).flatten()
