"""Feather files (Arrow IPC, version 2), as Argoverse 2 stores its tables, read without pyarrow.

Columns of whole numbers, floating point numbers and text; buffers as they are or compressed with LZ4, which is what
Argoverse 2 uses. Formats: arrow.apache.org/docs/format/Columnar.html, flatbuffers.dev/internals and the LZ4 frame and
block formats of github.com/lz4/lz4/tree/dev/doc.
"""

from __future__ import annotations

import itertools
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from numba import njit

from pointlib.data.sample import BadSampleError

Column = npt.NDArray[Any]

_MAGIC = b"ARROW1"
_LZ4_MAGIC = 0x184D2204
_MAX_RATIO = 256
"""LZ4 cannot unpack to more times its own size."""

_INT, _FLOAT, _TEXT, _LARGE_TEXT = 2, 3, 5, 20  # of the union `Type` in Arrow's Schema.fbs


class _Broken(Exception):
    """The file breaks its format, or uses a part of it that is not read here."""


def read_feather(path: str | Path) -> dict[str, Column]:
    """Read a table.

    Args:
        path: A .feather file without missing values.

    Returns:
        Column name -> (N,) array, in the order of the file; text as an array of Python's strings.

    Raises:
        BadSampleError: If the file is missing or cut short, is no Feather file of version 2, has missing values,
            another type of column or another compression.
    """
    try:
        content = Path(path).read_bytes()
    except OSError as error:
        raise BadSampleError(
            f"read_feather: path must be a readable file, got {path} ({error}). Download the log again."
        ) from error
    try:
        return _read(content)
    except (_Broken, struct.error, IndexError, TypeError, ValueError) as error:
        raise BadSampleError(
            f"read_feather: {path} must be a complete Feather file of numbers and text (Arrow IPC, plain or LZ4), got "
            f"{error}. Download the log again."
        ) from error


def _read(content: bytes) -> dict[str, Column]:
    if content[:6] != _MAGIC or content[-6:] != _MAGIC or len(content) < 20:
        raise _Broken(f"{len(content)} bytes without Arrow's magic at both ends")
    (footer_size,) = struct.unpack_from("<i", content, len(content) - 10)
    footer = _Table.root(content, len(content) - 10 - footer_size)
    schema = footer.table(1)
    if schema is None:
        raise _Broken("no schema")
    fields = [_Field(field) for field in schema.tables(1)]
    parts: list[list[Column]] = [[] for _ in fields]
    for block in footer.blocks(3):
        for part, column in zip(parts, _batch(content, *block, fields), strict=True):
            part.append(column)
    return {
        field.name: np.concatenate(part) if part else np.zeros(0, dtype=field.dtype or object)
        for field, part in zip(fields, parts, strict=True)
    }


class _Field:
    """Name and type of a column; dtype None for text."""

    def __init__(self, field: _Table) -> None:
        self.name = field.text(0)
        kind, details = field.number(2, "<B"), field.table(3)
        if details is None or field.table(4) is not None:
            raise _Broken(f"column {self.name} of dictionary or unknown type")
        self.dtype: np.dtype[Any] | None = None
        self.offset_dtype = "<i8" if kind == _LARGE_TEXT else "<i4"
        if kind == _INT:
            sign = "i" if details.number(1, "<?") else "u"
            self.dtype = np.dtype(f"<{sign}{details.number(0, '<i') // 8}")
        elif kind == _FLOAT:
            self.dtype = np.dtype(("<f2", "<f4", "<f8")[details.number(0, "<h")])
        elif kind not in (_TEXT, _LARGE_TEXT):
            raise _Broken(f"column {self.name} of Arrow's type {kind}")


def _batch(
    content: bytes, offset: int, meta_size: int, body_size: int, fields: list[_Field]
) -> Iterator[Column]:
    """The columns of one record batch."""
    marker, size = struct.unpack_from("<Ii", content, offset)
    start = offset + 8 if marker == 0xFFFFFFFF else offset + 4
    if offset + meta_size + body_size > len(content) or size < 0:
        raise _Broken("a record batch that reaches beyond the file")
    batch = _Table.root(content, start).table(2)
    if batch is None:
        raise _Broken("a message without a record batch")
    length = batch.number(0, "<q")
    nodes, buffers = batch.pairs(1), batch.pairs(2)
    compression = batch.table(3)
    if compression is not None and compression.number(0, "<b") != 0:
        raise _Broken("buffers compressed with ZSTD")
    body = memoryview(content)[offset + meta_size : offset + meta_size + body_size]

    def buffer() -> npt.NDArray[np.uint8]:
        start, size = _taken(buffers)
        raw = np.frombuffer(body[start : start + size], dtype=np.uint8)
        if len(raw) != size:
            raise _Broken("a buffer that reaches beyond its batch")
        return raw if compression is None or not size else _unpack(raw)

    for field in fields:
        count, missing = _taken(nodes)
        if missing or count != length:
            raise _Broken(f"column {field.name} with {missing} missing values")
        buffer()  # which values are there
        if field.dtype is not None:
            yield _exactly(buffer().view(field.dtype), length, field.name)
        else:
            ends = _exactly(buffer().view(field.offset_dtype), length + 1, field.name)
            text = buffer().tobytes()
            words = [text[a:b].decode() for a, b in itertools.pairwise(ends)]
            yield np.array([*words, None], dtype=object)[:-1]


def _taken(pairs: Iterator[tuple[int, int]]) -> tuple[int, int]:
    """The next one; a batch must describe every column."""
    for pair in pairs:
        return pair
    raise _Broken("fewer buffers than columns")


