"""Pictures of scans in files: one scan, a sequence or a whole SemanticKITTI tree, with labels and predictions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

import numpy as np
import numpy.typing as npt
from matplotlib.figure import Figure
from tqdm import tqdm

from pointlib.data import LabelMap, read_labels, read_points
from pointlib.data.semantic_kitti import find_sequences_dir, list_frames, list_sequences
from pointlib.viz.birds_eye import birds_eye, draw_from_above
from pointlib.viz.comparison import View, side_by_side
from pointlib.viz.painting import (
    add_legend,
    check_labels,
    check_points,
    class_colors,
    height_colors,
    new_figure,
    resolve_map,
    save_figure,
)
from pointlib.viz.range_image import draw_unrolled, range_image, range_projection, unrolled_layers
from pointlib.viz.viewer import show_points


@dataclass(frozen=True)
class ScanFiles:
    """One scan's files: points, and where they exist its .label files of truth and prediction."""

    name: str
    points: Path
    labels: Path | None = None
    prediction: Path | None = None


def overview(
    points: npt.ArrayLike,
    labels: npt.ArrayLike | None = None,
    *,
    extent: float = 50.0,
    label_map: LabelMap | str | Path = "official",
    title: str | None = None,
) -> Figure:
    """A scan from above and, below that, as the sensor sees it; arguments as of `birds_eye`."""
    array, names = check_points("overview", points), resolve_map(label_map)
    ids = None if labels is None else check_labels("overview", "labels", labels, len(array), names)
    layers = unrolled_layers(array, ids, names)
    figure = new_figure(12.0, 12.0 + 1.5 * len(layers), title)
    ratios = [12.0, 1.5 * len(layers)]
    above, below = figure.subfigures(2, 1, squeeze=False, height_ratios=ratios)[:, 0]
    for part in (above, below):
        part.set_facecolor("none")
    colors = height_colors(array) if ids is None else class_colors(ids, names)
    draw_from_above(above.subplots(), array, colors, extent)
    image = range_projection(array)
    for axes, (name, layer) in zip(below.subplots(len(layers), 1), layers, strict=True):
        draw_unrolled(axes, image, layer, name)
    if ids is not None:
        add_legend(figure, ids, names)
    return figure


def find_scans(
    path: str | Path,
    *,
    sequences: Sequence[str] | None = None,
    every: int = 1,
    predictions: str | Path | None = None,
) -> list[ScanFiles]:
    """The scans of a SemanticKITTI tree, or of one of its sequence folders, with the label files beside them.

    Args:
        path: The tree's root, or a folder that holds velodyne/.
        sequences: Only these; None takes all that are there.
        every: Take every so manieth scan.
        predictions: Root of a tree ``sequences/XX/predictions/NNNNNN.label``; None looks beside the scans.

    Returns:
        Scans in order; `labels` and `prediction` are None where there is no file.

    Raises:
        ValueError: No such folder or sequence, or `every` below 1.
    """
    path = Path(path)
    if every < 1:
        raise ValueError(f"find_scans: every must be at least 1, got {every}")
    alone = (path / "velodyne").is_dir()
    parent = path.parent if alone else find_sequences_dir(path)
    present = [path.resolve().name] if alone else list_sequences(parent)
    missing = set(sequences or ()) - set(present)
    if missing:
        raise ValueError(
            f"find_scans: sequences must be among {', '.join(present)} of {parent}, got {', '.join(sorted(missing))}"
        )
    scans = []
    for sequence in sequences or present:
        folder = path if alone else parent / sequence
        guesses = Path(predictions) / "sequences" / sequence if predictions else folder
        for frame in list_frames(folder)[::every]:
            labels = folder / "labels" / f"{frame}.label"
            guess = guesses / "predictions" / f"{frame}.label"
            scans.append(
                ScanFiles(
                    f"{sequence}_{frame}",
                    folder / "velodyne" / f"{frame}.bin",
                    labels if labels.exists() else None,
                    guess if guess.exists() else None,
                )
            )
    return scans


def draw_scan(
    scan: ScanFiles,
    *,
    view: View = "bev",
    extent: float = 50.0,
    label_map: LabelMap | str | Path = "official",
) -> Figure:
    """One scan's picture: truth beside prediction where both exist, else whichever exists, else plain points.

    Raises:
        ValueError: A file is broken or does not match the points; the message names it.
    """
    if view not in get_args(View):
        raise ValueError(f"draw_scan: view must be one of {get_args(View)}, got {view!r}")
    names = resolve_map(label_map)
    points, truth, prediction = _load(scan, names)
    if truth is not None and prediction is not None:
        return side_by_side(
            points, truth, prediction, view=view, extent=extent, label_map=names, title=scan.name
        )
    labels = truth if truth is not None else prediction
    kind = "" if labels is None else " (truth)" if truth is not None else " (prediction)"
    title = f"{scan.name}{kind}"
    if view == "bev":
        return birds_eye(points, labels, extent=extent, label_map=names, title=title)
    if view == "range":
        return range_image(points, labels, label_map=names, title=title)
    return overview(points, labels, extent=extent, label_map=names, title=title)


def draw_scans(
    scans: Sequence[ScanFiles],
    folder: str | Path,
    *,
    view: View = "bev",
    extent: float = 50.0,
    label_map: LabelMap | str | Path = "official",
    dpi: int = 120,
    progress: bool = True,
) -> list[Path]:
    """Write a PNG of every scan into a folder, named by sequence and frame, and return the paths."""
    names = resolve_map(label_map)
    return [
        save_figure(
            draw_scan(scan, view=view, extent=extent, label_map=names),
            Path(folder) / f"{scan.name}.png",
            dpi,
        )
        for scan in tqdm(scans, desc="pictures", unit="picture", disable=not progress)
    ]


def show_scan(scan: ScanFiles, *, label_map: LabelMap | str | Path = "official") -> None:
    """Open an interactive window on one scan, coloured by its prediction, else its truth, else by height.

    Raises:
        ImportError: open3d is not installed.
        RuntimeError: No window can be opened.
        ValueError: A file is broken or does not match the points; the message names it.
    """
    names = resolve_map(label_map)
    points, truth, prediction = _load(scan, names)
    labels = truth if prediction is None else prediction
    show_points(points, labels, label_map=names, title=scan.name)


_Ids = npt.NDArray[np.uint8] | None


def _load(scan: ScanFiles, names: LabelMap) -> tuple[npt.NDArray[np.float32], _Ids, _Ids]:
    """Points, truth and prediction of one scan; organised .pcd files mark missing returns by NaN."""
    organised = scan.points.suffix.lower() == ".pcd" and not (scan.labels or scan.prediction)
    points = read_points(
        scan.points, missing_intensity=0.0, nonfinite="drop" if organised else "raise"
    )
    truth = _train_ids(scan.labels, len(points), scan.points, names)
    return points, truth, _train_ids(scan.prediction, len(points), scan.points, names)


def _train_ids(path: Path | None, count: int, points: Path, names: LabelMap) -> _Ids:
    if path is None:
        return None
    raw = read_labels(path).semantic
    if len(raw) != count:
        raise ValueError(
            f"draw_scan: {path} must hold one label a point of {points} ({count}), got {len(raw)}; "
            "is it the label file of another scan?"
        )
    return names.to_train(raw, str(path))
