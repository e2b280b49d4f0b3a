"""Frames, rigid transforms, boxes and camera projection: every geometric convention of pointlib stands here.

Frames are right-handed. LiDAR and ego: x forward, y left, z up. Camera: x right, y down, z forward (depth). Image:
u right, v down, in pixels. A transform is a 4x4 matrix named source2target: `p_ego = lidar2ego @ p_lidar`; so chains
read from right to left, `lidar2camera = ego2camera @ lidar2ego`. Metres and radians. All functions take numpy arrays
or torch tensors, compute in the dtype of their first argument and return the same kind.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Generic, NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor

Array = TypeVar("Array", np.ndarray, Tensor)

BOX_COLUMNS = ("x", "y", "z", "l", "w", "h", "yaw")
"""Columns of boxes (N, 7): centre [m]; size along heading, to its left, up [m]; yaw [rad] counter-clockwise from +x.

Boxes (N, 9) add the velocity over ground vx, vy [m/s] in the same frame.
"""

_CORNER_SIGNS = (
    (1, 1, -1), (1, -1, -1), (-1, -1, -1), (-1, 1, -1),
    (1, 1, 1), (1, -1, 1), (-1, -1, 1), (-1, 1, 1),
)  # fmt: skip


class Projection(NamedTuple, Generic[Array]):
    """Points seen in an image.

    Attributes:
        pixels: (N, 2) u, v; NaN where the point is not in front of the camera.
        depth: (N,) distance along the optical axis [m]; negative behind the camera.
    """

    pixels: Array
    depth: Array


def rigid_transform(rotation: Array, translation: Sequence[float] | Array) -> Array:
    """Join a rotation and a translation into a 4x4 matrix.

    Args:
        rotation: (3, 3) floating point rotation from the source to the target frame.
        translation: (3,) origin of the source frame, in the target frame [m].

    Returns:
        (4, 4) source2target.

    Example:
        >>> rigid_transform(np.eye(3), [1.0, 2.0, 3.0])[:3, 3].tolist()
        [1.0, 2.0, 3.0]
    """
    _check("rigid_transform", "rotation", rotation, "(3, 3)", rotation.shape == (3, 3))
    transform = _eye_like(rotation, 4)
    transform[:3, :3] = rotation
    transform[:3, 3] = _as_like(translation, rotation)
    return transform


def yaw_rotation(yaw: Array) -> Array:
    """Rotate about z, counter-clockwise seen from above.

    Args:
        yaw: (...) angle [rad].

    Returns:
        (..., 3, 3) rotations; column 0 is the heading.

    Example:
        >>> yaw_rotation(np.array(np.pi / 2)).round(6)[:, 0].tolist()
        [0.0, 1.0, 0.0]
    """
    xp = _library(yaw)
    rotation = xp.zeros_like(yaw)[..., None, None] + _eye_like(yaw, 3)
    rotation[..., 0, 0] = rotation[..., 1, 1] = xp.cos(yaw)
    rotation[..., 1, 0] = xp.sin(yaw)
    rotation[..., 0, 1] = -xp.sin(yaw)
    return rotation


def quaternion_rotation(quaternion: Array) -> Array:
    """Turn unit quaternions, scalar first as nuScenes and Argoverse 2 store them, into rotations.

    Args:
        quaternion: (..., 4) w, x, y, z; normalised here, since files hold rounded numbers.

    Returns:
        (..., 3, 3) rotations.

    Raises:
        ValueError: The last axis is not 4 long.

    Example:
        >>> quaternion_rotation(np.array([1.0, 0.0, 0.0, 0.0])).tolist()
        [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]]
    """
    _check(
        "quaternion_rotation", "quaternion", quaternion, "(..., 4)", quaternion.shape[-1:] == (4,)
    )
    xp = _library(quaternion)
    unit: Any = quaternion / xp.sqrt((quaternion * quaternion).sum(-1))[..., None]
    w, x, y, z = unit[..., 0], unit[..., 1], unit[..., 2], unit[..., 3]
    entries = [
        1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y),
        2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x),
        2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y),
    ]  # fmt: skip
    return xp.stack(entries, -1).reshape((*unit.shape[:-1], 3, 3))


def invert(transform: Array) -> Array:
    """Invert rigid transforms: source2target becomes target2source.

    Args:
        transform: (..., 4, 4) rigid transforms.

    Returns:
        (..., 4, 4) inverses.

    Raises:
        ValueError: Not 4x4, or not rigid (scaled or sheared): those need a general inverse.

    Example:
        >>> invert(rigid_transform(np.eye(3), [1.0, 0.0, 0.0]))[:3, 3].tolist()
        [-1.0, -0.0, -0.0]
    """
    _check("invert", "transform", transform, "(..., 4, 4)", transform.shape[-2:] == (4, 4))
    xp = _library(transform)
    rotation = transform[..., :3, :3]
    transposed = rotation.swapaxes(-1, -2)
    error = (
        float(abs(rotation @ transposed - _eye_like(transform, 3)).max())
        if rotation.shape[0]
        else 0.0
    )
    if not error < 1e-3:
        raise ValueError(
            f"invert: transform must be rigid, got a rotation part R with |R R^T - 1| up to {error:.3g}; "
            "invert a scaled or sheared one with numpy.linalg.inv or torch.linalg.inv"
        )
    inverse = xp.zeros_like(transform)
    inverse[..., :3, :3] = transposed
    inverse[..., :3, 3] = -(transposed @ transform[..., :3, 3, None])[..., 0]
    inverse[..., 3, 3] = 1
    return inverse


def transform_points(points: Array, source2target: np.ndarray | Tensor) -> Array:
    """Move points from the source to the target frame.

    Args:
        points: (N, 3 + C) x, y, z [m] in the source frame, then C columns that are kept as they are.
        source2target: (4, 4) affine transform.

    Returns:
        (N, 3 + C) points in the target frame, dtype of `points`. Chain large transforms (global poses) in float64
        and apply the product once: float32 resolves 0.06 mm at 1 km, 1 m at 10,000 km.

    Raises:
        ValueError: A shape is not as above.

    Example:
        >>> lidar2ego = rigid_transform(np.eye(3), [0.0, 0.0, 1.8])
        >>> transform_points(np.array([[10.0, 0.0, -1.8, 0.5]]), lidar2ego).tolist()
        [[10.0, 0.0, 0.0, 0.5]]
    """
    name = "transform_points"
    _check(name, "points", points, "(N, 3 + C)", points.ndim == 2 and points.shape[1] >= 3)
    _check(name, "source2target", source2target, "(4, 4)", source2target.shape == (4, 4))
    matrix = _as_like(source2target, points)
    moved = points[:, :3] @ matrix[:3, :3].T + matrix[:3, 3]
    return _library(points).concatenate([moved, points[:, 3:]], 1)


def transform_boxes(boxes: Array, source2target: np.ndarray | Tensor) -> Array:
    """Move boxes from the source to the target frame.

    Args:
        boxes: (N, 7) or (N, 9), see `BOX_COLUMNS`, in the source frame.
        source2target: (4, 4) rigid transform. Boxes stay upright: of its rotation only what it does to the heading
            and the velocity, seen from above, is applied to them.

    Returns:
        Boxes in the target frame, same shape and dtype, yaw in [-pi, pi).

    Raises:
        ValueError: A shape is not as above.

    Example:
        >>> turn = rigid_transform(yaw_rotation(np.array(np.pi / 2)), [0.0, 0.0, 0.0])
        >>> transform_boxes(np.array([[1.0, 0.0, 0.0, 4.0, 2.0, 1.5, 0.0]]), turn).round(3).tolist()
        [[0.0, 1.0, 0.0, 4.0, 2.0, 1.5, 1.571]]
    """
    _check_boxes("transform_boxes", boxes)
    xp = _library(boxes)
    centres = transform_points(boxes[:, :3], source2target)
    turn = _as_like(source2target, boxes)[:2, :2].T
    heading = xp.stack([xp.cos(boxes[:, 6]), xp.sin(boxes[:, 6])], 1) @ turn
    yaw = wrap_angle(xp.arctan2(heading[:, 1], heading[:, 0]))
    velocity = boxes[:, 7:9] @ turn if boxes.shape[1] == 9 else boxes[:, 7:]
    return xp.concatenate([centres, boxes[:, 3:6], yaw[:, None], velocity], 1)


def box_corners(boxes: Array) -> Array:
    """Corners of boxes.

    Args:
        boxes: (N, 7) or (N, 9), see `BOX_COLUMNS`.

    Returns:
        (N, 8, 3) x, y, z [m]: the lower face, then the upper; each front left, front right, rear right, rear left.

    Raises:
        ValueError: The shape is not as above.

    Example:
        >>> box_corners(np.array([[0.0, 0.0, 0.0, 4.0, 2.0, 1.0, 0.0]]))[0, :2].tolist()
        [[2.0, 1.0, -0.5], [2.0, -1.0, -0.5]]
    """
    _check_boxes("box_corners", boxes)
    signs = _as_like(_CORNER_SIGNS, boxes)
    local = boxes[:, None, 3:6] * signs / 2  # (N, 8, 3)
    return local @ yaw_rotation(boxes[:, 6]).swapaxes(-1, -2) + boxes[:, None, :3]


def wrap_angle(angle: Array) -> Array:
    """Bring angles into [-pi, pi).

    Args:
        angle: (...) [rad].

    Returns:
        (...) the same directions.

    Example:
        >>> wrap_angle(np.array([np.pi, -np.pi, 7.0])).round(4).tolist()
        [-3.1416, -3.1416, 0.7168]
    """
    pi = float(np.pi)
    return (angle + pi) % (2 * pi) - pi


def projection_matrix(intrinsics: Array, lidar2camera: np.ndarray | Tensor) -> Array:
    """Join a camera's intrinsics and pose into one matrix.

    Args:
        intrinsics: (3, 3) camera matrix [pixels], or the (3, 4) projection of a rectified camera as KITTI stores it
            (P0 to P3, whose fourth column holds the stereo baseline).
        lidar2camera: (4, 4) rigid transform from the LiDAR to the (rectified) camera frame.

    Returns:
        (4, 4) lidar2image: `[u * d, v * d, d, 1] = lidar2image @ [x, y, z, 1]` with depth d.

    Raises:
        ValueError: A shape is not as above.
    """
    name = "projection_matrix"
    _check(
        name,
        "intrinsics",
        intrinsics,
        "(3, 3) or (3, 4)",
        tuple(intrinsics.shape) in {(3, 3), (3, 4)},
    )
    _check(name, "lidar2camera", lidar2camera, "(4, 4)", lidar2camera.shape == (4, 4))
    camera2image = _eye_like(intrinsics, 4)
    camera2image[:3, : intrinsics.shape[1]] = intrinsics
    return camera2image @ _as_like(lidar2camera, intrinsics)


def project_points(points: Array, lidar2image: np.ndarray | Tensor) -> Projection[Array]:
    """Find the pixels of points.

    Args:
        points: (N, 3 + C) x, y, z [m] in the LiDAR frame; further columns are not used.
        lidar2image: (4, 4) from `projection_matrix`.

    Returns:
        Pixels and depth. A point with depth <= 0 has no pixel: NaN, which no comparison with an image border accepts.

    Raises:
        ValueError: A shape is not as above.

    Example:
        >>> camera = np.array([[100.0, 0.0, 50.0], [0.0, 100.0, 40.0], [0.0, 0.0, 1.0]])
        >>> forward = np.array([[0.0, -1.0, 0, 0], [0, 0, -1.0, 0], [1.0, 0, 0, 0], [0, 0, 0, 1.0]])
        >>> seen = project_points(np.array([[10.0, 1.0, 0.0]]), projection_matrix(camera, forward))
        >>> seen.pixels.tolist(), seen.depth.tolist()
        ([[40.0, 40.0]], [10.0])
    """
    _check("project_points", "lidar2image", lidar2image, "(4, 4)", lidar2image.shape == (4, 4))
    image = transform_points(points[:, :3], lidar2image)
    depth = image[:, 2]
    divisor = _library(points).where(depth > 0, depth, _as_like(float("nan"), points))
    return Projection(image[:, :2] / divisor[:, None], depth)


def _check(function: str, argument: str, value: Any, contract: str, holds: bool) -> None:
    if not holds:
        raise ValueError(f"{function}: {argument} must be {contract}, got {tuple(value.shape)}")


def _check_boxes(function: str, boxes: Any) -> None:
    contract = "(N, 7) [x, y, z, l, w, h, yaw] or (N, 9) with vx, vy"
    _check(function, "boxes", boxes, contract, boxes.ndim == 2 and boxes.shape[1] in (7, 9))


def _library(array: Any) -> Any:
    """Choose torch or numpy: what is used here has the same names and positional arguments in both."""
    return torch if isinstance(array, Tensor) else np


def _as_like(value: Any, like: Array) -> Array:
    """Return `value` as an array of the kind, dtype and device of `like`."""
    if isinstance(like, Tensor):
        return torch.as_tensor(value, dtype=like.dtype, device=like.device)
    return np.asarray(value, dtype=like.dtype)


def _eye_like(like: Array, size: int) -> Array:
    return _as_like(np.eye(size), like)
