"""Find the fastest dataflow of every convolution of a network by timing a few on real scans, and say why.

Layers that share a kernel map form a group, for what a dataflow prepares (an order of the rows, on a GPU) is prepared
once for all of them: the choice minimises the time of all layers of the group, forward and backward, together with
what it has to prepare (Tang et al., "TorchSparse++", MICRO 2023, section 4.2). Nothing is timed unless it is asked for
here, so never in the middle of a training step or inside a collective.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from tqdm import tqdm

from pointlib.ops import tuned_choices
from pointlib.ops.dataflow import Dataflow, MapStatistics, Operation, Workload
from pointlib.ops.timing import Limits, device_limits, median_seconds
from pointlib.ops.tunable import Tunable, tunable_of

TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-4, torch.float16: 2e-2, torch.bfloat16: 5e-2}
"""Largest difference of a candidate to the prior's result, relative to its largest value."""

GAIN = 0.97
"""Share of the prior's time that another candidate must stay below: less is noise."""


@dataclasses.dataclass(frozen=True)
class Call:
    """One convolution of a network, without its values.

    Attributes:
        layer: Name of the module that made it; "" outside all of them.
        workload: What matters for its speed.
        pairs: in_index, out_index (P,) int32 and offset_ptr (K + 1,) int64; three None without a kernel map.
        num_in: Input rows.
        identity_tap: As in KernelMap.
    """

    layer: str
    workload: Workload
    pairs: tuple[Tensor | None, Tensor | None, Tensor | None]
    num_in: int
    identity_tap: int
    device: torch.device

    @property
    def group(self) -> object:
        """Equal for calls over one kernel map, read in either direction."""
        in_index, out_index, _ = self.pairs
        if in_index is None or out_index is None:
            return ("rows", self.num_in)
        return frozenset({in_index.data_ptr(), out_index.data_ptr()})


class Choice(NamedTuple):
    """What tuning decided for one workload, and why.

    Attributes:
        layers: Names of the layers that have it.
        workload: The workload.
        dataflow: The best for its group.
        prior: What would be taken untuned.
        seconds: Measured for the best, median.
        prior_seconds: Measured for the prior.
        predicted: Seconds that the cost model gave the best.
        limit: Seconds that no dataflow can beat: all arithmetic at the device's peak, all bytes at its bandwidth.
        rejected: Candidates whose results differed from the prior's.
    """

    layers: tuple[str, ...]
    workload: Workload
    dataflow: Dataflow
    prior: Dataflow
    seconds: float
    prior_seconds: float
    predicted: float
    limit: float
    rejected: tuple[Dataflow, ...]


@dataclasses.dataclass(frozen=True)
class Report:
    """All choices and where they were written.

    Attributes:
        device: What they hold for.
        limits: Peak and bandwidth that were measured.
        choices: One for each workload, largest first.
        file: What holds them now, or None.
    """

    device: str
    limits: Limits
    choices: tuple[Choice, ...]
    file: Path | None

    def table(self) -> str:
        """One line a workload: what, chosen, milliseconds predicted, measured, untuned, share of the limit."""
        head = ("layers", "operation", "channels", "taps", "rows", "pairs/row", "dataflow")
        times = ("predicted", "measured", "untuned", "of limit")
        rows: list[tuple[str, ...]] = [(*head, *times)]
        for choice in self.choices:
            operation, dtype, c_in, c_out, statistics = choice.workload
            taps, density = statistics.kernel_volume, statistics.density
            more = f" +{len(choice.layers) - 1}" if len(choice.layers) > 1 else ""
            seconds = (choice.predicted, choice.seconds, choice.prior_seconds)
            rows.append(
                (
                    *(choice.layers[0] + more, f"{operation} {str(dtype)[6:]}"),
                    *(f"{c_in}>{c_out}", str(taps), str(statistics.num_out)),
                    *(f"{density * taps:.2f}", str(choice.dataflow)),
                    *(f"{1e3 * s:.3f}" for s in seconds),
                    f"{choice.limit / choice.seconds:.0%}",
                )
            )
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = ["  ".join(c.ljust(w) for c, w in zip(r, widths, strict=True)) for r in rows]
        before, after = (
            sum(len(c.layers) * s for c, s in zip(self.choices, column, strict=True))
            for column in (
                [c.prior_seconds for c in self.choices],
                [c.seconds for c in self.choices],
            )
        )
        limits = (
            f"{self.limits.flops / 1e9:.0f} GFLOP/s, {self.limits.bytes_per_second / 1e9:.1f} GB/s"
        )
        total = (
            f"all layers: {1e3 * before:.1f} ms untuned, {1e3 * after:.1f} ms tuned (times in ms)"
        )
        return "\n".join([f"{self.device}; limits {limits}", *lines, total])


