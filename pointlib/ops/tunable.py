"""What tuning asks of a device: the dataflows it has, how to run one, what one prepares, and what it should cost."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor

from pointlib.ops import _cpu
from pointlib.ops._cpu import engine
from pointlib.ops._cuda import engine as cuda_engine
from pointlib.ops._cuda import implicit_gemm, sparse_conv
from pointlib.ops._cuda.gemm_tiles import candidate_plans, redundancy
from pointlib.ops._cuda.row_map import row_map
from pointlib.ops._cuda.weight_grad import chunk_candidates, weight_grad
from pointlib.ops.dataflow import Dataflow, cpu_candidates
from pointlib.ops.timing import Limits, median_seconds

if TYPE_CHECKING:
    from pointlib.ops.tune import Call

TAP_BY_TAP = (
    Dataflow(0, kind="hybrid"),
    Dataflow(0, kind="fetch_on_demand"),
    Dataflow(0, kind="gather_scatter"),
)


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


class _Cuda:
    """The implicit GEMM in tiles of several shapes, rows in place or sorted for one to four splits; and tap by tap."""

    def __init__(self, device: torch.device) -> None:
        self.device = cuda_engine.backend().properties(device)
        self.name = self.device.name

    def candidates(self, call: Call) -> list[Dataflow]:
        w = call.workload
        probe = torch.empty(0, w.c_in, dtype=w.dtype, device=call.device)
        if w.operation == "grad_weight":
            chunks = chunk_candidates(probe, w.statistics.num_pairs, w.c_out)
            return [Dataflow(chunk, kind="split_pairs") for chunk in chunks]
        few = w.c_in in implicit_gemm.SMALL_CHANNELS  # they have a kernel of their own
        unlike = w.dtype == torch.bfloat16 and self.device.capability < 80
        if few or unlike:
            return [Dataflow(0)]
        exact = sparse_conv.is_exact(probe)
        sizes = (w.statistics, w.dtype, [w.c_in], w.c_out, exact)
        plans = candidate_plans(*sizes, self.device.capability, self.device.num_sms)
        if call.pairs[0] is None:
            return [plan.dataflow for plan in plans]
        return [*(plan.dataflow for plan in plans[:3]), *TAP_BY_TAP]

    def runner(self, call: Call) -> Callable[[Dataflow], Tensor]:
        feats, weight = random_operands(call)
        pairs = self._pairs(call)
        if call.workload.operation == "grad_weight":
            grad = feats.new_empty(pairs.num_out, call.workload.c_out).normal_()
            where = (feats, grad, *call.pairs, 1)
            return lambda dataflow: weight_grad(*where, chunk=dataflow.tile_rows)
        return lambda dataflow: sparse_conv.carry_out(feats, weight, None, pairs, dataflow)

    def preparation(self, call: Call, splits: int) -> float:
        pairs = self._pairs(call)
        if pairs.in_index is None or pairs.out_index is None or pairs.offset_ptr is None:
            return 0.0
        ends, offset_ptr = (pairs.in_index, pairs.out_index), pairs.offset_ptr

        def prepare() -> object:  # of copies, for the row form of a map is remembered
            copies = [index.clone() for index in ends]
            return row_map(copies[0], copies[1], offset_ptr, pairs.num_out, splits)

        prepare()
        return median_seconds(prepare, call.device)

    def predict(self, call: Call, limits: Limits) -> Callable[[Dataflow], float]:
        """More products than needed where a tile's rows differ in their taps; more traffic where sums are stored."""
        from pointlib.ops.tune import needed

        w = call.workload
        flops, num_bytes = needed(call)
        sums = 4 * w.statistics.num_out * w.c_out

        def seconds(dataflow: Dataflow) -> float:
            if dataflow.kind == "split_pairs":
                partial = 4 * w.c_in * w.c_out * w.statistics.num_pairs / dataflow.tile_rows
                return limits.seconds(flops, num_bytes + 2 * partial)
            if dataflow.kind == "hybrid":  # rare taps leave sums to the common ones
                return limits.seconds(flops, num_bytes + 2 * sums)
            if dataflow.kind != "output_stationary":
                return limits.seconds(flops, num_bytes + 8 * w.statistics.num_pairs * w.c_out)
            wasted = redundancy(w.statistics, dataflow.tile_rows, dataflow.splits)
            return limits.seconds(
                flops * wasted, num_bytes + 2 * sums * max(dataflow.splits - 1, 0)
            )

        return seconds

    @staticmethod
    def _pairs(call: Call) -> implicit_gemm.Pairs:
        num_out = call.workload.statistics.num_out
        return implicit_gemm.Pairs(*call.pairs, num_out, call.identity_tap)


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
    if device.type == "cuda":
        return _Cuda(device)
    raise ValueError(f"tune: the model must be on a CPU or a CUDA device, got {device}.")
