"""Shapes of nuScenes' map expansion around a sample.

They are read once through the devkit and kept, for each location, as flat arrays in a memory-mapped file.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pointlib.data.array_file import ArrayFile, write_arrays
from pointlib.data.multi_sensor import MapLayers
from pointlib.data.nuscenes_index import digest_of, index_folder_of, writing_to
from pointlib.data.nuscenes_map import LINE_LAYERS, POLYGON_LAYERS, Points
from pointlib.files import locked

_FORMAT = 1


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
