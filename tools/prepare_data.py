"""Prepare training data: check a SemanticKITTI tree, make synthetic scenes, convert range-image scans.

python tools/prepare_data.py check --root DIR
python tools/prepare_data.py synthetic --root DIR --sequences 00:40 08:10
python tools/prepare_data.py range-scans --source DIR --root DIR --held-out 000012 000013
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence


def main(argv: Sequence[str] | None = None) -> int:
    """Run one subcommand and return its exit code: 0, 1 for problems found, 2 for wrong arguments."""
    args = _parser().parse_args(argv)
    try:
        code: int = args.run(args)
    except (ValueError, OSError) as error:
        print(f"prepare_data.py {args.command}: {error}", file=sys.stderr)
        return 2
    return code


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="prepare_data.py",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True)

    check = commands.add_parser(
        "check", help="verify a SemanticKITTI tree; exit code 1 on problems"
    )
    check.add_argument("--root", required=True, help="folder of the data set")
    check.add_argument(
        "--sequences",
        nargs="+",
        metavar="XX",
        help="sequences that must be there (default: the training and validation splits)",
    )
    check.add_argument("--label-map", default="official", help="official, spvnas or a YAML file")
    check.add_argument("--workers", type=int, default=2, help="processes to read with (default: 2)")
    check.set_defaults(run=_check)

    synthetic = commands.add_parser("synthetic", help="ray-cast labelled street scenes")
    synthetic.add_argument("--root", required=True, help="folder to write the tree to")
    synthetic.add_argument(
        "--sequences",
        nargs="+",
        type=_sequence_and_count,
        default=[("00", 40), ("08", 10)],
        metavar="XX:N",
        help="sequences and their number of scans (default: 00:40 08:10)",
    )
    synthetic.add_argument(
        "--seed", type=int, default=0, help="same seed, same scenes (default: 0)"
    )
    synthetic.add_argument("--workers", type=int, default=2, help="processes (default: 2)")
    synthetic.add_argument("--beams", type=int, default=64, help="of the sensor (default: 64)")
    synthetic.add_argument(
        "--azimuth-steps", type=int, default=2160, help="firings a revolution (default: 2160)"
    )
    synthetic.add_argument(
        "--frame-stride",
        type=float,
        default=8.0,
        help="way between two scans in metres (default: 8)",
    )
    synthetic.add_argument(
        "--overwrite", action="store_true", help="replace scans made with other settings"
    )
    synthetic.set_defaults(run=_synthetic)

    convert = commands.add_parser("range-scans", help="labelled range-image .npz into a tree")
    convert.add_argument("--source", required=True, help="folder of NNNNNN.npz (xyzi, label)")
    convert.add_argument("--root", required=True, help="folder to write the tree to")
    convert.add_argument(
        "--held-out", nargs="*", default=[], metavar="NNNNNN", help="scans that go to sequence 08"
    )
    convert.add_argument(
        "--labelled-tree", help="SemanticKITTI tree whose labelled scans of sequence 00 are added"
    )
    convert.set_defaults(run=_range_scans)
    return parser


def _sequence_and_count(text: str) -> tuple[str, int]:
    name, colon, count = text.partition(":")
    if not (colon and name.isdigit() and len(name) >= 2 and count.isdigit() and int(count) > 0):
        raise argparse.ArgumentTypeError(
            f"must be a sequence and its scans, as 00:40, got {text!r}"
        )
    return name, int(count)


def _check(args: argparse.Namespace) -> int:
    from pointlib.data.kitti_check import check_tree, format_reports

    reports = check_tree(args.root, args.sequences, args.label_map, args.workers)
    print(format_reports(reports))
    return int(any(report.problems for report in reports))


def _synthetic(args: argparse.Namespace) -> int:
    from pointlib.data.synthetic import generate_dataset

    generate_dataset(
        args.root,
        dict(args.sequences),
        seed=args.seed,
        beams=args.beams,
        azimuth_steps=args.azimuth_steps,
        frame_stride_m=args.frame_stride,
        workers=args.workers,
        overwrite=args.overwrite,
    )
    return 0


def _range_scans(args: argparse.Namespace) -> int:
    from pointlib.data.range_scans import write_range_tree

    written = write_range_tree(args.source, args.root, args.held_out, args.labelled_tree)
    for sequence, sources in written.items():
        for number, source in enumerate(sources):
            print(f"{sequence}/{number:06d}  {source}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
