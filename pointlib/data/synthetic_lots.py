"""Fills the lots of a synthetic street: houses, gardens, car parks, side roads, parked vehicles, street furniture."""

from __future__ import annotations

import numpy as np

from pointlib.data import synthetic_objects as objects
from pointlib.data.raycast import Primitives
from pointlib.data.synthetic_bodies import Bodies, Place
from pointlib.data.synthetic_ground import LEAD, LOT, Street
from pointlib.data.synthetic_plan import KINDS, Plan, extra_of

CAR, BICYCLE, BUS, MOTORCYCLE, TRUCK, TRAILER, PERSON = 10, 11, 13, 15, 18, 20, 30


def place_on(street: Street, station: float, lateral: float, turn: float = 0.0) -> Place:
    """A place on the ground beside the centre line, turned from the street's heading by `turn` [rad]."""
    x, y, heading = street.at(station, lateral)
    return Place(x, y, street.height(x, y), heading + turn)


class LotBuilder:
    """Fills one side of one lot; the coordinates are metres from the lot's middle and metres from the line."""

    def __init__(
        self, street: Street, plan: Plan, lot: int, side: int, rng: np.random.Generator
    ) -> None:
        self.street, self.plan, self.lot, self.side, self.rng = street, plan, lot, side, rng
        self.middle = (lot + 0.5) * LOT - LEAD
        self.sign = 1.0 if side == 0 else -1.0
        self.front = float(plan.front[lot, side])
        self.edge = street.half_width
        self.parked = bool(plan.parked[lot, side])
        self.bodies = Bodies()
        self.count = 0

    def build(self) -> Primitives:
        """Everything that stands here."""
        kind = KINDS[self.plan.kinds[self.lot, self.side]]
        getattr(self, f"_{kind}")()
        if kind != "crossing":
            self._roadside()
            if not self._near_crossing():
                self._backdrop()
        return self.bodies.build()

    def _near_crossing(self) -> bool:
        kinds = self.plan.kinds[max(self.lot - 1, 0) : self.lot + 2, self.side]
        return bool((kinds == KINDS.index("crossing")).any())

    def _at(self, along: float, lateral: float, turn: float = 0.0) -> Place:
        return place_on(self.street, self.middle + along, self.sign * lateral, turn)

    def _thing(self, label: int) -> Bodies:
        self.count += 1
        return self.bodies.of(label, 1 + ((self.lot * 2 + self.side) * 40 + self.count) % 60000)

    def _car(self, along: float, lateral: float, turn: float = 0.0) -> None:
        turn += np.pi * self.rng.integers(2) + self.rng.normal(0, 0.03)
        objects.car(self._thing(CAR), self._at(along, lateral, turn), self.rng)

    def _bushes(self, count: int, near: float, far: float) -> None:
        for _ in range(count):
            place = self._at(self.rng.uniform(-7, 7), self.rng.uniform(near, far))
            objects.bush(self.bodies, place, self.rng, self.rng.uniform(0.5, 1.5))

    def _boundary(self, lateral: float, gap: bool) -> None:
        """A hedge or fence along the lot's front, with a gap for a drive."""
        begin = -6.9
        end = 6.9 if not gap else 3.4
        make = objects.hedge if self.rng.random() < 0.65 else objects.fence
        place = self._at((begin + end) / 2, lateral)
        make(self.bodies, place, self.rng, end - begin)

    def _house(self) -> None:
        rng, drive = self.rng, self.rng.random() < 0.5
        setback = rng.uniform(3.5, 11.0)
        if rng.random() < 0.85:
            self._boundary(self.front + 0.25, drive)
        half_length, half_depth = rng.uniform(4.0, 6.6), rng.uniform(3.5, 5.5)
        wall = self.front + setback
        place = self._at(rng.uniform(-1, 1) if not drive else -1.5, wall + half_depth)
        objects.building(self.bodies, place, rng, half_length - (1.0 if drive else 0.0), half_depth)
        if drive and setback > 5.0:
            self._car(5.2, self.front + 3.0, np.pi / 2)
        if setback > 2.5:
            self._bushes(int(rng.integers(4, 11)), self.front + 0.7, wall + 2.0)
            for _ in range(int(rng.integers(0, 3))):
                place = self._at(rng.uniform(-6, 4), rng.uniform(self.front + 1.5, wall - 0.5))
                objects.tree(self.bodies, place, rng, rng.uniform(0.9, 2.0))
        if rng.random() < 0.6:
            lateral = self.front + rng.uniform(0.3, setback)
            turned = self._at(-6.95, wall + half_depth * 0.3, np.pi / 2)
            objects.fence(self.bodies, turned, rng, max(2.0, lateral - self.front + 2.0))

    def _facade(self) -> None:
        half_depth = self.rng.uniform(4.0, 7.0)
        setback = self.rng.choice([0.0, 0.0, 0.6, 1.4])
        place = self._at(0.0, self.front + setback + half_depth)
        objects.building(
            self.bodies, place, self.rng, 7.0 - self.rng.choice([0.0, 0.0, 0.9]), half_depth
        )

    def _garden(self) -> None:
        rng = self.rng
        if rng.random() < 0.6:
            self._boundary(self.front + 0.4, False)
        for _ in range(int(rng.integers(3, 8))):
            lateral = self.front + rng.uniform(1.5, 24)
            objects.tree(
                self.bodies, self._at(rng.uniform(-7, 7), lateral), rng, rng.uniform(0.4, 2.0)
            )
        self._bushes(int(rng.integers(8, 18)), self.front + 1.0, self.front + 26)

    def _car_park(self) -> None:
        for row in (3.0, 13.5):
            for bay in (-5.4, -2.7, 0.0, 2.7, 5.4):
                if self.rng.random() < 0.6:
                    self._car(bay, self.front + row, np.pi / 2)
        if self.rng.random() < 0.5:
            place = self._at(0.0, self.front + 17.4)
            (objects.hedge if self.rng.random() < 0.5 else objects.fence)(
                self.bodies, place, self.rng, 13.8
            )

    def _plaza(self) -> None:
        rng = self.rng
        for _ in range(int(rng.integers(1, 4))):
            place = self._at(rng.uniform(-6, 6), self.front + rng.uniform(2, 10), rng.uniform(0, 6))
            objects.person(self._thing(PERSON), place, rng)
        for _ in range(2):
            place = self._at(rng.uniform(-6, 6), self.front + rng.uniform(1, 10), rng.uniform(0, 6))
            objects.bin_or_box(self.bodies, place, rng)
            place = self._at(rng.uniform(-6, 6), self.front + rng.uniform(2, 11))
            objects.tree(self.bodies, place, rng, rng.uniform(1.6, 2.4))
        if rng.random() < 0.7:
            place = self._at(0.0, self.front + 17.0)
            objects.building(self.bodies, place, rng, 6.9, 5.0)

    def _verge(self) -> None:
        if self.rng.random() < 0.6:
            objects.guard_rail(self.bodies, self._at(0.0, self.front - 0.4), 14.0)
        self._bushes(int(self.rng.integers(8, 18)), self.front + 1.0, self.front + 20)
        for _ in range(int(self.rng.integers(1, 5))):
            place = self._at(self.rng.uniform(-7, 7), self.front + self.rng.uniform(3, 20))
            objects.tree(self.bodies, place, self.rng, self.rng.uniform(0.3, 1.8))

    def _crossing(self) -> None:
        """The side road: houses, hedges, trees and parked cars along it."""
        rng = self.rng
        crossing = self.street.crossings
        row = crossing[np.argmin(np.abs(crossing[:, 0] - self.middle))]
        for flank in (-1.0, 1.0):
            kerb = row[1] + row[2]
            for lateral in np.arange(26.0, 74.0, 12.5):
                if rng.random() < 0.6:
                    depth = rng.uniform(3.5, 5.0)
                    along = flank * (kerb + rng.uniform(0.5, 4) + depth)
                    turned = self._straight(along, lateral, np.pi / 2)
                    objects.building(self.bodies, turned, rng, rng.uniform(4.5, 6.2), depth)
                else:
                    place = self._straight(flank * (kerb + rng.uniform(2, 5)), lateral)
                    objects.tree(self.bodies, place, rng, rng.uniform(1.0, 2.0))
            for lateral in np.arange(16.0, 60.0, 7.0):
                if rng.random() < 0.35:
                    turn = np.pi / 2 + np.pi * rng.integers(2)
                    place = self._straight(flank * (row[1] - 1.0), lateral, turn)
                    objects.car(self._thing(CAR), place, rng)
            corner = self._at(
                flank * (kerb - 0.4), self.edge + 1.2, 0.0 if flank * self.sign < 0 else np.pi
            )
            objects.sign(self.bodies, corner, rng)
        if rng.random() < 0.7:
            place = self._straight(
                rng.uniform(-1.5, 1.5), self.edge + rng.uniform(3, 9), -self.sign * np.pi / 2
            )
            objects.car(self._thing(CAR), place, rng)

    def _straight(self, along: float, lateral: float, turn: float = 0.0) -> Place:
        """A place beside the straight side road, which does not follow the street's bends."""
        x, y, heading = self.street.at(self.middle, 0.0)
        px = x + along * np.cos(heading) - self.sign * lateral * np.sin(heading)
        py = y + along * np.sin(heading) + self.sign * lateral * np.cos(heading)
        return Place(px, py, self.street.height(px, py), heading + turn)

    def _backdrop(self) -> None:
        """What shows between and over the first row: back houses, trees, hedges."""
        rng = self.rng
        for lateral in (rng.uniform(30, 38), rng.uniform(46, 60)):
            draw = rng.random()
            if draw < 0.3:
                place = self._at(0.0, lateral + 5, rng.uniform(-0.3, 0.3))
                objects.building(
                    self.bodies, place, rng, rng.uniform(4.0, 6.5), rng.uniform(3.5, 5.0)
                )
            elif draw < 0.6:
                for _ in range(3):
                    place = self._at(rng.uniform(-7, 7), lateral + rng.uniform(-4, 4))
                    objects.tree(self.bodies, place, rng, rng.uniform(0.4, 2.0))
                self._bushes(3, lateral - 5, lateral + 5)
            elif draw < 0.8:
                objects.hedge(self.bodies, self._at(0, lateral, rng.uniform(-0.4, 0.4)), rng, 12.0)

    def _roadside(self) -> None:
        """Parked vehicles, street furniture, street trees and the lot's extra thing."""
        rng, lane, extra = self.rng, self.edge + 1.15, extra_of(self.lot, self.side)
        verge = KINDS[self.plan.kinds[self.lot, self.side]] == "verge"
        walk: float = self.front + (1.2 if verge else -rng.uniform(0.3, 0.9))
        kerb = self.edge + (2.3 if self.parked else 0.0) + 0.5
        if extra == "truck":
            turn = np.pi * float(rng.integers(2))
            objects.truck(self._thing(TRUCK), self._at(-1.0, lane + 0.1, turn), rng)
        elif extra == "trailer":
            make, label = (objects.trailer, TRAILER) if rng.random() < 0.7 else (objects.bus, BUS)
            make(self._thing(label), self._at(0.0, lane, np.pi * rng.integers(2)), rng)
        elif extra == "motorcycle":
            for along in (-5.0, -3.9, -2.8)[: int(rng.integers(1, 4))]:
                turn = np.pi / 2 + float(rng.normal(0, 0.2))
                objects.motorcycle(self._thing(MOTORCYCLE), self._at(along, lane, turn), rng)
            self._car(3.5, lane)
        elif self.parked:
            for along in (-4.4, 1.2, 6.0)[: 2 if rng.random() < 0.7 else 3]:
                if rng.random() < 0.7:
                    self._car(along, lane + rng.uniform(-0.15, 0.15))
        if extra == "bicycle":
            for along in (-2.0, -1.2, -0.4, 0.4)[: int(rng.integers(2, 5))]:
                turn = np.pi / 2 + float(rng.normal(0, 0.3))
                objects.bicycle(self._thing(BICYCLE), self._at(along, walk - 0.5, turn), rng)
        elif extra in ("person", "persons"):
            for number in range(2 if extra == "person" else 3):
                along = rng.uniform(-6, 6)
                place = self._at(along, walk - 0.3 * number, rng.uniform(0, 6))
                objects.person(self._thing(PERSON), place, rng)
        elif extra == "sign" or rng.random() < 0.12:
            turn = 0.0 if self.sign < 0 else np.pi
            objects.sign(self.bodies, self._at(rng.uniform(-5, 5), kerb, turn), rng)
        elif extra == "shelter":
            facing = 0.0 if self.sign < 0 else np.pi
            objects.shelter(self.bodies, self._at(-2.0, self.front - 0.3, facing))
        if extra == "bin" or rng.random() < 0.15:
            objects.bin_or_box(self.bodies, self._at(rng.uniform(-6, 6), walk), rng)
        if (self.lot + self.side) % 2 == 0:
            objects.lamp_post(self.bodies, self._at(6.6, kerb), rng)
        if rng.random() < 0.25:
            objects.tree(
                self.bodies, self._at(rng.uniform(-6, 6), kerb + 0.3), rng, rng.uniform(1.9, 2.6)
            )
