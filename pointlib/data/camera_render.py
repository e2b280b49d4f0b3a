"""Casts one ray a pixel of a pinhole camera at analytic bodies and a height field: what each pixel shows, how far.

Pixel (column u, row v) looks along ``inverse(camera_matrix) @ (u, v, 1)``: centres of pixels are at whole numbers, as
where nuScenes' devkit draws. `camera_shading` turns hits into colours.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numba import njit

from pointlib.data.raycast import HeightField, Primitives, march, meet, meet_pattern
from pointlib.data.raycast_shapes import CONVEX, FAR, FRUSTUM, GLASS_MATERIAL, PLAIN

GROUND, NOTHING = -1, -2
"""In place of a body where the ground or the sky is seen."""


@dataclass(frozen=True)
class Camera:
    """A pinhole camera.

    Args:
        matrix: (3, 3) float64 intrinsics [pixels]. camera2world: (4, 4) float64, camera x right, y down, z forward.
        width: and height: of the image [pixels].
    """

    matrix: np.ndarray
    camera2world: np.ndarray
    width: int
    height: int

    @cached_property
    def directions(self) -> np.ndarray:
        """(height, width, 3) float64 unit vectors in the camera frame."""
        u, v = np.meshgrid(np.arange(self.width), np.arange(self.height))
        pixels = np.stack([u, v, np.ones_like(u)], axis=-1).astype(np.float64)
        rays = pixels @ np.linalg.inv(self.matrix).T
        return np.ascontiguousarray(rays / np.linalg.norm(rays, axis=-1, keepdims=True))


@dataclass(frozen=True)
class PixelHits:
    """Nearest hit of each pixel, arrays of (height, width).

    Args:
        depth: float64 way along the ray [m], `FAR` for the sky. body: int32, `GROUND` or `NOTHING`.
        face: int32 plane met on a convex body, else -1. glass: bool, a window.
    """

    depth: np.ndarray
    body: np.ndarray
    face: np.ndarray
    glass: np.ndarray


def cast_image(
    camera: Camera,
    bodies: Primitives,
    ground: HeightField,
    max_range: float,
    seed: int,
) -> PixelHits:
    """What each pixel of a camera shows of world-frame `bodies` and `ground`, up to `max_range` [m].

    `seed` is that of foliage and porous surfaces; equal arguments give equal bits.
    """
    shape = (camera.height, camera.width)
    depth = np.full(shape, FAR)
    body = np.full(shape, NOTHING, np.int32)
    face, glass = np.full(shape, -1, np.int32), np.zeros(shape, np.bool_)
    rotation, position = camera.camera2world[:3, :3], camera.camera2world[:3, 3]
    seen = bodies.transformed(rotation.T, -rotation.T @ position)
    order = np.argsort(np.linalg.norm(seen.centre, axis=1), kind="stable")
    directions = camera.directions
    _cast_bodies(
        directions, camera.matrix, np.uint64(seed), max_range, order, seen.kind, seen.centre, seen.axes, seen.size,
        seen.density, seen.pattern, seen.plane_start, seen.planes, depth, body, face, glass,
    )  # fmt: skip
    _cast_ground(
        directions, np.ascontiguousarray(rotation), np.ascontiguousarray(position), max_range, *ground.heights,
        ground.origins, ground.spacings, depth, body,
    )  # fmt: skip
    return PixelHits(depth, body, face, glass)


def pixels_alone(
    camera: Camera, bodies: Primitives, instances: np.ndarray, max_range: float, seed: int
) -> np.ndarray:
    """(len(instances),) int64 pixels each of some things would cover if nothing stood before it.

    `instances` are rising values of ``bodies.instance``.
    """
    rotation, position = camera.camera2world[:3, :3], camera.camera2world[:3, 3]
    seen = bodies.transformed(rotation.T, -rotation.T @ position)
    slot = np.searchsorted(instances, seen.instance)
    slot[slot == len(instances)] = 0
    rows = np.flatnonzero(instances[slot] == seen.instance) if len(instances) else np.zeros(0, int)
    rows = rows[np.argsort(slot[rows], kind="stable")]
    counts = np.zeros(len(instances), np.int64)
    _count_alone(
        camera.directions, camera.matrix, np.uint64(seed), max_range, rows, slot[rows], seen.kind, seen.centre,
        seen.axes, seen.size, seen.density, seen.plane_start, seen.planes, counts,
    )  # fmt: skip
    return counts


@njit(cache=True, nogil=True)
def _window(centre, axes, size, kind, matrix, width, height):  # type: ignore[no-untyped-def]
    """First and last column and row in which a body may show, and its least distance; an empty one if behind."""
    hx, hy, hz = size[0], size[1], size[2]
    if kind == FRUSTUM:
        hx = hy = max(size[0], size[1])
    reach = np.sqrt(hx * hx + hy * hy + hz * hz)
    away = np.sqrt(centre[0] ** 2 + centre[1] ** 2 + centre[2] ** 2)
    left, right, top, bottom = 1e9, -1e9, 1e9, -1e9
    near_plane, behind = 0.05, 0
    for corner in range(8):
        sx = hx if corner & 1 else -hx
        sy = hy if corner & 2 else -hy
        sz = hz if corner & 4 else -hz
        x = centre[0] + sx * axes[0, 0] + sy * axes[1, 0] + sz * axes[2, 0]
        y = centre[1] + sx * axes[0, 1] + sy * axes[1, 1] + sz * axes[2, 1]
        z = centre[2] + sx * axes[0, 2] + sy * axes[1, 2] + sz * axes[2, 2]
        if z < near_plane:
            behind += 1
            continue
        u, v = matrix[0, 0] * x / z + matrix[0, 2], matrix[1, 1] * y / z + matrix[1, 2]
        left, right, top, bottom = min(left, u), max(right, u), min(top, v), max(bottom, v)
    if behind == 8:
        return 0, -1, 0, -1, FAR
    if behind > 0:
        left, right, top, bottom = 0.0, width, 0.0, height
    first, last = int(max(np.floor(left), 0.0)), int(min(np.ceil(right), width - 1.0))
    upper, lower = int(max(np.floor(top), 0.0)), int(min(np.ceil(bottom), height - 1.0))
    return first, last, upper, lower, max(away - reach, 0.0)


@njit(cache=True, nogil=True)
def _cast_bodies(  # type: ignore[no-untyped-def]
    directions, matrix, seed, limit, order, kinds, centres, axes_of, sizes, densities, patterns, starts, planes,
    depth, body_of, face_of, glass_of,
):  # fmt: skip
    height, width = depth.shape
    for body in order:
        kind, axes, size, centre = kinds[body], axes_of[body], sizes[body], centres[body]
        first, last, upper, lower, near = _window(centre, axes, size, kind, matrix, width, height)
        if near > limit:
            continue
        ox = -(axes[0, 0] * centre[0] + axes[0, 1] * centre[1] + axes[0, 2] * centre[2])
        oy = -(axes[1, 0] * centre[0] + axes[1, 1] * centre[1] + axes[1, 2] * centre[2])
        oz = -(axes[2, 0] * centre[0] + axes[2, 1] * centre[1] + axes[2, 2] * centre[2])
        pattern = patterns[body]
        for row in range(upper, lower + 1):
            for column in range(first, last + 1):
                closest = depth[row, column]
                if closest < near:
                    continue
                gx, gy, gz = directions[row, column]
                dx = axes[0, 0] * gx + axes[0, 1] * gy + axes[0, 2] * gz
                dy = axes[1, 0] * gx + axes[1, 1] * gy + axes[1, 2] * gz
                dz = axes[2, 0] * gx + axes[2, 1] * gy + axes[2, 2] * gz
                ray = row * width + column
                at, face, _ = meet(
                    kind, ox, oy, oz, dx, dy, dz, size, planes, starts[body], starts[body + 1],
                    densities[body], seed, body, ray,
                )  # fmt: skip
                if at >= closest or at >= limit:
                    continue
                glass = False
                if face >= 0 and planes[face, 4] == GLASS_MATERIAL:
                    glass = True
                if pattern[0] != PLAIN:
                    at, window = meet_pattern(
                        pattern, at, face, ox, oy, oz, dx, dy, dz, size, planes, seed, body, ray
                    )
                    if at >= closest:
                        continue
                    glass = glass or window
                depth[row, column] = at
                body_of[row, column] = body
                face_of[row, column] = face if kind == CONVEX else -1
                glass_of[row, column] = glass


@njit(cache=True, nogil=True)
def _count_alone(  # type: ignore[no-untyped-def]
    directions,
    matrix,
    seed,
    limit,
    rows,
    slots,
    kinds,
    centres,
    axes_of,
    sizes,
    densities,
    starts,
    planes,
    counts,
):
    height, width = directions.shape[:2]
    # Which thing last covered a pixel: its bodies follow each other, so that none counts twice.
    covered = np.full((height, width), -1, np.int64)
    for number in range(len(rows)):
        body, slot = rows[number], slots[number]
        kind, axes, size, centre = kinds[body], axes_of[body], sizes[body], centres[body]
        first, last, upper, lower, near = _window(centre, axes, size, kind, matrix, width, height)
        if near > limit:
            continue
        ox = -(axes[0, 0] * centre[0] + axes[0, 1] * centre[1] + axes[0, 2] * centre[2])
        oy = -(axes[1, 0] * centre[0] + axes[1, 1] * centre[1] + axes[1, 2] * centre[2])
        oz = -(axes[2, 0] * centre[0] + axes[2, 1] * centre[1] + axes[2, 2] * centre[2])
        for row in range(upper, lower + 1):
            for column in range(first, last + 1):
                if covered[row, column] == slot:
                    continue
                gx, gy, gz = directions[row, column]
                dx = axes[0, 0] * gx + axes[0, 1] * gy + axes[0, 2] * gz
                dy = axes[1, 0] * gx + axes[1, 1] * gy + axes[1, 2] * gz
                dz = axes[2, 0] * gx + axes[2, 1] * gy + axes[2, 2] * gz
                at, _, _ = meet(
                    kind, ox, oy, oz, dx, dy, dz, size, planes, starts[body], starts[body + 1],
                    densities[body], seed, body, row * width + column,
                )  # fmt: skip
                if at < limit:
                    covered[row, column] = slot
                    counts[slot] += 1


@njit(cache=True, nogil=True)
def _cast_ground(  # type: ignore[no-untyped-def]
    directions, rotation, position, furthest, fine, coarse, origins, spacings, depth, body
):
    height, width = depth.shape
    for row in range(height):
        for column in range(width):
            gx, gy, gz = directions[row, column]
            dx = rotation[0, 0] * gx + rotation[0, 1] * gy + rotation[0, 2] * gz
            dy = rotation[1, 0] * gx + rotation[1, 1] * gy + rotation[1, 2] * gz
            dz = rotation[2, 0] * gx + rotation[2, 1] * gy + rotation[2, 2] * gz
            limit = min(furthest, depth[row, column])
            hit = march(
                position[0],
                position[1],
                position[2],
                dx,
                dy,
                dz,
                limit,
                fine,
                coarse,
                origins,
                spacings,
            )
            if hit < limit:
                depth[row, column] = hit
                body[row, column] = -1
