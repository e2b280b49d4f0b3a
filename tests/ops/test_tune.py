"""Tuning finds every convolution, throws out what computes something else, and is used by later runs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from pointlib import SparseTensor, create_model, nn
from pointlib.ops import _cpu, tunable, tune, tuned_choices
from pointlib.ops._cpu import engine
from pointlib.ops.dataflow import Dataflow
from pointlib.ops.timing import Limits
from tests import oracles

NEEDS_ENGINE = pytest.mark.skipif(engine.LIBRARY is None, reason="needs the compiled engine")


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A cache folder of its own."""
    monkeypatch.setenv("POINTLIB_CACHE", str(tmp_path))
    tuned_choices.load.cache_clear()
    yield tmp_path
    tuned_choices.load.cache_clear()


def scan(count: int = 600) -> SparseTensor:
    coords = oracles.random_coords(np.random.default_rng(0), count, 14)
    return SparseTensor(torch.randn(len(coords), 4), coords)


def network() -> torch.nn.Module:
    torch.manual_seed(0)
    return torch.nn.Sequential(
        nn.Conv3d(4, 16), nn.BatchNorm(16), nn.ReLU(), nn.Conv3d(16, 16), nn.Conv3d(16, 8, 2, 2)
    ).eval()


def test_every_convolution_is_recorded_with_its_layer_and_map() -> None:
    calls = tune.record(network(), scan(), backward=False)
    assert [c.layer for c in calls] == ["0", "3", "4"]
    assert [(c.workload.c_in, c.workload.c_out) for c in calls] == [(4, 16), (16, 16), (16, 8)]
    assert calls[0].group == calls[1].group != calls[2].group
    assert [c.workload.statistics.kernel_volume for c in calls] == [27, 27, 8]


def test_gradients_are_recorded_in_the_group_of_their_map() -> None:
    model = network().train()
    calls = tune.record(model, scan(), backward=True)
    kinds = [c.workload.operation for c in calls]
    assert kinds.count("grad_weight") == 3
    assert kinds.count("forward") == 3 + 2  # the first layer's input needs no gradient
    assert len({c.group for c in calls}) == 2
    assert all(p.grad is None for p in model.parameters())


def test_hooks_are_gone_afterwards() -> None:
    model = network()
    tune.record(model, scan(), backward=False)
    assert not any(m._forward_pre_hooks or m._forward_hooks for m in model.modules())


@NEEDS_ENGINE
def test_later_convolutions_take_what_was_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tune, "median_seconds", favour(64))
    model, x = network(), scan(3000)
    with torch.inference_mode():
        before = model(x).feats
        report = tune.tune(model, [x], progress=False)
        taken = watch(monkeypatch)
        assert torch.equal(model(x).feats, before)
    assert {choice.dataflow for choice in report.choices} == {Dataflow(64)}
    assert taken == [64, 64, 64]
    assert report.file is not None and report.file.parent.name == tuned_choices.path().parent.name


@NEEDS_ENGINE
def test_small_gains_do_not_displace_the_prior(monkeypatch: pytest.MonkeyPatch) -> None:
    times = iter([1.0] + [0.99] * 100)
    monkeypatch.setattr(tune, "median_seconds", lambda *_: next(times))
    report = tune.tune(nn.Conv3d(4, 8).eval(), [scan(3000)], save=False, progress=False)
    assert [choice.dataflow for choice in report.choices] == [report.choices[0].prior]


class Device:
    """A device with four ways, of which one is wrong, and sorting that costs time."""

    name = "imaginary"
    ways = (Dataflow(1), Dataflow(2, splits=1), Dataflow(3, splits=2), Dataflow(4, splits=1))

    def __init__(self, preparation: float) -> None:
        self._preparation = preparation

    def candidates(self, call: tune.Call) -> list[Dataflow]:
        return list(self.ways)

    def runner(self, call: tune.Call) -> Callable[[Dataflow], Tensor]:
        return lambda way: torch.ones(3) * (7 if way.tile_rows == 4 else 1)

    def preparation(self, call: tune.Call, splits: int) -> float:
        return self._preparation * splits

    def predict(self, call: tune.Call, limits: Limits) -> Callable[[Dataflow], float]:
        return lambda way: 1.0


@pytest.mark.parametrize(("preparation", "best"), [(0.1, 3), (1.0, 2), (9.0, 1)])
def test_the_order_of_rows_is_paid_once_for_all_layers_of_a_map(
    monkeypatch: pytest.MonkeyPatch, preparation: float, best: int
) -> None:
    monkeypatch.setattr(tune, "tunable_of", lambda _: Device(preparation))
    seconds = {1: 5.0, 2: 3.0, 3: 2.5}
    monkeypatch.setattr(
        tune, "median_seconds", lambda run, _: seconds[run.__defaults__[0].tile_rows]
    )
    layers = torch.nn.Sequential(nn.Conv3d(4, 4), nn.Conv3d(4, 4)).eval()
    report = tune.tune(layers, [scan()], save=False, progress=False)
    (choice,) = report.choices
    assert choice.layers == ("0", "1")
    assert choice.dataflow.tile_rows == best
    assert choice.rejected == (Dataflow(4, splits=1),)
    assert "+1" in report.table() and "imaginary" in report.table()


def test_what_cannot_be_tuned_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="no convolution"):
        tune.tune(torch.nn.Identity(), [scan()], progress=False)
    with pytest.raises(ValueError, match="no convolution"):
        tune.tune(network(), [], progress=False)
    with pytest.raises(ValueError, match="CPU or a CUDA device, got meta"):
        tunable.tunable_of(torch.device("meta"))
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    with pytest.raises(RuntimeError, match=r"process of its own, with tools/tune\.py"):
        tune.tune(network(), [scan()], progress=False)


@NEEDS_ENGINE
def test_the_table_names_every_layer_of_a_network() -> None:
    model = create_model("minkunet", cr=0.25, num_classes=3, in_channels=4).eval()
    report = tune.tune(model, [scan(2000)], save=False, progress=False)
    convolutions = len(tune.record(model, scan(2000), backward=False))
    assert sum(len(choice.layers) for choice in report.choices) == convolutions
    lines = report.table().splitlines()
    assert len(lines) == len(report.choices) + 3
    assert all(float(choice.seconds) > 0 for choice in report.choices)


def favour(rows: int) -> Callable[..., float]:
    """Timing according to which one tile is ten times faster than the others."""

    def median(run: Callable[[], object], device: torch.device) -> float:
        (dataflow,) = run.__defaults__  # type: ignore[attr-defined]
        return 0.1 if dataflow.tile_rows == rows else 1.0 + abs(dataflow.tile_rows - rows)

    return median


def watch(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Rows of the tiles of all convolutions from now on."""
    taken = []
    arguments = _cpu.sparse_conv.ConvArguments

    def spy(**fields: int) -> object:
        taken.append(fields["tile_rows"])
        return arguments(**fields)

    monkeypatch.setattr(_cpu.sparse_conv, "ConvArguments", spy)
    return taken
