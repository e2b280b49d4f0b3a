"""The map around a sample, and its masks against the devkit's as mit-han-lab/bevfusion asks for them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pointlib.data.multi_sensor import MapLayers
from pointlib.data.nuscenes import NuScenes
from pointlib.data.nuscenes_map import (
    CLASS_LAYERS,
    MAP_CLASSES,
    MapGrid,
    rasterize_map,
)
from pointlib.data.nuscenes_map_shapes import NuScenesMaps
from pointlib.geometry import rigid_transform, yaw_rotation
from tests.data.nuscenes_tree import write_tree

pytest.importorskip("nuscenes")
LOCATION = "singapore-onenorth"


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tree(tmp_path_factory.mktemp("nuscenes"))


@pytest.fixture(scope="module")
def devkit_map(tree: Path) -> Any:
    from nuscenes.map_expansion.map_api import NuScenesMap

    return NuScenesMap(str(tree), LOCATION)


@pytest.fixture(autouse=True)
def pieces_are_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lines that the devkit cuts into pieces draw as they did before shapely 2."""
    from nuscenes.map_expansion.map_api import NuScenesMapExplorer

    whole = NuScenesMapExplorer.mask_for_lines

    def draw(lines: Any, mask: np.ndarray) -> np.ndarray:
        for line in getattr(lines, "geoms", [lines]):
            mask = whole(line, mask)
        return mask

    monkeypatch.setattr(NuScenesMapExplorer, "mask_for_lines", staticmethod(draw))


