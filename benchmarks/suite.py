"""Run the cases of cpu_engine.py: agreement first, then interleaved times, memory and profiles, and the report."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Iterator
from datetime import date
from pathlib import Path
from typing import Any

import torch
from cases import (
    ROOT,
    Case,
    Scene,
    conv_cases,
    load_scene,
    map_cases,
    minkunet,
    minkunet_cases,
    resize,
    sweep_cases,
)
from measurement import commit, interleave, machine_facts, peak_memory, profile_by_category
from networks import unet_layers
from peers import PEERS, Naive, Peer, available_peers

from pointlib.files import write_file

SCRIPT = Path(__file__).with_name("cpu_engine.py")


def check_agreement(case: Case) -> dict[str, float]:
    """Compare every engine's answers with the first one's before anything is timed.

    Returns:
        The largest difference per engine, relative to the largest magnitude.

    Raises:
        RuntimeError: Two engines disagree.
    """
    names = list(case.answers)
    want = case.answers[names[0]]()
    worst = {}
    for name in names[1:]:
        worst[name] = 0.0
        for index, (a, b) in enumerate(zip(want, case.answers[name](), strict=True)):
            if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor):
                error = float((a - b).abs().max() / a.abs().max())
            else:
                error = float(a != b)
            worst[name] = max(worst[name], error)
            if not error <= case.rtol:
                raise RuntimeError(
                    f"check_agreement: {case.name}: answer {index} of {name} differs from {names[0]}'s by "
                    f"{error:.1e} of its maximum, more than {case.rtol:.0e}. Nothing was timed."
                )
    return worst


def measure(case: Case, rounds: int) -> dict[str, Any]:
    """Agreement, times, rate and ratios of one case; prints its line."""
    agreement = check_agreement(case)
    threads = torch.get_num_threads()
    times = interleave(case.calls, rounds)
    if torch.get_num_threads() != threads:
        raise RuntimeError(
            f"measure: {case.name}: a peer left torch with {torch.get_num_threads()} threads instead of "
            f"{threads}; its times mean nothing."
        )
    reference = next(iter(times))
    base = times[reference]["median_ms"]
    result: dict[str, Any] = {"case": case.name, "gflop": round(case.gflop, 3), "times": times}
    if agreement:
        result["largest_relative_difference"] = {n: float(f"{e:.1e}") for n, e in agreement.items()}
        result[f"speedup_of_{reference}_over"] = {
            name: round(t["median_ms"] / base, 2) for name, t in times.items() if name != reference
        }
    cells = []
    for t in times.values():
        rate = f" ({1e3 * case.gflop / t['median_ms']:.0f})" if case.gflop else ""
        cells.append(f"{t['median_ms']:10.1f}{rate:>6}")
    print(f"{case.name:36}" + "".join(f"{cell:>18}" for cell in cells), flush=True)
    return result


def memory_of(name: str, args: argparse.Namespace) -> dict[str, float]:
    """Peak memory of a MinkUNet forward with new maps, in a process of its own; the warm-up is a smaller scene."""
    scene, model = load_scene(args.scan), minkunet(args.width)
    warm = resize(scene, min(2000, len(scene.coords)))
    PEERS[name]().minkunet(model)(warm.coords, warm.feats, False)
    network = PEERS[name]().minkunet(model)
    return peak_memory(lambda: network(scene.coords, scene.feats, False))


def memory_table(peers: list[Peer], args: argparse.Namespace) -> dict[str, dict[str, float]]:
    """Run `--memory-of` for every engine."""
    table = {}
    for peer in peers:
        command = [
            sys.executable,
            str(SCRIPT),
            "--memory-of",
            peer.name,
            "--width",
            str(args.width),
        ]
        command += ["--threads", str(args.threads)] + (
            ["--scan", str(args.scan)] if args.scan else []
        )
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        table[peer.name] = json.loads(done.stdout.splitlines()[-1])
    print(f"\npeak memory of a MinkUNet {args.width:g}x forward, MiB (before it)")
    for name, mib in table.items():
        print(f"  {name:10}{mib['peak_mib']:8.0f} ({mib['before_mib']:.0f})")
    return table


def profile_table(peers: list[Peer], scene: Scene, width: float) -> dict[str, dict[str, float]]:
    """Where a MinkUNet forward with new maps spends its time, by category of operator."""
    model = minkunet(width)
    table = {}
    for peer in peers:
        network = peer.minkunet(model)
        table[peer.name] = profile_by_category(lambda: network(scene.coords, scene.feats, False))  # noqa: B023
        total = table[peer.name]["total"]
        print(f"\n{peer.name}: MinkUNet {width:g}x forward, new maps, profiled: {total:.0f} ms")
        for category, ms in table[peer.name].items():
            if category != "total":
                print(f"  {category:44}{ms:9.1f} ms {100 * ms / total:5.1f} %")
    return table


def selected_cases(peers: list[Peer], scene: Scene, args: argparse.Namespace) -> Iterator[Case]:
    if "maps" in args.cases:
        yield from map_cases(peers, scene)
    if "conv" in args.cases:
        yield from conv_cases(peers, scene, args.channels)
    if "minkunet" in args.cases:
        yield from minkunet_cases(peers, scene, args.width)
    if args.sweep:
        yield from sweep_cases(peers, scene, args.quick)


def run(args: argparse.Namespace) -> None:
    peers = available_peers(args.peers)
    scene = load_scene(args.scan)
    levels = [len(layer.sites) for layer in unet_layers(Naive(), scene.coords)[0]]
    facts = machine_facts()
    print(
        f"{facts['cpu']}, {args.threads} threads, torch {facts['torch']}, load {facts['load_average']}"
    )
    if facts["load_average"] > 0.5:
        print(
            "The machine is busy: ratios are rough and milliseconds mean little. Measure when it is quiet."
        )
    print(f"{scene.name}: voxels {levels}; medians in ms (GFLOP/s)\n")
    print(" " * 36 + "".join(f"{f'{p.name} {p.version()}':>18}" for p in peers))
    report: dict[str, Any] = {
        "date": date.today().isoformat(),
        "commit": commit(ROOT),
        "machine": facts,
        "versions": {p.name: p.version() for p in peers},
        "arguments": {
            k: v for k, v in vars(args).items() if k not in ("output", "scan", "memory_of")
        },
        "scene": {"name": scene.name, "voxels": len(scene.coords), "voxels_per_level": levels},
        "results": [measure(c, args.rounds) for c in selected_cases(peers, scene, args)],
    }
    if "memory" in args.cases:
        report["memory"] = memory_table(peers, args)
    if args.profile:
        report["profile"] = profile_table(peers, scene, args.width)
    if args.output is not None:
        write_file(args.output, json.dumps(report, indent=1) + "\n")
        print(f"\nwritten: {args.output}")
