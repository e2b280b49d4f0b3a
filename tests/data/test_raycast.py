"""Ray casting against closed forms: plane, box, ball, cone, foliage, occlusion."""

from __future__ import annotations

import numpy as np
import pytest

from pointlib.data.lidar_sensor import LidarSensor
from pointlib.data.raycast import HeightField, Hits, Primitives, cast
from pointlib.data.raycast_shapes import FACADE, FAR, PICKET, uniform
from pointlib.data.synthetic_bodies import Bodies, Place

SENSOR = LidarSensor(azimuth_steps=720)
HERE = Place(0.0, 0.0, 0.0, 0.0)
HEIGHT = 1.73


def flat(level: float = 0.0) -> HeightField:
    heights = (np.full((200, 200), level, np.float32), np.full((400, 400), level, np.float32))
    labels = (np.full((200, 200), 40, np.int32), np.full((400, 400), 40, np.int32))
    return HeightField(
        heights, labels, np.array([[-10.0, -10.0], [-80.0, -80.0]]), np.array([0.1, 0.4])
    )


def shoot(bodies: Primitives, ground: HeightField | None = None, seed: int = 1) -> Hits:
    pose = np.eye(4)
    pose[2, 3] = HEIGHT
    return cast(
        SENSOR.directions, SENSOR.elevations, SENSOR.offsets, pose, ground or flat(-100.0),
        np.zeros(300, np.int32), bodies, 80.0, seed,
    )  # fmt: skip


def origins() -> np.ndarray:
    return np.array([0.0, 0.0, HEIGHT]) + SENSOR.offsets[:, None, None] * np.array([0.0, 0.0, 1.0])


def test_flat_ground_is_at_its_distance() -> None:
    hits = shoot(Bodies().build(), flat())
    expected = (HEIGHT + SENSOR.offsets[:, None]) / -SENSOR.directions[..., 2]
    below = (expected > 0) & (expected < 70)
    assert np.abs(hits.depth - expected)[below].max() < 1e-3
    assert (hits.depth[SENSOR.elevations > 0] == FAR).all()
    assert (hits.label[below] == 40).all()
    assert np.allclose(hits.cosine[below], -SENSOR.directions[..., 2][below])


@pytest.mark.parametrize("yaw", [0.0, 0.7])
def test_box_is_met_on_its_surface_and_nowhere_else(yaw: float) -> None:
    place, bodies = Place(12.0, 3.0, 0.0, yaw), Bodies().of(10, 7)
    bodies.box(place, (0, 0, 1.0), (2.0, 0.9, 1.0), "paint")
    hits = shoot(bodies.build())
    met = hits.depth < FAR
    points = (origins() + hits.depth[..., None] * SENSOR.directions)[met]
    local = np.abs((points - (12.0, 3.0, 1.0)) @ place.axes().T) / (2.0, 0.9, 1.0)
    assert met.sum() > 300
    assert np.allclose(local.max(axis=1), 1.0, atol=1e-6)
    assert (hits.label[met] == 10).all() and (hits.instance[met] == 7).all()
    assert (hits.instance[~met] == 0).all()
    # Every ray that passes within the box's core meets it.
    t = np.arange(5.0, 20.0, 0.05)
    path = origins()[::4, :, None] + t[:, None] * SENSOR.directions[::4, ::3, None]
    inside = (
        (np.abs((path - (12.0, 3.0, 1.0)) @ place.axes().T) < (1.99, 0.89, 0.99)).all(-1).any(-1)
    )
    assert inside.sum() > 20 and met[::4, ::3][inside].all()


def test_ball_and_cone_are_met_on_their_surfaces() -> None:
    bodies = Bodies().of(1)
    bodies.blob(Place(-8.0, 0.0, 1.0, 0.0), (0, 0, 0), (1.0, 1.0, 1.0), "cloth")
    bodies.of(2).tube(HERE, (0, 9, 0), (0, 9, 2.0), 0.8, "metal", 0.2)
    hits = shoot(bodies.build())
    points = origins() + hits.depth[..., None] * SENSOR.directions
    ball, cone = points[hits.label == 1], points[hits.label == 2]
    assert len(ball) > 200 and len(cone) > 200
    assert np.allclose(np.linalg.norm(ball - (-8.0, 0.0, 1.0), axis=1), 1.0)
    radius = np.hypot(cone[:, 0], cone[:, 1] - 9.0)
    side = np.isclose(radius, 0.8 - 0.3 * cone[:, 2], atol=1e-6)
    top = np.isclose(cone[:, 2], 2.0, atol=1e-6) & (radius <= 0.2)
    assert (side | top).all()


