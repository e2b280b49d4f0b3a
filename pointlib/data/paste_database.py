"""Every annotated object of a dataset with its points, cut out once and read through the page cache by all workers.

A folder of two files. `points.bin`: (P, C) little-endian float32, each object's relative to the centre of its box.
`objects.arrays` (`pointlib.data.array_file`): `boxes` (K, 9) float32; `labels` (K,) int64; `offsets` (K + 1,) int64,
where each object's points start; `samples` (K,) int64, which one it is from; size and SHA-256 of `points.bin`.
"""

from __future__ import annotations

import hashlib
import logging
import os
import secrets
import shutil
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from pointlib.data.array_file import ArrayFile, write_arrays
from pointlib.data.multi_sensor import MultiSensorSample, MultiSensorSource
from pointlib.data.sample import BadSampleError
from pointlib.ops.boxes import points_in_boxes_all

_log = logging.getLogger(__name__)

Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]

FORMAT = 1
_BUILD = "Run `tools/prepare_data.py paste-database`"


class ObjectCut(NamedTuple):
    """The objects of one sample: boxes (M, 9), labels (M,), their points one after the other, and how many each has."""

    boxes: Floats
    labels: Ints
    points: Floats
    counts: Ints


class PasteDatabase:
    """Objects with their points, on disk. Pickled as its folder, so that a worker maps the same pages.

    Attributes:
        folder: Where it is.
        class_names: Of the source it was built from.
        boxes: (K, 9) float32, memory-mapped, in the LiDAR frame of the sample the object is from.
        labels: (K,) int64 class.
        num_points: (K,) int64.
        samples: (K,) int64 index of the sample in the source.

    Args:
        folder: Written by `build_paste_database`.
        verify: Whether to read all points and compare their checksum; sizes are always compared.

    Raises:
        FileNotFoundError: There is no database there.
        ValueError: It is damaged: the file and the remedy are named.
    """

    def __init__(self, folder: str | os.PathLike[str], verify: bool = False) -> None:
        self.folder = Path(folder)
        objects = _open_objects(self.folder)
        self.class_names: tuple[str, ...] = tuple(objects.meta["settings"]["class_names"])
        self.settings: dict[str, Any] = objects.meta["settings"]
        self.num_columns: int = objects.meta["num_columns"]
        self.boxes: Floats = objects["boxes"]
        self.labels: Ints = objects["labels"]
        self.samples: Ints = objects["samples"]
        self._offsets: Ints = objects["offsets"]
        self.num_points: Ints = np.diff(self._offsets)
        points = self.folder / "points.bin"
        _check_file(points, objects.meta["points"], verify)
        shape = (int(self._offsets[-1]), self.num_columns)
        self._points: Floats = np.memmap(points, "<f4", "r", shape=shape)

    def __len__(self) -> int:
        return len(self.labels)

    def __reduce__(self) -> tuple[type[PasteDatabase], tuple[Path]]:
        return PasteDatabase, (self.folder,)

    def points_of(self, row: int) -> Floats:
        """(P, C) float32 points of an object in the frame of its box's own sample, a copy."""
        points = np.array(self._points[self._offsets[row] : self._offsets[row + 1]])
        points[:, :3] += self.boxes[row, :3]
        return points

    def summary(self) -> str:
        """How many objects and points of each class there are, as a table."""
        lines = [f"{'class':24}{'objects':>10}{'points':>12}"]
        for label, name in enumerate(self.class_names):
            rows = self.labels == label
            lines.append(f"{name:24}{rows.sum():10}{self.num_points[rows].sum():12}")
        return "\n".join(lines)


def build_paste_database(
    source: MultiSensorSource,
    folder: str | os.PathLike[str],
    min_points: int = 5,
    origin: Mapping[str, str | int] | None = None,
    workers: int = 0,
    on_bad_sample: Literal["raise", "skip"] = "raise",
    overwrite: bool = False,
    progress: bool = True,
) -> PasteDatabase:
    """Cut every object out of a dataset and write them to a folder, which appears only when it is complete.

    Build it from training samples with the sweeps that training uses: an object has the points of all of them.

    Args:
        source: Training samples.
        folder: To write to. If a database of the same classes, number of samples, `min_points` and `origin` is there,
            it is verified and kept.
        min_points: Objects of fewer points, counted over all sweeps, are left out.
        origin: What the source was opened with, such as its name, split and number of sweeps; kept with the database.
        workers: Processes to read with; 0 for this one. The result is the same.
        on_bad_sample: What a broken sample does: "raise", or "skip" it with a warning.
        overwrite: Replace a database of another source or with other settings.
        progress: Whether to show a bar with an estimate on standard error.

    Returns:
        The database.

    Raises:
        BadSampleError: A sample is broken and `on_bad_sample` is "raise".
        ValueError: There is another database and `overwrite` is not set, or no object was found.
    """
    folder = Path(folder)
    settings = {
        "class_names": list(source.class_names),
        "num_samples": len(source),
        "min_points": min_points,
        "origin": dict(origin or {}),
    }
    if folder.exists() and not overwrite:
        return _existing(folder, settings)
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = folder.with_name(f".{folder.name}.{os.getpid()}-{secrets.token_hex(4)}.tmp")
    temporary.mkdir()
    try:
        cuts = _cut_all(source, min_points, workers, on_bad_sample)
        bar = tqdm(cuts, "objects", total=len(source), unit="sample", disable=not progress)
        _write(temporary, bar, settings)
        if folder.exists():
            folder.rename(temporary / "replaced")
        temporary.rename(folder)
        shutil.rmtree(folder / "replaced", ignore_errors=True)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return PasteDatabase(folder)


