"""Seconds that a call takes on a device, and the limits of the device that they are compared with."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import NamedTuple

import torch

from pointlib.ops.sparse_conv import sparse_conv

CALLS, AT_LEAST = (3, 25), 0.02
"""Fewest and most calls that a median is taken of, and the seconds that they should take together."""

COPIED = 128 * 2**20
"""Bytes of the copy whose time is the bandwidth: more than any cache holds."""


class Limits(NamedTuple):
    """What a device can do at best.

    Attributes:
        flops: Operations per second, of a dense product in its cache.
        bytes_per_second: Read and written, of a copy of 128 MiB.
    """

    flops: float
    bytes_per_second: float

    def seconds(self, flops: float, num_bytes: float) -> float:
        """The roofline: the longer of all arithmetic at the peak and all bytes at the bandwidth."""
        return max(flops / self.flops, num_bytes / self.bytes_per_second)


def median_seconds(call: Callable[[], object], device: torch.device) -> float:
    """Time a call that has been made before; on a GPU, by its events."""
    once = _seconds(call, device)
    fewest, most = CALLS
    rounds = max(min(int(AT_LEAST / max(once, 1e-9)), most), fewest)
    return statistics.median(_seconds(call, device) for _ in range(rounds))


def _seconds(call: Callable[[], object], device: torch.device) -> float:
    if device.type != "cuda":
        start = time.perf_counter()
        call()
        return time.perf_counter() - start
    start_event, end_event = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start_event.record()
    call()
    end_event.record()
    end_event.synchronize()
    return 1e-3 * start_event.elapsed_time(end_event)


def device_limits(device: torch.device, dtype: torch.dtype) -> Limits:
    """Measure the limits of a device: a tenth of a second.

    The peak is that of the faster of torch's matrix product and of a dense layer of ours, each at a size that suits it.
    """
    size = 512 if device.type == "cpu" else 4096
    rows, channels = 4 * size, 256
    square, feats = (
        torch.randn(shape, device=device).to(dtype) for shape in ((size, size), (rows, channels))
    )
    weight = torch.randn(1, channels, channels, device=device).to(dtype)
    products: list[tuple[int, Callable[[], object]]] = [
        (2 * size**3, lambda: torch.mm(square, square)),
        (2 * rows * channels**2, lambda: sparse_conv(feats, weight, None)),
    ]
    source = torch.zeros(COPIED, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return Limits(
        max(flops / _fastest(product, device) for flops, product in products),
        2 * COPIED / _fastest(lambda: target.copy_(source), device),
    )


def _fastest(call: Callable[[], object], device: torch.device) -> float:
    call()
    return min(_seconds(call, device) for _ in range(10))
