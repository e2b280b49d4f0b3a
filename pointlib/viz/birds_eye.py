"""A scan seen from above."""

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
    height_colors,
    new_figure,
    resolve_map,
)


def birds_eye(
    points: npt.ArrayLike,
    labels: npt.ArrayLike | None = None,
    *,
    extent: float = 50.0,
    label_map: LabelMap | str | Path = "official",
    title: str | None = None,
    size: float = 9.0,
) -> Figure:
    """Draw a scan from above, x forward pointing up and y left pointing left; higher points cover lower ones.

    Args:
        points: (N, 3+) float, x, y, z [m] in the LiDAR frame.
        labels: (N,) train ids for the colours, 255 = no class; None colours by height.
        extent: Half of the square's edge around the sensor [m].
        label_map: Names and colours of the classes: a map, "official", "spvnas" or a YAML file.
        title: Of the figure.
        size: Edge of the figure [inch].

    Returns:
        The figure; `save_figure` writes it.

    Raises:
        ValueError: An argument breaks its contract.
    """
    if extent <= 0:
        raise ValueError(f"birds_eye: extent must be positive, got {extent}")
    array, names = check_points("birds_eye", points), resolve_map(label_map)
    figure = new_figure(size, size + (0.7 if labels is not None else 0.0), title)
    if labels is None:
        colors = height_colors(array)
    else:
        ids = check_labels("birds_eye", "labels", labels, len(array), names)
        colors = class_colors(ids, names)
        add_legend(figure, ids, names)
    draw_from_above(figure.add_subplot(), array, colors, extent)
    return figure


def draw_from_above(
    axes: Axes,
    points: npt.NDArray[np.float32],
    colors: npt.NDArray[np.uint8],
    extent: float,
    title: str | None = None,
) -> None:
    """Draw coloured points (N, 3+), (N, 3) uint8 into axes, as `birds_eye` does."""
    dress(axes, title)
    near = (np.abs(points[:, :2]) < extent).all(axis=1)
    order = np.flatnonzero(near)[np.argsort(points[near, 2], kind="stable")]
    # A dot covers about 0.15 m, but never less than a pixel and a half of a 120 dpi picture.
    edge = axes.get_position().width * axes.get_figure(root=True).get_size_inches()[0] * 72  # type: ignore[union-attr]
    dot = max(0.9, 0.15 * edge / (2 * extent)) ** 2
    axes.scatter(
        -points[order, 1], points[order, 0], s=dot, c=colors[order] / 255.0, marker="s",
        linewidths=0, rasterized=True,
    )  # fmt: skip
    axes.plot([0], [0.4], marker="^", color="white", markersize=6)
    axes.set_xlim(-extent, extent)
    axes.set_ylim(-extent, extent)
    axes.set_aspect("equal")
    axes.set_xticks(axes.get_xticks(), [f"{0 - x:g}" for x in axes.get_xticks()])
    axes.set_xlim(-extent, extent)
    axes.set_xlabel("y [m]", color="#d8dbe2", fontsize=8)
    axes.set_ylabel("x [m]", color="#d8dbe2", fontsize=8)
