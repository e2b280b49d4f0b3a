"""Each convolution of a forward against what the GPU allows, and the kernels that take the most time."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from layers import describe
from torch import Tensor

from pointlib.nn import fused
from pointlib.ops import fused_conv
from pointlib.ops.timing import device_limits

Call = Callable[[], object]
Log = list[tuple[dict[str, Any], Callable[[], float]]]
ROUNDS = 5


def _start(device: torch.device) -> Callable[[], Callable[[], float]]:
    """Start a clock; stopping it returns a function that tells the milliseconds once all work is done."""
    if device.type != "cuda":
        begin = time.perf_counter()

        def stop_host() -> Callable[[], float]:
            elapsed = 1e3 * (time.perf_counter() - begin)
            return lambda: elapsed

        return stop_host
    events = [torch.cuda.Event(enable_timing=True) for _ in range(2)]
    events[0].record()

    def stop() -> Callable[[], float]:
        events[1].record()
        return lambda: events[0].elapsed_time(events[1])

    return stop


@contextmanager
def _recorded(log: Log, device: torch.device) -> Iterator[None]:
    """Time the convolutions where the modules call them."""
    real = fused_conv.fused_sparse_conv

    def timed(*args: Any, **options: Any) -> Tensor:
        stop = _start(device)
        out = real(*args, **options)
        elapsed = stop()
        residual = args[5] if len(args) > 5 else options.get("residual")
        log.append((describe(args[0], args[1], args[2], residual, out), elapsed))
        return out

    fused.fused_sparse_conv = timed
    try:
        yield
    finally:
        fused.fused_sparse_conv = real


def layer_table(forward: Call, dtype: torch.dtype, device: torch.device) -> dict[str, Any]:
    """Fastest of several times of every convolution, and the share of the limit that it reaches; prints a summary."""
    limits = device_limits(device, dtype)
    runs: list[list[tuple[dict[str, Any], float]]] = []
    forward()
    for _ in range(ROUNDS):
        log: Log = []
        with _recorded(log, device):
            forward()
        if device.type == "cuda":
            torch.cuda.synchronize()
        runs.append([(facts, elapsed()) for facts, elapsed in log])
    layers = []
    for position, (facts, _) in enumerate(runs[0]):
        ms = min(run[position][1] for run in runs)
        limit_ms = 1e3 * limits.seconds(1e9 * facts["gflop"], 1e6 * facts["mb"])
        share = round(limit_ms / ms, 3)
        layers.append({**facts, "ms": round(ms, 4), "limit_ms": round(limit_ms, 4), "share": share})
    total, limit = (sum(layer[key] for layer in layers) for key in ("ms", "limit_ms"))
    worst = max(layers, key=lambda layer: layer["ms"] - layer["limit_ms"], default=None)
    print(
        f"{len(layers)} convolutions in {total:.3f} ms, {100 * limit / max(total, 1e-9):.0f} % of what "
        f"{limits.flops / 1e12:.1f} TFLOP/s and {limits.bytes_per_second / 1e9:.0f} GB/s allow; farthest: {worst}"
    )
    peaks = {"tflops": limits.flops / 1e12, "gb_per_s": limits.bytes_per_second / 1e9}
    return {"ms": total, "limit_ms": limit, "peaks": peaks, "layers": layers}


def kernel_table(forward: Call, device: torch.device, most: int = 12) -> dict[str, Any] | None:
    """Number of launches of one forward, and the kernels that take the most time."""
    if device.type != "cuda":
        return None
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profiler:
        forward()
        torch.cuda.synchronize()
    totals: dict[str, list[float]] = {}
    for event in profiler.events():
        if event.device_type == torch.autograd.DeviceType.CUDA:
            totals.setdefault(event.name, []).append(event.device_time)
    slowest = sorted(totals, key=lambda name: -sum(totals[name]))[:most]
    kernels = [
        {"kernel": n, "calls": len(totals[n]), "ms": round(sum(totals[n]) / 1e3, 4)}
        for n in slowest
    ]
    return {"launches": sum(map(len, totals.values())), "slowest": kernels}
