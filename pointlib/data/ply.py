"""The .ply format (Stanford polygon file): the vertices of ascii and binary files."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from pointlib.data.pcd import ascii_rows
from pointlib.data.sample import BadSampleError

_SCALARS = {
    "char": "i1", "int8": "i1", "uchar": "u1", "uint8": "u1",
    "short": "i2", "int16": "i2", "ushort": "u2", "uint16": "u2",
    "int": "i4", "int32": "i4", "uint": "u4", "uint32": "u4",
    "float": "f4", "float32": "f4", "double": "f8", "float64": "f8",
}  # fmt: skip
_NAMES = {
    "i1": "char", "u1": "uchar", "i2": "short", "u2": "ushort",
    "i4": "int", "u4": "uint", "f4": "float", "f8": "double",
}  # fmt: skip
_ORDERS = {"ascii": "=", "binary_little_endian": "<", "binary_big_endian": ">"}


@dataclass
class _Element:
    """One kind of record: its name, how many there are, and the type of each property (None for a list)."""

    name: str
    count: int
    properties: dict[str, str | None] = field(default_factory=dict)


def read_ply(content: bytes, path: str) -> dict[str, npt.NDArray[Any]]:
    """Read the vertices of a .ply file.

    Args:
        content: The whole file.
        path: Its name, for messages.

    Returns:
        Property -> (N,) array in the file's own type.

    Raises:
        BadSampleError: If the header is incomplete, the vertices have list properties or come after an element that
            has, or the data is shorter than the header says.
    """
    try:
        encoding, elements, body = _read_header(content)
        names = [element.name for element in elements]
        if "vertex" not in names:
            raise ValueError(f"the elements {', '.join(names) or 'none'} and no vertex")
        leading = elements[: names.index("vertex") + 1]
        lists = [e.name for e in leading if None in e.properties.values()]
        if lists:
            raise ValueError(f"list properties in the element {lists[0]}, up to the vertices")
        if encoding == "ascii":
            return _read_ascii(leading, body)
        return _read_binary(leading, body, _ORDERS[encoding])
    except (ValueError, KeyError, IndexError) as error:
        raise BadSampleError(
            f"read_ply: {path} must be a complete .ply file with scalar vertex properties, got {error}. Export "
            "it again as a point cloud."
        ) from error


def write_ply(fields: Mapping[str, npt.NDArray[Any]], encoding: str) -> bytes:
    """Write a .ply file that holds vertices only.

    Args:
        fields: Name -> (N,) array of float32, float64 or an integer type of up to 4 bytes; all of the same length.
        encoding: "ascii" or "binary" (little endian).

    Returns:
        The file.

    Raises:
        ValueError: If the encoding or a type does not exist in the format.
    """
    if encoding not in ("ascii", "binary"):
        raise ValueError(
            f'write_ply: encoding must be "ascii" or "binary" for a .ply, got {encoding!r}.'
        )
    for name, values in fields.items():
        if values.dtype.str[1:] not in _NAMES:
            raise ValueError(
                f"write_ply: fields must be float32, float64 or integers of up to 4 bytes, got {name}: "
                f"{values.dtype}."
            )
    count = len(next(iter(fields.values())))
    kind = "ascii" if encoding == "ascii" else "binary_little_endian"
    lines = ["ply", f"format {kind} 1.0", f"element vertex {count}"]
    lines += [f"property {_NAMES[v.dtype.str[1:]]} {name}" for name, v in fields.items()]
    header = ("\n".join([*lines, "end_header"]) + "\n").encode("ascii")
    if encoding == "ascii":
        return header + ascii_rows(list(fields.values()))
    table = np.empty(count, dtype=[(name, "<" + v.dtype.str[1:]) for name, v in fields.items()])
    for name, values in fields.items():
        table[name] = values
    return header + table.tobytes()


def _read_header(content: bytes) -> tuple[str, list[_Element], bytes]:
    """Return the encoding, the elements in order, and the bytes after the header."""
    head, marker, rest = content.partition(b"end_header")
    if not marker or not head.startswith(b"ply"):
        raise ValueError("no 'ply' ... 'end_header'")
    encoding, elements = "", list[_Element]()
    for line in head.decode("ascii", errors="replace").splitlines():
        words = line.split()
        if not words or words[0] in ("ply", "comment", "obj_info"):
            continue
        if words[0] == "format":
            encoding = words[1]
        elif words[0] == "element":
            elements.append(_Element(words[1], int(words[2])))
        elif words[0] == "property":
            elements[-1].properties[words[-1]] = None if words[1] == "list" else _SCALARS[words[1]]
    if encoding not in _ORDERS:
        raise ValueError(f"format {encoding!r}")
    return encoding, elements, rest[2:] if rest.startswith(b"\r\n") else rest[1:]


def _read_ascii(elements: list[_Element], body: bytes) -> dict[str, npt.NDArray[Any]]:
    values = body.split()
    skipped = sum(e.count * len(e.properties) for e in elements[:-1])
    vertex = elements[-1]
    width = len(vertex.properties)
    wanted = vertex.count * width
    if len(values) < skipped + wanted:
        raise ValueError(f"{len(values)} values in place of {skipped + wanted}")
    grid = np.array(values[skipped : skipped + wanted], dtype=np.bytes_).reshape(-1, width)
    return {
        name: grid[:, i].astype(np.dtype(kind))
        for i, (name, kind) in enumerate(vertex.properties.items())
    }


def _read_binary(elements: list[_Element], body: bytes, order: str) -> dict[str, npt.NDArray[Any]]:
    at = 0
    table: npt.NDArray[Any] = np.empty(0)
    for element in elements:
        row = np.dtype([(name, f"{order}{kind}") for name, kind in element.properties.items()])
        table = np.frombuffer(body, dtype=row, count=element.count, offset=at)
        at += element.count * row.itemsize
    return {
        name: table[name].astype(np.dtype(kind))
        for name, kind in elements[-1].properties.items()
        if kind is not None
    }
