"""Where the pixels of cameras lie in space, and where points in space lie in images; all of it under augmentation.

Philion and Fidler, Lift, Splat, Shoot, ECCV 2020, section 3.1; Liu et al., BEVFusion, ICRA 2023. Matrices are joined
in float64, and autocast and TF32 have no say: bfloat16 would place a point 60 m away to a quarter of a metre.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from pointlib.sensors import CameraBatch


def image_frustum(
    image_size: tuple[int, int], feature_size: tuple[int, int], dbound: Sequence[float]
) -> Tensor:
    """Pixel and depth of every point that a feature map is lifted to.

    Args:
        image_size: Height and width of the images that the network sees [pixels].
        feature_size: Height and width of the feature map, whose corners are put on the corners of the image.
        dbound: First depth, end of depths, step [m].

    Returns:
        (D, h, w, 3) float32 u, v [pixels], depth [m].

    Example:
        >>> image_frustum((4, 8), (2, 3), (1.0, 3.0, 1.0))[1, 1].tolist()
        [[0.0, 3.0, 2.0], [3.5, 3.0, 2.0], [7.0, 3.0, 2.0]]
    """
    rows, columns = feature_size
    depth = torch.arange(*dbound, dtype=torch.float32).view(-1, 1, 1)
    u = torch.linspace(0, image_size[1] - 1, columns).view(1, 1, -1)
    v = torch.linspace(0, image_size[0] - 1, rows).view(1, -1, 1)
    return torch.stack([part.expand(len(depth), rows, columns) for part in (u, v, depth)], -1)


@torch.no_grad()
def frustum_points(frustum: Tensor, cameras: CameraBatch, lidar_aug: Tensor) -> Tensor:
    """Move a frustum of augmented images into the augmented LiDAR frame.

    Args:
        frustum: (D, h, w, 3) of `image_frustum`.
        cameras: B samples of N cameras.
        lidar_aug: (B, 4, 4) from the recorded to the augmented LiDAR frame.

    Returns:
        (B, N, D, h, w, 3) float32 x, y, z [m].
    """
    with torch.autocast(frustum.device.type, enabled=False):
        aug, pixels = cameras.image_aug.double(), frustum[0, :, :, :2].double()
        # image_aug acts on u and v alone, whatever the depth.
        undo = _inverse(aug[..., :2, :2])
        pixels = torch.einsum("bnij,bnhwj->bnhwi", undo, pixels - aug[..., None, None, :2, 3])
        pixels = torch.cat([pixels, torch.ones_like(pixels[..., :1])], -1)
        camera2lidar = lidar_aug[:, None].double() @ cameras.camera2lidar.double()
        pixel2ray = camera2lidar[..., :3, :3] @ _inverse(cameras.intrinsics.double())
        rays = torch.einsum("bnij,bnhwj->bnhwi", pixel2ray, pixels).to(frustum.dtype)
        start = camera2lidar[..., None, None, None, :3, 3].to(frustum.dtype)
        depth = frustum[:, 0, 0, 2].view(-1, 1, 1, 1)
        return torch.addcmul(start, rays[:, :, None], depth)


@torch.no_grad()
def grid_cells(
    points: Tensor,
    lower: Tensor,
    cell_size: Tensor,
    grid_shape: tuple[int, int, int],
    reference_truncation: bool,
) -> Tensor:
    """Cell of each frustum point.

    Args:
        points: (B, ..., 3) x, y, z [m].
        lower: (3,) lower corner of cell (0, 0, 0) [m].
        cell_size: (3,) edges of a cell [m].
        grid_shape: (X, Y, Z) cells.
        reference_truncation: Round toward zero as mit-han-lab/bevfusion does: cell 0 of each axis then takes what lies
            up to one cell before the grid. Its checkpoints are trained with that.

    Returns:
        (P, 4) int32 `[batch, x, y, z]`, -1 everywhere for points outside the grid or not finite.
    """
    cells = (points - lower) / cell_size
    cells = cells.trunc() if reference_truncation else cells.floor()
    inside = (cells >= 0).all(-1)
    for axis, count in enumerate(grid_shape):
        inside &= cells[..., axis] < count
    inside = inside[..., None]
    batch = torch.arange(len(cells), device=cells.device, dtype=torch.int32)
    batch = batch.view(-1, *[1] * (cells.dim() - 1)).expand(*cells.shape[:-1], 1)
    coords = torch.cat([batch, torch.where(inside, cells, -1.0).int()], -1)
    return torch.where(inside, coords, -1).flatten(0, -2)


@torch.no_grad()
def lidar_depth_images(
    points: Sequence[Tensor], cameras: CameraBatch, lidar_aug: Tensor, image_size: tuple[int, int]
) -> Tensor:
    """Draw LiDAR points into the images as depth; the nearest point of a pixel wins. Inputs are not changed.

    Args:
        points: B of (N_i, 3+) x, y, z [m] in the augmented LiDAR frame.
        cameras: B samples of N cameras; those not present stay empty.
        lidar_aug: (B, 4, 4) from the recorded to the augmented LiDAR frame.
        image_size: Height and width of the augmented images [pixels].

    Returns:
        (B, N, H, W) float32 depth along the optical axis [m]; 0 where no point in front of the camera falls.
    """
    height, width = image_size
    device = lidar_aug.device
    with torch.autocast(device.type, enabled=False):
        aug = cameras.image_aug.double()
        to_image = torch.zeros_like(aug[..., :3, :3])
        to_image[..., :2, :2], to_image[..., :2, 2] = aug[..., :2, :2], aug[..., :2, 3]
        to_image[..., 2, 2] = 1
        camera2lidar = lidar_aug[:, None].double() @ cameras.camera2lidar.double()
        project = to_image @ cameras.intrinsics.double() @ _inverse(camera2lidar)[..., :3, :]
        images = []
        for matrix, cloud, present in zip(project, points, cameras.present, strict=True):
            xyz = cloud[:, :3].double().T  # a float32 product may be TF32 on a GPU: pixels off
            u, v, depth = (matrix[..., :3] @ xyz + matrix[..., 3:]).unbind(1)  # (N, P) each
            column, row = (u / depth).floor(), (v / depth).floor()
            seen = (depth > 0) & (column >= 0) & (column < width) & (row >= 0) & (row < height)
            seen &= present[:, None]
            pixel = torch.where(seen, row * width + column, height * width).long()
            depth = depth.to(torch.promote_types(cloud.dtype, torch.float32))
            image = depth.new_full((len(depth), height * width + 1), torch.inf)
            image = image.scatter_reduce(1, pixel, depth, "amin")[:, :-1]
            images.append(torch.where(image.isinf(), 0, image).view(-1, height, width))
        return torch.stack(images)


def _inverse(matrices: Tensor) -> Tensor:
    """Inverses, without asking a GPU whether all of them exist: cameras that are not present may bring zeros."""
    return torch.linalg.inv_ex(matrices)[0]
