"""A growing list of analytic bodies, placed in a street by position and yaw."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np

from pointlib.data.lidar_sensor import MATERIAL_ID
from pointlib.data.raycast import Primitives
from pointlib.data.raycast_shapes import CONVEX, ELLIPSOID, FRUSTUM, PLAIN

Vector = Sequence[float] | np.ndarray


@dataclass(frozen=True)
class Place:
    """Where a thing stands: x, y, z [m] of its foot and yaw [rad] in the world."""

    x: float
    y: float
    z: float
    yaw: float

    def axes(self) -> np.ndarray:
        """(3, 3) float64, rows are the local axes in the world."""
        cos, sin = np.cos(self.yaw), np.sin(self.yaw)
        return np.array([[cos, sin, 0.0], [-sin, cos, 0.0], [0.0, 0.0, 1.0]])

    def point(self, local: Vector) -> np.ndarray:
        """(3,) float64 world position of a local point."""
        return np.asarray(local, dtype=np.float64) @ self.axes() + (self.x, self.y, self.z)


@dataclass
class Bodies:
    """A growing list of bodies; `label` and `instance` hold for what is added next."""

    label: int = 0
    instance: int = 0
    rows: list[tuple] = field(default_factory=list)
    planes: list[np.ndarray] = field(default_factory=list)

    def of(self, label: int, instance: int = 0) -> Bodies:
        """The same list, with what is added next labelled so."""
        self.label, self.instance = label, instance
        return self

    def _add(
        self, kind: int, centre: np.ndarray, axes: np.ndarray, size: Vector, material: str,
        density: float, pattern: Vector, planes: np.ndarray,
    ) -> None:  # fmt: skip
        self.rows.append(
            (
                kind,
                centre,
                axes,
                size,
                density,
                pattern,
                self.label,
                self.instance,
                MATERIAL_ID[material],
            )
        )
        self.planes.append(planes)

    def hull(
        self, place: Place, centre: Vector, half: Vector, planes: np.ndarray, material: str,
        density: float = 0.0, pattern: Vector = (PLAIN, 1, 1, 0, 0),
    ) -> None:  # fmt: skip
        """A convex body about local `centre` with bounds `half`; planes (Q, 5) are relative to its centre."""
        self._add(
            CONVEX, place.point(centre), place.axes(), half, material, density, pattern, planes
        )

    def box(
        self, place: Place, centre: Vector, half: Vector, material: str, density: float = 0.0,
        pattern: Vector = (PLAIN, 1, 1, 0, 0),
    ) -> None:  # fmt: skip
        """A box about local `centre` with half extents `half` [m]; a `density` makes it foliage."""
        planes = np.zeros((6, 5))
        planes[[0, 1, 2], [0, 1, 2]] = 1.0
        planes[[3, 4, 5], [0, 1, 2]] = -1.0
        planes[:, 3] = [*half, *half]
        planes[:, 4] = -1
        self.hull(place, centre, half, planes, material, density, pattern)

    def extrusion(
        self, place: Place, outline: Sequence[Vector], half_width: float, material: str,
        glass: Iterable[int] = (), lean: float = 0.0, side_glass: bool = False,
    ) -> None:  # fmt: skip
        """A convex side outline of (x, z), counter-clockwise seen from the right, widened to +-`half_width` in y.

        Edges listed in `glass` are windows; `lean` tilts the sides inwards [rad].
        """
        points = np.asarray(outline, dtype=np.float64)
        low, high = points.min(axis=0), points.max(axis=0)
        middle = (low + high) / 2
        edges = np.roll(points, -1, axis=0) - points
        normals = np.stack([edges[:, 1], -edges[:, 0]], axis=1)
        normals /= np.linalg.norm(normals, axis=1, keepdims=True)
        planes = np.zeros((len(points) + 2, 5))
        planes[:-2, 0], planes[:-2, 2] = normals[:, 0], normals[:, 1]
        planes[:-2, 3] = (normals * (points - middle)).sum(axis=1)
        planes[:, 4] = -1
        planes[list(glass), 4] = MATERIAL_ID["glass"]
        foot = (low[1] - middle[1]) * np.sin(lean)
        planes[-2:, 1], planes[-2:, 2] = np.array([1.0, -1.0]) * np.cos(lean), np.sin(lean)
        planes[-2:, 3] = half_width * np.cos(lean) + foot
        if side_glass:
            planes[-2:, 4] = MATERIAL_ID["glass"]
        half = (*(high - middle), 0.0)
        self.hull(
            place, (middle[0], 0, middle[1]), (half[0], half_width, half[1]), planes, material
        )

    def tube(
        self, place: Place, start: Vector, end: Vector, radius: float, material: str,
        end_radius: float | None = None, pattern: Vector = (PLAIN, 1, 1, 0, 0),
    ) -> None:  # fmt: skip
        """A round rod, cone or disc from one local point to another."""
        first, last = place.point(start), place.point(end)
        axis = last - first
        length = float(np.linalg.norm(axis))
        up = axis / length
        side = np.cross(up, (0.0, 0.0, 1.0) if abs(up[2]) < 0.9 else (1.0, 0.0, 0.0))
        side /= np.linalg.norm(side)
        axes = np.stack([side, np.cross(up, side), up])
        size = (radius, radius if end_radius is None else end_radius, length / 2)
        self._add(FRUSTUM, (first + last) / 2, axes, size, material, 0.0, pattern, np.zeros((0, 5)))

    def blob(
        self, place: Place, centre: Vector, half: Vector, material: str, density: float = 0.0
    ) -> None:
        """An ellipsoid with semi-axes `half`, foliage if `density` > 0."""
        self._add(
            ELLIPSOID, place.point(centre), place.axes(), half, material, density,
            (PLAIN, 1, 1, 0, 0), np.zeros((0, 5)),
        )  # fmt: skip

    def build(self) -> Primitives:
        """All bodies added so far."""
        count = len(self.rows)
        columns: list[tuple] = list(zip(*self.rows, strict=True)) if count else [()] * 9
        starts = np.zeros(count + 1, np.int64)
        starts[1:] = np.cumsum([len(rows) for rows in self.planes])
        planes = np.concatenate(self.planes) if count else np.zeros((0, 5))
        return Primitives(
            np.array(columns[0], np.int32),
            np.array(columns[1], np.float64).reshape(-1, 3),
            np.array(columns[2], np.float64).reshape(-1, 3, 3),
            np.array(columns[3], np.float64).reshape(-1, 3),
            np.array(columns[4], np.float64),
            np.array(columns[5], np.float64).reshape(-1, 5),
            np.array(columns[6], np.int32),
            np.array(columns[7], np.int32),
            np.array(columns[8], np.int32),
            starts,
            planes,
        )
