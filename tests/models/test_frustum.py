"""Frustums and depth images against mit-han-lab/bevfusion, the way back through the matrices, and brute force."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from pointlib.data.nuscenes_info import NuScenesInfo
from pointlib.geometry import project_points, projection_matrix
from pointlib.models.frustum import (
    frustum_points,
    grid_cells,
    image_frustum,
    lidar_depth_images,
)
from pointlib.sensors import CameraBatch
from tests.models.camera_inputs import GRID, golden_arrays, golden_batch, sampled


def test_geometry_equals_the_original() -> None:
    batch = golden_batch(torch.float64)
    assert batch.cameras is not None
    frustum = image_frustum(GRID["image_size"], GRID["feature_size"], GRID["dbound"]).double()
    points = frustum_points(frustum, batch.cameras, batch.lidar_aug)
    want = golden_arrays()["view/geometry"]
    np.testing.assert_allclose(sampled(points, len(want)), want, rtol=0, atol=1e-12)
    total = float(points.abs().sum())
    np.testing.assert_allclose(total, golden_arrays()["view/geometry_abs_sum"], rtol=1e-12)


def test_frustum_points_project_onto_their_pixels() -> None:
    """The way back: augmented LiDAR frame, recorded frame, camera, recorded image, augmented image."""
    batch = golden_batch()
    cameras = batch.cameras
    assert cameras is not None
    frustum = image_frustum((64, 176), (8, 22), (1.0, 40.0, 1.5))
    points = frustum_points(frustum, cameras, batch.lidar_aug).double()
    for b in range(2):
        for n in range(3):
            xyz1 = torch.cat([points[b, n], torch.ones_like(points[b, n, ..., :1])], -1)
            recorded = xyz1 @ torch.linalg.inv(batch.lidar_aug[b].double()).T
            seen = recorded @ torch.linalg.inv(cameras.camera2lidar[b, n].double()).T
            torch.testing.assert_close(seen[..., 2], frustum[..., 2].double(), atol=1e-4, rtol=0)
            uvd = seen[..., :3] @ cameras.intrinsics[b, n].double().T
            pixels = torch.cat([uvd[..., :2] / uvd[..., 2:], seen[..., 2:]], -1)
            pixels = pixels @ cameras.image_aug[b, n].double().T
            torch.testing.assert_close(pixels[..., :3], frustum.double(), atol=2e-3, rtol=0)


def test_cells_round_down_or_as_the_reference_toward_zero() -> None:
    points = torch.tensor([-2.0, -1.0, -0.5, 0.0, 0.99, 1.0, 3.99, 4.0, torch.nan, torch.inf, 1e20])
    xyz = torch.stack([points, torch.full_like(points, 0.5), torch.full_like(points, 0.5)], 1)
    arguments = (torch.zeros(3), torch.ones(3), (4, 1, 1))
    floor = grid_cells(xyz[None], *arguments, reference_truncation=False)
    toward_zero = grid_cells(xyz[None], *arguments, reference_truncation=True)
    assert floor[:, 1].tolist() == [-1, -1, -1, 0, 0, 1, 3, -1, -1, -1, -1]
    assert toward_zero[:, 1].tolist() == [-1, -1, 0, 0, 0, 1, 3, -1, -1, -1, -1]
    assert floor[floor[:, 1] < 0].eq(-1).all()
    assert floor.dtype == torch.int32


# Depth from LiDAR


def straight_camera(height: int, width: int, count: int = 1) -> CameraBatch:
    """At the LiDAR's origin, looking along x; 10 pixels a radian about the centre."""
    camera2lidar = torch.tensor([[0.0, 0, 1, 0], [-1, 0, 0, 0], [0, -1, 0, 0], [0, 0, 0, 1]])
    intrinsics = torch.tensor([[10.0, 0, width / 2], [0, 10, height / 2], [0, 0, 1]])
    return CameraBatch(
        images=torch.zeros(1, count, 3, height, width),
        intrinsics=intrinsics.expand(1, count, 3, 3),
        camera2lidar=camera2lidar.expand(1, count, 4, 4),
        image_aug=torch.eye(4).expand(1, count, 4, 4),
        present=torch.ones(1, count, dtype=torch.bool),
    )


