"""PandaSet's frames, boxes, cameras and labels, on real recordings: what must be true of a street is."""

from __future__ import annotations

import gzip
import json
import os
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from pointlib.data.label_map import load_label_map
from pointlib.data.multi_sensor import MultiSensorSample
from pointlib.data.pandaset import CLASS_NAMES, CLASS_OF_LABEL, IGNORED_LABELS, PandaSet
from pointlib.data.pandaset_segmentation import PandaSetSegmentation
from pointlib.data.pandaset_table import read_table
from pointlib.data.sample import BadSampleError
from pointlib.geometry import project_points, projection_matrix
from pointlib.ops.boxes import points_in_boxes, points_in_boxes_all


@pytest.fixture(scope="module")
def root(test_data: Path) -> Path:
    return test_data / "pandaset"


@pytest.fixture(scope="module")
def sample(root: Path) -> MultiSensorSample:
    return PandaSet(root, missing_images="skip", min_points=0)[0]


@pytest.fixture
def tree(root: Path, tmp_path: Path) -> Path:
    """Sequence 002 with links to its files, which a test may replace."""
    shutil.copytree(root / "002", tmp_path / "002", copy_function=os.symlink)
    return tmp_path


def replace(path: Path, content: bytes | None) -> None:
    path.unlink()
    if content is not None:
        path.write_bytes(content)


def test_the_road_is_flat_and_below_the_sensor(root: Path) -> None:
    source = PandaSetSegmentation(root)
    road = source.class_names.index("driveable_surface")
    for index in (0, 4):
        scan = source[index]
        points = scan.points[scan.labels == road].astype(np.float64)
        points = points[np.hypot(points[:, 0], points[:, 1]) < 40]
        plane = np.column_stack([points[:, :2], np.ones(len(points))])
        slope_x, slope_y, height = np.linalg.lstsq(plane, points[:, 2], rcond=None)[0]
        assert abs(slope_x) < 0.01 and abs(slope_y) < 0.01
        assert height == pytest.approx(-2.17, abs=0.05)  # the LiDAR is on the roof


def test_ego_is_between_the_lidar_and_the_road(sample: MultiSensorSample) -> None:
    np.testing.assert_allclose(sample.lidar2ego[:3, 3], [0.797, 0.0, 1.846], atol=1e-3)
    assert sample.lidar2ego[2, 2] > 0.999  # 2 degrees of roll
    np.testing.assert_allclose(sample.ego2global[:3, 3], 0, atol=1e-9)


def test_cars_stand_on_the_road_and_hold_their_points(
    sample: MultiSensorSample, root: Path
) -> None:
    cars = sample.boxes[sample.box_labels == CLASS_NAMES.index("car")]
    near = cars[np.hypot(cars[:, 0], cars[:, 1]) < 30]
    bottom = near[:, 2] - near[:, 5] / 2
    assert len(near) > 20 and np.abs(bottom + 2.17).max() < 0.3
    source = PandaSetSegmentation(root)
    scan = source[0]
    inside = points_in_boxes(torch.from_numpy(scan.points), torch.from_numpy(cars)).numpy() >= 0
    share = (scan.labels[inside] == source.class_names.index("car")).mean()
    assert 0.94 <= share <= 0.98


def test_boxes_hold_as_many_points_as_cuboids_in_the_world_frame(
    sample: MultiSensorSample, root: Path
) -> None:
    """Counted from the files alone, in PandaSet's own convention (x is the width, y the length)."""
    points = read_table(root / "002/lidar/00.pkl.gz")
    world = np.stack([points[axis] for axis in "xyz"], axis=1)[points["d"] == 0]
    cuboids = read_table(root / "002/annotations/cuboids/00.pkl.gz")
    expected = []
    for i in range(len(cuboids["yaw"])):
        if cuboids["label"][i] not in CLASS_OF_LABEL or cuboids["cuboids.sensor_id"][i] == 1:
            continue
        offset = world - [cuboids[f"position.{axis}"][i] for axis in "xyz"]
        c, s = np.cos(cuboids["yaw"][i]), np.sin(cuboids["yaw"][i])
        local = np.stack([offset @ [c, s, 0], offset @ [-s, c, 0], offset[:, 2]])
        half = np.array([[cuboids[f"dimensions.{axis}"][i] / 2] for axis in "xyz"])
        expected.append(int((np.abs(local) <= half).all(0).sum()))
    difference = np.abs(sample.box_points - expected)
    assert len(expected) == len(sample.boxes) and sum(expected) > 8000
    assert difference.max() <= 1 and difference.sum() <= 5  # float32 points on a face


