"""tools/tune.py as a user calls it: real and synthetic scans, what it keeps, messages."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from pointlib.ops import tuned_choices
from pointlib.ops._cpu import engine

ROOT = Path(__file__).resolve().parents[2]
CONFIG = str(ROOT / "configs/synthetic/minkunet_demo.yaml")


@pytest.fixture
def tool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    monkeypatch.setenv("POINTLIB_CACHE", str(tmp_path / "cache"))
    spec = importlib.util.spec_from_file_location("tune", ROOT / "tools/tune.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    tuned_choices.load.cache_clear()
    yield module
    tuned_choices.load.cache_clear()


@pytest.fixture
def scans(tmp_path: Path) -> Path:
    folder = tmp_path / "data/sequences/08"
    (folder / "velodyne").mkdir(parents=True)  # labels are not needed
    rng = np.random.default_rng(0)
    for frame in ("000000", "000001"):
        points = rng.uniform(-4, 4, (1500, 4)).astype(np.float32)
        points.tofile(folder / f"velodyne/{frame}.bin")
    return tmp_path / "data"


@pytest.mark.skipif(engine.LIBRARY is None, reason="the composition has one way to do each thing")
@pytest.mark.parametrize("extra", [[], ["--backward", "--precision", "bf16", "--batch_size", "2"]])
def test_choices_are_explained_and_kept(
    tool: ModuleType, scans: Path, capsys: pytest.CaptureFixture[str], extra: list[str]
) -> None:
    command = ["--config", CONFIG, "--data.root", str(scans), "--split", "08", "--num_samples", "2"]
    assert tool.main([*command, "--device", "cpu", *extra]) == 0
    shown = capsys.readouterr()
    assert "stage1.1.net" in shown.out and "untuned" in shown.out and "of limit" in shown.out
    assert "100%" in shown.err
    kept = json.loads(tuned_choices.path().read_text())
    assert all(choice["kind"] == "output_stationary" for choice in kept.values())
    assert len(kept) > 10 and all(("bfloat16" in key) == bool(extra) for key in kept)


def test_nothing_is_kept_where_nothing_should_be(
    tool: ModuleType, scans: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["--config", CONFIG, "--data.root", str(scans), "--split", "08", "--num_samples", "1"]
    assert tool.main([*command, "--device", "cpu", "--dry_run"]) == 0
    assert "kept nothing" in capsys.readouterr().out
    assert not tuned_choices.path().exists()


def test_mistakes_are_named(
    tool: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert tool.main(["--config", CONFIG, "--data.root", str(tmp_path)]) == 1
    assert "--data.root must hold sequences/" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        tool.main(["--config", CONFIG, "--precison", "fp32"])
    assert "precision" in capsys.readouterr().err
