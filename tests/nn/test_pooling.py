"""Pooling modules: which voxels come out, and global pooling with empty batch entries."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from pointlib.nn.pooling import (
    AvgPool3d,
    GlobalAvgPool,
    GlobalMaxPool,
    GlobalSumPool,
    MaxPool3d,
    MaxUnpool3d,
    SumPool3d,
    Unpool3d,
)
from pointlib.ops.pooling import sparse_pool
from pointlib.tensor import SparseTensor
from tests import oracles


def voxels() -> SparseTensor:
    coords = oracles.random_coords(np.random.default_rng(0), 80, 6, batch=2)
    feats = torch.randn(len(coords), 3, requires_grad=True)
    return SparseTensor(feats, coords, spatial_shape=6, batch_size=3)


@pytest.mark.parametrize(
    ("module", "mode"), [(MaxPool3d, "max"), (AvgPool3d, "avg"), (SumPool3d, "sum")]
)
def test_pools_over_the_map_of_a_convolution(module: type[nn.Module], mode: str) -> None:
    x = voxels()
    pool = module(3, stride=2)
    sites, kernel_map = x.maps.conv(x.sites, pool.spec)
    out = pool(x)
    assert out.sites is sites and out.stride == (2, 2, 2) and out.batch_size == 3
    assert torch.equal(out.feats, sparse_pool(x.feats, kernel_map, mode))
    out.feats.sum().backward()
    assert x.feats.grad is not None


def test_stride_is_the_kernel_size_by_default() -> None:
    assert MaxPool3d((1, 2, 3)).spec.stride == (1, 2, 3)
    assert MaxPool3d(3, 1)(voxels()).sites.stride == (1, 1, 1)


def test_unpooling_restores_the_voxels() -> None:
    x = voxels()
    pooled = AvgPool3d(2)(x)
    spread = Unpool3d(2)(pooled)
    assert spread.sites is x.sites
    assert torch.equal(AvgPool3d(2)(spread).sites.coords, pooled.coords)
    torch.testing.assert_close(AvgPool3d(2)(spread).feats, pooled.feats)
    with pytest.raises(ValueError, match="must come from a convolution of"):
        Unpool3d(2)(voxels())


def test_max_unpooling_is_undone_by_max_pooling() -> None:
    x = voxels().with_feats(torch.rand(len(voxels()), 3) + 1)
    pooled, argmax = MaxPool3d(2).with_argmax(x)
    restored = MaxUnpool3d(2)(pooled, argmax)
    assert restored.sites is x.sites
    assert torch.equal(MaxPool3d(2)(restored).feats, pooled.feats)


def test_global_pooling_with_empty_entries() -> None:
    coords = torch.tensor([[3, 0, 0, 0], [1, 5, 5, 5], [3, 1, 0, 0]], dtype=torch.int32)
    x = SparseTensor(torch.tensor([[-1.0], [-2.0], [-4.0]]), coords, batch_size=5)
    assert GlobalMaxPool()(x).flatten().tolist() == [0, -2, 0, -1, 0]
    assert GlobalAvgPool()(x).flatten().tolist() == [0, -2, 0, -2.5, 0]
    assert GlobalSumPool()(x).flatten().tolist() == [0, -2, 0, -5, 0]
    nothing = SparseTensor(torch.empty(0, 2), torch.empty(0, 4).int(), batch_size=1)
    assert GlobalAvgPool()(nothing).tolist() == [[0, 0]]


@pytest.mark.parametrize("pool", [GlobalMaxPool(), GlobalAvgPool(), GlobalSumPool()])
def test_global_pooling_reads_no_value_on_the_host(pool: nn.Module) -> None:
    x = voxels()
    torch._dynamo.reset()
    compiled = torch.compile(lambda f: pool(x.with_feats(f)), fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(x.feats), pool(x))
