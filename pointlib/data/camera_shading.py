"""Colours for what a synthetic camera's pixels hit: sunlight, sky, haze, shadows of things, grain of the ground."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numba import njit

from pointlib.data.camera_render import GROUND, NOTHING, Camera, PixelHits
from pointlib.data.raycast import HeightField, Primitives, sample_height
from pointlib.data.raycast_shapes import CONVEX, ELLIPSOID, FACADE, uniform
from pointlib.data.synthetic_ground import value_noise

GLASS = np.array((52.0, 64.0, 78.0))


@dataclass(frozen=True)
class Weather:
    """The light of a scene.

    Args:
        sun: (3,) float64 unit vector towards the sun. sunlight: and skylight: strength of either, 0..1.
        zenith: and horizon: (3,) float64 RGB 0..255 of the sky. haze: where it hides 63 % [m].
        noise: standard deviation of a pixel [0..255].
    """

    sun: np.ndarray
    sunlight: float
    skylight: float
    zenith: np.ndarray
    horizon: np.ndarray
    haze: float
    noise: float = 2.0


def draw_weather(rng: np.random.Generator) -> Weather:
    """A day between sunny and overcast."""
    turn, up, cloud = rng.uniform(0, 2 * np.pi), np.radians(rng.uniform(28, 65)), rng.uniform(0, 1)
    sun = np.array([np.cos(turn) * np.cos(up), np.sin(turn) * np.cos(up), np.sin(up)])
    blue, grey = np.array((92.0, 142.0, 210.0)), np.array((176.0, 184.0, 194.0))
    zenith = (1 - cloud) * blue + cloud * grey
    horizon = (1 - cloud) * np.array((196.0, 214.0, 232.0)) + cloud * np.array(
        (206.0, 208.0, 210.0)
    )
    return Weather(
        sun, 0.62 - 0.4 * cloud, 0.5 + 0.22 * cloud, zenith, horizon, float(rng.uniform(160, 420))
    )


def shade(
    camera: Camera,
    hits: PixelHits,
    bodies: Primitives,
    colours: np.ndarray,
    ground: HeightField,
    ground_colours: np.ndarray,
    shadows: np.ndarray,
    weather: Weather,
    seed: int,
) -> np.ndarray:
    """The picture a camera takes.

    Args:
        camera: it. hits: of its pixels with `bodies` and `ground`.
        colours: (P, 3) float32 RGB 0..255 of the bodies.
        ground_colours: (height, width, 3) float32 RGB of what lies on the ground in each pixel that shows ground.
        shadows: (K, 7) float64 boxes x, y, z, length, width, height, yaw that throw shadows.
        weather: the light. seed: of the pixels' noise.

    Returns:
        (height, width, 3) uint8 RGB.
    """
    rotation = np.ascontiguousarray(camera.camera2world[:3, :3])
    position = np.ascontiguousarray(camera.camera2world[:3, 3])
    picture = np.zeros((camera.height, camera.width, 3))
    _shade(
        camera.directions, rotation, position, hits.depth, hits.body, hits.face, hits.glass, bodies.kind,
        bodies.centre, bodies.axes, bodies.size, bodies.density, bodies.pattern, bodies.planes,
        colours.astype(np.float64), *ground.heights, ground.origins, ground.spacings,
        ground_colours.astype(np.float64), np.ascontiguousarray(shadows, np.float64), weather.sun, weather.sunlight,
        weather.skylight, weather.zenith, weather.horizon, weather.haze, picture,
    )  # fmt: skip
    grain = np.random.default_rng(seed).normal(0.0, weather.noise, (*picture.shape[:2], 1))
    return np.clip(picture + grain, 0, 255).astype(np.uint8)


@njit(cache=True, nogil=True)
def _in_shadow(x, y, z, sun, shadows):  # type: ignore[no-untyped-def]
    """Whether a box stands between a point and the sun."""
    for k in range(len(shadows)):
        box = shadows[k]
        px, py, pz = x - box[0], y - box[1], z - box[2]
        reach = 0.5 * (box[3] + box[4]) + 1.2 * box[5] + 2.0
        if abs(px) > reach or abs(py) > reach:
            continue
        cos, sin = np.cos(box[6]), np.sin(box[6])
        lx, ly = cos * px + sin * py, -sin * px + cos * py
        sx, sy = cos * sun[0] + sin * sun[1], -sin * sun[0] + cos * sun[1]
        enter, leave = 0.0, 1e9
        for axis in range(3):
            at = lx if axis == 0 else (ly if axis == 1 else pz)
            speed = sx if axis == 0 else (sy if axis == 1 else sun[2])
            half = 0.46 * box[3 + axis]
            if abs(speed) < 1e-9:
                if abs(at) > half:
                    leave = -1.0
                continue
            one, other = (-half - at) / speed, (half - at) / speed
            enter, leave = max(enter, min(one, other)), min(leave, max(one, other))
        if enter < leave:
            return True
    return False


@njit(cache=True, nogil=True)
def _normal(body, face, kinds, axes_of, sizes, centres, planes, x, y, z):  # type: ignore[no-untyped-def]
    """Outward normal of a body at a point of the world."""
    axes, size = axes_of[body], sizes[body]
    px, py, pz = x - centres[body, 0], y - centres[body, 1], z - centres[body, 2]
    lx = axes[0, 0] * px + axes[0, 1] * py + axes[0, 2] * pz
    ly = axes[1, 0] * px + axes[1, 1] * py + axes[1, 2] * pz
    lz = axes[2, 0] * px + axes[2, 1] * py + axes[2, 2] * pz
    if kinds[body] == CONVEX:
        nx, ny, nz = planes[face, 0], planes[face, 1], planes[face, 2]
    elif kinds[body] == ELLIPSOID:
        nx, ny, nz = lx / size[0] ** 2, ly / size[1] ** 2, lz / size[2] ** 2
    elif abs(lz) > size[2] - 1e-6:
        nx, ny, nz = 0.0, 0.0, np.sign(lz)
    else:
        nx, ny, nz = lx, ly, 0.0
    long = np.sqrt(nx * nx + ny * ny + nz * nz) + 1e-12
    nx, ny, nz = nx / long, ny / long, nz / long
    return (
        axes[0, 0] * nx + axes[1, 0] * ny + axes[2, 0] * nz,
        axes[0, 1] * nx + axes[1, 1] * ny + axes[2, 1] * nz,
        axes[0, 2] * nx + axes[1, 2] * ny + axes[2, 2] * nz,
    )


@njit(cache=True, nogil=True)
def _shade(  # type: ignore[no-untyped-def]
    directions, rotation, position, depth, body_of, face_of, glass_of, kinds, centres, axes_of, sizes, densities,
    patterns, planes, colours, fine, coarse, origins, spacings, ground_colours, shadows, sun, sunlight, skylight,
    zenith, horizon, haze, picture,
):  # fmt: skip
    height, width = depth.shape
    seed = np.uint64(7)
    for row in range(height):
        for column in range(width):
            gx, gy, gz = directions[row, column]
            dx = rotation[0, 0] * gx + rotation[0, 1] * gy + rotation[0, 2] * gz
            dy = rotation[1, 0] * gx + rotation[1, 1] * gy + rotation[1, 2] * gz
            dz = rotation[2, 0] * gx + rotation[2, 1] * gy + rotation[2, 2] * gz
            body, away = body_of[row, column], depth[row, column]
            rise = max(dz, 0.0) ** 0.6
            if body == NOTHING:
                cloud = 1.0 + 0.06 * value_noise(
                    4.0 * dx / (0.15 + rise), 4.0 * dy / (0.15 + rise), 1.0, seed
                )
                for c in range(3):
                    sky = (1.0 - rise) * horizon[c] + rise * zenith[c] * cloud
                    # Below the horizon and beyond the street: hazy fields.
                    picture[row, column, c] = (
                        sky if dz > -0.002 else 0.55 * horizon[c] + 0.45 * 90.0
                    )
                continue
            x, y, z = position[0] + away * dx, position[1] + away * dy, position[2] + away * dz
            fog = 1.0 - np.exp(-away / haze)
            if body == GROUND:
                step = 0.12
                here, _ = sample_height(x, y, fine, coarse, origins, spacings)
                ahead, _ = sample_height(x + step, y, fine, coarse, origins, spacings)
                aside, _ = sample_height(x, y + step, fine, coarse, origins, spacings)
                nx, ny = (here - ahead) / step, (here - aside) / step
                light = (nx * sun[0] + ny * sun[1] + sun[2]) / np.sqrt(nx * nx + ny * ny + 1.0)
                grain = 1.0 + 0.05 * value_noise(x, y, 1.7, seed)
                if away < 30.0:
                    grain += 0.06 * value_noise(x, y, 0.12, seed)
                lit = 0.0 if _in_shadow(x, y, z + 0.02, sun, shadows) else max(light, 0.0)
                for c in range(3):
                    colour = ground_colours[row, column, c] * grain * (skylight + sunlight * lit)
                    picture[row, column, c] = (1.0 - fog) * colour + fog * horizon[c]
                continue
            if densities[body] > 0.0:
                ray = row * width + column
                light = 0.25 + 0.6 * uniform(seed, int(body), ray)
                up = 0.6
            else:
                nx, ny, nz = _normal(
                    body, face_of[row, column], kinds, axes_of, sizes, centres, planes, x, y, z
                )
                light, up = max(nx * sun[0] + ny * sun[1] + nz * sun[2], 0.0), nz
            strength = skylight * (0.82 + 0.18 * up) + sunlight * light
            grain = 1.0
            if patterns[body, 0] == FACADE:
                grain = 1.0 + 0.05 * value_noise(x + y, z, 0.35, seed)
            for c in range(3):
                if glass_of[row, column]:
                    shine = 0.25 * (1.0 - abs(dz))
                    colour = (1.0 - shine) * GLASS[c] * strength * 1.2 + shine * horizon[c]
                else:
                    colour = colours[body, c] * strength * grain
                picture[row, column, c] = (1.0 - fog) * colour + fog * horizon[c]
