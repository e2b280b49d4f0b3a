"""Bird's-eye pooling on CUDA against the CPU operators."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from pointlib.ops._cpu import bev_pool as cpu
from pointlib.ops._cuda import bev_pool as cuda
from tests.cuda_emulator.emulator import Emulator
from tests.tolerances import assert_close

WIDE = 16
"""Channels of whole 16-byte vectors in every dtype."""


def random_plan(points: int, num_cells: int) -> tuple[Tensor, Tensor, Tensor]:
    """Cell of each point, one in five without, and the intervals."""
    cells = torch.randint(max(num_cells, 1), (points,))
    cells = torch.where(torch.rand(points) < 0.2, -1, cells)
    return (cells, *cpu.bev_pool_intervals(cells, num_cells))


def random_lift(
    dtype: torch.dtype, channels: int, sizes: tuple[int, int, int]
) -> tuple[Tensor, Tensor]:
    """Depth (images, depths, area) in the dtype of the sums, context (images, area, channels)."""
    images, _, area = sizes
    sums = torch.promote_types(dtype, torch.float32)
    depth = torch.randn(sizes, dtype=torch.float64).softmax(1).to(sums)
    return depth, torch.randn(images, area, channels, dtype=torch.float64).to(dtype)


def exact(*tensors: Tensor) -> list[Tensor]:
    """The same numbers in float64."""
    return [t.double() if t.is_floating_point() else t for t in tensors]


def test_intervals(emulator: Emulator) -> None:
    for points, num_cells in ((0, 3), (1, 1), (700, 40)):
        cells, order, interval_ptr = random_plan(points, num_cells)
        actual = cuda.bev_pool_intervals(cells, num_cells)
        assert [t.dtype for t in actual] == [torch.int32, torch.int32]
        assert torch.equal(actual[0], order) and torch.equal(actual[1], interval_ptr)


@pytest.mark.parametrize(
    ("dtype", "channels"),
    [
        (torch.float32, 80),  # one row of 20 lanes
        (torch.float32, 3),  # ten rows at once, element by element
        (torch.float16, 80),  # three rows of ten lanes
        (torch.bfloat16, WIDE),
        (torch.float64, 80),  # two blocks side by side
    ],
)
def test_pool(emulator: Emulator, dtype: torch.dtype, channels: int) -> None:
    for points, num_cells in ((0, 3), (1, 1), (900, 41)):
        plan = random_plan(points, num_cells)
        feats = torch.randn(points, channels).to(dtype)
        actual = cuda.bev_pool(feats, *plan)
        assert actual.dtype == dtype
        assert_close(actual, cpu.bev_pool(feats.double(), *plan))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_lifting(emulator: Emulator, dtype: torch.dtype) -> None:
    for channels, sizes in ((WIDE, (2, 33, 6)), (80, (3, 7, 5)), (WIDE, (1, 1, 1))):
        depth, context = random_lift(dtype, channels, sizes)
        plan = random_plan(depth.numel(), 23)
        actual = cuda.bev_pool_depth(depth, context, *plan)
        assert_close(actual, cpu.bev_pool_depth(*exact(depth, context, *plan)))


@pytest.mark.parametrize("points", [256, 257, 1500])
def test_a_long_cell_is_shared_by_a_block(emulator: Emulator, points: int) -> None:
    # Cells 5 and 11 of 20 belong to the same block of eight, which are three apart.
    cells = torch.cat([torch.full((points,), 5), torch.arange(20), torch.full((300,), 11)])
    plan = (cells, *cpu.bev_pool_intervals(cells, 20))
    feats = torch.randn(len(cells), 12)
    assert_close(cuda.bev_pool(feats, *plan), cpu.bev_pool(feats.double(), *plan))


@pytest.mark.parametrize(
    ("dtype", "channels", "sizes"),
    [
        (torch.float32, 80, (2, 37, 5)),
        (torch.float32, 132, (1, 9, 3)),  # a row is longer than a warp
        (torch.float16, WIDE, (2, 32, 9)),
        (torch.float16, WIDE, (1, 1, 1)),
        (torch.float64, 5, (2, 3, 4)),
    ],
)
def test_gradients_of_lifting(
    emulator: Emulator, dtype: torch.dtype, channels: int, sizes: tuple[int, int, int]
) -> None:
    depth, context = random_lift(dtype, channels, sizes)
    plan = random_plan(depth.numel(), 19)
    grad = torch.randn(19, channels).to(dtype)
    actual = cuda.bev_pool_depth_grad(grad, depth, context, *plan)
    expected = cpu.bev_pool_depth_grad(*exact(grad, depth, context, *plan))
    for got, wanted, like in zip(actual, expected, (depth, context), strict=True):
        assert got.dtype == like.dtype and got.shape == like.shape
        assert_close(got, wanted)


def test_misaligned_and_strided_features(emulator: Emulator) -> None:
    plan = random_plan(50, 7)
    shifted = torch.randn(50 * 80 + 1)[1:].view(50, 80)
    strided = torch.randn(80, 50).t()
    for feats in (shifted, strided):
        assert_close(cuda.bev_pool(feats, *plan), cpu.bev_pool(feats.double(), *plan))


def test_what_a_plan_leaves_out_is_not_read(emulator: Emulator) -> None:
    cells = torch.full((12,), -1)
    plan = (cells, *cpu.bev_pool_intervals(cells, 3))
    bad = torch.full((12, 80), torch.nan)
    assert not cuda.bev_pool(bad, *plan).any()
    depth, context = torch.full((1, 4, 3), torch.nan), torch.full((1, 3, 80), torch.nan)
    assert not cuda.bev_pool_depth(depth, context, *plan).any()
    grads = cuda.bev_pool_depth_grad(torch.full((3, 80), torch.nan), depth, context, *plan)
    assert not any(g.any() for g in grads)


def test_no_channels(emulator: Emulator) -> None:
    plan = random_plan(6, 4)
    assert cuda.bev_pool(torch.ones(6, 0), *plan).shape == (4, 0)
    depth, context = random_lift(torch.float32, 0, (1, 2, 3))
    grads = cuda.bev_pool_depth_grad(torch.ones(4, 0), depth, context, *plan)
    assert not grads[0].any() and grads[1].shape == (1, 3, 0)
