"""The synthetic data set: layout, classes, likeness to a real scan, determinism, resuming, refusals."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from pointlib.data import (
    SemanticKITTI,
    load_label_map,
    read_calibration,
    read_camera_poses,
    read_labels,
    read_points,
    read_times,
    synthetic,
)
from pointlib.data.lidar_sensor import LABELLED_RANGE, LidarSensor
from pointlib.data.synthetic import generate_dataset, scan_statistics, simulate_scan
from pointlib.data.synthetic_scene import Scene

SMALL = {"beams": 16, "azimuth_steps": 300, "progress": False}
# SemanticKITTI 00/000000 at 0.05 m, strides 1, 2, 4, 8, 16.
REAL_VOXELS = (91_852, 60_236, 31_883, 14_454, 5_908)
REAL_PAIRS = (3.76, 6.06, 7.47, 8.44, 9.25)
LIKENESS = 0.25


def contents(root: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(root)): path.read_bytes()
        for path in sorted(root.rglob("*"))
        if path.is_file()
    }


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("synthetic")
    return generate_dataset(root, {"00": 4, "08": 2}, workers=1, **SMALL)


def test_the_tree_reads_as_semantic_kitti(tree: Path) -> None:
    train, held_out = SemanticKITTI(tree, ["00"]), SemanticKITTI(tree, "val")
    assert (len(train), len(held_out)) == (4, 2)
    for sample in (train[0], train[3], held_out[1]):
        assert len(sample.points) > 2000
        assert np.isfinite(sample.points).all()
        assert sample.points[:, 3].min() >= 0 and sample.points[:, 3].max() < 1
        assert sample.labels is not None and (sample.labels != 255).mean() > 0.9
    assert set(contents(tree)) >= {
        "sequences/00/calib.txt", "sequences/00/poses.txt", "sequences/00/times.txt",
        "sequences/00/velodyne/000003.bin", "sequences/00/labels/000003.label",
    }  # fmt: skip
    assert not [name for name in contents(tree) if name.endswith(".tmp")]


def test_poses_bring_standing_things_of_two_frames_together(tree: Path) -> None:
    data = SemanticKITTI(tree, ["00"])
    poses = data.lidar2world("00")
    assert np.allclose(poses[0], np.eye(4), atol=1e-6)
    step = np.linalg.norm(poses[1][:3, 3] - poses[0][:3, 3])
    assert step == pytest.approx(8.0, abs=0.3)
    ground = []
    for frame in (0, 1):
        points = data[frame].points
        near = points[(data[frame].labels == 8) & (np.abs(points[:, :2]).max(axis=1) < 15)]
        ground.append(near[:, :3] @ poses[frame][:3, :3].T + poses[frame][:3, 3])
    # The road at one place has one height in the world, whatever frame saw it.
    gaps = np.linalg.norm(ground[0][:, None, :2] - ground[1][None, :, :2], axis=2)
    rows = np.flatnonzero(gaps.min(axis=1) < 0.2)
    rise = ground[0][rows, 2] - ground[1][gaps[rows].argmin(axis=1), 2]
    assert len(rows) > 50 and np.abs(rise).mean() < 0.05


def test_side_files_follow_kitti(tree: Path) -> None:
    folder = tree / "sequences/00"
    assert read_camera_poses(folder / "poses.txt").shape[0] == 4
    assert np.allclose(read_times(folder / "times.txt"), [0, 1, 2, 3])
    assert {"P0", "P1", "P2", "P3", "Tr"} <= set(read_calibration(folder / "calib.txt"))


def test_labels_are_raw_ids_with_instances_of_things(tree: Path) -> None:
    known = set(load_label_map().raw_names)
    moving, instances = set(), set()
    for path in sorted(tree.rglob("*.label")):
        labels = read_labels(path)
        points = read_points(
            tree / path.relative_to(tree).parent.parent / "velodyne" / f"{path.stem}.bin"
        )
        assert len(labels.semantic) == len(points)
        assert set(labels.semantic.tolist()) <= known
        things = np.isin(labels.semantic, [10, 11, 13, 15, 18, 20, 30, *range(252, 260)])
        assert (labels.instance[things] > 0).all() and (labels.instance[~things] == 0).all()
        far = np.linalg.norm(points[:, :3], axis=1) > LABELLED_RANGE + 1
        assert (labels.semantic[far] == 0).all()
        moving |= set(labels.semantic[labels.semantic >= 252].tolist())
        instances |= set(labels.instance.tolist())
    assert len(moving) >= 2 and len(instances) > 10


def test_all_19_classes_occur_along_a_sequence() -> None:
    names, sensor = load_label_map(), LidarSensor(azimuth_steps=1000)
    for seed in ((0, 0), (0, 8)):
        scene, seen = Scene(100.0, seed), set()
        for station in (0.0, 40.0, 80.0):
            scan = simulate_scan(scene, sensor, station, 1)
            seen |= set(names.to_train(scan.semantic.astype(np.uint16)).tolist())
        assert seen >= set(range(19)), [names.class_names[i] for i in set(range(19)) - seen]


def test_scans_are_like_a_real_one() -> None:
    sensor = LidarSensor()
    found = []
    for sequence in range(4):
        scene = Scene(200.0, (0, sequence))
        for station in (20.0, 130.0):
            scan = simulate_scan(scene, sensor, station, sequence)
            statistics = scan_statistics(scan.points)
            found.append([*statistics.voxels, *statistics.pairs, len(scan.points)])
    mean = np.mean(found, axis=0)
    ratios = mean / np.array([*REAL_VOXELS, *REAL_PAIRS, 124_668])
    assert (np.abs(ratios - 1) < LIKENESS).all(), ratios.round(2)


def test_the_statistics_of_the_real_scan(test_data: Path) -> None:
    points = read_points(test_data / "semantickitti/sequences/00/velodyne/000000.bin")
    statistics = scan_statistics(points)
    assert np.allclose(statistics.voxels, REAL_VOXELS, rtol=0.005)
    assert np.allclose(statistics.pairs, REAL_PAIRS, rtol=0.005)


def test_statistics_count_neighbours_as_brute_force_does() -> None:
    points = np.random.default_rng(3).uniform(-1, 1, (400, 3))
    statistics = scan_statistics(points, voxel_size=0.2, levels=3)
    coords = np.round(points / 0.2).astype(int)
    for voxels, pairs in zip(statistics.voxels, statistics.pairs, strict=True):
        unique = np.unique(coords, axis=0)
        near = np.abs(unique[:, None] - unique[None]).max(axis=2) <= 1
        assert voxels == len(unique)
        assert pairs == pytest.approx(near.sum() / len(unique))
        coords = coords // 2
    with pytest.raises(ValueError, match="must not be empty"):
        scan_statistics(np.zeros((0, 3)))


def test_equal_seeds_give_equal_bytes_and_others_do_not(tree: Path, tmp_path: Path) -> None:
    again = generate_dataset(tmp_path / "again", {"08": 2}, workers=1, **SMALL)
    other = generate_dataset(tmp_path / "other", {"08": 1}, seed=5, workers=1, **SMALL)
    scans, first = contents(tree), "sequences/08/velodyne/000000.bin"
    assert all(scans[name] == content for name, content in contents(again).items())
    assert contents(other)[first] != scans[first]
    assert scans[first] != scans["sequences/00/velodyne/000000.bin"]


@pytest.mark.slow  # starts two processes that import torch
def test_the_number_of_workers_changes_nothing(tree: Path, tmp_path: Path) -> None:
    generate_dataset(tmp_path, {"00": 4, "08": 2}, workers=2, **SMALL)
    assert contents(tmp_path) == contents(tree)


def test_an_interrupted_call_continues_and_a_sequence_grows(
    tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    calls = []
    write = synthetic.write_file

    def full_disk(path: Path, content: bytes | str) -> None:
        calls.append(path)
        if path.name == "000001.bin":
            raise OSError(28, "No space left on device", str(path))
        write(path, content)

    monkeypatch.setattr(synthetic, "write_file", full_disk)
    with pytest.raises(OSError, match="No space left"):
        generate_dataset(tmp_path, {"00": 3}, workers=1, **SMALL)
    monkeypatch.undo()
    stamp = (tmp_path / "sequences/00/velodyne/000000.bin").stat().st_mtime_ns
    generate_dataset(tmp_path, {"00": 4}, workers=1, **{**SMALL, "progress": True})
    assert "kept 1 complete scans" in capsys.readouterr().err
    assert (tmp_path / "sequences/00/velodyne/000000.bin").stat().st_mtime_ns == stamp
    cut = tmp_path / "sequences/00/velodyne/000002.bin"
    cut.write_bytes(cut.read_bytes()[:1000])
    generate_dataset(tmp_path, {"00": 4}, workers=1, **SMALL)
    expected = contents(tree)
    assert all(expected[name] == content for name, content in contents(tmp_path).items())


def test_other_settings_are_refused_or_replaced_on_demand(tmp_path: Path) -> None:
    generate_dataset(tmp_path, {"00": 2}, workers=1, **SMALL)
    with pytest.raises(ValueError, match="overwrite=True"):
        generate_dataset(tmp_path, {"00": 2}, seed=1, workers=1, **SMALL)
    generate_dataset(tmp_path, {"00": 1}, seed=1, workers=1, overwrite=True, **SMALL)
    names = [path.name for path in sorted((tmp_path / "sequences/00").rglob("0*"))]
    assert names == ["000000.label", "000000.bin"]


def test_recorded_data_is_never_touched(tmp_path: Path) -> None:
    scan = tmp_path / "sequences/00/velodyne/000000.bin"
    scan.parent.mkdir(parents=True)
    scan.write_bytes(b"0" * 16)
    for overwrite in (False, True):
        with pytest.raises(ValueError, match="must not hold recorded scans"):
            generate_dataset(tmp_path, {"00": 1}, workers=1, overwrite=overwrite, **SMALL)
    assert scan.read_bytes() == b"0" * 16


@pytest.mark.parametrize(
    ("sequences", "options", "message"),
    [
        ({"0": 1}, {}, "two digits"),
        ({"00": 0}, {}, "number of scans"),
        ({}, {}, "must not be empty"),
        ({"00": 1}, {"seed": -1}, "seed >= 0"),
        ({"00": 1}, {"workers": 0}, "workers >= 1"),
        ({"00": 1}, {"frame_stride_m": 0.0}, "frame_stride_m"),
        ({"00": 1}, {"beams": 1}, "beams must be at least 2"),
        ({"00": 1}, {"azimuth_steps": 3}, "azimuth_steps must be at least 16"),
    ],
)
def test_wrong_arguments_are_named(
    tmp_path: Path, sequences: dict[str, int], options: dict[str, float], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        generate_dataset(tmp_path / "new", sequences, **{**SMALL, **options})
    assert not (tmp_path / "new").exists()
