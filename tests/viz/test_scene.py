"""Pictures of multi-sensor samples: boxes on images, from above, maps; what is drawn where, made up and real."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import matplotlib.style
import numpy as np
import pytest
import torch
from matplotlib.figure import Figure

from pointlib.data.multi_sensor import CameraImage, MultiSensorSample
from pointlib.data.nuscenes_info import NuScenesInfo
from pointlib.data.nuscenes_map import MAP_CLASSES
from pointlib.data.pandaset import PandaSet
from pointlib.geometry import project_points, projection_matrix, rigid_transform, yaw_rotation
from pointlib.sensors import Detections, ScenePrediction, SceneTargets
from pointlib.viz import (
    boxes_birds_eye,
    boxes_on_images,
    draw_prediction,
    map_view,
    save_figure,
    scene_picture,
)
from pointlib.viz.box_layers import BoxLayer, class_color
from pointlib.viz.boxes_birds_eye import forward_turn
from pointlib.viz.boxes_on_images import (
    camera_rows,
    clip_lines,
    corners_in_camera,
    visible_lines,
)
from pointlib.viz.map_view import map_color

CLASSES = ("car", "pedestrian", "wombat")
INTRINSICS = np.array([[100.0, 0, 80], [0, 100, 45], [0, 0, 1]])
AHEAD = np.array([[0.0, -1, 0], [0, 0, -1], [1, 0, 0]])
"""Rotation from x forward, y left, z up to a camera that looks along x."""
NUSCENES = np.array([[0.0, 1, 0, 0.9], [-1, 0, 0, 0], [0, 0, 1, 1.8], [0, 0, 0, 1]])
"""lidar2ego of a LiDAR frame with x to the right and y forward."""


def camera(name: str, yaw: float, gray: int | None = 60) -> CameraImage:
    turned = AHEAD @ yaw_rotation(np.array(-yaw))
    image = None if gray is None else np.full((90, 160, 3), gray, np.uint8)
    transform = rigid_transform(turned, [0.0, 0.0, 0.0])
    return CameraImage(name, image, INTRINSICS, transform, f"{name}.jpg")


def sample(boxes: list[list[float]], labels: list[int], **changes: object) -> MultiSensorSample:
    angles = {"front": 0.0, "front_right": -0.96, "front_left": 0.96}
    angles |= {"back": 3.14, "back_left": 1.92, "back_right": -1.92}
    made = MultiSensorSample(
        points=np.array([[5.0, 5, 0, 0, 0], [-8, 2, 1, 0, 0]], np.float32),
        boxes=np.array(boxes, np.float32).reshape(-1, 9),
        box_labels=np.array(labels, np.int64),
        box_points=np.ones(len(labels), np.int64),
        cameras=tuple(camera(name, yaw) for name, yaw in angles.items()),
        lidar2ego=np.eye(4),
        ego2global=np.eye(4),
        map=None,
        token="a sample",
        path="cloud.bin",
        timestamp_us=0,
    )
    return made.replace(**changes)


CAR_AHEAD = [10.0, 0.0, 0.0, 4.0, 2.0, 1.5, 0.0, 5.0, 0.0]


def found(boxes: list[list[float]], scores: list[float], labels: list[int]) -> Detections:
    array = torch.tensor(boxes).view(-1, 9)
    return Detections(array, torch.tensor(scores), torch.tensor(labels))


def pixels(figure: Figure, dpi: int = 50) -> np.ndarray:
    figure.set_dpi(dpi)
    figure.canvas.draw()
    return np.asarray(figure.canvas.buffer_rgba())[..., :3]  # type: ignore[attr-defined]


def near_color(
    image: np.ndarray, color: tuple[float, float, float], tolerance: int = 60
) -> np.ndarray:
    return np.abs(image.astype(int) - np.array(color) * 255).max(axis=-1) <= tolerance


def legend(figure: Figure) -> list[str]:
    return [text.get_text() for legend in figure.legends for text in legend.get_texts()]


# Lines in images


def test_corners_fall_where_points_project() -> None:
    box = np.array([[12.0, 2.0, -0.5, 4.0, 2.0, 1.5, 0.4]])
    view = camera("front", 0.1)
    corners = corners_in_camera(box, view.lidar2camera)[0]
    lines = visible_lines(corners, view.intrinsics, (160, 90))
    assert lines.shape == (13, 2, 2)  # twelve edges and the heading
    local = np.array([[2, 1, -0.75], [2, -1, -0.75]]) @ yaw_rotation(np.array(0.4)).T
    matrix = projection_matrix(view.intrinsics, view.lidar2camera)
    seen = project_points(local + box[:, :3], matrix).pixels
    np.testing.assert_allclose(lines[0], seen, atol=1e-9)  # front left to front right, below
    # The heading ends in the middle of the lower front edge, in space.
    front = project_points((local + box[:, :3]).mean(0, keepdims=True), matrix).pixels[0]
    np.testing.assert_allclose(lines[-1, 1], front, atol=1e-9)


def test_boxes_behind_beside_and_around_the_camera() -> None:
    view = camera("front", 0.0)

    def lines(x: float, y: float, length: float = 4.0) -> np.ndarray:
        box = np.array([[x, y, 0.0, length, 2.0, 1.5, 0.0]])
        return visible_lines(corners_in_camera(box, view.lidar2camera)[0], INTRINSICS, (160, 90))

    assert len(lines(-10, 0)) == 0
    assert len(lines(10, 30)) == 0
    for straddling in (lines(1.0, 2.0), lines(0.0, 0.0, length=20.0), lines(6.0, 5.0)):
        assert len(straddling) > 0 and np.isfinite(straddling).all()
        assert straddling.min() >= -1e-6
        assert (straddling <= np.array([160, 90]) + 1e-6).all()


def test_clipping_keeps_the_part_inside() -> None:
    rng = np.random.default_rng(0)
    lines = rng.uniform(-2, 2, (200, 2, 2))
    kept = clip_lines(lines, 1 - lines[..., 0] - lines[..., 1])
    inside = (lines.sum(-1) < 1).any(1)
    assert len(kept) == inside.sum()
    assert (kept.sum(-1) <= 1 + 1e-9).all()
    for before, after in zip(lines[inside], kept, strict=True):
        shares = np.linspace(0, 1, 2001)
        on_line = before[0] + shares[:, None] * (before[1] - before[0])
        length = (on_line.sum(1) < 1).mean() * np.linalg.norm(before[1] - before[0])
        assert np.linalg.norm(after[1] - after[0]) == pytest.approx(length, abs=4e-3)


def test_cameras_stand_as_one_looks_around() -> None:
    names = [[c.name for c in row] for row in camera_rows(sample([], []))]
    assert names == [
        ["front_left", "front", "front_right"],
        ["back_left", "back", "back_right"],
    ]
    turned = sample([], [])
    cameras = tuple(
        CameraImage(c.name, c.image, c.intrinsics, c.lidar2camera @ NUSCENES, c.path)
        for c in turned.cameras
    )
    turned = turned.replace(cameras=cameras, lidar2ego=NUSCENES)
    assert [[c.name for c in row] for row in camera_rows(turned)] == names
    assert [[c.name for c in row] for row in camera_rows(turned.replace(cameras=cameras[:1]))] == [
        ["front"]
    ]


def test_boxes_are_drawn_on_the_cameras_that_see_them() -> None:
    image = pixels(boxes_on_images(sample([CAR_AHEAD], [0]), CLASSES))
    height, width = image.shape[:2]
    orange = near_color(image, class_color("car", 0))
    assert orange[: height // 2 - 10, width // 3 : 2 * width // 3].sum() > 30
    others = orange.copy()
    others[: height // 2 - 10, width // 3 : 2 * width // 3] = False
    others[-60:] = False  # the legend
    assert others.sum() == 0


def test_truth_is_white_beside_detections() -> None:
    detections = found([CAR_AHEAD, CAR_AHEAD], [0.9, 0.1], [2, 1])
    figure = boxes_on_images(sample([CAR_AHEAD], [0]), CLASSES, detections)
    assert legend(figure) == ["wombat", "truth"]
    assert near_color(pixels(figure), class_color("wombat", 2)).any()


# From above


def test_forward_is_up_in_either_frame() -> None:
    np.testing.assert_allclose(forward_turn(np.eye(4)), np.eye(4), atol=1e-12)
    ahead_nuscenes = forward_turn(NUSCENES)[:3, :3] @ [0.0, 1.0, 0.0]
    np.testing.assert_allclose(ahead_nuscenes, [1.0, 0.0, 0.0], atol=1e-12)
    right = [0.0, 10.0, 0.0, 4.0, 2.0, 1.5, np.pi / 2, np.nan, np.nan]
    for box, lidar2ego in ((CAR_AHEAD, np.eye(4)), (right, NUSCENES)):
        scene = sample([box], [0], lidar2ego=lidar2ego, cameras=())
        image = pixels(boxes_birds_eye(scene, CLASSES, extent=20))
        rows, columns = np.nonzero(near_color(image[:-60], class_color("car", 0)))
        assert rows.mean() < 0.4 * len(image)
        assert columns.mean() == pytest.approx(image.shape[1] / 2, rel=0.1)


def test_arrows_show_velocity_and_unknown_ones_are_left_out() -> None:
    still, unknown = CAR_AHEAD.copy(), CAR_AHEAD.copy()
    still[7], unknown[7] = 0.0, np.nan
    tops = []
    for box in (CAR_AHEAD, still, unknown):
        image = pixels(boxes_birds_eye(sample([box], [0]), CLASSES, extent=20))[:-60]
        tops.append(np.nonzero(near_color(image, class_color("car", 0)))[0].min())
    metre = image.shape[1] / 45  # about
    assert tops[1] == tops[2]
    assert 3 * metre < tops[1] - tops[0] < 6 * metre  # the car moves by 5 m, from its front on


def test_no_grid_even_under_a_style_that_has_one() -> None:
    with matplotlib.style.context("seaborn-v0_8-whitegrid"):
        figure = boxes_birds_eye(sample([CAR_AHEAD], [0]), CLASSES)
    (axes,) = figure.axes
    assert not any(line.get_visible() for line in axes.get_xgridlines())


# Maps


def test_map_cells_stand_where_they_are() -> None:
    masks = np.zeros((2, 20, 20), bool)
    masks[0, 15:, 15:] = True  # +x, +y
    names = ("drivable_area", "moat")
    for lidar2ego, upper, left in (
        (None, True, True),
        (np.eye(4), True, True),
        (NUSCENES, True, False),
    ):
        image = pixels(map_view(masks, None, names, lidar2ego=lidar2ego))[:-70]
        rows, columns = np.nonzero(near_color(image, map_color("drivable_area", 0), 8))
        assert (rows.mean() < len(image) / 2) == upper
        assert (columns.mean() < image.shape[1] / 2) == left


def test_map_legend_tells_the_iou_and_lines_cover_areas() -> None:
    masks = np.zeros((3, 10, 10), bool)
    masks[0, :, :5] = True
    masks[1, :, 2:4] = True
    probabilities = np.zeros((3, 10, 10))
    probabilities[0, :5, :5] = 0.9
    names = ("divider", "drivable_area", "moat")
    figure = map_view(masks, probabilities, names)
    assert legend(figure) == ["divider (IoU 50 %)", "drivable area (IoU 0 %)", "moat (none)"]
    assert not near_color(pixels(figure)[:-70], map_color("drivable_area", 1), 8).any()


# Everything


@pytest.mark.parametrize("kind", ["truth", "boxes", "maps", "boxes and maps", "nothing sensed"])
def test_scene_pictures(kind: str, tmp_path: Path) -> None:
    scene = sample([CAR_AHEAD], [0])
    detections = found([CAR_AHEAD], [0.8], [0]) if "boxes" in kind else None
    masks = np.zeros((6, 20, 20), bool)
    masks[0] = True
    maps = "maps" in kind
    prediction = None
    if kind not in ("truth", "nothing sensed"):
        found_map = torch.rand(6, 20, 20) if maps else None
        prediction = ScenePrediction(detections, found_map, ("lidar",))
    if kind == "nothing sensed":
        black = tuple(camera(c.name, 0.0, gray=None) for c in scene.cameras)
        scene = sample([], [], points=np.zeros((0, 5), np.float32), cameras=black)
    figure = scene_picture(
        scene, CLASSES, prediction, map_truth=masks if maps else None, map_classes=MAP_CLASSES
    )
    title = "a sample" + (" (without lidar)" if prediction else "")
    assert figure.get_suptitle() == title
    path = save_figure(figure, tmp_path / "scene.png", dpi=30)
    assert path.stat().st_size > 5000


def test_scene_picture_without_cameras() -> None:
    assert pixels(scene_picture(sample([CAR_AHEAD], [0], cameras=()), CLASSES)).any()


def test_drawing_predictions_into_a_folder(tmp_path: Path) -> None:
    scene = sample([CAR_AHEAD], [0], token="002/00")
    masks = torch.zeros(1, 6, 20, 20, dtype=torch.bool)
    targets = SceneTargets((torch.zeros(0, 9),), (torch.zeros(0, dtype=torch.int64),), masks)
    map_only = ScenePrediction(None, torch.rand(6, 20, 20))
    path = draw_prediction(scene, targets, map_only, (), tmp_path / "pictures", dpi=30)
    assert path == tmp_path / "pictures" / "002_00.png" and path.stat().st_size > 5000
    boxes = ScenePrediction(found([CAR_AHEAD], [0.8], [0]))
    assert draw_prediction(scene, None, boxes, CLASSES, tmp_path, dpi=30).is_file()


@pytest.mark.parametrize("dataset", ["nuscenes", "pandaset"])
def test_real_samples(dataset: str, test_data: Path) -> None:
    source: NuScenesInfo | PandaSet
    if dataset == "nuscenes":
        info = test_data / "nuscenes/scene0061_kf0/info.json"
        source = NuScenesInfo(info, num_sweeps=1)
    else:
        source = PandaSet(test_data / "pandaset", missing_images="skip")
    scene = source[0]
    rows = [[c.name.lower() for c in row] for row in camera_rows(scene)]
    assert "front" in rows[0][1] and "left" in rows[0][0] and "right" in rows[0][2]
    assert "back" in rows[1][1] and "left" in rows[1][0] and "right" in rows[1][2]
    image = pixels(scene_picture(scene, source.class_names), dpi=60)
    assert near_color(image, class_color("car", 0), 40).sum() > 300


# Refusals


@pytest.mark.parametrize(
    ("draw", "message"),
    [
        (lambda: boxes_on_images(sample([], [], cameras=()), CLASSES), "sample must have cameras"),
        (lambda: boxes_birds_eye(sample([], []), CLASSES, extent=0), "extent must be positive"),
        (lambda: boxes_birds_eye(sample([CAR_AHEAD], [3]), CLASSES), r"labels must be 0\.\.2"),
        (lambda: BoxLayer(np.zeros((2, 5)), np.zeros(2), CLASSES), r"boxes must be \(N, 7\)"),
        (lambda: map_view(np.zeros((2, 4, 4)), None, ("a",)), r"truth must be \(1, X, Y\)"),
        (
            lambda: map_view(np.zeros((1, 4, 4)), np.zeros((1, 4, 5)), ("a",)),
            "prediction must have the truth's shape",
        ),
        (
            lambda: map_view(np.zeros((1, 4, 4)), np.full((1, 4, 4), 3.0), ("a",)),
            "apply the sigmoid",
        ),
    ],
)
def test_refuses_what_it_cannot_draw(draw: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        draw()
