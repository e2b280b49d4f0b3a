"""nuScenes' map expansion around a sample: shapes in the LiDAR frame, and their masks on a bird's-eye grid.

The shapes of a location are read once through the devkit and kept as flat arrays in a memory-mapped file.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pointlib.data.array_file import ArrayFile, write_arrays
from pointlib.data.multi_sensor import MapLayers
from pointlib.data.nuscenes_index import digest_of, index_folder_of, writing_to
from pointlib.files import locked

MAP_CLASSES = (
    "drivable_area", "ped_crossing", "walkway", "stop_line", "carpark_area", "divider",
)  # fmt: skip
"""Classes of the map segmentation task of mit-han-lab/bevfusion, in its order."""

POLYGON_LAYERS = ("drivable_area", "ped_crossing", "walkway", "stop_line", "carpark_area")
LINE_LAYERS = ("road_divider", "lane_divider")
CLASS_LAYERS: Mapping[str, tuple[str, ...]] = {"divider": LINE_LAYERS}
"""Layers that make up a class which is not a layer itself."""

LINE_THICKNESS = 2
"""Cells a line is wide, as the devkit draws it."""

_ROUNDING = 1e-6
"""Where a line is cut at the grid's far border, its end is that border, whatever rounding errors have made of it."""

_FORMAT = 1
Points = npt.NDArray[np.float64]


@dataclass(frozen=True)
class MapGrid:
    """Cells seen from above that map masks are drawn on.

    Attributes:
        xbound: Smallest and largest x [m].
        ybound: Smallest and largest y [m].
        resolution: Edge of a cell [m].
        classes: What to draw: `MAP_CLASSES` or names of layers.

    Raises:
        ValueError: A bound is empty or no whole number of cells, or a class comes twice.
    """

    xbound: tuple[float, float] = (-50.0, 50.0)
    ybound: tuple[float, float] = (-50.0, 50.0)
    resolution: float = 0.5
    classes: tuple[str, ...] = MAP_CLASSES

    def __post_init__(self) -> None:
        for name in ("xbound", "ybound"):
            low, high = getattr(self, name)
            cells = (high - low) / self.resolution if self.resolution > 0 else 0.0
            if not (cells >= 1 and abs(cells - round(cells)) < 1e-6):
                raise ValueError(
                    f"MapGrid: {name} must span a whole number of cells of {self.resolution} m, got {low}..{high}."
                )
        if not self.classes or len(set(self.classes)) != len(self.classes):
            raise ValueError(f"MapGrid: classes must be distinct names, got {self.classes}.")

    @property
    def shape(self) -> tuple[int, int]:
        """Cells along x and along y."""
        spans = (self.xbound[1] - self.xbound[0], self.ybound[1] - self.ybound[0])
        return round(spans[0] / self.resolution), round(spans[1] / self.resolution)


class NuScenesMaps:
    """Shapes of the map expansion, by location.

    Args:
        root: Folder that holds `maps/expansion/*.json` (map expansion pack, version 1.3).
        locations: Names such as "boston-seaport".
        index_folder: Where shapes are kept for the next time; None for `pointlib_index` in `root`.
        radius: How far the map reaches around a sample in x and in y of the world [m]. A grid of +-51.2 m, turned by
            any angle, scaled by 1.1 and moved by 3 m, stays within 90 m.

    Raises:
        ValueError: A location has no map, or an outdated or broken one.
        ImportError: A map must be read and nuscenes-devkit is not installed.
    """

    def __init__(
        self,
        root: str | Path,
        locations: Sequence[str],
        index_folder: str | Path | None = None,
        radius: float = 100.0,
    ) -> None:
        folder = index_folder_of(root, index_folder)
        self._files = {name: _load(Path(root), name, folder) for name in locations}
        self.radius = radius

    def around(self, location: str, lidar2global: Points) -> MapLayers:
        """The map around a pose.

        Args:
            location: One of the locations.
            lidar2global: (4, 4) pose of the LiDAR in the world. The map is flat: of the pose only x, y and the heading
                of its x axis matter, as in the devkit.

        Returns:
            The shapes that touch the square of `radius`, uncut (but for holes outside it), x and y in the LiDAR frame.
        """
        file = self._files[location]
        centre = lidar2global[:2, 3]
        heading = np.arctan2(lidar2global[1, 0], lidar2global[0, 0])
        turn = np.array([[np.cos(heading), np.sin(heading)], [-np.sin(heading), np.cos(heading)]])
        near = np.flatnonzero(_touches(file["shape_bounds"], centre, self.radius))
        polygons: dict[str, list[list[Points]]] = {name: [] for name in POLYGON_LAYERS}
        lines: dict[str, list[Points]] = {name: [] for name in LINE_LAYERS}
        for shape in near:
            first, stop = file["ring_start"][shape : shape + 2]
            rings = np.arange(first, stop)
            keep = _touches(file["ring_bounds"][first:stop], centre, self.radius)
            keep[0] = True
            moved = [
                (file["points"][slice(*file["point_start"][ring : ring + 2])] - centre) @ turn.T
                for ring in rings[keep]
            ]
            layer = int(file["shape_layer"][shape])
            if layer < len(POLYGON_LAYERS):
                polygons[POLYGON_LAYERS[layer]].append(moved)
            else:
                lines[LINE_LAYERS[layer - len(POLYGON_LAYERS)]].append(moved[0])
        return MapLayers(polygons, lines)


