"""Find the fastest dataflow of every sparse convolution of a network on this machine, and explain the choices.

    python tools/tune.py --config configs/semantic_kitti/minkunet_cr1p0.yaml [--data.root DIR] [--backward]

Times a handful of candidates per layer on real scans and keeps what it finds in the cache folder, where training,
evaluation and prediction on this machine find it. Where the data set of the config is not there, synthetic scans of a
64-beam sensor stand in for it, which the first line says.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from pointlib.data import SemanticKITTI, VoxelizeSegmentation, collate_segmentation
from pointlib.data.synthetic import generate_dataset
from pointlib.engine import load_config
from pointlib.engine.config_parser import ConfigParser
from pointlib.engine.segmentation_sources import open_scans
from pointlib.models import create_model
from pointlib.ops import best_device
from pointlib.ops.memory import keep_freed_memory
from pointlib.ops.tune import tune

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def build_parser() -> ConfigParser:
    """All options."""
    parser = ConfigParser(prog="tune.py", description=__doc__)
    add = parser.add_argument
    add("--config", type=str, required=True, help="Configuration that names the network and data.")
    add("--data.root", type=str | None, default=None, help="Folder that holds sequences/.")
    add("--split", type=str | None, default=None, help="val, train, or sequences: 08,10.")
    add("--num_samples", type=int, default=3, help="Batches to look at.")
    add("--batch_size", type=int, default=1, help="Scans per batch.")
    add("--backward", action="store_true", help="Tune the gradients too, as training needs them.")
    add("--precision", type=Literal["fp32", "bf16", "fp16"], default="fp32", help="Of features.")
    add("--device", type=str, default="auto", help="auto, cpu, cuda, cuda:1 ...")
    add("--dry_run", action="store_true", help="Print the choices and keep none.")
    return parser


def batches(
    config: dict[str, Any], root: str | None, split: str | None, count: int, size: int
) -> Iterator[Any]:
    """Batches of the validation split, voxelized as the config says; synthetic ones where there is no data set."""
    data = config["data"]
    folder = Path(root or data["root"])
    with tempfile.TemporaryDirectory() as scratch:
        part: Any = data["val_split"]
        if split is not None:
            part = split.split(",") if split[0].isdigit() else split
        scans: Any
        if data["dataset"] != "semantic_kitti" and folder.is_dir():
            keys = ("label_map", "version", "num_frames", "frames", "sensor")
            scans = open_scans(data["dataset"], str(folder), part, **{k: data[k] for k in keys})
        elif (folder / "sequences").is_dir():
            scans = SemanticKITTI(folder, part, with_labels=False)
        elif root is not None:
            raise FileNotFoundError(
                f"tune: --data.root must hold sequences/, got {folder}. Leave it out to tune on synthetic scans."
            )
        else:
            print(f"no data set at {folder}: tuning on synthetic scans", flush=True)
            generate_dataset(Path(scratch), sequences={"00": count * size}, seed=0, workers=1)
            scans = SemanticKITTI(scratch, ["00"], with_labels=False)
        voxelize = VoxelizeSegmentation(data["voxel_size"], data["max_voxels"])
        step = max(len(scans) // (count * size), 1)
        rng = np.random.default_rng(0)
        chosen = range(0, min(len(scans), step * count * size), step)
        samples = (voxelize(scans[i], rng) for i in chosen)
        while batch := [s for _, s in zip(range(size), samples, strict=False)]:
            yield collate_segmentation(batch)


def main(argv: Sequence[str] | None = None) -> int:
    """Tunes and returns the exit status."""
    options = build_parser().parse_args(list(sys.argv[1:] if argv is None else argv))
    try:
        config = load_config(options.config)
        model = config["model"]
        device = best_device() if options.device == "auto" else torch.device(options.device)
        dtype, count = DTYPES[options.precision], options.num_samples
        network = create_model(model["network"], **model["network_args"])
        with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
            report = tune(
                network.to(device).train(options.backward),
                batches(config, options.data.root, options.split, count, options.batch_size),
                num_samples=count,
                prepare=lambda batch: batch.voxels.to(device),
                backward=options.backward,
                save=not options.dry_run,
            )
    except (OSError, RuntimeError, ValueError, TypeError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(report.table())
    print(f"kept: {report.file}" if report.file else "kept nothing")
    return 0


if __name__ == "__main__":
    keep_freed_memory()
    sys.exit(main())
