"""pointlib.geometry against scipy-free hand results, numpy.linalg and itself in torch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pointlib.geometry import (
    box_corners,
    invert,
    project_points,
    projection_matrix,
    quaternion_rotation,
    rigid_transform,
    transform_boxes,
    transform_points,
    wrap_angle,
    yaw_rotation,
)

BOX = [10.0, 5.0, 1.0, 4.0, 2.0, 1.5, 0.3]
CAMERA = np.array([[700.0, 0.0, 600.0], [0.0, 710.0, 180.0], [0.0, 0.0, 1.0]])
LIDAR2CAMERA = np.array([[0, -1, 0, 0.1], [0, 0, -1, -0.2], [1, 0, 0, -0.3], [0, 0, 0, 1.0]])


def random_transform(seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return rigid_transform(quaternion_rotation(rng.normal(size=4)), rng.normal(size=3) * 10)


@pytest.mark.parametrize("seed", range(5))
def test_invert_is_the_inverse(seed: int) -> None:
    transform = random_transform(seed)
    np.testing.assert_allclose(invert(transform), np.linalg.inv(transform), atol=1e-12)


def test_invert_takes_batches_even_empty_ones() -> None:
    batch = np.stack([random_transform(seed) for seed in range(3)])
    np.testing.assert_allclose(invert(batch) @ batch, np.tile(np.eye(4), (3, 1, 1)), atol=1e-12)
    assert invert(np.empty((0, 4, 4))).shape == (0, 4, 4)


@pytest.mark.parametrize("scale", [2.0, np.nan])
def test_invert_refuses_what_is_not_rigid(scale: float) -> None:
    with pytest.raises(ValueError, match="transform must be rigid"):
        invert(np.diag([scale, 1.0, 1.0, 1.0]))


@given(st.lists(st.floats(-1, 1), min_size=4, max_size=4).filter(lambda q: np.linalg.norm(q) > 0.1))
@settings(max_examples=50, deadline=None)
def test_quaternions_give_rotations(quaternion: list[float]) -> None:
    rotation = quaternion_rotation(np.array(quaternion))
    np.testing.assert_allclose(rotation @ rotation.T, np.eye(3), atol=1e-12)
    assert np.linalg.det(rotation) == pytest.approx(1.0)
    axis = np.array(quaternion[1:])
    np.testing.assert_allclose(rotation @ axis, axis, atol=1e-12)


def test_quaternion_about_z_is_yaw() -> None:
    yaw = 0.7
    quaternion = np.array([np.cos(yaw / 2), 0.0, 0.0, np.sin(yaw / 2)])
    np.testing.assert_allclose(quaternion_rotation(quaternion), yaw_rotation(np.array(yaw)))


def test_points_keep_their_other_columns_and_dtype() -> None:
    points = np.array([[1, 2, 3, 0.5, 9]], dtype=np.float32)
    transform = random_transform(0)
    moved = transform_points(points, transform)
    assert moved.dtype == np.float32
    np.testing.assert_allclose(moved[0, :3], (transform @ [1, 2, 3, 1])[:3], rtol=1e-5)
    assert moved[0, 3:].tolist() == [0.5, 9]
    assert points[0].tolist() == [1, 2, 3, 0.5, 9]


def test_transforms_chain_from_right_to_left() -> None:
    points = np.random.default_rng(0).normal(size=(7, 3))
    lidar2ego, ego2world = random_transform(1), random_transform(2)
    in_two_steps = transform_points(transform_points(points, lidar2ego), ego2world)
    np.testing.assert_allclose(transform_points(points, ego2world @ lidar2ego), in_two_steps)


def test_corners_by_hand() -> None:
    corners = box_corners(np.array([[1.0, 2.0, 3.0, 4.0, 2.0, 1.0, np.pi / 2]]))[0]
    lower = [[0, 4], [2, 4], [2, 0], [0, 0]]  # heading +y: front is at y + 2, left at x - 1
    np.testing.assert_allclose(corners[:4], [[*xy, 2.5] for xy in lower], atol=1e-12)
    np.testing.assert_allclose(corners[4:], [[*xy, 3.5] for xy in lower], atol=1e-12)


@pytest.mark.parametrize("num_columns", [7, 9])
def test_corners_move_with_their_box(num_columns: int) -> None:
    boxes = np.array([[*BOX, 3.0, -1.0], [-4.0, 2.0, 0.0, 1.0, 1.0, 1.0, -3.0, 0.0, 1.0]])[
        :, :num_columns
    ]
    turn = rigid_transform(yaw_rotation(np.array(2.5)), [7.0, -3.0, 0.5])
    expected = transform_points(box_corners(boxes).reshape(-1, 3), turn).reshape(-1, 8, 3)
    moved = transform_boxes(boxes, turn)
    assert moved.shape == boxes.shape
    np.testing.assert_allclose(box_corners(moved), expected, atol=1e-9)
    np.testing.assert_allclose(transform_boxes(moved, invert(turn)), boxes, atol=1e-9)


def test_velocity_turns_with_the_frame() -> None:
    turn = rigid_transform(yaw_rotation(np.array(np.pi / 2)), [100.0, 0.0, 0.0])
    np.testing.assert_allclose(
        transform_boxes(np.array([[*BOX, 3.0, 1.0]]), turn)[0, 7:], [-1.0, 3.0], atol=1e-12
    )


@given(st.floats(-1e3, 1e3))
@settings(max_examples=100, deadline=None)
def test_wrapped_angle_is_the_same_direction(angle: float) -> None:
    wrapped = float(wrap_angle(np.array(angle)))
    assert -np.pi <= wrapped < np.pi
    assert np.cos(wrapped - angle) == pytest.approx(1.0)


def test_projection_by_hand() -> None:
    lidar2image = projection_matrix(CAMERA, LIDAR2CAMERA)
    seen = project_points(np.array([[20.3, 1.0, -1.0, 0.7]]), lidar2image)
    assert seen.depth.tolist() == [20.0]
    np.testing.assert_allclose(seen.pixels, [[600 - 700 * 0.9 / 20, 180 + 710 * 0.8 / 20]])


def test_projection_of_a_rectified_stereo_camera() -> None:
    shifted = np.concatenate([CAMERA, [[-378.0], [0.0], [0.0]]], axis=1)
    points = np.array([[20.3, 1.0, -1.0]])
    mono = project_points(points, projection_matrix(CAMERA, LIDAR2CAMERA))
    stereo = project_points(points, projection_matrix(shifted, LIDAR2CAMERA))
    np.testing.assert_allclose(stereo.pixels - mono.pixels, [[-378.0 / 20, 0.0]], atol=1e-9)


def test_points_behind_the_camera_have_no_pixel() -> None:
    points = np.array([[-5.0, 0.0, 0.0], [0.3, 1.0, 0.0], [5.3, 0.0, 0.0]])
    seen = project_points(points, projection_matrix(CAMERA, LIDAR2CAMERA))
    assert np.isnan(seen.pixels).all(axis=1).tolist() == [True, True, False]
    assert seen.depth.tolist() == pytest.approx([-5.3, 0.0, 5.0])


FUNCTIONS: dict[str, tuple[Callable[..., Any], list[np.ndarray]]] = {
    "rigid_transform": (rigid_transform, [yaw_rotation(np.array(1.0)), np.arange(3.0)]),
    "yaw_rotation": (yaw_rotation, [np.array([0.1, 2.0])]),
    "quaternion_rotation": (quaternion_rotation, [np.array([[1.0, 2.0, 3.0, 4.0]])]),
    "invert": (invert, [random_transform(3)]),
    "transform_points": (transform_points, [np.arange(8.0).reshape(2, 4), random_transform(4)]),
    "transform_boxes": (transform_boxes, [np.array([BOX]), random_transform(5)]),
    "box_corners": (box_corners, [np.array([BOX])]),
    "wrap_angle": (wrap_angle, [np.array([-4.0, 4.0])]),
    "projection_matrix": (projection_matrix, [CAMERA, LIDAR2CAMERA]),
}


@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_torch_agrees_with_numpy(name: str, dtype: torch.dtype) -> None:
    function, arguments = FUNCTIONS[name]
    result = function(*[torch.tensor(a, dtype=dtype) for a in arguments])
    assert isinstance(result, torch.Tensor) and result.dtype == dtype
    tolerance = 1e-5 if dtype == torch.float32 else 1e-12
    np.testing.assert_allclose(result.numpy(), function(*arguments), rtol=tolerance, atol=tolerance)


def test_torch_projection_agrees_and_is_differentiable() -> None:
    points = np.array([[20.3, 1.0, -1.0], [-3.0, 0.0, 0.0]])
    matrix = projection_matrix(CAMERA, LIDAR2CAMERA)
    tensor = torch.tensor(points, requires_grad=True)
    seen = project_points(tensor, matrix)  # a numpy matrix serves torch points
    np.testing.assert_allclose(seen.pixels.detach(), project_points(points, matrix).pixels)
    seen.pixels[0].sum().backward()
    assert tensor.grad is not None and torch.isfinite(tensor.grad[0]).all()


@pytest.mark.parametrize("empty", [np.empty((0, 7)), torch.empty(0, 7)])
def test_no_boxes_and_no_points(empty: Any) -> None:
    assert tuple(box_corners(empty).shape) == (0, 8, 3)
    assert tuple(transform_boxes(empty, np.eye(4)).shape) == (0, 7)
    assert tuple(transform_points(empty, np.eye(4)).shape) == (0, 7)
    assert tuple(project_points(empty, np.eye(4)).pixels.shape) == (0, 2)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: box_corners(np.zeros((3, 8))),
            r"box_corners: boxes must be \(N, 7\) .* got \(3, 8\)",
        ),
        (
            lambda: transform_points(np.zeros((3, 2)), np.eye(4)),
            r"transform_points: points must be",
        ),
        (lambda: transform_points(np.zeros((3, 3)), np.eye(3)), r"source2target must be \(4, 4\)"),
        (lambda: invert(np.eye(3)), r"invert: transform must be \(..., 4, 4\), got \(3, 3\)"),
        (lambda: rigid_transform(np.eye(4), [0, 0, 0]), r"rotation must be \(3, 3\), got \(4, 4\)"),
        (lambda: quaternion_rotation(np.zeros(3)), r"quaternion must be \(..., 4\), got \(3,\)"),
        (
            lambda: projection_matrix(np.eye(4), np.eye(4)),
            r"intrinsics must be \(3, 3\) or \(3, 4\)",
        ),
        (lambda: project_points(np.zeros((1, 3)), np.eye(3)), r"lidar2image must be \(4, 4\)"),
    ],
)
def test_wrong_shapes_are_named(call: Callable[[], Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()
