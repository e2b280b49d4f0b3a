"""The index of nuScenes' tables against the devkit's own answers, its cache, and damaged tables."""

from __future__ import annotations

import json
import os
import pickle
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pointlib.data.nuscenes import NuScenes
from pointlib.data.nuscenes_index import (
    CAMERAS,
    DETECTION_CLASSES,
    NuScenesIndex,
    load_index,
)
from tests.data.nuscenes_tree import SWEEPS_PER_SAMPLE, write_tree

pytest.importorskip("nuscenes")
VERSION = "v1.0-mini"
Tables = dict[str, list[dict[str, Any]]]


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tree(tmp_path_factory.mktemp("nuscenes"))


@pytest.fixture(scope="module")
def nusc(tree: Path) -> Any:
    from nuscenes.nuscenes import NuScenes

    return NuScenes(VERSION, str(tree), verbose=False)


@pytest.fixture(scope="module")
def index(tree: Path) -> NuScenesIndex:
    return load_index(tree, VERSION, progress=False)


def devkit_boxes(nusc: Any, sample: dict[str, Any]) -> np.ndarray:
    """Boxes of a sample in the LiDAR frame, by the devkit's own transforms."""
    from nuscenes.eval.common.utils import quaternion_yaw

    token = sample["data"]["LIDAR_TOP"]
    lidar = nusc.get("sample_data", token)
    turns = [_pose(nusc, table, lidar)[:3, :3].T for table in ("calibrated_sensor", "ego_pose")]
    rows = []
    for box in nusc.get_sample_data(token)[1]:
        width, length, height = box.wlh
        velocity = turns[0] @ turns[1] @ nusc.box_velocity(box.token)
        yaw = quaternion_yaw(box.orientation)
        rows.append([*box.center, length, width, height, yaw, *velocity[:2]])
    return np.array(rows)


def _pose(nusc: Any, table: str, record: dict[str, Any]) -> np.ndarray:
    from nuscenes.utils.geometry_utils import transform_matrix
    from pyquaternion import Quaternion

    pose = nusc.get(table, record[f"{table}_token"])
    return transform_matrix(pose["translation"], Quaternion(pose["rotation"]))


def test_boxes_equal_the_devkits(nusc: Any, index: NuScenesIndex) -> None:
    from nuscenes.eval.detection.utils import category_to_detection_name

    unknown = 0
    for row, sample in enumerate(nusc.sample):
        span = slice(*index.boxes(row))
        expected = devkit_boxes(nusc, sample)
        np.testing.assert_allclose(index["boxes"][span], expected, atol=2e-6, rtol=1e-6)
        unknown += int(np.isnan(expected).any(1).sum())
        records = [nusc.get("sample_annotation", token) for token in sample["anns"]]
        for i, record in enumerate(records, span.start):
            name = category_to_detection_name(record["category_name"])
            label = int(index["box_label"][i])
            assert (DETECTION_CLASSES[label] if label >= 0 else None) == name
            assert index.meta["categories"][index["box_category"][i]] == record["category_name"]
            assert index["num_lidar_pts"][i] == record["num_lidar_pts"]
            assert index["num_radar_pts"][i] == record["num_radar_pts"]
    assert unknown == 2  # an object seen once has no velocity
    assert index.boxes(len(index) - 1).stop == len(nusc.sample_annotation)


def test_cameras_and_poses_equal_the_devkits(nusc: Any, index: NuScenesIndex) -> None:
    for row, sample in enumerate(nusc.sample):
        lidar = nusc.get("sample_data", sample["data"]["LIDAR_TOP"])
        lidar2ego, ego2global = (_pose(nusc, t, lidar) for t in ("calibrated_sensor", "ego_pose"))
        np.testing.assert_allclose(index["lidar2ego"][row], lidar2ego, atol=1e-12)
        np.testing.assert_allclose(index["ego2global"][row], ego2global, atol=1e-12)
        assert index.text("lidar_path", row) == lidar["filename"]
        for i, name in enumerate(CAMERAS):
            camera = nusc.get("sample_data", sample["data"][name])
            _, _, intrinsic = nusc.get_sample_data(camera["token"])
            np.testing.assert_array_equal(index["camera_intrinsics"][row, i], intrinsic)
            chain = [_pose(nusc, t, camera) for t in ("ego_pose", "calibrated_sensor")]
            expected = np.linalg.inv(chain[0] @ chain[1]) @ ego2global @ lidar2ego
            np.testing.assert_allclose(index["lidar2camera"][row, i], expected, atol=1e-9)
            assert index.text("camera_path", row, i) == camera["filename"]
            assert index["camera_timestamp_us"][row, i] == camera["timestamp"]


