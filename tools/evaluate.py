"""Score a checkpoint on a data set, as semantic-kitti-api does, and write predictions in the benchmark's layout.

    python tools/evaluate.py --checkpoint runs/demo --data.root DIR [--split val] [--tta] [--out DIR]

Prints per-class IoU and the latency of each stage; the same as JSON in OUT/scores.json (else beside the checkpoint).
With --out, predictions go to OUT/sequences/XX/predictions/NNNNNN.label.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal

import torch
from tqdm import tqdm

from pointlib.data import SemanticKITTI
from pointlib.engine.config_parser import ConfigParser
from pointlib.engine.evaluator import Precision, evaluate, write_report
from pointlib.models.checkpoint import read_checkpoint
from pointlib.ops.memory import keep_freed_memory


def build_parser() -> ConfigParser:
    """All options."""
    parser = ConfigParser(prog="evaluate.py", description=__doc__)
    add = parser.add_argument
    add("--checkpoint", type=str, required=True, help="A checkpoint, or the folder of a run.")
    add("--data.root", type=str, required=True, help="Folder that holds sequences/.")
    add("--data.label_map", type=str | None, default=None, help="Default: as in training.")
    add("--split", type=str, default="val", help="val, train, test, or sequences: 08,10.")
    add("--tta", action="store_true", help="Average eight turned and mirrored views.")
    add("--out", type=str | None, default=None, help="Folder for predictions and scores.json.")
    add("--absent", type=Literal["zero", "one"], default="zero", help="IoU of absent classes.")
    add("--precision", type=Precision, default="fp32", help="Precision of the network.")
    add("--device", type=str, default="auto", help="auto, cpu, cuda, cuda:1 ...")
    add("--num_workers", type=int, default=2, help="Processes that read and voxelize.")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Evaluates and returns the exit status."""
    options = build_parser().parse_args(list(sys.argv[1:] if argv is None else argv))
    try:
        checkpoint = read_checkpoint(options.checkpoint)
        trained_with = checkpoint.info.config.get("data", {})
        split = options.split.split(",") if options.split[0].isdigit() else options.split
        scans = SemanticKITTI(
            options.data.root,
            split,
            label_map=options.data.label_map or trained_with.get("label_map", "official"),
            unknown_labels=trained_with.get("unknown_labels", "raise"),
        )
        device = options.device
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        out = Path(options.out) if options.out else None
        result = evaluate(
            checkpoint,
            scans,
            device=device,
            tta=options.tta,
            precision=options.precision,
            absent=options.absent,
            num_workers=options.num_workers,
            predictions=out,
            progress=_progress_bar,
        )
        report = (out or Path(checkpoint.path).parent) / "scores.json"
        about = {
            "checkpoint": checkpoint.path,
            "network": checkpoint.info.describe(),
            "split": options.split,
            "label_map": scans.label_map.name,
            "tta": options.tta,
            "absent": options.absent,
            "precision": options.precision,
            "device": device,
        }
        write_report(report, result, about)
    except (OSError, ValueError, TypeError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"{checkpoint.info.describe()}, {result.num_scans} scans of split {options.split}\n")
    if result.scores is not None:
        print(result.scores.table() + "\n")
    print(result.latency.table())
    print(f"\nwritten: {report}" + (f", {out}/sequences" if out else ""))
    return 0


def _progress_bar(steps: Iterator[int], total: int) -> Iterator[int]:
    yield from tqdm(steps, total=total, unit="scan", desc="evaluate")


if __name__ == "__main__":
    keep_freed_memory()
    sys.exit(main())
