"""Who moves on a synthetic nuScenes street: cars, lorries, buses and riders in their lanes, people on the sidewalks.

All of one lane share one motion, so nobody runs into anybody; work zones beside the street stand still.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from pointlib.data.synthetic_ground import LEAD, LOT
from pointlib.data.synthetic_nuscenes_street import NuScenesStreet
from pointlib.data.synthetic_plan import KINDS

FIRST_INSTANCE = 60001
"""Instances below belong to the lots."""

_VEHICLES = ("car", "truck", "bus", "trailer", "motorcyclist", "construction_vehicle")
_SHARES = (0.62, 0.11, 0.08, 0.06, 0.10, 0.03)
_ROOM = {
    "car": 13.0,
    "truck": 19.0,
    "bus": 22.0,
    "trailer": 30.0,
    "motorcyclist": 11.0,
    "construction_vehicle": 17.0,
}
"""Mean length of lane one takes, the gap to the next included [m]."""

_STANDING = {"worker": "pedestrian.standing", "construction_vehicle": "vehicle.stopped"}

Zone = list[tuple[str, float, float, float]]


class Motion(Protocol):
    """The ego's motion."""

    @property
    def length(self) -> float:
        """[m]."""

    @property
    def duration(self) -> float:
        """[s]."""

    def station(self, time: float) -> float:
        """[m]."""


@dataclass(frozen=True)
class Mover:
    """One thing that is placed anew for every time.

    Args:
        what: name in the catalogue of objects. instance: number within the scene. attribute: nuScenes name or "".
        station: from time [s] to way along the street [m]. lateral: from station [m] to distance from the line [m].
        turn: its front against the street's heading [rad].
    """

    what: str
    instance: int
    attribute: str
    station: Callable[[float], float]
    lateral: Callable[[float], float]
    turn: float


def movers(
    street: NuScenesStreet,
    drive: Motion,
    ego_lane: int,
    zones: Mapping[tuple[int, int], Zone],
    seed: tuple[int, ...],
) -> list[Mover]:
    """Everyone on the street of this seed."""
    found: list[Mover] = []
    for direction in (-1, 1):
        for lane in range(street.lanes + 1):
            rng = np.random.default_rng([*seed, 50, lane, direction + 1])
            with_ego = direction == 1 and lane == ego_lane
            found += _lane(street, drive, lane, direction, with_ego, len(found), rng)
    for side in (1, -1):
        rng = np.random.default_rng([*seed, 51, side + 1])
        found += _walkers(street, drive, side, len(found), rng)
    for things in zones.values():
        for what, station, lateral, turn in things:
            place = _still(station), _still(lateral)
            attribute = _STANDING.get(what, "")
            found.append(Mover(what, FIRST_INSTANCE + len(found), attribute, *place, turn))
    return found


def _still(value: float) -> Callable[[float], float]:
    return lambda _: value


def _uniform(start: float, speed: float) -> Callable[[float], float]:
    return lambda time: start + speed * time


def _behind(drive: Motion, gap: float) -> Callable[[float], float]:
    return lambda time: drive.station(time) + gap


def _lane(
    street: NuScenesStreet, drive: Motion, lane: int, direction: int, with_ego: bool, count: int,
    rng: np.random.Generator,
) -> list[Mover]:  # fmt: skip
    """The traffic of one lane; `direction` is 1 along the street (at negative d), -1 against it."""
    bikes = lane == street.lanes
    mean = drive.length / drive.duration
    if bikes:
        speed = direction * rng.uniform(2.8, 4.8)
    elif direction > 0:
        speed = mean * rng.uniform(0.6, 1.35)
    else:
        speed = -rng.uniform(4.0, 10.0)
    # Sometimes a lane waits.
    speed *= float(bikes or rng.random() < 0.85)
    centre = -direction * street.lane_centre(lane)
    found: list[Mover] = []
    # What is in sight at some time of the drive.
    low = -90.0 - max(speed, 0.0) * drive.duration
    high = drive.length + 90.0 - min(speed, 0.0) * drive.duration
    where = low + rng.uniform(0, 15)
    while where < high:
        what = "bicyclist" if bikes else str(rng.choice(_VEHICLES, p=_SHARES))
        room = 20.0 if bikes else _ROOM[what]
        start = where + room / 2
        where += room + rng.exponential(22.0 if bikes else 13.0)
        if with_ego and -room / 2 - 5.0 < start < room / 2 + 6.0:
            continue
        offset = float(rng.uniform(-0.15, 0.15))
        moves = "vehicle.moving" if with_ego or speed else "vehicle.stopped"
        attribute = "cycle.with_rider" if what.endswith("cyclist") else moves
        station = _behind(drive, start) if with_ego else _uniform(start, speed)
        turn = 0.0 if direction > 0 else np.pi
        lateral = _still(centre + offset)
        if what == "trailer":
            found.append(
                Mover("truck", FIRST_INSTANCE + count + len(found), attribute, _ahead(station, direction * 9.6),
                      lateral, turn)
            )  # fmt: skip
        found.append(
            Mover(what, FIRST_INSTANCE + count + len(found), attribute, station, lateral, turn)
        )
    return found


