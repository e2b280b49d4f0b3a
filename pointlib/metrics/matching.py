"""Which detection finds which object: greedy in order of score, by the distance of centres seen from above."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from numba import njit

Floats = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]


def match_centres(
    truth: Floats,
    truth_scene: Integers,
    found: Floats,
    found_scene: Integers,
    scores: Floats,
    distance: float,
) -> tuple[Integers, Integers]:
    """Give each detection the nearest free object of its scene, best score first.

    Args:
        truth: (M, 2) x, y of the objects of one class [m].
        truth_scene: (M,) number of the scene of each, ascending.
        found: (K, 2) x, y of the detections of that class [m].
        found_scene: (K,) number of the scene of each.
        scores: (K,) of the detections.
        distance: Centres must be closer than this [m].

    Returns:
        `order` (K,), the detections by falling score, and `match` (K,), in that order the object that each found,
        or -1. Of equal scores the later detection comes first, and of objects equally near the first is taken, as in
        nuscenes-devkit.
    """
    order = np.lexsort((np.arange(len(scores)), scores))[::-1]
    starts = np.searchsorted(truth_scene, found_scene, side="left")
    ends = np.searchsorted(truth_scene, found_scene, side="right")
    return order, _match(truth, found, order, starts, ends, distance)


@njit(cache=True)
def _match(
    truth: Floats,
    found: Floats,
    order: Integers,
    starts: Integers,
    ends: Integers,
    distance: float,
) -> Integers:
    match = np.full(len(order), -1, np.int64)
    taken = np.zeros(len(truth), np.bool_)
    for rank in range(len(order)):
        detection = order[rank]
        nearest, best = np.inf, -1
        for candidate in range(starts[detection], ends[detection]):
            if taken[candidate]:
                continue
            dx = found[detection, 0] - truth[candidate, 0]
            dy = found[detection, 1] - truth[candidate, 1]
            apart = np.sqrt(dx * dx + dy * dy)
            if apart < nearest:
                nearest, best = apart, candidate
        if nearest < distance:
            taken[best] = True
            match[rank] = best
    return match