def test_cameras_see_what_the_files_say(sample: MultiSensorSample, root: Path) -> None:
    """Pixels of the points, computed from the camera's pose and the points in the world frame alone."""
    points = read_table(root / "002/lidar/00.pkl.gz")
    world = np.stack([points[axis] for axis in "xyz"], axis=1)[points["d"] == 0]
    seen = 0
    for camera in sample.cameras:
        folder = root / "002/camera" / camera.name
        pose = json.loads((folder / "poses.json").read_text())[0]
        w, x, y, z = (pose["heading"][k] for k in "wxyz")
        rotation = np.array(
            [
                [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
                [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
                [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
            ]
        )
        local = (world - [pose["position"][k] for k in "xyz"]) @ rotation
        matrix = json.loads((folder / "intrinsics.json").read_text())
        front = local[:, 2] > 1
        u = matrix["fx"] * local[front, 0] / local[front, 2] + matrix["cx"]
        v = matrix["fy"] * local[front, 1] / local[front, 2] + matrix["cy"]
        lidar2image = projection_matrix(camera.intrinsics, camera.lidar2camera)
        found = project_points(sample.points[front].astype(np.float64), lidar2image)
        inside = (u >= 0) & (u < 1920) & (v >= 0) & (v < 1080)
        np.testing.assert_allclose(found.pixels[inside], np.stack([u, v], 1)[inside], atol=0.01)
        seen += inside.sum()
        assert camera.image is not None and camera.image.shape == (1080, 1920, 3)
        assert camera.path == str(folder / "00.jpg")
        assert -110_000 < camera.timestamp_us - sample.timestamp_us < 0
    assert seen > 60_000
    forward = [camera.lidar2camera[2, :3] for camera in sample.cameras]  # optical axes
    assert forward[0][0] > 0.99 and forward[3][0] < -0.99  # front, back
    assert forward[4][1] > 0.99 and forward[5][1] < -0.99  # left, right


def test_velocity_is_along_the_heading(sample: MultiSensorSample) -> None:
    speed = np.hypot(sample.boxes[:, 7], sample.boxes[:, 8])
    moving = speed > 3
    assert moving.sum() > 10 and np.isfinite(speed).all()
    heading = np.stack([np.cos(sample.boxes[:, 6]), np.sin(sample.boxes[:, 6])], axis=1)
    along = (heading * sample.boxes[:, 7:]).sum(1)
    assert (along[moving] > 0.99 * speed[moving]).all()
    assert (speed < 0.1).sum() > 40  # those that are parked


def test_sweeps_lie_on_each_other(root: Path) -> None:
    sample = PandaSet(root, sweeps=3, cameras=False)[4]
    times, counts = np.unique(sample.points[:, 4], return_counts=True)
    np.testing.assert_allclose(times, [0, 0.1, 0.2], atol=1e-3)
    assert (sample.points[: counts[0], 4] == 0).all()
    parked = sample.boxes[np.hypot(sample.boxes[:, 7], sample.boxes[:, 8]) < 0.05]
    inside = points_in_boxes_all(torch.from_numpy(sample.points), torch.from_numpy(parked))
    held = np.array(
        [inside[torch.from_numpy(sample.points[:, 4] == t)].sum().item() for t in times]
    )
    assert held.min() > 0.98 * held.max() > 5000
    assert len(PandaSet(root, sweeps=3, cameras=False)[0].points) == counts[0] + 46  # the first


def test_objects_of_both_lidars_come_once(root: Path) -> None:
    one, two, both = (
        PandaSet(root, sensor=sensor, cameras=False, min_points=0)[0]
        for sensor in ("pandar64", "pandargt", "both")
    )
    assert [len(s.points) for s in (one, two, both)] == [106169, 60599, 166768]
    centres = both.boxes[:, :2]
    distance = np.hypot(*(centres[:, None] - centres[None]).transpose(2, 0, 1))
    np.fill_diagonal(distance, np.inf)
    assert distance.min() > 0.5 and len(both.boxes) >= len(one.boxes)
    assert np.isnan(two.boxes[:, 7]).sum() == 22  # the PandarGT's own: their time is not known


def test_class_counts_need_no_points(root: Path) -> None:
    source = PandaSet(root, cameras=False, min_points=0)
    for index in range(len(source)):
        expected = np.bincount(source[index].box_labels, minlength=10)
        np.testing.assert_array_equal(source.class_counts(index), expected)
    few = PandaSet(root, cameras=False, min_points=5)[0]
    assert few.box_points.min() >= 5 and len(few.boxes) < source.class_counts(0).sum()


def test_frames_without_images(root: Path) -> None:
    black = PandaSet(root, missing_images="black")
    assert [camera.image is None for camera in black[1].cameras] == [True] * 6
    assert black[0].cameras[0].image is not None
    skip = PandaSet(root, missing_images="skip")
    assert skip.skipped_frames == ("002/01", "002/02", "002/03")
    assert [skip[i].token for i in range(len(skip))] == ["002/00", "002/04"]
    with pytest.raises(BadSampleError, match=r"front_camera/01\.jpg, which does not exist"):
        PandaSet(root)[1]


def test_every_label_of_the_files_has_a_meaning(root: Path) -> None:
    names = json.loads((root / "002/annotations/semseg/classes.json").read_text())
    assert {int(i): name for i, name in names.items()}.items() <= dict(
        load_label_map("pandaset").raw_names
    ).items()
    assert set(CLASS_OF_LABEL.values()) == set(CLASS_NAMES)
    assert (
        not set(CLASS_OF_LABEL) & IGNORED_LABELS and len(CLASS_OF_LABEL) + len(IGNORED_LABELS) == 28
    )
    splits = load_label_map("pandaset").splits
    assert (
        sum(map(len, splits.values())) == len({s for part in splits.values() for s in part}) == 103
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"sensor": "radar"}, "sensor must be one of pandar64, pandargt, both, got 'radar'"),
        ({"split": "trian"}, "split must be one of train, val, test, got 'trian'"),
        ({"split": ["002", "999"]}, "must hold the sequences 999, got 002"),
        ({"split": "val"}, "must hold the sequences val, got 002"),
        ({"missing_images": "ignore"}, "missing_images must be one of"),
        ({"sweeps": 0}, "sweeps must be at least 1, got 0"),
    ],
)
def test_wrong_arguments(root: Path, arguments: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PandaSet(root, **arguments)  # type: ignore[arg-type]


def test_a_wrong_root_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"got none\. Give the folder that holds the folders 001"):
        PandaSet(tmp_path)


