"""From nuScenes' tables, as nuscenes-devkit loads them, to the arrays of the index."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from pointlib.data.nuscenes_index import (
    CAMERAS,
    DETECTION_CLASSES,
    LIDAR,
    MAX_SWEEPS,
)
from pointlib.geometry import invert, quaternion_rotation, rigid_transform

Arrays = dict[str, npt.NDArray[Any]]
_REMEDY = "The tables are damaged; extract the metadata archive again (v1.0-*_meta.tgz)."


def load_devkit(root: str | Path, version: str) -> Any:
    """Load the tables of a version with nuscenes-devkit.

    Returns:
        `nuscenes.nuscenes.NuScenes`.

    Raises:
        ImportError: nuscenes-devkit is not installed.
        ValueError: The devkit cannot make sense of the tables, or the folders `maps` or `lidarseg` are incomplete.
    """
    try:
        from nuscenes.nuscenes import NuScenes
    except ImportError as error:
        raise ImportError(
            "load_devkit: nuScenes' tables are read by nuscenes-devkit, which cannot be imported "
            f"({error}). Install it: pip install 'pointlib[nuscenes]'"
        ) from error
    try:
        return NuScenes(version=version, dataroot=str(root), verbose=False)
    except json.JSONDecodeError as error:
        raise ValueError(_name_broken_table(root, version)) from error
    except (AssertionError, KeyError, IndexError, TypeError, ValueError, OSError) as error:
        raise ValueError(
            f"load_devkit: {Path(root) / version} must be loadable by nuscenes-devkit, got {type(error).__name__}: "
            f"{error}. Extract the metadata archive of this version again, with maps/, and lidarseg/ and panoptic/ "
            "where their tables are."
        ) from error


def _name_broken_table(root: str | Path, version: str) -> str:
    for table in sorted((Path(root) / version).glob("*.json")):
        try:
            json.loads(table.read_bytes())
        except ValueError as error:
            return f"load_devkit: {table} must be whole JSON, got {error}. {_REMEDY}"
    return f"load_devkit: {Path(root) / version} must hold whole JSON files. {_REMEDY}"


def read_tables(root: str | Path, version: str, progress: bool) -> tuple[Arrays, dict[str, Any]]:
    """Read everything the index holds.

    Args:
        root: Folder of the data.
        version: Such as "v1.0-trainval".
        progress: Whether to show a bar with an estimate on standard error.

    Returns:
        The arrays and the meta data that `NuScenesIndex` describes.

    Raises:
        ImportError: nuscenes-devkit is not installed.
        ValueError: The tables are damaged: they cannot be loaded, a key frame lacks its LiDAR cloud, or time goes back.
    """
    nusc = load_devkit(root, version)
    if not nusc.sample:
        raise ValueError(f"read_tables: {Path(root) / version} must hold key frames, got none.")
    scene_rows = {scene["token"]: row for row, scene in enumerate(nusc.scene)}
    columns: dict[str, list[Any]] = {}
    sweep_counts: list[int] = []
    with tqdm(nusc.sample, f"index of {version}", unit="frame", disable=not progress) as bar:
        for sample in bar:
            lidar, sweeps = _lidar_and_sweeps(nusc, sample)
            row = {
                "sample_token": sample["token"],
                "sample_scene": scene_rows[sample["scene_token"]],
                "sample_previous": nusc.getind("sample", sample["prev"]) if sample["prev"] else -1,
                "lidar_token": lidar["token"],
                "lidar_path": lidar["filename"],
                "sample_timestamp_us": lidar["timestamp"],
                "lidar2ego": _pose(nusc, "calibrated_sensor", lidar),
                "ego2global": _pose(nusc, "ego_pose", lidar),
            }
            _append(columns, row)
            sweep_counts.append(len(sweeps))
            key2global = row["ego2global"] @ row["lidar2ego"]
            global2key = invert(key2global)
            for sweep in sweeps:
                _append(
                    columns,
                    {
                        "sweep_path": sweep["filename"],
                        "sweep_timestamp_us": sweep["timestamp"],
                        "sweep2lidar": global2key @ _sensor2global(nusc, sweep),
                    },
                )
            _append(columns, _cameras(nusc, sample, key2global))
    _check_times(nusc, np.array(columns["sample_timestamp_us"]), columns["sample_previous"])
    arrays = _as_arrays(columns)
    arrays["sweep_start"] = np.cumsum([0, *sweep_counts])
    arrays |= _boxes(nusc, arrays["ego2global"] @ arrays["lidar2ego"])
    arrays |= _point_labels(nusc, arrays["lidar_token"])
    return arrays, _meta(nusc, root, version)


def _append(columns: dict[str, list[Any]], row: dict[str, Any]) -> None:
    for name, value in row.items():
        columns.setdefault(name, []).append(value)


def _pose(nusc: Any, table: str, record: dict[str, Any]) -> npt.NDArray[np.float64]:
    """Pose of a sensor in the vehicle ("calibrated_sensor"), or of the vehicle in the world ("ego_pose")."""
    pose = nusc.get(table, record[f"{table}_token"])
    return rigid_transform(quaternion_rotation(np.array(pose["rotation"])), pose["translation"])


def _sensor2global(nusc: Any, record: dict[str, Any]) -> npt.NDArray[np.float64]:
    matrix: npt.NDArray[np.float64] = _pose(nusc, "ego_pose", record) @ _pose(
        nusc, "calibrated_sensor", record
    )
    return matrix


def _lidar_and_sweeps(nusc: Any, sample: dict[str, Any]) -> tuple[dict[str, Any], list[Any]]:
    """The LiDAR's record of a key frame, and those before it, newest first."""
    if LIDAR not in sample["data"]:
        raise ValueError(
            f"read_tables: every key frame must have a cloud of {LIDAR}, got none for sample {sample['token']}. "
            f"{_REMEDY}"
        )
    lidar = nusc.get("sample_data", sample["data"][LIDAR])
    return lidar, list(_before(nusc, lidar))


