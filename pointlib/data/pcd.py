"""The .pcd format of the Point Cloud Library, version 0.7: ascii, binary and binary_compressed."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from pointlib.data import lzf
from pointlib.data.sample import BadSampleError

_TYPES = {"F": {4: "<f4", 8: "<f8"}}
_TYPES["U"] = {size: f"<u{size}" for size in (1, 2, 4, 8)}
_TYPES["I"] = {size: f"<i{size}" for size in (1, 2, 4, 8)}
_NEEDED = ("FIELDS", "SIZE", "TYPE", "DATA")


@dataclass(frozen=True)
class _Header:
    """What the text before the data says."""

    fields: tuple[str, ...]
    dtypes: tuple[str, ...]
    counts: tuple[int, ...]
    points: int
    encoding: str

    @property
    def row(self) -> np.dtype[Any]:
        """One point, fields one after the other; padding fields (all called "_") get names of their own."""
        names = [f"{name}#{i}" if name == "_" else name for i, name in enumerate(self.fields)]
        return np.dtype(
            [(n, t, (c,)) for n, t, c in zip(names, self.dtypes, self.counts, strict=True)]
        )


def read_pcd(content: bytes, path: str) -> dict[str, npt.NDArray[Any]]:
    """Read a .pcd file.

    Args:
        content: The whole file.
        path: Its name, for messages.

    Returns:
        Field -> (N,) array in the file's own type; padding and fields of several values are left out.

    Raises:
        BadSampleError: If the header is incomplete or the data shorter than it says.
    """
    header, body = _read_header(content, path)
    try:
        if header.encoding == "ascii":
            table = _read_ascii(header, body)
        elif header.encoding == "binary":
            table = np.frombuffer(body, dtype=header.row, count=header.points)
        else:
            table = _read_compressed(header, body)
    except ValueError as error:
        raise BadSampleError(
            f"read_pcd: {path} must hold {header.points} points as {header.encoding} data, got {error}. The file "
            "was not copied completely, or its header is wrong."
        ) from error
    return {
        name: np.ascontiguousarray(table[name][:, 0])
        for name, count in zip(header.row.names or (), header.counts, strict=True)
        if count == 1 and not name.startswith("_#")
    }


def write_pcd(fields: Mapping[str, npt.NDArray[Any]], encoding: str) -> bytes:
    """Write a .pcd file.

    Args:
        fields: Name -> (N,) array of float32, float64 or an integer type; all of the same length.
        encoding: "ascii", "binary" or "binary_compressed".

    Returns:
        The file.

    Raises:
        ValueError: If the encoding or a type does not exist in the format.
    """
    if encoding not in ("ascii", "binary", "binary_compressed"):
        raise ValueError(
            f'write_pcd: encoding must be "ascii", "binary" or "binary_compressed", got {encoding!r}.'
        )
    columns = [values.astype(values.dtype.newbyteorder("<")) for values in fields.values()]
    for name, values in zip(fields, columns, strict=True):
        if values.itemsize not in _TYPES.get(values.dtype.kind.upper(), {}):
            raise ValueError(
                f"write_pcd: fields must be numbers of 1-8 bytes, got {name}: {values.dtype}."
            )
    count = len(columns[0])
    header = "\n".join(
        (
            "# .PCD v0.7 - Point Cloud Data file format",
            "VERSION 0.7",
            "FIELDS " + " ".join(fields),
            "SIZE " + " ".join(str(c.itemsize) for c in columns),
            "TYPE " + " ".join(c.dtype.kind.upper() for c in columns),
            "COUNT " + " ".join("1" for _ in columns),
            f"WIDTH {count}",
            "HEIGHT 1",
            "VIEWPOINT 0 0 0 1 0 0 0",
            f"POINTS {count}",
            f"DATA {encoding}\n",
        )
    ).encode("ascii")
    if encoding == "ascii":
        return header + ascii_rows(columns)
    if encoding == "binary":
        row = np.dtype([(name, c.dtype) for name, c in zip(fields, columns, strict=True)])
        table = np.empty(count, dtype=row)
        for name, values in zip(fields, columns, strict=True):
            table[name] = values
        return header + table.tobytes()
    raw = b"".join(values.tobytes() for values in columns)
    packed = lzf.compress(raw)
    return header + np.array([len(packed), len(raw)], dtype="<u4").tobytes() + packed


def ascii_rows(columns: Sequence[npt.NDArray[Any]]) -> bytes:
    """Write one line a point; floats with as few digits as give the same value back."""
    words = [[str(value) for value in values] for values in columns]
    return "".join(" ".join(row) + "\n" for row in zip(*words, strict=True)).encode("ascii")


def _read_header(content: bytes, path: str) -> tuple[_Header, bytes]:
    stream = io.BytesIO(content)
    entries: dict[str, list[str]] = {}
    while "DATA" not in entries:
        line = stream.readline()
        if not line:
            break
        words = line.decode("ascii", errors="replace").split("#")[0].split()
        if words:
            entries[words[0].upper()] = words[1:]
    missing = [key for key in _NEEDED if not entries.get(key)]
    if missing:
        raise BadSampleError(
            f"read_pcd: {path} must be a .pcd file with FIELDS, SIZE, TYPE and DATA, got no "
            f"{', '.join(missing)}. Is it really a .pcd, and is it complete?"
        )
    try:
        return _parse_header(entries), stream.read()
    except (ValueError, KeyError, IndexError) as error:
        raise BadSampleError(
            f"read_pcd: {path} must have a consistent header, got {error}. Repair the header lines."
        ) from error


def _parse_header(entries: Mapping[str, list[str]]) -> _Header:
    fields = entries["FIELDS"]
    sizes = [int(word) for word in entries["SIZE"]]
    types = [word.upper() for word in entries["TYPE"]]
    counts = [int(word) for word in entries.get("COUNT") or ["1"] * len(fields)]
    if not len(fields) == len(sizes) == len(types) == len(counts):
        raise ValueError(
            f"{len(fields)} FIELDS, {len(sizes)} SIZE, {len(types)} TYPE, {len(counts)} COUNT"
        )
    unknown = [f"{t}{s}" for t, s in zip(types, sizes, strict=True) if s not in _TYPES.get(t, {})]
    if unknown:
        raise ValueError(f"TYPE and SIZE {', '.join(unknown)}")
    if "POINTS" in entries:
        points = int(entries["POINTS"][0])
    else:
        points = int(entries["WIDTH"][0]) * int(entries["HEIGHT"][0])
    encoding = entries["DATA"][0].lower()
    if encoding not in ("ascii", "binary", "binary_compressed"):
        raise ValueError(f"DATA {encoding}")
    dtypes = tuple(_TYPES[t][s] for t, s in zip(types, sizes, strict=True))
    return _Header(tuple(fields), dtypes, tuple(counts), points, encoding)


def _read_ascii(header: _Header, body: bytes) -> npt.NDArray[Any]:
    values = body.split()
    width = sum(header.counts)
    if len(values) < header.points * width:
        raise ValueError(f"{len(values)} values in place of {header.points * width}")
    grid = np.array(values[: header.points * width], dtype=np.bytes_).reshape(-1, width)
    table = np.empty(header.points, dtype=header.row)
    column = 0
    for name, dtype, count in zip(
        header.row.names or (), header.dtypes, header.counts, strict=True
    ):
        table[name] = grid[:, column : column + count].astype(dtype)
        column += count
    return table


def _read_compressed(header: _Header, body: bytes) -> npt.NDArray[Any]:
    """Expand, and bring the fields, which stand one after the other as wholes, into rows."""
    packed_size, raw_size = (int(word) for word in np.frombuffer(body, dtype="<u4", count=2))
    if raw_size < header.points * header.row.itemsize or len(body) < 8 + packed_size:
        raise ValueError(f"{len(body)} bytes that expand to {raw_size}")
    raw = lzf.decompress(body[8 : 8 + packed_size], raw_size)
    table = np.empty(header.points, dtype=header.row)
    at = 0
    for name, dtype, count in zip(
        header.row.names or (), header.dtypes, header.counts, strict=True
    ):
        values = np.frombuffer(raw, dtype=dtype, count=header.points * count, offset=at)
        table[name] = values.reshape(header.points, count)
        at += values.nbytes
    return table
