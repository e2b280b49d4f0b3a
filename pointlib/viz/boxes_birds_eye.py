"""Points and boxes seen from above, with heading and velocity."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure

from pointlib.data.multi_sensor import MultiSensorSample
from pointlib.geometry import box_corners, transform_boxes, transform_points
from pointlib.sensors import Detections
from pointlib.viz.birds_eye import draw_from_above
from pointlib.viz.box_layers import BoxLayer, add_box_legend, box_layers
from pointlib.viz.painting import height_colors, new_figure

POINT_BRIGHTNESS = 0.55
"""Points are darkened so that boxes stand out."""
SLOWEST = 0.3
"""Speed from which on an arrow is drawn [m/s]."""


def boxes_birds_eye(
    sample: MultiSensorSample,
    class_names: Sequence[str],
    detections: Detections | None = None,
    *,
    extent: float = 54.0,
    min_score: float = 0.3,
    title: str | None = None,
    size: float = 10.0,
) -> Figure:
    """Draw a sample from above, forward pointing up; arrows show where things are in a second.

    Args:
        sample: Its points are coloured by height.
        class_names: Name of each class of its boxes and of the detections.
        detections: Found boxes in the LiDAR frame, drawn in the colours of their classes above the true ones in white;
            None draws the true ones in the colours.
        extent: Half of the square's edge around the LiDAR [m].
        min_score: Detections that are less certain are left out.
        title: Of the figure.
        size: Edge of the figure [inch].

    Returns:
        The figure; `save_figure` writes it.

    Raises:
        ValueError: An argument breaks its contract.
    """
    if extent <= 0:
        raise ValueError(f"boxes_birds_eye: extent must be positive, got {extent}")
    layers = box_layers(sample, detections, class_names, min_score)
    figure = new_figure(size, size + 0.7, title)
    draw_scene_from_above(figure.add_subplot(), sample, layers, extent)
    add_box_legend(figure, layers)
    return figure


def draw_scene_from_above(
    axes: Axes,
    sample: MultiSensorSample,
    layers: Sequence[BoxLayer],
    extent: float,
    title: str | None = None,
) -> None:
    """Draw points and boxes into axes, turned so that the vehicle's forward is up."""
    turn = forward_turn(sample.lidar2ego)
    points = transform_points(sample.points[:, :3], turn)
    if len(points):
        colors = (height_colors(points) * POINT_BRIGHTNESS).astype(np.uint8)
    else:
        colors = np.zeros((0, 3), np.uint8)
    draw_from_above(axes, points, colors, extent, title)
    for layer in layers:
        _draw_layer(axes, layer, turn, extent)
    axes.set_xlim(-extent, extent)
    axes.set_ylim(-extent, extent)


def forward_turn(lidar2ego: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """(4, 4) turn about z after which x of the LiDAR frame points forward: nuScenes' points to the right."""
    forward = lidar2ego[0, :2] / np.linalg.norm(lidar2ego[0, :2])  # in the LiDAR frame
    turn = np.eye(4)
    turn[0, :2] = forward
    turn[1, :2] = -forward[1], forward[0]
    return turn


def _draw_layer(axes: Axes, layer: BoxLayer, turn: npt.NDArray[np.float64], extent: float) -> None:
    near = (np.abs(layer.boxes[:, :2]) < 1.5 * extent).all(1)
    boxes = transform_boxes(np.asarray(layer.boxes[near], np.float64), turn)
    colors = layer.colors()[near]
    if not len(boxes):
        return
    corners = box_corners(boxes)[:, :4, :2]
    front = corners[:, :2].mean(1)
    outline = np.concatenate([corners, corners[:, :1]], 1)
    heading = np.stack([boxes[:, :2], front], 1)
    width = 0.8 if layer.plain else 1.5
    for lines in (outline, heading):
        axes.add_collection(LineCollection(list(_upward(lines)), colors=colors, linewidths=width))
    if boxes.shape[1] == 9:
        moving = np.linalg.norm(boxes[:, 7:9], axis=1) > SLOWEST  # False for NaN
        start, step = _upward(front[moving]), _upward(boxes[moving, 7:9])
        axes.quiver(
            *start.T, *step.T, color=colors[moving], angles="xy", scale_units="xy", scale=1.0,
            width=0.0022 if layer.plain else 0.003, headwidth=4, zorder=3,
        )  # fmt: skip


def _upward(xy: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """From x forward, y left to right and up on the page."""
    return np.stack([-xy[..., 1], xy[..., 0]], -1)