def _exactly(values: Column, count: int, name: str) -> Column:
    if len(values) < count:
        raise _Broken(f"column {name} with {len(values)} of {count} values")
    return values[:count]


class _Table:
    """A table of a flatbuffer: fields found through its vtable."""

    def __init__(self, content: bytes, place: int) -> None:
        self.content, self.place = content, place
        self.vtable = place - self._at("<i", place)
        self.size = self._at("<H", self.vtable)

    @staticmethod
    def root(content: bytes, place: int) -> _Table:
        """The table that a flatbuffer at `place` begins with."""
        (offset,) = struct.unpack_from("<I", content, place)
        return _Table(content, place + offset)

    def _at(self, code: str, place: int) -> int:
        if not 0 <= place < len(self.content):
            raise _Broken("an offset beyond the file")
        (value,) = struct.unpack_from(code, self.content, place)
        return int(value)

    def _field(self, number: int) -> int:
        """Place of a field; 0 if it is absent."""
        entry = 4 + 2 * number
        offset = self._at("<H", self.vtable + entry) if entry < self.size else 0
        return self.place + offset if offset else 0

    def _follow(self, number: int) -> int:
        """Place of what a field points to; 0 if it is absent."""
        field = self._field(number)
        return field + self._at("<I", field) if field else 0

    def _count(self, place: int, item_bytes: int) -> int:
        """Items of the vector at a place; 0 for an absent one."""
        count = self._at("<I", place) if place else 0
        if place + 4 + count * item_bytes > len(self.content):
            raise _Broken("a vector that reaches beyond the file")
        return count

    def number(self, number: int, code: str) -> int:
        """A number; 0 if it is absent, which is the default of every field read here."""
        field = self._field(number)
        return self._at(code, field) if field else 0

    def table(self, number: int) -> _Table | None:
        """A table."""
        place = self._follow(number)
        return _Table(self.content, place) if place else None

    def text(self, number: int) -> str:
        """A string."""
        place = self._follow(number)
        size = self._at("<I", place) if place else 0
        return self.content[place + 4 : place + 4 + size].decode()

    def tables(self, number: int) -> list[_Table]:
        """A vector of tables."""
        place = self._follow(number)
        starts = [place + 4 + 4 * i for i in range(self._count(place, 4))]
        return [_Table(self.content, start + self._at("<I", start)) for start in starts]

    def pairs(self, number: int) -> Iterator[tuple[int, int]]:
        """A vector of structs of two int64."""
        place = self._follow(number)
        for i in range(self._count(place, 16)):
            first, second = struct.unpack_from("<qq", self.content, place + 4 + 16 * i)
            if min(first, second) < 0:
                raise _Broken("a negative size")
            yield first, second

    def blocks(self, number: int) -> list[tuple[int, int, int]]:
        """A vector of Arrow's `Block`: offset, size of the metadata, size of the body."""
        place = self._follow(number)
        return [
            struct.unpack_from("<qi4xq", self.content, place + 4 + 24 * i)  # type: ignore[misc]
            for i in range(self._count(place, 24))
        ]


def _unpack(raw: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """A compressed buffer: its size, -1 for plain, then an LZ4 frame."""
    size = int(raw[:8].view("<i8")[0])
    if size == -1:
        return raw[8:]
    if not 0 <= size <= _MAX_RATIO * len(raw):
        raise _Broken(f"a buffer of {size} bytes")
    frame = raw[8:]
    magic, flags = struct.unpack_from("<IB", frame.data)
    if magic != _LZ4_MAGIC or flags >> 6 != 1:
        raise _Broken("compressed data that is no LZ4 frame")
    place = 7 + 8 * (flags >> 3 & 1) + 4 * (flags & 1)
    out = np.empty(size, dtype=np.uint8)
    filled = 0
    while True:
        (word,) = struct.unpack_from("<I", frame.data, place)
        place += 4
        if word == 0:
            break
        block = frame[place : place + (word & 0x7FFFFFFF)]
        if word >> 31:
            out[filled : filled + len(block)] = block
            filled += len(block)
        else:
            filled = _unpack_block(block, out, filled)
            if filled < 0:
                raise _Broken("a broken LZ4 block")
        place += len(block) + 4 * (flags >> 4 & 1)
    if filled != size:
        raise _Broken(f"{filled} of {size} bytes in an LZ4 frame")
    return out


@njit(cache=True, nogil=True)
def _unpack_block(block: np.ndarray, out: np.ndarray, filled: int) -> int:
    """Unpack a block behind the first `filled` bytes of `out`; the new end, or -1 if it is broken."""
    place, end = 0, len(block)
    while place < end:
        token = block[place]
        place += 1
        literals = np.int64(token >> 4)
        if literals == 15:
            more = 255
            while more == 255:
                if place >= end:
                    return -1
                more = block[place]
                place += 1
                literals += more
        if place + literals > end or filled + literals > len(out):
            return -1
        for _ in range(literals):
            out[filled] = block[place]
            filled += 1
            place += 1
        if place == end:
            return filled
        if place + 2 > end:
            return -1
        back = np.int64(block[place]) | (np.int64(block[place + 1]) << 8)
        place += 2
        length = np.int64(token & 15) + 4
        if length == 19:
            more = 255
            while more == 255:
                if place >= end:
                    return -1
                more = block[place]
                place += 1
                length += more
        if back == 0 or back > filled or filled + length > len(out):
            return -1
        for _ in range(length):
            out[filled] = out[filled - back]
            filled += 1
    return filled
