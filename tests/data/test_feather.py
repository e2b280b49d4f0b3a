"""Feather files: what pyarrow 25 wrote comes back, and broken or foreign ones are named."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import pytest

from pointlib.data.feather import read_feather
from pointlib.data.sample import BadSampleError

GOLDEN = Path(__file__).parents[1] / "golden" / "feather"


def expected(rows: int = 500) -> dict[str, np.ndarray]:
    count = np.arange(rows)
    return {
        "u1": (count // 7 % 256).astype(np.uint8),
        "i8": count - 250,
        "f2": np.full(rows, 1.5, np.float16),
        "f8": count / 8,
        "s": np.array([f"track {i % 5}" if i % 9 else "" for i in count], dtype=object),
    }


@pytest.mark.parametrize("name", ["lz4", "plain", "empty"])
def test_tables_of_pyarrow(name: str, tmp_path: Path) -> None:
    path = GOLDEN / f"{name}.feather"
    if name == "plain":
        path = tmp_path / "plain.feather"
        path.write_bytes(gzip.decompress((GOLDEN / "plain.feather.gz").read_bytes()))
    table, wanted = read_feather(path), expected(0 if name == "empty" else 500)
    assert list(table) == list(wanted)
    for column, values in wanted.items():
        assert table[column].dtype == values.dtype
        np.testing.assert_array_equal(table[column], values)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("zstd", "compressed with ZSTD"),
        ("missing", "column a with 1 missing values"),
        ("bool", "column a of Arrow's type 6"),
        ("dictionary", "column a of dictionary or unknown type"),
        ("none", "must be a readable file"),
    ],
)
def test_what_is_not_read_is_named(name: str, message: str) -> None:
    with pytest.raises(BadSampleError, match=message):
        read_feather(GOLDEN / f"{name}.feather")


@pytest.mark.parametrize("keep", [0.0, 0.2, 0.7, 0.99])
def test_cut_files_are_named(keep: float, tmp_path: Path) -> None:
    whole = (GOLDEN / "lz4.feather").read_bytes()
    path = tmp_path / "cut.feather"
    cut = whole[: int(keep * len(whole))]
    for content in (cut, cut[:-600] + whole[-600:]):
        path.write_bytes(content)
        with pytest.raises(BadSampleError, match=r"cut\.feather"):
            read_feather(path)


def test_every_damaged_byte_is_survived(tmp_path: Path) -> None:
    whole = (GOLDEN / "lz4.feather").read_bytes()
    path, failed = tmp_path / "damaged.feather", 0
    rng = np.random.default_rng(0)
    for place in rng.choice(len(whole), 300, replace=False):
        damaged = bytearray(whole)
        damaged[place] ^= int(rng.integers(1, 256))
        path.write_bytes(bytes(damaged))
        try:
            read_feather(path)
        except BadSampleError:
            failed += 1
    assert failed > 20
