"""Where the time goes: the self time of every operator, and of every call into the compiled engine, by category."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from cases import minkunet
from measurement import Call
from peers import Peer
from scenes import Drive
from torch.profiler import ProfilerActivity, profile, record_function
from training import TrainingStep, make_batch

from pointlib.ops._cpu import engine

ENGINE = "csrc::"
"""Before the names of the engine's functions. What the profiler adds is a few microseconds a call."""
PROFILED_CALLS = 3

# First match wins; names in lower case, as torch.profiler reports them.
CATEGORIES = (
    ("engine: weight packing", ("csrc::pl_conv_pack", "csrc::pl_i8_pack")),
    ("engine: weight gradient", ("csrc::pl_conv_grad_weight",)),
    ("engine: convolution", ("csrc::pl_conv", "csrc::pl_i8")),
    ("engine: batch norm", ("csrc::pl_batch_norm",)),
    ("engine: gather, scatter, reduce rows", ("_rows", "_elements", "csrc::pl_devoxelize")),
    ("engine: kernel maps, and what else there is", (ENGINE,)),
    ("kernel maps", ("spconv::map", "kernel_map", "conv_sites", "unique", "searchsorted", "sort")),
    ("gather", ("spconv::gather", "index_select", "aten::index", "aten::gather")),
    ("scatter", ("spconv::scatter_add", "index_add", "scatter")),
    ("around the engine", ("pointlib::", "generatedbackwardfor_pointlib")),
    (
        "matrix product",
        ("aten::mm", "aten::addmm", "aten::bmm", "aten::matmul", "mkldnn", "onednn"),
    ),
    ("batch norm", ("batch_norm",)),
    (
        "activation, addition, concatenation",
        ("relu", "clamp", "threshold", "aten::add", "aten::cat"),
    ),
    ("optimizer", ("optimizer", "_foreach")),
    (
        "allocation, fill, copy, cast",
        ("empty", "zero", "fill", "copy", "clone", "contiguous", "resize", "aten::to"),
    ),
)


@contextmanager
def _named_engine_calls() -> Iterator[None]:
    """Give each call into the engine a name in the profile."""
    real = engine.call

    def call(name: str, *arguments: engine.Argument) -> int:
        with record_function(ENGINE + name):
            return real(name, *arguments)

    engine.call = call
    try:
        yield
    finally:
        engine.call = real


def profile_by_category(call: Call) -> dict[str, float]:
    """Milliseconds of a call by category, mean of a few, largest first; outside operators is Python and ctypes."""
    call()
    with _named_engine_calls():
        call()
        with profile(activities=[ProfilerActivity.CPU]) as profiler:
            start = time.perf_counter()
            for _ in range(PROFILED_CALLS):
                call()
            wall = 1e3 * (time.perf_counter() - start) / PROFILED_CALLS
    parts: dict[str, float] = {}
    for event in profiler.key_averages():
        name = event.key.lower()
        category = next(
            (c for c, keys in CATEGORIES if any(k in name for k in keys)), "other operators"
        )
        parts[category] = (
            parts.get(category, 0.0) + event.self_cpu_time_total / 1e3 / PROFILED_CALLS
        )
    parts["outside operators"] = max(wall - sum(parts.values()), 0.0)
    parts = dict(sorted(parts.items(), key=lambda item: -item[1]))
    return {"total": round(wall, 1), **{name: round(ms, 1) for name, ms in parts.items()}}


def profile_table(peers: list[Peer], drive: Drive, width: float) -> dict[str, dict[str, float]]:
    """Where a MinkUNet forward with new maps and a training step of SPVCNN spend their time; prints it."""
    scene = drive.scan
    model = minkunet(width, scene)
    calls: dict[str, Callable[[], object]] = {}
    for peer in peers:
        network = peer.minkunet(model, scene)
        title = f"{peer.name}: MinkUNet {width:g}x forward, new maps"
        calls[title] = lambda net=network: net(scene.coords, scene.feats, False)
    batch = make_batch(drive)
    for name in ("pointlib", "pointlib-bf16"):
        if name in {peer.name for peer in peers}:
            calls[f"{name}: SPVCNN training step, batch 2"] = TrainingStep(
                batch, name == "pointlib-bf16"
            )
    table = {}
    for title, call in calls.items():
        table[title] = profile_by_category(call)
        total = table[title]["total"]
        print(f"\n{title}, profiled on {torch.get_num_threads()} threads: {total:.0f} ms")
        for category, ms in table[title].items():
            if category != "total":
                print(f"  {category:44}{ms:9.1f} ms {100 * ms / total:5.1f} %")
    return table
