"""Boxes to draw: which, in which colour, in which manner. Pictures of images and of the bird's-eye view share them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from matplotlib import colormaps
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from pointlib.data.multi_sensor import MultiSensorSample
from pointlib.sensors import Detections
from pointlib.viz.painting import BACKGROUND, FOREGROUND

CLASS_COLORS = {
    "car": "#ff9e1b",
    "truck": "#ff5a3c",
    "construction_vehicle": "#7bd44f",
    "bus": "#ffe14d",
    "trailer": "#d6cf8c",
    "barrier": "#9fb4c7",
    "motorcycle": "#ff5fd2",
    "bicycle": "#c77dff",
    "pedestrian": "#3fa9ff",
    "traffic_cone": "#2ee6c5",
    "cyclist": "#c77dff",
    "van": "#ff7f6b",
}
"""Colours of common classes, bright enough for a dark background; others take theirs by number."""
TRUTH_COLOR = "#ffffff"
"""Of true boxes where found ones have the colours of the classes."""


@dataclass(frozen=True, eq=False)
class BoxLayer:
    """Boxes drawn in one manner.

    Attributes:
        boxes: (N, 9) float32, `pointlib.geometry.BOX_COLUMNS` with velocity (NaN: unknown), LiDAR frame.
        labels: (N,) int64 index into class_names.
        class_names: Name of each class.
        plain: Thin and white, to stand behind found boxes; else in the colours of the classes.
    """

    boxes: npt.NDArray[np.float32]
    labels: npt.NDArray[np.int64]
    class_names: tuple[str, ...]
    plain: bool = False

    def __post_init__(self) -> None:
        """Refuse boxes that cannot be drawn."""
        shape, count = self.boxes.shape, len(self.boxes)
        if len(shape) != 2 or shape[1] not in (7, 9) or self.labels.shape != (count,):
            raise ValueError(
                "BoxLayer: boxes must be (N, 7) or (N, 9) and labels (N,), "
                f"got {shape} and {self.labels.shape}"
            )
        if count and not 0 <= self.labels.min() <= self.labels.max() < len(self.class_names):
            raise ValueError(
                f"BoxLayer: labels must be 0..{len(self.class_names) - 1}, one of class_names, "
                f"got {self.labels.min()}..{self.labels.max()}"
            )

    def colors(self) -> npt.NDArray[np.float64]:
        """(N, 3) RGB in [0, 1] of each box."""
        if self.plain:
            return np.tile(to_rgb(TRUTH_COLOR), (len(self.boxes), 1))
        table = [class_color(name, i) for i, name in enumerate(self.class_names)]
        return np.array(table, dtype=np.float64)[self.labels]


def class_color(name: str, index: int) -> tuple[float, float, float]:
    """RGB in [0, 1] of a class of boxes."""
    if name in CLASS_COLORS:
        return to_rgb(CLASS_COLORS[name])
    return to_rgb(colormaps["tab20"](index % 20))


def true_boxes(
    sample: MultiSensorSample, class_names: Sequence[str], plain: bool = False
) -> BoxLayer:
    """The boxes of a sample."""
    return BoxLayer(sample.boxes, sample.box_labels, tuple(class_names), plain)


def found_boxes(
    detections: Detections, class_names: Sequence[str], min_score: float = 0.3
) -> BoxLayer:
    """The boxes of a network that are as certain as `min_score`."""
    kept = detections.scores >= min_score
    return BoxLayer(
        detections.boxes[kept].detach().float().cpu().numpy(),
        detections.labels[kept].cpu().numpy().astype(np.int64),
        tuple(class_names),
    )


def box_layers(
    sample: MultiSensorSample,
    detections: Detections | None,
    class_names: Sequence[str],
    min_score: float,
) -> list[BoxLayer]:
    """What a picture of a sample shows: its boxes; with detections these, and its boxes thin and white behind them."""
    if detections is None:
        return [true_boxes(sample, class_names)]
    return [
        true_boxes(sample, class_names, plain=True),
        found_boxes(detections, class_names, min_score),
    ]


def add_box_legend(figure: Figure, layers: Sequence[BoxLayer]) -> None:
    """A legend below the figure: the classes that occur, and what white means."""
    colored = [layer for layer in layers if not layer.plain]
    names = {}
    for layer in colored:
        for label in np.unique(layer.labels):
            name = layer.class_names[label]
            names[name] = class_color(name, int(label))
    lines = [Line2D([], [], color=color, label=name, linewidth=3) for name, color in names.items()]
    if any(layer.plain for layer in layers):
        lines.append(Line2D([], [], color=TRUTH_COLOR, label="truth", linewidth=1.2))
    if lines:
        figure.legend(
            handles=lines, loc="outside lower center", ncols=12, fontsize=9,
            labelcolor=FOREGROUND, facecolor=BACKGROUND, edgecolor="#3a3f4b",
        )  # fmt: skip
