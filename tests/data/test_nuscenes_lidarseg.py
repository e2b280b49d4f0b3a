"""Labelled scans of nuScenes: label map against the devkit's, several frames, panoptic labels, broken files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pointlib.data import IGNORE_INDEX, BadSampleError, SegmentationDataset, VoxelizeSegmentation
from pointlib.data.label_map import LABEL_MAP_DIR, load_label_map
from pointlib.data.nuscenes_lidarseg import NuScenesLidarSeg
from tests.data.nuscenes_tree import CATEGORIES, NUM_CLOSE, NUM_POINTS, write_tree

pytest.importorskip("nuscenes")
VERSION = "v1.0-mini"


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tree(tmp_path_factory.mktemp("nuscenes"))


@pytest.fixture(scope="module")
def nusc(tree: Path) -> Any:
    from nuscenes.nuscenes import NuScenes

    return NuScenes(VERSION, str(tree), verbose=False)


def open_tree(root: Path, **options: Any) -> NuScenesLidarSeg:
    return NuScenesLidarSeg(root, VERSION, "mini_train", **options)


def test_the_label_map_is_the_challenges(nusc: Any) -> None:
    from nuscenes.eval.lidarseg.utils import LidarsegClassMapper

    mapper, ours = LidarsegClassMapper(nusc), load_label_map("nuscenes_lidarseg")
    raw = np.arange(len(CATEGORIES), dtype=np.uint16)
    train = ours.to_train(raw)
    for i in raw:
        official = mapper.fine_idx_2_coarse_idx_mapping[int(i)]
        assert ours.raw_names[int(i)] == nusc.lidarseg_idx2name_mapping[int(i)]
        assert train[i] == (official - 1 if official else IGNORE_INDEX)
        assert ours.raw_ids[train[i]] == official
    names = {i: name for name, i in mapper.coarse_name_2_coarse_idx_mapping.items()}
    assert ours.class_names == tuple(names[i] for i in range(1, 17))
    colors = [tuple(c) for c in ours.colors[:16].tolist()]
    assert colors == [tuple(mapper.coarse_colormap[name]) for name in ours.class_names]


def test_labels_equal_the_devkits(tree: Path, nusc: Any) -> None:
    from nuscenes.eval.lidarseg.utils import LidarsegClassMapper
    from nuscenes.utils.data_io import load_bin_file

    source = open_tree(tree)
    assert len(source) == 3 and source.num_classes == 16
    mapper = LidarsegClassMapper(nusc)
    for i in range(3):
        scan = source[i]
        record = nusc.get("lidarseg", f"lidarseg_{source.token(i)}")
        raw = load_bin_file(str(tree / record["filename"]))
        official = mapper.convert_label(raw)
        expected = np.where(official == 0, IGNORE_INDEX, official.astype(int) - 1)
        assert scan.labels is not None and scan.points.shape == (NUM_POINTS, 4)
        np.testing.assert_array_equal(scan.labels, expected)
        assert len(np.unique(scan.labels)) > 10


def test_intensity_is_scaled(tree: Path) -> None:
    source = open_tree(tree)
    raw = np.fromfile(source.paths(1)[0], np.float32).reshape(-1, 5)
    np.testing.assert_allclose(source[1].points[:, 3], raw[:, 3] / 255, rtol=1e-6)
    np.testing.assert_array_equal(source[1].points[:, :3], raw[:, :3])
    assert source.num_own_points(open_tree(tree, num_frames=3)[2].points) == NUM_POINTS


def test_panoptic_labels(tree: Path) -> None:
    semantic, panoptic = open_tree(tree)[1], open_tree(tree, labels="panoptic")[1]
    np.testing.assert_array_equal(panoptic.labels, semantic.labels)
    assert semantic.instance is None and panoptic.instance is not None
    things = panoptic.instance > 0
    assert set(panoptic.instance[things] % 1000) == {1, 2, 3}
    assert (panoptic.instance[things] // 1000 < 24).all() and 0 < things.sum() < NUM_POINTS


@pytest.mark.parametrize(
    "frames, times", [("sweeps", [0.0, 0.05, 0.1]), ("key_frames", [0.0, 0.2, 0.4])]
)
def test_several_frames(tree: Path, frames: Any, times: list[float]) -> None:
    scan = open_tree(tree, num_frames=3, frames=frames)[2]
    assert scan.points.shape == (NUM_POINTS + 2 * (NUM_POINTS - NUM_CLOSE), 5)
    np.testing.assert_allclose(np.unique(scan.points[:, 4]), times, atol=1e-6)
    assert scan.labels is not None and (scan.labels[NUM_POINTS:] == IGNORE_INDEX).all()
    single = open_tree(tree)[2]
    np.testing.assert_array_equal(scan.labels[:NUM_POINTS], single.labels)
    np.testing.assert_array_equal(scan.points[:NUM_POINTS, :4], single.points)
    assert len(open_tree(tree, num_frames=3, frames=frames)[0].points) == NUM_POINTS


def test_earlier_key_frames_stand_where_the_sweeps_say(tree: Path) -> None:
    """The key frame before is also the fourth sweep before."""
    sweeps = open_tree(tree, num_frames=5)[2].points
    keys = open_tree(tree, num_frames=2, frames="key_frames")[2].points
    np.testing.assert_allclose(keys[NUM_POINTS:], sweeps[-(NUM_POINTS - NUM_CLOSE) :], atol=1e-4)


def test_it_feeds_the_segmentation_pipeline(tree: Path) -> None:
    voxels = SegmentationDataset(open_tree(tree, num_frames=3), VoxelizeSegmentation(0.2))[2]
    assert voxels.feats.shape[1] == 5 and voxels.point_labels is not None


def test_without_labels(tree: Path) -> None:
    scan = open_tree(tree, labels=None)[0]
    assert scan.labels is None and len(scan) == NUM_POINTS


def test_a_version_without_labels_says_so(tmp_path: Path) -> None:
    tree = write_tree(tmp_path)
    (tree / VERSION / "lidarseg.json").unlink()
    (tree / VERSION / "panoptic.json").unlink()
    with pytest.raises(ValueError, match=r"must have lidarseg labels, got 3 of 3 without"):
        open_tree(tree)
    assert len(open_tree(tree, labels=None)) == 3


def test_half_of_the_label_files(tmp_path: Path) -> None:
    tree = write_tree(tmp_path)
    next((tree / "lidarseg" / VERSION).iterdir()).unlink()
    with pytest.raises(ValueError, match=r"there are 5 label files but 6 lidarseg records"):
        open_tree(tree)


def test_broken_label_files_are_named(tmp_path: Path) -> None:
    tree = write_tree(tmp_path)
    source, panoptic = open_tree(tree), open_tree(tree, labels="panoptic")
    path = source.paths(0)[1]
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(BadSampleError, match=rf"{path.name} must have one label .* got 299"):
        source[0]
    path.unlink()
    with pytest.raises(BadSampleError, match=path.name):
        source[0]
    path = panoptic.paths(1)[1]
    path.write_bytes(path.read_bytes()[:50])
    with pytest.raises(BadSampleError, match=path.name):
        panoptic[1]


def test_other_categories_than_the_maps(tmp_path: Path) -> None:
    def swap(tables: dict[str, list[dict[str, Any]]]) -> None:
        rows = tables["category"]
        rows[3]["index"], rows[4]["index"] = 4, 3

    with pytest.raises(ValueError, match=r"got 'human.pedestrian.*\(2 differ\)"):
        open_tree(write_tree(tmp_path, change=swap))


def test_wrong_options(tree: Path) -> None:
    for options in ({"labels": "semantic"}, {"frames": "scans"}, {"num_frames": 11}):
        with pytest.raises(ValueError, match=r"NuScenesLidarSeg: .* must be"):
            open_tree(tree, **options)
    with pytest.raises(IndexError, match=r"0..2, got 3"):
        open_tree(tree)[3]
    assert (LABEL_MAP_DIR / "nuscenes_lidarseg.yaml").is_file()
