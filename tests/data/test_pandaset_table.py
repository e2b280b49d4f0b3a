"""Tables of PandaSet: equal to what pandas reads, and nothing in them is executed."""

from __future__ import annotations

import gzip
import os
import pickle
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pointlib.data.pandaset_table import read_table
from pointlib.data.sample import BadSampleError

GOLDEN = Path(__file__).parents[1] / "golden" / "pandaset"
COLUMNS = {"x": [0.0, 1.5, 3.0], "n": [0, 1, 2], "b": [True, False, True], "s": ["a", "-", "c"]}


@pytest.mark.parametrize("protocol", [2, 4, 5])
def test_tables_of_pandas_3(protocol: int) -> None:
    table = read_table(GOLDEN / f"pandas3_protocol{protocol}.pkl.gz")
    assert {name: column.tolist() for name, column in table.items()} == COLUMNS
    assert [column.dtype.kind for column in table.values()] == ["f", "i", "b", "O"]


def test_tables_of_pandas_0_25(test_data: Path) -> None:
    table = read_table(test_data / "pandaset/002/lidar/00.pkl.gz")
    assert list(table) == ["x", "y", "z", "i", "t", "d"]
    assert {len(column) for column in table.values()} == {166768}
    # what pandas 3.1.1 reads from it
    first = [-75.13113788, -79.33168968, 3.51180427, 7.0, 1557539956.3986351, 0]
    np.testing.assert_allclose([column[0] for column in table.values()], first, rtol=0, atol=1e-8)
    assert table["x"].sum() == pytest.approx(727947.9040229066) and table["d"].sum() == 60599


class Harmful:
    """Writes a file when it is unpickled by the ordinary module."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.system, (f"touch {self.path}",)


def write(folder: Path, content: bytes) -> Path:
    path = folder / "00.pkl.gz"
    path.write_bytes(gzip.compress(content))
    return path


@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_code_is_refused_and_not_run(tmp_path: Path, protocol: int) -> None:
    content = pickle.dumps({"x": Harmful(tmp_path / "ran")}, protocol=protocol)
    with pytest.raises(BadSampleError, match=r"00\.pkl\.gz must hold a pandas table.*system"):
        read_table(write(tmp_path, content))
    assert not (tmp_path / "ran").exists()
    pickle.loads(content)
    assert (tmp_path / "ran").exists()  # it would have been


def test_code_inside_a_table_is_refused(tmp_path: Path) -> None:
    content = gzip.decompress((GOLDEN / "pandas3_protocol2.pkl.gz").read_bytes())
    harm = pickle.dumps(Harmful(tmp_path / "ran"), protocol=2)[2:-1]  # without its head and stop
    end = len(content) - 1
    for place in (2, end):  # before the table, and after it, where it would be the result
        with pytest.raises(BadSampleError, match="must hold a pandas table and nothing else"):
            read_table(write(tmp_path, content[:place] + harm + content[place:]))
    assert not (tmp_path / "ran").exists()
    pickled_alone = content[:2] + harm + b"."
    pickle.loads(pickled_alone)
    assert (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("value", "named"),
    [
        (np.arange(3), "_Array|ndarray|DataFrame"),
        ({"x": [1.0]}, "dict in place of DataFrame"),
        (print, "builtins.print"),
        (slice(3), "slice in place of DataFrame"),
        (np.dtype([("a", "O")]), "the dtype"),
        (np.datetime64(1, "s"), "the dtype"),
    ],
)
def test_other_pickles_are_refused(tmp_path: Path, value: Any, named: str) -> None:
    with pytest.raises(BadSampleError, match=named):
        read_table(write(tmp_path, pickle.dumps(value, protocol=4)))


def test_objects_are_not_made_from_bytes(tmp_path: Path) -> None:
    """A dtype that says it holds pointers, over bytes of the file's choice, would be read by numpy's own unpickler."""
    dtype = (
        b"cnumpy\ndtype\n(X\x02\x00\x00\x00O8I0\nI1\ntR(I3\nX\x01\x00\x00\x00|NNNI-1\nI-1\nI0\ntb"
    )
    array = b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(I0\ntX\x01\x00\x00\x00btR"
    state = b"(I1\n(I1\nt" + dtype + b"I00\nB" + struct.pack("<I", 8) + b"\x41" * 8 + b"tb."
    with pytest.raises(BadSampleError, match="objects from bytes"):
        read_table(write(tmp_path, b"\x80\x03" + array + state))


@pytest.mark.parametrize("keep", [0.0, 0.3, 0.9])
def test_cut_files_are_named(tmp_path: Path, keep: float) -> None:
    whole = (GOLDEN / "pandas3_protocol4.pkl.gz").read_bytes()
    path = tmp_path / "07.pkl.gz"
    path.write_bytes(whole[: int(keep * len(whole))])
    with pytest.raises(BadSampleError, match=r"07\.pkl\.gz"):
        read_table(path)
    content = gzip.decompress(whole)
    with pytest.raises(BadSampleError, match=r"00\.pkl\.gz must be a complete pickle"):
        read_table(write(tmp_path, content[: int(keep * len(content))]))


def test_every_damaged_byte_is_survived(tmp_path: Path) -> None:
    content = gzip.decompress((GOLDEN / "pandas3_protocol4.pkl.gz").read_bytes())
    rng = np.random.default_rng(0)
    failed = 0
    for place in rng.choice(len(content), 150, replace=False):
        damaged = bytearray(content)
        damaged[place] ^= int(rng.integers(1, 256))
        try:
            read_table(write(tmp_path, bytes(damaged)))
        except BadSampleError:
            failed += 1
    assert failed > 50


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(BadSampleError, match=r"none\.pkl\.gz"):
        read_table(tmp_path / "none.pkl.gz")


def test_a_file_that_unpacks_without_end_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pointlib.data.pandaset_table.MAX_BYTES", 1000)
    with pytest.raises(BadSampleError, match="must unpack to at most 1000 bytes"):
        read_table(write(tmp_path, b"\0" * 2000))
