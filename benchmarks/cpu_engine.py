"""The CPU engine beside its peers, in one process, on the same threads, with interleaved calls.

    python benchmarks/cpu_engine.py                  # everything but the sweep; about ten minutes on two cores
    python benchmarks/cpu_engine.py --quick          # does it run at all
    python benchmarks/cpu_engine.py --profile --cases minkunet

What is measured and how to read it stands in benchmarks/README.md.
"""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path

ROOT = Path(__file__).parents[1]
CASES = ("maps", "conv", "minkunet", "memory")
PEER_NAMES = ("pointlib", "spconv", "torch")


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--peers", nargs="+", choices=PEER_NAMES, default=list(PEER_NAMES), help="engines to run")
    add("--cases", nargs="+", choices=CASES, default=list(CASES), help="what to time")
    add("--channels", nargs="+", type=int, default=[32, 64, 96, 128, 256], help="of the layers")
    add("--rounds", type=int, default=5, help="each call is timed 2 x ROUNDS times, A B B A")
    add("--threads", type=int, default=len(os.sched_getaffinity(0)), help="of torch and numba")
    add("--scan", type=Path, help="a .bin scan; default: SemanticKITTI 00/000000, else synthetic")
    add("--width", type=float, default=1.0, help="cr of MinkUNet")
    add("--sweep", action="store_true", help="also 10,000 to 1,000,000 voxels")
    add("--profile", action="store_true", help="also where a MinkUNet forward spends its time")
    add("--quick", action="store_true", help="one round, two widths, MinkUNet at cr 0.5")
    default = ROOT / "benchmarks" / "results" / "cpu_engine.json"
    add(
        "--output",
        type=Path,
        default=default,
        help="the JSON; --quick writes none unless it is named",
    )
    add("--memory-of", choices=PEER_NAMES, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.quick:
        args.rounds, args.channels, args.width = 1, [32, 64], 0.5
        if args.output == default:
            args.output = None
    return args


def main() -> None:
    args = parse_arguments()
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS"):
        os.environ[name] = str(args.threads)  # read when the libraries are imported, below
    import suite
    import torch

    torch.set_num_threads(args.threads)
    if args.memory_of:
        print(json.dumps(suite.memory_of(args.memory_of, args)))
    else:
        suite.run(args)


if __name__ == "__main__":
    main()
