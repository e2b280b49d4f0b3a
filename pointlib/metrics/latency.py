"""Wall-clock time of named stages: median and 95th percentile in milliseconds."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch


@dataclass(frozen=True)
class LatencyStats:
    """Time of one stage over `count` calls, in milliseconds."""

    median_ms: float
    p95_ms: float
    mean_ms: float
    count: int

    def as_dict(self) -> dict[str, float | int]:
        """Plain types, for JSON."""
        return {
            "median_ms": self.median_ms,
            "p95_ms": self.p95_ms,
            "mean_ms": self.mean_ms,
            "count": self.count,
        }


class LatencyMeter:
    """Collects durations by stage.

    Example:
        >>> meter = LatencyMeter()
        >>> meter.add("load", 0.002); meter.add("load", 0.004)
        >>> meter.stats()["load"].median_ms
        3.0
    """

    def __init__(self) -> None:
        self._seconds: dict[str, list[float]] = {}

    def add(self, stage: str, seconds: float) -> None:
        """Records one call of `stage` that took `seconds`."""
        self._seconds.setdefault(stage, []).append(seconds)

    @contextmanager
    def measure(self, stage: str, device: torch.device | str = "cpu") -> Iterator[None]:
        """Times the body; on a CUDA device waits for the queued work before and after it."""
        on_cuda = torch.device(device).type == "cuda"
        if on_cuda:
            torch.cuda.synchronize(device)
        start = time.perf_counter()
        yield
        if on_cuda:
            torch.cuda.synchronize(device)
        self.add(stage, time.perf_counter() - start)

    def stats(self) -> dict[str, LatencyStats]:
        """Statistics of each stage, in the order of first use."""
        result = {}
        for stage, seconds in self._seconds.items():
            ms = 1e3 * np.asarray(seconds)
            result[stage] = LatencyStats(
                median_ms=float(np.median(ms)),
                p95_ms=float(np.percentile(ms, 95)),
                mean_ms=float(ms.mean()),
                count=len(seconds),
            )
        return result

    def table(self) -> str:
        """A plain-text table: stage, median, 95th percentile, calls."""
        stats = self.stats()
        width = max([len("stage"), *(len(stage) for stage in stats)])
        lines = [f"{'stage':<{width}}  {'median ms':>10}  {'p95 ms':>10}  {'calls':>7}"]
        for stage, s in stats.items():
            lines.append(f"{stage:<{width}}  {s.median_ms:10.2f}  {s.p95_ms:10.2f}  {s.count:7d}")
        return "\n".join(lines)
