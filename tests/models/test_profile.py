"""Multiply-accumulates by hand on small layers, dense, sparse and attention, and by module."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pointlib.models import count_macs
from pointlib.models.profile import macs_by_module
from pointlib.models.second import SECOND, SECONDFPN
from pointlib.nn import Conv3d, Linear
from pointlib.tensor import SparseTensor


class Attention(nn.Module):
    """Scaled dot products of 2 x 4 heads, 5 queries, 7 keys, 3 channels, with a mask as windows have."""

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        mask = torch.zeros(5, 7)
        return nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=mask)


class ByHand(nn.Module):
    """The same, written out."""

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return (q @ k.transpose(-2, -1)).softmax(-1) @ v


def heads(length: int) -> Tensor:
    return torch.randn(2, 4, length, 3)


@pytest.mark.parametrize(
    ("layer", "inputs", "macs"),
    [
        (nn.Conv2d(3, 8, 3, padding=1, bias=False), (torch.zeros(2, 3, 10, 6),), 2 * 60 * 9 * 24),
        (nn.Conv2d(4, 8, 3, stride=2, groups=2), (torch.zeros(1, 4, 9, 9),), 16 * 9 * 2 * 8),
        (nn.ConvTranspose2d(3, 8, 2, 2), (torch.zeros(2, 3, 10, 6),), 2 * 60 * 4 * 24),
        (nn.Conv1d(3, 8, 1), (torch.zeros(2, 3, 10),), 2 * 10 * 24),
        (nn.Linear(3, 5), (torch.zeros(2, 7, 3),), 14 * 15),
        (Linear(3, 5), (torch.zeros(7, 3),), 7 * 15),
        (Attention(), (heads(5), heads(7), heads(7)), 2 * 8 * 5 * 7 * 3),
        (ByHand(), (heads(5), heads(7), heads(7)), 2 * 8 * 5 * 7 * 3),
        # three projections of queries, keys and values, two products, one projection back
        (
            nn.MultiheadAttention(12, 4, batch_first=True),
            (torch.zeros(2, 5, 12), torch.zeros(2, 7, 12), torch.zeros(2, 7, 12)),
            2 * ((5 + 7 + 7) * 144 + 2 * 5 * 7 * 12 + 5 * 144),
        ),
        (nn.BatchNorm2d(3), (torch.zeros(2, 3, 4, 4),), 0),
    ],
)
def test_layers(layer: nn.Module, inputs: tuple[Any, ...], macs: int) -> None:
    assert count_macs(layer, *inputs) == macs


@pytest.mark.parametrize(("groups", "pairs"), [(1, 4), (2, 4)])
def test_sparse_convolution_counts_its_pairs(groups: int, pairs: int) -> None:
    """Two neighbours see themselves and each other; a third voxel would be alone."""
    coords = torch.tensor([[0, 0, 0, 0], [0, 0, 0, 1], [1, 9, 9, 9]]).int()
    layer = Conv3d(4, 6, 3, groups=groups)
    assert count_macs(layer, SparseTensor(torch.zeros(3, 4), coords)) == (pairs + 1) * 24 // groups
    assert count_macs(Conv3d(4, 6, 1), SparseTensor(torch.zeros(3, 4), coords)) == 3 * 24


def test_modules_add_up() -> None:
    network = nn.Sequential(SECOND(4, (4, 6), (1, 1), (1, 2)), SECONDFPN((4, 6), (5, 5), (1, 2)))
    x = torch.zeros(1, 4, 8, 8)
    macs = macs_by_module(network, x)
    first = 64 * 9 * (16 + 16)
    second = 16 * 9 * (24 + 36)
    neck = 64 * 20, 16 * 4 * 30
    assert macs["0.blocks.0"] == first
    assert macs["0.blocks.1"] == second
    assert (macs["1.deblocks.0"], macs["1.deblocks.1"]) == neck
    assert macs[""] == macs["0"] + macs["1"] == first + second + sum(neck) == count_macs(network, x)


def test_the_network_is_left_as_it_was() -> None:
    network = nn.Sequential(nn.Conv2d(1, 1, 1), nn.BatchNorm2d(1)).train()
    before = {key: value.clone() for key, value in network.state_dict().items()}
    fast_path = torch.backends.mha.get_fastpath_enabled()
    count_macs(network, torch.randn(2, 1, 3, 3))
    assert network.training
    assert torch.backends.mha.get_fastpath_enabled() == fast_path
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())
    with pytest.raises(RuntimeError):
        count_macs(network, torch.randn(2, 5, 3, 3))
    assert network.training
    assert not nn.modules.module._global_forward_hooks
