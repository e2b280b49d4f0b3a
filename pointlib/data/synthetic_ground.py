"""The ground of a synthetic street: its centre line, the strips beside it, side roads, kerbs and relief.

A street has stations s [m] along its centre line and a lateral distance d [m], left positive. Every `LOT` metres and
on either side a profile of strips (outer edge, SemanticKITTI id, height) says what the ground is.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numba import njit

from pointlib.data.raycast import HeightField
from pointlib.data.raycast_shapes import uniform

LOT = 14.0
"""Length of street one lot takes [m]."""

STRIPS = 6
LEAD = 120.0
"""Street before the first pose and after the last [m]."""

ROAD, PARKING, SIDEWALK, OTHER_GROUND, MARKING, TERRAIN = 40, 44, 48, 49, 60, 72


@dataclass(frozen=True)
class Street:
    """Geometry of one street; all arrays are in the world frame.

    Args:
        line: (M, 3) float64, x, y [m] and heading [rad] of the centre line at stations ``-LEAD + i`` metres.
        half_width: of the carriageway [m].
        edges: (lots, 2, STRIPS) float64 [m], outer edges of the strips left and right of the line.
        labels: (lots, 2, STRIPS) int32. heights: (lots, 2, STRIPS) float64 [m] above the carriageway.
        crossings: (K, 3) float64, station, half width of the side road, width of its sidewalk [m].
        waves: (W, 4) float64, amplitude [m], wave vector x, y [rad/m], phase of the large relief.
        seed: of the small relief.
    """

    line: np.ndarray
    half_width: float
    edges: np.ndarray
    labels: np.ndarray
    heights: np.ndarray
    crossings: np.ndarray
    waves: np.ndarray
    seed: int

    @property
    def lots(self) -> int:
        """Number of lots along the street."""
        return len(self.edges)

    def at(self, station: float, lateral: float) -> tuple[float, float, float]:
        """x, y [m] of a street position and the street's heading there [rad]."""
        position = min(max(station + LEAD, 0.0), len(self.line) - 1.001)
        index = int(position)
        x, y, heading = self.line[index] + (position - index) * (
            self.line[index + 1] - self.line[index]
        )
        return x - lateral * np.sin(heading), y + lateral * np.cos(heading), heading

    def height(self, x: float, y: float) -> float:
        """Ground height [m] at a point."""
        index = int(np.argmin((self.line[:, 0] - x) ** 2 + (self.line[:, 1] - y) ** 2))
        return float(ground_at(x, y, index, *self._arrays())[0])

    def height_field(self, x: float, y: float) -> HeightField:
        """The ground around (x, y): 0.1 m lattice within 25 m, 0.4 m lattice within 84 m."""
        heights, labels, origins, spacings = [], [], [], []
        for size, spacing in ((512, 0.1), (420, 0.4)):
            # Lattice points are multiples of the spacing, so that frames agree about every one of them.
            origin = np.floor(np.array([x, y]) / spacing - size / 2) * spacing
            start = int(np.argmin(((self.line[:, :2] - origin) ** 2).sum(axis=1)))
            height, label = _lattice(origin[0], origin[1], spacing, size, start, *self._arrays())
            heights.append(height)
            labels.append(label)
            origins.append(origin)
            spacings.append(spacing)
        return HeightField(
            (heights[0], heights[1]), (labels[0], labels[1]), np.stack(origins), np.array(spacings)
        )

    def _arrays(self) -> tuple:
        return (
            self.line, self.half_width, self.edges, self.labels, self.heights, self.crossings,
            self.waves, np.uint64(self.seed),
        )  # fmt: skip


def centre_line(length: float, rng: np.random.Generator) -> np.ndarray:
    """A smooth line of ``length + 2 LEAD`` metres that bends left and right but never turns back, (M, 3)."""
    stations = np.arange(-LEAD, length + LEAD + 1.0)
    heading = np.zeros(len(stations))
    for wavelength, swing in ((420.0, 0.5), (170.0, 0.28), (90.0, 0.10)):
        phase = rng.uniform(0, 2 * np.pi)
        stretch = wavelength * rng.uniform(0.8, 1.25)
        heading += swing * rng.uniform(0.2, 1.0) * np.sin(2 * np.pi * stations / stretch + phase)
    heading += rng.uniform(-np.pi, np.pi)
    x = np.concatenate([[0.0], np.cumsum(np.cos(heading[:-1]))])
    y = np.concatenate([[0.0], np.cumsum(np.sin(heading[:-1]))])
    return np.stack([x, y, heading], axis=1)


def relief(rng: np.random.Generator) -> np.ndarray:
    """Wave table of gentle hills, see `Street.waves`."""
    rows = []
    for wavelength, amplitude in ((260.0, 1.3), (140.0, 0.5), (70.0, 0.16)):
        angle, phase = rng.uniform(0, 2 * np.pi, 2)
        number = 2 * np.pi / wavelength
        rows.append(
            [amplitude * rng.uniform(0.3, 1), number * np.cos(angle), number * np.sin(angle), phase]
        )
    return np.array(rows)


