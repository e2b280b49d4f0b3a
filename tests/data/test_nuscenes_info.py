"""mmdetection3d's info files: the real sample of nuScenes with six images, sweeps, and broken files."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pointlib.data.nuscenes_index import CAMERAS
from pointlib.data.nuscenes_info import NuScenesInfo
from pointlib.data.sample import BadSampleError
from pointlib.geometry import (
    box_corners,
    invert,
    project_points,
    projection_matrix,
    rigid_transform,
    transform_points,
    yaw_rotation,
)


@pytest.fixture(scope="module")
def real(test_data: Path) -> Path:
    folder = test_data / "nuscenes" / "scene0061_kf0"
    if not folder.is_dir():
        pytest.skip(f"no real sample of nuScenes in {folder}")
    return folder


def count_inside(points: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    """LiDAR returns inside each box."""
    counts = []
    for box in boxes.astype(float):
        world2box = invert(rigid_transform(yaw_rotation(box[6]), box[:3]))
        local = transform_points(points[:, :3].astype(float), world2box)
        counts.append(int((np.abs(local) <= box[3:6] / 2).all(1).sum()))
    return np.array(counts)


def test_points_inside_the_real_boxes_are_those_counted(real: Path) -> None:
    sample = NuScenesInfo(real / "info.json", cameras=False, min_points=0)[0]
    assert len(sample.points) == 34688 and sample.points.shape[1] == 5
    assert (sample.points[:, 4] == 0).all() and sample.points[:, 3].max() == 255
    counts = count_inside(sample.points, sample.boxes)
    equal = int((counts == sample.box_points).sum())
    assert np.abs(counts - sample.box_points).max() == 16
    entries = json.loads((real / "info.json").read_text())["data_list"][0]["instances"]
    others = [entry for entry in entries if entry["bbox_label_3d"] < 0]  # of no class of the task
    assert len(counts) + len(others) == len(entries) == 69
    counts = count_inside(sample.points, np.array([entry["bbox_3d"] for entry in others]))
    assert equal + int((counts == [entry["num_lidar_pts"] for entry in others]).sum()) == 61


def test_real_boxes_project_onto_the_images_as_recorded(real: Path) -> None:
    """Each camera's own list of boxes holds the 2-D frames that mmdetection3d computed, of tilted boxes."""
    source = NuScenesInfo(real / "info.json", min_points=0)
    sample, info = source[0], json.loads((real / "info.json").read_text())["data_list"][0]
    corners = box_corners(sample.boxes.astype(float))
    overlaps = []
    for camera in sample.cameras:
        assert camera.image is not None and camera.image.shape == (900, 1600, 3)
        matrix = projection_matrix(camera.intrinsics, camera.lidar2camera)
        pixels = project_points(corners.reshape(-1, 3), matrix)
        u = pixels.pixels.reshape(-1, 8, 2).clip(0, [1600, 900])
        frames = np.concatenate([u.min(1), u.max(1)], 1)
        for entry in info["cam_instances"][camera.name]:
            centre = np.array(entry["center_2d"])
            middles = project_points(sample.boxes[:, :3].astype(float), matrix)
            errors = np.nan_to_num(np.linalg.norm(middles.pixels - centre, axis=1), nan=1e9)
            box = int(errors.argmin())
            assert errors[box] < 0.01 and abs(middles.depth[box] - entry["depth"]) < 0.001
            if np.isfinite(frames[box]).all():
                overlaps.append(_overlap(frames[box], np.array(entry["bbox"])))
    assert len(overlaps) > 70 and np.median(overlaps) > 0.94 and min(overlaps) > 0.8


def _overlap(a: np.ndarray, b: np.ndarray) -> float:
    """Intersection over union of two image frames [u0, v0, u1, v1]."""
    sides = np.minimum(a[2:], b[2:]) - np.maximum(a[:2], b[:2])
    shared = float(sides.clip(0).prod())
    return shared / (float((a[2:] - a[:2]).prod()) + float((b[2:] - b[:2]).prod()) - shared)


def test_real_sample_as_training_sees_it(real: Path) -> None:
    source = NuScenesInfo(real / "info.json")
    sample = source[0]
    assert sample.token == "ca9a282c9e77460f8360f564131a8af5"
    assert sample.timestamp_us == 1532402927647951
    assert tuple(c.name for c in sample.cameras) == CAMERAS == source.camera_names
    assert [abs(c.timestamp_us - sample.timestamp_us) < 50_000 for c in sample.cameras] == [
        True
    ] * 6
    assert (sample.box_points >= 0).all() and len(sample.boxes) <= 69
    np.testing.assert_array_equal(
        source.class_counts(0), np.bincount(sample.box_labels, minlength=10)
    )
    names = {source.class_names[i] for i in sample.box_labels}
    assert {"pedestrian", "car", "truck", "barrier", "traffic_cone"} <= names
    cars = sample.boxes[sample.box_labels == source.class_names.index("car")]
    assert (cars[:, 3] > cars[:, 4]).all()  # longer than wide
    forward = sample.lidar2ego[:3, :3] @ [0, 1, 0]
    assert forward[0] > 0.99  # the vehicle's front is the LiDAR's +y


def test_other_infos_have_boxes_without_files(test_data: Path) -> None:
    path = test_data / "nuscenes" / "infos" / "val_first10_boxes.json"
    if not path.is_file():
        pytest.skip(f"no {path}")
    source = NuScenesInfo(path)
    assert len(source) == 10 and all(source.class_counts(i).sum() > 20 for i in range(10))
    with pytest.raises(
        BadSampleError, match=r"samples/LIDAR_TOP/n015-.*__LIDAR_TOP__1533201470448"
    ):
        source[0]


