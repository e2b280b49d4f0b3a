"""What nuScenes annotates, as ray-cast bodies with paint and a box: vehicles, riders, walkers, cones and barriers.

Local axes: x along the thing's front, y to its left, z up from the ground; barriers are wide along y, as annotated.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from pointlib.data import synthetic_objects as objects
from pointlib.data.lidar_sensor import MATERIAL_ID
from pointlib.data.raycast import Primitives
from pointlib.data.raycast_shapes import CONVEX, ELLIPSOID, FACADE, FRUSTUM
from pointlib.data.synthetic_bodies import Bodies, Place

BOX_MARGIN = 0.04
"""An annotated box exceeds what it holds by this much on every side but the lowest [m]: range noise stays inside."""

CLEARANCE = 0.05
"""It begins this high above the ground [m], so that the road under a vehicle is not in it."""

_WIDER_BELOW = np.array((-BOX_MARGIN, -BOX_MARGIN, CLEARANCE))

PAINTS = (
    (225, 225, 228), (235, 235, 235), (150, 153, 158), (95, 98, 104), (40, 42, 46), (28, 29, 32),
    (150, 25, 28), (190, 35, 35), (28, 55, 120), (40, 90, 165), (30, 80, 55), (110, 85, 60), (205, 170, 60),
)  # fmt: skip
LORRY_PAINTS = ((225, 225, 230), (200, 60, 40), (45, 95, 160), (60, 120, 80), (220, 190, 90))
BUS_PAINTS = ((215, 45, 45), (245, 190, 40), (60, 160, 90), (60, 110, 200))
SHIRTS = (
    (190, 40, 45), (45, 90, 180), (235, 235, 225), (60, 60, 70), (70, 140, 80), (225, 150, 60), (140, 70, 150),
)  # fmt: skip
TROUSERS = ((40, 45, 70), (50, 50, 52), (95, 80, 60), (70, 75, 85))
SKINS = ((224, 180, 150), (170, 120, 90), (110, 75, 55))
WALLS = (
    (196, 178, 150), (176, 110, 88), (205, 200, 190), (160, 150, 140), (214, 190, 130), (150, 165, 175),
    (185, 140, 110),
)  # fmt: skip

_COLOUR_OF = {
    "asphalt": (90, 90, 93), "concrete": (165, 162, 155), "grass": (95, 125, 60), "gravel": (150, 140, 120),
    "wall": (196, 178, 150), "paint": (200, 200, 200), "glass": (45, 58, 70), "foliage": (62, 98, 42),
    "bark": (92, 72, 54), "metal": (140, 143, 148), "retroreflector": (215, 60, 50), "cloth": (90, 90, 110),
    "rubber": (32, 32, 34), "marking": (225, 225, 220), "dark_paint": (55, 57, 62), "wood": (140, 105, 70),
    "masonry": (150, 140, 130),
}  # fmt: skip
MATERIAL_COLOURS = np.array([_COLOUR_OF[name] for name in MATERIAL_ID], np.float32)
"""(materials, 3) float32 RGB 0..255 of each material where nothing else is said."""


@dataclass(frozen=True)
class Painted:
    """Bodies with a colour each.

    Args:
        bodies: P bodies. colours: (P, 3) float32 RGB 0..255; parts of glass or rubber keep their material's.
    """

    bodies: Primitives
    colours: np.ndarray

    @staticmethod
    def joined(parts: Sequence[Painted]) -> Painted:
        """All bodies of `parts`, in order."""
        bodies = Primitives.joined([part.bodies for part in parts])
        return Painted(bodies, np.concatenate([part.colours for part in parts]))


@dataclass(frozen=True)
class Model:
    """One thing on its own: bodies about the origin, and the box around them.

    Args:
        category: nuScenes category. painted: bodies in the local frame, foot at z = 0.
        centre: (3,) float64 local centre of the box [m]. size: (3,) float64 length, width, height [m].
    """

    category: str
    painted: Painted
    centre: np.ndarray
    size: np.ndarray


Builder = Callable[[Bodies, Place, np.random.Generator], None]


def _rider(vehicle: Builder, seat: float) -> Builder:
    def build(bodies: Bodies, place: Place, rng: np.random.Generator) -> None:
        vehicle(bodies, place, rng)
        objects.person(bodies, place, rng, seat=seat)

    return build


def _shifted(place: Place, y: float) -> Place:
    """The place `y` metres to the left of another."""
    px, py, pz = place.point((0.0, y, 0.0)).tolist()
    return Place(px, py, pz, place.yaw)


def construction_vehicle(bodies: Bodies, place: Place, rng: np.random.Generator) -> None:
    """An excavator: two tracks, a turntable, cab, engine, boom, stick and bucket."""
    half = rng.uniform(1.5, 1.9)
    for y in (-1.0, 1.0):
        track = [(-half, 0.3), (-half + 0.3, 0.0), (half - 0.3, 0.0), (half, 0.3), (half - 0.3, 0.75),
                 (-half + 0.3, 0.75)]  # fmt: skip
        side = _shifted(place, y)
        bodies.extrusion(side, track, 0.3, "rubber")
    bodies.box(place, (-0.1, 0, 1.0), (half * 0.9, 1.15, 0.25), "dark_paint")
    bodies.box(place, (-half * 0.55, 0, 1.7), (half * 0.55, 1.2, 0.55), "paint")
    cab = [(0.1, 1.2), (half * 0.75, 1.2), (half * 0.8, 1.9), (half * 0.55, 2.9), (0.1, 2.95)]
    bodies.extrusion(_shifted(place, 0.55), cab, 0.55, "paint", (1, 2), 0.0, True)
    reach = rng.uniform(2.6, 3.4)
    bodies.tube(place, (0.5, -0.4, 1.5), (0.5 + reach * 0.55, -0.4, 3.5), 0.22, "paint")
    bodies.tube(place, (0.5 + reach * 0.55, -0.4, 3.5), (0.6 + reach, -0.4, 1.2), 0.16, "paint")
    bucket = [(0.3 + reach, 0.35), (0.9 + reach, 0.3), (1.1 + reach, 0.9), (0.5 + reach, 1.2)]
    bodies.extrusion(_shifted(place, -0.4), bucket, 0.45, "metal")


def semitrailer(bodies: Bodies, place: Place, rng: np.random.Generator) -> None:
    """A box trailer on four wheels at its rear."""
    half, tall = rng.uniform(3.4, 5.2), rng.uniform(2.9, 3.6)
    bodies.box(place, (0, 0, 0.95 + (tall - 0.95) / 2), (half, 1.25, (tall - 0.95) / 2), "paint")
    bodies.box(place, (0, 0, 0.8), (half * 0.95, 0.5, 0.15), "dark_paint")
    for x in (-half + 0.8, -half + 1.9):
        for y in (-1.0, 1.0):
            bodies.tube(place, (x, y - 0.16, 0.48), (x, y + 0.16, 0.48), 0.48, "rubber")
    for y in (-0.8, 0.8):
        bodies.tube(place, (half - 1.6, y, 0.0), (half - 1.6, y, 0.9), 0.07, "metal")


def barrier(bodies: Bodies, place: Place, rng: np.random.Generator) -> None:
    """A work-zone barrier: a wide board with stripes over a foot, wide along y."""
    wide = rng.uniform(0.9, 1.15)
    bodies.box(place, (0, 0, 0.14), (0.24, wide, 0.14), "concrete")
    for stripe in range(4):
        y = wide * (-0.75 + 0.5 * stripe)
        stuff = "marking" if stripe % 2 else "retroreflector"
        bodies.box(place, (0, y, 0.62), (0.1, wide / 4, 0.36), stuff)


def traffic_cone(bodies: Bodies, place: Place, rng: np.random.Generator) -> None:
    """A cone with a white band on a square foot."""
    tall = rng.uniform(0.66, 0.78)
    bodies.box(place, (0, 0, 0.03), (0.19, 0.19, 0.03), "rubber")
    bodies.tube(place, (0, 0, 0.05), (0, 0, 0.42 * tall), 0.15, "retroreflector", 0.1)
    bodies.tube(place, (0, 0, 0.42 * tall), (0, 0, 0.7 * tall), 0.1, "marking", 0.07)
    bodies.tube(place, (0, 0, 0.7 * tall), (0, 0, tall), 0.07, "retroreflector", 0.03)


CATALOGUE: dict[str, tuple[str, Builder]] = {
    "car": ("vehicle.car", objects.car),
    "truck": ("vehicle.truck", objects.truck),
    "bus": ("vehicle.bus.rigid", objects.bus),
    "trailer": ("vehicle.trailer", semitrailer),
    "construction_vehicle": ("vehicle.construction", construction_vehicle),
    "motorcyclist": ("vehicle.motorcycle", _rider(objects.motorcycle, 0.82)),
    "bicyclist": ("vehicle.bicycle", _rider(objects.bicycle, 0.95)),
    "motorcycle": ("vehicle.motorcycle", objects.motorcycle),
    "bicycle": ("vehicle.bicycle", objects.bicycle),
    "pedestrian": ("human.pedestrian.adult", objects.person),
    "worker": ("human.pedestrian.construction_worker", objects.person),
    "barrier": ("movable_object.barrier", barrier),
    "traffic_cone": ("movable_object.trafficcone", traffic_cone),
}
"""Category and builder of each thing."""


def build_model(what: str, instance: int, rng: np.random.Generator) -> Model:
    """One thing of `CATALOGUE` about the origin; its bodies carry `instance`, and a label of no meaning."""
    category, build = CATALOGUE[what]
    bodies = Bodies(0, instance)
    build(bodies, Place(0.0, 0.0, 0.0, 0.0), rng)
    built = bodies.build()
    low, high = extents(built, np.arange(len(built)))
    low, high = low + _WIDER_BELOW, high + BOX_MARGIN
    colours = thing_colours(built, category, rng)
    return Model(category, Painted(built, colours), (low + high) / 2, high - low)


def extents(bodies: Primitives, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Lowest and highest corner (3,) of some bodies' bounds, along the axes of their frame."""
    low, high = np.full(3, np.inf), np.full(3, -np.inf)
    for row in rows:
        centre, axes, size = bodies.centre[row], bodies.axes[row], bodies.size[row]
        if bodies.kind[row] == FRUSTUM:
            across = np.sqrt(np.maximum(1.0 - axes[2] ** 2, 0.0))
            for end, radius in ((-1.0, size[0]), (1.0, size[1])):
                tip = centre + end * size[2] * axes[2]
                low, high = (
                    np.minimum(low, tip - radius * across),
                    np.maximum(high, tip + radius * across),
                )
            continue
        half = np.abs(axes).T @ size
        if bodies.kind[row] == ELLIPSOID:
            half = np.sqrt((axes**2).T @ size**2)
        low, high = np.minimum(low, centre - half), np.maximum(high, centre + half)
    return low, high


