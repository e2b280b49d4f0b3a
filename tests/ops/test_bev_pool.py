"""Bird's-eye pooling against index_add in float64."""

from __future__ import annotations

import dataclasses
import itertools

import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck
from torch.library import opcheck

from pointlib.ops._cpu import engine
from pointlib.ops._cpu.composition import bev_pool as composition
from pointlib.ops.bev_pool import BevPoolPlan, bev_pool, bev_pool_depth, build_bev_pool_plan
from tests.tolerances import assert_close

OPS = torch.ops.pointlib
DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]
GRID = (5, 4, 2)
BATCH = 2


def random_coords(count: int) -> Tensor:
    """Cells `[batch, x, y, z]`, a third of them outside the grid on some side."""
    coords = torch.stack([torch.randint(n, (count,)) for n in (BATCH, *GRID)], 1)
    jumps = (torch.rand(count, 4) < 0.1) * torch.tensor([-5, 5])[torch.randint(2, (count, 4))]
    return (coords + jumps).int()


def random_plan(count: int) -> tuple[Tensor, BevPoolPlan]:
    coords = random_coords(count)
    return coords, build_bev_pool_plan(coords, BATCH, GRID)


def pooled(feats: Tensor, coords: Tensor) -> Tensor:
    """(B, C, Z, X, Y) float64, one point at a time."""
    out = torch.zeros(BATCH, feats.shape[1], GRID[2], GRID[0], GRID[1], dtype=torch.float64)
    for row, (b, x, y, z) in zip(feats.detach().double(), coords.tolist(), strict=True):
        if 0 <= b < BATCH and 0 <= x < GRID[0] and 0 <= y < GRID[1] and 0 <= z < GRID[2]:
            out[b, :, z, x, y] += row
    return out


def lifted(depth: Tensor, context: Tensor) -> Tensor:
    """(B * N * D * H * W, C) products, as they stand in memory without the fused operator."""
    return (depth[..., None] * context.permute(0, 2, 3, 1)[:, None]).flatten(0, 3)


def random_lift(dtype: torch.dtype = torch.float64, channels: int = 6) -> tuple[Tensor, Tensor]:
    depth = torch.randn(4, 7, 3, 5, dtype=torch.float64).softmax(1).to(dtype)
    return depth, torch.randn(4, channels, 3, 5, dtype=torch.float64).to(dtype)


@pytest.mark.parametrize("dtype", DTYPES)
def test_pools_as_a_loop_does(dtype: torch.dtype) -> None:
    coords, plan = random_plan(300)
    feats = torch.randn(300, 6, dtype=torch.float64).to(dtype)
    actual = bev_pool(feats, plan)
    assert actual.dtype == dtype
    assert_close(actual, pooled(feats, coords))


@pytest.mark.parametrize("dtype", DTYPES)
def test_lifting_while_pooling_is_pooling_the_products(dtype: torch.dtype) -> None:
    coords, plan = random_plan(4 * 7 * 3 * 5)
    depth, context = random_lift(dtype)
    actual = bev_pool_depth(depth, context, plan)
    assert actual.dtype == dtype
    assert_close(actual, pooled(lifted(depth.double(), context.double()), coords))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_float32_depth_keeps_its_precision(dtype: torch.dtype) -> None:
    coords, plan = random_plan(4 * 7 * 3 * 5)
    depth, context = random_lift(torch.float32)[0], random_lift(dtype)[1]
    depth.requires_grad_()
    actual = bev_pool_depth(depth, context, plan)
    assert_close(actual, pooled(lifted(depth.double(), context.double()), coords))
    (grad,) = torch.autograd.grad(actual.float().sum(), depth)
    inside = plan.cells.view(depth.shape) >= 0
    assert grad.dtype == torch.float32
    assert_close(grad, inside * context.double().sum(1)[:, None])


def test_intervals_hold_each_point_once_and_in_order() -> None:
    _, plan = random_plan(500)
    assert (plan.cells < 0).any() and plan.num_points == 500
    bounds = plan.interval_ptr.tolist()
    assert bounds[0] == 0 and len(bounds) == BATCH * 5 * 4 * 2 + 1
    for cell, (begin, end) in enumerate(itertools.pairwise(bounds)):
        expected = (plan.cells == cell).nonzero().flatten()
        assert torch.equal(plan.order[begin:end].long(), expected)
    assert torch.equal(plan.order[bounds[-1] :].long(), (plan.cells < 0).nonzero().flatten())


