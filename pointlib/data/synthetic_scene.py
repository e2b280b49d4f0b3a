"""Composes a synthetic street scene by seed: what stands on each lot, who drives and walks past, where the ego is."""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from pointlib.data import synthetic_objects as objects
from pointlib.data.lidar_sensor import MATERIAL_ID
from pointlib.data.raycast import Primitives
from pointlib.data.synthetic_bodies import Bodies, Place
from pointlib.data.synthetic_ground import LEAD, LOT, MARKING, OTHER_GROUND, SIDEWALK, TERRAIN
from pointlib.data.synthetic_lots import LotBuilder, place_on
from pointlib.data.synthetic_plan import STYLES, plan_street

SIGHT = 88.0
"""How far along the street from the ego things are built [m]."""

MOVING = {
    "car": 252,
    "bicyclist": 253,
    "person": 254,
    "motorcyclist": 255,
    "bus": 257,
    "truck": 258,
    "trailer": 259,
}
_ONCOMING = (
    "car", "motorcyclist", "car", "bicyclist", "car", "truck", "motorcyclist", "car", "bicyclist", "car", "bus",
)  # fmt: skip


class Scene:
    """One street with all that is on it, of any length, built piece by piece around the ego.

    Args:
        length: of the drive [m]; the street extends `LEAD` metres farther at both ends.
        seed: any sequence of integers; equal seeds give equal scenes.
        speed: of the ego [m/s].
    """

    def __init__(self, length: float, seed: tuple[int, ...], speed: float = 8.0) -> None:
        self.seed = seed
        self.speed = speed
        self.style = list(STYLES)[sum(seed) % len(STYLES)]
        self.street, self.plan = plan_street(length, self.style, seed)
        self._lot = lru_cache(maxsize=64)(self._build_lot)

    def pose(self, station: float) -> np.ndarray:
        """Ground-following pose of the ego's own lane at a station, ego2world (4, 4) float64, origin on the road."""
        x, y, heading = self.street.at(station, -self.street.half_width / 2)
        forward = np.array([np.cos(heading), np.sin(heading), 0.0])
        left = np.array([-np.sin(heading), np.cos(heading), 0.0])
        ahead, behind = (
            self.street.height(x + k * forward[0], y + k * forward[1]) for k in (1.4, -1.4)
        )
        port, starboard = (
            self.street.height(x + k * left[0], y + k * left[1]) for k in (0.8, -0.8)
        )
        forward[2], left[2] = (ahead - behind) / 2.8, (port - starboard) / 1.6
        forward /= np.linalg.norm(forward)
        left -= (left @ forward) * forward
        left /= np.linalg.norm(left)
        pose = np.eye(4)
        pose[:3, :3] = np.stack([forward, left, np.cross(forward, left)], axis=1)
        pose[:3, 3] = (x, y, (ahead + behind) / 2)
        return pose

    def bodies(self, station: float) -> Primitives:
        """Everything that can be seen from a station when the ego is there."""
        first = int(np.floor((station - SIGHT + LEAD) / LOT))
        last = int(np.floor((station + SIGHT + LEAD) / LOT))
        parts = [
            self._lot(lot, side)
            for lot in range(max(first, 0), min(last, self.street.lots - 1) + 1)
            for side in (0, 1)
        ]
        return Primitives.joined([*parts, self._traffic(station)])

    def _build_lot(self, lot: int, side: int) -> Primitives:
        rng = np.random.default_rng([*self.seed, 2, lot, side])
        return LotBuilder(self.street, self.plan, lot, side, rng).build()

    def _traffic(self, station: float) -> Primitives:
        """Moving vehicles and people at the time the ego passes a station."""
        bodies, lane = Bodies(), self.street.half_width / 2
        time = station / self.speed
        for k in _visible(station, time, -7.0, 22.0):
            rng = np.random.default_rng([*self.seed, 3, k % (1 << 30)])
            where = k * 22.0 + rng.uniform(-4, 4) - 7.0 * time
            what = _ONCOMING[(k * 2 + self.seed[-1]) % len(_ONCOMING)]
            if rng.random() < 0.15 or abs(where - station) > SIGHT:
                continue
            lateral = lane + (lane - 0.6 if what == "bicyclist" else rng.uniform(-0.2, 0.2))
            self._mover(
                bodies, what, place_on(self.street, where, lateral, np.pi), 60001 + k % 1500, rng
            )
        rng = np.random.default_rng([*self.seed, 4])
        gaps = (rng.uniform(16, 40), -rng.uniform(14, 35), rng.uniform(52, 75))
        for number, gap in enumerate(gaps):
            where = station + gap + 5 * np.sin(time / 9 + number)
            what = str(rng.choice(["car", "car", "car", "motorcyclist", "bicyclist"]))
            lateral = -lane if what != "bicyclist" else -2 * lane + 0.6
            ahead = np.random.default_rng([*self.seed, 5, number])
            self._mover(bodies, what, place_on(self.street, where, lateral), 61600 + number, ahead)
        for k in _visible(station, time, 1.3, 12.0):
            rng = np.random.default_rng([*self.seed, 6, k % (1 << 30)])
            side, speed = (1.0, 1.3) if rng.random() < 0.5 else (-1.0, 1.3)
            where = k * 12.0 + rng.uniform(-5, 5) + speed * time
            lot = int(np.clip((where + LEAD) // LOT, 0, self.street.lots - 1))
            lateral = self.plan.front[lot, 0 if side > 0 else 1] - rng.uniform(0.5, 1.4)
            if rng.random() < 0.45 or abs(where - station) > SIGHT:
                continue
            self._mover(
                bodies,
                "person",
                place_on(self.street, where, side * lateral),
                61700 + k % 1500,
                rng,
            )
        return bodies.build()

    @staticmethod
    def _mover(
        bodies: Bodies, what: str, place: Place, instance: int, rng: np.random.Generator
    ) -> None:
        bodies.of(MOVING[what], instance)
        if what in ("bicyclist", "motorcyclist"):
            ride = objects.bicycle if what == "bicyclist" else objects.motorcycle
            ride(bodies, place, rng)
            saddle = 0.95 if what == "bicyclist" else 0.82
            objects.person(bodies, place, rng, seat=saddle)
        else:
            getattr(objects, what)(bodies, place, rng)


def _visible(station: float, time: float, speed: float, spacing: float) -> range:
    """Numbers k of the movers at ``k * spacing + speed * time`` near a station."""
    low = (station - SIGHT - speed * time) / spacing
    return range(int(np.floor(low)) - 1, int(np.ceil(low + 2 * SIGHT / spacing)) + 2)


def ground_materials() -> np.ndarray:
    """(300,) int32, material of each SemanticKITTI ground id."""
    table = np.full(300, MATERIAL_ID["asphalt"], np.int32)
    for label, name in (
        (SIDEWALK, "concrete"),
        (OTHER_GROUND, "gravel"),
        (MARKING, "marking"),
        (TERRAIN, "grass"),
    ):
        table[label] = MATERIAL_ID[name]
    return table
