"""Draw scans: from above (bev), as the sensor sees them (range), truth beside prediction with the errors in red.

python tools/visualize.py SCAN.bin --labels SCAN.label --out picture.png --view both
python tools/visualize.py SCAN.bin --labels SCAN.label --prediction GUESS.label --out picture.png
python tools/visualize.py DATASET --sequences 08 --predictions PREDICTIONS --every 10 --out pictures/
python tools/visualize.py SCAN.pcd --interactive
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path


def main(argv: Sequence[str] | None = None) -> int:
    """Draw what is asked for and return the exit code: 0, or 2 for wrong arguments and unusable files."""
    parser = _parser()
    args = parser.parse_args(argv)
    if args.out is None and not args.interactive:
        parser.error("--out (a picture, or a folder for several) or --interactive is needed")
    try:
        for path in _draw(args):
            print(path)
    except (ValueError, OSError, ImportError, RuntimeError) as error:
        print(f"visualize.py: {error}", file=sys.stderr)
        return 2
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "input",
        type=Path,
        help="a scan (.bin, .npy, .pcd, .ply), a sequence folder, or the root of a SemanticKITTI tree",
    )
    parser.add_argument("--labels", type=Path, help=".label file of the scan: the truth")
    parser.add_argument("--prediction", type=Path, help=".label file of the scan: the prediction")
    parser.add_argument(
        "--predictions",
        type=Path,
        help="for a folder: root of sequences/XX/predictions/NNNNNN.label (default: beside the scans)",
    )
    parser.add_argument(
        "--sequences", nargs="+", metavar="XX", help="for a root: only these sequences"
    )
    parser.add_argument(
        "--every",
        type=int,
        default=1,
        metavar="N",
        help="for a folder: every N-th scan (default: 1)",
    )
    parser.add_argument(
        "--out",
        type=Path,
        help="the picture (.png, .pdf, .svg, .jpg); for a folder: a folder for PNGs",
    )
    parser.add_argument(
        "--view",
        choices=("bev", "range", "both"),
        default="bev",
        help="what to draw (default: bev)",
    )
    parser.add_argument(
        "--extent", type=float, default=50.0, help="metres shown to each side in bev (default: 50)"
    )
    parser.add_argument(
        "--label-map",
        default="official",
        help="official, spvnas or a YAML file (default: official)",
    )
    parser.add_argument(
        "--dpi", type=int, default=120, help="pixels an inch of the pictures (default: 120)"
    )
    parser.add_argument(
        "--interactive",
        action="store_true",
        help='open a window to turn the scan in; needs pip install "pointlib[viz]" and a display',
    )
    return parser


def _draw(args: argparse.Namespace) -> list[Path]:
    from pointlib.viz import gallery, save_figure

    if args.input.is_dir():
        if args.labels or args.prediction:
            raise ValueError(
                "--labels and --prediction belong to one scan; for a folder pass --predictions ROOT"
            )
        scans = gallery.find_scans(
            args.input, sequences=args.sequences, every=args.every, predictions=args.predictions
        )
    else:
        scans = [gallery.ScanFiles(args.input.stem, args.input, args.labels, args.prediction)]
    if args.interactive:
        gallery.show_scan(scans[0], label_map=args.label_map)
    if args.out is None:
        return []
    options = {"view": args.view, "extent": args.extent, "label_map": args.label_map}
    if args.input.is_dir():
        return gallery.draw_scans(scans, args.out, dpi=args.dpi, **options)
    return [save_figure(gallery.draw_scan(scans[0], **options), args.out, args.dpi)]


if __name__ == "__main__":
    sys.exit(main())
