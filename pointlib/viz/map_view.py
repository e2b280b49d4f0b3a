"""Maps around a vehicle: the truth beside what a network found."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from pointlib.viz.boxes_birds_eye import forward_turn
from pointlib.viz.painting import BACKGROUND, FOREGROUND, dress, new_figure

MAP_COLORS = {
    "drivable_area": "#3d5a80",
    "carpark_area": "#ff9f45",
    "walkway": "#58a55c",
    "ped_crossing": "#f26d85",
    "stop_line": "#ffe14d",
    "divider": "#b99bff",
}
"""Colours of nuScenes' map classes in the order they are painted; areas first, so that lines stay visible."""


def map_view(
    truth: npt.ArrayLike,
    prediction: npt.ArrayLike | None,
    class_names: Sequence[str],
    *,
    lidar2ego: npt.NDArray[np.float64] | None = None,
    extent: float = 50.0,
    threshold: float = 0.5,
    title: str | None = None,
) -> Figure:
    """Draw a map's truth, and beside it what was found, with the IoU of each class in the legend.

    Args:
        truth: (C, X, Y) bool, cell (x, y) of the LiDAR frame.
        prediction: (C, X, Y) probabilities; None draws the truth alone.
        class_names: Name of each class.
        lidar2ego: (4, 4), to turn forward up in quarters; None where x of the LiDAR frame is forward.
        extent: Half of the map's edge [m].
        threshold: Probability from which on a cell is of a class.
        title: Of the figure.

    Returns:
        The figure; `save_figure` writes it.

    Raises:
        ValueError: A shape differs from the above, or the numbers are not probabilities.
    """
    masks, found = check_maps("map_view", truth, prediction, class_names, threshold)
    count = 1 if found is None else 2
    figure = new_figure(6.0 * count, 7.0, title)
    panels = figure.subplots(1, count, squeeze=False)[0]
    draw_map(panels[0], masks, class_names, lidar2ego, extent, "truth" if count == 2 else None)
    if found is not None:
        draw_map(panels[1], found, class_names, lidar2ego, extent, "prediction")
    figure.legend(
        handles=map_legend(masks, found, class_names), loc="outside lower center", ncols=3, fontsize=9,
        labelcolor=FOREGROUND, facecolor=BACKGROUND, edgecolor="#3a3f4b",
    )  # fmt: skip
    return figure


def check_maps(
    function: str,
    truth: npt.ArrayLike,
    prediction: npt.ArrayLike | None,
    class_names: Sequence[str],
    threshold: float,
) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.bool_] | None]:
    """Truth and prediction as masks (C, X, Y).

    Raises:
        ValueError: They are not as in `map_view`.
    """
    masks = np.asarray(truth)
    if masks.ndim != 3 or len(masks) != len(class_names):
        raise ValueError(
            f"{function}: truth must be ({len(class_names)}, X, Y), one mask a class, got {masks.shape}"
        )
    if prediction is None:
        return masks.astype(bool), None
    found = np.asarray(prediction)
    if found.shape != masks.shape:
        raise ValueError(
            f"{function}: prediction must have the truth's shape {masks.shape}, got {found.shape}"
        )
    if not ((found >= 0) & (found <= 1)).all():
        raise ValueError(
            f"{function}: prediction must be probabilities in [0, 1], got {found.min()} to {found.max()}; "
            "apply the sigmoid"
        )
    return masks.astype(bool), found >= threshold


def draw_map(
    axes: Axes,
    masks: npt.NDArray[np.bool_],
    class_names: Sequence[str],
    lidar2ego: npt.NDArray[np.float64] | None,
    extent: float,
    title: str | None = None,
) -> None:
    """Paint masks (C, X, Y) into axes, forward up."""
    dress(axes, title)
    image = np.zeros((*masks.shape[1:], 3))
    for index in painting_order(class_names):
        image[masks[index]] = map_color(class_names[index], index)
    turns = 0
    if lidar2ego is not None:
        turn = forward_turn(lidar2ego)
        turns = round(float(np.arctan2(turn[1, 0], turn[0, 0])) / (np.pi / 2))
    # Axis 0 is x, axis 1 is y: with x forward, up on the page is +x and right is -y.
    page = np.rot90(image[::-1, ::-1], turns)
    axes.imshow(page, extent=(-extent, extent, -extent, extent), interpolation="nearest")
    axes.plot([0], [0], marker="^", color="white", markersize=7)
    axes.set_xticks([])
    axes.set_yticks([])


def painting_order(class_names: Sequence[str]) -> list[int]:
    """Indices of classes, those painted first in front."""
    known = list(MAP_COLORS)
    return sorted(
        range(len(class_names)),
        key=lambda i: known.index(class_names[i]) if class_names[i] in known else -1,
    )


def map_color(name: str, index: int) -> tuple[float, float, float]:
    """RGB in [0, 1] of a class of the map."""
    if name in MAP_COLORS:
        return to_rgb(MAP_COLORS[name])
    return to_rgb(colormaps["tab20"](index % 20))


def map_legend(
    truth: npt.NDArray[np.bool_], found: npt.NDArray[np.bool_] | None, class_names: Sequence[str]
) -> list[Patch]:
    """A patch for each class, with its IoU where there is something to compare."""
    patches = []
    for index, name in enumerate(class_names):
        label = name.replace("_", " ")
        if found is not None:
            union = int((truth[index] | found[index]).sum())
            both = int((truth[index] & found[index]).sum())
            label += f" (IoU {100 * both / union:.0f} %)" if union else " (none)"
        patches.append(Patch(color=map_color(name, index), label=label))
    return patches
