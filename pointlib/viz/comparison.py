"""Truth, prediction and errors of one scan side by side."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt
import torch
from matplotlib.figure import Figure

from pointlib.data import LabelMap
from pointlib.metrics.segmentation import ConfusionMatrix
from pointlib.viz.birds_eye import draw_from_above
from pointlib.viz.painting import (
    add_legend,
    check_labels,
    check_points,
    class_colors,
    error_colors,
    new_figure,
    resolve_map,
)
from pointlib.viz.range_image import draw_unrolled, range_projection

View = Literal["bev", "range", "both"]


def side_by_side(
    points: npt.ArrayLike,
    truth: npt.ArrayLike,
    prediction: npt.ArrayLike,
    *,
    view: View = "bev",
    extent: float = 50.0,
    label_map: LabelMap | str | Path = "official",
    title: str | None = None,
) -> Figure:
    """Draw the truth, the prediction, and where they differ in red; the title gives the scan's mIoU.

    Args:
        points: (N, 3+) float, x, y, z [m] in the LiDAR frame.
        truth: (N,) train ids, 255 = not scored.
        prediction: (N,) train ids, 255 = no class given.
        view: "bev" from above, "range" as the sensor sees it, or "both".
        extent: Half of the edge of the view from above [m].
        label_map: Names and colours of the classes: a map, "official", "spvnas" or a YAML file.
        title: Put before the mIoU, which is over the classes present in the truth.

    Returns:
        The figure; `save_figure` writes it.

    Raises:
        ValueError: An argument breaks its contract.
    """
    if view not in get_args(View):
        raise ValueError(f"side_by_side: view must be one of {get_args(View)}, got {view!r}")
    array, names = check_points("side_by_side", points), resolve_map(label_map)
    right = check_labels("side_by_side", "truth", truth, len(array), names)
    guess = check_labels("side_by_side", "prediction", prediction, len(array), names)
    matrix = ConfusionMatrix(names.num_classes)
    matrix.update(torch.from_numpy(guess), torch.from_numpy(right))
    scores = matrix.compute()
    score = f"mIoU {100 * scores.miou_present:.1f} %, accuracy {100 * scores.accuracy:.1f} %"
    layers = (
        ("truth", class_colors(right, names)),
        ("prediction", class_colors(guess, names)),
        ("errors (red)", error_colors(right, guess)),
    )
    above, below = (5.4 if view != "range" else 0.0), (4.6 if view != "bev" else 0.0)
    figure = new_figure(16.0, above + below + 1.1, f"{title}: {score}" if title else score)
    parts = figure.subfigures(
        2 if view == "both" else 1,
        1,
        squeeze=False,
        height_ratios=[above, below] if view == "both" else None,
    )[:, 0]
    for part in parts:
        part.set_facecolor("none")
    if view != "range":
        for axes, (name, colors) in zip(parts[0].subplots(1, 3), layers, strict=True):
            draw_from_above(axes, array, colors, extent, name)
    if view != "bev":
        image = range_projection(array)
        for axes, (name, colors) in zip(parts[-1].subplots(3, 1), layers, strict=True):
            draw_unrolled(axes, image, colors, name)
    add_legend(figure, np.concatenate([right, guess]), names)
    return figure
