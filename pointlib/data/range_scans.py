"""Range-image scans (.npz with points and learning_map ids) into a SemanticKITTI tree.

PCLSegmentation publishes a few labelled SemanticKITTI scans as 64 x 1024 range images, which keep about 41 % of the
points. As .npz, each holds `xyzi` (N, 4) float32 and `label` (N,) uint8 of the 20-class benchmark map (0 ignored).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from pointlib.data.label_map import load_label_map
from pointlib.data.point_cloud_io import read_bin, write_points
from pointlib.data.sample import IGNORE_INDEX, BadSampleError
from pointlib.data.semantic_kitti import (
    find_sequences_dir,
    list_frames,
    read_labels,
    write_labels,
)


class LabelledScan(NamedTuple):
    """A scan with raw labels.

    Attributes:
        source: File it comes from.
        points: (N, 4) float32 x, y, z in metres, intensity.
        semantic: (N,) uint16 raw class ids.
    """

    source: Path
    points: npt.NDArray[np.float32]
    semantic: npt.NDArray[np.uint16]


def write_range_tree(
    source: str | Path,
    root: str | Path,
    held_out: Sequence[str] = (),
    labelled_tree: str | Path | None = None,
    train_sequence: str = "00",
    held_out_sequence: str = "08",
) -> dict[str, list[Path]]:
    """Write range scans as a SemanticKITTI tree; raw ids are the official map's inverse.

    Scans are numbered from 000000 in each sequence. There are no poses, as the numbers are not those of the drive.

    Args:
        source: Folder of NNNNNN.npz.
        root: Where the tree goes; scans of the same number are overwritten.
        held_out: Names (without suffix) of the scans that go to `held_out_sequence`.
        labelled_tree: A SemanticKITTI tree whose scans of `train_sequence` that have labels are added to the training
            sequence as they are, or None.
        train_sequence: Sequence of the other scans.
        held_out_sequence: Sequence of the held-out scans.

    Returns:
        Sequence -> the source of each scan, in order.

    Raises:
        ValueError: If there is no scan, or `held_out` names one that is not there.
        BadSampleError: If a file breaks the format.
    """
    files = sorted(Path(source).glob("*.npz"))
    if not files:
        raise ValueError(f"write_range_tree: source must hold .npz files, got none in {source}.")
    unknown = sorted(set(held_out) - {file.stem for file in files})
    if unknown:
        raise ValueError(
            f"write_range_tree: held_out must name scans of {source} ({files[0].stem} .. {files[-1].stem}), got "
            f"{', '.join(unknown)}."
        )
    train = [_read_range_scan(file) for file in files if file.stem not in held_out]
    if labelled_tree is not None:
        train += _read_labelled(labelled_tree, train_sequence)
    written = {train_sequence: _write(train, Path(root, "sequences", train_sequence))}
    if held_out:
        scans = (_read_range_scan(file) for file in files if file.stem in held_out)
        written[held_out_sequence] = _write(scans, Path(root, "sequences", held_out_sequence))
    return written


def _read_range_scan(path: Path) -> LabelledScan:
    try:
        with np.load(path, allow_pickle=False) as content:
            points, label = content["xyzi"].astype(np.float32), content["label"].astype(np.int64)
    except (OSError, ValueError, KeyError) as error:
        raise BadSampleError(
            f"write_range_tree: {path} must be an .npz with xyzi and label, got {error}."
        ) from error
    label_map = load_label_map("official")
    if points.shape != (len(label), 4) or label.max(initial=0) > label_map.num_classes:
        raise BadSampleError(
            f"write_range_tree: {path} must hold (N, 4) points and (N,) labels 0..{label_map.num_classes}, got "
            f"{points.shape}, {label.shape} and the largest label {label.max(initial=0)}."
        )
    return LabelledScan(
        path, points, label_map.to_raw(np.where(label == 0, IGNORE_INDEX, label - 1))
    )


def _read_labelled(tree: str | Path, sequence: str) -> list[LabelledScan]:
    folder = find_sequences_dir(tree) / sequence
    scans = []
    for frame in list_frames(folder):
        label_path = folder / "labels" / f"{frame}.label"
        if label_path.is_file():
            scan_path = folder / "velodyne" / f"{frame}.bin"
            scans.append(
                LabelledScan(scan_path, read_bin(scan_path), read_labels(label_path).semantic)
            )
    return scans


def _write(scans: Iterable[LabelledScan], folder: Path) -> list[Path]:
    sources = []
    for number, scan in enumerate(scans):
        write_points(folder / "velodyne" / f"{number:06d}.bin", scan.points)
        write_labels(folder / "labels" / f"{number:06d}.label", scan.semantic)
        sources.append(scan.source)
    return sources
