"""What nuScenes' tables say about every key frame, as flat arrays in one memory-mapped file.

Built once from the tables, which take minutes and gigabytes to load; opened in milliseconds afterwards. Frames: points
and boxes are in LIDAR_TOP's own frame as nuScenes stores it, **x right, y forward, z up**, because every published
network is trained in it.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from pointlib.data.array_file import ArrayFile, write_arrays
from pointlib.files import locked, write_file

_log = logging.getLogger(__name__)

DETECTION_CLASSES = (
    "car", "truck", "construction_vehicle", "bus", "trailer", "barrier", "motorcycle", "bicycle", "pedestrian",
    "traffic_cone",
)  # fmt: skip
"""Classes of the detection task, in the order of mit-han-lab/bevfusion."""

CAMERAS = (
    "CAM_FRONT", "CAM_FRONT_RIGHT", "CAM_FRONT_LEFT", "CAM_BACK", "CAM_BACK_LEFT", "CAM_BACK_RIGHT",
)  # fmt: skip
"""Cameras, in the order of every sample."""

LIDAR = "LIDAR_TOP"
MAX_SWEEPS = 10
"""Most clouds of one sample: the key frame and nine before it, as every published network takes them."""

TABLES = (
    "attribute", "calibrated_sensor", "category", "ego_pose", "instance", "log", "map", "sample", "sample_annotation",
    "sample_data", "scene", "sensor", "visibility",
)  # fmt: skip
_OPTIONAL_TABLES = ("lidarseg", "panoptic", "splits")
FORMAT = 1
"""Raised whenever the arrays change their meaning: files of another format are made again."""

Matrices = npt.NDArray[np.float64]


class Span(NamedTuple):
    """Rows `start` to `stop` of the arrays of sweeps or of boxes."""

    start: int
    stop: int


class NuScenesIndex:
    """The key frames of one version of nuScenes, in the order of its sample table.

    Arrays, by name; S key frames, 6 cameras, W sweeps, A annotations. Paths are bytes, relative to the data's root, and
    empty where nothing was recorded; times are in microseconds; matrices are float64.

    - `sample_token` (S,), `sample_timestamp_us` (S,) of the LiDAR's key frame, `sample_scene` (S,) row of
      `meta["scenes"]`, `sample_previous` (S,) key frame before it or -1.
    - `lidar_token` (S,), `lidar_path` (S,), `lidar2ego` (S, 4, 4), `ego2global` (S, 4, 4) at the LiDAR's time.
    - `lidarseg_path` (S,), `panoptic_path` (S,).
    - `sweep_start` (S + 1,), `sweep_path` (W,), `sweep2lidar` (W, 4, 4) to the key frame's LiDAR frame through both
      ego poses, `sweep_timestamp_us` (W,): the clouds before each key frame, newest first.
    - `camera_path` (S, 6), `camera_intrinsics` (S, 6, 3, 3), `lidar2camera` (S, 6, 4, 4) with the motion between both
      times, `camera_timestamp_us` (S, 6).
    - `box_start` (S + 1,), `boxes` (A, 9) float32 `pointlib.geometry.BOX_COLUMNS` with velocity (NaN: unknown) in the
      LiDAR frame, `box_label` (A,) row of `DETECTION_CLASSES` or -1, `box_category` (A,) row of `meta["categories"]`,
      `box_attribute` (A,) row of `meta["attributes"]` or -1, `num_lidar_pts` (A,), `num_radar_pts` (A,).

    `meta` holds `version`, `scenes` (each name, location, log), `splits` (name -> scenes), `categories`, `attributes`
    and `lidarseg_names` (of each raw label; empty without lidarseg and panoptic labels).

    Args:
        file: What `load_index` opened.
    """

    def __init__(self, file: ArrayFile) -> None:
        self.file = file

    @property
    def meta(self) -> dict[str, Any]:
        """What is not an array; see above."""
        return self.file.meta

    def __len__(self) -> int:
        return len(self.file["sample_token"])

    def __getitem__(self, name: str) -> npt.NDArray[Any]:
        return self.file[name]

    def text(self, name: str, *row: int) -> str:
        """One entry of an array of bytes."""
        return bytes(self.file[name][row]).decode()

    def sweeps(self, row: int) -> Span:
        """Rows of a key frame's sweeps."""
        return Span(*(int(i) for i in self.file["sweep_start"][row : row + 2]))

    def boxes(self, row: int) -> Span:
        """Rows of a key frame's annotations."""
        return Span(*(int(i) for i in self.file["box_start"][row : row + 2]))

    def scene(self, row: int) -> dict[str, str]:
        """Name, location and log of a key frame's scene."""
        scene: dict[str, str] = self.meta["scenes"][int(self.file["sample_scene"][row])]
        return scene

    def rows_of(self, scenes: set[str]) -> npt.NDArray[np.int64]:
        """Rows of the key frames of these scenes, ascending."""
        wanted = np.array([scene["name"] in scenes for scene in self.meta["scenes"]], bool)
        return np.flatnonzero(wanted[self.file["sample_scene"]])


