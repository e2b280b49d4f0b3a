"""tools/prepare_data.py as a user calls it: output, exit codes, messages."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def tool() -> ModuleType:
    spec = importlib.util.spec_from_file_location("prepare_data", ROOT / "tools/prepare_data.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def write_tree(root: Path) -> Path:
    folder = root / "sequences/00"
    (folder / "velodyne").mkdir(parents=True)
    (folder / "labels").mkdir()
    np.ones((9, 4), np.float32).tofile(folder / "velodyne/000000.bin")
    np.full(9, 40, np.uint32).tofile(folder / "labels/000000.label")
    return folder


def test_check_prints_a_table_and_exits_by_what_it_found(
    tmp_path: Path, tool: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write_tree(tmp_path)
    arguments = ["check", "--root", str(tmp_path), "--sequences", "00", "--workers", "0"]
    assert tool.main(arguments) == 0
    shown = capsys.readouterr()
    assert "0 problems in 1 scans of 1 sequences" in shown.out
    assert "100%" in shown.err
    (folder / "velodyne/000000.bin").write_bytes(b"12345")
    assert tool.main(arguments) == 1
    shown = capsys.readouterr()
    assert "000000.bin" in shown.out and "got 5 bytes" in shown.out


def test_range_scans_and_wrong_arguments(
    tmp_path: Path, tool: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    np.savez(tmp_path / "000000.npz", xyzi=np.ones((9, 4), np.float32), label=np.full(9, 9))
    out = tmp_path / "out"
    arguments = ["range-scans", "--source", str(tmp_path), "--root", str(out)]
    assert tool.main(arguments) == 0
    assert capsys.readouterr().out.startswith("00/000000  ")
    assert np.fromfile(out / "sequences/00/labels/000000.label", np.uint32).tolist() == [40] * 9
    assert tool.main([*arguments, "--held-out", "7"]) == 2
    assert "held_out must name scans" in capsys.readouterr().err
    with pytest.raises(SystemExit) as stopped:
        tool.main(["synthetic", "--root", str(out), "--sequences", "00"])
    assert stopped.value.code == 2
    assert "as 00:40, got '00'" in capsys.readouterr().err


@pytest.mark.slow
def test_synthetic_scenes_pass_the_check(
    tmp_path: Path, tool: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    sensor = ["--beams", "16", "--azimuth-steps", "200", "--workers", "1"]
    assert (
        tool.main(["synthetic", "--root", str(tmp_path), "--sequences", "00:2", "08:1", *sensor])
        == 0
    )
    arguments = ["check", "--root", str(tmp_path), "--sequences", "00", "08", "--workers", "0"]
    assert tool.main(arguments) == 0
    assert "0 problems in 3 scans of 2 sequences" in capsys.readouterr().out


def test_runs_as_a_script(tmp_path: Path) -> None:
    command = [sys.executable, "tools/prepare_data.py", "check", "--root", str(tmp_path)]
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
        env={"PYTHONPATH": str(ROOT)},
    )
    assert done.returncode == 2
    assert "root must hold 00, 01" in done.stderr and "Traceback" not in done.stderr


def test_paste_database_cuts_objects_once(
    tmp_path: Path, tool: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("nuscenes", reason="the tables are read by nuscenes-devkit")
    from tests.data.nuscenes_tree import write_tree

    root = write_tree(tmp_path / "nuscenes")
    arguments = ["paste-database", "--root", str(root), "--folder", str(tmp_path / "objects")]
    arguments += ["--version", "v1.0-mini", "--split", "mini_train", "--workers", "0"]
    assert tool.main([*arguments, "--min-points", "1"]) == 0
    shown = capsys.readouterr()
    assert "truck" in shown.out and "100%" in shown.err
    assert (tmp_path / "objects/points.bin").stat().st_size > 0
    assert tool.main([*arguments, "--min-points", "1"]) == 0
    assert "sample/s" not in capsys.readouterr().err  # nothing is cut again
    assert tool.main([*arguments, "--min-points", "2"]) == 2
    assert "folder must be new or hold a database of" in capsys.readouterr().err
