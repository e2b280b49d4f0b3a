"""A synthetic nuScenes scene: a street with all that stands on it, drives, rides and walks, at any time of 20 s.

The frame is the map's: x east, y north, z up [m]. Time [s] runs from the scene's start.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from pointlib.data.raycast import Primitives
from pointlib.data.synthetic_ground import LEAD, LOT
from pointlib.data.synthetic_lots import LotBuilder, place_on
from pointlib.data.synthetic_nuscenes_boxes import ThingBox, in_the_way, meetings
from pointlib.data.synthetic_nuscenes_objects import (
    CATALOGUE,
    Model,
    Painted,
    build_model,
    oriented_box,
    stuff_colours,
    thing_colours,
)
from pointlib.data.synthetic_nuscenes_street import NuScenesStreet, lay_street
from pointlib.data.synthetic_nuscenes_traffic import Mover, movers, work_zones
from pointlib.geometry import rigid_transform, yaw_rotation

_SOFT = ("human.pedestrian.adult",)
"""What stands on the lots and makes room for those who walk."""

SIGHT = 88.0
"""How far along the street from the ego things are built [m]."""

_LOT_CATEGORIES = {
    10: "vehicle.car", 11: "vehicle.bicycle", 13: "vehicle.bus.rigid", 15: "vehicle.motorcycle", 18: "vehicle.truck",
    20: "vehicle.trailer", 30: "human.pedestrian.adult",
}  # fmt: skip


@dataclass(frozen=True)
class Drive:
    """How the ego moves along the street: a mean speed that swells and ebbs.

    Args:
        speed: [m/s]. swing: amplitude of the speed [m/s]. pace: angular frequency [rad/s]. phase: [rad].
        duration: [s].
    """

    speed: float
    swing: float
    pace: float
    phase: float
    duration: float

    def station(self, time: float) -> float:
        """Way along the street [m], 0 at time 0."""
        wave = np.cos(self.phase) - np.cos(self.pace * time + self.phase)
        return float(self.speed * time + self.swing / self.pace * wave)

    @property
    def length(self) -> float:
        """Way at the end [m]."""
        return self.station(self.duration)


def plan_drive(duration: float, seed: tuple[int, ...]) -> Drive:
    """The ego's motion in the scene of this seed."""
    rng = np.random.default_rng([*seed, 41])
    speed = rng.uniform(4.0, 9.0)
    swing, phase = rng.uniform(0.0, 0.35) * speed, rng.uniform(0, 2 * np.pi)
    return Drive(speed, swing, rng.uniform(0.3, 0.7), phase, duration)


