"""Neighbours in clouds of points against loops over pairs; on a lattice, where distances are exact and often equal."""

from __future__ import annotations

import math
from fractions import Fraction

import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck
from torch.library import opcheck

from pointlib.ops._cpu import engine
from pointlib.ops._cpu import neighbors as native
from pointlib.ops._cpu.composition import neighbors as composition
from pointlib.ops.neighbors import (
    ball_query,
    farthest_point_sampling,
    grouping,
    knn,
    three_interpolate,
    three_nn,
)
from tests.tolerances import assert_close

OPS = torch.ops.pointlib
COUNTS = [1, 2, 63, 64, 65, 150]
DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]


def lattice(count: int, batch: int = 2, extent: int = 6) -> Tensor:
    """(B, 3, N) points on a lattice, some in one place."""
    return torch.randint(-extent, extent, (batch, 3, count)).float()


def dist2(a: Tensor, b: Tensor) -> float:
    return float((a.double() - b.double()).square().sum())


def sampling_by_loop(cloud: Tensor, samples: int) -> list[int]:
    """Of one cloud (3, N)."""
    points, chosen = cloud.unbind(1), [0]
    for _ in range(samples - 1):
        away = [min(dist2(point, points[c]) for c in chosen) for point in points]
        chosen.append(away.index(max(away)))
    return chosen[:samples]


def sorted_by_loop(center: Tensor, cloud: Tensor) -> list[tuple[float, int]]:
    """(squared distance, number) of every point of (3, N), nearest first."""
    return sorted((dist2(point, center), n) for n, point in enumerate(cloud.unbind(1)))


@pytest.mark.parametrize("count", COUNTS)
def test_samples_as_a_loop_does(count: int) -> None:
    points, samples = lattice(count), min(count, 12)
    chosen = farthest_point_sampling(points, samples)
    assert chosen.tolist() == [sampling_by_loop(cloud, samples) for cloud in points]


def test_sampling_all_points_and_none() -> None:
    points = torch.rand(2, 3, 70)
    assert farthest_point_sampling(points, 70).sort(1)[0].equal(torch.arange(70).expand(2, -1))
    assert farthest_point_sampling(points, 0).shape == (2, 0)
    assert farthest_point_sampling(torch.empty(2, 3, 0), 0).shape == (2, 0)
    assert farthest_point_sampling(torch.empty(0, 3, 5), 3).shape == (0, 3)


def test_sampling_repeats_point_0_where_every_place_is_taken() -> None:
    points = torch.tensor([0.0, 4.0, 4.0, 0.0]).expand(1, 3, 4)
    assert farthest_point_sampling(points, 4).tolist() == [[0, 1, 0, 0]]


def test_sampling_passes_over_points_that_are_not_finite() -> None:
    points = torch.zeros(2, 3, 70)
    points[:, 0] = torch.arange(70)
    points[:, 2, 69], points[:, 1, 3], points[1, 0, 0] = math.nan, math.inf, -math.inf
    chosen = farthest_point_sampling(points, 4)
    assert chosen.tolist() == [[0, 68, 34, 17], [0, 1, 68, 34]]
    assert farthest_point_sampling(points * math.nan, 3).tolist() == [[0] * 3] * 2


@pytest.mark.parametrize("count", COUNTS)
@pytest.mark.parametrize(("radius", "most"), [(3.0, 4), (5.0, 40), (2.0, 200), (0.0, 2)])
def test_ball_query_as_a_loop_does(count: int, radius: float, most: int) -> None:
    points, centers = lattice(count), lattice(9)
    found = ball_query(centers, points, radius, most)
    for b in range(2):
        for m in range(9):
            near = [n for d, n in sorted_by_loop(centers[b, :, m], points[b]) if d < radius**2]
            near = sorted(near)[:most]
            assert found[b, m].tolist() == near + (near[:1] or [-1]) * (most - len(near))


