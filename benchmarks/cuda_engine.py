"""The CUDA engine beside its peers on the seven workloads of TorchSparse++: inference, training, memory, rooflines.

    python benchmarks/cuda_engine.py             # everything; minutes on an H200; writes results/cuda_engine.json
    python benchmarks/cuda_engine.py --quick     # small scans, two rounds, writes nothing
    benchmarks/run_gpu.sh                        # the GPU's tests and compute-sanitizer before it

Times are of the wall clock around work that is waited for, so the host's part is in them: `cold` builds all maps, as
for a new scan; `warm` keeps them; `graph` and `warm graph` are the same as CUDA graphs. benchmarks/README.md says more.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

import torch
from gpu_layers import kernel_table, layer_table
from gpu_networks import ENGINES, Engine
from gpu_workloads import MAKERS, Workload, load_workloads
from measurement import commit, interleave, machine_facts
from torch import Tensor

from pointlib.deploy.graph import GraphNetwork
from pointlib.files import write_file

ROOT = Path(__file__).parents[1]
PRECISIONS = {"fp16": torch.float16, "tf32": torch.float32, "fp32": torch.float32}
WARMUP = 3
Call = Callable[[], object]


class Contender:
    """One engine's network on one workload."""

    def __init__(
        self, engine: Engine, workload: Workload, dtype: torch.dtype, device: torch.device
    ):
        torch.manual_seed(0)
        self.engine, self.workload, self.device = engine, workload, device
        self.model = engine.network(workload).to(device, dtype).eval()
        coords, feats = workload.scans[0]
        self.scan = (coords.to(device), feats.to(device, dtype))
        self._kept = self._tensor()

    def _tensor(self) -> Any:
        return self.engine.tensor(*self.scan, self.workload.shape, 1)

    @torch.inference_mode()
    def cold(self) -> Tensor:
        """Maps and layers."""
        return self.model(self._tensor())

    @torch.inference_mode()
    def warm(self) -> Tensor:
        """Layers alone."""
        return self.model(self._kept)

    def graph(self) -> Call:
        """A new scan by a U-Net and its maps in one CUDA graph."""
        network = GraphNetwork(self.model, self._kept)
        return lambda: network(self._tensor())

    def warm_graph(self) -> Call:
        """What replays the warm forward."""
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(WARMUP):
                self.warm()
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            self._out = self.warm()
        return graph.replay


class Trainer:
    """A training step on two scans under automatic mixed precision; its maps are built at every step."""

    def __init__(self, engine: Engine, workload: Workload, device: torch.device) -> None:
        torch.manual_seed(0)
        self.engine, self.workload, self.device = engine, workload, device
        self.model = engine.network(workload).to(device).train()
        self._optimizer = torch.optim.SGD(self.model.parameters(), lr=1e-3, momentum=0.9)
        self._scaler = torch.amp.GradScaler(device.type)
        self._batch = [part.to(device) for part in workload.batch()]

    def __call__(self) -> None:
        """Forward, backward, SGD."""
        dtype = torch.float16 if self.device.type == "cuda" else torch.bfloat16
        with torch.autocast(self.device.type, dtype):
            out = self.model(self.engine.tensor(*self._batch, self.workload.shape, 2))
        loss = out.float().square().mean()
        self._optimizer.zero_grad(set_to_none=True)
        self._scaler.scale(loss).backward()
        self._scaler.step(self._optimizer)
        self._scaler.update()


def waited(call: Call, device: torch.device) -> Call:
    """The call, and waiting for what it enqueued."""

    def run() -> None:
        call()
        if device.type == "cuda":
            torch.cuda.synchronize()

    return run


def peak_mib(call: Call, device: torch.device) -> float | None:
    """What a call needs at its peak beyond what was there before."""
    if device.type != "cuda":
        return None
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    call()
    torch.cuda.synchronize()
    return round((torch.cuda.max_memory_allocated() - before) / 2**20, 1)


def inference(
    engines: list[Engine], workload: Workload, precision: str, args: Any
) -> dict[str, Any]:
    """Times, memory and sizes of one workload in one precision; an engine that fails is left out with its reason."""
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = precision == "tf32"
    calls: dict[str, dict[str, Call]] = {"cold": {}, "warm": {}}
    result: dict[str, Any] = {"precision": precision, "left_out": {}, "rows": {}, "peak_mib": {}}
    for engine in engines:
        try:
            contender = Contender(engine, workload, PRECISIONS[precision], args.device)
            for _ in range(WARMUP):
                contender.cold(), contender.warm()
            rows = result["rows"][engine.name] = len(contender.cold())
            if rows != next(iter(result["rows"].values())):
                raise RuntimeError(f"another output: {rows} voxels, {result['rows']}")
            result["peak_mib"][engine.name] = peak_mib(contender.cold, args.device)
            calls["cold"][engine.name] = waited(contender.cold, args.device)
            calls["warm"][engine.name] = waited(contender.warm, args.device)
        except Exception as error:  # noqa: BLE001  whatever a peer raises is its result
            result["left_out"][engine.name] = f"{type(error).__name__}: {error}"[:300]
            continue
        if engine.name != "pointlib" or args.device.type != "cuda":
            continue
        graphs = {"warm graph": contender.warm_graph}
        if workload.network == "minkunet":
            graphs["graph"] = contender.graph
        for kind, record in graphs.items():
            try:
                calls[kind] = {engine.name: waited(record(), args.device)}
            except (RuntimeError, ValueError) as error:
                result["left_out"][f"{engine.name}, {kind}"] = str(error)[:300]
    result["times"] = {kind: interleave(some, args.rounds) for kind, some in calls.items() if some}
    return result


