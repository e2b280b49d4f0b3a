"""Peak memory of a MinkUNet forward: measured in a process of its own, and counted as what must be there at least."""

from __future__ import annotations

import argparse
import dataclasses
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from cases import minkunet
from engines import ENGINES, Pointlib
from measurement import peak_memory
from networks import unet_layers
from peers import Peer
from scenes import Scene, load_drives, resize
from torch import Tensor, nn
from unet_units import Unit, run_units, unet_units

MIB = 2**20
SCRIPT = Path(__file__).with_name("cpu_engine.py")


def needed_mib(model: nn.Module, scene: Scene) -> dict[str, float]:
    """What a float32 forward cannot do without, in MiB.

    Features are the largest set alive at once when every convolution is one pass (batch norm, residual, ReLU and
    concatenation included): its inputs, residual and output, and the skip connections still to be read. Maps are all
    pairs and coordinates, weights all parameters that are read and the statistics of the batch norms, each once.
    """
    same, down = unet_layers(Pointlib(), scene.coords)
    rows = [len(layer.sites) for layer in same]
    kept: dict[int, Tensor] = {}
    for layer in (*same, *down):
        fields = [getattr(layer.map, f.name) for f in dataclasses.fields(layer.map)]
        kept |= {t.data_ptr(): t for t in (*fields, layer.sites) if isinstance(t, Tensor)}
    most = 0

    def run(unit: Unit, inputs: list[int], residual: int | None) -> int:
        return 4 * rows[unit.level] * model.get_submodule(unit.name).kernel.shape[-1]

    def watch(alive: list[int]) -> None:
        nonlocal most
        most = max(most, sum(alive))

    last = run_units(unet_units(model), scene.feats.nbytes, run, watch)
    logits = 4 * rows[0] * model.num_classes
    weights = [t for name, t in model.state_dict().items() if "point_transforms" not in name]
    return {
        "features": max(most, last + logits) / MIB,
        "maps": sum(t.nbytes for t in kept.values()) / MIB,
        "weights": sum(t.nbytes for t in weights) / MIB,
    }


def memory_of(name: str, args: argparse.Namespace) -> dict[str, float]:
    """Peak of a forward with new maps, in a process of its own; the warm-up is a smaller scene."""
    scene = load_drives(args.scan, args.quick, 1)[0].scan
    warm = resize(scene, min(2000, len(scene.coords)))
    model = minkunet(args.width, warm)
    network = ENGINES[name]().minkunet(model, warm)
    network(warm.coords, warm.feats, False)
    return peak_memory(lambda: network(scene.coords, scene.feats, False))


def _in_a_process(name: str, default_malloc: bool, args: argparse.Namespace) -> dict[str, float]:
    """Run `--memory-of`."""
    command = [sys.executable, str(SCRIPT), "--memory-of", name]
    command += ["--width", str(args.width), "--threads", str(args.threads)]
    command += ["--scan", *map(str, args.scan)] if args.scan else []
    command += ["--quick"] * args.quick + ["--default-malloc"] * default_malloc
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    mib = json.loads(done.stdout.splitlines()[-1])
    return mib | {"growth_mib": round(mib["peak_mib"] - mib["before_mib"], 1)}


def memory_table(peers: list[Peer], scene: Scene, args: argparse.Namespace) -> dict[str, Any]:
    """Measure every engine, and compare pointlib's float32 with what is needed; prints both.

    Returns:
        needed_mib; per engine before_mib, peak_mib and growth_mib; for pointlib `ratio`, what the call, the weights and
        the scan take over what is needed. "default malloc" hands freed memory back to the system at once.
    """
    needed = needed_mib(minkunet(args.width, scene), scene)
    report: dict[str, Any] = {"needed_mib": {n: round(m, 2) for n, m in needed.items()}}
    total = sum(needed.values())
    print(f"\nmemory of a MinkUNet {args.width:g}x forward, MiB: {total:.0f} needed in float32")
    print("  " + ", ".join(f"{name} {mib:.1f}" for name, mib in needed.items()))
    present = needed["weights"] + (scene.coords.nbytes + scene.feats.nbytes) / MIB
    runs = [(peer.name, peer.name, args.default_malloc) for peer in peers]
    if any(peer.name == "pointlib" for peer in peers):
        runs.append(("pointlib, default malloc", "pointlib", True))
    for title, name, default_malloc in runs:
        mib = report[title] = _in_a_process(name, default_malloc, args)
        line = (
            f"  {title:26}{mib['peak_mib']:6.0f} at its peak, {mib['growth_mib']:.0f} in the call"
        )
        if name == "pointlib":
            mib["ratio"] = round((mib["growth_mib"] + present) / total, 3)
            line += f"; with the weights and scan before it {mib['ratio']:.2f}x of what is needed"
        print(line, flush=True)
    return report
