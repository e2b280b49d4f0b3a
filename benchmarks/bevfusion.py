"""The full-size BEVFusion detector on a real nuScenes sample: time and memory of each stage, parameters and products.

bevfusion_det_cl as published: six images of 256 x 704, points in voxels of 0.075 m, Swin-T, 200 queries. Two cases:

key frame    the sample as recorded: six images, one sweep, its boxes as targets
ten sweeps   the same images and boxes with a cloud of ten sweeps, which is what published times are for. The only such
             cloud at hand is of another scene; it loads the LiDAR branch as in service, its boxes mean nothing

Inference is what stands between the sensors' files and boxes, stage by stage; `end_to_end` is measured by itself, from
tensors to boxes, voxelization and kernel maps included and reading files not. `view transform` sorts the pixels' depths
into cells only when the calibration changes; `new calibration` is its time when it does. A training step is forward,
loss (with the matching of queries to boxes) and backward, without the optimizer. Each case runs in a process of its
own. `cpu_ms` is what all threads of the process worked; others on the machine disturb it less. Memory is the peak of
what is resident on the CPU, libraries included, and of torch's allocations on a GPU. GMACs are those of convolutions,
linear layers and attention, the padding of windows and images included.

    python benchmarks/bevfusion.py                  # eight minutes on two cores; writes results/bevfusion_cpu.json
    python benchmarks/bevfusion.py --device cuda    # results/bevfusion_cuda.json
    python benchmarks/bevfusion.py --quick          # the key frame, once; writes nothing unless told where

The data (scene0061_kf0 and nvidia_10sweep below nuscenes/) is not part of this repository; --data or
POINTLIB_TEST_DATA names its folder. Without it the sample is made up, which the result says.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from datetime import date
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
CASES = ("key frame", "ten sweeps")


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--device", default="cpu", choices=("cpu", "cuda"), help="what runs the network")
    add("--data", type=Path, default=default_data(), help="folder with nuscenes/scene0061_kf0")
    add("--rounds", type=int, default=5, help="forward passes that are timed; the median counts")
    add("--threads", type=int, default=len(os.sched_getaffinity(0)), help="of everything")
    add("--recompute", action="store_true", help="recompute Swin's blocks in the backward pass")
    add("--autocast", action="store_true", help="bfloat16 where torch.autocast allows it")
    add("--quick", action="store_true", help="the key frame, first calls only, no file by default")
    add("--output", type=Path, help="JSON to write; by default results/bevfusion_DEVICE.json")
    add("--case", choices=CASES, help=argparse.SUPPRESS)  # the process of one case
    return parser.parse_args()


def default_data() -> Path:
    """Where tests look for real data too."""
    return Path(os.environ.get("POINTLIB_TEST_DATA") or ROOT.parent / "shared" / "data")


def main() -> None:
    """Measure one case, or run a process for each and join what they wrote."""
    args = parse_arguments()
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS"):
        os.environ[name] = str(args.threads)  # read when the libraries are imported, below
    if args.case:
        import bevfusion_stages

        write(args.output, bevfusion_stages.measure(args))
        return
    import measurement
    import torch

    torch.set_num_threads(args.threads)
    result: dict[str, Any] = {
        "what": " ".join((__doc__ or "").split()),
        "date": date.today().isoformat(),
        "commit": measurement.commit(ROOT),
        "machine": measurement.machine_facts(),
        "device": torch.cuda.get_device_name() if args.device == "cuda" else "cpu",
        "options": {"recompute": args.recompute, "autocast": args.autocast, "rounds": args.rounds},
        "cases": {case: run_case(case) for case in CASES[: 1 if args.quick else None]},
    }
    for case, facts in result["cases"].items():
        print(f"\n{case}\n{table(facts)}")
    output = args.output
    if output is None and not args.quick:
        output = ROOT / "benchmarks" / "results" / f"bevfusion_{args.device}.json"
    if output is not None:
        write(output, result)


def run_case(case: str) -> dict[str, Any]:
    """This script again, for one case."""
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "case.json"
        command = [sys.executable, __file__, *sys.argv[1:], "--case", case, "--output", str(output)]
        subprocess.run(command, check=True)
        facts: dict[str, Any] = json.loads(output.read_text())
    return facts


def write(path: Path, content: dict[str, Any]) -> None:
    """A JSON file, whole or not at all."""
    unfinished = path.with_suffix(".unfinished")
    unfinished.write_text(json.dumps(content, indent=1) + "\n")
    unfinished.replace(path)


def table(facts: dict[str, Any]) -> str:
    """Stages below each other."""
    columns = ("ms", "cpu_ms", "peak_mib", "gmacs", "parameters")
    lines = [f"{'stage':18}" + "".join(f"{column:>12}" for column in columns)]
    inference, training = facts["inference"], facts["training"]
    rows = {**inference["stages"], "end to end": inference["end_to_end"], **training["steps"]}
    for name, row in rows.items():
        numbers = [row.get(column) for column in columns]
        lines.append(
            f"{name:18}" + "".join(f"{'' if n is None else f'{n:,}':>12}" for n in numbers)
        )
    lines.append(
        f"{facts['parameters']:,} parameters, {facts['gmacs']} GMACs; peak of inference "
        f"{inference['end_to_end_peak_mib']:,} MiB, of a training step {training['peak_mib']:,} MiB"
    )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