def test_the_nearest_point_of_a_pixel_wins_in_any_order() -> None:
    points = torch.tensor([[8.0, 0.0, 0.0], [4.0, 0.0, 0.0], [6.0, 0.0, 0.0], [5.0, 1.0, 0.5]])
    images = []
    for order in ([0, 1, 2, 3], [1, 0, 3, 2], [2, 3, 1, 0]):
        cameras = straight_camera(8, 12)
        images.append(lidar_depth_images([points[order]], cameras, torch.eye(4)[None], (8, 12)))
    want = torch.zeros(8, 12)
    want[4, 6] = 4.0  # the centre: u = 6, v = 4
    want[3, 4] = 5.0  # u = 6 - 10 / 5, v = 4 - 10 * 0.1
    for image in images:
        assert torch.equal(image[0, 0], want)


def test_points_behind_at_and_beside_the_camera_are_not_drawn() -> None:
    far = [[-4.0, 0.0, 0.0], [-1e-6, 0, 0], [0.0, 0.0, 0.0], [1.0, 9.0, 0.0], [1.0, 0.0, -9.0]]
    points = torch.tensor([*far, [torch.nan, 0.0, 0.0], [torch.inf, 0.0, 0.0]])
    image = lidar_depth_images([points], straight_camera(8, 12), torch.eye(4)[None], (8, 12))
    assert image.eq(0).all()


def test_depth_images_are_empty_without_points_and_for_missing_cameras() -> None:
    cameras = straight_camera(8, 12, count=2)
    cameras = replace(cameras, present=torch.tensor([[True, False]]))
    point = torch.tensor([[4.0, 0.0, 0.0]])
    image = lidar_depth_images([point], cameras, torch.eye(4)[None], (8, 12))
    assert image[0, 0].count_nonzero() == 1 and image[0, 1].eq(0).all()
    none = lidar_depth_images([point[:0]], cameras, torch.eye(4)[None], (8, 12))
    assert none.shape == (1, 2, 8, 12) and none.eq(0).all()


def test_depth_is_drawn_where_augmented_images_show_the_point() -> None:
    """Brute force over the points, in float64, one at a time."""
    batch = golden_batch()
    cameras = batch.cameras
    assert cameras is not None and batch.points is not None
    images = lidar_depth_images(batch.points, cameras, batch.lidar_aug, (64, 176))
    want = torch.zeros_like(images)
    for b, n in np.ndindex(2, 3):
        back = torch.linalg.inv(batch.lidar_aug[b].double() @ cameras.camera2lidar[b, n].double())
        for point in batch.points[b].double():
            x, y, depth = (back[:3, :3] @ point + back[:3, 3]).tolist()
            if depth <= 0:
                continue
            pixel = (
                cameras.intrinsics[b, n].double()
                @ torch.tensor([x / depth, y / depth, 1.0]).double()
            )
            u, v = (cameras.image_aug[b, n, :2, :2].double() @ pixel[:2]
                    + cameras.image_aug[b, n, :2, 3].double()).tolist()  # fmt: skip
            if 0 <= u < 176 and 0 <= v < 64:
                want[b, n, int(v), int(u)] = depth
    assert want.count_nonzero() > 300
    torch.testing.assert_close(images, want, atol=1e-4, rtol=0)


def test_real_points_are_drawn_where_the_cameras_see_them(test_data: Path) -> None:
    """Six nuScenes cameras at full size, against the library's projection, which the metrics and pictures use."""
    source = NuScenesInfo(test_data / "nuscenes/scene0061_kf0/info.json", num_sweeps=1)
    sample = source[0]
    camera2lidar = np.stack([np.linalg.inv(c.lidar2camera) for c in sample.cameras])
    cameras = CameraBatch(
        images=torch.zeros(1, 6, 3, 1, 1),
        intrinsics=torch.tensor(np.stack([c.intrinsics for c in sample.cameras]))[None],
        camera2lidar=torch.tensor(camera2lidar)[None],
        image_aug=torch.eye(4).expand(1, 6, 4, 4),
        present=torch.ones(1, 6, dtype=torch.bool),
    )
    points = torch.tensor(sample.points)
    images = lidar_depth_images([points], cameras, torch.eye(4)[None], (900, 1600))[0].numpy()
    for image, camera in zip(images, sample.cameras, strict=True):
        matrix = projection_matrix(camera.intrinsics, camera.lidar2camera)
        pixels, depth = project_points(sample.points[:, :3].astype(np.float64), matrix)
        with np.errstate(invalid="ignore"):
            seen = ((pixels >= 0) & (pixels < [1600, 900])).all(1)
        want = np.full((900, 1600), np.inf)
        column, row = np.floor(pixels[seen]).astype(int).T
        np.minimum.at(want, (row, column), depth[seen])
        want[np.isinf(want)] = 0
        assert 2000 < np.count_nonzero(want) < 6000
        different = np.abs(image - want) > 1e-4
        assert different.sum() <= 2  # a point on the border of two pixels
