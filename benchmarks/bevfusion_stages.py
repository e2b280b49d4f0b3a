"""One case of the BEVFusion benchmark: the sample, the network, and what each of its stages takes."""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import resource
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import bevfusion_sample
import measurement
import torch
from torch import Tensor, nn

from pointlib.data.multi_sensor_batch import MultiSensorBatch
from pointlib.models import create_model
from pointlib.models.bevfusion import BEVFusion
from pointlib.models.profile import macs_by_module

MIB = 2**20
STAGES = {
    "voxelize": "encoders.lidar.voxelize",
    "sparse encoder": "encoders.lidar.backbone",
    "camera backbone": "encoders.camera.backbone",
    "camera neck": "encoders.camera.neck",
    "view transform": "encoders.camera.vtransform",
    "fuser": "fuser",
    "decoder backbone": "decoder.backbone",
    "decoder neck": "decoder.neck",
    "head": "heads.object",
}


class Clock:
    """Time and peak memory of calls, on the CPU or a GPU; and what all threads of the process worked meanwhile."""

    def __init__(self, device: str, memory: bool = False) -> None:
        self.device = device
        self.memory = memory
        self.ms: dict[str, list[float]] = {}
        self.cpu_ms: dict[str, list[float]] = {}
        self.peak_mib: dict[str, float] = {}

    @contextlib.contextmanager
    def watch(self, name: str) -> Iterator[None]:
        """Watch what is called within."""
        self._reset()
        start, worked = self._now(), time.process_time()
        yield
        self.ms.setdefault(name, []).append(1e3 * (self._now() - start))
        self.cpu_ms.setdefault(name, []).append(1e3 * (time.process_time() - worked))
        if self.memory:
            self.peak_mib[name] = round(self._peak())

    def medians(self) -> dict[str, dict[str, float]]:
        """Medians of each name's calls."""
        return {
            name: {
                "ms": round(statistics.median(times), 1),
                "cpu_ms": round(statistics.median(self.cpu_ms[name]), 1),
            }
            for name, times in self.ms.items()
        }

    def _now(self) -> float:
        if self.device == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()

    def _reset(self) -> None:
        if self.memory and self.device == "cuda":
            torch.cuda.reset_peak_memory_stats()
        elif self.memory:
            ctypes.CDLL(None).malloc_trim(
                0
            )  # what earlier work left behind must not serve the call
            Path("/proc/self/clear_refs").write_text("5")  # sets the peak back to the present

    def _peak(self) -> float:
        if self.device == "cuda":
            return torch.cuda.max_memory_allocated() / MIB
        return measurement._status_mib("VmHWM")


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """Everything about one case."""
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    clock = Clock(args.device)
    with clock.watch("read"):
        batch, source = bevfusion_sample.read(args.data, ten_sweeps=args.case == "ten sweeps")
    sizes = {"backbone_args": {"with_cp": args.recompute}}
    network = create_model("bevfusion_det_cl", camera=sizes).to(args.device)
    assert isinstance(network, BEVFusion)
    batch = batch.to(args.device)
    training = train(network, batch, args)  # first: its peak is read from the process
    inference = infer(network, batch, args)
    macs = macs_by_module(network, batch.sensors)
    for name, path in STAGES.items():
        stage = inference["stages"][name]
        stage["gmacs"] = round(macs.get(path, 0) / 1e9, 2)
        stage["parameters"] = num_parameters(network.get_submodule(path))
    inference["stages"] = {**clock.medians(), **inference["stages"]}
    assert batch.sensors.points is not None and batch.targets is not None
    return {
        "sample": source,
        "points_in_range": len(batch.sensors.points[0]),
        "boxes": len(batch.targets.boxes[0]),
        "parameters": num_parameters(network),
        "gmacs": round(macs[""] / 1e9, 2),
        "inference": inference,
        "training": training,
    }


def num_parameters(module: nn.Module) -> int:
    """Learned numbers."""
    return sum(parameter.numel() for parameter in module.parameters())


def precision(args: argparse.Namespace) -> contextlib.AbstractContextManager[Any]:
    """What the network computes in."""
    if not args.autocast:
        return contextlib.nullcontext()
    return torch.autocast(args.device, torch.bfloat16)


