"""SemanticKITTI's layout, read and refused; official labels against an independent copy of the real data."""

from __future__ import annotations

import os
import pickle
from pathlib import Path

import numpy as np
import pytest

from pointlib.data import BadSampleError, SemanticKITTI, read_labels, write_labels
from tests.data.conftest import RAW_IDS, write_scan


def test_scan_labels_and_instances(tree: Path) -> None:
    dataset = SemanticKITTI(tree, "train", sequences=["00"])
    assert len(dataset) == 3
    sample = dataset[1]
    scan = tree / "sequences/00/velodyne/000001.bin"
    assert sample.path == str(scan)
    assert np.array_equal(sample.points, np.fromfile(scan, np.float32).reshape(-1, 4))
    assert sample.labels is not None
    assert sample.labels[:7].tolist() == [255, 0, 8, 12, 14, 0, 255]
    assert sample.instance is not None and (sample.instance == 7).all()
    assert dataset.num_classes == 19 and dataset.class_names[0] == "car"


@pytest.mark.parametrize("place", ["", "sequences", "dataset/sequences"])
def test_root_may_be_any_of_the_three(tree: Path, tmp_path: Path, place: str) -> None:
    root = tmp_path / "moved"
    (root / place).parent.mkdir(parents=True, exist_ok=True)
    os.rename(tree / "sequences", root / place)
    assert len(SemanticKITTI(root, "val")) == 2


def test_splits_lists_and_strides(tree: Path) -> None:
    assert SemanticKITTI(tree, ["08", "00"]).sequences == ("08", "00")
    dataset = SemanticKITTI(tree, ["00", "08"], frame_stride=2)
    assert [dataset.paths(i)[0].stem for i in range(len(dataset))] == ["000000", "000002", "000000"]
    assert "sequences/08" in dataset[2].path


def test_test_split_has_no_labels(tree: Path) -> None:
    assert SemanticKITTI(tree, "test", sequences=["11"])[0].labels is None
    with pytest.raises(BadSampleError, match=r"labels/000000\.label .*with_labels=False"):
        SemanticKITTI(tree, ["11"])[0]
    assert SemanticKITTI(tree, ["00"], with_labels=False)[0].labels is None


def test_poses_are_in_the_lidar_frame(tree: Path) -> None:
    poses = SemanticKITTI(tree, ["00"]).lidar2world("00")
    # The camera looks along z, which is the LiDAR's x; its x is the LiDAR's -y.
    assert np.allclose(poses[2][:3, 3], [2.0, -1.0, 0.0])
    assert np.allclose(poses[:, :3, :3], np.eye(3))


