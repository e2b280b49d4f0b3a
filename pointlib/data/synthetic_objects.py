"""The catalogue of a synthetic street: vehicles, people, plants, walls and street furniture as ray-cast bodies.

Every function puts one thing on the ground at a `Place` and adds its bodies to a `Bodies` list. Local axes: x along
the thing's front, y to its left, z up from the ground.
"""

from __future__ import annotations

import numpy as np

from pointlib.data.raycast_shapes import FACADE, PICKET, POROUS
from pointlib.data.synthetic_bodies import Bodies, Place


def car(bodies: Bodies, place: Place, rng: np.random.Generator) -> None:
    """A saloon, hatchback, estate or van: body and cabin with windows, four wheels, number plates."""
    shape = rng.choice(["saloon", "hatchback", "estate", "van"], p=[0.3, 0.35, 0.2, 0.15])
    long = {"saloon": 4.6, "hatchback": 4.0, "estate": 4.7, "van": 4.9}[shape] * rng.uniform(
        0.94, 1.06
    )
    half, wide = long / 2, rng.uniform(0.83, 0.93)
    roof = {"saloon": 1.43, "hatchback": 1.48, "estate": 1.52, "van": 1.95}[shape]
    belt = 1.05 if shape == "van" else 0.9
    paint = str(rng.choice(["paint", "dark_paint"], p=[0.6, 0.4]))
    rear = {"saloon": -0.3, "hatchback": -0.44, "estate": -0.47, "van": -0.49}[shape] * long
    boot = belt + 0.02 if shape == "saloon" else belt + 0.05
    body = [(-half + 0.1, 0.26), (half - 0.2, 0.22), (half, 0.45), (half - 0.12, 0.72),
            (0.26 * long, belt), (-half + 0.12, boot), (-half, 0.6)]  # fmt: skip
    bodies.extrusion(place, body, wide, paint)
    nose = 0.36 if shape == "van" else 0.26
    foot = -half + 0.1 if shape != "saloon" else -0.42 * long
    cabin = [(foot, belt - 0.05), (nose * long, belt - 0.05), (0.09 * long, roof - 0.05),
             (0.02 * long, roof), (rear + 0.25, roof), (rear, roof - 0.08)]  # fmt: skip
    bodies.extrusion(place, cabin, wide - 0.04, paint, (1, 5), 0.14, side_glass=shape != "van")
    for x in (-0.3 * long, 0.31 * long):
        for y in (-wide + 0.1, wide - 0.1):
            bodies.tube(place, (x, y - 0.11, 0.31), (x, y + 0.11, 0.31), 0.31, "rubber")
    for x in (-half - 0.01, half + 0.01):
        bodies.box(place, (x, 0, 0.5), (0.015, 0.26, 0.06), "retroreflector")


def truck(bodies: Bodies, place: Place, rng: np.random.Generator) -> None:
    """A lorry: cab, load box on a frame, six wheels."""
    load, wide, tall = rng.uniform(4.0, 7.0), 1.2, rng.uniform(2.7, 3.5)
    front = load / 2
    bodies.box(
        place, (-0.2, 0, 0.95 + (tall - 0.95) / 2), (front, wide, (tall - 0.95) / 2), "metal"
    )
    bodies.box(place, (0.3, 0, 0.75), (front + 0.6, 0.45, 0.15), "dark_paint")
    cab = [
        (front - 0.1, 0.45),
        (front + 1.9, 0.4),
        (front + 1.95, 1.3),
        (front + 1.6, 2.4),
        (front, 2.5),
    ]
    bodies.extrusion(place, cab, 1.1, "paint", (2,))
    for x in (-front + 0.7, -front + 1.7, front + 1.0):
        for y in (-0.95, 0.95):
            bodies.tube(place, (x, y - 0.15, 0.45), (x, y + 0.15, 0.45), 0.45, "rubber")


def bus(bodies: Bodies, place: Place, rng: np.random.Generator) -> None:
    """A city bus with a band of windows."""
    half = rng.uniform(4.5, 6.0)
    outline = [(-half, 0.35), (half, 0.32), (half + 0.05, 1.2), (half - 0.15, 2.9), (-half, 2.95)]
    bodies.extrusion(place, outline, 1.25, "paint", (2,))
    for y in (-1.26, 1.26):
        bodies.box(place, (0, y, 1.85), (half - 0.5, 0.02, 0.5), "glass")
    for x in (-0.55 * half, 0.6 * half):
        for y in (-1.1, 1.1):
            bodies.tube(place, (x, y - 0.17, 0.48), (x, y + 0.17, 0.48), 0.48, "rubber")


