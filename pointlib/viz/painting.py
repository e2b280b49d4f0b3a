"""Colours, legends and files of pictures: what every kind of picture shares.

Figures are made without pyplot, so they need no display and leave no process-wide state.
"""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import numpy.typing as npt
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from pointlib.data import IGNORE_INDEX, LabelMap, load_label_map
from pointlib.files import write_file

BACKGROUND = "#15171c"
FOREGROUND = "#d8dbe2"
IGNORED_COLOR = (90, 94, 104)
"""Colour of points without a class; black would vanish on the background."""

PICTURE_SUFFIXES = (".png", ".pdf", ".svg", ".jpg")


def new_figure(width: float, height: float, title: str | None) -> Figure:
    """An empty dark figure of so many inches, drawn by Agg."""
    figure = Figure(figsize=(width, height), facecolor=BACKGROUND, layout="constrained")
    FigureCanvasAgg(figure)
    if title:
        figure.suptitle(title, color=FOREGROUND, fontsize=13)
    return figure


def dress(axes: Axes, title: str | None = None) -> None:
    """Give axes the dark look and a title."""
    axes.set_facecolor("black")
    axes.grid(False)  # nuscenes-devkit sets a style with grids for the whole process
    axes.tick_params(colors=FOREGROUND, labelsize=8)
    for spine in axes.spines.values():
        spine.set_color("#3a3f4b")
    if title:
        axes.set_title(title, color=FOREGROUND, fontsize=11)


def check_points(function: str, points: npt.ArrayLike) -> npt.NDArray[np.float32]:
    """Points as (N, 3+) float32 with finite coordinates.

    Raises:
        ValueError: If they have another shape, are none, or are not finite.
    """
    array = np.asarray(points, dtype=np.float32)
    if array.ndim != 2 or array.shape[1] < 3 or len(array) == 0:
        raise ValueError(f"{function}: points must be (N >= 1, 3 or more), got {array.shape}")
    if not np.isfinite(array[:, :3]).all():
        raise ValueError(
            f"{function}: points must be finite, got NaN or Inf; read them with nonfinite='drop'"
        )
    return array


def check_labels(
    function: str, name: str, labels: npt.ArrayLike, count: int, label_map: LabelMap
) -> npt.NDArray[np.int64]:
    """Train ids as (count,) int64.

    Raises:
        ValueError: If there is not one for each point, or one is neither a class nor `IGNORE_INDEX`.
    """
    array = np.asarray(labels).astype(np.int64)
    if array.shape != (count,):
        raise ValueError(
            f"{function}: {name} must be ({count},), one train id a point, got {array.shape}"
        )
    wrong = ((array < 0) | (array >= label_map.num_classes)) & (array != IGNORE_INDEX)
    if wrong.any():
        raise ValueError(
            f"{function}: {name} must be train ids 0..{label_map.num_classes - 1} or {IGNORE_INDEX}, got "
            f"{np.unique(array[wrong])[:5].tolist()}; translate raw ids with LabelMap.to_train"
        )
    return array


def resolve_map(label_map: LabelMap | str | Path) -> LabelMap:
    """The map itself, or the one of that name or path."""
    return label_map if isinstance(label_map, LabelMap) else load_label_map(label_map)


def class_colors(labels: npt.NDArray[np.int64], label_map: LabelMap) -> npt.NDArray[np.uint8]:
    """(N, 3) uint8 RGB of each train id."""
    table = label_map.colors.copy()
    table[IGNORE_INDEX] = IGNORED_COLOR
    return np.asarray(table[labels], dtype=np.uint8)


def scale_colors(
    values: npt.NDArray[np.floating], low: float, high: float, name: str = "viridis"
) -> npt.NDArray[np.uint8]:
    """RGB (..., 3) uint8 of numbers between `low` and `high` in a matplotlib colour map."""
    shares = np.clip((values - low) / max(high - low, 1e-6), 0.0, 1.0)
    return np.asarray(colormaps[name](shares, bytes=True))[..., :3]


def height_colors(points: npt.NDArray[np.float32]) -> npt.NDArray[np.uint8]:
    """(N, 3) uint8 RGB of each point by its height, outliers clipped."""
    low, high = np.percentile(points[:, 2], [1, 99])
    return scale_colors(points[:, 2], float(low), float(high), "turbo")


def error_colors(
    truth: npt.NDArray[np.int64], prediction: npt.NDArray[np.int64]
) -> npt.NDArray[np.uint8]:
    """(N, 3) uint8: green where right, red where wrong, grey where the truth has no class."""
    colors = np.where((truth == prediction)[:, None], (38, 74, 50), (255, 45, 45))
    colors[truth == IGNORE_INDEX] = (60, 62, 70)
    return colors.astype(np.uint8)


def add_legend(figure: Figure, labels: npt.NDArray[np.int64], label_map: LabelMap) -> None:
    """A legend below the figure that names the classes which occur in `labels`."""
    patches = []
    for train_id in np.unique(labels):
        ignored = train_id == IGNORE_INDEX
        red, green, blue = IGNORED_COLOR if ignored else label_map.colors[train_id]
        name = "no class" if ignored else label_map.class_names[train_id]
        patches.append(Patch(color=(red / 255, green / 255, blue / 255), label=name))
    columns = max(1, int(figure.get_size_inches()[0] / 1.3))
    figure.legend(
        handles=patches, loc="outside lower center", ncols=columns, fontsize=8, labelcolor=FOREGROUND,
        facecolor=BACKGROUND, edgecolor="#3a3f4b",
    )  # fmt: skip


def save_figure(figure: Figure, path: str | Path, dpi: int = 120) -> Path:
    """Write a figure, whole or not at all.

    Args:
        figure: What `birds_eye`, `range_image` or `side_by_side` made.
        path: File to write, .png, .pdf, .svg or .jpg; missing folders are made.
        dpi: Pixels an inch.

    Returns:
        The path.

    Raises:
        ValueError: Another suffix.
        OSError: It cannot be written.
    """
    path = Path(path)
    if path.suffix.lower() not in PICTURE_SUFFIXES:
        raise ValueError(
            f"save_figure: path must end in {', '.join(PICTURE_SUFFIXES)}, got {str(path)!r}"
        )
    content = io.BytesIO()
    figure.savefig(content, format=path.suffix[1:].lower(), dpi=dpi, facecolor=BACKGROUND)
    write_file(path, content.getvalue())
    return path