def training(engines: list[Engine], workload: Workload, args: Any) -> dict[str, Any]:
    """Times and memory of a training step."""
    calls: dict[str, Call] = {}
    result: dict[str, Any] = {"left_out": {}, "peak_mib": {}}
    for engine in engines:
        try:
            step = Trainer(engine, workload, args.device)
            for _ in range(WARMUP):
                step()
            result["peak_mib"][engine.name] = peak_mib(step, args.device)
            calls[engine.name] = waited(step, args.device)
        except Exception as error:  # noqa: BLE001  whatever a peer raises is its result
            result["left_out"][engine.name] = f"{type(error).__name__}: {error}"[:300]
    result["times"] = {"step": interleave(calls, max(args.rounds // 2, 1))} if calls else {}
    return result


def print_line(title: str, result: dict[str, Any]) -> None:
    """Medians in ms, and how much faster pointlib is."""
    for kind, times in result["times"].items():
        own = times.get("pointlib", {}).get("median_ms")
        cells = [
            f"{name} {t['median_ms']:.3f}" + (f" ({t['median_ms'] / own:.2f}x)" if own else "")
            for name, t in times.items()
        ]
        print(f"{title:24} {kind:10} " + ", ".join(cells), flush=True)
    for name, reason in result["left_out"].items():
        print(f"{title:24} {name} left out: {reason}")


def ratios(results: list[dict[str, Any]]) -> dict[str, float]:
    """Geometric mean, over workloads and precisions, of how much faster pointlib is, maps included."""
    found: dict[str, list[float]] = {}
    for result in results:
        times = result["times"].get("cold", {})
        for name, t in times.items():
            if name != "pointlib" and "pointlib" in times:
                found.setdefault(name, []).append(t["median_ms"] / times["pointlib"]["median_ms"])
    return {name: round(statistics.geometric_mean(some), 2) for name, some in found.items()}


def available(names: list[str]) -> list[Engine]:
    """Start the engines that can be imported; says why the others cannot."""
    engines = []
    for name in names:
        try:
            engines.append(ENGINES[name]())
        except Exception as error:  # noqa: BLE001  a peer without a GPU may raise anything
            print(f"{name}: left out, it cannot be imported ({type(error).__name__}: {error})")
    return engines


def gpu_facts(device: torch.device) -> dict[str, Any]:
    """Which GPU, and the CUDA of torch."""
    if device.type != "cuda":
        return {"gpu": None}
    found = torch.cuda.get_device_properties(device)
    capability = f"{found.major}.{found.minor}"
    return {"gpu": found.name, "capability": capability, "cuda": torch.version.cuda}


def run(args: argparse.Namespace) -> None:
    """Measure, print and write."""
    engines = available(args.engines)
    report: dict[str, Any] = {
        "date": date.today().isoformat(),
        "commit": commit(ROOT),
        "machine": {**machine_facts(), **gpu_facts(args.device)},
        "versions": {engine.name: engine.version() for engine in engines},
        "workloads": [],
    }
    every: list[dict[str, Any]] = []
    for workload in load_workloads(args.workloads, args.quick):
        sizes = [len(coords) for coords, _ in workload.scans]
        print(f"\n{workload.name}: {workload.source}, voxels {sizes}")
        entry: dict[str, Any] = {"name": workload.name, "source": workload.source, "voxels": sizes}
        entry["inference"] = [inference(engines, workload, p, args) for p in args.precisions]
        for result in entry["inference"]:
            print_line(f"{workload.name} {result['precision']}", result)
        every += entry["inference"]
        if not args.no_training:
            entry["training"] = training(engines, workload, args)
            print_line(f"{workload.name} AMP, batch 2", entry["training"])
        if any(engine.name == "pointlib" for engine in engines):
            dtype = PRECISIONS[args.precisions[0]]
            contender = Contender(ENGINES["pointlib"](), workload, dtype, args.device)
            entry["layers"] = layer_table(contender.warm, dtype, args.device)
            entry["kernels"] = kernel_table(contender.warm, args.device)
        report["workloads"].append(entry)
    report["faster_than"] = ratios(every)
    print(f"\npointlib is faster, maps included, by (geometric mean): {report['faster_than']}")
    if args.output is not None:
        write_file(args.output, json.dumps(report, indent=1) + "\n")
        print(f"written: {args.output}")


def main() -> None:
    """Read the command line and measure."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--engines", nargs="+", choices=list(ENGINES), default=list(ENGINES))
    add("--workloads", nargs="+", choices=list(MAKERS), default=list(MAKERS))
    add("--precisions", nargs="+", choices=list(PRECISIONS), default=list(PRECISIONS))
    add("--rounds", type=int, default=15, help="each call is timed 2 x ROUNDS times, interleaved")
    add("--no-training", action="store_true", help="inference alone")
    add("--quick", action="store_true", help="small scans, two rounds, no file unless it is named")
    add("--device", type=torch.device, default=torch.device("cuda"), help="cpu tries the script")
    default = ROOT / "benchmarks" / "results" / "cuda_engine.json"
    add("--output", type=Path, default=default, help="the JSON")
    args = parser.parse_args()
    if args.device.type == "cuda" and not torch.cuda.is_available():
        parser.exit(2, "cuda_engine.py: needs an NVIDIA GPU and a CUDA build of torch, got none.\n")
    if args.quick:
        args.rounds = min(args.rounds, 2)
        args.output = None if args.output == default else args.output
    run(args)


if __name__ == "__main__":
    main()
