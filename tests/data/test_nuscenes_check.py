"""`tools/prepare_data.py nuscenes`: what is there, what is missing, what cannot be read."""

from __future__ import annotations

import runpy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.data.nuscenes_tree import write_tree

pytest.importorskip("nuscenes")
ROOT = Path(__file__).resolve().parents[2]
VERSION = "v1.0-mini"


@pytest.fixture
def run(tmp_path: Path) -> Callable[..., int]:
    main: Any = runpy.run_path(str(ROOT / "tools" / "prepare_data.py"))["main"]
    write_tree(tmp_path)

    def command(*options: str, version: str = VERSION) -> int:
        code: int = main(["nuscenes", "--root", str(tmp_path), "--version", version, *options])
        return code

    return command


def test_a_whole_download(run: Callable[..., int], capsys: pytest.CaptureFixture[str]) -> None:
    assert run() == 0
    shown = capsys.readouterr()
    assert "v1.0-mini: 2 scenes, 6 key frames" in shown.out
    assert "mini_train                 1           3        14" in shown.out
    assert "train_detect" not in shown.out
    assert "car                       12           6              72" in shown.out
    assert "map expansion: 2 of 2 locations" in shown.out
    assert "0 missing and 0 broken of 66 files" in shown.out
    assert "100%" in shown.err


def test_half_a_download(
    run: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for path in sorted((tmp_path / "sweeps" / "LIDAR_TOP").glob("scene-0103*"))[:5]:
        path.unlink()
    gone = sorted((tmp_path / "samples" / "CAM_BACK").iterdir())[2]
    gone.unlink()
    assert run() == 1
    shown = capsys.readouterr().out
    assert "LIDAR_TOP sweeps            12        5       0" in shown
    assert "LIDAR_TOP sweeps missing: ... and 2 more" in shown
    assert f"CAM_BACK missing: samples/CAM_BACK/{gone.name}" in shown
    assert "6 missing and 0 broken of 66 files" in shown
    assert run("--ignore", "sweeps", "cameras") == 0


@pytest.mark.parametrize("workers", ["0", "1"])
def test_broken_files_are_found_by_reading(
    run: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str], workers: str
) -> None:
    image = next((tmp_path / "samples" / "CAM_FRONT").iterdir())
    image.write_bytes(image.read_bytes()[:200])
    cloud = next((tmp_path / "sweeps" / "LIDAR_TOP").iterdir())
    cloud.write_bytes(cloud.read_bytes()[:-3])
    assert run() == 0  # they are there
    capsys.readouterr()
    assert run("--check-files", "--workers", workers) == 1
    shown = capsys.readouterr().out
    assert image.name in shown and cloud.name in shown
    assert "0 missing and 2 broken of 66 files" in shown


def test_a_wrong_version(run: Callable[..., int], capsys: pytest.CaptureFixture[str]) -> None:
    assert run(version="v1.0-trainval") == 2
    assert "got v1.0-mini" in capsys.readouterr().err