def cut_objects(sample: MultiSensorSample, min_points: int) -> ObjectCut:
    """Take the points inside each box of a sample; one inside two boxes belongs to both.

    Args:
        sample: As recorded.
        min_points: Boxes of fewer points are left out.

    Returns:
        The objects in the order of the boxes, points relative to the centres.
    """
    boxes = sample.boxes
    inside = points_in_boxes_all(torch.from_numpy(sample.points), torch.from_numpy(boxes))
    point, box = inside.nonzero(as_tuple=True)
    order = np.argsort(box.numpy(), kind="stable")
    point_rows, box_rows = point.numpy()[order], box.numpy()[order]
    counts = np.bincount(box_rows, minlength=len(boxes)).astype(np.int64)
    enough = counts >= min_points
    kept = enough[box_rows]
    point_rows, box_rows = point_rows[kept], box_rows[kept]
    points = sample.points[point_rows]
    points[:, :3] -= boxes[box_rows, :3]
    return ObjectCut(boxes[enough], sample.box_labels[enough], points, counts[enough])


class _Cuts(Dataset["ObjectCut | str"]):
    """The objects of each sample, or the message of a broken one."""

    def __init__(self, source: MultiSensorSource, min_points: int) -> None:
        self.source = source
        self.min_points = min_points

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> ObjectCut | str:
        try:
            return cut_objects(self.source[index], self.min_points)
        except BadSampleError as error:
            return str(error)


def _unchanged(cut: Any) -> Any:
    return cut


def _cut_all(
    source: MultiSensorSource, min_points: int, workers: int, on_bad_sample: str
) -> Iterator[ObjectCut | None]:
    """Yield the objects of each sample in order, None for one that is skipped."""
    loader = DataLoader(
        _Cuts(source, min_points), batch_size=None, num_workers=workers, collate_fn=_unchanged
    )
    for cut in loader:
        if isinstance(cut, str):
            if on_bad_sample == "raise":
                raise BadSampleError(cut)
            _log.warning("skipped a bad sample: %s", cut)
        yield None if isinstance(cut, str) else cut


def _write(folder: Path, cuts: Iterable[ObjectCut | None], settings: dict[str, Any]) -> None:
    """Write the files of a database; the points go to the disk as they come."""
    boxes, labels, counts, samples = [], [], [], []
    num_columns = None
    path = folder / "points.bin"
    with open(path, "wb") as file:
        for index, cut in enumerate(cuts):
            if cut is None:
                continue
            if num_columns not in (None, cut.points.shape[1]):
                raise BadSampleError(
                    f"build_paste_database: points of sample {index} must have {num_columns} columns as those "
                    f"before, got {cut.points.shape[1]}."
                )
            num_columns = cut.points.shape[1]
            file.write(np.ascontiguousarray(cut.points, dtype="<f4").tobytes())
            boxes.append(cut.boxes)
            labels.append(cut.labels)
            counts.append(cut.counts)
            samples.append(np.full(len(cut.labels), index, dtype=np.int64))
        file.flush()
        os.fsync(file.fileno())
    if not sum(map(len, labels)):
        raise ValueError(
            f"build_paste_database: source must have boxes of at least {settings['min_points']} points, got none in "
            f"{settings['num_samples']} samples. Is it a split with annotations?"
        )
    offsets = np.concatenate([[0], np.cumsum(np.concatenate(counts))]).astype(np.int64)
    arrays: dict[str, npt.NDArray[Any]] = {
        "boxes": np.concatenate(boxes),
        "labels": np.concatenate(labels),
        "offsets": offsets,
        "samples": np.concatenate(samples),
    }
    meta = {
        "format": FORMAT,
        "settings": settings,
        "num_columns": num_columns,
        "points": _fingerprint(path),
    }
    write_arrays(folder / "objects.arrays", arrays, meta)


def _existing(folder: Path, settings: dict[str, Any]) -> PasteDatabase:
    database = PasteDatabase(folder, verify=True)
    if database.settings != settings:
        raise ValueError(
            f"build_paste_database: folder must be new or hold a database of {settings}, got {folder} with one of "
            f"{database.settings}. Choose another folder, or set overwrite."
        )
    return database


def _open_objects(folder: Path) -> ArrayFile:
    path = folder / "objects.arrays"
    try:
        objects = ArrayFile(path)
    except FileNotFoundError:
        raise FileNotFoundError(
            f"PasteDatabase: folder must hold a database, got {folder} without {path.name}. {_BUILD}."
        ) from None
    except ValueError as error:
        raise ValueError(
            f"PasteDatabase: {path} must be whole: {error} {_BUILD} --overwrite."
        ) from error
    if objects.meta.get("format") != FORMAT:
        raise ValueError(
            f"PasteDatabase: {path} must be of format {FORMAT}, got {objects.meta.get('format')}. "
            f"{_BUILD} --overwrite."
        )
    return objects


def _fingerprint(path: Path) -> dict[str, Any]:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return {"bytes": path.stat().st_size, "sha256": digest.hexdigest()}


def _check_file(path: Path, recorded: dict[str, Any], verify: bool) -> None:
    size = path.stat().st_size if path.exists() else None
    if size != recorded["bytes"]:
        found = "none" if size is None else f"{size} bytes"
        raise ValueError(
            f"PasteDatabase: {path} must have {recorded['bytes']} bytes, got {found}. {_BUILD} --overwrite."
        )
    if verify and _fingerprint(path) != recorded:
        raise ValueError(
            f"PasteDatabase: {path} must have the SHA-256 it was written with, {recorded['sha256'][:16]}..., got "
            f"{_fingerprint(path)['sha256'][:16]}... {_BUILD} --overwrite."
        )
