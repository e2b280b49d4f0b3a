"""Draw the roofline of a report: every convolution of a MinkUNet against the processor's measured peaks.

    python benchmarks/roofline.py benchmarks/results/cpu_engine.json docs/images/roofline_cpu.png

Across: operations for each byte that must move (inputs, outputs, weight and map once). Up: 10^9 operations a second.
The area of a marker is the layer's share of the time of its precision. The report needs the case `layers`.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot

# Engine -> (peak, label, colour); colours that stay apart for the colour-blind (Okabe and Ito).
SERIES = {
    "pointlib": ("fp32", "float32", "#0072b2"),
    "pointlib-bf16": ("bf16", "bfloat16", "#d55e00"),
    "pointlib-int8": ("int8", "int8", "#009e73"),
}
POINTWISE, OTHER = "D", "o"
AREA = 4000.0
"""Of a marker that takes all of the time, in square points."""


def draw(report: dict[str, Any], target: Path) -> None:
    """Write the picture."""
    peaks, tables = report["peaks"], report["layers"]
    figure, axes = pyplot.subplots(figsize=(9, 6.5), dpi=130, layout="constrained")
    layers = [layer for table in tables.values() for layer in table["layers"]]
    left = min(layer["intensity"] for layer in layers) / 1.5
    right = max(layer["intensity"] for layer in layers) * 1.5
    bottom = min(layer["gflops"] for layer in layers) / 1.5
    top = max([*(layer["gflops"] for layer in layers), *_peaks_of(peaks, tables)]) * 1.6
    axes.set(xscale="log", yscale="log", xlim=(left, right), ylim=(bottom, top))
    for name, table in tables.items():
        precision, label, colour = SERIES[name]
        peak = peaks.get(precision)
        if peak:
            knee = max(peak / peaks["copy"], left)
            axes.plot([knee, right], [peak, peak], color=colour, linewidth=1.2, zorder=1)
            axes.annotate(
                f"{label} peak {peak:.0f}",
                *((right, peak), (-4, 3), "data", "offset points"),
                color=colour,
                ha="right",
                fontsize=9,
            )
        for marker, pointwise in ((OTHER, False), (POINTWISE, True)):
            shown = [layer for layer in table["layers"] if (layer["taps"] == 1) == pointwise]
            axes.scatter(
                [layer["intensity"] for layer in shown],
                [layer["gflops"] for layer in shown],
                s=[max(AREA * layer["ms"] / table["ms"], 6.0) for layer in shown],
                marker=marker,
                color=colour,
                alpha=0.55,
                linewidths=0,
                zorder=2,
            )
    if peaks.get("copy"):
        _draw_bandwidth(axes, peaks["copy"], left, top)
    _finish(figure, axes, report)
    target.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(target)


def _peaks_of(peaks: dict[str, Any], tables: dict[str, Any]) -> list[float]:
    return [peaks.get(SERIES[name][0], 0.0) for name in tables]


def _draw_bandwidth(axes: Any, bandwidth: float, left: float, top: float) -> None:
    """The slanted line: what memory can feed."""
    line = ([left, top / bandwidth], [left * bandwidth, top])
    label = f"memory: {bandwidth:.0f} GB/s, copy"
    axes.plot(*line, color="0.35", linewidth=1.2, zorder=1, label=label)


def _finish(figure: Any, axes: Any, report: dict[str, Any]) -> None:
    """Title, legend, axes."""
    for name, table in report["layers"].items():
        _, label, colour = SERIES[name]
        share = table.get("share_of_limit")
        limit = "" if share is None else f", {100 * share:.0f} % of the limit"
        text = f"{label}: {table['ms']:.0f} ms, {table['gflops']:.0f} GFLOP/s{limit}"
        axes.scatter([], [], color=colour, alpha=0.55, linewidths=0, s=60, label=text)
    axes.scatter([], [], color="0.5", marker=POINTWISE, s=30, label="one tap (1x1x1)")
    figure.legend(loc="outside lower center", ncols=2, fontsize=9, frameon=False)
    machine, arguments = report["machine"], report["arguments"]
    axes.set_title(
        f"Convolutions of MinkUNet {arguments['width']:g}x on {report['scenes'][0]['name']}, "
        f"{report['scenes'][0]['voxels']:,} voxels\n"
        f"{machine['cpu']}, {arguments['threads']} threads, {machine['pointlib_instructions']}",
        fontsize=11,
    )
    axes.set_xlabel("operations / byte of inputs, outputs, weight and map")
    axes.set_ylabel("10$^9$ operations / s (area: share of the time)")
    axes.grid(True, which="major", color="0.9")
    axes.set_axisbelow(True)


def main() -> None:
    """Read the command line and draw."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("report", type=Path, help="JSON of cpu_engine.py")
    parser.add_argument("picture", type=Path, help="PNG to write")
    args = parser.parse_args()
    report = json.loads(args.report.read_text(encoding="utf-8"))
    if not report.get("layers"):
        parser.error(f"{args.report} must hold layers; measure them: cpu_engine.py --cases layers")
    draw(report, args.picture)
    print(f"written: {args.picture}")


if __name__ == "__main__":
    main()