def _before(nusc: Any, record: dict[str, Any]) -> Iterator[dict[str, Any]]:
    for _ in range(MAX_SWEEPS - 1):
        if not record["prev"]:
            return
        earlier = nusc.get("sample_data", record["prev"])
        if not earlier["timestamp"] < record["timestamp"]:
            raise ValueError(
                f"read_tables: a sweep must be earlier than the one that follows it, got {earlier['filename']} at "
                f"{earlier['timestamp']} us before {record['filename']} at {record['timestamp']} us. {_REMEDY}"
            )
        record = earlier
        yield record


def _check_times(nusc: Any, times: npt.NDArray[np.int64], previous: list[int]) -> None:
    """Raise unless every key frame is later than the one before it: velocities are differences of both."""
    sample_times = np.array([sample["timestamp"] for sample in nusc.sample])
    rows = np.flatnonzero(np.array(previous) >= 0)
    before = np.array(previous)[rows]
    back = rows[(times[rows] <= times[before]) | (sample_times[rows] <= sample_times[before])]
    if len(back):
        row = int(back[0])
        raise ValueError(
            f"read_tables: a key frame must be later than the one before it, got {len(back)} that are not, the first "
            f"sample {nusc.sample[row]['token']} at {sample_times[row]} us after {sample_times[previous[row]]} us. "
            f"{_REMEDY}"
        )


def _cameras(
    nusc: Any, sample: dict[str, Any], key2global: npt.NDArray[np.float64]
) -> dict[str, Any]:
    paths, times = [""] * len(CAMERAS), np.zeros(len(CAMERAS), np.int64)
    intrinsics, lidar2camera = np.tile(np.eye(3), (6, 1, 1)), np.tile(np.eye(4), (6, 1, 1))
    for row, name in enumerate(CAMERAS):
        if name not in sample["data"]:
            continue
        record = nusc.get("sample_data", sample["data"][name])
        sensor = nusc.get("calibrated_sensor", record["calibrated_sensor_token"])
        paths[row], times[row] = record["filename"], record["timestamp"]
        intrinsics[row] = sensor["camera_intrinsic"]
        lidar2camera[row] = invert(_sensor2global(nusc, record)) @ key2global
    return {
        "camera_path": paths,
        "camera_timestamp_us": times,
        "camera_intrinsics": intrinsics,
        "lidar2camera": lidar2camera,
    }


