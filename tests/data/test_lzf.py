"""LZF: round trips, a stream written by hand, and broken streams."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pointlib.data import lzf


@given(st.one_of(st.binary(max_size=600), st.text("ab", max_size=3000).map(str.encode)))
def test_round_trip(data: bytes) -> None:
    packed = lzf.compress(data)
    assert lzf.decompress(packed, len(data)) == data
    assert len(packed) <= len(data) + -(-len(data) // 32)


def test_repetition_shrinks() -> None:
    data = bytes(1000) + np.arange(2000, dtype="<u2").tobytes() + bytes(9000)
    packed = lzf.compress(data)
    assert len(packed) < 0.5 * len(data)
    assert lzf.decompress(packed, len(data)) == data


def test_a_stream_by_hand() -> None:
    literal = b"\x02abc"
    copy_five_from_three_back = bytes([(5 - 2) << 5, 3 - 1])  # overlaps: abcab
    long_copy = bytes([0xE0, 20 - 2 - 7, 1 - 1])  # 20 bytes, distance 1
    want = b"abc" + b"abcab" + b"b" * 20
    assert lzf.decompress(literal + copy_five_from_three_back + long_copy, len(want)) == want


@pytest.mark.parametrize(
    ("data", "size", "message"),
    [
        (b"\x05abc", 6, "cut off"),
        (b"\x02abc\x60", 8, "cut off"),
        (b"\x02abc\xe0", 8, "cut off"),
        (b"\x02abc\x60\x09", 8, "before its start"),
        (b"\x02abc", 4, "expand to 4 bytes, got 3"),
        (b"\x02abc\x02def", 4, "expand to 4 bytes"),
    ],
)
def test_broken_streams_are_refused(data: bytes, size: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        lzf.decompress(data, size)
