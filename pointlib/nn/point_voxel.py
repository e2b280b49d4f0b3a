"""Exchange of features between points and voxels, the two branches of SPVCNN.

Tang et al., "Searching Efficient 3D Architectures with Sparse Point-Voxel Convolution", ECCV 2020, section 3. Which
voxels surround a point is found once for each set of voxels and kept in the points' cache.
"""

from __future__ import annotations

import torch

from pointlib.ops.scatter import gather_rows, scatter_mean
from pointlib.ops.voxelize import TrilinearMap, devoxelize, trilinear_map, voxelize
from pointlib.sites import Sites
from pointlib.tensor import PointTensor, SparseTensor


def initial_voxelize(
    points: PointTensor,
    point_size: float = 1.0,
    voxel_size: float = 1.0,
    batch_size: int | None = None,
) -> tuple[SparseTensor, PointTensor]:
    """Average the points of each voxel, and express the points in these voxels.

    Args:
        points: N points.
        point_size: Unit (m) in which points.coords count x, y, z.
        voxel_size: Edge (m) of the voxels to make.
        batch_size: Number of batch entries; None takes the largest batch index + 1.

    Returns:
        The voxels (stride 1, lexicographic order) and the points with coordinates in units of voxel_size.

    Raises:
        ValueError: If a point is not finite or its voxel index does not fit int32.
    """
    scaled = points.coords
    if point_size != voxel_size:
        xyz = scaled[:, 1:] * point_size / voxel_size
        scaled = torch.cat([scaled[:, :1], xyz], 1)
        points = PointTensor(points.feats, scaled)
    coords, feats, _ = voxelize(scaled, points.feats, voxel_size=1.0)
    return SparseTensor(feats, coords, batch_size=batch_size), points


def point_to_voxel(voxels: SparseTensor, points: PointTensor) -> SparseTensor:
    """Average the points of each voxel.

    Args:
        voxels: M voxels of any stride; their features are not used.
        points: N points. Those whose voxel `floor(xyz / stride)` does not exist are left out.

    Returns:
        (M, C of points) on the same voxels; 0 where a voxel holds no point.
    """
    containing = corner_map(points, voxels.sites).corners[:, 0]
    return voxels.with_feats(scatter_mean(points.feats, containing, len(voxels)))


def voxel_to_point(voxels: SparseTensor, points: PointTensor, nearest: bool = False) -> PointTensor:
    """Interpolate voxel features at the points.

    Args:
        voxels: M voxels of any stride.
        points: N points.
        nearest: Take the features of the voxel that contains the point, instead of interpolating trilinearly
            between the voxels `floor(xyz / stride) + {0, 1}^3` that exist.

    Returns:
        (N, C of voxels) on the same points; 0 for a point without any such voxel.
    """
    found = corner_map(points, voxels.sites)
    if nearest:
        return points.with_feats(gather_rows(voxels.feats, found.corners[:, 0]))
    return points.with_feats(devoxelize(voxels.feats, *found))


def corner_map(points: PointTensor, sites: Sites) -> TrilinearMap:
    """The voxels of `sites` around each point and their weights, computed once for each Sites object."""
    found = points.cache.get(sites)
    if found is None:
        scale = torch.tensor([1, *sites.stride]).to(points.coords, non_blocking=True)
        found = points.cache[sites] = trilinear_map(points.coords / scale, sites.coords)
    return found