def oriented_box(bodies: Primitives, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray, float]:
    """Centre (3,), length, width, height (3,) and yaw of the upright box around the bodies of one placed thing."""
    upright = next(row for row in rows if bodies.kind[row] in (CONVEX, ELLIPSOID))
    yaw = float(np.arctan2(bodies.axes[upright, 0, 1], bodies.axes[upright, 0, 0]))
    cos, sin = np.cos(yaw), np.sin(yaw)
    turn = np.array([[cos, sin, 0.0], [-sin, cos, 0.0], [0.0, 0.0, 1.0]])
    low, high = extents(bodies.transformed(turn, np.zeros(3)), rows)
    low, high = low + _WIDER_BELOW, high + BOX_MARGIN
    return turn.T @ ((low + high) / 2), high - low, yaw


def _chosen(palette: Sequence[Sequence[int]], rng: np.random.Generator) -> np.ndarray:
    colour = np.array(palette[int(rng.integers(len(palette)))], np.float32)
    return np.clip(colour * rng.uniform(0.85, 1.1), 0, 255)


def thing_colours(bodies: Primitives, category: str, rng: np.random.Generator) -> np.ndarray:
    """(P, 3) float32 RGB of one annotated thing's bodies."""
    colours = MATERIAL_COLOURS[bodies.material].copy()
    main = _chosen(PAINTS, rng)
    second = _chosen(LORRY_PAINTS, rng)
    if category.startswith("vehicle.bus"):
        main = _chosen(BUS_PAINTS, rng)
    elif category == "vehicle.construction":
        main = np.array((236, 168, 30), np.float32)
    elif category == "vehicle.trailer":
        main = _chosen(LORRY_PAINTS, rng)
    elif category in ("vehicle.bicycle", "vehicle.motorcycle"):
        second = _chosen(PAINTS, rng)
    for name, colour in (("paint", main), ("dark_paint", main * 0.45 + 10), ("metal", second)):
        colours[bodies.material == MATERIAL_ID[name]] = colour
    if category == "vehicle.car":
        colours[bodies.material == MATERIAL_ID["dark_paint"]] = main
        _paint_plates(bodies, colours)
    if category == "movable_object.trafficcone":
        colours[bodies.material == MATERIAL_ID["retroreflector"]] = (240, 100, 25)
    elif category == "movable_object.barrier":
        colours[bodies.material == MATERIAL_ID["retroreflector"]] = (205, 45, 40)
    cloth = bodies.material == MATERIAL_ID["cloth"]
    if cloth.any() and category.startswith(("human", "vehicle.bicycle", "vehicle.motorcycle")):
        shirt, trousers, skin = _chosen(SHIRTS, rng), _chosen(TROUSERS, rng), _chosen(SKINS, rng)
        if category.endswith("worker"):
            shirt = np.array((250, 140, 20), np.float32)
        height = bodies.centre[:, 2] - bodies.centre[cloth, 2].min()
        top = height[cloth].max()
        colours[cloth] = np.where((height[cloth] < 0.45 * top)[:, None], trousers, shirt)
        colours[cloth & (bodies.kind == ELLIPSOID) & (height > 0.9 * top)] = skin
    return colours


