"""How the benchmarks measure: interleaved calls, peak memory, profiles by category, and facts about the machine."""

from __future__ import annotations

import os
import platform
import statistics
import subprocess
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

Call = Callable[[], object]


def interleave(
    calls: Mapping[str, Call], rounds: int, warmup: int = 1
) -> dict[str, dict[str, float]]:
    """Time every call `2 * rounds` times in the order A B C C B A, so that a drift of the machine hits all alike.

    Returns:
        Per name: median, min and max in milliseconds, and the number of samples.
    """
    for call in calls.values():
        for _ in range(warmup):
            call()
    samples: dict[str, list[float]] = {name: [] for name in calls}
    names = list(calls)
    for _ in range(rounds):
        for name in (*names, *reversed(names)):
            start = time.perf_counter()
            calls[name]()
            samples[name].append(1e3 * (time.perf_counter() - start))
    return {
        name: {
            "median_ms": round(statistics.median(times), 3),
            "min_ms": round(min(times), 3),
            "max_ms": round(max(times), 3),
            "samples": len(times),
        }
        for name, times in samples.items()
    }


def _status_mib(field: str) -> float:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) / 1024
    raise RuntimeError(f"_status_mib: /proc/self/status has no {field}; peak memory needs Linux.")


def peak_memory(call: Call) -> dict[str, float]:
    """Resident memory in MiB before one call and at its peak. Meant for a process that does nothing else."""
    before = _status_mib("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # sets the peak back to the present
    call()
    return {"before_mib": round(before, 1), "peak_mib": round(_status_mib("VmHWM"), 1)}


# First match wins; names as torch.profiler reports them.
CATEGORIES = (
    ("kernel maps", ("spconv::map", "kernel_map", "conv_sites", "unique", "searchsorted", "sort")),
    ("gather", ("spconv::gather", "index_select", "aten::index", "aten::gather")),
    ("scatter", ("spconv::scatter_add", "index_add", "scatter")),
    ("sparse convolution, inside one operator", ("pointlib::sparse_conv",)),
    (
        "matrix product",
        ("aten::mm", "aten::addmm", "aten::bmm", "aten::matmul", "mkldnn", "onednn"),
    ),
    ("batch norm", ("batch_norm",)),
    ("activation, addition, concatenation", ("relu", "clamp", "aten::add", "aten::cat")),
    ("allocation, fill, copy", ("empty", "zero", "fill", "copy", "clone", "contiguous", "resize")),
)


def profile_by_category(call: Call) -> dict[str, float]:
    """Milliseconds of one call by category, from the self time of every operator; the rest is outside operators."""
    call()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profiler:
        start = time.perf_counter()
        call()
        wall = 1e3 * (time.perf_counter() - start)
    parts: dict[str, float] = {}
    for event in profiler.key_averages():
        name = event.key.lower()
        category = next(
            (c for c, keys in CATEGORIES if any(k in name for k in keys)), "other operators"
        )
        parts[category] = parts.get(category, 0.0) + event.self_cpu_time_total / 1e3
    parts["outside operators"] = max(wall - sum(parts.values()), 0.0)
    parts = dict(sorted(parts.items(), key=lambda item: -item[1]))
    return {"total": round(wall, 1), **{name: round(ms, 1) for name, ms in parts.items()}}


def machine_facts() -> dict[str, Any]:
    """Processor, memory, threads and the versions that decide a result; nothing that names the machine."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    models = {line.partition(":")[2].strip() for line in lines if line.startswith("model name")}
    flags = next((line.partition(":")[2].split() for line in lines if line.startswith("flags")), [])
    wanted = ("avx2", "avx512f", "avx512_bf16", "avx512_vnni", "amx_bf16", "amx_int8")
    return {
        "cpu": ", ".join(sorted(models)) or platform.processor(),
        "cores": len(os.sched_getaffinity(0)),
        "instructions": [flag for flag in wanted if flag in flags],
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "load_average": round(os.getloadavg()[0], 2),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "torch_threads": torch.get_num_threads(),
    }


def commit(root: Path) -> str:
    """The commit that is measured, with `+` when tracked files differ from it."""

    def git(*args: str) -> str:
        done = subprocess.run(["git", "-C", str(root), *args], capture_output=True, text=True)
        return done.stdout.strip() if done.returncode == 0 else ""

    head = git("rev-parse", "--short=12", "HEAD")
    return head + ("+" if git("status", "--porcelain", "--untracked-files=no") else "") or "unknown"