def test_ball_query_edges() -> None:
    points = lattice(5)
    assert ball_query(points, points, math.inf, 9)[0, 3].tolist() == [0, 1, 2, 3, 4, 0, 0, 0, 0]
    assert ball_query(points, points, 1.0, 0).shape == (2, 5, 0)
    assert ball_query(points[:, :, :0], points, 1.0, 3).shape == (2, 0, 3)
    assert ball_query(points, points[:, :, :0], 1.0, 2).eq(-1).all()
    assert ball_query(points[:0], points[:0], 1.0, 2).shape == (0, 5, 2)
    assert ball_query(points * math.nan, points, math.inf, 2).eq(-1).all()


@pytest.mark.parametrize("count", COUNTS)
@pytest.mark.parametrize("k", [1, 3, 40, 150])
def test_knn_as_sorting_does(count: int, k: int) -> None:
    points, queries, k = lattice(count), lattice(9), min(k, count)
    indices, found = knn(queries, points, k)
    for b in range(2):
        for m in range(9):
            near = sorted_by_loop(queries[b, :, m], points[b])[:k]
            assert list(zip(found[b, m].tolist(), indices[b, m].tolist(), strict=True)) == near


def test_knn_edges() -> None:
    points = lattice(5)
    assert knn(points, points, 0).indices.shape == (2, 5, 0)
    assert knn(points[:, :, :0], points, 2).indices.shape == (2, 0, 2)
    assert knn(points[:0], points[:0], 2).dist2.shape == (0, 5, 2)
    points[0, 1, 2], points[0, 0, 4], points[1] = math.nan, 1e30, math.nan
    indices, found = knn(points, points, 5)
    assert indices[0, 0].tolist().count(-1) == 2
    assert not {2, 4} & set(indices[0, 0].tolist())
    assert found.isinf().equal(indices < 0)
    assert indices[1].eq(-1).all()


def test_three_nn_weighs_by_inverse_squared_distance() -> None:
    points, queries = torch.rand(2, 3, 30), torch.rand(2, 3, 50)
    indices, weights = three_nn(queries, points)
    assert indices.equal(knn(queries, points, 3).indices)
    inverse = 1 / knn(queries, points, 3).dist2.double()
    assert_close(weights, inverse / inverse.sum(2, keepdim=True))


def test_three_nn_of_few_points_and_of_points_in_one_place() -> None:
    points = torch.rand(1, 3, 2)
    indices, weights = three_nn(points, points[:, :, :1])
    assert indices.tolist() == [[[0, -1, -1]] * 2]
    assert weights.tolist() == [[[1, 0, 0]] * 2]
    indices, weights = three_nn(points[:, :, :1].expand(-1, -1, 2), points.repeat(1, 1, 2))
    assert indices[0, 0].tolist()[:2] == [0, 2]
    torch.testing.assert_close(weights[0, 0], torch.tensor([0.5, 0.5, 0.0]), rtol=0, atol=1e-6)
    assert three_nn(points, points[:, :, :0]).weights.eq(0).all()
    assert three_nn(points * math.nan, points).weights.eq(0).all()


@pytest.mark.parametrize("dtype", DTYPES)
def test_interpolation_and_its_gradients(dtype: torch.dtype) -> None:
    feats = torch.randn(2, 5, 7, dtype=torch.float64).to(dtype)
    indices, weights = torch.randint(-1, 7, (2, 9, 3)), torch.rand(2, 9, 3)
    taken = grouping(feats.double(), indices)
    out = three_interpolate(feats, indices, weights)
    assert out.dtype == dtype
    assert_close(out, (taken * weights.double()[:, None]).sum(3))
    if dtype == torch.float64:
        inputs = (feats.requires_grad_(), weights.double().requires_grad_())
        for check in (gradcheck, gradgradcheck):
            assert check(lambda f, w: three_interpolate(f, indices, w), inputs)


@pytest.mark.parametrize("shape", [(2, 9), (2, 9, 4)])
def test_grouping_and_its_gradients(shape: tuple[int, ...]) -> None:
    feats, indices = torch.randn(2, 3, 7, dtype=torch.float64), torch.randint(-1, 7, shape)
    out = grouping(feats, indices)
    padded = torch.cat([feats, torch.zeros(2, 3, 1)], 2)
    expected = torch.stack([padded[b][:, indices[b]] for b in range(2)])
    assert out.equal(expected)
    for check in (gradcheck, gradgradcheck):
        assert check(lambda f: grouping(f, indices), feats.requires_grad_())


