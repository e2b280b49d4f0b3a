"""A spinning multi-beam LiDAR in the manner of the Velodyne HDL-64E as SemanticKITTI's scans show it.

Gives the rays, and turns their hits into returns: range noise, intensity, losses, and the vehicle's own shadow.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
from numba import njit

from pointlib.data.raycast import HeightField, Primitives, cast
from pointlib.data.raycast_shapes import FAR, uniform


class Material(NamedTuple):
    """How a surface answers a laser.

    Args:
        reflectance: Mean intensity at perpendicular incidence, 0..1.
        spread: Standard deviation of the intensity as a share of its mean.
        grazing: Exponent of the incidence's cosine.
        loss: Chance that a shot gives no return.
        roughness: Standard deviation of depth within the beam's spot [m].
    """

    reflectance: float
    spread: float
    grazing: float
    loss: float
    roughness: float = 0.0


MATERIALS: dict[str, Material] = {
    "asphalt": Material(0.25, 0.42, 0.10, 0.004),
    "concrete": Material(0.32, 0.26, 0.05, 0.004),
    "grass": Material(0.34, 0.36, 0.0, 0.008, 0.035),
    "gravel": Material(0.28, 0.30, 0.0, 0.006, 0.012),
    "wall": Material(0.47, 0.35, 0.20, 0.006),
    "paint": Material(0.26, 0.80, 1.0, 0.07),
    "glass": Material(0.10, 0.90, 1.5, 0.50, 0.05),
    "foliage": Material(0.38, 0.40, 0.2, 0.010, 0.04),
    "bark": Material(0.34, 0.42, 0.2, 0.008, 0.01),
    "metal": Material(0.25, 0.80, 0.8, 0.030),
    "retroreflector": Material(0.62, 0.50, 0.3, 0.004),
    "cloth": Material(0.28, 0.50, 0.4, 0.020),
    "rubber": Material(0.06, 0.80, 0.5, 0.250),
    "marking": Material(0.43, 0.38, 0.1, 0.004),
    "dark_paint": Material(0.10, 0.90, 0.8, 0.200),
    "wood": Material(0.34, 0.38, 0.3, 0.008),
    "masonry": Material(0.38, 0.42, 0.2, 0.006),
}
MATERIAL_ID = {name: index for index, name in enumerate(MATERIALS)}
_MATERIAL_TABLE = np.array(list(MATERIALS.values()), dtype=np.float64)

LABELLED_RANGE = 50.0
"""SemanticKITTI's annotators left what is farther than this [m] unlabelled (id 0)."""


@dataclass(frozen=True)
class Scan:
    """One revolution. Returns stand beam by beam from the top, each beam counter-clockwise from x forward.

    Args:
        points: (N, 4) float32, x, y, z [m] in the LiDAR frame (x forward, y left, z up) and intensity in [0, 1].
        semantic: (N,) uint32 raw SemanticKITTI ids.
        instance: (N,) uint32, 0 for stuff.
    """

    points: np.ndarray
    semantic: np.ndarray
    instance: np.ndarray


@dataclass(frozen=True)
class LidarSensor:
    """Two blocks of beams with their own spacing: 1/3 degree from +1.9 down to -8.6, then 1/2 degree to -24.4.

    Args:
        beams: number of beams; fewer than 64 keep the field of view and thin it.
        azimuth_steps: firings a revolution.
        height: of the sensor's origin above the road [m].
        max_range: [m].
        range_noise: standard deviation [m].
        beam_noise: standard deviation of a beam's constant range error [m].

    Raises:
        ValueError: fewer than 2 beams or 16 steps, or a number that is not positive.
    """

    beams: int = 64
    azimuth_steps: int = 2160
    height: float = 1.73
    max_range: float = 80.0
    range_noise: float = 0.010
    beam_noise: float = 0.014

    def __post_init__(self) -> None:
        if self.beams < 2:
            raise ValueError(f"LidarSensor: beams must be at least 2, got {self.beams}")
        if self.azimuth_steps < 16:
            raise ValueError(
                f"LidarSensor: azimuth_steps must be at least 16, got {self.azimuth_steps}"
            )
        if min(self.height, self.max_range) <= 0 or min(self.range_noise, self.beam_noise) < 0:
            raise ValueError(
                "LidarSensor: height and max_range must be positive and the noises not negative, got "
                f"{self.height}, {self.max_range}, {self.range_noise}, {self.beam_noise}"
            )

    @cached_property
    def elevations(self) -> np.ndarray:
        """(beams,) float64 [rad], from the highest beam to the lowest."""
        upper = 1.93 - np.arange(32) * (10.57 / 31)
        lower = -8.92 - np.arange(32) * (15.48 / 31)
        return np.radians(self._thinned(np.concatenate([upper, lower])))

    @cached_property
    def offsets(self) -> np.ndarray:
        """(beams,) float64 [m], height of each beam's optical centre above the sensor's origin."""
        return self._thinned(
            np.concatenate([np.linspace(0.21, 0.185, 32), np.linspace(0.105, 0.0, 32)])
        )

    def _thinned(self, full: np.ndarray) -> np.ndarray:
        return np.interp(np.linspace(0, 63, self.beams), np.arange(64), full)

    @cached_property
    def directions(self) -> np.ndarray:
        """(beams, azimuth_steps, 3) float64 unit vectors in the LiDAR frame, azimuth rising within [0, 2 pi)."""
        rng = np.random.default_rng(64)
        shape = (self.beams, self.azimuth_steps)
        phase = rng.uniform(0.2, 0.8, (self.beams, 1)) + rng.uniform(-0.18, 0.18, shape)
        azimuth = 2 * np.pi * (np.arange(self.azimuth_steps) + phase) / self.azimuth_steps
        level = np.cos(self.elevations)[:, None]
        height = np.broadcast_to(np.sin(self.elevations)[:, None], shape)
        return np.stack([level * np.cos(azimuth), level * np.sin(azimuth), height], axis=-1)

    def scan(
        self,
        ground: HeightField,
        ground_material: np.ndarray,
        bodies: Primitives,
        sensor2world: np.ndarray,
        seed: int,
    ) -> Scan:
        """One revolution from `sensor2world` (4, 4) of a world of `ground` and `bodies`.

        `ground_material` is (number of semantic ids,) int32; equal arguments give equal bits.
        """
        hits = cast(
            self.directions, self.elevations, self.offsets, sensor2world, ground, ground_material,
            bodies, self.max_range, seed,
        )  # fmt: skip
        bias = np.random.default_rng(1730).normal(0.0, self.beam_noise, self.beams)
        returned, points = _returns(
            self.directions, self.elevations, self.offsets, bias, hits.depth, hits.material,
            hits.cosine, _MATERIAL_TABLE, self.range_noise, self.max_range, np.uint64(seed),
        )  # fmt: skip
        far = hits.depth[returned] > LABELLED_RANGE
        semantic = np.where(far, 0, hits.label[returned]).astype(np.uint32)
        instance = np.where(far, 0, hits.instance[returned]).astype(np.uint32)
        return Scan(points[returned], semantic, instance)