def tune(
    model: nn.Module,
    data_loader: Iterable[Any],
    num_samples: int = 3,
    prepare: Callable[[Any], Any] = lambda batch: batch,
    backward: bool = False,
    save: bool = True,
    progress: bool = True,
) -> Report:
    """Choose the dataflow of every convolution of a model, and keep the choices for later runs on this machine.

    Args:
        model: The network, on the device and in the mode (train or eval) that it will run in.
        data_loader: Batches, or anything that can be iterated over.
        num_samples: Batches to look at; each may show kernel maps of other sizes.
        prepare: Makes the model's one argument from a batch, such as `lambda batch: batch.voxels.to("cuda")`.
        backward: Tune the gradients too.
        save: Write the choices to the cache folder, where every later convolution finds them.
        progress: Show a bar.

    Returns:
        What was chosen and why; `print(report.table())`.

    Raises:
        RuntimeError: Inside a process group: processes would wait for each other in a collective. Tune before.
        ValueError: If data_loader yields nothing or the model has no sparse convolution.
        OSError: If the choices cannot be written.
    """
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        raise RuntimeError(
            "tune: the process group must not exist yet, got an initialized one. Tune in a process of its own, with "
            "tools/tune.py; training finds the choices in the cache folder."
        )
    calls: list[Call] = []
    for batch in itertools.islice(data_loader, num_samples):
        calls += record(model, prepare(batch), backward)
    if not calls:
        raise ValueError(
            f"tune: data_loader must yield batches on which {type(model).__name__} convolves, got no convolution."
        )
    engine = tunable_of(calls[0].device)
    limits = {
        dtype: device_limits(calls[0].device, dtype) for dtype in {c.workload.dtype for c in calls}
    }
    groups: dict[object, list[Call]] = {}
    for call in calls:
        groups.setdefault(call.group, []).append(call)
    chosen: dict[str, Choice] = {}
    for group in tqdm(groups.values(), desc="tune", unit="map", disable=not progress):
        for key, choice in _tune_group(engine, group, limits).items():
            chosen.setdefault(key, choice)
    file = None
    if save:
        file = tuned_choices.add({k: dataclasses.asdict(c.dataflow) for k, c in chosen.items()})
    ordered = sorted(chosen.values(), key=lambda c: -c.prior_seconds * len(c.layers))
    return Report(engine.name, next(iter(limits.values())), tuple(ordered), file)


def record(model: nn.Module, argument: Any, backward: bool) -> list[Call]:
    """The convolutions of one pass through a model, in the order in which they run."""
    recorder = _Recorder()
    with ExitStack() as stack:
        for name, module in model.named_modules():
            stack.callback(module.register_forward_pre_hook(recorder.entering(name)).remove)
            stack.callback(module.register_forward_hook(recorder.leaving).remove)
        stack.enter_context(torch.set_grad_enabled(backward))
        stack.enter_context(recorder)
        out = model(argument)
        if backward:
            getattr(out, "feats", out).float().sum().backward()
            model.zero_grad()
    return recorder.calls


