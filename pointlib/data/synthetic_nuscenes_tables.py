"""The relational tables of a nuScenes dataset: tokens, the fixed tables, and those that follow from the scenes.

Field names and their meaning: docs/schema_nuscenes.md of nuscenes-devkit.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from pointlib.data.synthetic_nuscenes_rig import CAMERAS, MOUNTS

Row = dict[str, Any]

CATEGORIES = (
    "noise", "animal", "human.pedestrian.adult", "human.pedestrian.child", "human.pedestrian.construction_worker",
    "human.pedestrian.personal_mobility", "human.pedestrian.police_officer", "human.pedestrian.stroller",
    "human.pedestrian.wheelchair", "movable_object.barrier", "movable_object.debris",
    "movable_object.pushable_pullable", "movable_object.trafficcone", "static_object.bicycle_rack", "vehicle.bicycle",
    "vehicle.bus.bendy", "vehicle.bus.rigid", "vehicle.car", "vehicle.construction", "vehicle.emergency.ambulance",
    "vehicle.emergency.police", "vehicle.motorcycle", "vehicle.trailer", "vehicle.truck", "flat.driveable_surface",
    "flat.other", "flat.sidewalk", "flat.terrain", "static.manmade", "static.other", "static.vegetation",
    "vehicle.ego",
)  # fmt: skip
"""nuScenes-lidarseg's categories, in the order of their index."""

ATTRIBUTES = (
    "vehicle.moving", "vehicle.stopped", "vehicle.parked", "cycle.with_rider", "cycle.without_rider",
    "pedestrian.sitting_lying_down", "pedestrian.standing", "pedestrian.moving",
)  # fmt: skip

VISIBILITIES = ((0.0, "v0-40"), (0.4, "v40-60"), (0.6, "v60-80"), (0.8, "v80-100"))
"""Lowest visible share and name of each level; tokens are 1 to 4."""


def token(*parts: object) -> str:
    """The 32 hexadecimal digits that stand for a record, from what it is about."""
    text = "/".join(str(part) for part in parts)
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


@dataclass(frozen=True)
class SensorFile:
    """One file of one sensor.

    Args:
        channel: sensor. frame: key frame it belongs to. timestamp_us: [us]. key: whether it is the key frame's own.
        ego2global: quaternion w, x, y, z and translation x, y, z [m] of the ego at that time.
        filename: relative to the dataset's root. width: and height: [pixels], 0 for a cloud.
    """

    channel: str
    frame: int
    timestamp_us: int
    key: bool
    rotation: tuple[float, ...]
    translation: tuple[float, ...]
    filename: str
    width: int = 0
    height: int = 0


@dataclass(frozen=True)
class SceneRecord:
    """What the tables need to know of one scene.

    Args:
        name: such as scene-0061. location: of its map. description: in words.
        timestamps_us: (frames,) of the samples [us]. files: of all sensors, in order of time within a channel.
        frames: for each key frame, its things: instance, category, attribute, centre, size (l, w, h), yaw, points,
            visible share of the images, whether it was seen at all.
    """

    name: str
    location: str
    description: str
    timestamps_us: Sequence[int]
    files: Sequence[SensorFile]
    frames: Sequence[Sequence[Mapping[str, Any]]]


def build_tables(
    scenes: Sequence[SceneRecord],
    maps: Mapping[str, str],
    version: str,
    image_size: tuple[int, int],
) -> dict[str, list[Row]]:
    """All tables by name; `maps` names the mask of each location.

    Args:
        scenes: in the order of the table. maps: location to file name. version: of the dataset, for file names.
        image_size: width, height [pixels].
    """
    tables: dict[str, list[Row]] = {name: list(rows) for name, rows in _fixed_tables().items()}
    for name in ("log", "scene", "sample", "sample_data", "ego_pose", "calibrated_sensor", "instance",
                 "sample_annotation", "lidarseg", "panoptic"):  # fmt: skip
        tables[name] = []
    for scene in scenes:
        _add_log(tables, scene, image_size)
        _add_samples(tables, scene)
        _add_files(tables, scene, version)
        _add_annotations(tables, scene)
    tables["map"] = [
        {
            "token": token("map", location),
            "log_tokens": [token("log", s.name) for s in scenes if s.location == location],
            "category": "semantic_prior",
            "filename": filename,
        }
        for location, filename in maps.items()
    ]
    return tables


def _fixed_tables() -> dict[str, list[Row]]:
    """Tables that are the same in every dataset."""
    sensors = [
        {
            "token": token("sensor", channel),
            "channel": channel,
            "modality": "camera" if channel in CAMERAS else "lidar",
        }
        for channel in MOUNTS
    ]
    return {
        "category": [
            {"token": token("category", name), "name": name, "description": "", "index": index}
            for index, name in enumerate(CATEGORIES)
        ],
        "attribute": [
            {"token": token("attribute", name), "name": name, "description": ""}
            for name in ATTRIBUTES
        ],
        "visibility": [
            {
                "token": str(i + 1),
                "level": name,
                "description": f"visibility of whole object: {name[1:]} %",
            }
            for i, (_, name) in enumerate(VISIBILITIES)
        ],
        "sensor": sensors,
    }


def visibility_token(share: float) -> str:
    """Token of the level of a visible share in [0, 1]."""
    return str(sum(share >= low for low, _ in VISIBILITIES))


def sample_token(scene: str, frame: int) -> str:
    """Token of a key frame."""
    return token("sample", scene, frame)


