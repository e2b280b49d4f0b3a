"""The CPU engine beside its peers, in one process, on the same threads, with interleaved calls.

    python benchmarks/cpu_engine.py --sweep --profile    # everything; under half an hour on two cores
    python benchmarks/cpu_engine.py --quick              # does it run at all
    python benchmarks/cpu_engine.py --profile --cases minkunet --output profile.json

What is measured and how to read it stands in benchmarks/README.md.
"""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path

ROOT = Path(__file__).parents[1]
CASES = ("maps", "conv", "minkunet", "training", "layers", "memory")
PEER_NAMES = ("pointlib", "pointlib-bf16", "pointlib-int8", "spconv", "torch")


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--peers", nargs="+", choices=PEER_NAMES, default=list(PEER_NAMES), help="engines to run")
    add("--cases", nargs="+", choices=CASES, default=list(CASES), help="what to measure")
    add("--channels", nargs="+", type=int, default=[32, 64, 96, 128, 256], help="of the layers")
    add("--rounds", type=int, default=5, help="each call is timed 2 x ROUNDS times, A B B A")
    add("--threads", type=int, default=len(os.sched_getaffinity(0)), help="of everything")
    add("--scan", type=Path, nargs="+", help="one .bin scan, or two for the batch of two")
    add("--scenes", type=int, choices=(1, 2), default=2, help="1: the real scan alone")
    add("--width", type=float, default=1.0, help="cr of MinkUNet")
    add("--sweep", action="store_true", help="also 10,000 to 1,000,000 voxels")
    add("--profile", action="store_true", help="also where inference and training spend their time")
    add("--quick", action="store_true", help="one round, small scenes, MinkUNet at cr 0.5")
    add("--default-malloc", action="store_true", help="hand freed memory back, as tools/ do not")
    default = ROOT / "benchmarks" / "results" / "cpu_engine.json"
    note = "the JSON; --quick writes none unless it is named"
    add("--output", type=Path, default=default, help=note)
    add("--memory-of", choices=PEER_NAMES, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.scan is not None and len(args.scan) > 2:
        parser.error("--scan takes one scan or two")
    if args.quick:
        args.rounds, args.channels, args.width = 1, [32, 64], 0.5
        if args.output == default:
            args.output = None
    return args


def main() -> None:
    """Set the threads before anything reads them, then measure."""
    args = parse_arguments()
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS"):
        os.environ[name] = str(args.threads)  # read when the libraries are imported, below
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # the profiler's notes of its own doings
    import memory
    import suite
    import torch

    from pointlib.ops.memory import keep_freed_memory

    torch.set_num_threads(args.threads)
    if not args.default_malloc:
        keep_freed_memory()
    if args.memory_of:
        print(json.dumps(memory.memory_of(args.memory_of, args)))
    else:
        suite.run(args)


if __name__ == "__main__":
    main()