def test_cells_follow_the_grid() -> None:
    coords = torch.tensor([[1, 4, 3, 1], [0, 0, 1, 0], [0, 2, 0, 0], [0, 0, 0, 1], [1, 0, 0, 0]])
    plan = build_bev_pool_plan(coords, BATCH, GRID)
    out = bev_pool(torch.eye(5), plan)
    assert out.shape == (2, 5, 2, 5, 4)
    found = [(int(b), int(x), int(y), int(z)) for b, _, z, x, y in out.nonzero().tolist()]
    assert sorted(found) == sorted(tuple(row) for row in coords.tolist())
    assert out.permute(0, 2, 3, 4, 1).is_contiguous()


def test_gradients() -> None:
    _, plan = random_plan(4 * 7 * 3 * 5)
    feats = torch.randn(420, 3, dtype=torch.float64, requires_grad=True)
    assert gradcheck(lambda f: bev_pool(f, plan), feats, fast_mode=True)
    assert gradgradcheck(lambda f: bev_pool(f, plan), feats, fast_mode=True)
    (grad,) = torch.autograd.grad(bev_pool(feats, plan).sum(), feats)
    assert torch.equal(grad[:, 0] != 0, plan.cells >= 0)


def test_gradients_of_lifting() -> None:
    depth, context = (t[:2, ..., :2, :2].clone().requires_grad_() for t in random_lift(channels=3))
    _, plan = random_plan(depth.numel())
    assert gradcheck(lambda d, c: bev_pool_depth(d, c, plan), (depth, context))
    assert gradgradcheck(lambda d, c: bev_pool_depth(d, c, plan), (depth, context))


@pytest.mark.parametrize("dtype", DTYPES)
def test_gradients_of_lifting_in_every_dtype(dtype: torch.dtype) -> None:
    _, plan = random_plan(4 * 7 * 3 * 5)
    depth, context = (t.requires_grad_() for t in random_lift(dtype, channels=19))
    out = bev_pool_depth(depth, context, plan)
    weights = torch.randn(out.shape).to(dtype)
    actual = torch.autograd.grad(out, (depth, context), weights)
    exact = [t.detach().double().requires_grad_() for t in (depth, context)]
    expected = torch.autograd.grad(bev_pool(lifted(*exact), plan), exact, weights.to(torch.float64))
    for got, wanted in zip(actual, expected, strict=True):
        assert got.dtype == dtype
        assert_close(got, wanted)


def test_opcheck() -> None:
    _, plan = random_plan(4 * 7 * 3 * 5)
    tensors = (plan.cells, plan.order, plan.interval_ptr)
    depth, context = random_lift()
    weights, rows = depth.flatten(2).requires_grad_(), context.flatten(2).mT.requires_grad_()
    opcheck(OPS.bev_pool_intervals, (plan.cells, 80))
    opcheck(OPS.bev_pool, (torch.randn(420, 3, requires_grad=True), *tensors))
    opcheck(OPS.bev_pool_depth, (weights, rows, *tensors))
    grad = torch.randn(80, 6, dtype=torch.float64, requires_grad=True)
    opcheck(OPS.bev_pool_depth_grad, (grad, weights, rows, *tensors))


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_composition_agrees(dtype: torch.dtype) -> None:
    _, plan = random_plan(4 * 7 * 3 * 5)
    tensors = (plan.cells, plan.order, plan.interval_ptr)
    ordered = composition.bev_pool_intervals(plan.cells, 80)
    assert torch.equal(ordered[0], plan.order) and torch.equal(ordered[1], plan.interval_ptr)
    feats = torch.randn(420, 5).to(dtype)
    assert_close(OPS.bev_pool(feats, *tensors), composition.bev_pool(feats, *tensors))
    depth, context = random_lift(dtype)
    weights = depth.flatten(2).to(torch.promote_types(dtype, torch.float32))
    rows = context.flatten(2).mT
    lift = (weights, rows, *tensors)
    assert_close(OPS.bev_pool_depth(*lift), composition.bev_pool_depth(*lift))
    grad = torch.randn(80, 6).to(dtype)
    pairs = zip(
        OPS.bev_pool_depth_grad(grad, *lift),
        composition.bev_pool_depth_grad(grad, *lift),
        strict=True,
    )
    for actual, expected in pairs:
        assert actual.dtype == expected.dtype
        assert_close(actual, expected)