def file_token(file: SensorFile) -> str:
    """Token of a sensor's file and of the ego pose that goes with it."""
    return token("sample_data", file.filename)


def label_files(version: str, cloud: str) -> tuple[str, str]:
    """Files, relative to the root, of the semantic and the panoptic labels of a cloud with this token."""
    return (
        f"lidarseg/{version}/{cloud}_lidarseg.bin",
        f"panoptic/{version}/{cloud}_panoptic.npz",
    )


def _add_log(tables: dict[str, list[Row]], scene: SceneRecord, size: tuple[int, int]) -> None:
    log = token("log", scene.name)
    tables["log"].append(
        {
            "token": log,
            "logfile": f"synthetic-{scene.name}",
            "vehicle": "synthetic",
            "date_captured": "2018-07-24",
            "location": scene.location,
        }
    )
    count = len(scene.timestamps_us)
    tables["scene"].append(
        {
            "token": token("scene", scene.name),
            "log_token": log,
            "nbr_samples": count,
            "first_sample_token": sample_token(scene.name, 0),
            "last_sample_token": sample_token(scene.name, count - 1),
            "name": scene.name,
            "description": scene.description,
        }
    )
    for channel, mount in MOUNTS.items():
        matrix = mount.camera_matrix(*size).tolist() if channel in CAMERAS else []
        tables["calibrated_sensor"].append(
            {
                "token": token("calibrated_sensor", scene.name, channel),
                "sensor_token": token("sensor", channel),
                "translation": list(mount.translation),
                "rotation": list(mount.rotation),
                "camera_intrinsic": matrix,
            }
        )


def _add_samples(tables: dict[str, list[Row]], scene: SceneRecord) -> None:
    last = len(scene.timestamps_us) - 1
    for frame, timestamp in enumerate(scene.timestamps_us):
        tables["sample"].append(
            {
                "token": sample_token(scene.name, frame),
                "timestamp": int(timestamp),
                "prev": sample_token(scene.name, frame - 1) if frame else "",
                "next": sample_token(scene.name, frame + 1) if frame < last else "",
                "scene_token": token("scene", scene.name),
            }
        )


def _add_files(tables: dict[str, list[Row]], scene: SceneRecord, version: str) -> None:
    chains: dict[str, list[SensorFile]] = defaultdict(list)
    for file in scene.files:
        chains[file.channel].append(file)
    for chain in chains.values():
        tokens = ["", *(file_token(file) for file in chain), ""]
        for i, file in enumerate(chain):
            own = tokens[i + 1]
            tables["ego_pose"].append(
                {
                    "token": own,
                    "timestamp": file.timestamp_us,
                    "rotation": list(file.rotation),
                    "translation": list(file.translation),
                }
            )
            tables["sample_data"].append(
                {
                    "token": own,
                    "sample_token": sample_token(scene.name, file.frame),
                    "ego_pose_token": own,
                    "calibrated_sensor_token": token("calibrated_sensor", scene.name, file.channel),
                    "timestamp": file.timestamp_us,
                    "fileformat": "jpg" if file.channel in CAMERAS else "pcd",
                    "is_key_frame": file.key,
                    "height": file.height,
                    "width": file.width,
                    "filename": file.filename,
                    "prev": tokens[i],
                    "next": tokens[i + 2],
                }
            )
            if file.key and file.channel == "LIDAR_TOP":
                names = label_files(version, own)
                for table, name in zip(("lidarseg", "panoptic"), names, strict=True):
                    tables[table].append({"token": own, "sample_data_token": own, "filename": name})


def _add_annotations(tables: dict[str, list[Row]], scene: SceneRecord) -> None:
    """A thing is annotated from the first to the last key frame in which it was seen."""
    seen: dict[int, dict[int, Mapping[str, Any]]] = defaultdict(dict)
    for frame, things in enumerate(scene.frames):
        for thing in things:
            seen[thing["instance"]][frame] = thing
    for instance, states in sorted(seen.items()):
        frames = [frame for frame, thing in states.items() if thing["seen"]]
        if not frames:
            continue
        span = [frame for frame in sorted(states) if min(frames) <= frame <= max(frames)]
        tokens = [token("annotation", scene.name, instance, frame) for frame in span]
        own = token("instance", scene.name, instance)
        tables["instance"].append(
            {
                "token": own,
                "category_token": token("category", states[span[0]]["category"]),
                "nbr_annotations": len(span),
                "first_annotation_token": tokens[0],
                "last_annotation_token": tokens[-1],
            }
        )
        for i, frame in enumerate(span):
            tables["sample_annotation"].append(
                _annotation(
                    states[frame], tokens[i], sample_token(scene.name, frame), own,
                    tokens[i - 1] if i else "", tokens[i + 1] if i + 1 < len(span) else "",
                )
            )  # fmt: skip


def _annotation(
    thing: Mapping[str, Any], own: str, sample: str, instance: str, before: str, after: str
) -> Row:
    length, width, height = thing["size"]
    half = thing["yaw"] / 2
    return {
        "token": own,
        "sample_token": sample,
        "instance_token": instance,
        "visibility_token": visibility_token(thing["visibility"]),
        "attribute_tokens": [token("attribute", thing["attribute"])] if thing["attribute"] else [],
        "translation": list(thing["centre"]),
        "size": [width, length, height],
        "rotation": [float(np.cos(half)), 0.0, 0.0, float(np.sin(half))],
        "prev": before,
        "next": after,
        "num_lidar_pts": int(thing["points"]),
        "num_radar_pts": 0,
    }
