"""Boxes drawn on camera images: clipped where they pass behind the camera or beyond the border, front faces filled."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection, PolyCollection
from matplotlib.figure import Figure

from pointlib.data.multi_sensor import CameraImage, MultiSensorSample
from pointlib.geometry import box_corners, transform_points
from pointlib.sensors import Detections
from pointlib.viz.box_layers import BoxLayer, add_box_legend, box_layers
from pointlib.viz.painting import dress, new_figure

Floats = npt.NDArray[np.float64]

EDGES = np.array(
    [(0, 1), (1, 2), (2, 3), (3, 0), (4, 5), (5, 6), (6, 7), (7, 4), (0, 4), (1, 5), (2, 6), (3, 7)]
)
"""Corners of `pointlib.geometry.box_corners` that an edge joins."""
FRONT = (0, 1, 5, 4)
"""Corners of the face in the direction of heading."""
NEAR = 0.3
"""Distance in front of the camera from which on things are drawn [m]."""


def boxes_on_images(
    sample: MultiSensorSample,
    class_names: Sequence[str],
    detections: Detections | None = None,
    *,
    min_score: float = 0.3,
    title: str | None = None,
) -> Figure:
    """Draw boxes on all images of a sample: those looking forward above, left to right, those looking back below.

    Args:
        sample: With cameras.
        class_names: Name of each class of its boxes and of the detections.
        detections: Found boxes in the LiDAR frame, drawn in the colours of their classes above the true ones in white;
            None draws the true ones in the colours.
        min_score: Detections that are less certain are left out.
        title: Of the figure; the sample's token if None.

    Returns:
        The figure; `save_figure` writes it.

    Raises:
        ValueError: The sample has no cameras.
    """
    rows = camera_rows(sample)
    layers = box_layers(sample, detections, class_names, min_score)
    columns = max(len(row) for row in rows)
    figure = new_figure(5.0 * columns, 2.95 * len(rows) + 0.6, title or sample.token)
    grid = figure.subplots(len(rows), columns, squeeze=False)
    draw_cameras(grid, rows, layers)
    add_box_legend(figure, layers)
    return figure


def camera_rows(sample: MultiSensorSample) -> list[list[CameraImage]]:
    """Order cameras as one looks around: the half that looks most forward, left to right, then the others.

    Raises:
        ValueError: The sample has no cameras.
    """
    if not sample.cameras:
        raise ValueError(
            f"boxes_on_images: sample must have cameras, got none in {sample.token}; read it with cameras=True"
        )
    axes = [sample.lidar2ego[:3, :3] @ camera.lidar2camera[2, :3] for camera in sample.cameras]
    yaws = [float(np.arctan2(axis[1], axis[0])) for axis in axes]
    by_angle = sorted(range(len(yaws)), key=lambda i: abs(yaws[i]))
    half = -(-len(yaws) // 2)
    ahead = sorted(by_angle[:half], key=lambda i: -yaws[i])
    behind = sorted(by_angle[half:], key=lambda i: yaws[i] % (2 * np.pi))
    return [[sample.cameras[i] for i in row] for row in (ahead, behind) if row]


def draw_cameras(
    grid: npt.NDArray[Any], rows: Sequence[Sequence[CameraImage]], layers: Sequence[BoxLayer]
) -> None:
    """Draw cameras into axes of at least as many rows and columns; the others are emptied."""
    for axes in grid.flat:
        axes.set_axis_off()
    for line, cameras in zip(grid, rows, strict=False):
        for axes, camera in zip(line, cameras, strict=False):
            draw_boxes_on_image(axes, camera, layers)


def draw_boxes_on_image(axes: Axes, camera: CameraImage, layers: Sequence[BoxLayer]) -> None:
    """Draw one image and the boxes in it, near ones over far ones.

    Args:
        axes: To draw into.
        camera: One without an image is drawn black, and its boxes are not.
        layers: Boxes in the LiDAR frame.
    """
    axes.set_axis_on()
    dress(axes, camera.name)
    axes.set_xticks([])
    axes.set_yticks([])
    if camera.image is None:
        axes.text(0.5, 0.5, "no image", color="#d8dbe2", ha="center", transform=axes.transAxes)
        return
    height, width = camera.image.shape[:2]
    axes.imshow(camera.image, extent=(0, width, height, 0), interpolation="antialiased")
    for layer in layers:
        _draw_layer(axes, camera, layer, (width, height))
    axes.set_xlim(0, width)
    axes.set_ylim(height, 0)


def _draw_layer(axes: Axes, camera: CameraImage, layer: BoxLayer, size: tuple[int, int]) -> None:
    corners = corners_in_camera(layer.boxes, camera.lidar2camera)
    colors = layer.colors()
    segments, owners, faces, face_colors = [], [], [], []
    for i in np.argsort(-corners[..., 2].mean(1)):
        lines = visible_lines(corners[i], camera.intrinsics, size)
        if not len(lines):
            continue
        segments.append(lines)
        owners += [colors[i]] * len(lines)
        face = corners[i, FRONT]
        if face[:, 2].min() > NEAR:
            faces.append(
                face[:, :2] / face[:, 2:] @ camera.intrinsics[:2, :2].T + camera.intrinsics[:2, 2]
            )
            face_colors.append((*colors[i], 0.0 if layer.plain else 0.3))
    if not segments:
        return
    every = np.concatenate(segments)
    width = 0.7 if layer.plain else 1.3
    axes.add_collection(PolyCollection(faces, facecolors=face_colors, edgecolors="none"))
    axes.add_collection(LineCollection(list(every), colors=[(0, 0, 0, 0.55)], linewidths=width + 1))
    axes.add_collection(LineCollection(list(every), colors=owners, linewidths=width))


def corners_in_camera(boxes: npt.NDArray[np.floating], lidar2camera: Floats) -> Floats:
    """(N, 8, 3) corners of boxes, x right, y down, z ahead of the camera [m]."""
    corners = box_corners(np.asarray(boxes, np.float64)).reshape(-1, 3)
    return transform_points(corners, lidar2camera).reshape(-1, 8, 3)


def visible_lines(corners: Floats, intrinsics: Floats, size: tuple[int, int]) -> Floats:
    """The edges of one box and the line to its front, as far as they are in the image.

    Args:
        corners: (8, 3) of `corners_in_camera`.
        intrinsics: (3, 3) camera matrix [pixels].
        size: Width and height of the image [pixels].

    Returns:
        (S, 2, 2) u, v of both ends of each line; none for a box that is out of sight.
    """
    heading = np.stack([corners[:4].mean(0), corners[:2].mean(0)])
    lines = np.concatenate([corners[EDGES], heading[None]])
    lines = clip_lines(lines, lines[..., 2] - NEAR)
    pixels = lines[..., :2] / lines[..., 2:] @ intrinsics[:2, :2].T + intrinsics[:2, 2]
    for axis, limit in enumerate(size):
        pixels = clip_lines(pixels, pixels[..., axis])
        pixels = clip_lines(pixels, limit - pixels[..., axis])
    return pixels


def clip_lines(lines: Floats, inside: Floats) -> Floats:
    """Cut lines where a quantity that is linear along them becomes negative.

    Args:
        lines: (S, 2, D) both ends of each.
        inside: (S, 2) the quantity at both ends.

    Returns:
        (T, 2, D) what is left; lines without any positive end are gone.

    Example:
        >>> clip_lines(np.array([[[0.0, 0.0], [4.0, 2.0]]]), np.array([[1.0, -1.0]])).tolist()
        [[[0.0, 0.0], [2.0, 1.0]]]
    """
    kept = (inside > 0).any(1)
    lines, inside = lines[kept].copy(), inside[kept]
    start, end = inside[:, 0], inside[:, 1]
    crosses = (start > 0) != (end > 0)
    share = np.divide(start, start - end, out=np.zeros_like(start), where=crosses)
    border = lines[:, 0] + share[:, None] * (lines[:, 1] - lines[:, 0])
    for point, outside in enumerate((crosses & (start <= 0), crosses & (end <= 0))):
        lines[outside, point] = border[outside]
    return lines
