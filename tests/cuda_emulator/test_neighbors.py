"""Neighbours in clouds of points as on a GPU: the same as on the CPU, to the last bit."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from pointlib.ops._cpu import neighbors as cpu
from pointlib.ops._cuda import engine, scatter, voxelize
from pointlib.ops._cuda import neighbors as cuda
from pointlib.ops.neighbors import (
    ball_query,
    farthest_point_sampling,
    grouping,
    three_interpolate,
    three_nn,
)
from tests.cuda_emulator.operators import ANY_ARCHITECTURE, OnDevice, same_bits
from tests.tolerances import assert_close

pytestmark = ANY_ARCHITECTURE
TILE = cuda.TILE


def cloud(count: int, batch: int = 2, extent: int = 20) -> Tensor:
    """(B, 3, N) points, half of them on a lattice where distances are equal, some in one place."""
    points = torch.randn(batch, 3, count) * extent / 4
    points[:, :, ::2] = points[:, :, ::2].round()
    return points


def with_strays(points: Tensor) -> Tensor:
    """Some points NaN, infinite, or too far for the square of a float32."""
    strays = torch.tensor([math.nan, math.inf, -math.inf, 1e30])
    points[:, 1, 5:13:2] = strays
    points[:, 2, 20::37] = math.nan
    return points


@pytest.mark.parametrize(
    ("count", "samples"),
    [(1, 1), (2, 2), (127, 5), (128, 128), (129, 9), (1024, 6), (1025, 6), (2049, 5), (4097, 4)],
)
def test_sampling(count: int, samples: int) -> None:
    points = cloud(count)
    assert cuda.farthest_point_sampling(points, samples).equal(
        cpu.farthest_point_sampling(points, samples)
    )


@pytest.mark.parametrize("shared_bytes", [64 << 10, 16 << 10], ids=["shared", "scratch"])
def test_sampling_from_clouds_beyond_the_registers(
    shared_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    points, given = with_strays(cloud(8193)), engine.properties(torch.empty(0))
    limited = engine.Properties(given.capability, given.num_sms, shared_bytes)
    monkeypatch.setattr(engine, "properties", lambda tensor: limited)
    assert cuda.farthest_point_sampling(points, 4).equal(cpu.farthest_point_sampling(points, 4))


def test_sampling_passes_over_points_that_are_not_finite() -> None:
    points = with_strays(cloud(150))
    points[1, 0, 0] = math.nan
    assert cuda.farthest_point_sampling(points, 30).equal(cpu.farthest_point_sampling(points, 30))
    nothing = torch.full((1, 3, 40), math.nan)
    assert cuda.farthest_point_sampling(nothing, 3).tolist() == [[0, 0, 0]]
    one_place = torch.ones(1, 3, 300)
    assert cuda.farthest_point_sampling(one_place, 3).tolist() == [[0, 0, 0]]


@pytest.mark.parametrize("count", [0, 1, 31, 32, 33, TILE - 1, TILE, TILE + 1, 2 * TILE + 40])
@pytest.mark.parametrize(("radius", "most"), [(1.0, 3), (6.0, 40), (60.0, 16)])
def test_ball_query(count: int, radius: float, most: int) -> None:
    points, centers = cloud(count), cloud(33)
    if count > 100:
        points = with_strays(points)
    ours = cuda.ball_query(centers, points, radius**2, most)
    assert ours.equal(cpu.ball_query(centers, points, radius**2, most))


@pytest.mark.parametrize("count", [1, 32, TILE - 1, TILE, TILE + 1])
@pytest.mark.parametrize("k", [1, 2, 3, 4, 32, 33, 96, 129, 300])
def test_knn(count: int, k: int) -> None:
    points, queries, k = cloud(count), cloud(9), min(k, count)
    if count > 100:
        points = with_strays(points)
    for ours, theirs in zip(cuda.knn(queries, points, k), cpu.knn(queries, points, k), strict=True):
        assert same_bits(ours, theirs)


@pytest.mark.parametrize("k", [3, 140])
def test_knn_of_fewer_neighbours_than_asked_for(k: int) -> None:
    points, queries = cloud(150), cloud(130)
    points[:, :, 30:] = math.nan
    points[1] = math.inf
    queries[0, 0, 7] = math.nan
    for ours, theirs in zip(cuda.knn(queries, points, k), cpu.knn(queries, points, k), strict=True):
        assert same_bits(ours, theirs)


@pytest.mark.parametrize("batch", [0, 1, 3])
@pytest.mark.parametrize("count", [0, 1, 40])
def test_empty_and_single(batch: int, count: int) -> None:
    points, few = cloud(count, batch), min(count, 2)
    calls: list[tuple[Callable[..., object], Callable[..., object], tuple[object, ...]]] = [
        (cuda.farthest_point_sampling, cpu.farthest_point_sampling, (points, few)),
        (cuda.farthest_point_sampling, cpu.farthest_point_sampling, (points, 0)),
        (cuda.ball_query, cpu.ball_query, (points, points, 1.0, 0)),
        (cuda.ball_query, cpu.ball_query, (points, points, 1.0, 2)),
        (cuda.ball_query, cpu.ball_query, (points, points[:, :, :0], 1.0, 2)),
        (cuda.ball_query, cpu.ball_query, (points[:, :, :0], points, 1.0, 2)),
    ]
    for ours, theirs, arguments in calls:
        assert torch.equal(ours(*arguments), theirs(*arguments))  # type: ignore[arg-type]
    for k in {0, few}:
        assert cuda.knn(points, points, k)[0].equal(cpu.knn(points, points, k)[0])


@pytest.mark.parametrize("shape", [(3, 5), (2, 130, 4), (1, 0), (0, 4)])
def test_batch_rows(shape: tuple[int, ...]) -> None:
    index = torch.randint(-1, 7, shape)
    assert cuda.batch_rows(index, 7).equal(cpu.batch_rows(index, 7))


def test_refuses_numbers_that_no_point_has() -> None:
    for wrong in (7, -2):
        with pytest.raises(RuntimeError, match=r"batch_rows: index must be in \[0, 7\), or -1"):
            cuda.batch_rows(torch.tensor([[0, wrong], [1, 1]]), 7)


def test_transposed_points() -> None:
    points = cloud(70).transpose(1, 2).contiguous().transpose(1, 2)
    assert not points.is_contiguous()
    assert cuda.farthest_point_sampling(points, 9).equal(cpu.farthest_point_sampling(points, 9))
    assert cuda.ball_query(points, points, 9.0, 4).equal(cpu.ball_query(points, points, 9.0, 4))
    assert cuda.knn(points, points, 5)[0].equal(cpu.knn(points, points, 5)[0])


def set_abstraction(points: Tensor, feats: Tensor) -> Tensor:
    """Sample, group, reduce, and interpolate back."""
    centers = grouping(points, farthest_point_sampling(points, 12))
    near = grouping(feats, ball_query(centers, points, 2.0, 8)).square().mean(3)
    return three_interpolate(near, *three_nn(points, centers))


def test_public_functions_and_their_gradients() -> None:
    points, results = cloud(60), []
    feats = torch.randn(2, 8, 60)
    mode = OnDevice(
        farthest_point_sampling=cuda.farthest_point_sampling,
        ball_query=cuda.ball_query,
        knn=cuda.knn,
        batch_rows=cuda.batch_rows,
        gather_rows=scatter.gather_rows,
        scatter_sum=scatter.scatter_sum,
        devoxelize=voxelize.devoxelize,
        devoxelize_transpose=voxelize.devoxelize_transpose,
    )
    here, there = (feats.clone().requires_grad_() for _ in range(2))
    with mode:
        ours = set_abstraction(points, here)
        ours.square().sum().backward()
    assert all(mode.calls.values())
    theirs = set_abstraction(points, there)
    theirs.square().sum().backward()
    results = [(ours, theirs), (here.grad, there.grad)]
    for a, b in results:
        assert a is not None and b is not None
        assert_close(a, b)
