"""Feather files: whole ones come back, broken or foreign ones are named."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from pointlib.data.feather import read_feather
from pointlib.data.sample import BadSampleError

pyarrow = pytest.importorskip("pyarrow", reason="needs pyarrow")


def columns(rows: int = 500) -> dict[str, np.ndarray]:
    count = np.arange(rows)
    return {
        "u1": (count // 7 % 256).astype(np.uint8),
        "i8": count - 250,
        "f2": np.full(rows, 1.5, np.float16),
        "f8": count / 8,
        "s": np.array([f"track {i % 5}" if i % 9 else "" for i in count], dtype=object),
    }


def write(path: Path, rows: int = 500, compression: str = "lz4") -> Path:
    from pyarrow import feather

    feather.write_feather(pyarrow.table(columns(rows)), path, compression=compression)
    return path


@pytest.mark.parametrize("compression", ["lz4", "zstd", "uncompressed"])
@pytest.mark.parametrize("rows", [500, 0])
def test_tables_come_back(compression: str, rows: int, tmp_path: Path) -> None:
    table, wanted = read_feather(write(tmp_path / "t.feather", rows, compression)), columns(rows)
    assert list(table) == list(wanted)
    for column, values in wanted.items():
        if rows:
            assert table[column].dtype == values.dtype
        np.testing.assert_array_equal(table[column], values)


def test_missing_files_and_values_are_named(tmp_path: Path) -> None:
    from pyarrow import feather

    with pytest.raises(BadSampleError, match=r"none\.feather must be a complete Feather file"):
        read_feather(tmp_path / "none.feather")
    feather.write_feather(pyarrow.table({"a": [1, None], "b": [1, 2]}), tmp_path / "m.feather")
    with pytest.raises(BadSampleError, match="no missing values, got some in a"):
        read_feather(tmp_path / "m.feather")


@pytest.mark.parametrize("keep", [0.0, 0.2, 0.7, 0.99])
def test_cut_files_are_named(keep: float, tmp_path: Path) -> None:
    whole = write(tmp_path / "whole.feather").read_bytes()
    path = tmp_path / "cut.feather"
    path.write_bytes(whole[: int(keep * len(whole))])
    with pytest.raises(BadSampleError, match=r"cut\.feather"):
        read_feather(path)
