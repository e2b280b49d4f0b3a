"""Point clouds from and to files: .bin, .npy, .pcd and .ply behind `read_points` and `write_points`."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from pointlib.data.pcd import read_pcd, write_pcd
from pointlib.data.ply import read_ply, write_ply
from pointlib.data.sample import BadSampleError
from pointlib.files import write_file

SUFFIXES = (".bin", ".npy", ".pcd", ".ply")
"""File names `read_points` and `write_points` understand."""

INTENSITY_FIELDS = (
    "intensity",
    "reflectance",
    "reflectivity",
    "remission",
    "i",
    "scalar_intensity",
)
"""Names that fields of .pcd and .ply files use for intensity, tried in this order, in any case."""

Nonfinite = Literal["raise", "drop", "keep"]


def read_points(
    path: str | Path,
    columns: int = 4,
    intensity_field: str | None = None,
    missing_intensity: float | None = None,
    nonfinite: Nonfinite = "raise",
) -> npt.NDArray[np.float32]:
    """Read a point cloud.

    Args:
        path: A .bin (float32 rows), .npy ((N, 3 or more) numbers), .pcd (ascii, binary, binary_compressed) or .ply
            (ascii, binary) file.
        columns: float32 values of a point in a .bin: 4 for KITTI, 5 for nuScenes (the fifth is dropped).
        intensity_field: Field of a .pcd or .ply that holds intensity; None tries `INTENSITY_FIELDS`.
        missing_intensity: Intensity of every point where the file has none; None makes that an error, because a
            model trained with intensity is wrong without it.
        nonfinite: What NaN or Inf coordinates do: "raise", "drop" the points, or "keep" them. Organised .pcd files
            mark pixels without a return by NaN: use "drop" there.

    Returns:
        (N, 4) float32 x, y, z in metres as stored, intensity as stored (not rescaled).

    Raises:
        BadSampleError: If the file cannot be read or breaks its format.
        ValueError: If the suffix is unknown, or the file has no intensity and none is given.
    """
    if nonfinite not in ("raise", "drop", "keep"):
        raise ValueError(
            f'read_points: nonfinite must be "raise", "drop" or "keep", got {nonfinite!r}.'
        )
    path = Path(path)
    suffix = _suffix(path, "read_points")
    if suffix == ".bin":
        return read_bin(path, columns, nonfinite)[:, :4]
    if suffix == ".npy":
        points = _from_array(_load_npy(path), path, missing_intensity)
    else:
        fields = (read_pcd if suffix == ".pcd" else read_ply)(
            read_file(path, "read_points"), str(path)
        )
        points = _from_fields(fields, path, intensity_field, missing_intensity)
    return _finite(points, path, nonfinite)


def read_bin(
    path: str | Path, columns: int = 4, nonfinite: Nonfinite = "raise"
) -> npt.NDArray[np.float32]:
    """Read a .bin of little-endian float32 rows, as KITTI and nuScenes store scans.

    Args:
        path: The file.
        columns: Values a point, at least 4.
        nonfinite: As in `read_points`.

    Returns:
        (N, columns) float32.

    Raises:
        BadSampleError: If the file is missing, empty, no whole number of rows, or holds NaN or Inf.
        ValueError: If `columns` is below 4.
    """
    if columns < 4:
        raise ValueError(
            f"read_bin: columns must be at least 4 (x, y, z, intensity), got {columns}."
        )
    content = read_file(path, "read_bin")
    if not content or len(content) % (4 * columns):
        state = "an empty file" if not content else f"{len(content)} bytes"
        raise BadSampleError(
            f"read_bin: {path} must hold rows of {columns} float32 ({4 * columns} bytes each), got {state}. "
            "The file was not copied completely (copy it again), or its rows have another number of columns "
            "(pass columns=)."
        )
    points = np.frombuffer(bytearray(content), dtype="<f4").reshape(-1, columns)
    return _finite(points.astype(np.float32, copy=False), path, nonfinite)


def write_points(
    path: str | Path,
    points: npt.NDArray[np.float32],
    encoding: Literal["ascii", "binary", "binary_compressed"] = "binary",
    extra: Mapping[str, npt.NDArray[Any]] | None = None,
) -> None:
    """Write a point cloud; the file appears only when it is complete.

    Args:
        path: A .bin, .npy, .pcd or .ply file; missing folders are made.
        points: (N, 4) float32 x, y, z, intensity.
        encoding: Encoding of a .pcd or .ply ("binary_compressed": .pcd only); the others are binary.
        extra: Further fields of a .pcd or .ply, (N,) each, such as {"label": ..., "red": ...}.

    Raises:
        TypeError: If `points` is not float32.
        ValueError: If the suffix, the encoding or a shape is not one of the above.
    """
    path = Path(path)
    suffix = _suffix(path, "write_points")
    if points.dtype != np.float32:
        raise TypeError(f"write_points: points must be float32, got {points.dtype}.")
    if points.ndim != 2 or points.shape[1] != 4:
        raise ValueError(f"write_points: points must be (N, 4), got {points.shape}.")
    if suffix in (".bin", ".npy"):
        if extra or encoding != "binary":
            raise ValueError(
                f"write_points: a {suffix} holds points in binary only, got encoding={encoding!r}, "
                f"extra={sorted(extra or {})}. Write a .pcd or .ply."
            )
        write_file(path, points.astype("<f4").tobytes() if suffix == ".bin" else _npy(points))
        return
    fields = {name: points[:, i] for i, name in enumerate(("x", "y", "z", "intensity"))}
    for name, values in (extra or {}).items():
        if name in fields or np.shape(values) != (len(points),):
            raise ValueError(
                f"write_points: extra must map new names to ({len(points)},) arrays, got {name!r} with shape "
                f"{np.shape(values)}."
            )
        fields[name] = np.asarray(values)
    write = write_pcd if suffix == ".pcd" else write_ply
    write_file(path, write(fields, encoding))


def read_file(path: str | Path, caller: str) -> bytes:
    """Read a whole file.

    Raises:
        BadSampleError: If it cannot be read; the message names the file and the reason.
    """
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise BadSampleError(
            f"{caller}: path must be a readable file, got {path} ({error}). Check that it exists and that "
            "you may read it."
        ) from error


def _suffix(path: Path, caller: str) -> str:
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES:
        raise ValueError(
            f"{caller}: path must end in {', '.join(SUFFIXES)}, got {path}. Convert the file, or load it "
            "yourself and pass the array on."
        )
    return suffix


def _finite(
    points: npt.NDArray[np.float32], path: str | Path, nonfinite: Nonfinite
) -> npt.NDArray[np.float32]:
    if nonfinite == "keep":
        return points
    finite = np.isfinite(points)
    if finite.all():
        return points
    good = finite.all(axis=1)
    if nonfinite == "drop":
        return points[good]
    raise BadSampleError(
        f"read_points: {path} must hold finite values, got NaN or Inf in {int((~good).sum())} of {len(points)} "
        f'points, first in row {int(np.argmin(good))}. Pass nonfinite="drop" to leave them out, or repair the '
        "file."
    )


def _load_npy(path: Path) -> npt.NDArray[Any]:
    try:
        array = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise BadSampleError(
            f"read_points: {path} must be a readable .npy array of numbers, got {error}. Save it again with "
            "numpy.save."
        ) from error
    return np.asarray(array)


def _from_array(
    array: npt.NDArray[Any], path: Path, missing_intensity: float | None
) -> npt.NDArray[np.float32]:
    if array.ndim != 2 or array.shape[1] < 3 or array.dtype.kind not in "fiu":
        raise BadSampleError(
            f"read_points: {path} must hold an (N, 3 or more) array of numbers, got {array.dtype} of shape "
            f"{array.shape}."
        )
    if array.shape[1] > 3:
        return array[:, :4].astype(np.float32)
    return _with_intensity(array.astype(np.float32), path, missing_intensity, "columns x, y, z")


def _from_fields(
    fields: Mapping[str, npt.NDArray[Any]],
    path: Path,
    intensity_field: str | None,
    missing_intensity: float | None,
) -> npt.NDArray[np.float32]:
    absent = [axis for axis in ("x", "y", "z") if axis not in fields]
    if absent:
        raise BadSampleError(
            f"read_points: {path} must have the fields x, y, z, got {', '.join(fields) or 'none'}."
        )
    xyz = np.stack([fields[axis] for axis in ("x", "y", "z")], axis=1).astype(np.float32)
    if intensity_field is not None:
        if intensity_field not in fields:
            raise ValueError(
                f"read_points: intensity_field must be a field of {path} ({', '.join(fields)}), got "
                f"{intensity_field!r}."
            )
        name: str | None = intensity_field
    else:
        by_lower = {field.lower(): field for field in reversed(list(fields))}
        name = next((by_lower[known] for known in INTENSITY_FIELDS if known in by_lower), None)
    if name is None:
        return _with_intensity(xyz, path, missing_intensity, f"fields {', '.join(fields)}")
    return np.column_stack([xyz, fields[name].astype(np.float32)])


def _with_intensity(
    xyz: npt.NDArray[np.float32], path: Path, value: float | None, what: str
) -> npt.NDArray[np.float32]:
    if value is None:
        raise ValueError(
            f"read_points: {path} must have intensity, got {what}. Pass intensity_field= to name the field, or "
            "missing_intensity=0.0 to set it for all points (a model trained with intensity gets worse)."
        )
    return np.column_stack([xyz, np.full(len(xyz), value, dtype=np.float32)])


def _npy(points: npt.NDArray[np.float32]) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, points, allow_pickle=False)
    return buffer.getvalue()
