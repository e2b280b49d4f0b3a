"""nuScenes' clouds: reading one, and joining a key frame with the sweeps before it."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from pointlib.data.point_cloud_io import read_bin
from pointlib.data.sample import BadSampleError

_log = logging.getLogger(__name__)

FILE_COLUMNS = 5
"""float32 values a point in a file: x, y, z [m], intensity 0..255, number of the beam."""

CLOSE = 1.0
"""Sweep points with |x| and |y| below this [m] are returns from the vehicle itself."""

WhenMissing = Literal["raise", "allow"]


class Sweep(NamedTuple):
    """A cloud recorded before a key frame.

    Attributes:
        path: Its file.
        sweep2lidar: (4, 4) float64 from its LiDAR frame to that of the key frame, through the poses at both times.
        seconds: Time before the key frame [s].
    """

    path: Path
    sweep2lidar: npt.NDArray[np.float64]
    seconds: float


def join_sweeps(
    key_path: Path, sweeps: Sequence[Sweep], missing: WhenMissing = "raise"
) -> npt.NDArray[np.float32]:
    """Read a key frame's cloud and those before it, into the frame of the key frame.

    Of the sweeps, and of them alone, points with |x| < 1 m and |y| < 1 m in their own frame are left out, as in
    mmdetection3d and OpenPCDet; the devkit's `LidarPointCloud.from_file_multisweep` does it to the key frame too.

    Args:
        key_path: Cloud of the key frame.
        sweeps: The clouds before it. Fewer at the start of a scene give fewer points: mmdetection3d repeats the key
            frame there if it has no sweep at all, which adds nothing that a network could learn from.
        missing: What a sweep whose file is missing does: "raise", or "allow" to leave it out with a warning.

    Returns:
        (N, 5) float32 x, y, z [m], intensity as stored, time before the key frame [s]; the key frame's points first.

    Raises:
        BadSampleError: A file is missing, cut short or holds NaN; the message names it.
    """
    there = []
    for sweep in sweeps:
        if sweep.path.is_file():
            there.append(sweep)
        else:
            _report_missing(sweep.path, key_path, missing)
    counts = [_count_points(path) for path in (key_path, *(sweep.path for sweep in there))]
    points = np.empty((sum(counts), FILE_COLUMNS), np.float32)  # one block: fresh memory is dear
    _read_into(points[: counts[0]], key_path)
    points[: counts[0], 4] = 0
    filled = counts[0]
    for sweep, count in zip(there, counts[1:], strict=True):
        part = points[filled : filled + count]
        _read_into(part, sweep.path)
        far = (np.abs(part[:, 0]) >= CLOSE) | (np.abs(part[:, 1]) >= CLOSE)
        kept = part.compress(far, axis=0)
        part = part[: len(kept)]
        rotation, translation = sweep.sweep2lidar[:3, :3], sweep.sweep2lidar[:3, 3]
        part[:, :3] = kept[:, :3].astype(np.float64) @ rotation.T + translation
        part[:, 3] = kept[:, 3]
        part[:, 4] = sweep.seconds
        filled += len(kept)
    return points[:filled]


def _count_points(path: Path) -> int:
    size = path.stat().st_size if path.is_file() else 0
    if size == 0 or size % (4 * FILE_COLUMNS):
        read_bin(path, FILE_COLUMNS)  # says what is wrong with it
    return size // (4 * FILE_COLUMNS)


def _read_into(part: npt.NDArray[np.float32], path: Path) -> None:
    """Fill `part` with the points of a file."""
    with open(path, "rb") as file:
        complete = file.readinto(part.data.cast("B")) == part.nbytes
    if not complete or not np.isfinite(part).all():
        read_bin(path, FILE_COLUMNS)  # says what is wrong with it
        raise BadSampleError(f"join_sweeps: {path} must not change while it is read.")


def _report_missing(path: Path, key_path: Path, missing: WhenMissing) -> None:
    if missing == "raise":
        raise BadSampleError(
            f"join_sweeps: every sweep before {key_path} must be there, got no file {path}. Extract the blobs that "
            "hold it (tools/prepare_data.py nuscenes lists what is missing), use num_sweeps=1, or pass "
            'missing_sweeps="allow" to join fewer.'
        )
    _log.warning("%s is missing: the sample of %s has a sweep less", path, key_path)