def test_scenes_splits_and_order(nusc: Any, index: NuScenesIndex) -> None:
    assert [index.text("sample_token", i) for i in range(len(index))] == [
        sample["token"] for sample in nusc.sample
    ]
    assert index.scene(0) == {"name": "scene-0061", "location": "singapore-onenorth", "log": "n0"}
    assert index.meta["splits"]["mini_train"] == ["scene-0061"]
    assert index.rows_of({"scene-0103"}).tolist() == [3, 4, 5]
    assert index["sample_previous"].tolist() == [-1, 0, 1, -1, 3, 4]
    counts = np.diff(index["sweep_start"]).tolist()
    assert counts == [0, SWEEPS_PER_SAMPLE, 2 * SWEEPS_PER_SAMPLE] * 2


def test_it_is_built_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tree, folder = write_tree(tmp_path / "tree"), tmp_path / "elsewhere"
    first = load_index(tree, VERSION, folder, progress=False)
    assert list(folder.glob("*.index")) and not (tree / "pointlib_index").exists()

    def fail(*_: Any) -> None:
        raise AssertionError("built again")

    monkeypatch.setattr("pointlib.data.nuscenes_tables.read_tables", fail)
    os.utime(tree / VERSION / "sample.json", (1, 1))  # copied: other times, same content
    again = load_index(tree, VERSION, folder, progress=False)
    with monkeypatch.context() as patch:  # and remembers that
        patch.setattr("pointlib.data.nuscenes_index.digest_of", fail)
        load_index(tree, VERSION, folder, progress=False)
    np.testing.assert_array_equal(again["boxes"], first["boxes"])
    sent = pickle.dumps(again)
    assert len(sent) < 1000
    np.testing.assert_array_equal(pickle.loads(sent)["lidar2camera"], first["lidar2camera"])


def test_it_is_made_again_when_it_must(tmp_path: Path) -> None:
    tree = write_tree(tmp_path)
    path = load_index(tree, VERSION, progress=False).file.path
    whole = path.read_bytes()
    path.write_bytes(whole[:-100])
    assert len(load_index(tree, VERSION, progress=False)) == 6
    assert path.read_bytes() == whole
    path.write_bytes(whole.replace(b'"format": 1', b'"format": 0'))
    assert load_index(tree, VERSION, progress=False).meta["format"] == 1

    def shift(tables: Tables) -> None:
        tables["sample_annotation"][0]["num_lidar_pts"] = 99

    write_tree(tmp_path, change=shift)
    assert load_index(tree, VERSION, progress=False)["num_lidar_pts"][0] == 99


def test_opening_it_needs_no_devkit(
    tree: Path, index: NuScenesIndex, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [name for name in sys.modules if name.split(".")[0] == "nuscenes"]:
        monkeypatch.setitem(sys.modules, name, None)
    assert len(NuScenes(tree, VERSION, "mini_train")[2].points) == 300 + 8 * 280


def test_without_the_devkit_it_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "nuscenes.nuscenes", None)
    with pytest.raises(ImportError, match=r"pip install 'pointlib\[nuscenes\]'"):
        load_index(write_tree(tmp_path), VERSION, progress=False)