@pytest.mark.parametrize("count", [0, 1])
def test_empty_and_single(count: int) -> None:
    coords = torch.zeros(count, 4, dtype=torch.int32)
    plan = build_bev_pool_plan(coords, 1, (2, 3, 1))
    feats = torch.ones(count, 2, requires_grad=True)
    out = bev_pool(feats, plan)
    assert out.shape == (1, 2, 1, 2, 3) and out.sum() == 2 * count
    out.sum().backward()
    assert feats.grad is not None and feats.grad.sum() == 2 * count
    depth = torch.ones(count, 1, 1, 1, requires_grad=True)
    out = bev_pool_depth(depth, torch.full((count, 2, 1, 1), 3.0), plan)
    assert out.sum() == 6 * count
    out.sum().backward()
    assert depth.grad is not None and depth.grad.sum() == 6 * count


def test_no_channels_and_no_point_inside() -> None:
    outside = torch.full((6, 4), -3)
    plan = build_bev_pool_plan(outside, 1, (2, 3, 1))
    assert not bev_pool(torch.ones(6, 4), plan).any()
    assert bev_pool(torch.ones(6, 0), plan).shape == (1, 0, 1, 2, 3)
    depth, context = torch.ones(1, 3, 1, 2), torch.ones(1, 4, 1, 2, requires_grad=True)
    bev_pool_depth(depth, context, plan).sum().backward()
    assert context.grad is not None and not context.grad.any()
    assert bev_pool_depth(depth, context[:, :0], plan).shape == (1, 0, 1, 2, 3)


def test_huge_coordinates_are_outside() -> None:
    coords = torch.tensor([[0, 2**62, 0, 0], [0, -(2**62), 0, 0], [0, 0, 2**31, 0], [0, 1, 1, 0]])
    plan = build_bev_pool_plan(coords, 1, (2, 2, 1))
    assert plan.cells.tolist() == [-1, -1, -1, 3]


def test_non_contiguous_input() -> None:
    coords, plan = random_plan(420)
    again = build_bev_pool_plan(coords.t().contiguous().t(), BATCH, GRID)
    assert torch.equal(again.order, plan.order)
    feats, (depth, context) = torch.randn(12, 840).t()[::2], random_lift(torch.float32)
    assert torch.equal(bev_pool(feats, plan), bev_pool(feats.contiguous(), plan))
    channels_last = context.to(memory_format=torch.channels_last)
    strided = depth.permute(3, 2, 1, 0).contiguous().permute(3, 2, 1, 0)
    expected = bev_pool_depth(depth, context, plan)
    assert torch.equal(bev_pool_depth(strided, channels_last, plan), expected)


def test_half_precision_sums_round_once() -> None:
    plan = build_bev_pool_plan(torch.zeros(4097, 4, dtype=torch.int32), 1, (1, 1, 1))
    ones = torch.ones(4097, 1, dtype=torch.bfloat16)
    assert bev_pool(ones, plan).item() == 4096
    depth = torch.ones(1, 4097, 1, 1, dtype=torch.bfloat16)
    assert bev_pool_depth(depth, torch.full((1, 1, 1, 1), 0.5).bfloat16(), plan).item() == 2048


def test_same_bits_whatever_the_thread_count() -> None:
    coords = torch.randint(0, 40, (4 * 20 * 10 * 25, 4)).minimum(torch.tensor([1, 40, 40, 2]))
    plan = build_bev_pool_plan(coords, 2, (40, 40, 2))
    depth = torch.rand(4, 20, 10, 25, requires_grad=True)
    context = torch.randn(4, 16, 10, 25, requires_grad=True)
    threads, results = torch.get_num_threads(), []
    for count in (1, 2, 3):
        torch.set_num_threads(count)
        out = bev_pool_depth(depth, context, plan)
        grads = torch.autograd.grad(out, (depth, context), torch.cos(out.detach()))
        flat = bev_pool(lifted(depth, context).detach(), plan)
        plan_again = build_bev_pool_plan(coords, 2, (40, 40, 2))
        results.append((out, *grads, flat, plan_again.order, plan_again.interval_ptr))
    torch.set_num_threads(threads)
    for again in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(again, results[0], strict=True))


def test_compiles_without_a_break() -> None:
    torch._dynamo.reset()

    def network(depth: Tensor, context: Tensor, coords: Tensor) -> Tensor:
        plan = build_bev_pool_plan(coords, BATCH, GRID)
        return bev_pool_depth(depth.softmax(1), context, plan) + bev_pool(
            lifted(depth, context), plan
        )

    compiled = torch.compile(network, fullgraph=True, backend="aot_eager")
    depth, context = (t.requires_grad_() for t in random_lift())
    coords = random_coords(depth.numel())
    assert_close(compiled(depth, context, coords), network(depth, context, coords))
    (grad,) = torch.autograd.grad(compiled(depth, context, coords).square().sum(), context)
    (expected,) = torch.autograd.grad(network(depth, context, coords).square().sum(), context)
    assert_close(grad, expected)


