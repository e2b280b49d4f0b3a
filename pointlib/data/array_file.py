"""Named arrays in one file that is memory-mapped: loader processes share its pages, and nothing in it is executed.

Layout: 8 bytes `PLARRAY1`; 8 bytes little-endian length of the header; the header, JSON `{"meta": ..., "arrays":
{name: [dtype, shape, offset]}}`; zeros up to a multiple of 64; the arrays, each at its offset from there,
little-endian, C order.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pointlib.files import write_file

_MAGIC = b"PLARRAY1"
_ALIGNMENT = 64
_KINDS = "biufS"  # bool, integers, floating point, bytes: no objects


class ArrayFile:
    """Read-only arrays of a file that `write_arrays` made.

    Pickling it, as loader processes that are spawned do, sends the path alone.

    Args:
        path: The file.

    Attributes:
        path: The file.
        meta: What `write_arrays` was given as `meta`.

    Raises:
        OSError: It cannot be opened.
        ValueError: It is no such file, or was cut short.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        with open(self.path, "rb") as file:
            start = file.read(16)
            length = int.from_bytes(start[8:], "little")
            if len(start) < 16 or start[:8] != _MAGIC:
                raise ValueError(
                    f"ArrayFile: path must be a file of arrays, got {self.path}, which begins with {start[:8]!r}."
                )
            header = file.read(length)
        size = self.path.stat().st_size
        try:
            content = json.loads(header)
            entries: dict[str, list[Any]] = content["arrays"]
            self.meta: dict[str, Any] = content["meta"]
        except (ValueError, KeyError) as error:
            raise ValueError(
                f"ArrayFile: {self.path} must have a whole header ({error})."
            ) from error
        first = _aligned(16 + length)
        buffer = np.zeros(first, np.uint8)
        if size > first:
            buffer = np.asarray(
                np.memmap(self.path, np.uint8, "r")
            )  # plain arrays are faster to index
        self._arrays = {
            name: _view(buffer, np.dtype(dtype), tuple(shape), first + offset, self.path)
            for name, (dtype, shape, offset) in entries.items()
        }

    def __getitem__(self, name: str) -> npt.NDArray[Any]:
        return self._arrays[name]

    def __contains__(self, name: object) -> bool:
        return name in self._arrays

    def __reduce__(self) -> tuple[type[ArrayFile], tuple[Path]]:
        return ArrayFile, (self.path,)


def write_arrays(
    path: str | Path, arrays: Mapping[str, npt.NDArray[Any]], meta: Mapping[str, Any]
) -> None:
    """Write named arrays as one file, whole or not at all.

    Args:
        path: The file; missing folders are made.
        arrays: Arrays of numbers, truth values or bytes.
        meta: Anything that JSON can hold.

    Raises:
        TypeError: An array holds something else.
        OSError: The file cannot be written.
    """
    entries: dict[str, tuple[str, tuple[int, ...], int]] = {}
    parts: list[bytes] = []
    offset = 0
    for name, array in arrays.items():
        if array.dtype.kind not in _KINDS:
            raise TypeError(
                f"write_arrays: arrays must hold numbers or bytes, got {array.dtype} in {name!r}."
            )
        stored = np.ascontiguousarray(array, array.dtype.newbyteorder("<"))
        entries[name] = (stored.dtype.str, array.shape, offset)
        parts += [stored.tobytes(), bytes(_aligned(stored.nbytes) - stored.nbytes)]
        offset += _aligned(stored.nbytes)
    header = json.dumps({"meta": dict(meta), "arrays": entries}).encode()
    start = _MAGIC + len(header).to_bytes(8, "little") + header
    write_file(path, b"".join([start, bytes(_aligned(len(start)) - len(start)), *parts]))


def _view(
    buffer: npt.NDArray[np.uint8],
    dtype: np.dtype[Any],
    shape: tuple[int, ...],
    start: int,
    path: Path,
) -> npt.NDArray[Any]:
    stop = start + dtype.itemsize * math.prod(shape)
    if stop > len(buffer) or dtype.kind not in _KINDS:
        raise ValueError(
            f"ArrayFile: {path} must be whole, got {len(buffer)} bytes where an array ends at {stop}. Delete it; it "
            "is made again."
        )
    return buffer[start:stop].view(dtype).reshape(shape)


def _aligned(size: int) -> int:
    return -(-size // _ALIGNMENT) * _ALIGNMENT