BROKEN = [
    ("lidar/poses.json", b"[]", r"lidar must hold a pose and a time for each frame up to 04, got 0"),
    ("lidar/poses.json", b"[{}]", r"poses\.json must be a list of position and heading"),
    ("lidar/poses.json", None, r"poses\.json must be readable JSON"),
    ("lidar/timestamps.json", b"[2, 1, 3, 4, 5]", r"timestamps\.json must be a list of rising times"),
    ("lidar/00.pkl.gz", b"\x1f\x8b", r"lidar/00\.pkl\.gz"),
    ("camera/back_camera/intrinsics.json", b'{"fx": 1}', r"intrinsics\.json must hold fx, fy, cx and cy"),
    ("camera/back_camera/poses.json", b"[]", r"back_camera must hold a pose and a time for each"),
    ("camera/left_camera/00.jpg", b"\xff\xd8\xff\xe0", r"left_camera/00\.jpg"),
    ("annotations/cuboids/00.pkl.gz", gzip.compress(pickle.dumps([1])), r"cuboids/00\.pkl\.gz must hold"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "content", "message"), BROKEN)
def test_broken_files_are_named(tree: Path, name: str, content: bytes | None, message: str) -> None:
    replace(tree / "002" / name, content)
    with pytest.raises(BadSampleError, match=message):
        PandaSet(tree)[0]


def test_a_table_of_another_kind_is_named(tree: Path, root: Path) -> None:
    points = tree / "002/lidar/00.pkl.gz"
    replace(points, (root / "002/annotations/semseg/00.pkl.gz").read_bytes())
    with pytest.raises(
        BadSampleError, match=r"lidar/00\.pkl\.gz must have the columns x, y, z, i, d"
    ):
        PandaSet(tree)[0]


def test_labels_of_another_frame_are_refused(tree: Path, root: Path) -> None:
    classes = tree / "002/annotations/semseg/00.pkl.gz"
    replace(classes, (root / "002/annotations/semseg/02.pkl.gz").read_bytes())
    with pytest.raises(BadSampleError, match="a class for each of the 166768 points"):
        PandaSetSegmentation(tree)[0]


def test_segmentation_without_labels_is_refused(tree: Path) -> None:
    shutil.rmtree(tree / "002/annotations/semseg")
    with pytest.raises(ValueError, match="76 of the 103 sequences"):
        PandaSetSegmentation(tree)