def _paint_plates(bodies: Primitives, colours: np.ndarray) -> None:
    """White in front and red behind, so that a picture shows which way a car looks."""
    plates = np.flatnonzero(bodies.material == MATERIAL_ID["retroreflector"])
    ahead = ((bodies.centre[plates] - bodies.centre.mean(axis=0)) * bodies.axes[plates, 0]).sum(
        axis=1
    )
    colours[plates[ahead > 0]] = (240, 240, 225)
    colours[plates[ahead <= 0]] = (205, 35, 30)


def stuff_colours(bodies: Primitives, rng: np.random.Generator) -> np.ndarray:
    """(P, 3) float32 RGB of buildings, plants and furniture; what follows a building's wall is painted like it."""
    colours = MATERIAL_COLOURS[bodies.material].copy()
    wall = _chosen(WALLS, rng)
    foliage, wallish = MATERIAL_ID["foliage"], (MATERIAL_ID["wall"], MATERIAL_ID["masonry"])
    green = colours[0] * 0 + np.array(_COLOUR_OF["foliage"], np.float32)
    for row in range(len(bodies)):
        if bodies.pattern[row, 0] == FACADE:
            wall = _chosen(WALLS, rng)
        if bodies.material[row] == foliage:
            if rng.random() < 0.2:
                green = np.array(_COLOUR_OF["foliage"]) * rng.uniform(0.7, 1.35, 3)
            colours[row] = green * rng.uniform(0.85, 1.15)
        elif bodies.material[row] in wallish:
            colours[row] = wall * (0.8 if bodies.size[row, 2] < 1.0 else 1.0)
    return np.clip(colours, 0, 255).astype(np.float32)
