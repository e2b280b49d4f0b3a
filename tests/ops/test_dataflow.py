"""The choice of a dataflow: its bounds, and that it never changes a result."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from pointlib.ops import _cpu
from pointlib.ops.dataflow import TILE_ROWS, Dataflow, MapStatistics, cpu_dataflow
from pointlib.ops.kernel_map import ConvSpec, build_kernel_map
from pointlib.ops.sparse_conv import sparse_conv
from tests import oracles


@pytest.mark.parametrize("threads", [1, 2, 64])
@pytest.mark.parametrize("num_out", [0, 1, 1000, 10**6, 10**9])
@pytest.mark.parametrize("kernel_volume", [1, 27, 343])
def test_tiles_are_powers_of_two_within_bounds(
    num_out: int, kernel_volume: int, threads: int
) -> None:
    for share in (0.0, 0.01, 0.3, 1.0):
        pairs = int(share * num_out * kernel_volume)
        rows = cpu_dataflow(MapStatistics(pairs, kernel_volume, num_out), threads).tile_rows
        assert TILE_ROWS[0] <= rows <= TILE_ROWS[1]
        assert rows & (rows - 1) == 0


def test_rare_taps_get_larger_tiles() -> None:
    dense, sparse = (MapStatistics(int(27e5 * share), 27, 100_000) for share in (0.3, 0.05))
    assert cpu_dataflow(dense, 2).tile_rows < cpu_dataflow(sparse, 2).tile_rows


def test_every_tile_size_gives_the_same_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    coords = oracles.random_coords(np.random.default_rng(0), 700, 14)
    pairs = build_kernel_map(coords, ConvSpec(3)).kernel_map
    feats, weight = torch.randn(len(coords), 20), torch.randn(27, 20, 40)
    for dtype in (torch.float32, torch.bfloat16):
        answers = []
        for rows in (64, 100, 512, 4096):
            monkeypatch.setattr(_cpu.sparse_conv, "cpu_dataflow", lambda *_, r=rows: Dataflow(r))
            answers.append(sparse_conv(feats.to(dtype), weight.to(dtype), pairs))
        assert all(torch.equal(answers[0], answer) for answer in answers)