def test_missing_sequences_say_what_is_there_and_what_to_do(tree: Path) -> None:
    with pytest.raises(
        ValueError, match=r"sequence 01, 02, .*'train', got 00, 08, 11\..*pass sequences=\['00'\]"
    ) as error:
        SemanticKITTI(tree, "train")
    assert str(tree / "sequences") in str(error.value)
    with pytest.raises(ValueError, match=r"must belong to the split 'train'.*got 08"):
        SemanticKITTI(tree, "train", sequences=["08"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"split": "validation"}, r"split must be one of \['test', 'train', 'val'\]"),
        ({"split": "00"}, r'Write split=\["00"\]'),
        ({"split": []}, "at least one sequence, got none"),
        ({"split": ["00"], "frame_stride": 0}, "frame_stride must be at least 1"),
        ({"split": ["00"], "unknown_labels": "drop"}, "unknown_labels must be"),
    ],
)
def test_wrong_arguments_are_refused(tree: Path, arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SemanticKITTI(tree, **arguments)


def test_no_tree_at_the_root(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"nowhere \(no folder\).*prepare_data.py synthetic"):
        SemanticKITTI(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="a folder without sequences"):
        SemanticKITTI(tmp_path)
    (tmp_path / "sequences/00/velodyne").mkdir(parents=True)
    with pytest.raises(ValueError, match=r"velodyne must hold NNNNNN\.bin files, got none"):
        SemanticKITTI(tmp_path, ["00"])


def test_index_out_of_range(tree: Path) -> None:
    dataset = SemanticKITTI(tree, ["00"])
    for index in (-1, 3):
        with pytest.raises(IndexError, match=r"0\.\.2"):
            dataset[index]


def damage(tree: Path, kind: str) -> None:
    """Break scan 000001 of sequence 00."""
    scan = tree / "sequences/00/velodyne/000001.bin"
    label = tree / "sequences/00/labels/000001.label"
    points = np.fromfile(scan, np.float32)
    if kind == "empty":
        scan.write_bytes(b"")
    elif kind == "truncated":
        scan.write_bytes(scan.read_bytes()[:-6])
    elif kind == "nan":
        points[5] = np.nan
        points.tofile(scan)
    elif kind == "inf":
        points[4 * 7 + 3] = -np.inf
        points.tofile(scan)
    elif kind == "unreadable":
        scan.unlink()
        scan.mkdir()
    elif kind == "label length":
        np.zeros(59, np.uint32).tofile(label)
    elif kind == "label bytes":
        label.write_bytes(label.read_bytes()[:-1])
    elif kind == "label missing":
        label.unlink()
    elif kind == "label id":
        np.full(60, 2, np.uint32).tofile(label)


@pytest.mark.parametrize(
    ("kind", "file", "message"),
    [
        ("empty", "velodyne/000001.bin", "rows of 4 float32 .* got an empty file.*copy it again"),
        ("truncated", "velodyne/000001.bin", "rows of 4 float32 .* got 954 bytes.*copy it again"),
        ("nan", "velodyne/000001.bin", "NaN or Inf in 1 of 60 points, first in row 1"),
        ("inf", "velodyne/000001.bin", "NaN or Inf in 1 of 60 points, first in row 7"),
        ("unreadable", "velodyne/000001.bin", "readable file.*Is a directory"),
        ("label length", "labels/000001.label", "each of the 60 points .* got 59"),
        ("label bytes", "labels/000001.label", "4 bytes a point, got 239 bytes"),
        ("label missing", "labels/000001.label", "No such file.*Extract"),
        ("label id", "labels/000001.label", r"2 \(60 points\).*unknown_labels"),
    ],
)
def test_bad_files_are_named_with_the_remedy(
    tree: Path, kind: str, file: str, message: str
) -> None:
    damage(tree, kind)
    dataset = SemanticKITTI(tree, ["00"])
    assert len(dataset[0]) == 60
    with pytest.raises(BadSampleError, match=message) as error:
        dataset[1]
    assert str(tree / "sequences/00" / file) in str(error.value)


def test_unknown_ids_can_be_ignored(tree: Path) -> None:
    damage(tree, "label id")
    labels = SemanticKITTI(tree, ["00"], unknown_labels="ignore")[1].labels
    assert labels is not None and (labels == 255).all()


def test_five_columns(tree: Path) -> None:
    scan = tree / "sequences/00/velodyne/000001.bin"
    points = np.arange(60 * 5, dtype=np.float32).reshape(60, 5)
    points.tofile(scan)
    assert np.array_equal(SemanticKITTI(tree, ["00"], columns=5)[1].points, points[:, :4])


def test_object_is_small_and_travels(tree: Path) -> None:
    folder = tree / "sequences/00"
    one = len(pickle.dumps(SemanticKITTI(tree, ["00"])))
    for i in range(3, 1003):
        os.link(folder / "velodyne/000000.bin", folder / f"velodyne/{i:06d}.bin")
    dataset = SemanticKITTI(tree, ["00"])
    state = pickle.dumps(dataset)
    assert len(state) - one < 20 * 1000
    assert np.array_equal(pickle.loads(state)[2].points, dataset[2].points)


def test_labels_round_trip_in_the_submission_layout(tmp_path: Path) -> None:
    path = tmp_path / "sequences/08/predictions/000000.label"
    semantic, instance = RAW_IDS, np.arange(7, dtype=np.uint16)
    write_labels(path, semantic, instance)
    assert np.fromfile(path, "<u4").tolist() == [
        int(s) + (i << 16) for i, s in enumerate(semantic.tolist())
    ]
    assert np.array_equal(read_labels(path).instance, instance)
    write_labels(path, semantic)
    assert np.array_equal(read_labels(path).semantic, semantic)
    assert not read_labels(path).instance.any()
    with pytest.raises(TypeError, match="semantic must be uint16, got uint8"):
        write_labels(path, semantic.astype(np.uint8))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="instance must have the shape"):
        write_labels(path, semantic, instance[:3])


def test_frames_may_have_any_name(tree: Path) -> None:
    write_scan(tree / "sequences/20", "drive_0001_frame_07", seed=0)
    assert SemanticKITTI(tree, ["20"])[0].path.endswith("drive_0001_frame_07.bin")


def test_real_labels_agree_with_an_independent_copy(test_data: Path) -> None:
    """The range-image form of scan 00/000000 holds 41 % of its points, bit for bit, with train ids + 1."""
    sample = SemanticKITTI(test_data / "semantickitti", ["00"])[0]
    assert sample.labels is not None
    with np.load(test_data / "semantickitti_range/seq00/000000.npz") as content:
        points, label = content["xyzi"], content["label"]
    rows = {row.tobytes(): i for i, row in enumerate(sample.points)}
    found = np.array([rows[row.tobytes()] for row in points])
    want = np.where(label == 0, 255, label.astype(int) - 1)
    assert np.array_equal(sample.labels[found], want)
