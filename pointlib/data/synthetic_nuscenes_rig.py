"""The sensors of a synthetic nuScenes vehicle: where six cameras and a 32-beam LiDAR sit, and what the LiDAR returns.

Numbers are those of one of nuScenes' own vehicles (calibrated_sensor of scene-0061).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
from numba import njit

from pointlib.data.lidar_sensor import MATERIALS
from pointlib.data.raycast import HeightField, Primitives, cast
from pointlib.data.raycast_shapes import FAR, uniform
from pointlib.geometry import quaternion_rotation, rigid_transform


class Mount(NamedTuple):
    """Where a sensor sits on the vehicle.

    Args:
        translation: x, y, z [m] in the ego frame. rotation: quaternion w, x, y, z, sensor to ego.
        intrinsics: focal length, principal point x and y of a 1600x900 image [pixels]; empty for the LiDAR.
        delay_us: when it senses, relative to the sample's time [us].
    """

    translation: tuple[float, float, float]
    rotation: tuple[float, float, float, float]
    intrinsics: tuple[float, ...] = ()
    delay_us: int = 0

    @property
    def sensor2ego(self) -> np.ndarray:
        """(4, 4) float64."""
        quaternion = np.asarray(self.rotation)
        return rigid_transform(quaternion_rotation(quaternion), self.translation)

    def camera_matrix(self, width: int, height: int) -> np.ndarray:
        """(3, 3) float64 intrinsics of an image of this size."""
        focal, x, y = self.intrinsics
        across, down = width / 1600, height / 900
        return np.array([[focal * across, 0, x * across], [0, focal * down, y * down], [0, 0, 1.0]])


MOUNTS: dict[str, Mount] = {
    "CAM_FRONT": Mount(
        (1.700791, 0.015946, 1.510958), (0.49980154, -0.50303162, 0.49977981, -0.49737084),
        (1266.417203046554, 816.2670197447984, 491.50706579294757), -35491,
    ),
    "CAM_FRONT_RIGHT": Mount(
        (1.550848, -0.493405, 1.495748), (0.20603479, -0.20269405, 0.68245078, -0.67136109),
        (1260.8474446004698, 807.968244525554, 495.3344268742088), -27612,
    ),
    "CAM_FRONT_LEFT": Mount(
        (1.523878, 0.494631, 1.509328), (0.6757265, -0.67362665, 0.21214015, -0.21122827),
        (1272.5979470598488, 826.6154927353808, 479.75165386361925), -43107,
    ),
    "CAM_BACK": Mount(
        (0.028326, 0.003451, 1.579103), (0.50378727, -0.4974025, -0.49418502, 0.50454961),
        (809.2209905677063, 829.2196003259838, 481.77842384512485), -10426,
    ),
    "CAM_BACK_LEFT": Mount(
        (1.035691, 0.484795, 1.59097), (0.69241856, -0.70316194, -0.11648343, 0.11203318),
        (1256.7414812095406, 792.1125740759628, 492.7757465151356), -528,
    ),
    "CAM_BACK_RIGHT": Mount(
        (1.014878, -0.480568, 1.562395), (0.1228098, -0.13240084, -0.70043058, 0.69049603),
        (1259.5137405846733, 807.2529053838625, 501.19579884916527), -20058,
    ),
    "LIDAR_TOP": Mount(
        (0.943713, 0.0, 1.84023),
        (0.7077955119163518, -0.006492242056004365, 0.010646214713995808, -0.7063073142877817),
    ),
}  # fmt: skip
"""Every sensor by its channel; cameras fire when the LiDAR sweeps past them."""

CAMERAS = tuple(name for name in MOUNTS if name.startswith("CAM"))

_MATERIAL_TABLE = np.array(list(MATERIALS.values()), dtype=np.float64)


@dataclass(frozen=True)
class Sweep:
    """One revolution.

    Args:
        points: (N, 5) float32 x right, y forward, z up [m] in the LiDAR frame, intensity 0..255, ring 0 (lowest) up.
        label: (N,) int32 label of what was hit. instance: (N,) int32, 0 for what has no box.
    """

    points: np.ndarray
    label: np.ndarray
    instance: np.ndarray


@dataclass(frozen=True)
class Hdl32:
    """A Velodyne HDL-32E: beams 1.33 degrees apart from -30.67 to +10.67 degrees.

    Args:
        beams: fewer than 32 thin the field of view. azimuth_steps: firings a revolution.
        max_range: [m]. range_noise: standard deviation [m].

    Raises:
        ValueError: fewer than 2 beams or 16 steps.
    """

    beams: int = 32
    azimuth_steps: int = 1084
    max_range: float = 85.0
    range_noise: float = 0.012

    def __post_init__(self) -> None:
        if self.beams < 2 or self.azimuth_steps < 16:
            raise ValueError(
                "Hdl32: beams must be at least 2 and azimuth_steps at least 16, got "
                f"{self.beams} and {self.azimuth_steps}"
            )

    @cached_property
    def elevations(self) -> np.ndarray:
        """(beams,) float64 [rad], from the lowest beam up."""
        return np.radians(np.linspace(-30.67, 10.67, self.beams))

    @cached_property
    def directions(self) -> np.ndarray:
        """(beams, azimuth_steps, 3) float64 unit vectors in the LiDAR frame, azimuth rising within [0, 2 pi)."""
        rng = np.random.default_rng(32)
        phase = rng.uniform(0.2, 0.8, (self.beams, 1))
        azimuth = 2 * np.pi * (np.arange(self.azimuth_steps) + phase) / self.azimuth_steps
        level = np.cos(self.elevations)[:, None]
        height = np.broadcast_to(np.sin(self.elevations)[:, None], azimuth.shape)
        return np.stack([level * np.cos(azimuth), level * np.sin(azimuth), height], axis=-1)

    def sweep(
        self,
        ground: HeightField,
        ground_material: np.ndarray,
        bodies: Primitives,
        lidar2world: np.ndarray,
        seed: int,
    ) -> Sweep:
        """One revolution from `lidar2world` (4, 4); equal arguments give equal bits."""
        hits = cast(
            self.directions, self.elevations, np.zeros(self.beams), lidar2world, ground, ground_material,
            bodies, self.max_range, seed,
        )  # fmt: skip
        returned, points = _returns(
            self.directions, hits.depth, hits.material, hits.cosine, _MATERIAL_TABLE,
            self.range_noise, self.max_range, np.uint64(seed),
        )  # fmt: skip
        # Firing by firing, clockwise, as the sensor turns.
        returned, points = returned.T[::-1], points.transpose(1, 0, 2)[::-1]
        label, instance = hits.label.T[::-1], hits.instance.T[::-1]
        return Sweep(points[returned], label[returned], instance[returned])


@njit(cache=True, nogil=True)
def _normal(seed, first, second):  # type: ignore[no-untyped-def]
    """A standard normal number by Box and Muller's method."""
    radius = np.sqrt(-2.0 * np.log(uniform(seed, first, second)))
    return radius * np.cos(2.0 * np.pi * uniform(seed, first + 500009, second))