def rasterize_map(layers: MapLayers, lidar_aug: Points, grid: MapGrid) -> npt.NDArray[np.bool_]:
    """Draw the map on a grid of the augmented LiDAR frame.

    Without augmentation the masks are those of the devkit's `NuScenesMap.get_map_mask`, which
    mit-han-lab/bevfusion trains and scores with: shapes are cut at the grid's border; corners of polygons are rounded
    to cells, outlines filled with their border, then holes cleared with theirs, shape after shape; points of lines
    are cut down to cells and drawn two cells wide. Two differences, of lines that are cut: at the grid's far borders
    the last cell, and so the slope, hangs on rounding errors in the devkit (1 in 1,000 cells of lines) and not here;
    and a line that falls apart stops the devkit with shapely 2, where its pieces are drawn here. With augmentation
    shapes turn, scale, move and flip with the points, where mit-han-lab/bevfusion leaves out scale and flips.

    Args:
        layers: The map around the sample, in the recorded LiDAR frame.
        lidar_aug: (4, 4) from the recorded to the augmented LiDAR frame; what it does to x and y is used.
        grid: The cells.

    Returns:
        (C, X, Y) bool, in the order of `grid.classes`; cell (i, j) begins at x = xbound[0] + i * resolution and y =
        ybound[0] + j * resolution.

    Raises:
        ImportError: shapely or OpenCV is not installed.
        ValueError: A class of the grid is no layer of the map.
    """
    cv2, shapely = _drawing_libraries()
    num_x, num_y = grid.shape
    masks = np.zeros((len(grid.classes), num_y, num_x), np.uint8)
    low = np.array([grid.xbound[0], grid.ybound[0]])
    area = shapely.box(*low, grid.xbound[1], grid.ybound[1])

    def move(points: Points) -> Points:
        return points @ lidar_aug[:2, :2].T + lidar_aug[:2, 3]

    def cells(points: Any) -> Points:
        return (np.asarray(points) - low) / grid.resolution

    for mask, name in zip(masks, grid.classes, strict=True):
        for layer in CLASS_LAYERS.get(name, (name,)):
            drawn = np.zeros_like(mask)
            if layer in layers.polygons:
                for rings in layers.polygons[layer]:
                    shape = shapely.Polygon(move(rings[0]), [move(ring) for ring in rings[1:]])
                    parts = [p for p in _parts(shapely, shape, area) if p.geom_type == "Polygon"]
                    _fill(cv2, drawn, [p.exterior.coords for p in parts], 1, cells)
                    holes = [ring.coords for p in parts for ring in p.interiors]
                    _fill(cv2, drawn, holes, 0, cells)
            elif layer in layers.lines:
                for points in layers.lines[layer]:
                    for part in _parts(shapely, shapely.LineString(move(points)), area):
                        if part.geom_type == "LineString":
                            corners = np.floor(cells(part.coords) + _ROUNDING)
                            corners = np.ascontiguousarray(corners, np.int32)
                            cv2.polylines(drawn, [corners], False, 1, LINE_THICKNESS)
            else:
                known = sorted({*layers.polygons, *layers.lines, *CLASS_LAYERS})
                raise ValueError(
                    f"rasterize_map: grid.classes must be among {', '.join(known)}, got {name!r}."
                )
            mask |= drawn
    return np.ascontiguousarray(masks.transpose(0, 2, 1)).astype(bool)


def _fill(cv2: Any, mask: npt.NDArray[np.uint8], rings: list[Any], value: int, cells: Any) -> None:
    if rings:
        cv2.fillPoly(mask, [np.ascontiguousarray(cells(r).round(), np.int32) for r in rings], value)


def _parts(shapely: Any, shape: Any, area: Any) -> list[Any]:
    """Pieces of a shape inside the area."""
    try:
        inside = shapely.intersection(shape, area)
    except (
        shapely.errors.GEOSException
    ):  # turning it has made an edge cross another by a rounding error
        inside = shapely.intersection(shapely.make_valid(shape), area)
    return [part for part in shapely.get_parts(inside) if not part.is_empty]


