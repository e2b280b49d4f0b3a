"""Tuning on CUDA: every candidate computes the same, and a choice that was kept is what later runs launch."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from pointlib import SparseTensor, nn
from pointlib.ops import tunable, tune, tuned_choices
from pointlib.ops._cuda import sparse_conv
from pointlib.ops.dataflow import Dataflow
from pointlib.ops.timing import Limits
from tests import oracles
from tests.cuda_emulator.emulator import Emulator
from tests.tolerances import assert_close


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A cache folder of its own."""
    monkeypatch.setenv("POINTLIB_CACHE", str(tmp_path))
    tuned_choices.load.cache_clear()
    yield
    tuned_choices.load.cache_clear()


def recorded(c_in: int = 16, kernel_size: int = 3) -> tune.Call:
    coords = oracles.random_coords(np.random.default_rng(0), 90, 6)
    x = SparseTensor(torch.randn(len(coords), c_in), coords)
    (call,) = tune.record(nn.Conv3d(c_in, 24, kernel_size).eval(), x, backward=False)
    return call


def as_half(call: tune.Call) -> tune.Call:
    return dataclasses.replace(call, workload=call.workload._replace(dtype=torch.float16))


def test_candidates_agree(emulator: Emulator) -> None:
    device, call = tunable._Cuda(torch.device("cpu")), as_half(recorded())
    candidates = device.candidates(call)
    assert 2 <= len(candidates) <= 6 and len(set(candidates)) == len(candidates)
    assert {d.kind for d in candidates} == {
        "output_stationary",
        "hybrid",
        "fetch_on_demand",
        "gather_scatter",
    }
    run = device.runner(call)
    first = run(candidates[0])
    for dataflow in candidates[1:]:
        assert_close(run(dataflow), first.double(), torch.float16)


def test_weight_gradients_in_chunks_of_any_size_agree(emulator: Emulator) -> None:
    device, call = tunable._Cuda(torch.device("cpu")), recorded()
    call = dataclasses.replace(call, workload=call.workload._replace(operation="grad_weight"))
    candidates = device.candidates(call)
    assert len(candidates) >= 2 and {d.kind for d in candidates} == {"split_pairs"}
    run, seconds = device.runner(call), device.predict(call, Limits(1e15, 1e9))
    first = run(candidates[0])
    assert first.shape == (27, 16, 24) and bool(first.any())
    for dataflow in candidates[1:]:
        assert_close(run(dataflow), first.double())
    smallest, largest = (f(candidates, key=lambda d: d.tile_rows) for f in (min, max))
    assert seconds(largest) < seconds(smallest)


def test_there_is_no_choice_for_a_first_layer(emulator: Emulator) -> None:
    device, call = tunable._Cuda(torch.device("cpu")), recorded(c_in=4)
    assert len(device.candidates(call)) == 1


def test_what_was_kept_is_launched(emulator: Emulator, monkeypatch: pytest.MonkeyPatch) -> None:
    device, call = tunable._Cuda(torch.device("cpu")), recorded()
    feats, weight = tunable.random_operands(call)
    num_out = call.workload.statistics.num_out
    arguments = (feats, weight, None, *call.pairs, num_out, 1, call.identity_tap)
    untuned = sparse_conv.sparse_conv(*arguments)
    kept = Dataflow(0, kind="fetch_on_demand")
    tuned_choices.add({call.workload.key(device.name): dataclasses.asdict(kept)})
    taken = []
    fetch = sparse_conv.fetch_on_demand
    monkeypatch.setattr(
        sparse_conv, "fetch_on_demand", lambda *args: taken.append(args) or fetch(*args)
    )
    assert_close(sparse_conv.sparse_conv(*arguments), untuned.double())
    assert len(taken) == 1


@pytest.mark.parametrize(
    "stale",
    [Dataflow(48, 64, 1, slice_bytes=64), Dataflow(128, 64, 7, slice_bytes=64), Dataflow(512)],
    ids=["tile", "splits", "of a CPU"],
)
def test_what_has_no_kernel_any_more_is_left_to_the_prior(
    emulator: Emulator, stale: Dataflow
) -> None:
    device, call = tunable._Cuda(torch.device("cpu")), recorded()
    feats, weight = tunable.random_operands(call)
    num_out = call.workload.statistics.num_out
    arguments = (feats, weight, None, *call.pairs, num_out, 1, call.identity_tap)
    untuned = sparse_conv.sparse_conv(*arguments)
    tuned_choices.add({call.workload.key(device.name): dataclasses.asdict(stale)})
    assert torch.equal(sparse_conv.sparse_conv(*arguments), untuned)


def test_sorting_rows_is_timed_and_wasted_products_are_predicted(emulator: Emulator) -> None:
    device, call = tunable._Cuda(torch.device("cpu")), recorded()
    assert device.preparation(call, 2) > 0
    assert device.preparation(recorded(kernel_size=1), 1) == 0
    seconds = device.predict(call, Limits(1e9, 1e15))
    in_place, sorted_once, in_two = (seconds(Dataflow(128, 64, n)) for n in (0, 1, 2))
    assert call.workload.flops / 1e9 <= in_two <= sorted_once <= in_place
    assert seconds(Dataflow(0, kind="fetch_on_demand")) == call.workload.flops / 1e9
