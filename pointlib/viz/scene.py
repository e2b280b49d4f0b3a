"""One picture of everything about a sample: its images, the view from above, the map."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure

from pointlib.data.multi_sensor import MultiSensorSample
from pointlib.data.nuscenes_map import MAP_CLASSES
from pointlib.sensors import ScenePrediction, SceneTargets
from pointlib.viz.box_layers import BoxLayer, add_box_legend, box_layers, found_boxes, true_boxes
from pointlib.viz.boxes_birds_eye import draw_scene_from_above
from pointlib.viz.boxes_on_images import camera_rows, draw_cameras
from pointlib.viz.map_view import check_maps, draw_map, map_legend
from pointlib.viz.painting import BACKGROUND, FOREGROUND, new_figure, save_figure

WIDTH = 15.0
"""Of the figure [inch]."""


def scene_picture(
    sample: MultiSensorSample,
    class_names: Sequence[str],
    prediction: ScenePrediction | None = None,
    *,
    map_truth: npt.ArrayLike | None = None,
    map_classes: Sequence[str] = (),
    extent: float = 54.0,
    map_extent: float = 50.0,
    min_score: float = 0.3,
    title: str | None = None,
) -> Figure:
    """Draw images with boxes, below them the scene from above and the map's truth and prediction.

    Args:
        sample: What was sensed and what is true; without cameras, the rows of images are left out.
        class_names: Name of each class of boxes.
        prediction: What a network answered, drawn beside or above the truth; None draws the truth alone.
        map_truth: (C, X, Y) bool masks of the map in the LiDAR frame; None without.
        map_classes: Name of each of the C classes.
        extent: Half of the edge of the view from above [m].
        map_extent: Half of the edge of the map [m].
        min_score: Detections that are less certain are left out.
        title: Of the figure, the sample's token if None; sensors that the network missed are named with it.

    Returns:
        The figure; `save_figure` writes it.

    Raises:
        ValueError: A map's shape does not fit.
    """
    detections = None if prediction is None else prediction.detections
    layers = box_layers(sample, detections, class_names, min_score)
    views = [(layers, "seen from above")]
    if detections is not None and map_truth is None:
        views = [
            ([true_boxes(sample, class_names)], "truth"),
            ([found_boxes(detections, class_names, min_score)], f"found, score >= {min_score:g}"),
        ]
    maps = 0 if map_truth is None else 1 + (_probabilities(prediction) is not None)
    panels = len(views) + maps
    edge = min(WIDTH / panels, WIDTH / 2)
    rows = camera_rows(sample) if sample.cameras else []
    heights = [2.95 * len(rows), edge] if rows else [edge]
    figure = new_figure(WIDTH, sum(heights) + 1.0, _title(title or sample.token, prediction))
    parts = figure.subfigures(len(heights), 1, squeeze=False, height_ratios=heights)[:, 0]
    for part in parts:
        part.set_facecolor("none")
    if rows:
        draw_cameras(parts[0].subplots(len(rows), max(map(len, rows)), squeeze=False), rows, layers)
    squares = parts[-1].subplots(1, panels, squeeze=False)[0]
    for axes, (boxes, name) in zip(squares, views, strict=False):
        draw_scene_from_above(axes, sample, boxes, extent, name)
    if map_truth is not None:
        _draw_maps(
            parts[-1], squares[len(views) :], sample, prediction, map_truth, map_classes, map_extent
        )
    add_box_legend(figure, _legend_layers(views, layers))
    return figure


def draw_prediction(
    sample: MultiSensorSample,
    targets: SceneTargets | None,
    prediction: ScenePrediction,
    class_names: Sequence[str],
    folder: str | Path,
    *,
    map_classes: Sequence[str] = MAP_CLASSES,
    extent: float = 54.0,
    map_extent: float = 50.0,
    min_score: float = 0.3,
    dpi: int = 100,
) -> Path:
    """Write the picture of one evaluated sample.

    Args:
        sample: As the dataset has it.
        targets: Of the batch of one that was predicted; its map is drawn beside the one found.
        prediction: What the network answered.
        class_names: Name of each class of boxes; none for a network without boxes, whose pictures have none.
        folder: Where the picture goes, named after the sample's token.
        map_classes: Name of each class of the map.
        extent: Half of the edge of the view from above [m].
        map_extent: Half of the edge of the map [m].
        min_score: Detections that are less certain are left out.
        dpi: Pixels an inch.

    Returns:
        The file.

    Raises:
        ValueError: A map's shape does not fit.
        OSError: It cannot be written.
    """
    if not class_names:
        sample = sample.replace(boxes=sample.boxes[:0], box_labels=sample.box_labels[:0])
    masks = None if targets is None else targets.map_masks
    figure = scene_picture(
        sample,
        class_names,
        prediction,
        map_truth=None if masks is None else masks[0].cpu().numpy(),
        map_classes=map_classes,
        extent=extent,
        map_extent=map_extent,
        min_score=min_score,
    )
    name = sample.token.replace("/", "_").replace("\\", "_")
    return save_figure(figure, Path(folder) / f"{name}.png", dpi)


def _draw_maps(
    part: SubFigure,
    squares: Sequence[Axes],
    sample: MultiSensorSample,
    prediction: ScenePrediction | None,
    map_truth: npt.ArrayLike,
    map_classes: Sequence[str],
    extent: float,
) -> None:
    masks, found = check_maps(
        "scene_picture", map_truth, _probabilities(prediction), map_classes, 0.5
    )
    draw_map(squares[0], masks, map_classes, sample.lidar2ego, extent, "map")
    if found is not None:
        draw_map(squares[1], found, map_classes, sample.lidar2ego, extent, "map found")
    part.legend(
        handles=map_legend(masks, found, map_classes), loc="outside lower center", ncols=6,
        fontsize=9, labelcolor=FOREGROUND, facecolor=BACKGROUND, edgecolor="#3a3f4b",
    )  # fmt: skip


def _legend_layers(
    views: Sequence[tuple[list[BoxLayer], str]], layers: list[BoxLayer]
) -> list[BoxLayer]:
    return [*layers, *(layer for boxes, _ in views for layer in boxes)]


def _probabilities(prediction: ScenePrediction | None) -> npt.NDArray[np.float32] | None:
    if prediction is None or prediction.map_probabilities is None:
        return None
    return prediction.map_probabilities.detach().float().cpu().numpy()


def _title(title: str, prediction: ScenePrediction | None) -> str:
    if prediction is None or not prediction.missing_sensors:
        return title
    return f"{title} (without {', '.join(prediction.missing_sensors)})"
