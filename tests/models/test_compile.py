"""torch.compile of whole models: one graph for scans of any size, with the results of eager mode."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor
from torch._dynamo import lookup_backend

from pointlib import create_model
from pointlib.tensor import SparseTensor
from tests import oracles
from tests.tolerances import assert_close


@pytest.mark.slow
@pytest.mark.parametrize("name", ["minkunet", "spvcnn"])
def test_one_whole_graph_serves_scans_of_every_size(name: str) -> None:
    torch._dynamo.reset()
    graphs, seen = [], []

    def counting(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> Callable[..., object]:
        graphs.append(graph)
        return lookup_backend("aot_eager")(graph, inputs)

    model = create_model(name, cr=0.25, num_classes=5).eval()
    compiled = torch.compile(model, fullgraph=True, dynamic=True, backend=counting)
    for count, batch in ((2000, 2), (3500, 1), (700, 3)):
        coords = oracles.random_coords(np.random.default_rng(count), count, 40, batch)
        x = SparseTensor(torch.randn(len(coords), 4), coords)
        expected = model(x)  # builds the maps
        assert_close(compiled(x), expected)
        seen.append(len(graphs))
    assert seen == [seen[0]] * len(seen)
