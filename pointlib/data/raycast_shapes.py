"""Where one ray meets one body, from which directions a body can be seen, and hashed random numbers, in numba.

All functions take a ray as origin and unit direction in the body's own frame.
"""

from __future__ import annotations

import numpy as np
from numba import njit

CONVEX, FRUSTUM, ELLIPSOID = 0, 1, 2
PLAIN, FACADE, PICKET, POROUS = 0, 1, 2, 3
GLASS_MATERIAL = 6
"""Material a facade's windows get; the sensor's material table says what it reflects."""

FAR = 1e9
EPSILON = 1e-9


@njit(cache=True, nogil=True)
def mix(value: np.uint64) -> np.uint64:
    """SplitMix64's output function (Steele et al. 2014, "Fast splittable pseudorandom number generators")."""
    value = np.uint64(value) + np.uint64(0x9E3779B97F4A7C15)
    value = (value ^ (value >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    value = (value ^ (value >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return value ^ (value >> np.uint64(31))


@njit(cache=True, nogil=True)
def uniform(seed: np.uint64, first: int, second: int) -> float:
    """A number in (0, 1) that depends on its three integers only."""
    key = mix(mix(np.uint64(seed) ^ np.uint64(first)) ^ np.uint64(second))
    return (float(key >> np.uint64(11)) + 0.5) * (1.0 / 9007199254740992.0)


@njit(cache=True, nogil=True)
def meet_convex(ox, oy, oz, dx, dy, dz, planes, first, last):  # type: ignore[no-untyped-def]
    """Entry, exit and entry plane of a ray through half-spaces; entry > exit means a miss."""
    enter, leave, face = -FAR, FAR, -1
    for q in range(first, last):
        nx, ny, nz = planes[q, 0], planes[q, 1], planes[q, 2]
        speed = nx * dx + ny * dy + nz * dz
        room = planes[q, 3] - (nx * ox + ny * oy + nz * oz)
        if abs(speed) < EPSILON:
            if room < 0.0:
                return FAR, -FAR, -1
            continue
        at = room / speed
        if speed < 0.0:
            if at > enter:
                enter, face = at, q
        elif at < leave:
            leave = at
        if enter > leave:
            return FAR, -FAR, -1
    return enter, leave, face


@njit(cache=True, nogil=True)
def meet_ellipsoid(ox, oy, oz, dx, dy, dz, rx, ry, rz):  # type: ignore[no-untyped-def]
    """Entry and exit of a ray through an ellipsoid about the origin; entry > exit means a miss."""
    px, py, pz, vx, vy, vz = ox / rx, oy / ry, oz / rz, dx / rx, dy / ry, dz / rz
    a = vx * vx + vy * vy + vz * vz
    b = px * vx + py * vy + pz * vz
    c = px * px + py * py + pz * pz - 1.0
    disc = b * b - a * c
    if disc <= 0.0:
        return FAR, -FAR
    root = np.sqrt(disc)
    return (-b - root) / a, (-b + root) / a


@njit(cache=True, nogil=True)
def meet_frustum(ox, oy, oz, dx, dy, dz, bottom, top, half):  # type: ignore[no-untyped-def]
    """Nearest entry of a capped cone along z and the outward normal's cosine with the ray."""
    best, cosine = FAR, 1.0
    slope = (top - bottom) / (2.0 * half)
    radius, growth = bottom + slope * (oz + half), slope * dz
    a = dx * dx + dy * dy - growth * growth
    b = ox * dx + oy * dy - radius * growth
    c = ox * ox + oy * oy - radius * radius
    disc = b * b - a * c
    if disc > 0.0 and abs(a) > EPSILON:
        at = (-b - np.sqrt(disc)) / a
        z = oz + at * dz
        if at > 0.0 and abs(z) <= half and radius + at * growth > 0.0:
            x, y = ox + at * dx, oy + at * dy
            best = at
            cosine = abs(x * dx + y * dy) / (np.sqrt(x * x + y * y) + EPSILON)
    if abs(dz) > EPSILON:
        for end in range(2):
            z, reach = (-half, bottom) if end == 0 else (half, top)
            at = (z - oz) / dz
            x, y = ox + at * dx, oy + at * dy
            if 0.0 < at < best and x * x + y * y <= reach * reach:
                best, cosine = at, abs(dz)
    return best, cosine


@njit(cache=True, nogil=True)
def facade(u, v, run, period, fill, recess, key):  # type: ignore[no-untyped-def]
    """Extra depth and whether glass is met where a ray enters a wall at (u along it, v above its foot).

    Each period of the wall holds a window, a door or nothing, chosen by a hash; `run` is du per metre of depth.
    """
    cell = int(np.floor(u / period))
    within = u - cell * period
    choice = uniform(np.uint64(key), cell + 1000, 13)
    low, high, deep = 0.95, 2.25, recess
    if choice < 0.2:
        low, high, deep = 0.1, 2.15, 2.0 * recess
    elif choice < 0.38:
        return 0.0, False
    storey = v - 2.9 * np.floor(v / 2.9)
    left, right = 0.5 * period * (1.0 - fill), 0.5 * period * (1.0 + fill)
    if within < left or within > right or storey < low or storey > high:
        return 0.0, False
    edge = (right - within) if run > 0.0 else (within - left)
    reveal = edge / (abs(run) + EPSILON)
    if reveal < deep:
        return reveal, False
    return deep, choice >= 0.2


@njit(cache=True, nogil=True)
def bounds(centre, axes, size, kind, half_height):  # type: ignore[no-untyped-def]
    """Azimuth centre and half width, and elevation range, under which a body can be seen from near the origin."""
    hx, hy, hz = size[0], size[1], size[2]
    if kind == FRUSTUM:
        hx = hy = max(size[0], size[1])
    reach_z = abs(axes[0, 2]) * hx + abs(axes[1, 2]) * hy + abs(axes[2, 2]) * hz
    reach_xy = np.sqrt(hx * hx + hy * hy + hz * hz)
    radial = np.sqrt(centre[0] ** 2 + centre[1] ** 2)
    azimuth, half, near = np.arctan2(centre[1], centre[0]), np.pi, 0.0
    if radial > reach_xy + 0.05:
        half, near = np.arcsin(reach_xy / radial) + 0.01, radial - reach_xy
    elif abs(axes[2, 2]) > 0.99:
        # Upright and close: the exact distance and angle of the footprint.
        lx = -(centre[0] * axes[0, 0] + centre[1] * axes[0, 1])
        ly = -(centre[0] * axes[1, 0] + centre[1] * axes[1, 1])
        gap = np.sqrt(max(abs(lx) - hx, 0.0) ** 2 + max(abs(ly) - hy, 0.0) ** 2)
        if gap > 0.4:
            near, half = gap - 0.1, 0.0
            for corner in range(4):
                sx = hx if corner & 1 else -hx
                sy = hy if corner & 2 else -hy
                x = centre[0] + sx * axes[0, 0] + sy * axes[1, 0]
                y = centre[1] + sx * axes[0, 1] + sy * axes[1, 1]
                turn = np.arctan2(y, x) - azimuth
                turn = abs(turn - 2.0 * np.pi * np.round(turn / (2.0 * np.pi)))
                half = max(half, turn + 0.02)
    if near <= 0.2:
        return azimuth, half, -2.0, 2.0, max(near, 0.0)
    far = radial + reach_xy
    low, high = centre[2] - reach_z - half_height, centre[2] + reach_z + half_height
    lowest = np.arctan2(low, near if low < 0.0 else far)
    highest = np.arctan2(high, near if high > 0.0 else far)
    return azimuth, half, lowest, highest, near
