"""Verify a SemanticKITTI tree before hours are spent on it: every scan, label and side file is read once."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from tqdm import tqdm

from pointlib.data.kitti_calibration import read_calibration, read_camera_poses, read_times
from pointlib.data.label_map import load_label_map
from pointlib.data.sample import BadSampleError
from pointlib.data.semantic_kitti import SemanticKITTI, find_sequences_dir, list_sequences

_CHUNK = 16


@dataclass
class SequenceReport:
    """What was found in one sequence.

    Attributes:
        name: The sequence.
        scans: Scans listed.
        points: Points in those that can be read.
        problems: Messages, each naming a file; training would stop at these.
        notes: Side files that are absent; training does not need them.
    """

    name: str
    scans: int = 0
    points: int = 0
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def check_tree(
    root: str | Path,
    sequences: Sequence[str] | None = None,
    label_map: str | Path = "official",
    workers: int = 0,
    progress: bool = True,
) -> list[SequenceReport]:
    """Read everything in a SemanticKITTI tree and report what is wrong with it.

    Checked are: sequences that are missing; scans that are unreadable, empty, cut off or hold NaN or Inf; labels
    that are missing (but for the test split), of another length or unknown to the map; labels without a scan;
    calib.txt, poses.txt and times.txt, where present.

    Args:
        root: Folder of the data set, as in `SemanticKITTI`.
        sequences: Sequences that must be there; None for the training and validation splits. Others that are there are
            checked too if None.
        label_map: As in `SemanticKITTI`.
        workers: Processes to read with; 0 for this one.
        progress: Whether to show a bar with an estimate on standard error.

    Returns:
        One report a sequence, in order.

    Raises:
        ValueError: If there is no tree at `root`.
    """
    splits = load_label_map(label_map).splits
    sequences_dir = find_sequences_dir(root)
    present = list_sequences(sequences_dir)
    wanted = sorted(
        {*splits["train"], *splits["val"], *present} if sequences is None else sequences
    )
    reports: list[SequenceReport] = []
    datasets: list[tuple[SequenceReport, SemanticKITTI]] = []
    for name in wanted:
        report = SequenceReport(name)
        reports.append(report)
        if name not in present:
            report.problems.append(
                f"check_tree: {sequences_dir / name} must be there with velodyne/ inside, got nothing. Extract it, or "
                "name the sequences you use."
            )
            continue
        with_labels = name not in splits["test"]
        try:
            dataset = SemanticKITTI(root, [name], label_map=label_map, with_labels=with_labels)
        except ValueError as error:
            report.problems.append(str(error))
            continue
        report.scans = len(dataset)
        datasets.append((report, dataset))
    total = sum(report.scans for report in reports)
    with tqdm(total=total, unit="scan", disable=not progress) as bar:
        for report, dataset in datasets:
            bar.set_description(f"sequence {report.name}")
            for points, problem in _read_all(dataset, workers):
                report.points += points
                if problem:
                    report.problems.append(problem)
                bar.update()
            _check_side_files(report, dataset)
    return reports


def format_reports(reports: Sequence[SequenceReport], most: int = 10) -> str:
    """Lay reports out as a table, followed by up to `most` problems of each sequence."""
    lines = [f"{'sequence':>8}  {'scans':>6}  {'points':>13}  {'problems':>8}  notes"]
    for report in reports:
        lines.append(
            f"{report.name:>8}  {report.scans:>6}  {report.points:>13,}  {len(report.problems):>8}  "
            f"{'; '.join(report.notes)}".rstrip()
        )
    for report in reports:
        lines += [f"{report.name}: {problem}" for problem in report.problems[:most]]
        if len(report.problems) > most:
            lines.append(f"{report.name}: ... and {len(report.problems) - most} more problems")
    problems = sum(len(report.problems) for report in reports)
    scans = sum(report.scans for report in reports)
    lines.append(f"{problems} problems in {scans} scans of {len(reports)} sequences")
    return "\n".join(lines)


def _read_all(dataset: SemanticKITTI, workers: int) -> Iterator[tuple[int, str]]:
    """Yield the number of points, and the problem or "", of each scan in order."""
    read = functools.partial(_read_one, dataset)
    if workers == 0:
        yield from map(read, range(len(dataset)))
        return
    with ProcessPoolExecutor(workers) as pool:
        yield from pool.map(read, range(len(dataset)), chunksize=_CHUNK)


def _read_one(dataset: SemanticKITTI, index: int) -> tuple[int, str]:
    try:
        return len(dataset[index]), ""
    except BadSampleError as error:
        return 0, str(error)


def _check_side_files(report: SequenceReport, dataset: SemanticKITTI) -> None:
    """Read calib, poses and times, and look for labels without a scan."""
    folder = dataset.sequences_dir / report.name
    readers: tuple[tuple[str, Callable[[Path], object]], ...] = (
        ("calib.txt", read_calibration),
        ("poses.txt", lambda path: _at_least(len(read_camera_poses(path)), report.scans, path)),
        ("times.txt", lambda path: _at_least(len(read_times(path)), report.scans, path)),
    )
    for name, read in readers:
        if not (folder / name).is_file():
            report.notes.append(f"no {name}")
            continue
        try:
            read(folder / name)
        except BadSampleError as error:
            report.problems.append(str(error))
    if dataset.with_labels and (folder / "labels").is_dir():
        scans = {dataset.paths(i)[1].name for i in range(len(dataset))}
        orphans = sorted(set(os.listdir(folder / "labels")) - scans)
        if orphans:
            report.problems.append(
                f"check_tree: every label of {folder / 'labels'} must have a scan, got {len(orphans)} without one, "
                f"the first {orphans[0]}. The velodyne archive was not extracted completely."
            )


def _at_least(rows: int, scans: int, path: Path) -> None:
    if rows < scans:
        raise BadSampleError(
            f"check_tree: {path} must have a line for each of the {scans} scans, got {rows}. Extract it again."
        )