def trailer(bodies: Bodies, place: Place, rng: np.random.Generator) -> None:
    """A trailer: load bed with low or high sides on two wheels, and its drawbar."""
    half, wide, tall = rng.uniform(1.2, 2.3), rng.uniform(0.8, 1.1), rng.uniform(0.35, 1.6)
    bodies.box(place, (0, 0, 0.55 + tall / 2), (half, wide, tall / 2), "metal")
    bodies.tube(place, (half, 0, 0.5), (half + 1.3, 0, 0.45), 0.05, "metal")
    for y in (-wide, wide):
        bodies.tube(place, (-0.1, y - 0.1, 0.32), (-0.1, y + 0.1, 0.32), 0.32, "rubber")


def person(
    bodies: Bodies, place: Place, rng: np.random.Generator, seat: float | None = None
) -> None:
    """Someone walking or standing, or sitting with the hips at height `seat` [m] and the hands forward."""
    scale = rng.uniform(0.88, 1.08)
    stride = rng.uniform(0.05, 0.3)
    hip = 0.86 * scale if seat is None else seat
    bend = 0.0 if seat is None else 0.28
    for side in (-1, 1):
        foot = (
            (side * stride, side * 0.11, 0.05) if seat is None else (0.22, side * 0.14, seat - 0.62)
        )
        knee = (
            (side * stride * 0.6 + 0.05, side * 0.11, hip / 2)
            if seat is None
            else (0.36, side * 0.15, seat - 0.1)
        )
        bodies.tube(place, foot, knee, 0.065, "cloth", 0.08)
        bodies.tube(place, knee, (0, side * 0.1, hip), 0.08, "cloth", 0.1)
        hand = (
            (-side * stride * 0.8, side * 0.25, hip)
            if seat is None
            else (0.55, side * 0.24, hip + 0.2)
        )
        bodies.tube(place, hand, (bend * 0.9, side * 0.22, hip + 0.5 * scale), 0.045, "cloth", 0.06)
    bodies.tube(place, (0, 0, hip - 0.05), (bend, 0, hip + 0.56 * scale), 0.17, "cloth", 0.2)
    bodies.blob(place, (bend + 0.04, 0, hip + 0.74 * scale), (0.11, 0.09, 0.13), "cloth")


def bicycle(bodies: Bodies, place: Place, rng: np.random.Generator) -> None:
    """Two spoked wheels, a frame, saddle and handlebar."""
    radius = rng.uniform(0.31, 0.35)
    for x in (-0.52, 0.52):
        bodies.tube(
            place,
            (x, -0.025, radius),
            (x, 0.025, radius),
            radius,
            "rubber",
            None,
            (POROUS, 1, 0.4, 0, 0),
        )
    for start, end in (
        ((-0.52, 0, radius), (-0.15, 0, 0.85)), ((-0.05, 0, 0.3), (-0.17, 0, 0.95)),
        ((-0.05, 0, 0.3), (0.4, 0, 0.85)), ((-0.15, 0, 0.8), (0.4, 0, 0.85)),
        ((0.52, 0, radius), (0.38, 0, 1.02)), ((0.38, -0.28, 1.04), (0.38, 0.28, 1.04)),
    ):  # fmt: skip
        bodies.tube(place, start, end, 0.03, "metal")
    bodies.blob(place, (-0.18, 0, 0.98), (0.14, 0.08, 0.04), "cloth")


def motorcycle(bodies: Bodies, place: Place, rng: np.random.Generator) -> None:
    """Two wheels, engine, tank, seat and handlebar."""
    for x in (-0.68, 0.7):
        bodies.tube(place, (x, -0.07, 0.31), (x, 0.07, 0.31), 0.31, "rubber")
    bodies.box(place, (0.0, 0, 0.45), (0.34, 0.17, 0.2), "metal")
    bodies.blob(place, (0.2, 0, 0.82), (0.36, 0.18, 0.17), "paint")
    bodies.blob(place, (-0.45, 0, 0.78), (0.42, 0.17, 0.1), "cloth")
    bodies.tube(place, (0.7, 0, 0.31), (0.45, 0, 1.0), 0.06, "metal")
    bodies.tube(place, (0.4, -0.36, 1.03), (0.4, 0.36, 1.03), 0.035, "metal")
    bodies.blob(place, (0.6, 0, 0.9), (0.13, 0.16, rng.uniform(0.14, 0.24)), "paint")


