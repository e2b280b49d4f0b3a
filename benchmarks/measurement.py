"""How the benchmarks measure: interleaved calls, peak memory, and facts about the machine."""

from __future__ import annotations

import ctypes
import os
import platform
import statistics
import subprocess
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from pointlib.ops._cpu import engine

Call = Callable[[], object]


def interleave(
    calls: Mapping[str, Call], rounds: int, clock: Callable[[], float] = time.perf_counter
) -> dict[str, dict[str, float]]:
    """Time every call `2 * rounds` times in the order A B C C B A, B C A A C B, and so on.

    So a drift of the machine hits all alike, and each is now and then the one that runs twice in a row and finds its
    data in the cache. Whoever calls this has warmed everything up. `time.process_time` as the clock counts the
    processor time of all threads of this process: on a busy machine, waiting for a core is not part of it.

    Returns:
        Per name: median, min and max in milliseconds, and the number of samples.
    """
    samples: dict[str, list[float]] = {name: [] for name in calls}
    names = list(calls)
    for _ in range(rounds):
        for name in (*names, *reversed(names)):
            start = clock()
            calls[name]()
            samples[name].append(1e3 * (clock() - start))
        names = [*names[1:], names[0]]
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
    ctypes.CDLL(None).malloc_trim(0)  # what earlier work left behind must not serve the call
    before = _status_mib("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # sets the peak back to the present
    call()
    return {"before_mib": round(before, 1), "peak_mib": round(_status_mib("VmHWM"), 1)}


def busy_cores(seconds: float = 2.0) -> float:
    """Cores that others keep busy, over the next two seconds, in which this process sleeps."""

    def ticks() -> tuple[int, int]:
        fields = [int(n) for n in Path("/proc/stat").read_text().split("\n")[0].split()[1:9]]
        return sum(fields), fields[3] + fields[4]  # all, idle and waiting

    before = ticks()
    time.sleep(seconds)
    after = ticks()
    everything, idle = (b - a for a, b in zip(before, after, strict=True))
    return round((1 - idle / max(everything, 1)) * (os.cpu_count() or 1), 2)


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
        "busy_cores": busy_cores(),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "torch_threads": torch.get_num_threads(),
        "pointlib_instructions": engine.INSTRUCTION_SET,
    }


def commit(root: Path) -> str:
    """The commit that is measured, with `+` when tracked files differ from it."""

    def git(*args: str) -> str:
        done = subprocess.run(["git", "-C", str(root), *args], capture_output=True, text=True)
        return done.stdout.strip() if done.returncode == 0 else ""

    head = git("rev-parse", "--short=12", "HEAD")
    return head + ("+" if git("status", "--porcelain", "--untracked-files=no") else "") or "unknown"
