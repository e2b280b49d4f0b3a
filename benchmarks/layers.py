"""Times every convolution inside a whole MinkUNet forward, and sets each against what the processor allows."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from cases import minkunet
from peers import Peer
from scenes import Scene
from torch import Tensor

from pointlib.nn import fused
from pointlib.ops import fused_conv, quantized

PEAK_OF = {"pointlib": "fp32", "pointlib-bf16": "bf16", "pointlib-int8": "int8"}
"""Engine -> which of the measured peaks bounds its arithmetic."""

Log = list[tuple[dict[str, Any], float]]


def describe(
    inputs: Any, kernel: Tensor, kernel_map: Any, residual: Any, out: Tensor
) -> dict[str, Any]:
    """What a convolution must do: 10^9 operations, and MB of inputs, outputs, weight and map, each once."""
    parts = [inputs] if isinstance(inputs, Tensor) else list(inputs)
    c_in, c_out = sum(part.shape[1] for part in parts), out.shape[1]
    pairs, taps = (
        (len(out), 1) if kernel_map is None else (kernel_map.num_pairs, kernel_map.kernel_volume)
    )
    itemsize = parts[0].element_size()
    moved = sum(part.nbytes for part in parts) + out.nbytes + taps * c_in * c_out * itemsize
    if residual is not None:
        moved += residual.nbytes
    if kernel_map is not None and taps > 1:
        moved += kernel_map.in_index.nbytes + kernel_map.out_index.nbytes
    return {
        "layer": f"{taps} taps, {c_in}->{c_out}, {len(out)} rows",
        "gflop": 2e-9 * pairs * c_in * c_out,
        "mb": 1e-6 * moved,
        "rows": len(out),
        "taps": taps,
    }


@contextmanager
def _recorded(log: Log) -> Iterator[None]:
    """Time the convolutions where MinkUNet calls them; a call's packing and casts count as its own."""
    real_float, real_int8 = fused_conv.fused_sparse_conv, quantized.sparse_conv_int8

    def timed(real: Callable[..., Tensor], residual_at: int) -> Callable[..., Tensor]:
        def call(*args: Any, **options: Any) -> Tensor:
            start = time.perf_counter()
            out = real(*args, **options)
            elapsed = 1e3 * (time.perf_counter() - start)
            log.append((describe(args[0], args[1], args[2], args[residual_at], out), elapsed))
            return out

        return call

    fused.fused_sparse_conv = fused_conv.fused_sparse_conv = timed(real_float, 5)
    quantized.sparse_conv_int8 = timed(real_int8, 5)
    try:
        yield
    finally:
        fused.fused_sparse_conv = fused_conv.fused_sparse_conv = real_float
        quantized.sparse_conv_int8 = real_int8


def layer_table(
    peers: list[Peer], scene: Scene, width: float, peaks: dict[str, Any], rounds: int
) -> dict[str, Any]:
    """Median time of every convolution of a MinkUNet forward, engines interleaved; prints a summary.

    Returns:
        Per engine: its layers in order, with work, milliseconds, rate, and the share of the limit
        min(peak, intensity * copy bandwidth) that it reaches; and that share over all layers.
    """
    model = minkunet(width, scene)
    ours = [peer for peer in peers if peer.name in PEAK_OF]
    networks = {peer.name: peer.minkunet(model, scene) for peer in ours}
    logs: dict[str, list[Log]] = {name: [] for name in networks}
    for network in networks.values():
        network(scene.coords, scene.feats, True)
    for _ in range(rounds):
        for name in (*networks, *reversed(networks)):
            log: Log = []
            with _recorded(log):
                networks[name](scene.coords, scene.feats, True)
            logs[name].append(log)
    table: dict[str, Any] = {}
    for name, runs in logs.items():
        table[name] = _against_limits(runs, peaks.get(PEAK_OF[name], 0.0), peaks.get("copy", 0.0))
        share = table[name].get("share_of_limit")
        limit = "" if share is None else f", {100 * share:.0f} % of what peak and bandwidth allow"
        print(
            f"{name:14} {len(runs[0])} convolutions of MinkUNet {width:g}x, maps kept: "
            f"{table[name]['ms']:.1f} ms, {table[name]['gflops']:.0f} GFLOP/s{limit}"
        )
    return table


def _against_limits(runs: list[Log], peak: float, bandwidth: float) -> dict[str, Any]:
    layers, least = [], 0.0
    for position, (facts, _) in enumerate(runs[0]):
        ms = statistics.median(run[position][1] for run in runs)
        layer = {**facts, "ms": round(ms, 4), "gflops": round(1e3 * facts["gflop"] / ms, 1)}
        layer["intensity"] = round(1e3 * facts["gflop"] / facts["mb"], 2)
        if peak and bandwidth:
            limit_ms = max(1e3 * facts["gflop"] / peak, facts["mb"] / bandwidth)
            layer["share_of_limit"] = round(limit_ms / ms, 3)
            least += limit_ms
        layers.append(layer)
    total = sum(layer["ms"] for layer in layers)
    gflop = sum(layer["gflop"] for layer in layers)
    summary: dict[str, Any] = {"ms": round(total, 2), "gflops": round(1e3 * gflop / total, 1)}
    if least:
        summary["share_of_limit"] = round(least / total, 3)
    return {**summary, "layers": layers}
