"""Samples of nuScenes: sweeps against the devkit's, boxes, cameras and options, and data that is missing or broken."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from torch.utils.data import DataLoader, Dataset

from pointlib.data.nuscenes import NuScenes
from pointlib.data.nuscenes_index import CAMERAS, DETECTION_CLASSES
from pointlib.data.sample import BadSampleError
from pointlib.geometry import project_points, projection_matrix, transform_boxes
from tests.data.nuscenes_tree import NUM_CLOSE, NUM_POINTS, write_tree

pytest.importorskip("nuscenes")
VERSION = "v1.0-mini"


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tree(tmp_path_factory.mktemp("nuscenes"))


@pytest.fixture
def own_tree(tmp_path: Path) -> Path:
    """A tree that a test may break."""
    return write_tree(tmp_path)


@pytest.fixture(scope="module")
def nusc(tree: Path) -> Any:
    from nuscenes.nuscenes import NuScenes as Devkit

    return Devkit(VERSION, str(tree), verbose=False)


def open_tree(root: Path, split: str = "mini_train", **options: Any) -> NuScenes:
    return NuScenes(root, VERSION, split, **options)


@pytest.mark.parametrize("num_sweeps", [1, 4, 10])
def test_sweeps_equal_the_devkits(tree: Path, nusc: Any, num_sweeps: int) -> None:
    from nuscenes.utils.data_classes import LidarPointCloud

    source = open_tree(tree, num_sweeps=num_sweeps)
    for i in range(len(source)):
        sample = source[i]
        record = nusc.get("sample", sample.token)
        cloud, times = LidarPointCloud.from_file_multisweep(
            nusc, record, "LIDAR_TOP", "LIDAR_TOP", num_sweeps, min_distance=1.0
        )
        kept = np.ones(len(sample.points), bool)
        kept[:NUM_CLOSE] = False  # the devkit drops them from the key frame too
        np.testing.assert_allclose(sample.points[kept, :4], cloud.points.T, atol=1e-5)
        np.testing.assert_allclose(sample.points[kept, 4], times[0], atol=1e-6)
        assert sample.points.dtype == np.float32
        assert (sample.points[:NUM_POINTS, 4] == 0).all()
        assert (sample.points[NUM_POINTS:, 4] > 0).all()


def test_a_scenes_start_has_fewer_sweeps(tree: Path) -> None:
    source = open_tree(tree, num_sweeps=10)
    counts = [NUM_POINTS + n * (NUM_POINTS - NUM_CLOSE) for n in (0, 4, 8)]
    assert [len(source[i].points) for i in range(3)] == counts
    assert [len(source.sweeps(i)) for i in range(3)] == [0, 4, 8]
    assert [round(s.seconds, 6) for s in source.sweeps(1)] == [0.05, 0.1, 0.15, 0.2]


def test_boxes_of_training_and_of_evaluation(tree: Path) -> None:
    train, everything = open_tree(tree), open_tree(tree, min_points=0)
    names = [train.class_names[i] for i in train[1].box_labels]
    assert names == ["car", "truck", "pedestrian"]  # a truck seen by radar alone; no animal
    assert train[1].box_points.tolist() == [12, 0, 5]
    assert [train.class_names[i] for i in everything[1].box_labels] == [
        "car",
        "car",
        "truck",
        "pedestrian",
    ]
    assert train.attributes(1) == ("vehicle.moving", "vehicle.parked", "pedestrian.moving")
    assert train.attributes(2) == ("vehicle.moving", "vehicle.parked", "")
    assert train.class_names == DETECTION_CLASSES
    for source in (train, everything):
        for i in range(3):
            counts = np.bincount(source[i].box_labels, minlength=10)
            np.testing.assert_array_equal(source.class_counts(i), counts)
    sample = train[1]
    assert sample.boxes.dtype == np.float32 and sample.box_labels.dtype == np.int64
    speed = np.linalg.norm(sample.boxes[0, 7:])
    np.testing.assert_allclose(speed, 6.0, rtol=1e-3)
    heading = sample.boxes[0, 7:] / speed
    yaw = sample.boxes[0, 6]
    np.testing.assert_allclose(heading, [np.cos(yaw), np.sin(yaw)], atol=2e-3)


def test_boxes_in_the_world_are_the_tables(tree: Path, nusc: Any) -> None:
    sample = open_tree(tree, min_points=0)[1]
    world = transform_boxes(sample.boxes.astype(float), sample.ego2global @ sample.lidar2ego)
    annotations = [
        nusc.get("sample_annotation", t) for t in nusc.get("sample", sample.token)["anns"]
    ]
    expected = [a["translation"] for a in annotations if a["category_name"] != "animal"]
    np.testing.assert_allclose(world[:, :3], expected, atol=1e-5)


def test_cameras_show_boxes_where_the_devkit_does(tree: Path, nusc: Any) -> None:
    from nuscenes.utils.geometry_utils import BoxVisibility, view_points

    sample = open_tree(tree, min_points=0)[2]
    record = nusc.get("sample", sample.token)
    assert tuple(camera.name for camera in sample.cameras) == CAMERAS
    in_front = 0
    for camera in sample.cameras:
        _, boxes, _ = nusc.get_sample_data(record["data"][camera.name], BoxVisibility.NONE)
        centres = np.array([box.center for box in boxes])
        ours = project_points(
            sample.boxes[:, :3].astype(float),
            projection_matrix(camera.intrinsics, camera.lidar2camera),
        )
        np.testing.assert_allclose(ours.depth, centres[:, 2], atol=1e-4)
        seen = ours.depth > 0.5
        pixels = view_points(centres[seen].T, camera.intrinsics, normalize=True)[:2].T
        np.testing.assert_allclose(ours.pixels[seen], pixels, atol=1e-3)
        in_front += int(seen.sum())
        assert camera.image is not None and camera.image.shape == (18, 32, 3)
    assert in_front > 5
    assert [int(c.image[0, 0, 0]) // 35 for c in sample.cameras] == [0, 1, 2, 3, 4, 5]


def test_options(tree: Path) -> None:
    source = open_tree(tree, cameras=False, class_names=["pedestrian", "car"], frame_stride=2)
    assert len(source) == 2 and source.camera_names == () and source[0].cameras == ()
    assert source.class_names == ("pedestrian", "car")
    sample = open_tree(tree, class_names=["pedestrian", "car"])[1]
    assert sample.box_labels.tolist() == [1, 0]
    assert source.token(1) == "scene0_sample2" == source[1].token
    assert source.scene(0)["location"] == "singapore-onenorth"
    assert open_tree(tree, split="mini_val", scenes=["scene-0103"])[0].token == "scene1_sample0"
    assert source[0].map is None and source[0].timestamp_us == 1_532_402_927_000_000


@pytest.mark.parametrize(
    "options, message",
    [
        ({"split": "train"}, r"must be one of version v1.0-mini \(mini_train, mini_val\), got 'train'; .*trainval"),
        ({"split": "Mini_Train"}, r"split must be one of .*, got 'Mini_Train'\."),
        ({"split": "test"}, r"got 'test'; it belongs to v1.0-test"),
        ({"scenes": ["scene-0103"]}, r"must name some of the 1 .* got scene-0103; there are scene-0061"),
        ({"scenes": []}, r"got none"),
        ({"num_sweeps": 11}, r"num_sweeps must be 1..10, got 11"),
        ({"num_sweeps": 0}, r"num_sweeps must be 1..10, got 0"),
        ({"frame_stride": 0}, r"frame_stride must be at least 1"),
        ({"missing_sweeps": "skip"}, r'must be "raise" or "allow", got \'skip\''),
        ({"class_names": ["car", "tram"]}, r"class_names must be distinct names of car, .*, got tram"),
        ({"class_names": ["car", "car"]}, r"got car, car"),
    ],
)  # fmt: skip
def test_wrong_options(tree: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        open_tree(tree, **{"split": "mini_train", **options})


def test_wrong_indices(tree: Path) -> None:
    source = open_tree(tree)
    for index in (-1, 3):
        with pytest.raises(IndexError, match=r"index must be 0..2"):
            source[index]


def find(root: Path, pattern: str) -> Path:
    return sorted(root.glob(pattern))[0]


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-7])


def fill_with_nan(path: Path) -> None:
    np.full((3, 5), np.nan, np.float32).tofile(path)


@pytest.mark.parametrize(
    "pattern, damage, message",
    [
        ("samples/LIDAR_TOP/scene-0061*7200000*", Path.unlink, "{path}"),
        ("samples/LIDAR_TOP/scene-0061*7200000*", truncate, "{path} must hold rows of 5 float32"),
        ("samples/LIDAR_TOP/scene-0061*7200000*", lambda p: p.write_bytes(b""), "{path}.*empty"),
        ("sweeps/LIDAR_TOP/scene-0061*7150000*", fill_with_nan, "{path} must hold finite values"),
        ("samples/CAM_BACK/scene-0061*7186*", Path.unlink, "an image of CAM_BACK, got no file {path}"),
        ("samples/CAM_BACK/scene-0061*7186*", truncate, "{path}"),
        ("samples/CAM_BACK/scene-0061*7186*", lambda p: p.write_bytes(b"x" * 50), "{path}"),
        ("sweeps/LIDAR_TOP/scene-0061*7150000*", Path.unlink, "got no file {path}.*missing_sweeps"),
        ("sweeps/LIDAR_TOP/scene-0061*7150000*", truncate, "{path} must hold rows"),
    ],
)  # fmt: skip
def test_missing_and_broken_files_are_named(
    own_tree: Path, pattern: str, damage: Callable[[Path], Any], message: str
) -> None:
    path = find(own_tree, pattern)
    damage(path)
    source = open_tree(own_tree)
    assert source[0].token == "scene0_sample0"
    with pytest.raises(BadSampleError, match=message.replace("{path}", re.escape(str(path)))):
        source[1]


def test_a_missing_sweep_may_be_left_out(own_tree: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = find(own_tree, "sweeps/LIDAR_TOP/scene-0061*7150000*")
    path.unlink()
    with caplog.at_level(logging.WARNING):
        points = open_tree(own_tree, missing_sweeps="allow")[1].points
    assert len(points) == NUM_POINTS + 3 * (NUM_POINTS - NUM_CLOSE)
    assert f"{path} is missing" in caplog.text
    np.testing.assert_allclose(np.unique(points[:, 4]), [0.0, 0.1, 0.15, 0.2], atol=1e-6)


def test_a_missing_image_may_be_left_out(own_tree: Path) -> None:
    find(own_tree, "samples/CAM_BACK/scene-0061*7186*").unlink()
    cameras = open_tree(own_tree, missing_cameras="allow")[1].cameras
    assert [camera.image is None for camera in cameras] == [False] * 3 + [True] + [False] * 2
    np.testing.assert_array_equal(cameras[3].intrinsics[2], [0, 0, 1])


def test_a_camera_that_recorded_nothing(tmp_path: Path) -> None:
    def without_back(tables: dict[str, list[dict[str, Any]]]) -> None:
        rows = tables["sample_data"]
        tables["sample_data"] = [r for r in rows if r["token"] != "scene0_sample1_CAM_BACK"]

    root = write_tree(tmp_path, change=without_back)
    with pytest.raises(BadSampleError, match=r"an image of CAM_BACK, got none recorded"):
        open_tree(root)[1]
    camera = open_tree(root, missing_cameras="allow")[1].cameras[3]
    assert camera.image is None and camera.path == ""


class _Lengths(Dataset[int]):
    """Number of points of each sample, made in a loader process."""

    def __init__(self, source: NuScenes) -> None:
        self.source = source

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> int:
        return len(self.source[index].points)


@pytest.mark.slow
@pytest.mark.parametrize("context", ["fork", "spawn"])
def test_loader_processes_share_the_index(tree: Path, context: str) -> None:
    source = open_tree(tree)
    loader = DataLoader(_Lengths(source), num_workers=1, multiprocessing_context=context)
    assert [int(n) for n in loader] == [len(source[i].points) for i in range(3)]
