"""The CPU as tuning sees it: its candidates run, and its cost model prefers what the prior prefers."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from pointlib import SparseTensor, nn
from pointlib.ops import tunable
from pointlib.ops._cpu import engine
from pointlib.ops.timing import Limits
from pointlib.ops.tune import Call, record
from tests import oracles


def call(dtype: torch.dtype = torch.float32) -> Call:
    coords = oracles.random_coords(np.random.default_rng(0), 2000, 20)
    x = SparseTensor(torch.randn(len(coords), 8, dtype=dtype), coords)
    (only,) = record(nn.Conv3d(8, 24).to(dtype).eval(), x, backward=False)
    return only


@pytest.mark.skipif(engine.LIBRARY is None, reason="needs the compiled engine")
def test_candidates_are_few_and_give_the_same_bits() -> None:
    cpu, recorded = tunable.tunable_of(torch.device("cpu")), call()
    candidates = cpu.candidates(recorded)
    assert 2 <= len(candidates) <= 6
    run = cpu.runner(recorded)
    first = run(candidates[0])
    assert first.shape == (recorded.workload.statistics.num_out, 24)
    assert all(torch.equal(run(dataflow), first) for dataflow in candidates)
    assert cpu.preparation(recorded, 0) == 0.0


def test_there_is_no_choice_where_the_engine_has_one_way() -> None:
    cpu = tunable.tunable_of(torch.device("cpu"))
    assert len(cpu.candidates(call(torch.float64))) == 1


def test_larger_tiles_read_fewer_weights() -> None:
    cpu, recorded = tunable.tunable_of(torch.device("cpu")), call()
    model = cpu.predict(recorded, Limits(1e9, 1e12))
    small, large = (tunable.Dataflow(rows) for rows in (64, 4096))
    assert recorded.workload.flops / 1e9 < model(large) < model(small)
