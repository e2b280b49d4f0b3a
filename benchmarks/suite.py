"""Run what cpu_engine.py is asked for: agreement first, then interleaved times, and the report."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from datetime import date
from typing import Any

import torch
from cases import Case, conv_cases, map_cases, minkunet_cases, sweep_cases
from engines import available_engines
from goals import judge, print_goals
from layers import layer_table
from measurement import commit, interleave, machine_facts
from memory import memory_table
from networks import unet_layers
from peaks import Peaks
from peers import Naive, Peer
from profiles import profile_table
from scenes import ROOT, Drive, load_drives
from torch import Tensor
from training import training_cases

from pointlib.files import write_file

COLUMN = 17


def check_agreement(case: Case) -> dict[str, Any]:
    """Compare every engine's answers with the first one's before anything is timed.

    Returns:
        The largest difference per engine, relative to the largest magnitude; for logits also the share of voxels whose
        largest logit is the same, and the root mean square difference relative to the standard deviation.

    Raises:
        RuntimeError: Two engines disagree.
    """
    names = list(case.answers)
    want = case.answers[names[0]]()
    worst: dict[str, float] = {}
    winners: dict[str, float] = {}
    noise: dict[str, float] = {}
    for name in names[1:]:
        worst[name] = 0.0
        rtol = max(case.rtol, case.rtols.get(name, 0.0))
        for index, (a, b) in enumerate(zip(want, case.answers[name](), strict=True)):
            if isinstance(a, Tensor) and isinstance(b, Tensor):
                error = float((a - b).abs().max() / a.abs().max())
            else:
                error = float(a != b)
            worst[name] = max(worst[name], error)
            if not error <= rtol:
                raise RuntimeError(
                    f"check_agreement: {case.name}: answer {index} of {name} differs from {names[0]}'s by "
                    f"{error:.1e} of its maximum, more than {rtol:.0e}. Nothing was timed."
                )
            if case.classify:
                winners[name] = float((a.argmax(1) == b.argmax(1)).float().mean())
                noise[name] = float((a - b).square().mean().sqrt() / a.std())
    found: dict[str, Any] = {}
    if worst:
        found["largest_relative_difference"] = {n: float(f"{e:.1e}") for n, e in worst.items()}
    if case.classify:
        found["same_class"] = {n: round(share, 4) for n, share in winners.items()}
        found["noise_over_deviation"] = {n: float(f"{e:.1e}") for n, e in noise.items()}
    return found


def measure(case: Case, rounds: int, columns: list[str]) -> dict[str, Any]:
    """Agreement, times, rate and ratios of one case; prints its line."""
    agreement = check_agreement(case)
    threads = torch.get_num_threads()
    times = interleave(case.calls, rounds)
    if torch.get_num_threads() != threads:
        raise RuntimeError(
            f"measure: {case.name}: a peer left torch with {torch.get_num_threads()} threads instead of "
            f"{threads}; its times mean nothing."
        )
    medians = {name: t["median_ms"] for name, t in times.items()}
    result: dict[str, Any] = {"case": case.name, **case.facts, "gflop": round(case.gflop, 4)}
    result |= {"times": times, **agreement}
    result["speedup"] = {
        own: {other: round(ms / medians[own], 2) for other, ms in medians.items() if other != own}
        for own in medians
        if own.startswith("pointlib")
    }
    if "voxels" in case.facts:
        result["voxels_per_ms"] = {
            name: round(case.facts["voxels"] / ms, 1) for name, ms in medians.items()
        }
    cells = []
    for name in columns:
        rate = (
            f" ({1e3 * case.gflop / medians[name]:.0f})" if name in medians and case.gflop else ""
        )
        cells.append(f"{medians[name]:.1f}{rate}" if name in medians else "-")
    print(f"{case.name:44}" + "".join(f"{cell:>{COLUMN}}" for cell in cells), flush=True)
    return result


def selected_cases(
    peers: list[Peer], drive: Drive, args: argparse.Namespace, sweep: bool
) -> Iterator[Case]:
    """The cases of one scene."""
    scene = drive.scan
    if "maps" in args.cases:
        yield from map_cases(peers, scene)
    if "conv" in args.cases:
        yield from conv_cases(peers, scene, args.channels)
    if "minkunet" in args.cases:
        yield from minkunet_cases(peers, scene, args.width)
    if "training" in args.cases:
        yield from training_cases([peer.name for peer in peers], drive, not args.default_malloc)
    if sweep:
        yield from sweep_cases(peers, scene, args.quick)


def measure_scene(
    peers: list[Peer], drive: Drive, args: argparse.Namespace, first: bool
) -> dict[str, Any]:
    """All times of one scene; the sweep belongs to the first one."""
    scene = drive.scan
    levels = [len(layer.sites) for layer in unet_layers(Naive(), scene.coords)[0]]
    columns = [peer.name for peer in peers] + ["composition"] * ("training" in args.cases)
    print(f"\n{scene.name}: voxels {levels}; medians in ms (GFLOP/s)\n")
    print(" " * 44 + "".join(f"{name:>{COLUMN}}" for name in columns))
    cases = selected_cases(peers, drive, args, sweep=first and args.sweep)
    return {
        "name": scene.name,
        "voxels": len(scene.coords),
        "voxels_per_level": levels,
        "results": [measure(case, args.rounds, columns) for case in cases],
    }


def print_sweep(results: list[dict[str, Any]]) -> None:
    """Voxels a millisecond over the size of the scene, one line a case and engine; level lines are linear cost."""
    sweep = [result for result in results if "of" in result]
    for case in dict.fromkeys(result["of"] for result in sweep):
        runs = [result for result in sweep if result["of"] == case]
        sizes = "".join(f"{run['voxels']:>11,}" for run in runs)
        print(f"\n{f'{case}, voxels/ms over voxels':52}{sizes}")
        for name in runs[0]["voxels_per_ms"]:
            print(f"  {name:50}" + "".join(f"{run['voxels_per_ms'][name]:11,.0f}" for run in runs))


def run(args: argparse.Namespace) -> None:
    """Measure, print, judge and write."""
    facts = machine_facts()
    instructions = facts["pointlib_instructions"]
    print(f"{facts['cpu']}, {args.threads} threads, torch {facts['torch']}, engine {instructions}")
    if facts["busy_cores"] > 0.2:
        print(
            f"The machine is busy ({facts['busy_cores']} cores): ratios are rough and milliseconds mean little. "
            "Measure when it is quiet."
        )
    peers = available_engines(args.peers)
    drives = load_drives(args.scan, args.quick, args.scenes)
    peaks = Peaks(args.threads)
    peaks.measure()
    scenes = [measure_scene(peers, drive, args, drive is drives[0]) for drive in drives]
    peaks.measure()
    print_sweep(scenes[0]["results"])
    print(f"\n{peaks}")
    report: dict[str, Any] = {
        "date": date.today().isoformat(),
        "commit": commit(ROOT),
        "machine": facts,
        "versions": {p.name: p.version() for p in peers},
        "arguments": {
            k: v for k, v in vars(args).items() if k not in ("output", "scan", "memory_of")
        },
        "peaks": peaks.best,
        "scenes": scenes,
    }
    first = drives[0]
    if "layers" in args.cases:
        report["layers"] = layer_table(
            peers, first.scan, args.width, peaks.best, 1 if args.quick else args.rounds
        )
    if "memory" in args.cases:
        report["memory"] = memory_table(peers, first.scan, args)
    if args.profile:
        report["profile"] = profile_table(peers, first, args.width)
    report["goals"] = judge(report)
    print_goals(report["goals"])
    if args.quick:
        print("\nThese scenes are small; the goals are set for whole ones.")
    report["machine"]["busy_cores_at_the_end"] = machine_facts()["busy_cores"]
    if args.output is not None:
        write_file(args.output, json.dumps(report, indent=1) + "\n")
        print(f"\nwritten: {args.output}")
