"""Plans a synthetic street by seed: its course, its side roads, what kind of ground and building each lot has."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from pointlib.data.synthetic_ground import (
    LEAD,
    LOT,
    OTHER_GROUND,
    PARKING,
    SIDEWALK,
    STRIPS,
    TERRAIN,
    Street,
    centre_line,
    relief,
)

KINDS = ("house", "facade", "garden", "car_park", "plaza", "verge", "crossing")
STYLES: dict[str, tuple[float, ...]] = {
    # Chances of every kind but the last, in the order of KINDS.
    "suburb": (0.52, 0.06, 0.25, 0.05, 0.03, 0.09),
    "town": (0.30, 0.30, 0.20, 0.08, 0.07, 0.05),
    "village": (0.42, 0.06, 0.30, 0.05, 0.04, 0.13),
    "park": (0.20, 0.04, 0.44, 0.06, 0.06, 0.20),
}
EXTRAS = (
    "bicycle", "sign", "person", "motorcycle", "bin", "persons", "trailer",
    "bicycle", "sign", "truck", "persons", "motorcycle", "shelter",
)  # fmt: skip


@dataclass(frozen=True)
class Plan:
    """What stands where along a street: kind and parking lane of each lot side, and where private ground begins.

    Args:
        kinds: (lots, 2) int index into KINDS. parked: (lots, 2) bool. front: (lots, 2) float64 [m] from the line.
    """

    kinds: np.ndarray
    parked: np.ndarray
    front: np.ndarray


def plan_street(length: float, style: str, seed: tuple[int, ...]) -> tuple[Street, Plan]:
    """Draw the street's line, its side roads, the kind of each lot and the strips of ground that follow from it.

    A longer street of the same seed begins with the shorter one.
    """
    rng = np.random.default_rng([*seed, 1])
    line = centre_line(length, rng)
    half_width, waves, grain = float(rng.uniform(3.6, 5.4)), relief(rng), int(rng.integers(1 << 40))
    walk, green = rng.uniform(2.0, 4.2, 2), rng.uniform(0, 1, 2) < 0.3
    lots = int(np.ceil((length + 2 * LEAD) / LOT))
    kinds, parked = np.zeros((lots, 2), np.int64), np.zeros((lots, 2), np.bool_)
    crossings = []
    next_crossing = int(rng.integers(4, 9))
    for lot in range(lots):
        if lot == next_crossing:
            kinds[lot] = KINDS.index("crossing")
            crossings.append(
                [(lot + 0.5) * LOT - LEAD, rng.uniform(2.8, 4.2), rng.uniform(1.4, 2.2)]
            )
            next_crossing += int(rng.integers(5, 11))
            continue
        for side in (0, 1):
            again = lot > 0 and rng.random() < 0.35 and kinds[lot - 1, side] < len(KINDS) - 1
            fresh = rng.choice(len(KINDS) - 1, p=STYLES[style])
            kinds[lot, side] = kinds[lot - 1, side] if again else fresh
            lane_again = lot > 0 and rng.random() < 0.5
            parked[lot, side] = parked[lot - 1, side] if lane_again else rng.random() < 0.22
            if extra_of(lot, side) in ("truck", "motorcycle", "trailer"):
                parked[lot, side] = True
    shape = (lots, 2, STRIPS)
    edges, labels, heights = np.zeros(shape), np.zeros(shape, np.int32), np.zeros(shape)
    front = np.zeros((lots, 2))
    for lot in range(lots):
        for side in (0, 1):
            strips, front[lot, side] = _strips(
                KINDS[kinds[lot, side]],
                half_width,
                bool(parked[lot, side]),
                walk[side],
                bool(green[side]),
            )
            strips += [(1e9, TERRAIN, 0.14)] * (STRIPS - len(strips))
            edges[lot, side], labels[lot, side], heights[lot, side] = zip(*strips, strict=True)
    street = Street(
        line, half_width, edges, labels, heights, np.array(crossings).reshape(-1, 3), waves,
        grain,
    )  # fmt: skip
    return street, Plan(kinds, parked, front)


def _strips(
    kind: str, edge: float, parked: bool, walk: float, green: bool
) -> tuple[list[tuple[float, int, float]], float]:
    """Strips (outer edge, id, height) beside a carriageway that ends at `edge`, and where the lot proper begins."""
    strips: list[tuple[float, int, float]] = []
    if parked:
        edge += 2.3
        strips.append((edge, PARKING, 0.0))
    if kind == "verge":
        return [*strips, (edge + 1.2, TERRAIN, 0.04)], edge + 1.2
    if green:
        edge += 1.5
        strips.append((edge, TERRAIN, 0.1))
    edge += walk
    strips.append((edge, SIDEWALK, 0.12))
    if kind == "facade":
        strips.append((edge + 3.0, SIDEWALK, 0.13))
    elif kind == "car_park":
        strips.append((edge + 17.0, PARKING, 0.06))
    elif kind == "plaza":
        strips.append((edge + 12.0, OTHER_GROUND, 0.13))
    elif kind == "house":
        strips.append((edge + 1.0, OTHER_GROUND, 0.13))
    return strips, edge


def extra_of(lot: int, side: int) -> str:
    """The rarer thing a lot side shows, so that every class recurs along any street."""
    return EXTRAS[(lot * 2 + side) % len(EXTRAS)]
