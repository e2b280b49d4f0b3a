"""tools/visualize.py as a user calls it: pictures, exit codes, messages."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def tool() -> ModuleType:
    spec = importlib.util.spec_from_file_location("visualize", ROOT / "tools/visualize.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    folder = tmp_path / "data/sequences/08"
    for name in ("velodyne", "labels", "predictions"):
        (folder / name).mkdir(parents=True)
    points = np.random.default_rng(0).uniform(-20, 20, (500, 4)).astype(np.float32)
    for frame in ("000000", "000001"):
        points.tofile(folder / f"velodyne/{frame}.bin")
        np.full(500, 40, np.uint32).tofile(folder / f"labels/{frame}.label")
        np.full(500, 48, np.uint32).tofile(folder / f"predictions/{frame}.label")
    return tmp_path / "data"


@pytest.mark.parametrize("view", ["bev", "range", "both"])
def test_one_scan(
    tree: Path, tool: ModuleType, capsys: pytest.CaptureFixture[str], view: str
) -> None:
    folder, out = tree / "sequences/08", tree / "new" / "a.png"
    arguments = [str(folder / "velodyne/000000.bin"), "--out", str(out), "--view", view]
    for extra in ([], ["--labels", str(folder / "labels/000000.label")]):
        assert tool.main([*arguments, *extra, "--dpi", "40"]) == 0
        assert capsys.readouterr().out == f"{out}\n"
        assert out.read_bytes().startswith(b"\x89PNG")
        out.unlink()


def test_a_folder_gives_a_folder_of_comparisons(
    tree: Path, tool: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tree / "pictures"
    assert tool.main([str(tree), "--out", str(out), "--every", "2", "--dpi", "40"]) == 0
    shown = capsys.readouterr()
    assert shown.out == f"{out / '08_000000.png'}\n"
    assert "100%" in shown.err


def test_mistakes_are_named(
    tree: Path, tool: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    out = ["--out", str(tree / "a.png")]
    scan = str(tree / "sequences/08/velodyne/000000.bin")
    for arguments, message in (
        ([str(tree / "nowhere.bin"), *out], "nowhere.bin"),
        ([scan, "--labels", scan, *out], "one label a point"),
        ([str(tree), "--labels", scan, *out], "belong to one scan"),
        ([str(tree), "--sequences", "11", *out], "sequences must be among 08"),
        ([scan, "--label-map", "mine", *out], "name_or_path must be"),
        ([scan, "--out", str(tree / "a.txt")], "must end in .png"),
    ):
        assert tool.main(arguments) == 2
        error = capsys.readouterr().err
        assert error.startswith("visualize.py: ") and message in error
    with pytest.raises(SystemExit):
        tool.main([scan])
    assert "--interactive" in capsys.readouterr().err