@njit(cache=True, nogil=True)
def _normal(seed, first, second):  # type: ignore[no-untyped-def]
    """A standard normal number by Box and Muller's method."""
    radius = np.sqrt(-2.0 * np.log(uniform(seed, first, second)))
    return radius * np.cos(2.0 * np.pi * uniform(seed, first + 500009, second))


@njit(cache=True, nogil=True)
def _own_shadow(azimuth, elevation, seed, beam):  # type: ignore[no-untyped-def]
    """Whether the vehicle hides a ray: behind below -16 degrees, in front below -19, ragged at the rim."""
    turn = np.degrees(azimuth)
    rim = 3.0 * _normal(seed, 21, beam)
    behind = abs(turn - 188.0 - rim)
    ahead = min(turn, 360.0 - turn) + 0.7 * rim
    hatch = abs(turn - 281.0 - rim) / 12.0
    height = np.degrees(elevation)
    if behind < 52.0:
        return height < -15.6 - 4.2 * (behind / 30.0) ** 2
    if ahead < 36.0:
        return height < -19.2 - 4.0 * (ahead / 34.0) ** 2
    return hatch * hatch + ((height + 17.5) / 3.2) ** 2 < 1.0


@njit(cache=True, nogil=True)
def _lost(loss, seed, beam, step, ray):  # type: ignore[no-untyped-def]
    """Whether a shot is lost: single shots for small chances, whole runs along a beam for large ones."""
    if loss < 0.05:
        return uniform(seed, 5, ray) < loss
    run = (step + int(31.0 * uniform(seed, 15, beam))) // 9
    lost_run = uniform(seed, 17, beam * 8192 + run) < 0.9 * loss
    return lost_run or uniform(seed, 5, ray) < 0.25 * loss


@njit(cache=True, nogil=True)
def _returns(  # type: ignore[no-untyped-def]
    directions, elevations, offsets, bias, depth, material, cosine, table, noise, max_range, seed
):
    beams, steps = depth.shape
    returned = np.zeros((beams, steps), np.bool_)
    points = np.zeros((beams, steps, 4), np.float32)
    for beam in range(beams):
        gain = 1.0 + 0.12 * _normal(np.uint64(64), 23, beam)
        for step in range(steps):
            distance = depth[beam, step]
            if distance >= FAR:
                continue
            ray = beam * steps + step
            stuff = material[beam, step]
            slant = max(cosine[beam, step], 0.01)
            if _own_shadow(
                (step + 0.5) / steps * 2.0 * np.pi, elevations[beam], np.uint64(64), beam
            ):
                continue
            loss = table[stuff, 3] * (2.0 - slant)
            loss += 0.35 * max(0.0, distance - 40.0) / (max_range - 40.0)
            loss += 0.25 * max(0.0, 0.04 - slant) / 0.04
            if _lost(loss, seed, beam, step, ray):
                continue
            blur = np.sqrt(noise * noise + table[stuff, 4] ** 2)
            measured = distance + bias[beam] + blur * _normal(seed, 7, ray)
            if measured < 0.9 or measured > max_range:
                continue
            texture = 0.8 * _normal(seed, 13, beam * 8192 + step // 7) + 0.5 * _normal(
                seed, 11, ray
            )
            answer = table[stuff, 0] * slant ** table[stuff, 2] * gain
            answer *= (1.0 + table[stuff, 1] * texture) * (1.0 - 0.2 * distance / max_range)
            returned[beam, step] = True
            points[beam, step, 0] = measured * directions[beam, step, 0]
            points[beam, step, 1] = measured * directions[beam, step, 1]
            points[beam, step, 2] = measured * directions[beam, step, 2] + offsets[beam]
            points[beam, step, 3] = np.round(100.0 * min(max(answer, 0.0), 0.99)) / 100.0
    return returned, points