class NuScenesScene:
    """One scene; equal arguments give equal scenes.

    Args:
        seed: any sequence of integers. duration: [s]. origin: x, y [m] of the scene's lowest corner on the map.
    """

    def __init__(
        self, seed: tuple[int, ...], duration: float, origin: Sequence[float] = (0.0, 0.0)
    ) -> None:
        self.seed = seed
        self.drive = plan_drive(duration, seed)
        self.street: NuScenesStreet = lay_street(self.drive.length, seed, origin)
        rng = np.random.default_rng([*seed, 42])
        self.ego_lane = int(rng.integers(self.street.lanes))
        self._models: dict[int, Model] = {}

    @cached_property
    def work_zones(self) -> dict[tuple[int, int], list[tuple[str, float, float, float]]]:
        """Lots (lot, side) that are work zones, with what stands there: kind, station, lateral, turn."""
        return work_zones(self.street, self.drive.length, np.random.default_rng([*self.seed, 43]))

    def ego_pose(self, time: float) -> np.ndarray:
        """ego2global (4, 4) float64: in its lane, at z = 0 and level, as nuScenes' poses are."""
        lateral = -self.street.lane_centre(self.ego_lane)
        x, y, heading = self.street.street.at(self.drive.station(time), lateral)
        return rigid_transform(yaw_rotation(np.asarray(heading)), (x, y, 0.0))

    @cached_property
    def _planned(self) -> list[Mover]:
        return movers(self.street, self.drive, self.ego_lane, self.work_zones, self.seed)

    @cached_property
    def movers(self) -> list[Mover]:
        """All that moves, and what stands in work zones; without those who would walk through what stands."""
        standing = [mover for mover in self._planned if _stands(mover)]
        walking = [m for m in self._planned if m.what == "pedestrian" and not _stands(m)]
        solid = [box for box in self._parked[1] if box.category not in _SOFT]
        solid += [self._box(mover, 0.0) for mover in standing]
        blocked = np.zeros(len(walking), np.bool_)
        for time in self._moments:
            blocked |= meetings([self._box(mover, time) for mover in walking], solid).any(axis=1)
        gone = {mover.instance for mover, stopped in zip(walking, blocked, strict=True) if stopped}
        return [mover for mover in self._planned if mover.instance not in gone]

    @cached_property
    def _lots(self) -> tuple[Painted, list[ThingBox]]:
        """Everything on the lots along the whole drive, and the boxes of what is annotated there."""
        lots, boxes = self._parked
        walking = [m for m in self.movers if m.what == "pedestrian" and not _stands(m)]
        soft = [box for box in boxes if box.category in _SOFT]
        walked_over = np.zeros(len(soft), np.bool_)
        for time in self._moments:
            walked_over |= meetings(soft, [self._box(mover, time) for mover in walking]).any(axis=1)
        gone = {box.instance for box, hit in zip(soft, walked_over, strict=True) if hit}
        return _without(lots, gone), [box for box in boxes if box.instance not in gone]

    @property
    def _moments(self) -> np.ndarray:
        return np.arange(0.0, self.drive.duration + 0.5, 0.5)

    @cached_property
    def _parked(self) -> tuple[Painted, list[ThingBox]]:
        """What is built and parked on the lots, free of each other and of what stands in work zones."""
        street, parts, boxes = self.street.street, [], []
        first = max(int((LEAD - SIGHT) // LOT), 0)
        last = min(int((LEAD + self.drive.length + SIGHT) // LOT), street.lots - 1)
        for lot in range(first, last + 1):
            for side in (0, 1):
                if (lot, side) in self.work_zones:
                    continue
                rng = np.random.default_rng([*self.seed, 2, lot, side])
                bodies = LotBuilder(street, self.street.plan, lot, side, rng).build()
                if len(bodies) == 0:
                    continue
                key = [*self.seed, 44, lot, side]
                painted, found = _annotated(bodies, np.random.default_rng(key))
                parts.append(painted)
                boxes.extend(found)
        standing = [self._box(mover, 0.0) for mover in self._planned if _stands(mover)]
        gone = in_the_way(boxes, standing)
        lots = _without(Painted.joined(parts), gone)
        return lots, [box for box in boxes if box.instance not in gone]

    def painted(self, time: float, station: float) -> Painted:
        """Everything within sight of a station, where it is at a time."""
        lots, _ = self._lots
        x, y, _ = self.street.street.at(station, 0.0)
        near = np.hypot(lots.bodies.centre[:, 0] - x, lots.bodies.centre[:, 1] - y) < SIGHT + 8.0
        parts = [Painted(_picked(lots.bodies, near), lots.colours[near])]
        for mover in self.movers:
            if abs(mover.station(time) - station) > SIGHT:
                continue
            model, pose = self._model(mover), self._place(mover, time)
            moved = model.painted.bodies.transformed(pose[:3, :3], pose[:3, 3])
            parts.append(Painted(moved, model.painted.colours))
        return Painted.joined(parts)

    def boxes(self, time: float, station: float) -> list[ThingBox]:
        """Boxes of all annotated things within sight of a station, at a time."""
        _, parked = self._lots
        x, y, _ = self.street.street.at(station, 0.0)
        found = [box for box in parked if np.hypot(box.centre[0] - x, box.centre[1] - y) < SIGHT]
        for mover in self.movers:
            if abs(mover.station(time) - station) > SIGHT:
                continue
            found.append(self._box(mover, time))
        return found

    def _box(self, mover: Mover, time: float) -> ThingBox:
        model, pose = self._model(mover), self._place(mover, time)
        centre = pose[:3, :3] @ model.centre + pose[:3, 3]
        yaw = float(np.arctan2(pose[1, 0], pose[0, 0]))
        return ThingBox(mover.instance, model.category, mover.attribute, centre, model.size, yaw)

    def categories(self) -> dict[int, str]:
        """Category of every annotated thing by its instance."""
        _, parked = self._lots
        found = {box.instance: box.category for box in parked}
        return found | {mover.instance: CATALOGUE[mover.what][0] for mover in self.movers}

    def _model(self, mover: Mover) -> Model:
        if mover.instance not in self._models:
            rng = np.random.default_rng([*self.seed, 45, mover.instance])
            self._models[mover.instance] = build_model(mover.what, mover.instance, rng)
        return self._models[mover.instance]

    def _place(self, mover: Mover, time: float) -> np.ndarray:
        """Pose (4, 4) of a mover on the ground."""
        station = mover.station(time)
        place = place_on(self.street.street, station, mover.lateral(station), mover.turn)
        return rigid_transform(yaw_rotation(np.asarray(place.yaw)), (place.x, place.y, place.z))


def _stands(mover: Mover) -> bool:
    return mover.station(0.0) == mover.station(1.0)


def _without(painted: Painted, gone: set[int]) -> Painted:
    """What is left when some instances are taken away."""
    kept = ~np.isin(painted.bodies.instance, list(gone))
    return Painted(_picked(painted.bodies, kept), painted.colours[kept])


def _picked(bodies: Primitives, keep: np.ndarray) -> Primitives:
    """The bodies where `keep` (P,) bool is true."""
    counts = np.diff(bodies.plane_start)
    planes = bodies.planes[np.repeat(keep, counts)]
    starts = np.concatenate([[0], np.cumsum(counts[keep])])
    return Primitives(
        bodies.kind[keep], bodies.centre[keep], bodies.axes[keep], bodies.size[keep], bodies.density[keep],
        bodies.pattern[keep], bodies.label[keep], bodies.instance[keep], bodies.material[keep], starts, planes,
    )  # fmt: skip


def _annotated(bodies: Primitives, rng: np.random.Generator) -> tuple[Painted, list[ThingBox]]:
    """Paint for a lot's bodies, and the boxes around its parked vehicles and people."""
    colours, boxes = stuff_colours(bodies, rng), []
    things = np.isin(bodies.label, list(_LOT_CATEGORIES)) & (bodies.instance > 0)
    for instance in np.unique(bodies.instance[things]):
        rows = np.flatnonzero(things & (bodies.instance == instance))
        category = _LOT_CATEGORIES[int(bodies.label[rows[0]])]
        centre, size, yaw = oriented_box(bodies, rows)
        mask = np.zeros(len(bodies), np.bool_)
        mask[rows] = True
        colours[rows] = thing_colours(_picked(bodies, mask), category, rng)
        boxes.append(
            ThingBox(int(instance), category, _parked_attribute(category), centre, size, yaw)
        )
    # Only what has a box keeps its instance.
    instances = np.where(things, bodies.instance, 0).astype(np.int32)
    kept = Primitives(
        bodies.kind, bodies.centre, bodies.axes, bodies.size, bodies.density, bodies.pattern, bodies.label, instances,
        bodies.material, bodies.plane_start, bodies.planes,
    )  # fmt: skip
    return Painted(kept, colours), boxes


def _parked_attribute(category: str) -> str:
    if category.startswith("human"):
        return "pedestrian.standing"
    if category in ("vehicle.bicycle", "vehicle.motorcycle"):
        return "cycle.without_rider"
    return "vehicle.parked"