def test_a_plan_moves_and_stays_as_it_is() -> None:
    _, plan = random_plan(9)
    assert plan.to("meta").cells.device.type == "meta"
    with pytest.raises(dataclasses.FrozenInstanceError):
        plan.batch_size = 3  # type: ignore[misc]


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"coords": torch.zeros(3, 4)}, TypeError, "coords must be an int32 .* got torch.float32"),
        ({"coords": torch.zeros(3, 3).int()}, ValueError, r"coords must be \(P, 4\).*got \(3, 3\)"),
        ({"batch_size": 0}, ValueError, r"batch_size .* must be positive .* got 0, \(5, 4, 2\)"),
        ({"grid_shape": (5, 4)}, ValueError, r"got 2, \(5, 4\)"),
        ({"grid_shape": (2**16, 2**16, 1)}, ValueError, "fewer than 2"),
    ],
)
def test_plan_refuses(change: dict, error: type[Exception], words: str) -> None:
    arguments = {"coords": random_coords(3), "batch_size": BATCH, "grid_shape": GRID, **change}
    with pytest.raises(error, match=words):
        build_bev_pool_plan(**arguments)


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"depth": torch.ones(1, 2, 1, 3).long()}, TypeError, "depth must be a floating tensor"),
        ({"context": None}, TypeError, "context must be a floating tensor, got NoneType"),
        ({"depth": torch.ones(1, 2, 1, 3).half()}, TypeError, "depth must be torch.float32 .*got"),
        ({"depth": torch.ones(1, 2, 3)}, ValueError, r"depth must be \(B \* N, D, H, W\)"),
        ({"context": torch.ones(1, 5, 3, 1)}, ValueError, r"and \(1, 5, 3, 1\)"),
        ({"context": torch.ones(5, 1, 3)}, ValueError, r"context \(B \* N, C, H, W\)"),
        ({"depth": torch.ones(1, 3, 1, 3)}, ValueError, "depth must bring the plan's 6 points"),
        ({"context": torch.ones(1, 5, 1, 3).to("meta")}, ValueError, "context .* on cpu, got 6"),
    ],
)
def test_lifting_refuses(change: dict, error: type[Exception], words: str) -> None:
    _, plan = random_plan(6)
    arguments = {"depth": torch.ones(1, 2, 1, 3), "context": torch.ones(1, 5, 1, 3), **change}
    with pytest.raises(error, match=words):
        bev_pool_depth(arguments["depth"], arguments["context"], plan)


def test_pool_refuses() -> None:
    _, plan = random_plan(6)
    with pytest.raises(ValueError, match="feats must bring the plan's 6 points on cpu, got 5"):
        bev_pool(torch.ones(5, 2), plan)
    with pytest.raises(TypeError, match="feats must be an"):
        bev_pool(torch.ones(6, 2).int(), plan)


def test_a_plan_that_names_other_points_is_refused() -> None:
    plan = build_bev_pool_plan(torch.zeros(6, 4).int(), BATCH, GRID)
    depth, context = torch.ones(1, 2, 1, 3), torch.ones(1, 5, 1, 3, requires_grad=True)
    beyond = dataclasses.replace(plan, cells=plan.cells + 80)
    with pytest.raises(ValueError, match=r"index must be in \[0, 80\)"):
        bev_pool(torch.ones(6, 5), beyond)
    with pytest.raises(ValueError, match=r"index must be in \[0, 80\)"):
        bev_pool_depth(depth, context, beyond).sum().backward()
    with pytest.raises(ValueError, match=r"index must be in \[0, 80\)"):
        OPS.bev_pool_intervals(beyond.cells, 80)


@pytest.mark.skipif(engine.LIBRARY is None, reason="the composition reads the cells alone")
def test_a_plan_with_broken_intervals_is_refused() -> None:
    plan = build_bev_pool_plan(torch.zeros(6, 4).int(), BATCH, GRID)
    depth, context = torch.ones(1, 2, 1, 3), torch.ones(1, 5, 1, 3)
    for change in (
        {"order": plan.order + 1},
        {"order": plan.order - 1},
        {"interval_ptr": plan.interval_ptr + 1},
        {"interval_ptr": plan.interval_ptr.flip(0)},
    ):
        with pytest.raises(ValueError, match="plan must be of build_bev_pool_plan"):
            bev_pool_depth(depth, context, dataclasses.replace(plan, **change))