@njit(cache=True, nogil=True)
def _returns(directions, depth, material, cosine, table, noise, max_range, seed):  # type: ignore[no-untyped-def]
    """Which rays come back, and their points with intensity and ring."""
    beams, steps = depth.shape
    returned = np.zeros((beams, steps), np.bool_)
    points = np.zeros((beams, steps, 5), np.float32)
    for beam in range(beams):
        gain = 1.0 + 0.1 * _normal(np.uint64(32), 23, beam)
        for step in range(steps):
            distance = depth[beam, step]
            if distance >= FAR:
                continue
            ray = beam * steps + step
            stuff, slant = material[beam, step], max(cosine[beam, step], 0.01)
            loss = table[stuff, 3] * (2.0 - slant) + 0.3 * max(0.0, distance - 40.0) / max_range
            loss += 0.25 * max(0.0, 0.04 - slant) / 0.04
            if uniform(seed, 5, ray) < loss:
                continue
            blur = np.sqrt(noise * noise + table[stuff, 4] ** 2)
            measured = distance + blur * min(max(_normal(seed, 7, ray), -2.5), 2.5)
            if measured < 1.0 or measured > max_range:
                continue
            answer = table[stuff, 0] * slant ** table[stuff, 2] * gain
            answer *= (1.0 + table[stuff, 1] * 0.6 * _normal(seed, 11, ray)) * (
                1.0 - 0.2 * distance / max_range
            )
            returned[beam, step] = True
            for axis in range(3):
                points[beam, step, axis] = measured * directions[beam, step, axis]
            points[beam, step, 3] = np.round(min(520.0 * max(answer, 0.0) ** 3, 255.0))
            points[beam, step, 4] = beam
    return returned, points