@njit(cache=True, nogil=True)
def value_noise(x, y, scale, seed):  # type: ignore[no-untyped-def]
    """Smooth noise in [-1, 1] with features of `scale` metres."""
    u, v = x / scale, y / scale
    i, j = int(np.floor(u)), int(np.floor(v))
    fu, fv = u - i, v - j
    fu, fv = fu * fu * (3.0 - 2.0 * fu), fv * fv * (3.0 - 2.0 * fv)
    low = uniform(seed, i, j) * (1.0 - fu) + uniform(seed, i + 1, j) * fu
    high = uniform(seed, i, j + 1) * (1.0 - fu) + uniform(seed, i + 1, j + 1) * fu
    return 2.0 * (low * (1.0 - fv) + high * fv) - 1.0


@njit(cache=True, nogil=True)
def _on_carriageway(s, d, half_width, crossings):  # type: ignore[no-untyped-def]
    """Road or one of its painted marks at a street position on the carriageway."""
    if abs(d) < 0.08 and s / 9.0 - np.floor(s / 9.0) < 0.45:
        return MARKING
    if half_width - 0.3 < abs(d) < half_width - 0.16:
        return MARKING
    for k in range(len(crossings)):
        away = abs(s - crossings[k, 0]) - crossings[k, 1]
        if 0.8 < away < 3.6 and d - np.floor(d) < 0.5:
            return MARKING
    return ROAD


@njit(cache=True, nogil=True)
def _side_road(x, y, s, d, line, half_width, crossings):  # type: ignore[no-untyped-def]
    """Label of a side road or its sidewalk at a point, 0 where there is none."""
    for k in range(len(crossings)):
        if abs(s - crossings[k, 0]) > 60.0:
            continue
        index = int(crossings[k, 0] + LEAD)
        if index >= len(line):
            continue  # beyond the street's end
        heading = line[index, 2]
        along = (x - line[index, 0]) * np.cos(heading) + (y - line[index, 1]) * np.sin(heading)
        away = abs(along) - crossings[k, 1]
        if away < 0.0:
            return ROAD
        if away < crossings[k, 2] and abs(d) > half_width:
            return SIDEWALK
    return 0


@njit(cache=True, nogil=True)
def ground_at(x, y, index, line, half_width, edges, labels, heights, crossings, waves, seed):  # type: ignore[no-untyped-def]
    """Height, label and nearest centre-line index of a ground point; `index` is where the search starts."""
    here = (x - line[index, 0]) ** 2 + (y - line[index, 1]) ** 2
    for direction in (1, -1):
        while 0 <= index + direction < len(line):
            there = (x - line[index + direction, 0]) ** 2 + (y - line[index + direction, 1]) ** 2
            if there >= here:
                break
            index, here = index + direction, there
    cos, sin = np.cos(line[index, 2]), np.sin(line[index, 2])
    s = index - LEAD + (x - line[index, 0]) * cos + (y - line[index, 1]) * sin
    d = -(x - line[index, 0]) * sin + (y - line[index, 1]) * cos
    base = 0.0
    for wave in range(len(waves)):
        base += waves[wave, 0] * np.sin(waves[wave, 1] * x + waves[wave, 2] * y + waves[wave, 3])
    lateral = abs(d)
    if lateral <= half_width:
        base += -0.018 * lateral + 0.004 * value_noise(x, y, 0.8, seed)
        return base, _on_carriageway(s, d, half_width, crossings), index
    edge_height = -0.018 * half_width
    beside = _side_road(x, y, s, d, line, half_width, crossings)
    if beside == ROAD:
        return base + edge_height + 0.004 * value_noise(x, y, 0.8, seed), ROAD, index
    if beside == SIDEWALK:
        return base + edge_height + 0.12, SIDEWALK, index
    lot = min(max(int(np.floor((s + LEAD) / LOT)), 0), len(edges) - 1)
    side = 0 if d > 0.0 else 1
    strip, inner = 0, half_width
    while strip < STRIPS - 1 and lateral > edges[lot, side, strip]:
        inner = edges[lot, side, strip]
        strip += 1
    label, height = labels[lot, side, strip], edge_height + heights[lot, side, strip]
    if label == TERRAIN:
        ramp = min(1.0, (lateral - inner) / 2.5)
        height += 0.03 * value_noise(x, y, 0.22, seed) + 0.03 * value_noise(
            x, y, 0.7, seed + np.uint64(1)
        )
        height += ramp * 0.16 * value_noise(x, y, 5.0, seed + np.uint64(2))
        slope = 0.16 * value_noise(s, 50.0 * side, 60.0, seed + np.uint64(3)) + 0.03
        height += slope * min(max(0.0, lateral - 12.0), 30.0)
    else:
        height += 0.006 * value_noise(x, y, 0.6, seed)
        slope = 0.16 * value_noise(s, 50.0 * side, 60.0, seed + np.uint64(3)) + 0.03
        height += slope * min(max(0.0, lateral - 12.0), 30.0)
    return base + height, label, index


@njit(cache=True, nogil=True)
def _lattice(  # type: ignore[no-untyped-def]
    x0, y0, spacing, size, start, line, half_width, edges, labels, heights, crossings, waves, seed
):
    height = np.empty((size, size), np.float32)
    label = np.empty((size, size), np.int32)
    row_index = start
    for i in range(size):
        index = row_index
        for j in range(size):
            height[i, j], label[i, j], index = ground_at(
                x0 + i * spacing, y0 + j * spacing, index, line, half_width, edges, labels, heights,
                crossings, waves, seed,
            )  # fmt: skip
            if j == 0:
                row_index = index
    return height, label
