"""Prepare training data: check a data set and index it, make synthetic scenes, convert range-image scans.

python tools/prepare_data.py check --root DIR
python tools/prepare_data.py synthetic --root DIR --sequences 00:40 08:10
python tools/prepare_data.py range-scans --source DIR --root DIR --held-out 000012 000013
python tools/prepare_data.py synthetic-nuscenes --root DIR --version v1.0-mini --scenes 4
python tools/prepare_data.py nuscenes --root DIR --version v1.0-trainval
python tools/prepare_data.py paste-database --root DIR --folder DIR/paste_database
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
    except (ValueError, OSError, ImportError) as error:
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
    _add_synthetic_nuscenes(commands)

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

    nuscenes = commands.add_parser(
        "nuscenes", help="index nuScenes and look for its files; exit code 1 if some are missing"
    )
    nuscenes.add_argument("--root", required=True, help="folder of samples/, sweeps/ and version")
    nuscenes.add_argument(
        "--version", default="v1.0-trainval", help="of the tables (default: v1.0-trainval)"
    )
    nuscenes.add_argument(
        "--index-folder", help="where the index is kept (default: pointlib_index in the root)"
    )
    nuscenes.add_argument(
        "--check-files", action="store_true", help="read every file too: this takes hours"
    )
    nuscenes.add_argument(
        "--ignore",
        nargs="+",
        default=[],
        choices=("sweeps", "cameras", "labels"),
        help="files that you did not download on purpose",
    )
    nuscenes.add_argument("--workers", type=int, default=2, help="processes to read with")
    nuscenes.set_defaults(run=_nuscenes)

    paste = commands.add_parser(
        "paste-database", help="cut out the objects of training samples, for ground-truth paste"
    )
    paste.add_argument("--dataset", default="nuscenes", choices=("nuscenes", "pandaset"))
    paste.add_argument("--root", required=True, help="folder of the data set")
    paste.add_argument("--folder", required=True, help="to write the database to")
    paste.add_argument(
        "--version", default="v1.0-trainval", help="of nuScenes (default: v1.0-trainval)"
    )
    paste.add_argument(
        "--split", default="train", help="samples to cut objects from (default: train)"
    )
    paste.add_argument(
        "--sequences", nargs="+", metavar="NNN", help="of PandaSet, in place of a split"
    )
    paste.add_argument(
        "--num-sweeps", type=int, default=10, help="clouds a sample, as in training (default: 10)"
    )
    paste.add_argument(
        "--min-points", type=int, default=5, help="of an object over all sweeps (default: 5)"
    )
    paste.add_argument("--workers", type=int, default=2, help="processes (default: 2)")
    paste.add_argument(
        "--skip-bad-samples", action="store_true", help="go on without samples that are broken"
    )
    paste.add_argument("--overwrite", action="store_true", help="replace another database")
    paste.set_defaults(run=_paste_database)
    return parser


def _add_synthetic_nuscenes(commands: argparse._SubParsersAction) -> None:
    made = commands.add_parser(
        "synthetic-nuscenes", help="render a nuScenes data set of streets: LiDAR, cameras, maps"
    )
    made.add_argument("--root", required=True, help="folder to write the data set to")
    made.add_argument("--version", default="v1.0-mini", help="v1.0-mini or v1.0-trainval")
    made.add_argument(
        "--scenes",
        nargs="+",
        default=["4"],
        help="how many, a quarter of them for validation, or their names (default: 4)",
    )
    made.add_argument(
        "--samples-per-scene", type=int, default=10, help="key frames of a scene (default: 10)"
    )
    made.add_argument("--seed", type=int, default=0, help="same seed, same data (default: 0)")
    made.add_argument("--workers", type=int, default=2, help="processes (default: 2)")
    made.add_argument(
        "--image-size",
        nargs=2,
        type=int,
        default=(400, 225),
        metavar=("W", "H"),
        help="of the camera images in pixels; 1600 900 is the original's (default: 400 225)",
    )
    made.add_argument(
        "--sweeps", type=int, default=9, help="LiDAR sweeps between key frames (default: 9, 20 Hz)"
    )
    made.add_argument("--beams", type=int, default=32, help="of the LiDAR (default: 32)")
    made.add_argument(
        "--azimuth-steps", type=int, default=1084, help="firings a revolution (default: 1084)"
    )
    made.set_defaults(run=_synthetic_nuscenes)


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


def _synthetic_nuscenes(args: argparse.Namespace) -> int:
    from pointlib.data.synthetic_nuscenes import generate_nuscenes

    counted = len(args.scenes) == 1 and args.scenes[0].isdigit()
    generate_nuscenes(
        args.root,
        args.version,
        int(args.scenes[0]) if counted else args.scenes,
        args.samples_per_scene,
        seed=args.seed,
        workers=args.workers,
        image_size=tuple(args.image_size),
        sweeps=args.sweeps,
        beams=args.beams,
        azimuth_steps=args.azimuth_steps,
    )
    return 0


def _range_scans(args: argparse.Namespace) -> int:
    from pointlib.data.range_scans import write_range_tree

    written = write_range_tree(args.source, args.root, args.held_out, args.labelled_tree)
    for sequence, sources in written.items():
        for number, source in enumerate(sources):
            print(f"{sequence}/{number:06d}  {source}")
    return 0


def _nuscenes(args: argparse.Namespace) -> int:
    from pointlib.data.nuscenes_check import check_files, format_files, format_summary
    from pointlib.data.nuscenes_index import load_index

    index = load_index(args.root, args.version, args.index_folder)
    reports = check_files(args.root, index, args.check_files, args.ignore, args.workers)
    print(format_summary(index, args.root))
    print(format_files(reports))
    return int(any(report.missing or report.broken for report in reports))


def _paste_database(args: argparse.Namespace) -> int:
    from pointlib.data.multi_sensor import MultiSensorSource
    from pointlib.data.paste_database import build_paste_database

    source: MultiSensorSource
    origin = {"dataset": args.dataset, "split": args.split, "num_sweeps": args.num_sweeps}
    if args.dataset == "pandaset":
        from pointlib.data.pandaset import PandaSet

        split = args.sequences or args.split
        origin["split"] = " ".join(args.sequences or [args.split])
        source = PandaSet(args.root, split, sweeps=args.num_sweeps, cameras=False)
    else:
        from pointlib.data.nuscenes import NuScenes

        origin["version"] = args.version
        source = NuScenes(
            args.root, args.version, args.split, num_sweeps=args.num_sweeps, cameras=False
        )
    database = build_paste_database(
        source,
        args.folder,
        min_points=args.min_points,
        origin=origin,
        workers=args.workers,
        on_bad_sample="skip" if args.skip_bad_samples else "raise",
        overwrite=args.overwrite,
    )
    print(database.summary())
    return 0


if __name__ == "__main__":
    sys.exit(main())
