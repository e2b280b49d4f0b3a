"""Class-balanced sampling: scenes with rare classes come more often (Zhu et al., "CBGS", 2019, section 2.2)."""

from __future__ import annotations

import logging

import numpy as np
import numpy.typing as npt

from pointlib.data.multi_sensor import MultiSensorSource

_log = logging.getLogger(__name__)


def balanced_indices(source: MultiSensorSource, seed: int = 0) -> npt.NDArray[np.int64]:
    """Choose samples such that every class has the same share of them.

    Let n_c be the number of samples with an object of class c, and n the sum of n_c over the C classes that occur.
    Of each class n / C of its samples are drawn with replacement, as mmdetection3d's CBGSDataset does; a sample that is
    drawn for one class brings its other classes along, so the shares of objects only become more equal.

    Draw once for a run: `MultiSensorDataset(..., indices=balanced_indices(source, seed))`. The result depends on the
    annotations and the seed alone, so it is the same on every process and after a resume. (The published code draws
    with each process' own random state.) `EpochSampler` shuffles it anew each epoch.

    Args:
        source: Its `class_counts` are read, none of its files.
        seed: Of the draw.

    Returns:
        (L,) int64 indices of samples, L = C * floor(n / C), about n.

    Raises:
        ValueError: No sample has an object.
    """
    present = np.stack([source.class_counts(index) > 0 for index in range(len(source))])
    occurs: npt.NDArray[np.bool_] = np.any(present, axis=0)
    if not occurs.any():
        raise ValueError(
            f"balanced_indices: source must have annotated objects, got {len(source)} samples without. Is it a test "
            "split?"
        )
    absent = [source.class_names[label] for label in np.flatnonzero(~occurs)]
    if absent:
        _log.warning("balanced sampling: no sample has an object of %s", ", ".join(absent))
    share = int(present.sum()) // int(occurs.sum())
    rng = np.random.default_rng(seed)
    chosen = [
        rng.choice(np.flatnonzero(present[:, label]), share) for label in np.flatnonzero(occurs)
    ]
    return np.concatenate(chosen).astype(np.int64)