def tree(bodies: Bodies, place: Place, rng: np.random.Generator, clear: float) -> None:
    """A trunk (id 71) under a crown of leafy clumps (id 70) that begins `clear` metres above the ground."""
    thick, reach = rng.uniform(0.09, 0.26), rng.uniform(1.3, 3.0)
    tall = clear + rng.uniform(0.4, 1.2)
    lean = rng.normal(0, 0.08, 2)
    bodies.of(71).tube(place, (0, 0, -0.2), (*lean, tall), thick * 1.15, "bark", thick * 0.8)
    for _ in range(2):
        angle = rng.uniform(0, 2 * np.pi)
        tip = (0.7 * reach * np.cos(angle), 0.7 * reach * np.sin(angle), tall + 1.1)
        bodies.tube(place, (*lean, tall - 0.1), tip, thick * 0.5, "bark", thick * 0.25)
    bodies.of(70)
    for _ in range(int(rng.integers(7, 12))):
        angle, out = rng.uniform(0, 2 * np.pi), reach * np.sqrt(rng.uniform(0, 0.8))
        size = rng.uniform(0.5, 1.0, 3) * reach * 0.5
        height = clear + size[2] + rng.uniform(0, 1.4)
        bodies.blob(
            place,
            (out * np.cos(angle), out * np.sin(angle), height),
            size,
            "foliage",
            rng.uniform(1.5, 8.0),
        )


def bush(bodies: Bodies, place: Place, rng: np.random.Generator, reach: float) -> None:
    """Leafy clumps (id 70) up to about 1.5 `reach` high."""
    bodies.of(70)
    for _ in range(int(rng.integers(4, 8))):
        x, y = rng.uniform(-0.7, 0.7, 2) * reach
        size = rng.uniform(0.4, 0.75, 3) * reach
        bodies.blob(
            place,
            (x, y, rng.uniform(0.3, 1.1) * size[2] + 0.1),
            size,
            "foliage",
            rng.uniform(4.0, 16.0),
        )


def hedge(bodies: Bodies, place: Place, rng: np.random.Generator, length: float) -> None:
    """A trimmed or overgrown hedge (id 70) along local x."""
    tall, thick = rng.uniform(0.8, 2.2), rng.uniform(0.3, 0.6)
    bodies.of(70).box(place, (0, 0, tall / 2), (length / 2, thick, tall / 2), "foliage", 16.0)
    for _ in range(int(length * 2.2)):
        x, y = rng.uniform(-0.5, 0.5) * length, rng.normal(0, 0.6) * thick
        size = rng.uniform(0.2, 0.55, 3)
        bodies.blob(place, (x, y, rng.uniform(0.2, 1.0) * tall), size, "foliage", 10.0)


def fence(bodies: Bodies, place: Place, rng: np.random.Generator, length: float) -> None:
    """A picket fence, wire mesh, boards or a low wall (all id 51) along local x."""
    form = rng.choice(["picket", "mesh", "boards", "wall"], p=[0.4, 0.2, 0.15, 0.25])
    half = length / 2
    bodies.of(51)
    if form == "wall":
        tall = rng.uniform(0.4, 1.4)
        bodies.box(place, (0, 0, tall / 2), (half, 0.12, tall / 2), "masonry")
        return
    tall = rng.uniform(0.9, 1.8)
    patterns = {
        "picket": (PICKET, rng.uniform(0.14, 0.24), rng.uniform(0.5, 0.7), 0, 0),
        "mesh": (POROUS, 1, 0.38, 0, 0),
        "boards": (PICKET, 0.3, 0.93, 0, 0),
    }
    stuff = "metal" if form == "mesh" else "wood"
    bodies.box(place, (0, 0, tall / 2), (half, 0.025, tall / 2), stuff, 0.0, patterns[form])
    for x in np.arange(-half, half + 0.1, max(2.0, length / 8)):
        bodies.tube(place, (x, 0, -0.1), (x, 0, tall + 0.08), 0.05, stuff)


def guard_rail(bodies: Bodies, place: Place, length: float) -> None:
    """A crash barrier (id 51) along local x."""
    bodies.of(51).box(place, (0, 0, 0.6), (length / 2, 0.04, 0.15), "metal")
    for x in np.arange(-length / 2 + 0.5, length / 2, 2.0):
        bodies.box(place, (x, 0.08, 0.3), (0.04, 0.06, 0.35), "metal")