@pytest.fixture
def without_rounding_errors(pieces_are_drawn: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Cut ends that lie on the devkit's border up to rounding errors lie on it exactly."""
    import shapely
    from nuscenes.map_expansion.map_api import NuScenesMapExplorer

    exact = NuScenesMapExplorer.mask_for_lines

    def draw(lines: Any, mask: np.ndarray) -> np.ndarray:
        return exact(shapely.transform(lines, lambda points: np.floor(points + 1e-6)), mask)

    monkeypatch.setattr(NuScenesMapExplorer, "mask_for_lines", staticmethod(draw))


def devkit_masks(devkit_map: Any, lidar2global: np.ndarray, grid: MapGrid) -> np.ndarray:
    """Masks (C, X, Y) of a grid centred on the LiDAR, from the devkit."""
    size = (grid.ybound[1] - grid.ybound[0], grid.xbound[1] - grid.xbound[0])
    angle = np.degrees(np.arctan2(lidar2global[1, 0], lidar2global[0, 0]))
    box = (*lidar2global[:2, 3], *size)
    masks = []
    for name in grid.classes:
        layers = list(CLASS_LAYERS.get(name, (name,)))
        drawn = devkit_map.get_map_mask(box, angle, layers, (grid.shape[1], grid.shape[0]))
        masks.append(drawn.any(0).T)
    return np.stack(masks)


def pose(seed: int) -> np.ndarray:
    """A tilted pose where the map is."""
    rng = np.random.default_rng(seed)
    tilt = rigid_transform(np.eye(3), [0.0, 0.0, 0.0])
    tilt[1:3, 1:3] = yaw_rotation(np.array(0.03))[:2, :2]
    place = [*(np.array([404.0, 1102.0]) + rng.uniform(-30, 30, 2)), 1.8]
    return rigid_transform(yaw_rotation(np.array(rng.uniform(-np.pi, np.pi))), place) @ tilt


GRIDS = (
    MapGrid(),
    MapGrid((-20.0, 20.0), (-30.0, 30.0), 0.25),
    MapGrid((-51.2, 51.2), (-51.2, 51.2), 0.8),
)


@pytest.mark.parametrize(
    "grid", GRIDS, ids=lambda grid: f"{grid.shape[0]} cells of {grid.resolution} m"
)
@pytest.mark.parametrize("seed", range(6))
@pytest.mark.usefixtures("without_rounding_errors")
def test_masks_equal_the_devkits(tree: Path, devkit_map: Any, grid: MapGrid, seed: int) -> None:
    lidar2global = pose(seed)
    layers = NuScenesMaps(tree, [LOCATION]).around(LOCATION, lidar2global)
    ours = rasterize_map(layers, np.eye(4), grid)
    expected = devkit_masks(devkit_map, lidar2global, grid)
    assert ours.shape == (6, *grid.shape) and ours.dtype == bool
    assert expected[0].any() and expected[-1].any()
    np.testing.assert_array_equal(ours, expected)


def test_areas_equal_the_devkits_as_it_is(tree: Path, devkit_map: Any) -> None:
    """Areas always; lines but for the cells that hang on its rounding errors."""
    wrong = drawn = 0
    maps = NuScenesMaps(tree, [LOCATION])
    for seed in range(20):
        ours = rasterize_map(maps.around(LOCATION, pose(seed)), np.eye(4), MapGrid())
        expected = devkit_masks(devkit_map, pose(seed), MapGrid())
        np.testing.assert_array_equal(ours[:5], expected[:5])
        wrong += int((ours[5] != expected[5]).sum())
        drawn += int(expected[5].sum())
    assert wrong < 0.003 * drawn


@pytest.mark.usefixtures("without_rounding_errors")
def test_turning_and_moving_equal_the_devkits_patch(tree: Path, devkit_map: Any) -> None:
    """Without scale and flips the augmented frame is another pose, whose masks the devkit draws."""
    lidar2global, grid = pose(1), MapGrid()
    flat = rigid_transform(
        yaw_rotation(np.arctan2(lidar2global[1, 0], lidar2global[0, 0])), lidar2global[:3, 3]
    )
    aug = rigid_transform(yaw_rotation(np.array(0.5)), [1.5, -0.7, 0.2])
    layers = NuScenesMaps(tree, [LOCATION]).around(LOCATION, lidar2global)
    expected = devkit_masks(devkit_map, flat @ np.linalg.inv(aug), grid)
    np.testing.assert_array_equal(rasterize_map(layers, aug, grid), expected)


def test_flips_and_scale_move_cells_with_points() -> None:
    """A cell's centre lies in an area exactly if its mask is set, whatever the augmentation."""
    square = np.array([[4.0, 2.0], [30.0, 2.0], [30.0, 20.0], [4.0, 20.0], [4.0, 2.0]])
    hole = np.array([[10.0, 8.0], [20.0, 8.0], [20.0, 14.0], [10.0, 14.0], [10.0, 8.0]])
    line = np.array([[-30.0, -10.0], [-5.0, -30.0]])
    layers = MapLayers({"walkway": [[square, hole]]}, {"road_divider": [line], "lane_divider": []})
    grid = MapGrid((-40.0, 40.0), (-50.0, 30.0), 0.25, ("walkway", "divider"))
    x, y = (low + 0.25 * (np.arange(320) + 0.5) for low in (-40.0, -50.0))
    for scale, flip_x, flip_y in ((1.0, 1, 1), (1.1, -1, 1), (0.9, 1, -1), (1.05, -1, -1)):
        aug = np.diag([scale * flip_x, scale * flip_y, scale, 1.0])
        mask = rasterize_map(layers, aug, grid)
        back_x, back_y = np.meshgrid(x / (scale * flip_x), y / (scale * flip_y), indexing="ij")
        inside = _inside(back_x, back_y, square) & ~_inside(back_x, back_y, hole)
        wrong = mask[0] != inside
        assert inside.sum() > 1000 and wrong.mean() < 0.012  # cells on a border
        far = _distance(back_x, back_y, line) > 0.8
        near = _distance(back_x, back_y, line) < 0.05
        assert not mask[1][far].any() and mask[1][near].mean() > 0.9


def _inside(x: np.ndarray, y: np.ndarray, box: np.ndarray) -> np.ndarray:
    low, high = box.min(0), box.max(0)
    return (x > low[0]) & (x < high[0]) & (y > low[1]) & (y < high[1])


def _distance(x: np.ndarray, y: np.ndarray, line: np.ndarray) -> np.ndarray:
    way = line[1] - line[0]
    part = ((x - line[0, 0]) * way[0] + (y - line[0, 1]) * way[1]) / (way @ way)
    part = part.clip(0, 1)
    return np.hypot(x - line[0, 0] - part * way[0], y - line[0, 1] - part * way[1])


@pytest.mark.usefixtures("without_rounding_errors")
def test_a_sample_brings_its_map(tree: Path, devkit_map: Any) -> None:
    sample = NuScenes(tree, "v1.0-mini", "mini_train", map=True)[1]
    assert sample.map is not None
    expected = devkit_masks(devkit_map, sample.ego2global @ sample.lidar2ego, MapGrid())
    np.testing.assert_array_equal(rasterize_map(sample.map, np.eye(4), MapGrid()), expected)


def test_shapes_are_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tree, lidar2global = write_tree(tmp_path), pose(0)
    first = NuScenesMaps(tree, [LOCATION]).around(LOCATION, lidar2global)

    def fail(*_: Any) -> None:
        raise AssertionError("read again")

    monkeypatch.setattr("pointlib.data.nuscenes_map_shapes._load_devkit_map", fail)
    again = NuScenesMaps(tree, [LOCATION]).around(LOCATION, lidar2global)
    assert len(again.lines["road_divider"]) == len(first.lines["road_divider"]) == 6
    path = tree / "maps" / "expansion" / f"{LOCATION}.json"
    path.write_text(path.read_text() + " ")
    with pytest.raises(AssertionError, match="read again"):
        NuScenesMaps(tree, [LOCATION])
    far = NuScenesMaps(tree, [], None)
    assert not far._files
    monkeypatch.undo()
    nowhere = NuScenesMaps(tree, [LOCATION]).around(LOCATION, lidar2global + 1e5)
    assert not any(nowhere.polygons.values()) and not any(nowhere.lines.values())


def test_missing_broken_and_outdated_maps(tmp_path: Path) -> None:
    tree = write_tree(tmp_path)
    path = tree / "maps" / "expansion" / f"{LOCATION}.json"
    content = json.loads(path.read_text())
    path.write_text(json.dumps({**content, "version": "1.2"}))
    with pytest.raises(ValueError, match=r"onenorth.json must be a map .* outdated map version"):
        NuScenesMaps(tree, [LOCATION])
    path.write_text(json.dumps(content)[:900])
    with pytest.raises(ValueError, match=r"onenorth.json must be a map .* JSONDecodeError"):
        NuScenesMaps(tree, [LOCATION])
    path.unlink()
    with pytest.raises(ValueError, match=r"onenorth.json must be there, got boston-seaport.json"):
        NuScenes(tree, "v1.0-mini", "mini_train", map=True)


def test_wrong_grids() -> None:
    with pytest.raises(ValueError, match=r"xbound must span a whole number of cells"):
        MapGrid(xbound=(0.0, 0.7))
    with pytest.raises(ValueError, match=r"ybound must span"):
        MapGrid(ybound=(1.0, -1.0))
    with pytest.raises(ValueError, match=r"xbound must span"):
        MapGrid(resolution=0.0)
    with pytest.raises(ValueError, match=r"classes must be distinct"):
        MapGrid(classes=("walkway", "walkway"))
    layers = MapLayers({"walkway": []}, {})
    with pytest.raises(ValueError, match=r"must be among divider, walkway, got 'road'"):
        rasterize_map(layers, np.eye(4), MapGrid(classes=("road",)))
    assert len(MAP_CLASSES) == 6
