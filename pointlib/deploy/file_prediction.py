"""Predicting files: which ones, and what is written for each."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from pointlib.data import read_points, write_labels
from pointlib.deploy.predictor import Prediction, Predictor

SUFFIXES = (".bin", ".pcd", ".npy", ".ply")


class PredictedFile(NamedTuple):
    """One file after prediction.

    Attributes:
        source: The point cloud.
        target: The .label file that was written.
        points: (N, 4) float32 x, y, z in metres, intensity.
        prediction: Labels of these points.
    """

    source: Path
    target: Path
    points: npt.NDArray[np.float32]
    prediction: Prediction


def find_point_clouds(path: str | Path) -> list[Path]:
    """The file itself, or all point clouds in a folder and below, sorted.

    Raises:
        FileNotFoundError: There is none.
    """
    path = Path(path)
    if path.is_file():
        return [path]
    found = sorted(p for p in path.rglob("*") if p.suffix.lower() in SUFFIXES and p.is_file())
    if not found:
        state = "a folder without any" if path.is_dir() else "nothing there"
        raise FileNotFoundError(
            f"find_point_clouds: path must be a {', '.join(SUFFIXES)} file or a folder with some, "
            f"got {path} ({state})"
        )
    return found


def predict_files(
    predictor: Predictor,
    sources: Sequence[Path],
    root: Path,
    out: Path,
    full_intensity: float = 1.0,
    **reading: Any,
) -> Iterator[PredictedFile]:
    """Predicts point clouds one after another and writes a .label file (uint32 raw ids) for each.

    Args:
        predictor: The model.
        sources: From `find_point_clouds`.
        root: Folder whose tree is repeated under `out`.
        out: Where the .label files go; each appears whole or not at all.
        full_intensity: Intensity of a full return in the files, which networks are given as 1: it is 1 in
            SemanticKITTI's, 255 in nuScenes' and PandaSet's.
        **reading: Options of `pointlib.data.read_points`. A point it drops has no label.

    Yields:
        Each file after it was written.

    Raises:
        ValueError: `full_intensity` is not positive.
        BadSampleError: A file is broken; the message names it.
    """
    if not full_intensity > 0:
        raise ValueError(
            f"predict_files: full_intensity must be positive, such as 1 or 255, got {full_intensity}"
        )
    for source in sources:
        points = np.array(read_points(source, **reading))
        points[:, 3] /= full_intensity
        prediction = predictor(points)
        target = out / source.relative_to(root).with_suffix(".label")
        target.parent.mkdir(parents=True, exist_ok=True)
        write_labels(target, predictor.raw_ids(prediction.labels))
        yield PredictedFile(source, target, points, prediction)
