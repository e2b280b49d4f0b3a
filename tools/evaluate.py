"""Score a checkpoint on a data set: points as semantic-kitti-api does, boxes with nuscenes-devkit, maps as BEVFusion.

    python tools/evaluate.py --checkpoint runs/demo --data.root DIR [--split val] [--tta] [--out DIR]
    python tools/evaluate.py --checkpoint runs/lidarseg --data.root DIR --data.version v1.0-mini
    python tools/evaluate.py --checkpoint runs/bev --data.root DIR --data.version v1.0-trainval --without camera
    python tools/evaluate.py --checkpoint bevfusion-det.pth --config configs/nuscenes/bevfusion_det_cl.yaml ...

Prints the scores and the latency of each stage; the same as JSON in OUT/scores.json (else beside the checkpoint).
With --out, predictions go to OUT in their benchmark's layout: labels of points to sequences/XX/predictions/NNNNNN.label
or (nuScenes) lidarseg/SPLIT/TOKEN_lidarseg.bin, boxes to results_nusc.json. The devkit scores nuScenes too.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal

import torch
from tqdm import tqdm

from pointlib.engine.config_parser import ConfigParser
from pointlib.engine.evaluate_command import evaluate_boxes_and_maps
from pointlib.engine.evaluate_points import evaluate_points
from pointlib.engine.evaluator import Precision
from pointlib.engine.multi_sensor_sources import DatasetName
from pointlib.engine.published import published_checkpoint
from pointlib.engine.segmentation_sources import ScanDatasetName
from pointlib.metrics.segmentation import AbsentRule
from pointlib.models.checkpoint import read_checkpoint
from pointlib.ops.memory import keep_freed_memory
from pointlib.viz import draw_prediction


def build_parser() -> ConfigParser:
    """All options."""
    parser = ConfigParser(prog="evaluate.py", description=__doc__)
    add = parser.add_argument
    add("--checkpoint", type=str, required=True, help="A checkpoint, or the folder of a run.")
    add("--config", type=str | None, default=None, help="Of published weights: their network.")
    add("--data.root", type=str, required=True, help="Folder of the data set.")
    datasets = ScanDatasetName | DatasetName | None
    add("--data.dataset", type=datasets, default=None, help="Default: training's.")
    add("--data.version", type=str | None, default=None, help="Of nuScenes; default: training's.")
    add("--data.label_map", type=str | None, default=None, help="Default: as in training.")
    add("--split", type=str | None, default=None, help="val, train, test, or sequences: 08,10.")
    add("--tta", action="store_true", help="Average eight turned and mirrored views (points).")
    add("--without", nargs="*", type=Literal["camera", "lidar"], default=[], help="Take away.")
    add("--compare", action="store_true", help="Also each sensor alone, and an untrained network.")
    add("--out", type=str | None, default=None, help="Folder for predictions and scores.json.")
    add("--pictures", type=int, default=0, help="Samples to draw into OUT/pictures (boxes, maps).")
    add("--score_threshold", type=float, default=0.2, help="Of the boxes that are drawn.")
    add("--absent", type=AbsentRule | None, default=None, help="Default: the benchmark's rule.")
    add("--precision", type=Precision, default="fp32", help="Precision of the network.")
    add("--device", type=str, default="auto", help="auto, cpu, cuda, cuda:1 ...")
    add("--num_workers", type=int, default=2, help="Processes that read and prepare.")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Evaluates and returns the exit status."""
    options = build_parser().parse_args(list(sys.argv[1:] if argv is None else argv))
    if options.device == "auto":
        options.device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        if options.config is None:
            checkpoint = read_checkpoint(options.checkpoint)
        else:
            checkpoint = published_checkpoint(options.checkpoint, options.config)
        out = Path(options.out) if options.out else None
        if checkpoint.info.task == "segmentation":
            lines = evaluate_points(checkpoint, options, out, _progress_bar)
        else:
            lines = evaluate_boxes_and_maps(
                checkpoint, options, out, _progress_bar, draw_prediction
            )
    except (OSError, ValueError, TypeError, ImportError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print("\n".join(lines))
    return 0


def _progress_bar(steps: Iterator[int], total: int) -> Iterator[int]:
    yield from tqdm(steps, total=total, unit="scan", desc="evaluate")


if __name__ == "__main__":
    keep_freed_memory()
    sys.exit(main())
