"""KITTI's object benchmark: boxes to ours and back, files, splits, and counts of points that OpenPCDet finds too."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from pointlib.data.kitti_labels import (
    KittiObjects,
    boxes_to_objects,
    objects_to_boxes,
    read_object_calibration,
    read_objects,
    write_objects,
)
from pointlib.data.kitti_object import KITTIObject
from pointlib.data.sample import BadSampleError
from pointlib.geometry import box_corners, project_points, projection_matrix, transform_points
from pointlib.metrics.kitti_ap import kitti_ap

FIELDS = ("truncated", "occluded", "alpha", "bbox", "size_hwl", "location", "rotation_y")
ALL_TYPES = ("Car", "Pedestrian", "Cyclist", "Truck", "Misc")


@pytest.fixture(scope="module")
def root(test_data: Path) -> Path:
    return test_data / "kitti_object"


@pytest.fixture
def tree(root: Path, tmp_path: Path) -> Path:
    """The real frames as links, with lists of splits."""
    shutil.copytree(root / "training", tmp_path / "training", copy_function=os.symlink)
    (tmp_path / "ImageSets").mkdir()
    (tmp_path / "ImageSets" / "train.txt").write_text("000000\n000002\n")
    (tmp_path / "ImageSets" / "val.txt").write_text("000001\n000009\n")
    return tmp_path


def test_boxes_hold_what_openpcdet_counts(root: Path) -> None:
    source = KITTIObject(root, split=None, class_names=ALL_TYPES)
    assert source.frames == ("000000", "000001", "000002", "000008")
    counts = [source[i].box_points.tolist() for i in range(3)]
    assert counts == [[377], [71, 9, 18], [1349, 67]]  # num_points_in_gt of its kitti_infos


def test_a_sample_is_what_the_camera_sees(root: Path) -> None:
    front, around = (KITTIObject(root, split=None, front_view=front)[0] for front in (True, False))
    assert len(around.points) == 115384 and len(front.points) == 20285
    assert front.points.shape[1] == 5 and not front.points[:, 4].any()
    assert (
        front.points[:, 0].min() > 0
        and 0 <= front.points[:, 3].min() <= front.points[:, 3].max() <= 1
    )
    (camera,) = front.cameras
    assert camera.image is not None and camera.image.shape == (370, 1224, 3)
    # P2 @ R0_rect @ Tr_velo_to_cam, in one go
    words = {
        line.partition(":")[0]: np.array(line.partition(":")[2].split(), dtype=float)
        for line in (root / "training/calib/000000.txt").read_text().splitlines()
        if line.strip()
    }
    tr, r0 = np.eye(4), np.eye(4)
    tr[:3] = words["Tr_velo_to_cam"].reshape(3, 4)
    r0[:3, :3] = words["R0_rect"].reshape(3, 3)
    expected = words["P2"].reshape(3, 4) @ r0 @ tr
    found = projection_matrix(camera.intrinsics, camera.lidar2camera)[:3]
    np.testing.assert_allclose(found, expected, atol=1e-9)


def test_boxes_stand_in_their_2d_boxes(root: Path) -> None:
    """Projected corners of whole, visible objects reach as far as the 2D boxes that people drew."""
    source = KITTIObject(root, split=None, class_names=ALL_TYPES)
    compared = 0
    for index in range(len(source)):
        sample, objects = source[index], source.objects(index)
        objects = objects.select(objects.names != "DontCare")
        camera = sample.cameras[0]
        lidar2image = projection_matrix(camera.intrinsics, camera.lidar2camera)
        for corners, i in zip(
            box_corners(sample.boxes[:, :7].astype(np.float64)), range(99), strict=False
        ):
            if objects.truncated[i] > 0 or objects.bbox[i, 3] - objects.bbox[i, 1] < 40:
                continue
            pixels = project_points(corners, lidar2image).pixels
            bounds = np.concatenate([pixels.min(0), pixels.max(0)])
            assert np.abs(bounds - objects.bbox[i]).max() < 16
            compared += 1
    assert compared == 5


def test_boxes_go_to_ours_and_back_exactly(root: Path) -> None:
    for index in range(4):
        source = KITTIObject(root, split=None)
        calibration, size = source.calibration(index), source.image_size(index)
        objects = source.objects(index)
        objects = objects.select(objects.names != "DontCare")
        boxes = objects_to_boxes(objects, calibration)
        back = boxes_to_objects(boxes, objects.names, None, calibration, size)
        for name in ("size_hwl", "location", "rotation_y"):
            np.testing.assert_allclose(getattr(back, name), getattr(objects, name), atol=1e-10)
        np.testing.assert_allclose(back.alpha, objects.alpha, atol=0.04)  # files have two decimals
        assert np.abs(back.bbox - objects.bbox).mean() < 8


def test_ours_go_to_kitti_and_back_exactly(root: Path) -> None:
    calibration = read_object_calibration(root / "training/calib/000001.txt")
    rng = np.random.default_rng(0)
    boxes = np.column_stack([
        rng.uniform(5, 60, 50), rng.uniform(-3, 3, 50), rng.uniform(-2, 1, 50),
        rng.uniform(0.5, 9, (50, 3)), rng.uniform(-np.pi, np.pi, 50),
    ])  # fmt: skip
    names, scores = np.full(50, "Car", dtype=object), rng.random(50)
    objects = boxes_to_objects(boxes, names, scores, calibration, (375, 1242))
    assert len(objects) == 50
    np.testing.assert_allclose(objects_to_boxes(objects, calibration), boxes, atol=1e-10)


def test_what_the_image_does_not_show_is_no_result(root: Path) -> None:
    calibration = read_object_calibration(root / "training/calib/000001.txt")
    box = np.array([0, 0, -1, 4, 1.6, 1.5, 0.0])
    places = [(20, 0), (-20, 0), (20, 60), (1, 0)]  # ahead, behind, aside, around the camera
    boxes = np.stack([box + np.eye(7)[0] * x + np.eye(7)[1] * y for x, y in places])
    names = np.array(["a", "b", "c", "d"], dtype=object)
    objects = boxes_to_objects(boxes, names, np.ones(4), calibration, (375, 1242))
    assert objects.names.tolist() == ["a", "d"]
    assert objects.bbox[1, [0, 2, 3]].tolist() == [0, 1241, 374]  # cut where it passes the camera
    assert objects.bbox[:, :2].min() >= 0 and objects.bbox[:, 2].max() <= 1241


def test_files_are_written_as_they_are_read(root: Path, tmp_path: Path) -> None:
    objects = read_objects(root / "training/label_2/000008.txt")
    assert len(objects) == 10 and objects.scores is None
    assert objects.difficulty().tolist() == [-1, 1, -1, 1, 1, 0, -1, -1, -1, -1]
    write_objects(tmp_path / "a" / "000008.txt", objects)
    scored = KittiObjects(**{**vars(objects), "scores": np.linspace(1, 0, 10)})
    write_objects(tmp_path / "b.txt", scored)
    for path, expected in ((tmp_path / "a/000008.txt", objects), (tmp_path / "b.txt", scored)):
        again = read_objects(path)
        assert again.names.tolist() == objects.names.tolist()
        for name in FIELDS:
            np.testing.assert_allclose(getattr(again, name), getattr(objects, name), atol=1e-9)
        assert (again.scores is None) == (expected.scores is None)
    np.testing.assert_allclose(read_objects(tmp_path / "b.txt").scores, scored.scores, atol=5e-5)  # type: ignore[arg-type]
    line = (tmp_path / "b.txt").read_text().splitlines()[0]
    assert line.startswith("Car 0.88 3 -0.6900 0.0000 192.3700") and line.endswith("1.0000")


def test_the_truth_found_again_scores_100(root: Path) -> None:
    source = KITTIObject(root, split=None)
    found = []
    for index in range(len(source)):
        sample = source[index]
        scores = np.linspace(0.9, 0.5, len(sample.boxes), dtype=np.float32)
        found.append(source.found_objects(index, sample.boxes, scores, sample.box_labels))
    truths = [source.objects(index) for index in range(len(source))]
    scores = kitti_ap(truths * 50, found * 50, ("Car", "Pedestrian"))
    np.testing.assert_allclose(scores.ap40[0, 1:3, 1], 100)  # bird's eye, 3D
    np.testing.assert_allclose(scores.ap40[1, :, 0], 100, atol=0.1)


def test_splits_and_classes(tree: Path) -> None:
    train = KITTIObject(tree, "train", min_points=100, cameras=False)
    assert train.frames == ("000000", "000002") and train.camera_names == ()
    assert [train.class_counts(i).tolist() for i in range(2)] == [[0, 1, 0], [1, 0, 0]]
    assert [len(train[i].boxes) for i in range(2)] == [1, 0]  # 67 points
    sample = train[0]
    assert sample.box_labels.tolist() == [1] and np.isnan(sample.boxes[:, 7:]).all()
    assert sample.token == "000000" and sample.path.endswith("velodyne/000000.bin")
    (tree / "training").rename(tree / "testing")
    shutil.rmtree(tree / "testing" / "label_2")
    (tree / "ImageSets" / "test.txt").write_text("000008\n")
    test = KITTIObject(tree, "test")
    assert len(test[0].boxes) == 0 and len(test.objects(0)) == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"split": "validation"}, "split must be one of train, val, trainval, test or None"),
        ({"split": "trainval"}, r"split 'trainval' must be listed in .*trainval\.txt"),
        ({"split": "val"}, "got none for 1 of 2: 000009"),
        ({"split": "test"}, r"must hold testing/velodyne/NNNNNN\.bin"),
        ({"class_names": ()}, "class_names must name at least one type"),
    ],
)
def test_wrong_arguments(tree: Path, arguments: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        KITTIObject(tree, **arguments)  # type: ignore[arg-type]


BROKEN = [
    ("velodyne/000000.bin", b"12345", r"velodyne/000000\.bin"),
    ("velodyne/000000.bin", None, r"velodyne/000000\.bin"),
    ("image_2/000000.png", b"\x89PNG\r\n\x1a\n", r"image_2/000000\.png"),
    ("image_2/000000.png", None, r"image_2/000000\.png"),
    ("calib/000000.txt", b"P2: 1 2 3\n", r"calib/000000\.txt must hold 'P2:' and 12 numbers, got 1 2 3"),
    ("calib/000000.txt", None, r"calib/000000\.txt"),
    ("label_2/000000.txt", b"Car 0 0\n", "line 1 must have 15 columns"),
    ("label_2/000000.txt", b"Car x" + b" 0" * 13 + b"\n", "must hold numbers after the type"),
    ("label_2/000000.txt", None, r"label_2/000000\.txt"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "content", "message"), BROKEN)
def test_broken_files_are_named(tree: Path, name: str, content: bytes | None, message: str) -> None:
    source = KITTIObject(tree, "train")
    (tree / "training" / name).unlink()
    if content is not None:
        (tree / "training" / name).write_bytes(content)
    with pytest.raises(BadSampleError, match=message):
        source[0]


def test_a_calibration_that_is_none_is_refused(tree: Path) -> None:
    path = tree / "training/calib/000000.txt"
    text = path.read_text()
    path.unlink()
    path.write_text(text.replace("R0_rect: 9", "R0_rect: 1"))
    with pytest.raises(BadSampleError, match="must hold rotations in R0_rect"):
        KITTIObject(tree, "train")[0]


def test_camera_frame_is_the_left_colour_cameras(root: Path) -> None:
    """The LiDAR's origin is 6 cm left of camera 2, 8 cm above and 27 cm behind it, as KITTI's setup page has it."""
    calibration = read_object_calibration(root / "training/calib/000001.txt")
    origin = transform_points(np.zeros((1, 3)), calibration.lidar2camera)[0]
    np.testing.assert_allclose(origin, [0.06, -0.08, -0.27], atol=0.02)
