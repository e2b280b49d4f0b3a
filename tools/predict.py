"""Label the points of a file (.bin, .pcd, .npy, .ply) or of every such file in a folder.

    python tools/predict.py --checkpoint runs/demo --input scan.pcd --out DIR [--pictures]

Writes one .label file (uint32 raw class ids, the benchmark's format) per point cloud.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from tqdm import tqdm

from pointlib.deploy import find_point_clouds, load_predictor, predict_files
from pointlib.engine.config_parser import ConfigParser
from pointlib.ops.memory import keep_freed_memory
from pointlib.viz import birds_eye, save_figure


def build_parser() -> ConfigParser:
    """All options."""
    parser = ConfigParser(prog="predict.py", description=__doc__)
    add = parser.add_argument
    add("--checkpoint", type=str, required=True, help="A checkpoint, or the folder of a run.")
    add("--input", type=str, required=True, help="A point cloud, or a folder of them.")
    add("--out", type=str, required=True, help="Folder for the .label files.")
    add("--pictures", action="store_true", help="Also draw each cloud from above, as PNG.")
    add("--device", type=str, default="auto", help="auto, cpu, cuda, cuda:1 ...")
    add("--columns", type=int, default=4, help="float32 values of a point in a .bin.")
    add("--intensity_field", type=str | None, default=None, help="Its name in .pcd and .ply.")
    add("--full_intensity", type=float, default=1.0, help="Its largest value; nuScenes: 255.")
    add("--missing_intensity", type=float | None, default=None, help="Used where there is none.")
    add(
        "--nonfinite",
        type=Literal["raise", "drop"],
        default="raise",
        help="What NaN points do; dropped ones get no label.",
    )
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Predicts and returns the exit status."""
    options = build_parser().parse_args(list(sys.argv[1:] if argv is None else argv))
    try:
        sources = find_point_clouds(options.input)
        root = Path(options.input) if Path(options.input).is_dir() else sources[0].parent
        predicted = predict_files(
            load_predictor(options.checkpoint, options.device),
            sources,
            root,
            Path(options.out),
            full_intensity=options.full_intensity,
            columns=options.columns,
            intensity_field=options.intensity_field,
            missing_intensity=options.missing_intensity,
            nonfinite=options.nonfinite,
        )
        for file in tqdm(predicted, total=len(sources), unit="cloud", desc="predict"):
            if options.pictures:
                picture = birds_eye(file.points, file.prediction.labels, title=file.source.name)
                save_figure(picture, file.target.with_suffix(".png"))
    except (OSError, ValueError, TypeError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"{len(sources)} point clouds labelled in {options.out}")
    return 0


if __name__ == "__main__":
    keep_freed_memory()
    sys.exit(main())
