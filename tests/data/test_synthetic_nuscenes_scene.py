"""Scenes of the synthetic nuScenes data set: what cameras and LiDAR see of things, ground and map agrees."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from pointlib.data.camera_render import GROUND, Camera, cast_image
from pointlib.data.camera_shading import draw_weather
from pointlib.data.raycast_shapes import FAR
from pointlib.data.synthetic_ground import LEAD, SIDEWALK
from pointlib.data.synthetic_nuscenes_boxes import in_the_way, meetings
from pointlib.data.synthetic_nuscenes_camera import instance_image, take_picture
from pointlib.data.synthetic_nuscenes_objects import CATALOGUE, CLEARANCE, Painted, build_model
from pointlib.data.synthetic_nuscenes_rig import CAMERAS, MOUNTS, Hdl32
from pointlib.data.synthetic_nuscenes_scene import NuScenesScene
from pointlib.data.synthetic_nuscenes_shapes import StreetShapes
from pointlib.data.synthetic_nuscenes_street import ground_materials
from pointlib.geometry import box_corners, rigid_transform


@pytest.fixture(scope="module")
def scene() -> NuScenesScene:
    return NuScenesScene((0, 61), 2.0)


def camera_of(scene: NuScenesScene, channel: str, time: float, size: tuple[int, int]) -> Camera:
    mount = MOUNTS[channel]
    return Camera(mount.camera_matrix(*size), scene.ego_pose(time) @ mount.sensor2ego, *size)


def test_pixels_of_a_thing_lie_in_its_box_and_have_its_colour(scene: NuScenesScene) -> None:
    size, time = (320, 180), 1.0
    station = scene.drive.station(time)
    painted, boxes = scene.painted(time, station), scene.boxes(time, station)
    ground = scene.street.height_field(*scene.ego_pose(time)[:2, 3])
    instances = np.unique([box.instance for box in boxes])
    weather, checked = draw_weather(np.random.default_rng(0)), 0
    for channel in ("CAM_FRONT", "CAM_BACK"):
        camera = camera_of(scene, channel, time, size)
        plain = take_picture(camera, painted, ground, scene.street, boxes, instances, weather, 3)
        shown = instance_image(cast_image(camera, painted.bodies, ground, 90.0, 3), painted)
        assert (plain.visible <= plain.alone).all()
        for box in boxes:
            rows, columns = np.nonzero(shown == box.instance)
            assert len(rows) == plain.visible[np.searchsorted(instances, box.instance)]
            if len(rows) < 20:
                continue
            # A box ends a little above the ground that wheels and feet stand on.
            row = np.array([[*box.centre, *box.size, box.yaw]])
            row[0, [2, 5]] += (-CLEARANCE, 2 * CLEARANCE)
            corners = box_corners(row)[0] - camera.camera2world[:3, 3]
            corners = corners @ camera.camera2world[:3, :3] @ camera.matrix.T
            if (corners[:, 2] < 0.3).any():
                continue
            outline = corners[:, :2] / corners[:, 2:]
            assert columns.min() >= outline[:, 0].min() and columns.max() <= outline[:, 0].max()
            assert rows.min() >= outline[:, 1].min() and rows.max() <= outline[:, 1].max()
            if checked < 3 and box.category == "vehicle.car":
                own = painted.bodies.instance == box.instance
                colours = np.where(own[:, None], (255, 0, 255), painted.colours)
                other = take_picture(
                    camera, Painted(painted.bodies, colours), ground, scene.street, boxes, instances,
                    weather, 3,
                )  # fmt: skip
                changed = (other.image != plain.image).any(axis=-1)
                assert changed.sum() > 0.3 * len(rows) and (shown[changed] == box.instance).all()
                checked += 1
    assert checked == 3


def test_cameras_and_lidar_see_the_same_surfaces(scene: NuScenesScene) -> None:
    size, time = (320, 180), 1.0
    station = scene.drive.station(time)
    painted, pose = scene.painted(time, station), scene.ego_pose(time)
    ground = scene.street.height_field(*pose[:2, 3])
    lidar2world = pose @ MOUNTS["LIDAR_TOP"].sensor2ego
    sweep = Hdl32(16, 400).sweep(ground, ground_materials(), painted.bodies, lidar2world, 1)
    world = sweep.points[:, :3] @ lidar2world[:3, :3].T + lidar2world[:3, 3]
    agreeing, total = 0, 0
    for channel in CAMERAS:
        camera = camera_of(scene, channel, time, size)
        hits = cast_image(camera, painted.bodies, ground, 90.0, 3)
        local = (world - camera.camera2world[:3, 3]) @ camera.camera2world[:3, :3]
        pixels = local @ camera.matrix.T
        u, v = np.round(pixels[:, :2] / pixels[:, 2:]).T
        on = (local[:, 2] > 1) & (u >= 0) & (v >= 0) & (u < size[0]) & (v < size[1])
        away = np.linalg.norm(local[on], axis=1)
        depth = hits.depth[v[on].astype(int), u[on].astype(int)]
        body = hits.body[v[on].astype(int), u[on].astype(int)]
        # Grazing ground spreads over many metres within a pixel; things do not.
        solid = (body != GROUND) & (sweep.instance[on] > 0)
        agreeing += (np.abs(depth - away) < 0.3)[solid].sum()
        total += solid.sum()
        assert (hits.depth[hits.body == GROUND] < FAR).all()
    assert total > 300 and agreeing > 0.8 * total


def test_map_layers_cover_what_lies_on_the_ground(scene: NuScenesScene) -> None:
    shapely = pytest.importorskip("shapely")
    shapes = StreetShapes(scene.street)
    x, y = scene.ego_pose(0.7)[:2, 3] - 50.0
    surface = scene.street.surface(x, y, 0.4, (250, 250))
    px, py = np.meshgrid(x + 0.4 * np.arange(250), y + 0.4 * np.arange(250), indexing="ij")
    for shape, ids in (
        (shapes.drivable, (40, 44, 60, 61)), (shapes.walkways, (48,)), (shapes.roads, (40, 60, 61)),
    ):  # fmt: skip
        painted = np.isin(surface, ids)
        if shape is shapes.roads:
            painted &= ~shapely.contains_xy(shapes.parking, px, py)
        drawn = shapely.contains_xy(shape, px, py)
        assert painted.any() and (painted & drawn).sum() > 0.97 * (painted | drawn).sum()
    zebras = shapely.union_all(
        [z for crossing in shapes.crossings for z in shapes.zebras(crossing)]
    )
    on_zebra = shapely.contains_xy(zebras, px, py)
    assert 0.3 < (surface[on_zebra] == 60).mean() < 0.7
    stops = shapely.union_all([z for c in shapes.crossings for z in shapes.stop_lines(c)])
    assert (surface[shapely.contains_xy(stops.buffer(-0.1), px, py)] == 60).all()


@pytest.mark.parametrize("what", sorted(CATALOGUE))
def test_every_model_fits_its_box(what: str) -> None:
    model = build_model(what, 7, np.random.default_rng(1))
    assert (model.painted.bodies.instance == 7).all()
    low, high = model.centre - model.size / 2, model.centre + model.size / 2
    assert (model.painted.bodies.centre[:, :2] > low[:2]).all()
    assert (model.painted.bodies.centre < high).all()
    lidar2world = rigid_transform(np.eye(3), (-8.0, 0.3, 1.8))
    far = NuScenesScene((0, 61), 1.0).street.height_field(0.0, 0.0)
    sweep = Hdl32(32, 720).sweep(far, ground_materials(), model.painted.bodies, lidar2world, 1)
    held = sweep.points[sweep.instance == 7, :3] + lidar2world[:3, 3]
    assert len(held) > 4
    assert (held[:, :2] >= low[:2]).all() and (held[:, 2] > -0.05).all() and (held <= high).all()


def test_a_side_road_beyond_the_end_of_the_street_is_no_road(scene: NuScenesScene) -> None:
    street = scene.street.street
    end, (x, y, heading) = len(street.line), street.line[-1]
    # Behind the line's last row, memory goes on with a road that nobody may see.
    ahead = np.arange(1.0, 61.0)[:, None] * (np.cos(heading), np.sin(heading), 0.0)
    line = np.concatenate([street.line, street.line[-1] + ahead])[:end]
    crossings = np.concatenate([street.crossings, [[end - LEAD + 12.0, 5.0, 2.0]]])
    surfaces = []
    for rows in (street.crossings, crossings):
        changed = dataclasses.replace(street, line=line, crossings=rows)
        layout = dataclasses.replace(scene.street, street=changed)
        surfaces.append(layout.surface(x - 40.0, y - 40.0, 0.5, (160, 160)))
    np.testing.assert_array_equal(surfaces[0] == SIDEWALK, surfaces[1] == SIDEWALK)
    assert (surfaces[0] == SIDEWALK).any()


def test_nothing_stands_or_walks_in_another(scene: NuScenesScene) -> None:
    for time in (0.0, 1.0, 2.0):
        boxes = scene.boxes(time, scene.drive.station(time))
        meets = meetings(boxes, boxes)
        np.fill_diagonal(meets, False)
        assert not meets.any()
    box = boxes[0]
    intruder = box._replace(instance=-1, centre=box.centre + np.array((0.0, 0.2, 0.0)))
    assert in_the_way([intruder, box], []) == {box.instance}
    assert in_the_way([intruder, *boxes[1:]], [box]) == {-1}
