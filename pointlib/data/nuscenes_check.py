"""Verify a nuScenes download before hours are spent on it, and say what is in it."""

from __future__ import annotations

import functools
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from tqdm import tqdm

from pointlib.data.image_file import read_image
from pointlib.data.nuscenes import splits_of
from pointlib.data.nuscenes_index import CAMERAS, DETECTION_CLASSES, LIDAR, NuScenesIndex
from pointlib.data.nuscenes_sweeps import FILE_COLUMNS
from pointlib.data.point_cloud_io import read_bin
from pointlib.data.sample import BadSampleError

GROUPS = ("sweeps", "cameras", "labels")
"""What a download may lack on purpose: earlier clouds, images, labels of points."""

_CHUNK = 32


@dataclass
class FileReport:
    """Files of one kind that the tables refer to.

    Attributes:
        name: Such as "CAM_FRONT" or "LIDAR_TOP sweeps".
        files: How many there should be.
        missing: Those that are not there, relative to the root.
        broken: Messages about those that cannot be read; each names its file.
    """

    name: str
    files: int
    missing: list[str] = field(default_factory=list)
    broken: list[str] = field(default_factory=list)


def check_files(
    root: str | Path,
    index: NuScenesIndex,
    read: bool = False,
    ignore: Sequence[str] = (),
    workers: int = 0,
    progress: bool = True,
) -> list[FileReport]:
    """Look for every file that the tables refer to.

    Args:
        root: Folder of the data.
        index: What the tables say.
        read: Whether to read each file too: images are decoded, clouds checked for whole points and NaN.
        ignore: `GROUPS` to leave out.
        workers: Processes to read with; 0 for this one.
        progress: Whether to show a bar with an estimate on standard error.

    Returns:
        A report for each kind of file.
    """
    expected = _expected(index, ignore)
    reports = []
    with tqdm(total=sum(map(len, expected.values())), unit="file", disable=not progress) as bar:
        for name, paths in expected.items():
            bar.set_description(name)
            there = _listing(Path(root), paths)
            report = FileReport(name, len(paths), [p for p in paths if p not in there])
            bar.update(len(report.missing))
            present = [p for p in paths if p in there]
            if read:
                for problem in _read_all(Path(root), present, workers):
                    report.broken += [problem] if problem else []
                    bar.update()
            else:
                bar.update(len(present))
            reports.append(report)
    return reports


def format_files(reports: Sequence[FileReport], most: int = 3) -> str:
    """Lay the reports out as a table, followed by the first names of what is missing or broken."""
    lines = [f"{'files':<20} {'expected':>9} {'missing':>8} {'broken':>7}"]
    for r in reports:
        lines.append(f"{r.name:<20} {r.files:>9} {len(r.missing):>8} {len(r.broken):>7}")
    for r in reports:
        for kind, names in (("missing", r.missing), ("broken", r.broken)):
            lines += [f"{r.name} {kind}: {name}" for name in names[:most]]
            if len(names) > most:
                lines.append(f"{r.name} {kind}: ... and {len(names) - most} more")
    missing = sum(len(r.missing) for r in reports)
    broken = sum(len(r.broken) for r in reports)
    lines.append(f"{missing} missing and {broken} broken of {sum(r.files for r in reports)} files")
    return "\n".join(lines)


def format_summary(index: NuScenesIndex, root: str | Path) -> str:
    """Scenes and key frames of each split, boxes of each class, and which maps and labels are there."""
    meta = index.meta
    lines = [f"{meta['version']}: {len(meta['scenes'])} scenes, {len(index)} key frames"]
    lines.append(f"{'split':<20} {'scenes':>7} {'key frames':>11} {'boxes':>9}")
    boxes = np.diff(index["box_start"])
    for split, scenes in splits_of(index).items():
        rows = index.rows_of(set(scenes))
        count = int(boxes[rows].sum())
        lines.append(f"{split:<20} {len(scenes):>7} {len(rows):>11} {count:>9}")
    returns = index["num_lidar_pts"] + index["num_radar_pts"]
    lines.append(f"{'class':<20} {'boxes':>7} {'with points':>11} {'LiDAR returns':>15}")
    for label, name in enumerate((*DETECTION_CLASSES, "others")):
        of_class = index["box_label"] == (label if label < len(DETECTION_CLASSES) else -1)
        seen = int((returns[of_class] > 0).sum())
        points = int(index["num_lidar_pts"][of_class].sum())
        lines.append(f"{name:<20} {int(of_class.sum()):>7} {seen:>11} {points:>15}")
    locations = sorted({scene["location"] for scene in meta["scenes"]})
    expansion = Path(root) / "maps" / "expansion"
    mapped = [name for name in locations if (expansion / f"{name}.json").is_file()]
    lines.append(f"map expansion: {len(mapped)} of {len(locations)} locations")
    for task in ("lidarseg", "panoptic"):
        labelled = int((index[f"{task}_path"] != b"").sum())
        lines.append(f"{task}: labels of {labelled} of {len(index)} key frames")
    return "\n".join(lines)


def _expected(index: NuScenesIndex, ignore: Sequence[str]) -> dict[str, list[str]]:
    """Paths by kind of file."""
    unknown = sorted(set(ignore) - set(GROUPS))
    if unknown:
        raise ValueError(
            f"check_files: ignore must be among {', '.join(GROUPS)}, got {', '.join(unknown)}."
        )
    arrays = {LIDAR: index["lidar_path"]}
    if "sweeps" not in ignore:
        keys = np.unique(index["lidar_path"])
        sweeps = np.unique(index["sweep_path"])
        arrays[f"{LIDAR} sweeps"] = sweeps[~np.isin(sweeps, keys)]
    if "cameras" not in ignore:
        arrays |= {name: index["camera_path"][:, i] for i, name in enumerate(CAMERAS)}
    if "labels" not in ignore:
        arrays |= {task: index[f"{task}_path"] for task in ("lidarseg", "panoptic")}
    return {name: [os.fsdecode(p) for p in paths if p] for name, paths in arrays.items()}


def _listing(root: Path, paths: Sequence[str]) -> set[str]:
    """Those of the paths that exist: one listing a folder instead of one question a file."""
    there: set[str] = set()
    for folder in sorted({os.path.dirname(path) for path in paths}):
        if (root / folder).is_dir():
            there |= {os.path.join(folder, name) for name in os.listdir(root / folder)}
    return there


def _read_all(root: Path, paths: Sequence[str], workers: int) -> Iterator[str]:
    """Yield the problem, or "", of each file in order."""
    read = functools.partial(_read_one, root)
    if workers == 0:
        yield from map(read, paths)
        return
    with ProcessPoolExecutor(workers) as pool:
        yield from pool.map(read, paths, chunksize=_CHUNK)


def _read_one(root: Path, path: str) -> str:
    try:
        if path.endswith(".pcd.bin"):
            read_bin(root / path, FILE_COLUMNS)
        elif path.lower().endswith((".jpg", ".jpeg", ".png")):
            read_image(root / path)
        elif not (root / path).stat().st_size:
            return f"{path} is empty"
    except (BadSampleError, OSError) as error:
        return str(error)
    return ""
