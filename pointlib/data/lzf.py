"""LZF, the byte compression inside binary_compressed .pcd files (the format of Marc Lehmann's liblzf).

A stream is a row of tokens. A control byte below 32 announces that many + 1 literal bytes. Any other holds a length
in its upper 3 bits (7: add the next byte) and, with the byte after, a 13-bit distance minus one: copy length + 2 bytes.
"""

from __future__ import annotations

_MAX_LITERAL = 32
_MAX_DISTANCE = 1 << 13
_MAX_MATCH = 7 + 255 + 2


def decompress(data: bytes, size: int) -> bytes:
    """Expand an LZF stream.

    Args:
        data: The stream.
        size: Bytes it expands to.

    Returns:
        The `size` bytes.

    Raises:
        ValueError: If the stream is cut off, points before its start or has another size.
    """
    out = bytearray()
    at, end = 0, len(data)
    try:
        while at < end:
            control = data[at]
            at += 1
            if control < _MAX_LITERAL:
                out += data[at : at + control + 1]
                at += control + 1
                continue
            length = control >> 5
            if length == 7:
                length += data[at]
                at += 1
            start = len(out) - ((control & 31) << 8) - data[at] - 1
            at += 1
            length += 2
            if start < 0:
                raise ValueError(
                    "lzf.decompress: data must not point before its start, got a bad distance."
                )
            _copy(out, start, length)
            if len(out) > size:
                break
    except IndexError:
        raise ValueError(
            "lzf.decompress: data must be whole, got a stream that is cut off."
        ) from None
    if at > end or len(out) != size:
        raise ValueError(
            f"lzf.decompress: data must expand to {size} bytes, got {len(out)} or a stream that is cut off."
        )
    return bytes(out)


def compress(data: bytes) -> bytes:
    """Write an LZF stream, greedily: the last place of each three bytes is tried, nothing else.

    Args:
        data: Any bytes.

    Returns:
        The stream; up to 3 % longer than `data` where nothing repeats.
    """
    out = bytearray()
    seen: dict[bytes, int] = {}
    at = literal_from = 0
    end = len(data)
    while at + 2 < end:
        key = data[at : at + 3]
        found = seen.get(key)
        seen[key] = at
        if found is None or at - found > _MAX_DISTANCE:
            at += 1
            continue
        length = 3
        longest = min(_MAX_MATCH, end - at)
        while length < longest and data[found + length] == data[at + length]:
            length += 1
        _put_literals(out, data[literal_from:at])
        distance = at - found - 1
        if length - 2 < 7:
            out.append(((length - 2) << 5) | (distance >> 8))
        else:
            out += bytes((0xE0 | (distance >> 8), length - 2 - 7))
        out.append(distance & 0xFF)
        at += length
        literal_from = at
    _put_literals(out, data[literal_from:])
    return bytes(out)


def _copy(out: bytearray, start: int, length: int) -> None:
    """Append `length` bytes from `start`; source and target may overlap, which repeats a pattern."""
    distance = len(out) - start
    if distance >= length:
        out += out[start : start + length]
        return
    pattern = bytes(out[start:])
    out += (pattern * (length // distance + 1))[:length]


def _put_literals(out: bytearray, literals: bytes) -> None:
    for start in range(0, len(literals), _MAX_LITERAL):
        run = literals[start : start + _MAX_LITERAL]
        out.append(len(run) - 1)
        out += run
