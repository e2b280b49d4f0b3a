"""KITTI odometry's side files: calib.txt, poses.txt and times.txt, with poses turned into the LiDAR frame."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt

from pointlib.data.sample import BadSampleError


def read_calibration(path: str | Path) -> dict[str, npt.NDArray[np.float64]]:
    """Read calib.txt.

    Args:
        path: The file: lines of a name and the 12 numbers of a 3x4 matrix, row by row.

    Returns:
        Name ("P0" .. "P3" camera projections, "Tr" lidar2camera) -> (4, 4) float64 matrix with the last row
        [0, 0, 0, 1].

    Raises:
        BadSampleError: If the file cannot be read or a line breaks the format.
    """
    matrices = {}
    for number, line in enumerate(_read_lines(path, "read_calibration"), start=1):
        name, colon, values = line.partition(":")
        if not colon:
            raise BadSampleError(
                f"read_calibration: {path} line {number} must be 'NAME: 12 numbers', got {line!r}."
            )
        matrices[name.strip()] = _matrix(values, path, number, "read_calibration")
    return matrices


def read_camera_poses(path: str | Path) -> npt.NDArray[np.float64]:
    """Read poses.txt.

    Args:
        path: The file: one line a scan, the 12 numbers of camera2world, row by row; the world is the first camera's
            frame.

    Returns:
        (n, 4, 4) float64 camera2world, in KITTI's camera frame (x right, y down, z forward).

    Raises:
        BadSampleError: If the file cannot be read or a line breaks the format.
    """
    lines = _read_lines(path, "read_camera_poses")
    poses = [_matrix(line, path, i, "read_camera_poses") for i, line in enumerate(lines, start=1)]
    return np.stack(poses) if poses else np.zeros((0, 4, 4))


def read_lidar2world(sequence_dir: str | Path) -> npt.NDArray[np.float64]:
    """Read the LiDAR poses of a sequence.

    With `Tr` = lidar2camera of calib.txt and C_i = camera2world of poses.txt, `lidar2world_i = Tr^-1 @ C_i @ Tr`: the
    world is the first scan's LiDAR frame (x forward, y left, z up), as in semantic-kitti-api.

    Args:
        sequence_dir: Folder that holds calib.txt and poses.txt.

    Returns:
        (n, 4, 4) float64; `p_world = lidar2world[i] @ p_lidar` in metres.

    Raises:
        BadSampleError: If a file is missing or broken, or calib.txt has no Tr.
    """
    calibration = read_calibration(Path(sequence_dir) / "calib.txt")
    if "Tr" not in calibration:
        raise BadSampleError(
            f"read_lidar2world: {Path(sequence_dir) / 'calib.txt'} must hold 'Tr:' (lidar2camera), got "
            f"{sorted(calibration)}. Take calib.txt from the SemanticKITTI archive: KITTI's own has no Tr."
        )
    lidar2camera = calibration["Tr"]
    camera2world = read_camera_poses(Path(sequence_dir) / "poses.txt")
    return np.linalg.inv(lidar2camera) @ camera2world @ lidar2camera


def read_times(path: str | Path) -> npt.NDArray[np.float64]:
    """Read times.txt.

    Args:
        path: The file: one line a scan, seconds since the start of the sequence.

    Returns:
        (n,) float64 seconds.

    Raises:
        BadSampleError: If the file cannot be read or holds anything but numbers.
    """
    try:
        return np.array([float(line) for line in _read_lines(path, "read_times")])
    except ValueError as error:
        if isinstance(error, BadSampleError):
            raise
        raise BadSampleError(
            f"read_times: {path} must hold one number a line, got {error}."
        ) from error


def _read_lines(path: str | Path, caller: str) -> list[str]:
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise BadSampleError(
            f"{caller}: path must be a readable text file, got {path} ({error}). It belongs to the "
            "SemanticKITTI archive; download it again."
        ) from error
    return [line.strip() for line in lines if line.strip()]


def _matrix(values: str, path: str | Path, number: int, caller: str) -> npt.NDArray[np.float64]:
    """Turn 12 numbers into a 4x4 matrix."""
    words = values.split()
    try:
        if len(words) != 12:
            raise ValueError(f"{len(words)} words")
        upper = np.array([float(word) for word in words]).reshape(3, 4)
    except ValueError as error:
        raise BadSampleError(
            f"{caller}: {path} line {number} must hold the 12 numbers of a 3x4 matrix, got {error}."
        ) from error
    return np.vstack([upper, [0.0, 0.0, 0.0, 1.0]])
