"""The sensor model: its beams, what it measures on a plane, what it loses."""

from __future__ import annotations

import numpy as np
import pytest

from pointlib.data.lidar_sensor import MATERIAL_ID, MATERIALS, LidarSensor, Scan
from pointlib.data.raycast import HeightField
from pointlib.data.raycast_shapes import GLASS_MATERIAL
from pointlib.data.synthetic_bodies import Bodies, Place

SENSOR = LidarSensor(azimuth_steps=900)


def scan(material: str, distance: float = 12.0, seed: int = 1) -> Scan:
    """A scan of a wall ahead, over a plain without returns."""
    far = np.full((3, 3), -1e3, np.float32)
    plain = HeightField(
        (far, far), (far.astype(np.int32), far.astype(np.int32)), np.full((2, 2), -1.0), np.ones(2)
    )
    bodies = Bodies().of(50)
    bodies.box(Place(distance, 0, 0, 0), (1.0, 0, 0), (1.0, 30.0, 30.0), material)
    return SENSOR.scan(plain, np.zeros(300, np.int32), bodies.build(), np.eye(4), seed)


def test_beams_cover_the_field_in_two_blocks() -> None:
    degrees = np.degrees(SENSOR.elevations)
    steps = -np.diff(degrees)
    assert 1.5 < degrees[0] <= 2.5 and -25 < degrees[-1] < -24
    assert (steps > 0).all()
    assert np.median(steps[:31]) == pytest.approx(1 / 3, abs=0.02)
    assert np.median(steps[32:]) == pytest.approx(1 / 2, abs=0.02)
    assert len(LidarSensor(beams=16).elevations) == 16


def test_directions_are_unit_vectors_of_rising_azimuth() -> None:
    directions = SENSOR.directions
    azimuth = np.arctan2(directions[..., 1], directions[..., 0]) % (2 * np.pi)
    assert directions.shape == (64, 900, 3)
    assert np.allclose(np.linalg.norm(directions, axis=-1), 1)
    assert (np.diff(azimuth, axis=1) > 0).all()


def test_a_wall_is_measured_with_centimetres_of_noise() -> None:
    points = scan("wall").points
    error = points[:, 0] - 12.0
    assert points.dtype == np.float32 and len(points) > 5000
    assert abs(error.mean()) < 0.01
    assert 0.008 < error.std() < 0.03


def test_intensity_follows_the_material_and_loss_its_darkness() -> None:
    scans = {name: scan(name) for name in ("wall", "asphalt", "dark_paint", "glass")}
    mean = {name: float(found.points[:, 3].mean()) for name, found in scans.items()}
    count = {name: len(found.points) for name, found in scans.items()}
    assert mean["wall"] > mean["asphalt"] > mean["dark_paint"]
    assert count["wall"] > 1.15 * count["dark_paint"] > 1.15 * count["glass"]
    assert len(scan("wall", 60.0).points) < 0.95 * len(scan("wall", 30.0).points)


def test_equal_seeds_give_equal_scans() -> None:
    assert np.array_equal(scan("wall").points, scan("wall").points)
    assert not np.array_equal(scan("wall").points[:100], scan("wall", seed=2).points[:100])


def test_material_ids_agree_with_the_ray_caster() -> None:
    assert MATERIAL_ID["glass"] == GLASS_MATERIAL
    assert all(0 <= m.loss < 1 and 0 < m.reflectance < 1 for m in MATERIALS.values())


def test_wrong_numbers_are_refused() -> None:
    with pytest.raises(ValueError, match="max_range must be positive"):
        LidarSensor(max_range=0.0)
    with pytest.raises(ValueError, match="noises not negative"):
        LidarSensor(range_noise=-1.0)