def _ahead(station: Callable[[float], float], way: float) -> Callable[[float], float]:
    return lambda time: station(time) + way


def _walkers(
    street: NuScenesStreet, drive: Motion, side: int, count: int, rng: np.random.Generator
) -> list[Mover]:
    """People on one sidewalk, alone or in pairs; they pass side roads on their crossings."""
    front = street.plan.front[:, 0 if side > 0 else 1]
    middles = (np.arange(len(front)) + 0.5) * LOT - LEAD
    found: list[Mover] = []
    where = -90.0
    # Two files, one a direction, each with its own pace.
    paces = {1.0: rng.uniform(0.9, 1.6), -1.0: -rng.uniform(0.9, 1.6)}
    while where < drive.length + 90.0:
        where += rng.exponential(9.0) + 2.5
        direction = float(rng.choice([-1.0, 1.0]))
        speed = float(paces[direction])
        inward = 0.5 if direction > 0 else 1.35
        for companion in range(1 + int(rng.random() < 0.3)):
            start = where - speed * drive.duration / 2 + 1.1 * companion
            found.append(
                Mover(
                    "pedestrian", FIRST_INSTANCE + count + len(found), "pedestrian.moving",
                    _uniform(start, speed), _along(middles, side * (front - inward)), 0.0 if speed > 0 else np.pi,
                )
            )  # fmt: skip
    return found


def _along(stations: np.ndarray, laterals: np.ndarray) -> Callable[[float], float]:
    return lambda station: float(np.interp(station, stations, laterals))


def work_zones(
    street: NuScenesStreet, length: float, rng: np.random.Generator
) -> dict[tuple[int, int], Zone]:
    """A few lots along the drive where people dig: barriers along the kerb, cones, a digger, workers."""
    kinds, zones = street.plan.kinds, {}
    first, last = int((LEAD - 40.0) // LOT), int((LEAD + length + 40.0) // LOT)
    lots = [
        (lot, side)
        for lot in range(first, min(last, len(kinds) - 1) + 1)
        for side in (0, 1)
        if KINDS[kinds[lot, side]] != "crossing"
    ]
    wanted = 2 + int(length // 60.0)
    for number in rng.permutation(len(lots))[:wanted]:
        lot, side = lots[number]
        zones[lot, side] = _zone(street, lot, side, rng)
    return zones


def _zone(street: NuScenesStreet, lot: int, side: int, rng: np.random.Generator) -> Zone:
    middle, sign = (lot + 0.5) * LOT - LEAD, 1.0 if side == 0 else -1.0
    edge, front = street.street.half_width, float(street.plan.front[lot, side])
    things: Zone = []
    for k in range(4):
        things.append(
            (
                "barrier",
                middle - 3.6 + 2.4 * k,
                sign * (edge + 0.6),
                np.pi / 2 + rng.normal(0, 0.05),
            )
        )
    for k in range(3):
        for end in (-1.0, 1.0):
            away = 5.2 + 0.75 * k
            things.append(
                (
                    "traffic_cone",
                    middle + end * away,
                    sign * (edge + 0.5 - 0.2 * k),
                    rng.uniform(0, 6),
                )
            )
    digger = sign * (front + rng.uniform(3.0, 5.0))
    things.append(
        ("construction_vehicle", middle + rng.uniform(-1, 1), digger, rng.uniform(0, 2 * np.pi))
    )
    for _ in range(int(rng.integers(1, 4))):
        lateral = sign * rng.uniform(edge + 1.6, front + 0.6)
        things.append(("worker", middle + rng.uniform(-5, 5), lateral, rng.uniform(0, 2 * np.pi)))
    return things
