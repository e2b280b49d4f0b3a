"""torch.compile of sparse networks: whole graphs, the results of eager mode, one compilation for scans of any size."""

from __future__ import annotations

import copy
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch._dynamo import lookup_backend

from pointlib.nn import BatchNorm, Conv3d, ReLU, cat
from pointlib.tensor import SparseTensor
from tests import oracles
from tests.tolerances import assert_close


def block(conv: Conv3d) -> nn.Sequential:
    return nn.Sequential(conv, BatchNorm(conv.out_channels), ReLU())


class SmallUNet(nn.Module):
    """One level down and up again, with every kind of layer that MinkUNet has."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = block(Conv3d(4, 8, 3))
        self.down = block(Conv3d(8, 16, 2, 2))
        self.middle = block(Conv3d(16, 16, 3, groups=2))
        self.up = block(Conv3d(16, 8, 2, 2, transposed=True))
        self.head = Conv3d(16, 5, 1, bias=True)

    def forward(self, x: SparseTensor) -> Tensor:
        x = self.stem(x)
        y = self.up(self.middle(self.down(x)))
        return self.head(cat([x, y])).feats


def scan(count: int, seed: int, batch: int = 2) -> SparseTensor:
    coords = oracles.random_coords(np.random.default_rng(seed), count, extent=12, batch=batch)
    generator = torch.Generator().manual_seed(seed)
    return SparseTensor(torch.randn(len(coords), 4, generator=generator), coords)


def compare(backend: str) -> list[int]:
    """Train on scans of several sizes in eager mode and compiled; how many graphs were compiled after each."""
    torch._dynamo.reset()
    eager = SmallUNet()
    twin = copy.deepcopy(eager)
    graphs, seen = [], []

    def counting(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> Callable[..., object]:
        graphs.append(graph)
        return lookup_backend(backend)(graph, inputs)

    compiled = torch.compile(twin, fullgraph=True, dynamic=True, backend=counting)
    for count, seed, batch in ((300, 0, 2), (500, 1, 1), (120, 2, 3)):
        x = scan(count, seed, batch)
        expected = eager(x)  # builds the maps
        out = compiled(x)
        assert_close(out, expected)
        upstream = torch.randn_like(expected)
        expected.backward(upstream)
        out.backward(upstream)
        for mine, reference in zip(twin.parameters(), eager.parameters(), strict=True):
            assert_close(mine.grad, reference.grad)
        for mine, reference in zip(twin.buffers(), eager.buffers(), strict=True):
            assert_close(mine.float(), reference.float())
        seen.append(len(graphs))
    return seen


def test_one_whole_graph_serves_scans_of_every_size() -> None:
    first, *later = compare("aot_eager")
    assert first > 0
    assert later == [first] * len(later)


@pytest.mark.slow
def test_inductor() -> None:
    first, *later = compare("inductor")
    assert later == [first] * len(later)


def test_maps_are_built_outside_the_graph_and_not_a_second_time() -> None:
    torch._dynamo.reset()
    net, x = SmallUNet().eval(), scan(200, 4)
    expected = net(x)
    maps = x.maps.conv(x.sites, net.stem[0].spec)
    out = torch.compile(net, fullgraph=True, dynamic=True, backend="aot_eager")(x)
    assert_close(out, expected)
    again = x.maps.conv(x.sites, net.stem[0].spec)
    assert again[0] is maps[0] and again[1] is maps[1]


def test_a_convolution_without_its_map_breaks_the_graph_and_is_right() -> None:
    """Output voxels are as many as the data say, so building maps stays outside the graph."""
    torch._dynamo.reset()
    net = Conv3d(4, 8, 2, 2).eval()
    out = torch.compile(net, dynamic=True, backend="aot_eager")(scan(150, 5))
    assert_close(out.feats, net(scan(150, 5)).feats)