class _Recorder(TorchDispatchMode):
    """Notes the arguments of every convolution that passes the dispatcher."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[Call] = []
        self._path: list[str] = []

    def entering(self, name: str) -> Callable[..., None]:
        return lambda *_: self._path.append(name)

    def leaving(self, *_: object) -> None:
        self._path.pop()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        call = self._read(func.name(), args)
        if call is not None:
            self.calls.append(call)
        return func(*args, **(kwargs or {}))

    def _read(self, name: str, args: Sequence[Any]) -> Call | None:
        operation: Operation = "forward"
        identity_tap = -1
        if name == "pointlib::sparse_conv":
            feats, weight, _, *pairs, num_out, groups, identity_tap = args
            c_in, c_out, num_in = feats.shape[1], weight.shape[2], len(feats)
        elif name in ("pointlib::fused_sparse_conv", "pointlib::fused_sparse_conv_"):
            parts, weight, *pairs, num_out = args[:6]
            feats, groups = parts[0], 1
            c_in, c_out, num_in = weight.shape[1], weight.shape[2], len(feats)
        elif name == "pointlib::sparse_conv_grad_weight":
            feats, grad, *pairs, groups, identity_tap = args
            operation, num_out = "grad_weight", len(grad)
            c_in, c_out, num_in = feats.shape[1], grad.shape[1], len(feats)
        else:
            return None
        if groups > 1 or not num_out or feats.dtype not in TOLERANCE:
            return None
        in_index, _, offset_ptr = pairs
        taps = 1 if offset_ptr is None else len(offset_ptr) - 1
        statistics = MapStatistics(num_out if in_index is None else len(in_index), taps, num_out)
        workload = Workload(operation, feats.dtype, c_in, c_out, statistics)
        layer = self._path[-1] if self._path else "(backward)"
        found = (pairs[0], pairs[1], pairs[2])
        return Call(layer, workload, found, num_in, identity_tap, feats.device)


class _Timed(NamedTuple):
    call: Call
    layers: tuple[str, ...]
    seconds: dict[Dataflow, float]
    rejected: tuple[Dataflow, ...]


def _tune_group(
    engine: Tunable, calls: Sequence[Call], limits: dict[torch.dtype, Limits]
) -> dict[str, Choice]:
    """Choices of the workloads over one kernel map, by their keys."""
    by_key: dict[str, list[Call]] = {}
    for call in calls:
        by_key.setdefault(call.workload.key(engine.name), []).append(call)
    timed = {
        key: _time(engine, same[0], tuple(dict.fromkeys(c.layer for c in same)))
        for key, same in by_key.items()
    }
    timed = {key: t for key, t in timed.items() if len(t.seconds) + len(t.rejected) > 1}
    best = _cheapest(engine, list(timed.values()))
    choices = {}
    for key, t in timed.items():
        prior, dataflow = next(iter(t.seconds)), best[id(t)]
        model = engine.predict(t.call, limits[t.call.workload.dtype])
        choices[key] = Choice(
            *(t.layers, t.call.workload, dataflow, prior, t.seconds[dataflow], t.seconds[prior]),
            *(model(dataflow), limits[t.call.workload.dtype].seconds(*needed(t.call)), t.rejected),
        )
    return choices


def _time(engine: Tunable, call: Call, layers: tuple[str, ...]) -> _Timed:
    """Time the candidates of a workload, and throw out those that compute something else."""
    run = engine.runner(call)
    candidates = engine.candidates(call)
    expected = run(candidates[0]).double() if len(candidates) > 1 else None
    seconds, rejected = {}, []
    for dataflow in candidates:
        if expected is not None:
            error = float((run(dataflow).double() - expected).abs().max())
            if not error <= TOLERANCE[call.workload.dtype] * float(expected.abs().max()):
                rejected.append(dataflow)
                continue
        seconds[dataflow] = median_seconds(lambda d=dataflow: run(d), call.device)  # type: ignore[misc]
    return _Timed(call, layers, seconds, tuple(rejected))


def _cheapest(engine: Tunable, timed: Sequence[_Timed]) -> dict[int, Dataflow]:
    """The dataflow of each workload such that all layers, and what they prepare together, take the least time."""
    splits = sorted({d.splits for t in timed for d in t.seconds})
    preparation = {s: engine.preparation(timed[0].call, s) for s in splits}

    def plan(allowed: tuple[int, ...]) -> Iterator[tuple[_Timed, Dataflow]]:
        for t in timed:
            usable = {d: s for d, s in t.seconds.items() if d.splits in allowed} or t.seconds
            prior, best = next(iter(usable)), min(usable, key=lambda d: usable[d])
            yield t, best if usable[best] < GAIN * usable[prior] else prior

    def cost(allowed: tuple[int, ...]) -> float:
        chosen = list(plan(allowed))
        prepared = {dataflow.splits for _, dataflow in chosen}
        layers = sum(len(t.layers) * t.seconds[dataflow] for t, dataflow in chosen)
        return layers + sum(preparation[s] for s in prepared)

    sets = [c for n in range(1, len(splits) + 1) for c in itertools.combinations(splits, n)]
    return {id(t): d for t, d in plan(min(sets, key=cost))} if timed else {}


def needed(call: Call) -> tuple[float, float]:
    """Operations and bytes that a call cannot do without: each row, weight and pair once."""
    w, size = call.workload, call.workload.dtype.itemsize
    taps, pairs = w.statistics.kernel_volume, w.statistics.num_pairs
    rows = call.num_in * w.c_in + w.statistics.num_out * w.c_out
    index = 0 if call.pairs[0] is None else 4 * pairs
    return float(w.flops), float(size * (rows + taps * w.c_in * w.c_out) + index)
