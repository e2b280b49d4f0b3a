"""The camera images of a synthetic nuScenes scene, and how much of each annotated thing they show."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from pointlib.data.camera_render import GROUND, Camera, PixelHits, cast_image, pixels_alone
from pointlib.data.camera_shading import Weather, shade
from pointlib.data.raycast import HeightField
from pointlib.data.synthetic_ground import (
    MARKING,
    OTHER_GROUND,
    PARKING,
    ROAD,
    SIDEWALK,
    TERRAIN,
)
from pointlib.data.synthetic_nuscenes_boxes import ThingBox
from pointlib.data.synthetic_nuscenes_objects import Painted
from pointlib.data.synthetic_nuscenes_street import YELLOW_MARKING, NuScenesStreet

CAMERA_RANGE = 92.0
"""What is farther is haze [m]."""

_GROUND_COLOURS = np.full((300, 3), 90.0, np.float32)
for _id, _colour in (
    (ROAD, (92, 92, 96)),
    (PARKING, (122, 112, 128)),
    (SIDEWALK, (178, 173, 164)),
    (OTHER_GROUND, (160, 136, 108)),
    (MARKING, (232, 232, 228)),
    (YELLOW_MARKING, (228, 184, 50)),
    (TERRAIN, (96, 128, 60)),
):
    _GROUND_COLOURS[_id] = _colour


class Picture(NamedTuple):
    """One image.

    Args:
        image: (H, W, 3) uint8 RGB. visible: pixels that show each thing, by its place in the list of instances.
        alone: pixels it would have if nothing stood before it.
    """

    image: np.ndarray
    visible: np.ndarray
    alone: np.ndarray


def take_picture(
    camera: Camera,
    painted: Painted,
    ground: HeightField,
    street: NuScenesStreet,
    boxes: Sequence[ThingBox],
    instances: np.ndarray,
    weather: Weather,
    seed: int,
) -> Picture:
    """What a camera sees of everything `painted` and of the street.

    Args:
        camera: where it is at that time. painted: bodies and colours at that time. ground: around it.
        street: whose surfaces lie on the ground. boxes: things that throw shadows, at that time.
        instances: (K,) rising numbers of the things to count pixels of. weather: the light. seed: of leaves and noise.
    """
    hits = cast_image(camera, painted.bodies, ground, CAMERA_RANGE, seed)
    colours = _ground_colours(camera, hits, street)
    shadows = np.array([[*box.centre, *box.size, box.yaw] for box in boxes]).reshape(-1, 7)
    image = shade(
        camera, hits, painted.bodies, painted.colours, ground, colours, shadows, weather, seed
    )
    pixels = np.bincount(
        instance_image(hits, painted).ravel(), minlength=instances.max(initial=0) + 1
    )
    visible = pixels[instances]
    alone = pixels_alone(camera, painted.bodies, instances, CAMERA_RANGE, seed)
    return Picture(image, visible, alone)


def instance_image(hits: PixelHits, painted: Painted) -> np.ndarray:
    """(H, W) int32 number of the thing each pixel shows, 0 for none."""
    return np.where(hits.body >= 0, painted.bodies.instance[np.maximum(hits.body, 0)], 0)


def _ground_colours(camera: Camera, hits: PixelHits, street: NuScenesStreet) -> np.ndarray:
    """(H, W, 3) float32 RGB of the surfaces in the pixels that show ground."""
    on_ground = hits.body == GROUND
    rays = camera.directions[on_ground] @ camera.camera2world[:3, :3].T
    points = camera.camera2world[:3, 3] + hits.depth[on_ground][:, None] * rays
    colours = np.zeros((camera.height, camera.width, 3), np.float32)
    surfaces = street.surface_of(
        np.ascontiguousarray(points[:, 0]), np.ascontiguousarray(points[:, 1])
    )
    colours[on_ground] = _GROUND_COLOURS[surfaces]
    return colours
