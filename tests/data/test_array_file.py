"""Arrays in one memory-mapped file: what comes back, what a process is sent, and broken files."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest

from pointlib.data.array_file import ArrayFile, write_arrays

ARRAYS = {
    "matrices": np.arange(32, dtype=np.float64).reshape(2, 4, 4),
    "names": np.array([b"one", b"", b"three"]),
    "none": np.zeros((0, 3), np.float32),
    "flags": np.array([True, False]),
    "strided": np.arange(10, dtype=np.int16)[::3],
}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    write_arrays(tmp_path / "folder" / "file", ARRAYS, {"version": "v1", "list": [1, 2]})
    return tmp_path / "folder" / "file"


def test_arrays_and_meta_come_back_read_only(path: Path) -> None:
    file = ArrayFile(path)
    assert file.meta == {"version": "v1", "list": [1, 2]}
    for name, array in ARRAYS.items():
        assert file[name].dtype == array.dtype and name in file
        np.testing.assert_array_equal(file[name], array)
    assert "other" not in file
    with pytest.raises(ValueError, match="read-only"):
        file["matrices"][0, 0, 0] = 1.0


def test_pickled_it_is_its_path(path: Path) -> None:
    sent = pickle.dumps(ArrayFile(path))
    assert len(sent) < 300
    np.testing.assert_array_equal(pickle.loads(sent)["matrices"], ARRAYS["matrices"])


def test_only_empty_arrays(tmp_path: Path) -> None:
    write_arrays(tmp_path / "file", {"none": np.zeros((3, 0))}, {})
    assert ArrayFile(tmp_path / "file")["none"].shape == (3, 0)


@pytest.mark.parametrize("keep", [0, 10, 40, 600])
def test_a_cut_file_is_an_error(path: Path, keep: int) -> None:
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(ValueError, match=r"ArrayFile: .* must"):
        ArrayFile(path)


def test_objects_are_neither_written_nor_read(path: Path) -> None:
    with pytest.raises(TypeError, match=r"numbers or bytes, got object in 'bad'"):
        write_arrays(path, {"bad": np.array([{}])}, {})
    content = path.read_bytes()
    path.write_bytes(content.replace(b'"<f8"', b'"|O8"'))
    with pytest.raises(ValueError, match="must be whole"):
        ArrayFile(path)
