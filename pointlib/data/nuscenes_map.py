"""Masks of the map around a sample on a bird's-eye grid, as the map segmentation task of nuScenes is scored."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from pointlib.data.multi_sensor import MapLayers

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
    canvas = _Canvas(lidar_aug, grid)
    masks = np.zeros((len(grid.classes), *canvas.shape), np.uint8)
    for mask, name in zip(masks, grid.classes, strict=True):
        for layer in CLASS_LAYERS.get(name, (name,)):
            drawn = np.zeros_like(mask)
            if layer in layers.polygons:
                for rings in layers.polygons[layer]:
                    canvas.draw_area(rings, drawn)
            elif layer in layers.lines:
                for points in layers.lines[layer]:
                    canvas.draw_line(points, drawn)
            else:
                known = sorted({*layers.polygons, *layers.lines, *CLASS_LAYERS})
                raise ValueError(
                    f"rasterize_map: grid.classes must be among {', '.join(known)}, got {name!r}."
                )
            mask |= drawn
    return np.ascontiguousarray(masks.transpose(0, 2, 1)).astype(bool)


class _Canvas:
    """Draws shapes of the recorded LiDAR frame on masks (Y, X) of the augmented one."""

    def __init__(self, lidar_aug: Points, grid: MapGrid) -> None:
        self._cv2, self._shapely = _drawing_libraries()
        self._aug = lidar_aug
        self._low = np.array([grid.xbound[0], grid.ybound[0]])
        self._high = np.array([grid.xbound[1], grid.ybound[1]])
        self._resolution = grid.resolution
        self._area = self._shapely.box(*self._low, *self._high)
        self.shape = grid.shape[::-1]

    def draw_area(self, rings: list[Points], mask: npt.NDArray[np.uint8]) -> None:
        """Fill a polygon; its first ring is the outline, the others are holes."""
        outline, holes = self._move(rings[0]), [self._move(ring) for ring in rings[1:]]
        if not self._reaches(outline):
            return
        if (outline >= self._low).all() and (outline <= self._high).all():  # nothing to cut
            self._fill([outline], 1, mask)
            self._fill(holes, 0, mask)
            return
        parts = self._inside(self._shapely.Polygon(outline, holes))
        parts = [part for part in parts if part.geom_type == "Polygon"]
        self._fill([np.asarray(part.exterior.coords) for part in parts], 1, mask)
        inner = [hole for part in parts for hole in part.interiors]
        self._fill([np.asarray(hole.coords) for hole in inner], 0, mask)

    def draw_line(self, points: Points, mask: npt.NDArray[np.uint8]) -> None:
        """Draw a line."""
        moved = self._move(points)
        if not self._reaches(moved):
            return
        for part in self._inside(self._shapely.LineString(moved)):
            if part.geom_type == "LineString":
                corners = np.floor(self._cells(np.asarray(part.coords)) + _ROUNDING)
                corners = np.ascontiguousarray(corners, np.int32)
                self._cv2.polylines(mask, [corners], False, 1, LINE_THICKNESS)

    def _move(self, points: Points) -> Points:
        return points @ self._aug[:2, :2].T + self._aug[:2, 3]

    def _reaches(self, points: Points) -> bool:
        return bool((points.min(0) <= self._high).all() and (points.max(0) >= self._low).all())

    def _cells(self, points: Points) -> Points:
        cells: Points = (points - self._low) / self._resolution
        return cells

    def _inside(self, shape: Any) -> list[Any]:
        """Pieces of a shape inside the grid."""
        try:
            inside = self._shapely.intersection(shape, self._area)
        except (
            self._shapely.errors.GEOSException
        ):  # turning it made edges cross by a rounding error
            inside = self._shapely.intersection(self._shapely.make_valid(shape), self._area)
        return [part for part in self._shapely.get_parts(inside) if not part.is_empty]

    def _fill(self, rings: list[Points], value: int, mask: npt.NDArray[np.uint8]) -> None:
        corners = [np.ascontiguousarray(self._cells(ring).round(), np.int32) for ring in rings]
        if corners:
            self._cv2.fillPoly(mask, corners, value)


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