def test_what_stands_behind_a_wall_is_not_seen() -> None:
    bodies = Bodies().of(50)
    bodies.box(Place(10.0, 0.0, 0.0, 0.0), (0, 0, 2.0), (0.1, 8.0, 4.0), "wall")
    bodies.of(30).box(Place(15.0, 0.0, 0.0, 0.0), (0, 0, 1.0), (0.3, 0.3, 1.0), "cloth")
    hits = shoot(bodies.build(), flat())
    assert not (hits.label == 30).any() and (hits.label == 50).any()
    ahead = (np.abs(np.arctan2(SENSOR.directions[..., 1], SENSOR.directions[..., 0])) < 0.5) & (
        hits.depth < FAR
    )
    assert (hits.depth * SENSOR.directions[..., 0])[ahead].max() < 10.1


def test_foliage_is_entered_to_its_mean_free_path() -> None:
    bodies = Bodies().of(70)
    bodies.box(Place(30.0, 0.0, 0.0, 0.0), (0, 0, 0), (20.0, 50.0, 50.0), "foliage", density=2.0)
    hits = shoot(bodies.build())
    ahead = np.abs(SENSOR.directions[..., 1]) < 0.3
    depth = hits.depth[ahead] - 10.0 / SENSOR.directions[..., 0][ahead]
    depth = depth[SENSOR.directions[..., 0][ahead] > 0]
    assert depth.mean() == pytest.approx(0.5, rel=0.05)
    assert not np.array_equal(shoot(bodies.build(), seed=2).depth, hits.depth)
    assert np.array_equal(shoot(bodies.build()).depth, hits.depth)


def test_pickets_let_rays_through_and_facades_have_depth() -> None:
    bodies = Bodies().of(51)
    bodies.box(
        Place(6.0, 0, 0, np.pi / 2), (0, 0, 1), (4, 0.03, 1), "wood", 0.0, (PICKET, 0.2, 0.5, 0, 0)
    )
    bodies.of(50).box(
        Place(20.0, 0, 0, np.pi / 2), (0, 0, 3), (15, 4, 4), "wall", 0.0, (FACADE, 3, 0.5, 0.2, 8)
    )
    hits = shoot(bodies.build())
    x = hits.depth * SENSOR.directions[..., 0]
    wall = x[hits.label == 50]
    assert (hits.label == 51).any() and len(wall) > 500
    assert wall.min() == pytest.approx(16.0, abs=1e-6) and 16.1 < wall.max() < 16.5
    assert set(np.unique(hits.material[hits.label == 50])) >= {4, 6}


def test_joined_bodies_are_met_as_if_added_to_one_list() -> None:
    def fill(bodies: Bodies, number: int) -> Bodies:
        place = Place(8.0 + number, 4.0 * number, 0.0, 0.3 * number)
        bodies.of(number + 1).box(place, (0, 0, 1), (1, 1, 1), "wall")
        bodies.blob(place, (0, 0, 2.2), (0.5, 0.5, 0.5), "cloth")
        return bodies

    one = Bodies()
    for number in range(3):
        fill(one, number)
    joined = Primitives.joined([fill(Bodies(), number).build() for number in range(3)])
    assert len(joined) == len(one.build()) == 6
    assert np.array_equal(shoot(joined).label, shoot(one.build()).label)


def test_hashed_numbers_are_uniform_and_independent() -> None:
    numbers = np.array([[uniform(np.uint64(5), i, j) for i in range(200)] for j in range(50)])
    assert numbers.min() > 0 and numbers.max() < 1
    assert numbers.mean() == pytest.approx(0.5, abs=0.01)
    assert numbers.std() == pytest.approx(12**-0.5, abs=0.01)
    assert abs(np.corrcoef(numbers[0], numbers[1])[0, 1]) < 0.2