def train(network: BEVFusion, batch: MultiSensorBatch, args: argparse.Namespace) -> dict[str, Any]:
    """Training steps: the first for its peak of memory, which also warms up, then one for its times."""
    assert batch.targets is not None
    network.train()
    for number in range(1 if args.quick else 2):
        clock = Clock(args.device)
        network.zero_grad(set_to_none=True)
        with precision(args):
            with clock.watch("forward"):
                outputs = network(batch.sensors)
            with clock.watch("loss"):
                losses = network.loss(outputs, batch.targets)
        with clock.watch("backward"):
            torch.stack(list(losses.values())).sum().backward()
        if number == 0:
            peak = process_peak_mib(args.device)
    gradients = [parameter.grad for parameter in network.parameters()]
    present = [gradient for gradient in gradients if gradient is not None]
    result = {
        "steps": clock.medians(),
        "peak_mib": round(peak),
        "losses": {name: round(value.item(), 4) for name, value in losses.items()},
        "parameters_with_gradient": sum(gradient.numel() for gradient in present),
        "gradients_are_finite": all(bool(gradient.isfinite().all()) for gradient in present),
    }
    network.zero_grad(set_to_none=True)
    return result


def process_peak_mib(device: str) -> float:
    """Most memory this process ever had: resident on the CPU, allocated by torch on a GPU."""
    if device == "cuda":
        return torch.cuda.max_memory_allocated() / MIB
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


@torch.no_grad()
def infer(network: BEVFusion, batch: MultiSensorBatch, args: argparse.Namespace) -> dict[str, Any]:
    """Passes from tensors to boxes: by stage, by stage with memory, and as a whole."""
    network.eval()
    shapes: dict[str, Any] = {}

    def run(clock: Clock | None = None) -> int:
        with contextlib.ExitStack() as stack:
            stack.enter_context(precision(args))
            if clock is None:
                return len(network.predict(batch.sensors)[0].detections or ())
            stack.enter_context(watch_stages(network, clock, shapes))
            outputs = network(batch.sensors)
            with clock.watch("decode"):
                return len(network.decode(outputs, batch.sensors)[0].detections or ())

    clock, memory, whole = Clock(args.device), Clock(args.device, memory=True), Clock(args.device)
    run(memory)  # also warms up, and sorts depths into cells for this calibration
    for _ in range(0 if args.quick else args.rounds):
        run(clock)
        with whole.watch("all"):
            run()
    if args.quick:
        clock = memory
        with whole.watch("all"):
            run()
    stages: dict[str, dict[str, Any]] = {
        name: {**times, "peak_mib": memory.peak_mib[name], "output": shapes.get(name)}
        for name, times in clock.medians().items()
    }
    stages["view transform"]["new_calibration_ms"] = round(
        time_of(lambda: renew_plan(network, batch), args.device) + stages["view transform"]["ms"], 1
    )
    return {
        "stages": stages,
        "end_to_end": whole.medians()["all"],
        "end_to_end_peak_mib": max(memory.peak_mib.values()),
        "detections": run(),
    }


def renew_plan(network: BEVFusion, batch: MultiSensorBatch) -> None:
    """Sort pixels and depths into cells as for a calibration that was not seen before."""
    transform: Any = network.get_submodule(STAGES["view transform"])
    transform._plan = None
    transform.plan(batch.sensors)


def time_of(call: Callable[[], object], device: str) -> float:
    """Milliseconds of the fastest of three calls."""
    clock = Clock(device)
    for _ in range(3):
        with clock.watch("call"):
            call()
    return min(clock.ms["call"])


@contextlib.contextmanager
def watch_stages(network: BEVFusion, clock: Clock, shapes: dict[str, Any]) -> Iterator[None]:
    """Let the clock see each stage of the network, and note the shape of what it returns."""
    handles = []
    for name, path in STAGES.items():
        stack = contextlib.ExitStack()

        def before(
            module: nn.Module, inputs: Any, name: str = name, stack: contextlib.ExitStack = stack
        ) -> None:
            stack.enter_context(clock.watch(name))

        def after(
            module: nn.Module,
            inputs: Any,
            output: Any,
            name: str = name,
            stack: contextlib.ExitStack = stack,
        ) -> None:
            stack.close()
            shapes[name] = describe(output)

        module = network.get_submodule(path)
        handles += [module.register_forward_pre_hook(before), module.register_forward_hook(after)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def describe(output: Any) -> Any:
    """Shape of a tensor, of each of several, or voxels times channels."""
    if isinstance(output, Tensor):
        return list(output.shape)
    if hasattr(output, "feats"):
        return list(output.feats.shape)
    if isinstance(output, (tuple, list)):
        return [describe(part) for part in output]
    return {key: describe(part) for key, part in vars(output).items() if isinstance(part, Tensor)}
