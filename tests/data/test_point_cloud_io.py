"""Files of points: every format and encoding, files written by others, and broken ones."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from pointlib.data import BadSampleError, read_points, write_points

POINTS = np.random.default_rng(0).normal(0, 30, (57, 4)).astype(np.float32)
ENCODINGS = [
    (".bin", "binary"),
    (".npy", "binary"),
    (".pcd", "ascii"),
    (".pcd", "binary"),
    (".pcd", "binary_compressed"),
    (".ply", "ascii"),
    (".ply", "binary"),
]


@pytest.mark.parametrize(("suffix", "encoding"), ENCODINGS)
@pytest.mark.parametrize("count", [57, 1, 0])
def test_round_trip_to_the_bit(tmp_path: Path, suffix: str, encoding: str, count: int) -> None:
    path = tmp_path / "new" / f"points{suffix}"
    write_points(path, POINTS[:count], encoding)  # type: ignore[arg-type]
    if suffix == ".bin" and count == 0:
        with pytest.raises(BadSampleError, match="an empty file"):
            read_points(path)
        return
    points = read_points(path)
    assert points.dtype == np.float32
    assert np.array_equal(points, POINTS[:count])
    assert [p.name for p in path.parent.iterdir()] == [path.name]


@pytest.mark.parametrize(("suffix", "encoding"), ENCODINGS[2:])
def test_further_fields(tmp_path: Path, suffix: str, encoding: str) -> None:
    path = tmp_path / f"points{suffix}"
    extra = {"label": np.arange(57, dtype=np.uint8), "time": np.linspace(0, 1, 57)}
    write_points(path, POINTS, encoding, extra)  # type: ignore[arg-type]
    assert np.array_equal(read_points(path), POINTS)
    labels = read_points(path, intensity_field="label")[:, 3]
    assert labels.tolist() == list(range(57))


def test_five_columns_as_nuscenes_has_them(tmp_path: Path) -> None:
    path = tmp_path / "points.bin"
    np.column_stack([POINTS, np.arange(57)]).astype(np.float32).tofile(path)
    assert np.array_equal(read_points(path, columns=5), POINTS)
    with pytest.raises(BadSampleError, match=r"rows of 4 float32 .*got 1140 bytes.*columns="):
        read_points(path, columns=7 - 3)
    with pytest.raises(ValueError, match="columns must be at least 4"):
        read_points(path, columns=3)


def test_an_organised_ascii_pcd_by_pcl(test_data: Path) -> None:
    """64 x 1024 pixels, of which 48,048 have a return and the others are 0, 0, 0 (MANIFEST)."""
    points = read_points(test_data / "misc_lidar/autoware_ground_64x1024.pcd")
    assert points.shape == (65_536, 4)
    returns = points[(points[:, :3] != 0).any(axis=1)]
    assert len(returns) == 48_048
    assert np.isclose(returns[:, 0].min(), -243.8, atol=0.1)
    assert (returns[:, 3] == 128).all()


def pcd(fields: str, sizes: str, types: str, counts: str, points: int, encoding: str) -> bytes:
    return (
        f"# .PCD v.7\nVERSION .7\nFIELDS {fields}\nSIZE {sizes}\nTYPE {types}\nCOUNT {counts}\n"
        f"WIDTH {points}\nHEIGHT 1\nVIEWPOINT 0 0 0 1 0 0 0\nPOINTS {points}\nDATA {encoding}\n"
    ).encode()


def test_padding_vectors_and_doubles_in_a_binary_pcd(tmp_path: Path) -> None:
    """As ROS drivers write it: padding called "_", a normal of three values, float64 coordinates."""
    row = np.dtype(
        [("x", "<f8"), ("y", "<f8"), ("z", "<f8"), ("_", "u1", 4), ("n", "<f4", 3), ("i", "<u2")]
    )
    table = np.zeros(2, row)
    table["x"], table["z"], table["i"] = [1.5, 2.5], -3, [7, 9]
    header = pcd(
        "x y z _ normal Intensity", "8 8 8 1 4 2", "F F F U F U", "1 1 1 4 3 1", 2, "binary"
    )
    path = tmp_path / "a.pcd"
    path.write_bytes(header + table.tobytes())
    assert read_points(path).tolist() == [[1.5, 0, -3, 7], [2.5, 0, -3, 9]]


def test_a_pcd_without_count_and_points(tmp_path: Path) -> None:
    path = tmp_path / "a.pcd"
    path.write_text(
        "VERSION 0.7\nFIELDS x y z reflectivity\nSIZE 4 4 4 4\nTYPE F F F F\nWIDTH 1\nHEIGHT 2\n"
        "DATA ascii\n1 2 3 4\n5 6 7 8\n"
    )
    assert read_points(path).tolist() == [[1, 2, 3, 4], [5, 6, 7, 8]]


PLY_HEADER = (
    "ply\nformat {} 1.0\ncomment by hand\nelement camera 1\nproperty float focal\nelement vertex 2\n"
    "property double x\nproperty float64 y\nproperty float z\nproperty uchar intensity\n"
    "element face 1\nproperty list uchar int vertex_indices\nend_header\n"
)


@pytest.mark.parametrize(
    ("name", "order"), [("binary_little_endian", "<"), ("binary_big_endian", ">")]
)
def test_other_elements_and_byte_orders_in_a_ply(tmp_path: Path, name: str, order: str) -> None:
    table = np.zeros(
        2, [("x", f"{order}f8"), ("y", f"{order}f8"), ("z", f"{order}f4"), ("i", "u1")]
    )
    table["x"], table["i"] = [1.25, 2.5], [3, 200]
    path = tmp_path / "a.ply"
    focal = np.array([9.0], f"{order}f4").tobytes()
    path.write_bytes(
        PLY_HEADER.format(name).encode() + focal + table.tobytes() + b"\x03" + bytes(12)
    )
    assert read_points(path).tolist() == [[1.25, 0, 0, 3], [2.5, 0, 0, 200]]


def test_an_ascii_ply_with_other_elements(tmp_path: Path) -> None:
    path = tmp_path / "a.ply"
    path.write_text(
        PLY_HEADER.format("ascii").replace("\n", "\r\n") + "9\n1 2 3 4\n5 6 7 8\n3 0 1 1\n"
    )
    assert read_points(path).tolist() == [[1, 2, 3, 4], [5, 6, 7, 8]]


@pytest.mark.parametrize("suffix", [".npy", ".ply", ".pcd"])
def test_missing_intensity_is_an_error_or_chosen(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a{suffix}"
    if suffix == ".npy":
        np.save(path, POINTS[:, :3])
    elif suffix == ".ply":
        path.write_text(
            "ply\nformat ascii 1.0\nelement vertex 1\nproperty float x\nproperty float y\n"
            "property float z\nend_header\n1 2 3\n"
        )
    else:
        path.write_bytes(pcd("x y z", "4 4 4", "F F F", "1 1 1", 1, "ascii") + b"1 2 3\n")
    with pytest.raises(ValueError, match=r"must have intensity.*missing_intensity=0\.0"):
        read_points(path)
    assert (read_points(path, missing_intensity=0.5)[:, 3] == 0.5).all()


def test_npy_of_other_types(tmp_path: Path) -> None:
    path = tmp_path / "a.npy"
    np.save(path, POINTS.astype(np.float64))
    assert np.array_equal(read_points(path), POINTS)
    for wrong in (POINTS[0], POINTS[:, :2], POINTS.astype(str)):
        np.save(path, wrong)
        with pytest.raises(BadSampleError, match=r"\(N, 3 or more\) array of numbers"):
            read_points(path)
    np.save(path, np.array([{"a": 1}]), allow_pickle=True)
    with pytest.raises(BadSampleError, match=r"readable \.npy"):
        read_points(path)


def test_nothing_finite_is_kept_silently(tmp_path: Path) -> None:
    points = POINTS.copy()
    points[[3, 9], [0, 3]] = np.nan, np.inf
    for suffix, encoding in ENCODINGS:
        path = tmp_path / f"a{suffix}"
        write_points(path, points, encoding)  # type: ignore[arg-type]
        with pytest.raises(BadSampleError, match="in 2 of 57 points, first in row 3"):
            read_points(path)
        assert len(read_points(path, nonfinite="drop")) == 55
        assert len(read_points(path, nonfinite="keep")) == 57


@pytest.mark.parametrize(("suffix", "encoding"), ENCODINGS)
def test_truncated_files_are_refused(tmp_path: Path, suffix: str, encoding: str) -> None:
    path = tmp_path / f"cut{suffix}"
    write_points(path, POINTS, encoding)  # type: ignore[arg-type]
    whole = path.read_bytes()
    for size in (0, 3, len(whole) // 2 + 1, len(whole) - (60 if encoding == "ascii" else 3)):
        path.write_bytes(whole[:size])
        with pytest.raises(BadSampleError, match=f"cut{suffix}"):
            read_points(path)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (
            "a.pcd",
            pcd("x y", "4 4", "F F", "1 1", 1, "ascii") + b"1 2",
            "must have the fields x, y, z, got x, y",
        ),
        ("a.pcd", pcd("x y z", "4 4", "F F F", "1 1 1", 1, "ascii"), "3 FIELDS, 2 SIZE"),
        ("a.pcd", pcd("x y z", "4 4 3", "F F F", "1 1 1", 1, "ascii"), "TYPE and SIZE F3"),
        ("a.pcd", pcd("x y z", "4 4 4", "F F F", "1 1 1", 1, "zipped"), "DATA zipped"),
        ("a.pcd", b"\x89PNG\r\n", "got no FIELDS, SIZE, TYPE, DATA"),
        ("a.ply", b"\x89PNG\r\n", "no 'ply'"),
        ("a.ply", b"ply\nformat ascii 1.0\nelement face 0\nend_header\n", "face and no vertex"),
        ("a.ply", b"ply\nformat xml 1.0\nelement vertex 0\nend_header\n", "format 'xml'"),
        (
            "a.ply",
            b"ply\nformat ascii 1.0\nelement vertex 1\nproperty list uchar int n\nend_header\n0\n",
            "list properties in the element vertex",
        ),
    ],
)
def test_wrong_headers_say_what_is_wrong(
    tmp_path: Path, name: str, content: bytes, message: str
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(BadSampleError, match=message) as error:
        read_points(tmp_path / name)
    assert str(tmp_path / name) in str(error.value)


def test_missing_file_and_unknown_suffix(tmp_path: Path) -> None:
    for name in ("a.bin", "a.npy", "a.pcd", "a.ply"):
        with pytest.raises(BadSampleError, match="No such file"):
            read_points(tmp_path / name)
    with pytest.raises(
        ValueError, match=r"path must end in \.bin, \.npy, \.pcd, \.ply, got .*a\.las"
    ):
        read_points(tmp_path / "a.las")


@pytest.mark.parametrize(
    ("act", "error", "message"),
    [
        (lambda p: read_points(p / "a.bin", nonfinite="fix"), ValueError, "nonfinite must be"),
        (
            lambda p: write_points(p / "a.bin", POINTS.astype(float)),
            TypeError,
            "float32, got float64",
        ),
        (
            lambda p: write_points(p / "a.bin", POINTS[:, :3]),
            ValueError,
            r"\(N, 4\), got \(57, 3\)",
        ),
        (lambda p: write_points(p / "a.bin", POINTS, "ascii"), ValueError, "in binary only"),
        (lambda p: write_points(p / "a.pcd", POINTS, "zip"), ValueError, "encoding must be"),
        (
            lambda p: write_points(p / "a.ply", POINTS, "binary_compressed"),
            ValueError,
            "encoding must",
        ),
        (
            lambda p: write_points(p / "a.ply", POINTS, extra={"x": POINTS[:, 0]}),
            ValueError,
            r"new names to \(57,\) arrays, got 'x'",
        ),
        (
            lambda p: write_points(p / "a.ply", POINTS, extra={"t": np.zeros(57, np.int64)}),
            ValueError,
            "up to 4 bytes, got t: int64",
        ),
        (
            lambda p: write_points(p / "a.pcd", POINTS, extra={"t": np.zeros(57, bool)}),
            ValueError,
            "numbers of 1-8 bytes, got t: bool",
        ),
    ],
)
def test_wrong_use_is_refused(
    tmp_path: Path, act: Callable[[Path], object], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        act(tmp_path)
    assert list(tmp_path.iterdir()) == []
