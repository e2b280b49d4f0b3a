"""What tuning asks of a device: the dataflows it has, how to run one, what one prepares, and what it should cost."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor

from pointlib.ops import _cpu
from pointlib.ops._cpu import engine
from pointlib.ops.dataflow import Dataflow, cpu_candidates

if TYPE_CHECKING:
    from pointlib.ops.timing import Limits
    from pointlib.ops.tune import Call


class Tunable(Protocol):
    """A device as tuning sees it; `name` is what its choices are kept under."""

    name: str

    def candidates(self, call: Call) -> list[Dataflow]:
        """At most six dataflows, the prior first; a single one where there is no choice."""

    def runner(self, call: Call) -> Callable[[Dataflow], Tensor]:
        """A function that carries the call out on random features."""

    def preparation(self, call: Call, splits: int) -> float:
        """Seconds to prepare the call's kernel map for dataflows with so many splits."""

    def predict(self, call: Call, limits: Limits) -> Callable[[Dataflow], float]:
        """The cost model: seconds of a dataflow."""


class _Cpu:
    """The compiled engine: tiles of several sizes."""

    def __init__(self) -> None:
        self.threads = engine.num_threads()
        self.name = _cpu.sparse_conv.device_name(self.threads)

    def candidates(self, call: Call) -> list[Dataflow]:
        found = cpu_candidates(call.workload.statistics, self.threads)
        one_way = engine.LIBRARY is None or call.workload.dtype == torch.float64
        return found[:1] if one_way or call.workload.operation == "grad_weight" else found

    def runner(self, call: Call) -> Callable[[Dataflow], Tensor]:
        feats, weight = random_operands(call)
        where = (*call.pairs, call.workload.statistics.num_out)
        return lambda dataflow: _cpu.sparse_conv.convolve(
            [feats], weight, *where, None, None, None, 1.0, dataflow=dataflow
        )

    def preparation(self, call: Call, splits: int) -> float:
        return 0.0

    def predict(self, call: Call, limits: Limits) -> Callable[[Dataflow], float]:
        """A tap's weights are read again for each tile, at the price of some twenty pairs."""
        from pointlib.ops.tune import needed

        flops, num_bytes = needed(call)

        def seconds(dataflow: Dataflow) -> float:
            pairs = max(call.workload.statistics.density * dataflow.tile_rows, 1e-9)
            return limits.seconds(flops * (1 + 20 / pairs), num_bytes)

        return seconds


def random_operands(call: Call) -> tuple[Tensor, Tensor]:
    """Features (num_in, C_in) and a weight (K, C_in, C_out) for a call."""
    w = call.workload
    generator = torch.Generator(call.device).manual_seed(0)
    shapes = ((call.num_in, w.c_in), (w.statistics.kernel_volume, w.c_in, w.c_out))
    feats, weight = (torch.randn(s, generator=generator, device=call.device) for s in shapes)
    return feats.to(w.dtype), weight.to(w.dtype)


def tunable_of(device: torch.device) -> Tunable:
    """The device as tuning sees it.

    Raises:
        ValueError: If the operators do not run on it.
    """
    if device.type == "cpu":
        return _Cpu()
    raise ValueError(f"tune: the model must be on a CPU or a CUDA device, got {device}.")
