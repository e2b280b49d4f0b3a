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
    key = read_bin(key_path, FILE_COLUMNS)
    key[:, 4] = 0
    parts = [key]
    for sweep in sweeps:
        if not sweep.path.is_file():
            _report_missing(sweep.path, key_path, missing)
            continue
        points = read_bin(sweep.path, FILE_COLUMNS)
        points = points[(np.abs(points[:, 0]) >= CLOSE) | (np.abs(points[:, 1]) >= CLOSE)]
        rotation, translation = sweep.sweep2lidar[:3, :3], sweep.sweep2lidar[:3, 3]
        points[:, :3] = points[:, :3] @ rotation.T + translation  # in float64
        points[:, 4] = sweep.seconds
        parts.append(points)
    return np.concatenate(parts)


def _report_missing(path: Path, key_path: Path, missing: WhenMissing) -> None:
    if missing == "raise":
        raise BadSampleError(
            f"join_sweeps: every sweep before {key_path} must be there, got no file {path}. Extract the blobs that "
            "hold it (tools/prepare_data.py nuscenes lists what is missing), use num_sweeps=1, or pass "
            'missing_sweeps="allow" to join fewer.'
        )
    _log.warning("%s is missing: the sample of %s has a sweep less", path, key_path)
