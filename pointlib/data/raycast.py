"""Ray casting of analytic primitives and a height field, in numba.

Rays lie on a (beam, azimuth) grid around one sensor. A primitive is visited once and updates the rays whose
beam and azimuth can meet it, nearest hit first, so occlusion needs no acceleration structure over rays.
All randomness is a hash of (seed, primitive, ray): the result does not depend on the order of execution.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numba import njit

from pointlib.data.raycast_shapes import (
    CONVEX,
    ELLIPSOID,
    EPSILON,
    FAR,
    GLASS_MATERIAL,
    PICKET,
    PLAIN,
    POROUS,
    bounds,
    facade,
    meet_convex,
    meet_ellipsoid,
    meet_frustum,
    uniform,
)


@dataclass(frozen=True)
class Primitives:
    """Analytic bodies in one frame, as arrays of one row a body.

    A body is the set of local points inside its `kind`: `CONVEX` the half-spaces ``normal . p <= d`` of its rows of
    `planes`; `FRUSTUM` a capped cone along local z with `size` = (bottom radius, top radius, half height);
    `ELLIPSOID` with `size` = semi-axes. `size` of a `CONVEX` body is its half extents, used for bounds.

    Args:
        kind: (P,) int32, one of `CONVEX`, `FRUSTUM`, `ELLIPSOID`.
        centre: (P, 3) float64 [m].
        axes: (P, 3, 3) float64, rows are the unit local axes.
        size: (P, 3) float64 [m].
        density: (P,) float64 [1/m]; 0 is solid, else foliage with this chance of a hit per metre of path.
        pattern: (P, 5) float64: `PLAIN`/`FACADE`/`PICKET`/`POROUS`, period [m], filled fraction, recess [m],
            and a key that decides a facade's windows.
        label: (P,) int32 semantic id. instance: (P,) int32. material: (P,) int32.
        plane_start: (P + 1,) int64 into planes (Q, 5) float64: nx, ny, nz, d, material (-1: the body's own).
    """

    kind: np.ndarray
    centre: np.ndarray
    axes: np.ndarray
    size: np.ndarray
    density: np.ndarray
    pattern: np.ndarray
    label: np.ndarray
    instance: np.ndarray
    material: np.ndarray
    plane_start: np.ndarray
    planes: np.ndarray

    def __len__(self) -> int:
        return len(self.kind)

    @staticmethod
    def joined(parts: Sequence[Primitives]) -> Primitives:
        """All bodies of `parts`, in order."""
        columns = {
            name: np.concatenate([getattr(part, name) for part in parts])
            for name in (
                "kind",
                "centre",
                "axes",
                "size",
                "density",
                "pattern",
                "label",
                "instance",
                "material",
                "planes",
            )
        }
        counts = np.concatenate([np.diff(part.plane_start) for part in parts])
        return Primitives(plane_start=np.concatenate([[0], np.cumsum(counts)]), **columns)

    def transformed(self, rotation: np.ndarray, translation: np.ndarray) -> Primitives:
        """The same bodies in another frame: ``p' = rotation @ p + translation``."""
        centre = self.centre @ rotation.T + translation
        axes = self.axes @ rotation.T
        return Primitives(
            self.kind, centre, axes, self.size, self.density, self.pattern, self.label,
            self.instance, self.material, self.plane_start, self.planes,
        )  # fmt: skip


@dataclass(frozen=True)
class HeightField:
    """Ground around a sensor: a fine grid near it and a coarse one around, both square and in the world frame.

    Args:
        heights: fine and coarse (n, n) float32 [m], indexed [x, y] at the lattice points.
        labels: fine and coarse (n, n) int32 semantic ids.
        origins: (2, 2) float64, x and y of element [0, 0] of each grid [m].
        spacings: (2,) float64 [m].
    """

    heights: tuple[np.ndarray, np.ndarray]
    labels: tuple[np.ndarray, np.ndarray]
    origins: np.ndarray
    spacings: np.ndarray


@dataclass(frozen=True)
class Hits:
    """Nearest hit of each ray, arrays of (beams, azimuth_steps).

    Args:
        depth: float64 [m], `FAR` where nothing was hit.
        label: int32. instance: int32. material: int32.
        cosine: float64, cosine of the angle between the ray and the surface normal, 1 = perpendicular.
    """

    depth: np.ndarray
    label: np.ndarray
    instance: np.ndarray
    material: np.ndarray
    cosine: np.ndarray


@njit(cache=True, nogil=True)
def sample_height(x, y, fine, coarse, origins, spacings):  # type: ignore[no-untyped-def]
    """Bilinear height at (x, y) and whether the point is inside the coarse grid."""
    for level in range(2):
        grid = fine if level == 0 else coarse
        gx = (x - origins[level, 0]) / spacings[level]
        gy = (y - origins[level, 1]) / spacings[level]
        if gx >= 0.0 and gy >= 0.0 and gx < grid.shape[0] - 1 and gy < grid.shape[1] - 1:
            ix, iy = int(gx), int(gy)
            fx, fy = gx - ix, gy - iy
            low = grid[ix, iy] * (1.0 - fx) + grid[ix + 1, iy] * fx
            high = grid[ix, iy + 1] * (1.0 - fx) + grid[ix + 1, iy + 1] * fx
            return low * (1.0 - fy) + high * fy, True
    return 0.0, False


@njit(cache=True, nogil=True)
def march(ox, oy, oz, dx, dy, dz, limit, fine, coarse, origins, spacings):  # type: ignore[no-untyped-def]
    """Distance along one ray to the height field, `FAR` if it leaves the grid or `limit` first."""
    horizontal = np.sqrt(dx * dx + dy * dy)
    travelled, previous, gap_before = 0.0, 0.0, 1.0
    while travelled < limit:
        height, inside = sample_height(
            ox + travelled * dx, oy + travelled * dy, fine, coarse, origins, spacings
        )
        if not inside:
            return FAR
        gap = oz + travelled * dz - height
        if gap <= 0.0:
            share = gap_before / (gap_before - gap + EPSILON)
            return previous + share * (travelled - previous)
        previous, gap_before = travelled, gap
        smallest = 0.08 + 0.012 * travelled
        travelled += max(smallest, (gap - 0.2) / (0.35 * horizontal + abs(dz)))
    return FAR


@njit(cache=True, nogil=True)
def _cast_ground(  # type: ignore[no-untyped-def]
    directions, offsets, rotation, position, furthest, fine, coarse, fine_label, coarse_label,
    origins, spacings, material_of, depth, label, instance, material, cosine,
):  # fmt: skip
    beams, steps = depth.shape
    for beam in range(beams):
        ox = position[0] + rotation[0, 2] * offsets[beam]
        oy = position[1] + rotation[1, 2] * offsets[beam]
        oz = position[2] + rotation[2, 2] * offsets[beam]
        for step in range(steps):
            direction, limit = directions[beam, step], min(furthest, depth[beam, step])
            dx = (
                rotation[0, 0] * direction[0]
                + rotation[0, 1] * direction[1]
                + rotation[0, 2] * direction[2]
            )
            dy = (
                rotation[1, 0] * direction[0]
                + rotation[1, 1] * direction[1]
                + rotation[1, 2] * direction[2]
            )
            dz = (
                rotation[2, 0] * direction[0]
                + rotation[2, 1] * direction[1]
                + rotation[2, 2] * direction[2]
            )
            hit = march(ox, oy, oz, dx, dy, dz, limit, fine, coarse, origins, spacings)
            if hit >= limit:
                continue
            x, y = ox + hit * dx, oy + hit * dy
            level = 0
            ix = int((x - origins[0, 0]) / spacings[0] + 0.5)
            iy = int((y - origins[0, 1]) / spacings[0] + 0.5)
            if ix < 0 or iy < 0 or ix >= fine.shape[0] or iy >= fine.shape[1]:
                level = 1
                ix = int((x - origins[1, 0]) / spacings[1] + 0.5)
                iy = int((y - origins[1, 1]) / spacings[1] + 0.5)
            kind = fine_label[ix, iy] if level == 0 else coarse_label[ix, iy]
            reach = 0.15 if level == 0 else 0.5
            here, _ = sample_height(x, y, fine, coarse, origins, spacings)
            ahead, _ = sample_height(x + reach, y, fine, coarse, origins, spacings)
            aside, _ = sample_height(x, y + reach, fine, coarse, origins, spacings)
            nx, ny = (here - ahead) / reach, (here - aside) / reach
            depth[beam, step] = hit
            label[beam, step], instance[beam, step] = kind, 0
            material[beam, step] = material_of[kind]
            cosine[beam, step] = abs(dx * nx + dy * ny + dz) / np.sqrt(nx * nx + ny * ny + 1.0)


@njit(cache=True, nogil=True)
def meet(  # type: ignore[no-untyped-def]
    kind, ox, oy, oz, dx, dy, dz, size, planes, first, last, density, seed, body, ray
):
    """Distance along a ray to a body (`FAR`: a miss), the convex face met (-1: none), cosine of incidence."""
    leave, face, slant = FAR, -1, 1.0
    if kind == CONVEX:
        at, leave, face = meet_convex(ox, oy, oz, dx, dy, dz, planes, first, last)
    elif kind == ELLIPSOID:
        at, leave = meet_ellipsoid(ox, oy, oz, dx, dy, dz, size[0], size[1], size[2])
    else:
        at, slant = meet_frustum(ox, oy, oz, dx, dy, dz, size[0], size[1], size[2])
    if at >= FAR or leave < 0.0:
        return FAR, -1, slant
    if density > 0.0:
        # Foliage: the free path through randomly placed leaves is exponential.
        at = max(at, 0.0) - np.log(uniform(seed, body, ray)) / density
        slant = 0.35 + 0.65 * uniform(seed, body + 7919, ray)
        return (at if at < leave else FAR), -1, slant
    if at <= 0.0:
        return FAR, -1, slant
    if kind == CONVEX:
        slant = abs(planes[face, 0] * dx + planes[face, 1] * dy + planes[face, 2] * dz)
    elif kind == ELLIPSOID:
        ux = (ox + at * dx) / size[0] ** 2
        uy = (oy + at * dy) / size[1] ** 2
        uz = (oz + at * dz) / size[2] ** 2
        slant = abs(ux * dx + uy * dy + uz * dz) / np.sqrt(ux * ux + uy * uy + uz * uz)
    return at, face, slant


@njit(cache=True, nogil=True)
def between_pickets(u, v, period, fill, tall):  # type: ignore[no-untyped-def]
    """Whether a ray passes a picket fence at (u along it, v above its foot): no picket, no rail."""
    rail = 0.12 < v < 0.2 or tall - 0.3 < v < tall - 0.2
    return not rail and u / period - np.floor(u / period) > fill


@njit(cache=True, nogil=True)
def meet_pattern(pattern, at, face, ox, oy, oz, dx, dy, dz, size, planes, seed, body, ray):  # type: ignore[no-untyped-def]
    """Where a ray that met a patterned surface at `at` ends: `FAR` if it passes, deeper in a window; and on glass?"""
    if pattern[0] == POROUS:
        return (FAR if uniform(seed, body + 104729, ray) > pattern[2] else at), False
    if abs(planes[face, 2]) >= 0.5:
        return at, False
    along = abs(planes[face, 1]) > abs(planes[face, 0])
    u = (ox + at * dx) if along else (oy + at * dy)
    v = oz + at * dz + size[2]
    if pattern[0] == PICKET:
        passes = along and between_pickets(u, v, pattern[1], pattern[2], 2.0 * size[2])
        return (FAR if passes else at), False
    inward = (abs(dy) if along else abs(dx)) + 0.05
    run = (dx if along else dy) / inward
    deep, glass = facade(u, v, run, pattern[1], pattern[2], pattern[3], pattern[4])
    return at + deep / inward, glass


@njit(cache=True, nogil=True)
def _cast_primitives(  # type: ignore[no-untyped-def]
    directions, elevations, offsets, seed, limit, order, kinds, centres, axes_of, sizes, densities, patterns, labels,
    instances, materials, starts, planes, depth, label, instance, material, cosine,
):  # fmt: skip
    beams, steps = depth.shape
    spread = np.max(np.abs(offsets)) + 0.02
    for body in order:
        kind, axes, size, centre = kinds[body], axes_of[body], sizes[body], centres[body]
        azimuth, half, lowest, highest, near = bounds(centre, axes, size, kind, spread)
        if near > limit:
            continue
        count = min(steps, int(half / np.pi * steps) + 3)
        begin = int(np.floor((azimuth / (2.0 * np.pi)) * steps)) - count // 2
        pattern = patterns[body]
        for beam in range(beams):
            if elevations[beam] < lowest - 0.004 or elevations[beam] > highest + 0.004:
                continue
            # Ray origin in the body's frame: the beam's optical centre lies above the sensor's.
            px, py, pz = -centre[0], -centre[1], offsets[beam] - centre[2]
            ox = axes[0, 0] * px + axes[0, 1] * py + axes[0, 2] * pz
            oy = axes[1, 0] * px + axes[1, 1] * py + axes[1, 2] * pz
            oz = axes[2, 0] * px + axes[2, 1] * py + axes[2, 2] * pz
            for turn in range(begin, begin + count + 1):
                step = turn % steps
                closest = depth[beam, step]
                if closest < near:
                    continue
                gx, gy, gz = directions[beam, step]
                dx = axes[0, 0] * gx + axes[0, 1] * gy + axes[0, 2] * gz
                dy = axes[1, 0] * gx + axes[1, 1] * gy + axes[1, 2] * gz
                dz = axes[2, 0] * gx + axes[2, 1] * gy + axes[2, 2] * gz
                ray = beam * steps + step
                at, face, slant = meet(
                    kind, ox, oy, oz, dx, dy, dz, size, planes, starts[body], starts[body + 1],
                    densities[body], seed, body, ray,
                )  # fmt: skip
                if at >= closest or at >= limit:
                    continue
                stuff = materials[body]
                if face >= 0 and planes[face, 4] >= 0.0:
                    stuff = int(planes[face, 4])
                if pattern[0] != PLAIN:
                    at, glass = meet_pattern(
                        pattern, at, face, ox, oy, oz, dx, dy, dz, size, planes, seed, body, ray
                    )
                    if at >= closest:
                        continue
                    if glass:
                        stuff = GLASS_MATERIAL
                depth[beam, step] = at
                label[beam, step] = labels[body]
                instance[beam, step] = instances[body]
                material[beam, step] = stuff
                cosine[beam, step] = slant


def cast(
    directions: np.ndarray,
    elevations: np.ndarray,
    offsets: np.ndarray,
    sensor2world: np.ndarray,
    ground: HeightField,
    ground_material: np.ndarray,
    bodies: Primitives,
    max_range: float,
    seed: int,
) -> Hits:
    """Nearest hits of a sensor's rays with the ground and with `bodies`.

    Args:
        directions: (beams, steps, 3) float64 unit vectors in the sensor frame; step j looks near azimuth
            ``2 pi j / steps``.
        elevations: (beams,) float64 [rad] of the beams, used for bounds.
        offsets: (beams,) float64 [m], height of each beam's optical centre above the sensor's origin.
        sensor2world: (4, 4) float64.
        ground: world-frame height field.
        ground_material: (number of semantic ids,) int32, material of each ground label.
        bodies: world-frame primitives.
        max_range: no hit is reported beyond it [m].
        seed: of the foliage and porous surfaces.

    Returns:
        Hits, arrays of (beams, steps).
    """
    shape = directions.shape[:2]
    depth = np.full(shape, FAR)
    label, instance = np.zeros(shape, np.int32), np.zeros(shape, np.int32)
    material, cosine = np.zeros(shape, np.int32), np.ones(shape)
    rotation = np.ascontiguousarray(sensor2world[:3, :3])
    position = np.ascontiguousarray(sensor2world[:3, 3])
    seen = bodies.transformed(rotation.T, -rotation.T @ position)
    order = np.argsort(np.linalg.norm(seen.centre, axis=1), kind="stable")
    _cast_primitives(
        directions, elevations, offsets, np.uint64(seed), max_range, order, seen.kind, seen.centre, seen.axes,
        seen.size, seen.density, seen.pattern, seen.label, seen.instance, seen.material, seen.plane_start,
        seen.planes, depth, label, instance, material, cosine,
    )  # fmt: skip
    # The ground last: most of its march is behind something.
    _cast_ground(
        directions, offsets, rotation, position, max_range, *ground.heights, *ground.labels,
        ground.origins, ground.spacings, ground_material, depth, label, instance, material, cosine,
    )  # fmt: skip
    return Hits(depth, label, instance, material, cosine)