@pytest.mark.parametrize(
    "version, message",
    [
        ("v1.0-trainval", r"folder 'v1.0-trainval' with nuScenes' tables, got v1.0-mini\."),
        ("", r"got v1.0-mini\."),
    ],
)
def test_a_wrong_version_lists_those_there(tree: Path, version: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load_index(tree, version)


def test_a_wrong_root_says_so(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="got no such folder"):
        load_index(tmp_path / "nothing", VERSION)
    with pytest.raises(ValueError, match="got no version"):
        load_index(tmp_path, VERSION)


def test_missing_and_broken_tables_are_named(tmp_path: Path) -> None:
    tree = write_tree(tmp_path)
    (tree / VERSION / "ego_pose.json").unlink()
    (tree / VERSION / "log.json").unlink()
    with pytest.raises(ValueError, match=r"got none named ego_pose.json, log.json"):
        load_index(tree, VERSION)
    write_tree(tmp_path)
    table = tree / VERSION / "sample_data.json"
    table.write_text(table.read_text()[:5000])
    with pytest.raises(ValueError, match=r"sample_data.json must be whole JSON"):
        load_index(tree, VERSION)
    write_tree(tmp_path)
    (tree / "maps" / "0.png").unlink()
    with pytest.raises(ValueError, match=r"0.png does not exist"):
        load_index(tree, VERSION)
    assert not list(tree.glob("pointlib_index/*.index"))


def _sweep_back(tables: Tables) -> None:
    record = next(r for r in tables["sample_data"] if r["token"] == "scene0_lidar5")
    record["timestamp"] += 60_000


def _sample_back(tables: Tables) -> None:
    for record in tables["sample"]:
        if record["token"] == "scene1_sample2":
            record["timestamp"] -= 1_000_000


def _no_lidar(tables: Tables) -> None:
    tables["sample_data"] = [r for r in tables["sample_data"] if r["token"] != "scene1_lidar4"]
    for record in tables["sample_data"]:
        for link in ("prev", "next"):
            record[link] = "" if record[link] == "scene1_lidar4" else record[link]


@pytest.mark.parametrize(
    "change, message",
    [
        (
            _sweep_back,
            r"a sweep must be earlier than the one that follows it, got .*1532402927310000",
        ),
        (_sample_back, r"a key frame must be later .* got 1 that are not, .* scene1_sample2"),
        (_no_lidar, r"must have a cloud of LIDAR_TOP, got none for sample scene1_sample1"),
        (lambda tables: tables["sample"].clear(), r"load_devkit|must hold key frames"),
    ],
)
def test_damaged_tables_are_named(tmp_path: Path, change: Any, message: str) -> None:
    tree = write_tree(tmp_path, change=change)
    with pytest.raises(ValueError, match=message):
        load_index(tree, VERSION, progress=False)


def test_a_version_without_annotations(tmp_path: Path) -> None:
    """As v1.0-test is."""

    def as_test(tables: Tables) -> None:
        for name in ("sample_annotation", "instance"):
            tables[name].clear()
        for scene, name in zip(tables["scene"], ("scene-0077", "scene-0078"), strict=True):
            scene["name"] = name

    tree = write_tree(tmp_path, "v1.0-test", change=as_test)
    for task in ("lidarseg", "panoptic"):
        (tree / "v1.0-test" / f"{task}.json").unlink()
    source = NuScenes(tree, "v1.0-test", "test", num_sweeps=2)
    assert len(source) == 6 and source[4].boxes.shape == (0, 9)
    assert source.class_counts(4).tolist() == [0] * 10 and source.attributes(4) == ()
    assert source.index.meta["lidarseg_names"] == {}


def test_own_splits_are_read(tmp_path: Path) -> None:
    tree = write_tree(tmp_path)
    splits = {"mine": ["scene-0103"]}
    (tree / VERSION / "splits.json").write_text(json.dumps(splits))
    assert load_index(tree, VERSION, progress=False).meta["splits"]["mine"] == ["scene-0103"]


def test_a_folder_that_cannot_be_written_names_the_option(tmp_path: Path) -> None:
    tree = write_tree(tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match=r"Pass index_folder= \(--index-folder\)"):
        load_index(tree, VERSION, tmp_path / "file", progress=False)
