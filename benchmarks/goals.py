"""What the CPU engine is meant to reach, and whether a report of cpu_engine.py says that it does."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

MAP, MAPS = "map 3^3 submanifold", "all maps of a MinkUNet"
FORWARD, BOTH = "conv forward ", "conv forward + backward "
UNET, STEP = "MinkUNet*forward, new maps", "SPVCNN*training step, batch 2"
OURS, BF16, INT8 = "pointlib", "pointlib-bf16", "pointlib-int8"
LINEAR = 1.1
"""Largest exponent of time over voxels, or over operations for a convolution, that counts as linear."""


class _Missing(Exception):
    """A case, an engine or a peak that this run did not measure."""


class _Scene:
    """One scene of a report, and the questions that goals ask of it."""

    def __init__(self, report: dict[str, Any], scene: dict[str, Any]) -> None:
        self.peaks = report["peaks"]
        self.results = scene["results"]

    def result(self, case: str) -> dict[str, Any]:
        """A case by its name or, where networks have a width in it, by how it begins and ends."""
        head, _, tail = case.partition("*")
        for result in self.results:
            name = result["case"]
            if name == case or (tail and name.startswith(head) and name.endswith(tail)):
                return result
        raise _Missing

    def ms(self, case: str, name: str) -> float:
        try:
            return self.result(case)["times"][name]["median_ms"]
        except KeyError:
            raise _Missing from None

    def speedup(self, case: str, of: str, over: str) -> float:
        return self.ms(case, over) / self.ms(case, of)

    def widths(self, prefix: str, least: int = 0) -> list[int]:
        """Channels of the layers that were measured."""
        names = [r["case"].removeprefix(prefix) for r in self.results]
        found = [int(name) for name in names if name.isdigit() and int(name) >= least]
        if not found:
            raise _Missing
        return found

    def layers(self, prefix: str) -> list[str]:
        """Cases of those channels."""
        return [f"{prefix}{c}" for c in self.widths(prefix)]

    def mean_speedup(self, prefix: str, of: str, over: str) -> float:
        """Geometric mean over the channels."""
        logs = [math.log(self.speedup(case, of, over)) for case in self.layers(prefix)]
        return math.exp(sum(logs) / len(logs))

    def least_speedup(self, prefix: str, of: str, over: str, least: int) -> float:
        return min(self.speedup(f"{prefix}{c}", of, over) for c in self.widths(prefix, least))

    def peak(self, precision: str) -> float:
        if not self.peaks.get(precision):
            raise _Missing
        return self.peaks[precision]

    def rate(self, case: str, name: str) -> float:
        """GFLOP/s."""
        return 1e3 * self.result(case)["gflop"] / self.ms(case, name)

    def least_share(self, name: str, precision: str, least: int) -> float:
        """Smallest rate over channels of at least `least`, as a share of the peak."""
        widths = self.widths(FORWARD, least)
        return min(self.rate(f"{FORWARD}{c}", name) for c in widths) / self.peak(precision)

    def ceiling(self, cases: list[str], precision: str, over: str) -> float:
        """The (mean) speedup if every operation ran at the measured peak and nothing else took any time."""
        logs = [
            math.log(self.ms(c, over) * self.peak(precision) / (1e3 * self.result(c)["gflop"]))
            for c in cases
        ]
        return math.exp(sum(logs) / len(logs))

    def exponent(self) -> float:
        """Largest slope of log time over log size from the smallest to the largest scene of the sweep."""
        slopes = []
        sweep = [r for r in self.results if "of" in r and OURS in r["times"]]
        for case in dict.fromkeys(r["of"] for r in sweep):
            runs = [r for r in sweep if r["of"] == case]
            sizes = [r["gflop"] or r["voxels"] for r in (runs[0], runs[-1])]
            if runs[-1]["voxels"] < 1_000_000:
                raise _Missing
            for name in runs[0]["times"]:
                if name.startswith(OURS):
                    a, b = (r["times"][name]["median_ms"] for r in (runs[0], runs[-1]))
                    slopes.append(math.log(b / a) / math.log(sizes[1] / sizes[0]))
        if not slopes:
            raise _Missing
        return max(slopes)


Question = Callable[[_Scene], float]


class Goal(NamedTuple):
    """What is wanted of one scene.

    Attributes:
        what: In words. Those marked [AMX] were set for processors with AMX.
        sign: ">=" or "<=".
        wanted: The number.
        measured: Finds it in a scene.
        ceiling: What it would be if the arithmetic alone took time, at the measured peak; None if that says nothing.
    """

    what: str
    sign: str
    wanted: float
    measured: Question
    ceiling: Question | None = None


def _forward(name: str, precision: str, wanted: float, note: str = "") -> Goal:
    return Goal(
        f"{precision} forward, times spconv fp32, mean over C{note}",
        ">=",
        wanted,
        lambda s: s.mean_speedup(FORWARD, name, "spconv"),
        lambda s: s.ceiling(s.layers(FORWARD), precision, "spconv"),
    )


def _both(what: str, name: str, precision: str, wanted: float, over: str) -> Goal:
    return Goal(
        f"{precision} forward + backward, times {what}, mean over C",
        ">=",
        wanted,
        lambda s: s.mean_speedup(BOTH, name, over),
        lambda s: s.ceiling(s.layers(BOTH), precision, over),
    )


def _share(name: str, precision: str, least: int, wanted: float, note: str = "") -> Goal:
    return Goal(
        f"{precision} forward, C >= {least}, share of the {precision} peak{note}",
        ">=",
        wanted,
        lambda s: s.least_share(name, precision, least),
    )


def _network(name: str, precision: str, wanted: float) -> Goal:
    return Goal(
        f"MinkUNet, new maps, {precision}, times spconv fp32",
        ">=",
        wanted,
        lambda s: s.speedup(UNET, name, "spconv"),
        lambda s: s.ceiling([UNET], precision, "spconv"),
    )


GOALS = [
    Goal("3^3 map, times spconv", ">=", 15, lambda s: s.speedup(MAP, OURS, "spconv")),
    Goal("all maps of a MinkUNet, ms", "<=", 20, lambda s: s.ms(MAPS, OURS)),
    _share(OURS, "fp32", 64, 0.6),
    _forward(OURS, "fp32", 2.2),
    _share(BF16, "bf16", 128, 0.25, " [AMX]"),
    _forward(BF16, "bf16", 8, " [AMX]"),
    Goal(
        *("int8 forward, C >= 64, times bf16", ">=", 1),
        lambda s: s.least_speedup(FORWARD, INT8, BF16, 64),
    ),
    _both("spconv", OURS, "fp32", 2.5, "spconv"),
    _both("our fp32", BF16, "bf16", 2, OURS),
    _network(OURS, "fp32", 2.4),
    _network(BF16, "bf16", 8),
    _network(INT8, "int8", 10),
    Goal("MinkUNet, new maps, fp32, ms", "<=", 1000, lambda s: s.ms(UNET, OURS)),
    Goal("MinkUNet, new maps, bf16, ms", "<=", 300, lambda s: s.ms(UNET, BF16)),
    Goal(
        *("SPVCNN training step, fp32, times the composition", ">=", 3),
        lambda s: s.speedup(STEP, OURS, "composition"),
    ),
    Goal(
        *("SPVCNN training step, bf16 autocast, times our fp32", ">=", 2),
        lambda s: s.speedup(STEP, BF16, OURS),
    ),
    Goal("10k to 1M voxels, largest exponent of time", "<=", LINEAR, _Scene.exponent),
]


def _ask(question: Question | None, scene: _Scene) -> float | None:
    try:
        return None if question is None else float(f"{question(scene):.4g}")
    except _Missing:
        return None


def judge(report: dict[str, Any]) -> list[dict[str, Any]]:
    """Every goal on every scene.

    Returns:
        goal; sign (>= or <=) and wanted; scene; measured, or None where this run did not measure it; ceiling, what
        the same ratio would be if the arithmetic alone took time, at the measured peak, or None; met, or None.
    """
    found = [entry for scene in report["scenes"] for entry in _judge_scene(report, scene)]
    ratio = report.get("memory", {}).get(OURS, {}).get("ratio")
    goal = ("MinkUNet fp32, peak memory over what is needed", "<=", 1.3)
    found.append(_entry(*goal, report["scenes"][0]["name"], ratio, None))
    return found


def _judge_scene(report: dict[str, Any], scene: dict[str, Any]) -> Iterator[dict[str, Any]]:
    asked = _Scene(report, scene)
    for what, sign, wanted, measured, ceiling in GOALS:
        yield _entry(
            *(what, sign, wanted, scene["name"]), _ask(measured, asked), _ask(ceiling, asked)
        )


def _entry(
    goal: str, sign: str, wanted: float, scene: str, measured: float | None, ceiling: float | None
) -> dict[str, Any]:
    met = None
    if measured is not None:
        met = measured >= wanted if sign == ">=" else measured <= wanted
    return {
        "goal": goal,
        "sign": sign,
        "wanted": wanted,
        "scene": scene,
        "measured": measured,
        "ceiling": ceiling,
        "met": met,
    }


def print_goals(goals: list[dict[str, Any]]) -> None:
    """One line a goal and scene, those that were measured."""
    for scene in dict.fromkeys(entry["scene"] for entry in goals):
        print(f"\n{scene:58}{'goal':>9}{'measured':>10}{'at most':>9}")
        for entry in goals:
            if entry["scene"] != scene or entry["measured"] is None:
                continue
            ceiling = "" if entry["ceiling"] is None else f"{entry['ceiling']:.3g}"
            wanted = f"{entry['sign']} {entry['wanted']:g}"
            met = "met" if entry["met"] else "not met"
            print(f"  {entry['goal']:56}{wanted:>9}{entry['measured']:>10.3g}{ceiling:>9}  {met}")
