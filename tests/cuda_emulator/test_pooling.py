"""Pooling as on a GPU, against the CPU operators, over kernel maps and over any pairs."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from pointlib.ops._cpu import pooling as cpu
from pointlib.ops._cuda import pooling as cuda
from pointlib.ops._cuda import scatter
from pointlib.ops.kernel_map import ConvSpec, build_kernel_map
from pointlib.ops.pooling import sparse_pool
from tests import oracles
from tests.cuda_emulator.operators import ANY_ARCHITECTURE, OnDevice, same_bits
from tests.tolerances import assert_close

pytestmark = ANY_ARCHITECTURE


@pytest.mark.parametrize("pairs", [0, 1, 255, 256, 257, 900])
@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
def test_any_pairs(pairs: int, dtype: torch.dtype) -> None:
    """Pairs without a source or without an output are left out."""
    in_index, out_index = (torch.randint(-1, rows, (pairs,)).to(dtype) for rows in (50, 200))
    feats = (torch.randn(50, 4) * 4).round() / 4
    oracle = cpu.pool_sum(feats.double(), in_index, out_index, 200)
    assert_close(cuda.pool_sum(feats, in_index, out_index, 200), oracle)
    mean, count = cuda.pool_mean(feats, in_index, out_index, 200)
    ones = torch.ones(50, 1, dtype=torch.float64)
    expected = cpu.pool_sum(ones, in_index, out_index, 200).clamp(min=1)
    assert torch.equal(count.double(), expected)
    assert_close(mean, oracle / expected)
    feats = feats[:, :1]
    for ours, theirs in zip(
        cuda.pool_max(feats, in_index, out_index, 200),
        cpu.pool_max(feats, in_index, out_index, 200),
        strict=True,
    ):
        assert same_bits(ours, theirs)


def test_the_lowest_row_wins_a_tie_whatever_the_order_of_pairs() -> None:
    feats = torch.tensor([[1.0], [3.0], [3.0], [float("nan")], [float("nan")]])
    in_index = torch.tensor([2, 0, 1, 4, 1, 3]).int()
    out_index = torch.tensor([0, 0, 0, 1, 1, 1]).int()
    out, argmax = cuda.pool_max(feats, in_index, out_index, 3)
    assert argmax.flatten().tolist() == [1, 3, -1]
    assert out[0] == 3 and out[1].isnan() and out[2] == 0


@pytest.mark.parametrize("mode", ["max", "avg", "sum"])
@pytest.mark.parametrize("spec", [ConvSpec(3), ConvSpec(2, stride=2), ConvSpec(3, stride=2)])
def test_over_kernel_maps_with_gradients(spec: ConvSpec, mode: str) -> None:
    rng = np.random.default_rng(0)
    coords = oracles.random_coords(rng, 300, 7, batch=2)
    kernel_map = build_kernel_map(coords, spec).kernel_map
    values = (torch.randn(kernel_map.num_in, 4) * 4).round() / 4
    here, there = (values.clone().requires_grad_() for _ in range(2))
    upstream = torch.randn(kernel_map.num_out, 4)
    functions = {
        "pool_sum": cuda.pool_sum,
        "pool_mean": cuda.pool_mean,
        "pool_max": cuda.pool_max,
        "scatter_elements": scatter.scatter_elements,
    }
    with OnDevice(**functions):
        ours = sparse_pool(here, kernel_map, mode)  # type: ignore[arg-type]
        ours.backward(upstream)
    theirs = sparse_pool(there, kernel_map, mode)  # type: ignore[arg-type]
    theirs.backward(upstream)
    assert_close(ours, theirs)
    assert here.grad is not None and there.grad is not None
    assert_close(here.grad, there.grad)


def test_refuses_rows_that_do_not_exist() -> None:
    rows = torch.tensor([0, 1]).int()
    with pytest.raises(RuntimeError, match=r"pool_sum: index must be in \[0, 1\)"):
        cuda.pool_sum(torch.randn(1, 4), rows, torch.zeros(2).int(), 1)
    with pytest.raises(RuntimeError, match=r"pool_sum: index must be in \[0, 1\)"):
        cuda.pool_sum(torch.randn(2, 4), rows, rows, 1)