def test_grouped_features_are_laid_out_for_a_convolution() -> None:
    out = grouping(torch.randn(2, 3, 7), torch.randint(7, (2, 9, 4)))
    assert out.is_contiguous(memory_format=torch.channels_last)


def test_coordinates_are_constants() -> None:
    points = torch.rand(1, 3, 8, requires_grad=True)
    assert not three_nn(points, points).weights.requires_grad
    assert not knn(points, points, 2).dist2.requires_grad
    assert grouping(points, farthest_point_sampling(points, 2)).requires_grad


def test_opcheck() -> None:
    points, indices = torch.rand(2, 3, 9), torch.randint(-1, 7, (2, 9, 4))
    opcheck(OPS.farthest_point_sampling, (points, 4))
    opcheck(OPS.ball_query, (points[:, :, :4], points, 0.1, 5))
    opcheck(OPS.knn, (points[:, :, :4], points, 5))
    opcheck(OPS.batch_rows, (indices, 7))


def test_transposed_points() -> None:
    rows, centers = torch.rand(2, 80, 3), torch.rand(2, 3, 5)
    points = rows.transpose(1, 2)
    assert not points.is_contiguous()
    assert farthest_point_sampling(points, 9).equal(farthest_point_sampling(points.contiguous(), 9))
    assert ball_query(centers, points, 0.4, 9).equal(
        ball_query(centers, points.contiguous(), 0.4, 9)
    )
    assert knn(centers, points, 9).indices.equal(knn(centers, points.contiguous(), 9).indices)


def test_a_sum_of_squares_is_rounded_once_in_the_composition() -> None:
    values = torch.randn(3000) * 10.0 ** torch.randint(-6, 6, (3000,))
    totals = (torch.randn(3000) * 10.0 ** torch.randint(-6, 6, (3000,))).abs()
    halfway = torch.tensor([1 + 2.0**-12, 2.0**-13, 3 * 2.0**-13])  # their squares end in a tie
    values, totals = torch.cat([values, halfway, halfway]), torch.cat([totals, torch.ones(6)])
    totals[-3:] += 2.0**-23
    for value, total, actual in zip(
        values.tolist(),
        totals.tolist(),
        composition._add_square(values, totals).tolist(),
        strict=True,
    ):
        exact = Fraction(value) ** 2 + Fraction(total)
        assert actual == nearest_float32(exact)


def nearest_float32(exact: Fraction) -> float:
    """Rounded to nearest, ties to even, by comparing the neighbours exactly."""
    guess = torch.tensor(float(exact))
    around = [torch.nextafter(guess, torch.tensor(s * math.inf)) for s in (-1, 1)]
    return min(
        (float(v) for v in (guess, *around)),
        key=lambda v: (
            abs(Fraction(v) - exact),
            int(torch.tensor(v).view(torch.int32)) & 1,
        ),
    )


