"""Which scenes a synthetic nuScenes dataset has, and where on which map each of them lies."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from pointlib.data.synthetic_nuscenes_street import lay_street

MINI_TRAIN = (
    "scene-0061", "scene-0553", "scene-0655", "scene-0757", "scene-0796", "scene-1077", "scene-1094", "scene-1100",
)  # fmt: skip
MINI_VAL = ("scene-0103", "scene-0916")
"""The devkit's splits of v1.0-mini."""

MAP_MASKS = {
    "boston-seaport": "36092f0b03a857c6a3403e25b4b7aab3",
    "singapore-onenorth": "53992ee3023e5494b90c316c183be829",
    "singapore-hollandvillage": "37819e65e09e5547b8a3ceaefba56bb2",
    "singapore-queenstown": "93406b464a165eaba6d9de76ca09f5da",
}
"""Locations and the file name, without ending, the devkit expects of their masks."""

MARGIN = 95.0
"""Free ground around every street [m]."""

ROW_WIDTH = 1500.0
"""A map's row of streets ends here [m]."""


class ScenePlace(NamedTuple):
    """One scene on its map.

    Args:
        name: such as scene-0061. location: name of the map. origin: lowest x, y of its street [m].
        seed: of everything in it.
    """

    name: str
    location: str
    origin: tuple[float, float]
    seed: tuple[int, int]


def scene_names(version: str, scenes: int | Sequence[str]) -> tuple[str, ...]:
    """Names of the scenes of a dataset, from the devkit's splits, three training scenes to each for validation.

    Args:
        version: v1.0-mini (8 training and 2 validation scenes) or v1.0-trainval.
        scenes: how many; 1 is a training scene. Or their names.

    Raises:
        ValueError: an unknown version, more scenes than the splits have, or a name that is in none of them.
        ImportError: nuscenes-devkit is missing, which knows v1.0-trainval's splits.
    """
    train, validation = _splits(version)
    if not isinstance(scenes, int):
        strange = [name for name in scenes if name not in (*train, *validation)]
        if strange or not scenes or len(set(scenes)) < len(scenes):
            raise ValueError(
                f"generate_nuscenes: scenes must be different names of {version}'s splits, such as {train[0]} (train) "
                f"and {validation[0]} (validation), got {strange or list(scenes)}"
            )
        return tuple(scenes)
    held_out = min(max(round(scenes / 4), int(scenes > 1)), len(validation))
    if not 0 < scenes <= len(train) + held_out:
        raise ValueError(
            f"generate_nuscenes: scenes must be 1..{len(train) + len(validation)} for {version}, got {scenes}"
        )
    return (*train[: scenes - held_out], *validation[:held_out])


def _splits(version: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    if version == "v1.0-mini":
        return MINI_TRAIN, MINI_VAL
    if version != "v1.0-trainval":
        raise ValueError(
            f"generate_nuscenes: version must be v1.0-mini or v1.0-trainval, got {version!r}"
        )
    try:
        splits = importlib.import_module("nuscenes.utils.splits")
    except ImportError as error:
        raise ImportError(
            "generate_nuscenes: v1.0-trainval's splits come with nuscenes-devkit: pip install 'pointlib[nuscenes]'"
        ) from error
    return tuple(sorted(splits.train)), tuple(sorted(splits.val))


def lay_out(
    names: Sequence[str], lengths: Sequence[float], seed: int
) -> tuple[list[ScenePlace], dict[str, tuple[float, float]]]:
    """Deal scenes to maps in turn and put their streets side by side.

    Args:
        names: of the scenes. lengths: of their drives [m]. seed: of the dataset.

    Returns:
        The places in the order of `names`, and the width and height of each map [m].
    """
    locations = list(MAP_MASKS)
    pens = {location: np.array([MARGIN, MARGIN, 0.0]) for location in locations}
    sizes: dict[str, tuple[float, float]] = {}
    places = []
    for number, (name, length) in enumerate(zip(names, lengths, strict=True)):
        location = locations[number % len(locations)]
        key = scene_seed(seed, name)
        line = lay_street(length, key, (0.0, 0.0)).street.line[:, :2]
        width, height = line.max(axis=0)
        pen = pens[location]
        if pen[0] + width + MARGIN > ROW_WIDTH and pen[0] > MARGIN:
            pen[:] = (MARGIN, pen[1] + pen[2] + 2 * MARGIN, 0.0)
        places.append(ScenePlace(name, location, (float(pen[0]), float(pen[1])), key))
        right, top = pen[0] + width + MARGIN, pen[1] + max(height, pen[2]) + MARGIN
        before = sizes.get(location, (0.0, 0.0))
        sizes[location] = (max(before[0], np.ceil(right)), max(before[1], np.ceil(top)))
        pen[0] += width + 2 * MARGIN
        pen[2] = max(pen[2], height)
    return places, {name: (float(w), float(h)) for name, (w, h) in sizes.items()}


def scene_seed(seed: int, name: str) -> tuple[int, int]:
    """Seed of the scene of this name."""
    return seed, int(name.split("-")[1])
