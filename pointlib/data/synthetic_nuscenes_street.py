"""The street of a synthetic nuScenes scene: lanes, crossings, stop lines and bays painted on a planned street.

Positions along it are (s, d): station s [m] along the centre line, lateral distance d [m], left positive. Traffic
keeps right. The surface ids of this file go with SemanticKITTI's ground ids of `synthetic_ground`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numba import njit

from pointlib.data.lidar_sensor import MATERIAL_ID
from pointlib.data.raycast import HeightField
from pointlib.data.synthetic_ground import (
    LEAD,
    MARKING,
    OTHER_GROUND,
    PARKING,
    ROAD,
    SIDEWALK,
    TERRAIN,
    Street,
    ground_at,
)
from pointlib.data.synthetic_plan import STYLES, Plan, plan_street

YELLOW_MARKING = 61
"""The line between opposite directions; all other paint is `MARKING`."""

BIKE_LANE = 1.3
"""Width of the strip for bicycles between the outer lane and the kerb [m]."""

ZEBRA = (0.8, 3.8)
"""A crossing of the street reaches from here to there beyond the edge of a side road [m]."""

STOP_LINE = (4.6, 5.6)
"""The bar before a crossing of the street, from the edge of the side road [m]."""

SIDE_ZEBRA = (0.6, 3.4)
SIDE_STOP_LINE = (4.2, 5.2)
"""The same on a side road, from the edge of the street [m]."""

SIDE_LENGTH = 85.0
"""A side road is mapped this far from the centre line [m]."""

BAY, LANE_BAY = 2.7, 6.0
"""Width of a bay in a car park and length of one beside the carriageway [m]."""


@dataclass(frozen=True)
class NuScenesStreet:
    """A flat street with its plan.

    Args:
        street: geometry, without hills. plan: what stands on its lots.
        lanes: lanes for cars in each direction. lane_width: [m].
    """

    street: Street
    plan: Plan
    lanes: int
    lane_width: float

    @cached_property
    def lane_edge(self) -> float:
        """Distance from the centre line to the outer edge of the outer lane [m]."""
        return self.lanes * self.lane_width

    def lane_centre(self, lane: int) -> float:
        """Distance of a lane's middle from the centre line [m]; 0 is the inner lane, `lanes` the bicycles'."""
        if lane == self.lanes:
            return self.lane_edge + BIKE_LANE / 2
        return (lane + 0.5) * self.lane_width

    def height_field(self, x: float, y: float) -> HeightField:
        """The ground around a point, with what is painted on it."""
        bare = self.street.height_field(x, y)
        labels = []
        for level in (0, 1):
            origin, spacing = bare.origins[level], bare.spacings[level]
            shape = bare.labels[level].shape
            labels.append(self.surface(origin[0], origin[1], spacing, shape))
        return HeightField(bare.heights, (labels[0], labels[1]), bare.origins, bare.spacings)

    def surface(self, x: float, y: float, spacing: float, shape: tuple[int, int]) -> np.ndarray:
        """Surface ids (shape) int32 on a lattice that begins at (x, y), indexed [x, y]."""
        return _surface_lattice(x, y, spacing, shape[0], shape[1], *self.arrays())

    def surface_of(self, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        """Surface ids (N,) int32 of points x, y (N,) [m]; neighbours in the array should be neighbours on the map."""
        return _surface_points(x, y, *self.arrays())

    def arrays(self) -> tuple:
        """What `surface_at` is given after x, y and the index its search starts from."""
        street = self.street
        return (
            street.line, street.half_width, street.edges, street.labels, street.heights, street.crossings,
            street.waves, np.uint64(street.seed), self.lane_width, self.lanes,
        )  # fmt: skip


def lay_street(length: float, seed: tuple[int, ...], origin: Sequence[float]) -> NuScenesStreet:
    """Plan a flat street of one or two lanes a direction whose bounding box begins at `origin` (x, y) [m]."""
    rng = np.random.default_rng([*seed, 40])
    styles = list(STYLES)
    street, plan = plan_street(length, styles[int(rng.integers(len(styles)))], seed)
    lanes, lane_width = int(rng.integers(1, 3)), float(rng.uniform(3.1, 3.6))
    wider = lanes * lane_width + BIKE_LANE - street.half_width
    line = street.line.copy()
    line[:, :2] += np.asarray(origin) - line[:, :2].min(axis=0)
    street = dataclasses.replace(
        street,
        line=line,
        half_width=street.half_width + wider,
        edges=street.edges + wider,
        waves=np.zeros((1, 4)),
    )
    return NuScenesStreet(
        street, dataclasses.replace(plan, front=plan.front + wider), lanes, lane_width
    )


def ground_materials() -> np.ndarray:
    """(300,) int32, material of each surface id."""
    table = np.full(300, MATERIAL_ID["asphalt"], np.int32)
    for label, name in (
        (SIDEWALK, "concrete"),
        (OTHER_GROUND, "gravel"),
        (MARKING, "marking"),
        (YELLOW_MARKING, "marking"),
        (TERRAIN, "grass"),
    ):
        table[label] = MATERIAL_ID[name]
    return table


@njit(cache=True, nogil=True)
def _between(value, low, high):  # type: ignore[no-untyped-def]
    return low <= value < high


@njit(cache=True, nogil=True)
def _paint_on_street(s, d, half_width, crossings, lane_width, lanes):  # type: ignore[no-untyped-def]
    """Surface of the carriageway at (s, d)."""
    away, before = 1e9, 0.0
    for k in range(len(crossings)):
        gap = abs(s - crossings[k, 0]) - crossings[k, 1]
        if gap < away:
            away, before = gap, s - crossings[k, 0]
    if away < ZEBRA[0]:
        return ROAD
    if away < ZEBRA[1]:
        return MARKING if d - np.floor(d) < 0.5 else ROAD
    lateral = abs(d)
    if away < STOP_LINE[0]:
        return ROAD
    if away < STOP_LINE[1] and d * before > 0.0 and 0.25 < lateral < lanes * lane_width - 0.1:
        return MARKING
    if _between(lateral, 0.07, 0.2):
        return YELLOW_MARKING
    if abs(lateral - lanes * lane_width) < 0.07:
        return MARKING
    for lane in range(1, lanes):
        if abs(lateral - lane * lane_width) < 0.07 and s / 8.0 - np.floor(s / 8.0) < 0.45:
            return MARKING
    return ROAD


@njit(cache=True, nogil=True)
def _paint_on_side_road(x, y, d, line, half_width, crossings):  # type: ignore[no-untyped-def]
    """Surface of a side road at a point beside the carriageway, `ROAD` where nothing is painted."""
    for k in range(len(crossings)):
        index = int(crossings[k, 0] + LEAD)
        if index >= len(line):
            continue  # beyond the street's end
        heading = line[index, 2]
        along = (x - line[index, 0]) * np.cos(heading) + (y - line[index, 1]) * np.sin(heading)
        across = -(x - line[index, 0]) * np.sin(heading) + (y - line[index, 1]) * np.cos(heading)
        if abs(along) >= crossings[k, 1]:
            continue
        gap = abs(across) - half_width
        if SIDE_ZEBRA[0] <= gap < SIDE_ZEBRA[1]:
            return MARKING if along - np.floor(along) < 0.5 else ROAD
        inbound = along * across < 0.0
        if SIDE_STOP_LINE[0] <= gap < SIDE_STOP_LINE[1] and inbound and abs(along) > 0.2:
            return MARKING
        if gap > SIDE_STOP_LINE[0] and 0.05 < abs(along) < 0.17:
            return YELLOW_MARKING
    return ROAD


@njit(cache=True, nogil=True)
def surface_at(  # type: ignore[no-untyped-def]
    x, y, index, line, half_width, edges, labels, heights, crossings, waves, seed, lane_width, lanes
):
    """Height [m], surface id and nearest centre-line index of a ground point; `index` is where the search starts."""
    height, label, index = ground_at(
        x, y, index, line, half_width, edges, labels, heights, crossings, waves, seed
    )
    cos, sin = np.cos(line[index, 2]), np.sin(line[index, 2])
    s = index - LEAD + (x - line[index, 0]) * cos + (y - line[index, 1]) * sin
    d = -(x - line[index, 0]) * sin + (y - line[index, 1]) * cos
    if abs(d) <= half_width:
        label = _paint_on_street(s, d, half_width, crossings, lane_width, lanes)
    elif label == ROAD:
        label = _paint_on_side_road(x, y, d, line, half_width, crossings)
    elif label == PARKING:
        bay = LANE_BAY if abs(d) < half_width + 2.3 else BAY
        if s / bay - np.floor(s / bay) < 0.12 / bay:
            label = MARKING
    return height, label, index


@njit(cache=True, nogil=True)
def _surface_lattice(  # type: ignore[no-untyped-def]
    x0,
    y0,
    spacing,
    rows,
    columns,
    line,
    half_width,
    edges,
    labels,
    heights,
    crossings,
    waves,
    seed,
    lane_width,
    lanes,
):
    label = np.empty((rows, columns), np.int32)
    start, best = 0, 1e18
    for k in range(len(line)):
        gap = (line[k, 0] - x0) ** 2 + (line[k, 1] - y0) ** 2
        if gap < best:
            start, best = k, gap
    for i in range(rows):
        index = start
        for j in range(columns):
            _, label[i, j], index = surface_at(
                x0 + i * spacing, y0 + j * spacing, index, line, half_width, edges, labels, heights,
                crossings, waves, seed, lane_width, lanes,
            )  # fmt: skip
            if j == 0:
                start = index
    return label


@njit(cache=True, nogil=True)
def _surface_points(  # type: ignore[no-untyped-def]
    x, y, line, half_width, edges, labels, heights, crossings, waves, seed, lane_width, lanes
):
    label = np.zeros(len(x), np.int32)
    index = 0
    for i in range(len(x)):
        if i == 0 or (x[i] - x[i - 1]) ** 2 + (y[i] - y[i - 1]) ** 2 > 1.0:
            best = 1e18
            for k in range(len(line)):
                gap = (line[k, 0] - x[i]) ** 2 + (line[k, 1] - y[i]) ** 2
                if gap < best:
                    index, best = k, gap
        _, label[i], index = surface_at(
            x[i], y[i], index, line, half_width, edges, labels, heights, crossings, waves, seed,
            lane_width, lanes,
        )  # fmt: skip
    return label