def load_index(
    root: str | Path, version: str, index_folder: str | Path | None = None, progress: bool = True
) -> NuScenesIndex:
    """Open the index of a version; build it first if there is none or the tables have changed.

    The index remembers size and modification time of every table, and a hash of their content. If the former differ,
    the latter decides.

    Args:
        root: Folder that holds the folder `version` with the tables, `samples/` and `sweeps/`.
        version: Such as "v1.0-trainval".
        index_folder: Where the index is kept; None for `pointlib_index` in `root`.
        progress: Whether building shows a bar on standard error.

    Raises:
        ValueError: There is no such version, a table is missing or broken, or the index cannot be written.
        ImportError: It must be built and nuscenes-devkit is not installed.
    """
    tables = find_tables(root, version)
    folder = index_folder_of(root, index_folder)
    path = folder / f"{version}.index"
    present = _open_if_current(path, tables)
    if present is not None:
        return NuScenesIndex(present)
    with writing_to(folder):
        folder.mkdir(parents=True, exist_ok=True)
    with locked(path.with_suffix(".lock")):
        present = _open_if_current(path, tables)  # another process may have built it meanwhile
        if present is not None:
            return NuScenesIndex(present)
        from pointlib.data.nuscenes_tables import read_tables

        _log.info("building the index of %s in %s", version, path)
        arrays, meta = read_tables(root, version, progress)
        meta |= {"stamps": _stamps(tables), "digest": digest_of(tables), "format": FORMAT}
        with writing_to(folder):
            write_arrays(path, arrays, meta)
    return NuScenesIndex(ArrayFile(path))


def find_tables(root: str | Path, version: str) -> list[Path]:
    """Files of the tables of a version, those that every version has and those that are there of the others.

    Raises:
        ValueError: There is no such version, or it lacks tables; the message names what is there or missing.
    """
    folder = Path(root) / version
    if not version or not folder.is_dir():
        parent = Path(root)
        there = sorted(p.parent.name for p in parent.glob("*/sample.json"))
        state = ", ".join(there) or ("no version" if parent.is_dir() else "no such folder")
        raise ValueError(
            f"load_index: {parent} must hold the folder {version!r} with nuScenes' tables, got {state}. Name a version "
            "that is there, or extract the metadata archive of this one (v1.0-*_meta.tgz)."
        )
    missing = [f"{name}.json" for name in TABLES if not (folder / f"{name}.json").is_file()]
    if missing:
        raise ValueError(
            f"load_index: {folder} must hold nuScenes' {len(TABLES)} tables, got none named {', '.join(missing)}. "
            "Extract the metadata archive again (v1.0-*_meta.tgz)."
        )
    optional = [folder / f"{name}.json" for name in _OPTIONAL_TABLES]
    return [folder / f"{name}.json" for name in TABLES] + [p for p in optional if p.is_file()]


def index_folder_of(root: str | Path, index_folder: str | Path | None) -> Path:
    """Where what is built from a data set is kept."""
    return Path(root) / "pointlib_index" if index_folder is None else Path(index_folder)


@contextlib.contextmanager
def writing_to(folder: Path) -> Iterator[None]:
    """Explain what to do if nothing can be written to the folder of the index."""
    try:
        yield
        if not os.access(folder, os.W_OK):
            raise PermissionError(f"no permission to write to {folder}")
    except OSError as error:
        raise ValueError(
            f"load_index: {folder} must be writable to keep what is built from the tables, got {error}. Pass "
            "index_folder= (--index-folder) with a folder of yours if the data is read-only."
        ) from error


def digest_of(files: Sequence[Path]) -> str:
    """Hash of the names and the content of files."""
    digest = hashlib.blake2b(digest_size=16)
    for path in files:
        digest.update(f"{path.name} {path.stat().st_size}\n".encode())
        with open(path, "rb") as file:
            while block := file.read(1 << 22):
                digest.update(block)
    return digest.hexdigest()


def _stamps(files: Sequence[Path]) -> dict[str, list[int]]:
    return {path.name: [path.stat().st_size, path.stat().st_mtime_ns] for path in files}


def _open_if_current(path: Path, tables: Sequence[Path]) -> ArrayFile | None:
    """Open the index if it is there, whole, of this format and of these tables."""
    if not path.is_file():
        return None
    try:
        file = ArrayFile(path)
    except ValueError as error:
        _log.warning("%s It is made again.", error)
        return None
    if file.meta.get("format") != FORMAT:
        return None
    stamps = _stamps(tables)
    if stamps in (file.meta["stamps"], _remembered(path)):
        return file
    if file.meta["digest"] != digest_of(tables):
        return None
    with contextlib.suppress(
        OSError
    ):  # where it cannot be remembered, tables are compared again next time
        write_file(path.with_suffix(".stamps"), json.dumps(stamps))
    return file


def _remembered(path: Path) -> Any:
    """Stamps of tables that were found to hold what the index was built from; None if there are none."""
    try:
        return json.loads(path.with_suffix(".stamps").read_bytes())
    except (OSError, ValueError):
        return None