def write_info(folder: Path, change: Any = None) -> Path:
    """One key frame at 1 m/s with two sweeps 0.05 s and 0.1 s before it."""
    rng = np.random.default_rng(0)
    clouds = rng.uniform(2, 30, (3, 50, 5)).astype(np.float32)
    lidar = folder / "samples" / "LIDAR_TOP"
    lidar.mkdir(parents=True)
    sweeps = []
    for i, cloud in enumerate(clouds):
        cloud.tofile(lidar / f"{i}.pcd.bin")
        lidar2sensor = rigid_transform(yaw_rotation(np.array(0.1 * i)), [0.0, 0.05 * i, 0.0])
        points = {
            "lidar_path": f"samples/LIDAR_TOP/{i}.pcd.bin",
            "lidar2sensor": lidar2sensor.tolist(),
        }
        sweeps.append({"timestamp": 1e9 - 0.05 * i, "lidar_points": points})
    eye = np.eye(4).tolist()
    images = {}
    for name in CAMERAS:
        (folder / "samples" / name).mkdir()
        Image.new("RGB", (8, 4)).save(folder / "samples" / name / "a.jpg")
        images[name] = {
            "img_path": "a.jpg", "cam2img": np.eye(3).tolist(), "lidar2cam": eye, "timestamp": 1e9
        }  # fmt: skip
    box = {"bbox_3d": [1, 2, 3, 4, 2, 1, 0.5], "velocity": [1, 2], "num_radar_pts": 0}
    content: dict[str, Any] = {
        "metainfo": {"info_version": "1.1", "categories": {"bus": 3, "car": 0, "animal": -1}},
        "data_list": [
            {
                "token": "t", "timestamp": 1e9, "ego2global": eye, "images": images, "lidar_sweeps": sweeps[1:],
                "lidar_points": {"lidar_path": "0.pcd.bin", "lidar2ego": eye},
                "instances": [
                    {**box, "bbox_label_3d": 3, "num_lidar_pts": 5},
                    {**box, "bbox_label_3d": 0, "num_lidar_pts": 0},
                    {**box, "bbox_label_3d": -1, "num_lidar_pts": 9},
                ],
            }
        ],
    }  # fmt: skip
    if change is not None:
        change(content)
    (folder / "info.json").write_text(json.dumps(content))
    return folder / "info.json"


def test_sweeps_and_boxes(tmp_path: Path) -> None:
    source = NuScenesInfo(write_info(tmp_path))
    sample = source[0]
    np.testing.assert_allclose(np.unique(sample.points[:, 4]), [0, 0.05, 0.1], atol=1e-6)
    raw = np.fromfile(tmp_path / "samples" / "LIDAR_TOP" / "2.pcd.bin", np.float32).reshape(-1, 5)
    sensor = transform_points(
        sample.points[100:, :3].astype(float),
        rigid_transform(yaw_rotation(np.array(0.2)), [0, 0.1, 0]),
    )
    np.testing.assert_allclose(sensor, raw[:, :3], atol=1e-5)
    assert len(NuScenesInfo(tmp_path / "info.json", num_sweeps=2)[0].points) == 100
    np.testing.assert_allclose(sample.boxes, [[1, 2, 3, 4, 2, 1, 0.5, 1, 2]])
    assert source.class_names[sample.box_labels[0]] == "bus"
    both = NuScenesInfo(tmp_path / "info.json", min_points=0, class_names=["car", "bus"])[0]
    assert both.box_labels.tolist() == [1, 0] and both.box_points.tolist() == [5, 0]


def test_broken_infos_are_named(tmp_path: Path) -> None:
    def path(name: str, text: str) -> Path:
        (tmp_path / name).write_text(text)
        return tmp_path / name

    for name, text, message in (
        ("a.pkl", "", r"a.pkl: a pickle can run code"),
        ("b.json", "{", r"b.json \(JSONDecodeError"),
        ("c.json", "{}", r"c.json \(KeyError"),
        ("d.json", "[]", r"d.json \(TypeError"),
        (
            "e.json",
            '{"metainfo": {"info_version": "1.0", "categories": {}}, "data_list": []}',
            r"got 1.0",
        ),
    ):
        with pytest.raises(ValueError, match=message):
            NuScenesInfo(path(name, text))
    with pytest.raises(ValueError, match=r"nothing.json"):
        NuScenesInfo(tmp_path / "nothing.json")


def test_broken_entries_and_missing_files_are_named(tmp_path: Path) -> None:
    def without_pose(content: dict[str, Any]) -> None:
        del content["data_list"][0]["ego2global"]

    with pytest.raises(BadSampleError, match=r"entry 0 .* got none named 'ego2global'"):
        NuScenesInfo(write_info(tmp_path / "pose", without_pose))[0]
    info = write_info(tmp_path / "files")
    image = info.parent / "samples" / "CAM_BACK" / "a.jpg"
    image.unlink()
    with pytest.raises(BadSampleError, match=rf"CAM_BACK, got no file {re.escape(str(image))}"):
        NuScenesInfo(info)[0]
    cameras = NuScenesInfo(info, missing_cameras="allow")[0].cameras
    assert [c.image is None for c in cameras] == [False, False, False, True, False, False]
    (info.parent / "samples" / "LIDAR_TOP" / "1.pcd.bin").unlink()
    with pytest.raises(BadSampleError, match=r"LIDAR_TOP/1.pcd.bin"):
        NuScenesInfo(info, cameras=False)[0]
    assert len(NuScenesInfo(info, cameras=False, missing_sweeps="allow")[0].points) == 100
    with pytest.raises(IndexError, match=r"0..0, got 1"):
        NuScenesInfo(info)[1]