def _drawing_libraries() -> tuple[Any, Any]:
    try:
        import cv2
        import shapely
    except ImportError as error:
        raise ImportError(
            f"rasterize_map: maps are drawn with OpenCV and shapely, which cannot be imported ({error}). Install them "
            "with the devkit: pip install 'pointlib[nuscenes]'"
        ) from error
    return cv2, shapely


def _touches(bounds: Points, centre: Points, radius: float) -> npt.NDArray[np.bool_]:
    """Which boxes (N, 4) [x0, y0, x1, y1] touch the square around a centre."""
    below = (bounds[:, :2] <= centre + radius).all(1)
    above = (bounds[:, 2:] >= centre - radius).all(1)
    return np.asarray(below & above)


def _load(root: Path, location: str, folder: Path) -> ArrayFile:
    """Open the shapes of a location; read them through the devkit first if there are none of this map."""
    source = root / "maps" / "expansion" / f"{location}.json"
    if not source.is_file():
        there = ", ".join(sorted(p.name for p in source.parent.glob("*.json"))) or "none"
        raise ValueError(
            f"NuScenesMaps: {source} must be there, got {there} in its folder. Extract the map expansion pack (version "
            "1.3) into maps/, or read without map."
        )
    path = folder / f"map_{location}.shapes"
    stamp = [source.stat().st_size, source.stat().st_mtime_ns]
    file = _open_if_current(path, source, stamp)
    if file is not None:
        return file
    with writing_to(folder):
        folder.mkdir(parents=True, exist_ok=True)
    with locked(path.with_suffix(".lock")):
        file = _open_if_current(path, source, stamp)
        if file is None:
            arrays = _shapes(_load_devkit_map(root, location, source))
            meta = {"stamp": stamp, "digest": digest_of([source]), "format": _FORMAT}
            with writing_to(folder):
                write_arrays(path, arrays, meta)
            file = ArrayFile(path)
    return file


def _open_if_current(path: Path, source: Path, stamp: list[int]) -> ArrayFile | None:
    if not path.is_file():
        return None
    try:
        file = ArrayFile(path)
    except ValueError:
        return None  # cut short; it is made again
    if file.meta.get("format") != _FORMAT:
        return None
    current = file.meta["stamp"] == stamp or file.meta["digest"] == digest_of([source])
    return file if current else None


def _load_devkit_map(root: Path, location: str, source: Path) -> Any:
    try:
        from nuscenes.map_expansion.map_api import NuScenesMap
    except ImportError as error:
        raise ImportError(
            "NuScenesMaps: maps are read by nuscenes-devkit, which cannot be imported "
            f"({error}). Install it: pip install 'pointlib[nuscenes]'"
        ) from error
    try:
        return NuScenesMap(str(root), location)
    except Exception as error:  # the devkit raises Exception itself for an outdated map
        raise ValueError(
            f"NuScenesMaps: {source} must be a map of the map expansion pack, version 1.3, got "
            f"{type(error).__name__}: {error}. Extract the pack again."
        ) from error


def _shapes(devkit_map: Any) -> dict[str, npt.NDArray[Any]]:
    """All shapes of a location as flat arrays: shapes of rings (outline, then holes) of points, in the world."""
    rings: list[Points] = []
    counts: list[int] = []
    layers: list[int] = []
    for layer, name in enumerate((*POLYGON_LAYERS, *LINE_LAYERS)):
        for record in getattr(devkit_map, name):
            for shape in _record_rings(devkit_map, name, record):
                rings += shape
                counts.append(len(shape))
                layers.append(layer)
    ring_start = np.cumsum([0, *counts])
    bounds = np.array([[*ring.min(0), *ring.max(0)] for ring in rings]).reshape(-1, 4)
    return {
        "points": np.concatenate([np.zeros((0, 2)), *rings]),
        "point_start": np.cumsum([0, *(len(ring) for ring in rings)]),
        "ring_bounds": bounds,
        "ring_start": ring_start,
        "shape_bounds": bounds[ring_start[:-1]],
        "shape_layer": np.array(layers, np.int16),
    }


def _record_rings(devkit_map: Any, layer: str, record: dict[str, Any]) -> list[list[Points]]:
    """Rings of each shape of a record; as in the devkit's masks, broken polygons and empty lines have none."""
    if layer in LINE_LAYERS:
        line = devkit_map.extract_line(record["line_token"])
        return [] if line.is_empty else [[np.array(line.coords)[:, :2]]]
    tokens = record["polygon_tokens"] if "polygon_tokens" in record else [record["polygon_token"]]
    polygons = [devkit_map.extract_polygon(token) for token in tokens]
    return [
        [np.array(ring.coords)[:, :2] for ring in (polygon.exterior, *polygon.interiors)]
        for polygon in polygons
        if polygon.is_valid and not polygon.is_empty
    ]