def building(
    bodies: Bodies, place: Place, rng: np.random.Generator, half_length: float, half_depth: float
) -> None:
    """A house (id 50) with windows and doors let into its walls, sometimes a bay, steps, a porch."""
    tall = rng.uniform(5.5, 12.0)
    pattern = (
        FACADE,
        rng.uniform(2.0, 3.4),
        rng.uniform(0.38, 0.6),
        rng.uniform(0.1, 0.28),
        float(rng.integers(1 << 30)),
    )
    stuff = str(rng.choice(["wall", "masonry"]))
    bodies.of(50).box(
        place,
        (0, 0, tall / 2 - 0.5),
        (half_length, half_depth, tall / 2 + 0.5),
        stuff,
        0.0,
        pattern,
    )
    bodies.box(place, (0, 0, 0.05), (half_length + 0.06, half_depth + 0.06, 0.4), "masonry")
    for side in (-1, 1):
        face = side * half_depth
        if rng.random() < 0.5:
            x = rng.uniform(-0.6, 0.6) * half_length
            bodies.box(
                place, (x, face, 1.9), (rng.uniform(0.9, 1.6), rng.uniform(0.4, 0.9), 1.9), stuff
            )
        if rng.random() < 0.5:
            x = rng.uniform(-0.7, 0.7) * half_length
            for stair in range(3):
                bodies.box(
                    place, (x, face, 0.15 * stair + 0.07), (0.7, 1.1 - 0.3 * stair, 0.08), "masonry"
                )
        if rng.random() < 0.3:
            x = rng.uniform(-0.5, 0.5) * half_length
            bodies.box(place, (x, face + side * 0.8, 2.65), (1.2, 0.8, 0.08), stuff)
            for post in (-1.1, 1.1):
                bodies.tube(
                    place,
                    (x + post, face + side * 1.5, 0),
                    (x + post, face + side * 1.5, 2.6),
                    0.09,
                    stuff,
                )
        for x in (-half_length + 0.25, half_length - 0.25):
            bodies.tube(
                place, (x, face + side * 0.08, 0), (x, face + side * 0.08, tall), 0.05, "metal"
            )


def lamp_post(bodies: Bodies, place: Place, rng: np.random.Generator) -> None:
    """A lamp post (id 80)."""
    thick = rng.uniform(0.06, 0.11)
    bodies.of(80).tube(place, (0, 0, -0.1), (0, 0, rng.uniform(5, 8)), thick, "metal", thick * 0.7)
    bodies.tube(place, (0, 0, 0), (0, 0, 0.9), thick * 1.5, "metal")


def sign(bodies: Bodies, place: Place, rng: np.random.Generator) -> None:
    """A traffic sign (id 81) that faces along -x, on its post (id 80)."""
    centre = rng.uniform(1.75, 2.35)
    bodies.of(80).tube(place, (0, 0, -0.1), (0, 0, centre + 0.5), 0.04, "metal")
    bodies.of(81)
    if rng.random() < 0.5:
        bodies.tube(place, (-0.05, 0, centre), (-0.07, 0, centre), 0.35, "retroreflector")
    else:
        half = (0.015, rng.uniform(0.25, 0.6), rng.uniform(0.2, 0.4))
        bodies.box(place, (-0.06, 0, centre), half, "retroreflector")
    if rng.random() < 0.5:
        bodies.box(place, (-0.06, 0, centre - 0.6), (0.015, 0.3, 0.12), "retroreflector")


def bin_or_box(bodies: Bodies, place: Place, rng: np.random.Generator) -> None:
    """A dustbin, switch box or bench (id 99, other object)."""
    form = rng.integers(3)
    bodies.of(99)
    if form == 0:
        bodies.tube(place, (0, 0, 0), (0, 0, 0.95), 0.25, "metal", 0.3)
    elif form == 1:
        bodies.box(place, (0, 0, 0.6), (0.22, 0.5, 0.6), "metal")
    else:
        bodies.box(place, (0, 0, 0.45), (0.22, 0.8, 0.04), "wood")
        bodies.box(place, (-0.2, 0, 0.7), (0.03, 0.8, 0.2), "wood")
        for y in (-0.6, 0.6):
            bodies.box(place, (0, y, 0.2), (0.2, 0.05, 0.22), "masonry")


def shelter(bodies: Bodies, place: Place) -> None:
    """A bus shelter (id 52, other structure): back and side panes, roof, posts."""
    bodies.of(52).box(place, (0, 0, 2.45), (2.0, 0.8, 0.06), "metal")
    bodies.box(place, (0, -0.75, 1.2), (1.9, 0.02, 1.0), "glass")
    bodies.box(place, (-1.9, 0, 1.2), (0.02, 0.7, 1.0), "glass")
    for x in (-1.95, 0.0, 1.95):
        bodies.tube(place, (x, -0.78, 0), (x, -0.78, 2.4), 0.05, "metal")
    bodies.box(place, (0.2, -0.5, 0.45), (1.2, 0.2, 0.05), "wood")
