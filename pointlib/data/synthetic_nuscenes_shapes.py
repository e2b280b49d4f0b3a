"""The shapes of a synthetic nuScenes street seen from above: what its surfaces are, as polygons and lines on the map.

They follow the same plan as the surfaces that cameras and LiDAR meet (`synthetic_nuscenes_street`).
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from pointlib.data.synthetic_ground import LEAD, LOT, PARKING, SIDEWALK, STRIPS
from pointlib.data.synthetic_nuscenes_street import (
    SIDE_LENGTH,
    SIDE_STOP_LINE,
    SIDE_ZEBRA,
    STOP_LINE,
    ZEBRA,
    NuScenesStreet,
)

STEP = 1.0
"""Between two corners of a shape that follows the street [m]."""


def load_shapely() -> Any:
    """The package shapely.

    Raises:
        ImportError: it is missing or older than 2.
    """
    try:
        shapely = importlib.import_module("shapely")
    except ImportError:
        shapely = None
    if shapely is None or not hasattr(shapely, "set_precision"):
        raise ImportError(
            "generate_nuscenes: maps are made with shapely >= 2, which comes with nuscenes-devkit: "
            "pip install 'pointlib[nuscenes]'"
        )
    return shapely


@dataclass(frozen=True)
class Crossing:
    """A side road: its station, half its width and the width of its sidewalks [m]."""

    station: float
    half_width: float
    walk: float


class StreetShapes:
    """Shapes of one street.

    Args:
        layout: the street.
    """

    def __init__(self, layout: NuScenesStreet) -> None:
        self.layout, self.street = layout, layout.street
        self.low, self.high = -LEAD + 1.0, len(self.street.line) - LEAD - 2.0

    @cached_property
    def crossings(self) -> list[Crossing]:
        """Side roads that are on the map whole."""
        rows = [Crossing(*(float(v) for v in row)) for row in self.street.crossings]
        return [row for row in rows if self.low + 12.0 < row.station < self.high - 12.0]

    @cached_property
    def sections(self) -> list[tuple[float, float]]:
        """Stations between which the street has no side road."""
        cuts = [self.low]
        for crossing in self.crossings:
            cuts += [crossing.station - crossing.half_width, crossing.station + crossing.half_width]
        cuts.append(self.high)
        return list(zip(cuts[::2], cuts[1::2], strict=True))

    def line(self, start: float, end: float, lateral: float) -> np.ndarray:
        """(K, 2) float64 points along the street from one station to another at a lateral distance [m]."""
        stations = np.linspace(start, end, max(int(abs(end - start) / STEP), 1) + 1)
        return np.array([self.street.at(s, lateral)[:2] for s in stations])

    def band(self, start: float, end: float, inner: float, outer: float) -> Any:
        """Polygon between two stations and two lateral distances."""
        corners = [self.line(start, end, inner), self.line(end, start, outer)]
        return load_shapely().Polygon(np.concatenate(corners)).buffer(0)

    def block(
        self, crossing: Crossing, along: tuple[float, float], across: tuple[float, float]
    ) -> Any:
        """Rectangle in the straight frame of a side road: x along the street there, y to its left."""
        x, y = np.array(along)[[0, 1, 1, 0]], np.array(across)[[0, 0, 1, 1]]
        return load_shapely().Polygon(self.side_points(crossing, x, y)).buffer(0)

    def side_points(self, crossing: Crossing, along: np.ndarray, across: np.ndarray) -> np.ndarray:
        """(K, 2) float64 map points of a side road's straight frame."""
        px, py, heading = self.street.line[int(crossing.station + LEAD)]
        cos, sin = np.cos(heading), np.sin(heading)
        return np.stack([px + along * cos - across * sin, py + along * sin + across * cos], axis=1)

    @cached_property
    def _strips(self) -> dict[int, Any]:
        """Union of the strips beside the carriageway that are parking or sidewalk, side roads not cut out."""
        found: dict[int, list[Any]] = {PARKING: [], SIDEWALK: []}
        street = self.street
        for lot in range(street.lots):
            start = max(lot * LOT - LEAD, self.low)
            end = min((lot + 1) * LOT - LEAD, self.high)
            if end - start < 0.5:
                continue
            for side, sign in ((0, 1.0), (1, -1.0)):
                inner = street.half_width
                for strip in range(STRIPS):
                    outer = float(street.edges[lot, side, strip])
                    label = int(street.labels[lot, side, strip])
                    if outer > 100.0 or outer <= inner:
                        break
                    if label in found:
                        found[label].append(self.band(start, end, sign * inner, sign * outer))
                    inner = outer
        union = load_shapely().unary_union
        return {
            label: union([piece.buffer(0.02) for piece in parts]) for label, parts in found.items()
        }

    @cached_property
    def roads(self) -> Any:
        """Carriageways of the street and of its side roads."""
        half = self.street.half_width
        parts = [self.band(self.low, self.high, -half, half)]
        for row in self.crossings:
            sides = (-row.half_width, row.half_width)
            parts.append(self.block(row, sides, (-SIDE_LENGTH, SIDE_LENGTH)))
        return load_shapely().unary_union(parts)

    @cached_property
    def _side_walks(self) -> Any:
        parts = []
        for row in self.crossings:
            for flank in (-1.0, 1.0):
                sides = sorted((flank * row.half_width, flank * (row.half_width + row.walk)))
                parts.append(self.block(row, (sides[0], sides[1]), (-SIDE_LENGTH, SIDE_LENGTH)))
        return load_shapely().unary_union(parts)

    @cached_property
    def parking(self) -> Any:
        """Bays beside the carriageway and car parks."""
        return self._strips[PARKING].difference(self.roads).difference(self._side_walks)

    @cached_property
    def drivable(self) -> Any:
        """Everything a car may stand on."""
        return self.roads.union(self.parking)

    @cached_property
    def walkways(self) -> Any:
        """Sidewalks."""
        return self._strips[SIDEWALK].union(self._side_walks).difference(self.drivable)

    def zebras(self, crossing: Crossing) -> list[Any]:
        """Pedestrian crossings at a side road: two over the street, two over the side road."""
        half, found = self.street.half_width, []
        for sign in (-1.0, 1.0):
            ends = sorted(crossing.station + sign * (crossing.half_width + gap) for gap in ZEBRA)
            found.append(self.band(ends[0], ends[1], -half, half))
        for sign in (-1.0, 1.0):
            across = sorted(sign * (half + gap) for gap in SIDE_ZEBRA)
            sides = (-crossing.half_width, crossing.half_width)
            found.append(self.block(crossing, sides, (across[0], across[1])))
        return found

    def stop_lines(self, crossing: Crossing) -> list[Any]:
        """Stop lines at a side road: of the street's two directions, then of the side road's two."""
        half, found = self.street.half_width, []
        for sign in (-1.0, 1.0):
            ends = sorted(
                crossing.station + sign * (crossing.half_width + gap) for gap in STOP_LINE
            )
            lanes = sorted((sign * 0.25, sign * (self.layout.lane_edge - 0.1)))
            found.append(self.band(ends[0], ends[1], lanes[0], lanes[1]))
        for sign in (-1.0, 1.0):
            across = sorted(sign * (half + gap) for gap in SIDE_STOP_LINE)
            along = sorted((-sign * 0.2, -sign * crossing.half_width))
            found.append(self.block(crossing, (along[0], along[1]), (across[0], across[1])))
        return found

    def _unbroken(self) -> list[tuple[float, float]]:
        """Stations between which lines along the street are painted."""
        ends = []
        for start, end in self.sections:
            start += STOP_LINE[0] if start > self.low else 0.0
            end -= STOP_LINE[0] if end < self.high else 0.0
            if end > start + 1.0:
                ends.append((start, end))
        return ends

    def road_dividers(self) -> list[np.ndarray]:
        """Lines between opposite directions, (K, 2) each."""
        found = [self.line(start, end, 0.0) for start, end in self._unbroken()]
        for row in self.crossings:
            for sign in (-1.0, 1.0):
                across = sign * np.array([self.street.half_width + SIDE_STOP_LINE[0], SIDE_LENGTH])
                found.append(self.side_points(row, np.zeros(2), across))
        return found

    def lane_dividers(self) -> list[tuple[np.ndarray, str]]:
        """Lines between lanes of one direction, (K, 2) each, and what they look like."""
        found = []
        for start, end in self._unbroken():
            for sign in (-1.0, 1.0):
                for lane in range(1, self.layout.lanes + 1):
                    line = self.line(start, end, sign * lane * self.layout.lane_width)
                    solid = lane == self.layout.lanes
                    found.append((line, "SINGLE_SOLID_WHITE" if solid else "DOUBLE_DASHED_WHITE"))
        return found
