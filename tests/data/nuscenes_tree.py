"""A tiny nuScenes tree written by hand: tables, clouds, images, labels and maps, for tests that read or break it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from pyquaternion import Quaternion

from pointlib.data.label_map import load_label_map
from pointlib.data.nuscenes_index import CAMERAS

START_US = 1_532_402_927_000_000
SWEEP_US = 50_000
SWEEPS_PER_SAMPLE = 4
NUM_POINTS = 300
NUM_CLOSE = 20
SCENES = {"scene-0061": "singapore-onenorth", "scene-0103": "boston-seaport"}
"""One of mini_train, one of mini_val."""
CATEGORIES = tuple(load_label_map("nuscenes_lidarseg").raw_names.values())
ATTRIBUTES = ("vehicle.moving", "vehicle.parked", "pedestrian.moving")
# Category, size (w, l, h), LiDAR points, radar points, attribute, speed [m/s], samples in which it is annotated.
OBJECTS = (
    ("vehicle.car", (1.9, 4.6, 1.7), 12, 2, 0, 6.0, (0, 1, 2)),
    ("vehicle.car", (1.8, 4.2, 1.5), 0, 0, 1, 0.0, (0, 1, 2)),
    ("vehicle.truck", (2.6, 9.0, 3.2), 0, 3, 1, 0.0, (0, 1, 2)),
    ("human.pedestrian.adult", (0.6, 0.7, 1.8), 5, 0, 2, 1.5, (1,)),
    ("animal", (0.4, 0.8, 0.5), 3, 0, None, 1.0, (0, 1)),
    ("movable_object.trafficcone", (0.4, 0.4, 0.9), 2, 0, None, 0.0, (0, 2)),
)  # fmt: skip


def write_tree(
    root: Path,
    version: str = "v1.0-mini",
    samples: int = 3,
    change: Callable[[dict[str, list[dict[str, Any]]]], None] | None = None,
) -> Path:
    """Write the tree; `change` may edit the tables before they are written."""
    tables: dict[str, list[dict[str, Any]]] = {name: [] for name in TABLE_NAMES}
    _fixed_tables(tables)
    for number, (name, location) in enumerate(SCENES.items()):
        _scene(root, version, tables, number, name, location, samples)
        _map(root, location, number)
    if change is not None:
        change(tables)
    for name, rows in tables.items():
        path = root / version / f"{name}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(rows))
    return root


TABLE_NAMES = (
    "attribute", "calibrated_sensor", "category", "ego_pose", "instance", "log", "map", "sample", "sample_annotation",
    "sample_data", "scene", "sensor", "visibility", "lidarseg", "panoptic",
)  # fmt: skip


def _fixed_tables(tables: dict[str, list[dict[str, Any]]]) -> None:
    tables["category"] = [
        {"token": f"category{i}", "name": name, "description": "", "index": i}
        for i, name in enumerate(CATEGORIES)
    ]
    tables["attribute"] = [
        {"token": f"attribute{i}", "name": name, "description": ""}
        for i, name in enumerate(ATTRIBUTES)
    ]
    tables["visibility"] = [{"token": "4", "level": "v80-100", "description": ""}]
    rng = np.random.default_rng(5)
    for channel in ("LIDAR_TOP", *CAMERAS):
        modality = "lidar" if channel == "LIDAR_TOP" else "camera"
        tables["sensor"].append({"token": f"s_{channel}", "channel": channel, "modality": modality})
        focal = float(rng.uniform(20, 30))
        intrinsic = [[focal, 0.0, 16.5], [0.0, focal, 9.25], [0.0, 0.0, 1.0]]
        tables["calibrated_sensor"].append(
            {
                "token": f"c_{channel}",
                "sensor_token": f"s_{channel}",
                "translation": rng.uniform(-2, 2, 3).tolist(),
                "rotation": list(Quaternion(rng.normal(size=4)).normalised),
                "camera_intrinsic": [] if modality == "lidar" else intrinsic,
            }
        )
    lidar = tables["calibrated_sensor"][0]
    lidar["rotation"] = list(
        Quaternion(axis=[0, 0, 1], degrees=-90) * Quaternion([1, 0.01, 0.02, 0]).normalised
    )


def _scene(
    root: Path,
    version: str,
    tables: dict[str, list[dict[str, Any]]],
    number: int,
    name: str,
    location: str,
    samples: int,
) -> None:
    scene = f"scene{number}"
    tables["log"].append(
        {
            "token": f"log{number}",
            "logfile": f"n{number}",
            "vehicle": "",
            "date_captured": "",
            "location": location,
        }
    )
    tables["map"].append(
        {
            "token": f"map{number}",
            "log_tokens": [f"log{number}"],
            "category": "semantic_prior",
            "filename": f"maps/{number}.png",
        }
    )
    (root / "maps").mkdir(parents=True, exist_ok=True)
    Image.new("L", (4, 4)).save(root / "maps" / f"{number}.png")
    tokens = [f"{scene}_sample{i}" for i in range(samples)]
    tables["scene"].append(
        {
            "token": scene, "log_token": f"log{number}", "nbr_samples": samples, "name": name, "description": "",
            "first_sample_token": tokens[0], "last_sample_token": tokens[-1],
        }
    )  # fmt: skip
    start = START_US + number * 60_000_000
    for i, token in enumerate(tokens):
        time = start + i * SWEEPS_PER_SAMPLE * SWEEP_US
        tables["sample"].append(
            {"token": token, "timestamp": time, "scene_token": scene, **_links(tokens, i)}
        )
    sweeps = SWEEPS_PER_SAMPLE * (samples - 1) + 1
    lidar = [f"{scene}_lidar{i}" for i in range(sweeps)]
    for i, token in enumerate(lidar):
        is_key, sample = i % SWEEPS_PER_SAMPLE == 0, tokens[-(-i // SWEEPS_PER_SAMPLE)]
        time = start + i * SWEEP_US
        folder = "samples" if is_key else "sweeps"
        file = f"{folder}/LIDAR_TOP/{name}__LIDAR_TOP__{time}.pcd.bin"
        _sample_data(
            tables, token, sample, "LIDAR_TOP", time, file, is_key, _links(lidar, i), number
        )
        write_cloud(root / file, seed=number * 100 + i)
        if is_key:
            _point_labels(root, version, tables, token, seed=number * 100 + i)
    for i, sample in enumerate(tokens):
        for c, camera in enumerate(CAMERAS):
            time = start + i * SWEEPS_PER_SAMPLE * SWEEP_US - 35_000 + 7_000 * c
            file = f"samples/{camera}/{name}__{camera}__{time}.jpg"
            links = {"prev": "", "next": ""}
            _sample_data(
                tables, f"{sample}_{camera}", sample, camera, time, file, True, links, number
            )
            (root / file).parent.mkdir(parents=True, exist_ok=True)
            pixels = np.full((18, 32, 3), (40 * c, 10 * i, 100), np.uint8)
            Image.fromarray(pixels).save(root / file, quality=95)
    _annotations(tables, scene, tokens)


def _links(tokens: list[str], i: int) -> dict[str, str]:
    return {
        "prev": tokens[i - 1] if i else "",
        "next": tokens[i + 1] if i + 1 < len(tokens) else "",
    }


def _sample_data(
    tables: dict[str, list[dict[str, Any]]],
    token: str,
    sample: str,
    channel: str,
    time: int,
    file: str,
    is_key: bool,
    links: dict[str, str],
    number: int,
) -> None:
    seconds = (time - START_US - number * 60_000_000) * 1e-6
    heading = Quaternion(axis=[0, 0, 1], angle=0.7 + 0.4 * seconds + number)
    tilt = Quaternion(axis=[1, 0, 0], angle=0.02 + 0.01 * seconds)
    tables["ego_pose"].append(
        {
            "token": f"p_{token}",
            "timestamp": time,
            "translation": [400.0 + 8 * seconds, 1100.0 + 3 * seconds, 0.3 * seconds],
            "rotation": list(heading * tilt),
        }
    )
    tables["sample_data"].append(
        {
            "token": token, "sample_token": sample, "ego_pose_token": f"p_{token}",
            "calibrated_sensor_token": f"c_{channel}", "timestamp": time, "filename": file,
            "fileformat": "pcd" if channel == "LIDAR_TOP" else "jpg", "is_key_frame": is_key,
            "height": 0 if channel == "LIDAR_TOP" else 18, "width": 0 if channel == "LIDAR_TOP" else 32, **links,
        }
    )  # fmt: skip


def write_cloud(path: Path, seed: int) -> None:
    """A cloud of 5 columns, some points of it on the vehicle itself."""
    rng = np.random.default_rng(seed)
    points = rng.uniform(-40, 40, (NUM_POINTS, 5)).astype(np.float32)
    points[:, 0] = rng.choice([-1, 1], NUM_POINTS) * rng.uniform(2, 40, NUM_POINTS)
    points[:NUM_CLOSE, :2] = rng.uniform(-0.9, 0.9, (NUM_CLOSE, 2))
    points[:, 3] = rng.integers(0, 256, NUM_POINTS)
    points[:, 4] = rng.integers(0, 32, NUM_POINTS)
    path.parent.mkdir(parents=True, exist_ok=True)
    points.tofile(path)


def _point_labels(
    root: Path, version: str, tables: dict[str, list[dict[str, Any]]], token: str, seed: int
) -> None:
    rng = np.random.default_rng([seed, 1])
    raw = rng.integers(0, len(CATEGORIES), NUM_POINTS).astype(np.uint8)
    instance = np.where(raw < 24, rng.integers(1, 4, NUM_POINTS), 0)
    for task, suffix in (("lidarseg", "lidarseg.bin"), ("panoptic", "panoptic.npz")):
        file = f"{task}/{version}/{token}_{suffix}"
        (root / file).parent.mkdir(parents=True, exist_ok=True)
        tables[task].append(
            {"token": f"{task}_{token}", "sample_data_token": token, "filename": file}
        )
    raw.tofile(root / f"lidarseg/{version}/{token}_lidarseg.bin")
    data = raw.astype(np.uint16) * 1000 + instance.astype(np.uint16)
    np.savez_compressed(root / f"panoptic/{version}/{token}_panoptic.npz", data=data)


def _annotations(tables: dict[str, list[dict[str, Any]]], scene: str, samples: list[str]) -> None:
    for k, (category, size, lidar, radar, attribute, speed, seen) in enumerate(OBJECTS):
        there = [i for i in seen if i < len(samples)]
        tokens = [f"{scene}_object{k}_{i}" for i in there]
        tables["instance"].append(
            {
                "token": f"{scene}_object{k}", "category_token": f"category{CATEGORIES.index(category)}",
                "nbr_annotations": len(tokens), "first_annotation_token": tokens[0],
                "last_annotation_token": tokens[-1],
            }
        )  # fmt: skip
        heading = 0.3 + 1.1 * k
        for j, i in enumerate(there):
            way = speed * i * SWEEPS_PER_SAMPLE * SWEEP_US * 1e-6
            tables["sample_annotation"].append(
                {
                    "token": tokens[j], "sample_token": samples[i], "instance_token": f"{scene}_object{k}",
                    "visibility_token": "4", "attribute_tokens": [] if attribute is None else [f"attribute{attribute}"],
                    "translation": [
                        405.0 + 6 * k + way * np.cos(heading), 1090.0 + 5 * k + way * np.sin(heading), 1.0,
                    ],
                    "size": list(size), "rotation": list(Quaternion(axis=[0, 0, 1], angle=heading)),
                    "num_lidar_pts": lidar, "num_radar_pts": radar, **_links(tokens, j),
                }
            )  # fmt: skip


def _map(root: Path, location: str, number: int) -> None:
    """A map expansion file around where the vehicle drives: areas with holes, lines that leave every grid."""
    rng = np.random.default_rng(number)
    content: dict[str, Any] = {
        name: [] for name in (
            "polygon", "line", "node", "drivable_area", "road_segment", "road_block", "lane", "ped_crossing", "walkway",
            "stop_line", "carpark_area", "road_divider", "lane_divider", "traffic_light", "lane_connector",
        )
    }  # fmt: skip
    content |= {
        "version": "1.3",
        "canvas_edge": [2979.5, 2118.1],
        "arcline_path_3": {},
        "connectivity": {},
    }

    def nodes(points: Any) -> list[str]:
        tokens = [f"node{len(content['node']) + i}" for i in range(len(points))]
        for token, (x, y) in zip(tokens, points, strict=True):
            content["node"].append({"token": token, "x": float(x), "y": float(y)})
        return tokens

    def star(centre: Any, radius: float, corners: int = 9) -> Any:
        angles = np.sort(rng.uniform(0, 2 * np.pi, corners))
        lengths = radius * rng.uniform(0.6, 1.0, corners)
        return np.asarray(centre) + lengths[:, None] * np.stack([np.cos(angles), np.sin(angles)], 1)

    def polygon(outline: Any, holes: Any = ()) -> str:
        token = f"polygon{len(content['polygon'])}"
        entries = [{"node_tokens": nodes(hole)} for hole in holes]
        content["polygon"].append(
            {"token": token, "exterior_node_tokens": nodes(outline), "holes": entries}
        )
        return token

    middle = np.array([404.0, 1102.0])
    holes = [star(middle + shift, 6) for shift in ((12, -4), (25, -9))]
    big = [polygon(star(middle + np.array([20, -10]), 70, 24), holes)]
    big.append(polygon(star(middle + 30, 25)))
    content["drivable_area"].append({"token": "area0", "polygon_tokens": big})
    for layer in ("ped_crossing", "walkway", "stop_line", "carpark_area"):
        for i in range(6):
            token = polygon(star(middle + rng.uniform(-60, 60, 2), rng.uniform(3, 25)))
            record = {"token": f"{layer}{i}", "polygon_token": token}
            if layer == "stop_line":
                record |= {"stop_line_type": "YIELD"}
            content[layer].append(record)
    for layer in ("road_divider", "lane_divider"):
        for i in range(6):
            points = middle + rng.uniform(-90, 90, 2) + np.cumsum(rng.uniform(-1, 9, (12, 2)), 0)
            content["line"].append({"token": f"{layer}_line{i}", "node_tokens": nodes(points)})
            content[layer].append({"token": f"{layer}{i}", "line_token": f"{layer}_line{i}"})
    path = root / "maps" / "expansion" / f"{location}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))
