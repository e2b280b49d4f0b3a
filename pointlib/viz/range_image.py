"""A scan unrolled as the sensor sees it: one row an elevation, one column an azimuth."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from pointlib.data import LabelMap
from pointlib.viz.painting import (
    add_legend,
    check_labels,
    check_points,
    class_colors,
    dress,
    new_figure,
    resolve_map,
    scale_colors,
)

ROWS, COLUMNS = 64, 1024
FIELD = (np.radians(3.0), np.radians(-25.0))
"""Highest and lowest elevation shown [rad]: the HDL-64E's, as RangeNet++ projects it."""


def range_projection(
    points: npt.ArrayLike,
    rows: int = ROWS,
    columns: int = COLUMNS,
    field: tuple[float, float] = FIELD,
) -> npt.NDArray[np.int64]:
    """Spherical projection: which point each pixel shows, the nearest where several meet.

    Args:
        points: (N, 3+) float, x, y, z [m] in the LiDAR frame.
        rows: Pixels from the highest elevation (row 0) to the lowest; points outside the field are left out.
        columns: Pixels around; the middle column looks forward, the left ones to the left.
        field: Highest and lowest elevation [rad].

    Returns:
        (rows, columns) int64 index into the points, -1 where there is none.

    Raises:
        ValueError: An argument breaks its contract.
    """
    array = check_points("range_projection", points)
    if rows < 1 or columns < 1 or field[0] <= field[1]:
        raise ValueError(
            "range_projection: rows and columns must be positive and field (highest, lowest), got "
            f"{rows}, {columns}, {field}"
        )
    distance = np.linalg.norm(array[:, :3], axis=1)
    elevation = np.arcsin(np.clip(array[:, 2] / np.maximum(distance, 1e-9), -1.0, 1.0))
    azimuth = np.arctan2(array[:, 1], array[:, 0])
    row = np.floor((field[0] - elevation) / (field[0] - field[1]) * rows).astype(np.int64)
    column = np.floor((0.5 - azimuth / (2 * np.pi)) * columns).astype(np.int64) % columns
    # Far points first, so that near ones overwrite them.
    order = np.argsort(-distance, kind="stable")
    order = order[(row[order] >= 0) & (row[order] < rows)]
    image = np.full((rows, columns), -1, dtype=np.int64)
    image[row[order], column[order]] = order
    return image


def range_image(
    points: npt.ArrayLike,
    labels: npt.ArrayLike | None = None,
    *,
    rows: int = ROWS,
    columns: int = COLUMNS,
    label_map: LabelMap | str | Path = "official",
    title: str | None = None,
) -> Figure:
    """Draw a scan as the sensor sees it: distance, intensity if there is one, classes if they are given.

    Args:
        points: (N, 3+) float, x, y, z [m] in the LiDAR frame and, as fourth column, intensity in [0, 1].
        labels: (N,) train ids, 255 = no class.
        rows: Pixels in height.
        columns: Pixels in width, the whole turn.
        label_map: Names and colours of the classes: a map, "official", "spvnas" or a YAML file.
        title: Of the figure.

    Returns:
        The figure; `save_figure` writes it.

    Raises:
        ValueError: An argument breaks its contract.
    """
    array, names = check_points("range_image", points), resolve_map(label_map)
    image = range_projection(array, rows, columns)
    ids = None
    if labels is not None:
        ids = check_labels("range_image", "labels", labels, len(array), names)
    layers = unrolled_layers(array, ids, names)
    figure = new_figure(16.0, 1.75 * len(layers) + 0.5, title)
    for number, (name, colors) in enumerate(layers):
        axes = figure.add_subplot(len(layers), 1, number + 1)
        draw_unrolled(axes, image, colors, name)
    if ids is not None:
        add_legend(figure, ids, names)
    return figure


def unrolled_layers(
    points: npt.NDArray[np.float32], ids: npt.NDArray[np.int64] | None, names: LabelMap
) -> list[tuple[str, npt.NDArray[np.uint8]]]:
    """What `range_image` shows, from top to bottom: name and (N, 3) uint8 colours of the points."""
    distance = np.log(np.linalg.norm(points[:, :3], axis=1) + 1.0)
    layers = [("distance", scale_colors(distance, np.log(3.0), np.log(60.0), "turbo"))]
    if points.shape[1] > 3:
        layers.append(("intensity", scale_colors(points[:, 3], 0.0, 0.7, "gray")))
    if ids is not None:
        layers.append(("classes", class_colors(ids, names)))
    return layers


def draw_unrolled(
    axes: Axes, image: npt.NDArray[np.int64], colors: npt.NDArray[np.uint8], title: str
) -> None:
    """Draw point colours (N, 3) uint8 through a projection (rows, columns), black where it is empty."""
    dress(axes, title)
    pixels = np.where((image >= 0)[..., None], colors[np.maximum(image, 0)], 0).astype(np.uint8)
    axes.imshow(pixels, aspect="auto", interpolation="nearest")
    columns = image.shape[1]
    axes.set_yticks([])
    axes.set_xticks(
        [0, columns / 4, columns / 2, 3 * columns / 4, columns - 1],
        ["behind", "left", "ahead", "right", "behind"],
    )
