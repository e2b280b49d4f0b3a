"""Neighbours in clouds of points, in torch.

A squared distance is `fma(dz, dz, fma(dy, dy, dx * dx))` in float32, as everywhere else, so that all implementations
find the same neighbours. torch has no such operator: the sum is taken in float64, where the product is exact, and then
rounded once.
"""

from __future__ import annotations

import torch
from torch import Tensor

CHUNK = 1 << 22
"""Distances that are held at once."""


def farthest_point_sampling(points: Tensor, num_samples: int) -> Tensor:
    """Again and again the point that is farthest from all chosen before it."""
    finite = points.isfinite().all(1)
    nearest = torch.where(finite, torch.inf, -1.0)
    chosen = torch.zeros(len(points), num_samples, dtype=torch.int64)
    for sample in range(1, num_samples):
        last = chosen[:, sample - 1, None, None].expand(-1, 3, 1)
        dist2 = _squared_distances(points.gather(2, last), points)[:, 0]
        nearest = torch.where(dist2 < nearest, dist2, nearest)
        chosen[:, sample] = nearest.argmax(1)  # the first of equal ones
    return chosen


def ball_query(centers: Tensor, points: Tensor, radius2: float, num_neighbors: int) -> Tensor:
    """The first points of less than `radius2` to each center."""
    batch, _, num_centers = centers.shape
    out = torch.full((batch, num_centers, num_neighbors), -1, dtype=torch.int64)
    step = max(1, CHUNK // max(1, batch * points.shape[2]))
    for first in range(0, num_centers if num_neighbors else 0, step):
        part = out[:, first : first + step]
        inside = _squared_distances(centers[:, :, first : first + step], points) < radius2
        counts = inside.sum(2)
        b, center, point = inside.nonzero(as_tuple=True)
        before = (counts.flatten().cumsum(0) - counts.flatten()).view_as(counts)
        place = torch.arange(len(point)) - before[b, center]
        kept = place < num_neighbors
        part[b[kept], center[kept], place[kept]] = point[kept]
        part.copy_(torch.where(part < 0, part[:, :, :1], part))
    return out


def knn(queries: Tensor, points: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k nearest points, by distance and then by number, and their squared distances."""
    batch, _, num_queries = queries.shape
    dist2 = queries.new_empty(batch, num_queries, k)
    index = torch.empty(batch, num_queries, k, dtype=torch.int64)
    step = max(1, CHUNK // max(1, batch * points.shape[2]))
    for first in range(0, num_queries, step):
        part = slice(first, first + step)
        all_dist2 = _squared_distances(queries[:, :, part], points)
        ordered, order = all_dist2.nan_to_num(torch.inf, torch.inf).sort(stable=True, dim=2)
        dist2[:, part], index[:, part] = ordered[:, :, :k], order[:, :, :k]
    return index.masked_fill_(dist2.isinf(), -1), dist2


def _squared_distances(centers: Tensor, points: Tensor) -> Tensor:
    """(B, M, N) float32 of (B, 3, M) and (B, 3, N)."""
    dx, dy, dz = (points[:, :, None] - centers[:, :, :, None]).unbind(1)
    return _add_square(dz, _add_square(dy, dx * dx))


def _add_square(value: Tensor, total: Tensor) -> Tensor:
    """`value * value + total`, rounded once, of float32.

    float64 holds the square exactly, and the sum, if its last bit says whether anything was lost (rounding to odd;
    Boldo and Melquiond, "Emulation of a FMA and correctly rounded sums", 2008).
    """
    square, added = value.double().square(), total.double()
    both = square + added
    share = both - square
    lost = (square - (both - share)) + (added - share)
    bits = both.view(torch.int64)
    inexact_even = (lost != 0) & (bits & 1 == 0)
    step = torch.where(lost > 0, 1, -1)
    return (bits + step * inexact_even).view(torch.float64).float()
