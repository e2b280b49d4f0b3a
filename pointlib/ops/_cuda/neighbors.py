"""Neighbours in clouds of points on CUDA: farthest point sampling, ball query and k nearest neighbours."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from pointlib.ops._cuda import engine
from pointlib.ops._cuda.index_check import assert_in_range, range_flag, remember_in_range

SOURCE = "neighbors.cu"
WARP = 32
TILE = 1024
"""Points that a search has in shared memory at once, as in neighbors.cu."""
TILE_BYTES = 3 * 4 * TILE
HELD = ((128, 8), (256, 8), (512, 8), (512, 16))
"""(threads, points of a thread) of sampling from clouds that a block holds in its registers."""
STREAMED = 1024
"""Threads of a block that samples from a larger cloud."""
BALL_BLOCK, BALL_CENTERS = 256, 4
"""Threads of a block of ball query, and centers of one of its warps."""
FEW, FEW_BLOCK = 3, 128
"""Most neighbours that a thread looks for alone."""
KNN_BLOCK, MAX_ROWS = 256, 4
"""Threads of a block where a warp has a query, and registers of each lane for the nearest."""
LIMIT = 2**31 - TILE


def farthest_point_sampling(points: Tensor, num_samples: int) -> Tensor:
    """Again and again the point that is farthest from all chosen before it."""
    points, (batch, _, count) = _checked(points, "farthest_point_sampling"), points.shape
    out = points.new_empty(batch, num_samples, dtype=torch.int64)
    if not out.numel():
        return out
    held = next((shape for shape in HELD if count <= shape[0] * shape[1]), None)
    if held is not None:
        engine.launch(
            *(SOURCE, _held_kernel(*held), batch, held[0], points, count, num_samples, out),
            shared_bytes=_key_bytes(held[0]),
        )
    else:
        distances, shared_bytes = None, _key_bytes(STREAMED) + 4 * count
        if shared_bytes > engine.properties(points).shared_bytes:
            distances, shared_bytes = points.new_empty(batch, count), _key_bytes(STREAMED)
        engine.launch(
            *(SOURCE, _streamed_kernel(), batch, STREAMED, points, count, num_samples),
            *(distances, out),
            shared_bytes=shared_bytes,
        )
    remember_in_range(out, count)
    return out


def ball_query(centers: Tensor, points: Tensor, radius2: float, num_neighbors: int) -> Tensor:
    """The first points of less than `radius2` to each center."""
    centers, points = _checked(centers, "ball_query"), _checked(points, "ball_query")
    batch, _, num_centers = centers.shape
    out = points.new_empty(batch, num_centers, num_neighbors, dtype=torch.int64)
    if not out.numel():
        return out
    of_block = BALL_BLOCK // WARP * BALL_CENTERS
    grid = batch * engine.ceil_div(num_centers, of_block)
    engine.launch(
        *(SOURCE, _ball_kernel(), grid, BALL_BLOCK, centers, points, num_centers),
        *(points.shape[2], radius2, num_neighbors, out),
        shared_bytes=TILE_BYTES,
    )
    remember_in_range(out, points.shape[2])
    return out


def knn(queries: Tensor, points: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k nearest points, by distance and then by number, and their squared distances."""
    queries, points = _checked(queries, "knn"), _checked(points, "knn")
    batch, _, num_queries = queries.shape
    dist2 = points.new_empty(batch, num_queries, k)
    index = torch.empty_like(dist2, dtype=torch.int64)
    if not index.numel():
        return index, dist2
    sizes = (queries, points, num_queries, points.shape[2], k)
    if k <= FEW:
        grid = batch * engine.ceil_div(num_queries, FEW_BLOCK)
        engine.launch(
            *(SOURCE, "pointlib::three_nearest", grid, FEW_BLOCK, *sizes, index, dist2),
            shared_bytes=4 * 4 * TILE,
        )
    else:
        grid = batch * engine.ceil_div(num_queries, KNN_BLOCK // WARP)
        for offset in range(0, k, MAX_ROWS * WARP):
            wanted = min(MAX_ROWS * WARP, k - offset)
            kernel = _knn_kernel(engine.ceil_div(wanted, WARP))
            engine.launch(
                *(SOURCE, kernel, grid, KNN_BLOCK, *sizes, offset, wanted, index, dist2),
                shared_bytes=TILE_BYTES,
            )
    remember_in_range(index, points.shape[2])
    return index, dist2


def batch_rows(index: Tensor, num_rows: int) -> Tensor:
    """Rows of the clouds of a batch laid end to end, -1 for -1."""
    index = index.contiguous()
    out = index.new_empty(index.numel())
    if not len(out):
        return out
    flag, grid = range_flag(index, num_rows), engine.ceil_div(len(out), 256)
    each = len(out) // len(index)
    engine.launch(
        *(SOURCE, "pointlib::batch_rows", grid, 256, index, len(out), each, num_rows, out, flag)
    )
    assert_in_range(flag, index, num_rows, "batch_rows")
    remember_in_range(out, len(index) * num_rows)
    return out


def _checked(points: Tensor, caller: str) -> Tensor:
    """Contiguous planes of fewer points than an int numbers."""
    if points.shape[2] >= LIMIT:
        raise ValueError(
            f"{caller}: points must be fewer than {LIMIT} in a cloud, got {points.shape[2]}."
        )
    return points.contiguous()


def _key_bytes(threads: int) -> int:
    """Of the keys that the warps of a sampling block exchange: one each, twice."""
    return 2 * 8 * threads // WARP


def _held_kernel(threads: int, points: int) -> str:
    return f"pointlib::farthest_points<{threads}, {points}>"


def _streamed_kernel() -> str:
    return f"pointlib::farthest_points_streamed<{STREAMED}>"


def _ball_kernel() -> str:
    return f"pointlib::ball_query<{BALL_CENTERS}>"


def _knn_kernel(rows: int) -> str:
    return f"pointlib::nearest_points<{rows}>"


def variants(capability: int) -> Iterator[tuple[str, str]]:
    """Every kernel of this file, as (source, name)."""
    del capability
    yield from ((SOURCE, _held_kernel(*shape)) for shape in HELD)
    yield SOURCE, _streamed_kernel()
    yield SOURCE, _ball_kernel()
    yield SOURCE, "pointlib::three_nearest"
    yield from ((SOURCE, _knn_kernel(rows)) for rows in range(1, MAX_ROWS + 1))
    yield SOURCE, "pointlib::batch_rows"