@pytest.mark.skipif(engine.LIBRARY is None, reason="the CPU engine is not compiled")
@pytest.mark.parametrize("count", [1, 64, 333])
def test_engine_and_composition_find_the_same(count: int) -> None:
    points = torch.randn(3, 3, count) * torch.tensor([1.0, 30.0, 1e-3])[:, None, None]
    centers = torch.cat([points[:, :, : count // 3], torch.randn(3, 3, 5)], 2)
    results = [
        (
            module.farthest_point_sampling(points, count),
            module.ball_query(centers, points, 0.3, 7),
            *module.knn(centers, points, min(9, count)),
        )
        for module in (native, composition)
    ]
    assert all(a.equal(b) for a, b in zip(*results, strict=True))


def test_same_results_whatever_the_thread_count() -> None:
    points, threads, results = torch.rand(3, 3, 2000), torch.get_num_threads(), []
    for count in (1, 2):
        torch.set_num_threads(count)
        found = ball_query(points, points, 0.1, 8), knn(points, points, 4).indices
        results.append((farthest_point_sampling(points, 60), *found))
    torch.set_num_threads(threads)
    assert all(a.equal(b) for a, b in zip(*results, strict=True))


def test_compiles_without_a_break() -> None:
    torch._dynamo.reset()

    def abstraction(feats: Tensor, points: Tensor) -> Tensor:
        centers = grouping(points, farthest_point_sampling(points, 4))
        near = grouping(feats, ball_query(centers, points, 0.5, 3)).amax(3)
        return three_interpolate(near, *three_nn(points, centers))

    compiled = torch.compile(abstraction, fullgraph=True, dynamic=True, backend="aot_eager")
    for count in (9, 12):
        feats, points = torch.randn(2, 5, count, requires_grad=True), torch.rand(2, 3, count)
        assert compiled(feats, points).equal(abstraction(feats, points))
        (grad,) = torch.autograd.grad(compiled(feats, points).square().sum(), feats)
        (expected,) = torch.autograd.grad(abstraction(feats, points).square().sum(), feats)
        assert grad.equal(expected)


POINTS, FEATS = torch.zeros(2, 3, 5), torch.zeros(2, 4, 5)
THREE = torch.zeros(2, 6, 3, dtype=torch.int64)
WEIGHTS = torch.zeros(2, 6, 3)


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (
            lambda: farthest_point_sampling(POINTS.double(), 1),
            TypeError,
            "points must be .*float32",
        ),
        (lambda: farthest_point_sampling(POINTS[0], 1), ValueError, r"\(B, 3, N\), got \(3, 5\)"),
        (lambda: farthest_point_sampling(POINTS.mT, 1), ValueError, r"transpose\(1, 2\)"),
        (lambda: farthest_point_sampling(POINTS, 6), ValueError, r"in \[0, N\] .*N = 5.*got 6"),
        (lambda: farthest_point_sampling(POINTS, -1), ValueError, "num_samples must .*got -1"),
        (lambda: ball_query(POINTS[:1], POINTS, 1, 2), ValueError, "as many clouds .* got 1"),
        (lambda: ball_query(POINTS.int(), POINTS, 1, 2), TypeError, "centers must .*int32"),
        (lambda: ball_query(POINTS.to("meta"), POINTS, 1, 2), ValueError, "on their device.*meta"),
        (lambda: ball_query(POINTS, POINTS, -1.0, 2), ValueError, "radius must be >= 0, got -1"),
        (lambda: ball_query(POINTS, POINTS, math.nan, 2), ValueError, "radius must .* got nan"),
        (lambda: ball_query(POINTS, POINTS, 1, -2), ValueError, "num_neighbors must .*got -2"),
        (lambda: knn(POINTS, POINTS, 6), ValueError, r"k must be in \[0, N\] for N = 5.*got 6"),
        (lambda: knn(POINTS, POINTS, -1), ValueError, "k must be .*got -1"),
        (lambda: three_nn(POINTS, FEATS), ValueError, r"points must .*got \(2, 4, 5\)"),
        (lambda: grouping(FEATS.int(), THREE), TypeError, "feats must be .*got torch.int32"),
        (lambda: grouping(FEATS[0], THREE), ValueError, r"feats must be .*got \(4, 5\)"),
        (lambda: grouping(FEATS, THREE.int()), TypeError, "indices must be an int64 .*int32"),
        (lambda: grouping(FEATS, THREE[:1]), ValueError, "as many clouds as feats, 2"),
        (lambda: grouping(FEATS, THREE[..., None]), ValueError, "2 or 3 dimensions"),
        (lambda: grouping(FEATS, THREE.to("meta")), ValueError, "indices must be on cpu"),
        (lambda: grouping(FEATS, THREE + 5), ValueError, r"must be in \[0, 5\).*got 5"),
        (lambda: grouping(FEATS, THREE - 2), ValueError, r"must be in \[0, 5\).*got -2"),
        (lambda: three_interpolate(FEATS, THREE, WEIGHTS.int()), ValueError, "weights must be flo"),
        (lambda: three_interpolate(FEATS, THREE, WEIGHTS[:, 1:]), ValueError, "shape of indices"),
        (lambda: three_interpolate(FEATS, THREE[:, 0], WEIGHTS), ValueError, "have 3 dimensions"),
        (lambda: three_interpolate(FEATS, THREE, WEIGHTS.to("meta")), ValueError, "weights .* cpu"),
    ],
)
def test_refuses(call, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        call()