def _boxes(nusc: Any, lidar2global: npt.NDArray[np.float64]) -> Arrays:
    """Annotations of all key frames in the LiDAR frame, ordered by key frame."""
    from nuscenes.eval.detection.utils import category_to_detection_name

    counts = [len(sample["anns"]) for sample in nusc.sample]
    records = [nusc.get("sample_annotation", t) for sample in nusc.sample for t in sample["anns"]]
    table = {
        name: np.array([record[name] for record in records], np.float64).reshape(-1, width)
        for name, width in (("translation", 3), ("size", 3), ("rotation", 4))
    }
    velocity = np.array([nusc.box_velocity(record["token"]) for record in records]).reshape(-1, 3)
    global2lidar = np.repeat(invert(lidar2global), counts, axis=0)
    turn = global2lidar[:, :3, :3]
    heading = (turn @ quaternion_rotation(table["rotation"]))[:, :, 0]
    centre = (turn @ table["translation"][:, :, None])[:, :, 0] + global2lidar[:, :3, 3]
    boxes = np.empty((len(records), 9), np.float32)
    boxes[:, :3] = centre
    boxes[:, 3:6] = table["size"][:, [1, 0, 2]]  # stored as width, length, height
    boxes[:, 6] = np.arctan2(heading[:, 1], heading[:, 0])
    boxes[:, 7:] = (turn @ velocity[:, :, None])[:, :2, 0]
    categories = [category["name"] for category in nusc.category]
    labels = [
        DETECTION_CLASSES.index(name) if (name := category_to_detection_name(category)) else -1
        for category in categories
    ]
    category = np.array([categories.index(r["category_name"]) for r in records], np.int16)
    attribute = [
        nusc.getind("attribute", r["attribute_tokens"][0]) if r["attribute_tokens"] else -1
        for r in records
    ]
    return {
        "box_start": np.cumsum([0, *counts]),
        "boxes": boxes,
        "box_label": np.array(labels, np.int16)[category],
        "box_category": category,
        "box_attribute": np.array(attribute, np.int16),
        "num_lidar_pts": np.array([r["num_lidar_pts"] for r in records], np.int32),
        "num_radar_pts": np.array([r["num_radar_pts"] for r in records], np.int32),
    }


def _point_labels(nusc: Any, lidar_tokens: npt.NDArray[np.bytes_]) -> Arrays:
    """Label files of the key frames' clouds."""
    arrays: Arrays = {}
    for task in ("lidarseg", "panoptic"):
        table = {r["sample_data_token"]: r["filename"] for r in getattr(nusc, task, [])}
        paths = [table.get(token.decode(), "") for token in lidar_tokens]
        arrays[f"{task}_path"] = np.array(paths, np.bytes_)
    return arrays


def _meta(nusc: Any, root: str | Path, version: str) -> dict[str, Any]:
    from nuscenes.utils.splits import create_splits_scenes

    splits: dict[str, list[str]] = create_splits_scenes()
    own_splits = Path(root) / version / "splits.json"
    if own_splits.is_file():
        splits |= json.loads(own_splits.read_text(encoding="utf-8"))
    scenes = []
    for scene in nusc.scene:
        log = nusc.get("log", scene["log_token"])
        entry = {"name": scene["name"], "location": log["location"], "log": log["logfile"]}
        scenes.append(entry)
    names = {entry["name"] for entry in scenes}
    indexed = [c for c in nusc.category if "index" in c]
    labelled = hasattr(nusc, "lidarseg") or hasattr(nusc, "panoptic")
    return {
        "version": version,
        "scenes": scenes,
        "splits": {name: [s for s in listed if s in names] for name, listed in splits.items()},
        "categories": [category["name"] for category in nusc.category],
        "attributes": [attribute["name"] for attribute in nusc.attribute],
        "lidarseg_names": {str(c["index"]): c["name"] for c in indexed} if labelled else {},
    }


def _as_arrays(columns: dict[str, list[Any]]) -> Arrays:
    """Lists as arrays; texts as bytes."""
    arrays: Arrays = {
        "sweep_path": np.zeros(0, np.bytes_),
        "sweep_timestamp_us": np.zeros(0, np.int64),
        "sweep2lidar": np.zeros((0, 4, 4)),
    }
    for name, values in columns.items():
        array = np.array(values)
        arrays[name] = array.astype(np.bytes_) if array.dtype.kind == "U" else array
    return arrays
