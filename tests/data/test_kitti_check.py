"""The checker finds each kind of damage, and nothing in a sound tree."""

from __future__ import annotations

from pathlib import Path

import pytest

from pointlib.data.kitti_check import check_tree, format_reports
from tests.data.test_semantic_kitti import damage


@pytest.mark.parametrize("workers", [0, 2])
def test_a_sound_tree(tree: Path, workers: int) -> None:
    reports = check_tree(tree, ["00", "08", "11"], workers=workers, progress=False)
    assert [report.scans for report in reports] == [3, 2, 1]
    assert [report.points for report in reports] == [180, 120, 60]
    assert not any(report.problems or report.notes for report in reports)
    assert format_reports(reports).endswith("0 problems in 6 scans of 3 sequences")


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("truncated", "954 bytes"),
        ("empty", "an empty file"),
        ("nan", "NaN or Inf in 1 of 60"),
        ("label length", "got 59"),
        ("label missing", "No such file"),
        ("label id", r"2 (60 points)"),
        ("unreadable", "Is a directory"),
    ],
)
def test_damage_is_found_and_the_rest_read(tree: Path, kind: str, message: str) -> None:
    damage(tree, kind)
    (report,) = check_tree(tree, ["00"], progress=False)
    assert len(report.problems) == 1
    assert message in report.problems[0] and "000001" in report.problems[0]
    assert report.points == 120


def test_missing_sequences_and_side_files(tree: Path) -> None:
    folder = tree / "sequences/08"
    (folder / "times.txt").unlink()
    (folder / "poses.txt").write_text("1 0 0 0 0 1 0 0 0 0 1 0\n")
    (folder / "calib.txt").write_text("nothing\n")
    (folder / "velodyne/000001.bin").unlink()
    missing, found = check_tree(tree, ["07", "08"], progress=False)
    assert missing.scans == 0 and "sequences/07 must be there" in missing.problems[0]
    assert found.notes == ["no times.txt"]
    calibration, orphan = found.problems
    assert "calib.txt line 1" in calibration
    assert "1 without one, the first 000001.label" in orphan
    (folder / "velodyne/000001.bin").write_bytes(bytes(960))
    (found,) = check_tree(tree, ["08"], progress=False)
    assert "a line for each of the 2 scans, got 1" in found.problems[1]


def test_the_whole_data_set_is_wanted_by_default(tree: Path) -> None:
    reports = check_tree(tree, progress=False)
    assert [report.name for report in reports] == [*(f"{i:02d}" for i in range(11)), "11"]
    assert sum(bool(report.problems) for report in reports) == 9
    text = format_reports(reports, most=1)
    assert "01: check_tree" in text and text.endswith("9 problems in 6 scans of 12 sequences")


def test_long_lists_are_cut(tree: Path) -> None:
    for scan in tree.glob("sequences/00/velodyne/*"):
        scan.write_bytes(b"")
    text = format_reports(check_tree(tree, ["00"], progress=False), most=2)
    assert "... and 1 more problems" in text
