"""Pooling over kernel maps against loops over lists of pairs, and against dense pooling."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck
from torch.library import opcheck

from pointlib.ops.kernel_map import ConvSpec, KernelMap, build_kernel_map
from pointlib.ops.pooling import sparse_max_pool, sparse_max_unpool, sparse_pool
from tests import oracles
from tests.tolerances import assert_close

OPS = torch.ops.pointlib
DTYPES = [torch.float64, torch.float32, torch.bfloat16]
MODES = ["max", "avg", "sum"]
SPECS = {
    "2 / 2": ConvSpec(2, 2),
    "3 / 2": ConvSpec(3, 2),
    "3 / 1": ConvSpec(3),
    "flat, dilated": ConvSpec((3, 3, 1), dilation=(2, 1, 1)),
    "spconv 3 / 2": ConvSpec(3, 2, 1, relation="spconv"),
}


def pool_by_loop(feats: Tensor, kernel_map: KernelMap, mode: str) -> Tensor:
    """Float64 pooling, one output at a time."""
    out = torch.zeros(kernel_map.num_out, feats.shape[1], dtype=torch.float64)
    for row in range(kernel_map.num_out):
        window = feats.detach().double()[kernel_map.in_index[kernel_map.out_index == row].long()]
        if len(window):
            how = {"max": window.amax, "avg": window.mean, "sum": window.sum}[mode]
            out[row] = how(0)
    return out


def scene(spec: ConvSpec, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, KernelMap]:
    coords = oracles.random_coords(np.random.default_rng(0), 60, (5, 6, 4), batch=2)
    feats = torch.randn(len(coords), 3, dtype=torch.float64).to(dtype).requires_grad_()
    return coords, feats, build_kernel_map(coords, spec, (5, 6, 4)).kernel_map


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
@pytest.mark.parametrize("mode", MODES)
def test_pools_as_a_loop_does(mode: str, spec: ConvSpec, dtype: torch.dtype) -> None:
    _, feats, kernel_map = scene(spec, dtype)
    for pairs in (kernel_map, kernel_map.transpose()):
        x = feats if pairs is kernel_map else torch.randn(pairs.num_in, 2).to(dtype)
        actual = sparse_pool(x, pairs, mode)
        assert actual.dtype == dtype
        assert_close(actual, pool_by_loop(x, pairs, mode))


@pytest.mark.parametrize("mode", MODES)
def test_gradients(mode: str) -> None:
    _, feats, kernel_map = scene(SPECS["3 / 2"])
    feats = feats[:, :1].detach().requires_grad_()
    assert gradcheck(lambda f: sparse_pool(f, kernel_map, mode), feats)
    assert gradgradcheck(lambda f: sparse_pool(f, kernel_map, mode), feats)


def test_opcheck() -> None:
    _, feats, kernel_map = scene(SPECS["3 / 2"])
    pairs = (kernel_map.in_index, kernel_map.out_index, kernel_map.num_out)
    opcheck(OPS.pool_sum, (feats, *pairs))
    opcheck(OPS.pool_mean, (feats, *pairs))
    opcheck(OPS.pool_max, (feats, *pairs))


def test_max_equals_dense_pooling_where_every_voxel_exists() -> None:
    grid = torch.randn(1, 2, 4, 6, 4, dtype=torch.float64)
    coords = torch.cartesian_prod(*map(torch.arange, (1, 4, 6, 4))).int()
    feats = grid.permute(0, 2, 3, 4, 1).reshape(-1, 2)
    out, kernel_map = build_kernel_map(coords, ConvSpec(2, 2))
    dense = {
        "max": torch.nn.functional.max_pool3d(grid, 2),
        "avg": torch.nn.functional.avg_pool3d(grid, 2),
    }
    for mode, expected in dense.items():
        b, x, y, z = out.long().unbind(1)
        assert_close(sparse_pool(feats, kernel_map, mode), expected[b, :, x, y, z])


def test_average_counts_present_neighbours_only() -> None:
    coords = torch.tensor([[0, 0, 0, 0], [0, 1, 1, 1], [0, 4, 4, 4]], dtype=torch.int32)
    kernel_map = build_kernel_map(coords, ConvSpec(2, 2)).kernel_map
    pooled = sparse_pool(torch.tensor([[1.0], [3.0], [5.0]]), kernel_map, "avg")
    assert pooled.tolist() == [[2.0], [5.0]]


def test_a_maximum_below_zero_is_not_replaced_by_absent_voxels() -> None:
    _, feats, kernel_map = scene(SPECS["2 / 2"])
    assert (sparse_pool(-feats.abs() - 1, kernel_map, "max") <= -1).all()


def test_average_unpooling_copies_where_windows_do_not_overlap() -> None:
    coords, feats, kernel_map = scene(SPECS["2 / 2"])
    coarse = build_kernel_map(coords, SPECS["2 / 2"]).coords
    pooled = sparse_pool(feats, kernel_map, "sum")
    parent = coarse[None] == coords[:, None].div(torch.tensor([1, 2, 2, 2]), rounding_mode="floor")
    expected = pooled[parent.all(2).int().argmax(1)]
    assert torch.equal(sparse_pool(pooled, kernel_map.transpose(), "avg"), expected)


def test_max_unpooling_puts_values_back() -> None:
    _, feats, kernel_map = scene(SPECS["2 / 2"])
    pooled, argmax = sparse_max_pool(feats, kernel_map)
    restored = sparse_max_unpool(pooled, argmax, len(feats))
    chosen = torch.zeros_like(feats, dtype=torch.bool).scatter_(0, argmax, True)
    assert torch.equal(restored, torch.where(chosen, feats, 0))
    tight = pooled[:, :1].detach().requires_grad_()
    assert gradcheck(lambda f: sparse_max_unpool(f, argmax[:, :1], len(feats)), tight)


def test_ties_go_to_the_lowest_row() -> None:
    _, feats, kernel_map = scene(SPECS["3 / 1"])
    argmax = sparse_max_pool(torch.zeros_like(feats), kernel_map).argmax
    for row in range(kernel_map.num_out):
        assert argmax[row, 0] == kernel_map.in_index[kernel_map.out_index == row].min()


@pytest.mark.parametrize("mode", MODES)
def test_empty_and_single(mode: str) -> None:
    empty = build_kernel_map(torch.empty(0, 4, dtype=torch.int32), ConvSpec(3, 2)).kernel_map
    assert sparse_pool(torch.empty(0, 2), empty, mode).shape == (0, 2)
    one = build_kernel_map(torch.tensor([[0, -7, 0, 2**20]]).int(), ConvSpec(3, 2)).kernel_map
    assert sparse_pool(torch.tensor([[4.0]]), one, mode).tolist() == [[4.0]]


def test_refuses_what_does_not_fit() -> None:
    _, feats, kernel_map = scene(SPECS["2 / 2"])
    with pytest.raises(ValueError, match=r"feats must have kernel_map.num_in = \d+ rows, got 2"):
        sparse_pool(feats[:2], kernel_map, "sum")
    with pytest.raises(ValueError, match="mode must be 'max', 'avg' or 'sum', got 'median'"):
        sparse_pool(feats, kernel_map, "median")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="floating"):
        sparse_pool(feats.long(), kernel_map, "max")
    pooled, argmax = sparse_max_pool(feats, kernel_map)
    with pytest.raises(ValueError, match="argmax must have the shape of feats"):
        sparse_max_unpool(pooled[:1], argmax, len(feats))
    with pytest.raises(ValueError, match=r"index must be in \[0, 3\)"):
        sparse_max_unpool(pooled, argmax, 3)
