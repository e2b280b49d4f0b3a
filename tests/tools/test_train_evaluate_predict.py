"""The three commands, as a user types them."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.engine.tiny_run import ROOT, environment, tiny_config, write_config, write_dataset


def command(tool: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    """Run tools/TOOL.py."""
    return subprocess.run(
        [sys.executable, str(ROOT / f"tools/{tool}.py"), *map(str, arguments)],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=200,
    )


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with data/ and run/, made by tools/train.py."""
    folder = tmp_path_factory.mktemp("tools")
    root = write_dataset(folder / "data", train=4, val=2)
    config = tiny_config(root, folder / "run", trainer={"max_epochs": 1, "progress_bar": True})
    path = write_config(folder / "config.yaml", config)
    done = command("train", "--config", path, "--data.batch_size", 4, "--logger=csv")
    assert done.returncode == 0, done.stderr
    assert "validation after epoch 0" in done.stdout
    assert "Epoch 0" in done.stderr + done.stdout  # the progress bar
    return folder


def test_evaluate_prints_a_table_and_writes_json(trained: Path, tmp_path: Path) -> None:
    done = command(
        *("evaluate", "--checkpoint", trained / "run", "--data.root", trained / "data"),
        *("--split", "08", "--tta", "--out", tmp_path, "--device", "cpu"),
    )
    assert done.returncode == 0, done.stderr
    for word in ("mean IoU", "traffic-sign", "median ms", "forward", "scores.json"):
        assert word in done.stdout
    report = json.loads((tmp_path / "scores.json").read_text())
    assert report["num_scans"] == 2 and report["tta"] is True
    assert (tmp_path / "sequences/08/predictions/000001.label").is_file()


def test_predict_labels_a_folder_and_draws(trained: Path, tmp_path: Path) -> None:
    folder = trained / "data/sequences/08/velodyne"
    done = command(
        *("predict", "--checkpoint", trained / "run", "--input", folder),
        *("--out", tmp_path, "--pictures", "--device", "cpu"),
    )
    assert done.returncode == 0, done.stderr
    assert "2 point clouds labelled" in done.stdout
    names = sorted(p.name for p in tmp_path.iterdir())
    assert names == ["000000.label", "000000.png", "000001.label", "000001.png"]
    assert (tmp_path / "000000.label").stat().st_size * 4 == (folder / "000000.bin").stat().st_size


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (("evaluate", "--checkpont", "x"), 2, "did you mean 'checkpoint'?"),
        (("evaluate", "--checkpoint", "absent", "--data.root", "."), 1, "no such file or folder"),
        (("predict", "--checkpoint", "absent", "--input", "x", "--out", "y"), 1, "must be a"),
        (("train", "--confg", "x"), 2, "error: config"),
        (("train", "--config", "absent.yaml"), 2, "absent.yaml, which does not exist"),
    ],
)
def test_mistakes_end_with_one_message(
    arguments: tuple[str, ...], status: int, message: str
) -> None:
    done = command(*arguments)
    assert done.returncode == status
    assert message in done.stderr
    assert "Traceback" not in done.stderr
