"""What is saved, that it loads as plain data, and what happens when it cannot be saved or does not fit."""

from __future__ import annotations

import os
import pickle
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from pointlib.engine import train
from pointlib.engine.checkpoint import AtomicCheckpointIO, CheckpointSaveError
from pointlib.models.checkpoint import build_network, find_checkpoint, read_checkpoint
from tests.engine.tiny_run import (
    ROOT,
    environment,
    load,
    tiny_config,
    write_config,
    write_dataset,
)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a finished run, with its data and config beside it."""
    folder = tmp_path_factory.mktemp("finished")
    root = write_dataset(folder / "data", train=4, val=1)
    config = tiny_config(root, folder / "run", trainer={"max_epochs": 2}, ema={"decay": 0.5})
    assert train(["--config", str(write_config(folder / "config.yaml", config))]) == 0
    return folder / "run"


def test_checkpoints_are_plain_data_with_the_resolved_config(finished: Path) -> None:
    content = load(finished / "last.ckpt")  # weights_only
    info = content["pointlib"]
    assert info["network"] == "minkunet"
    assert info["network_args"] == {"cr": 0.125, "num_classes": 19}
    assert info["voxel_size"] == 0.4
    assert info["class_names"][:2] == ["car", "bicycle"]
    assert info["raw_ids"][:2] == [10, 11]
    assert info["config"]["trainer"]["max_epochs"] == 2
    assert info["config"]["model"]["optimizer"]["momentum"] == 0.9  # a default, resolved

    def check(node: Any) -> None:
        plain = (dict, list, tuple, str, int, float, bool, type(None), torch.Tensor)
        assert isinstance(node, plain), type(node)
        if isinstance(node, dict):
            for key, value in node.items():
                check(key)
                check(value)
        elif isinstance(node, list | tuple):
            for value in node:
                check(value)

    check(content)


def test_a_folder_stands_for_its_best_checkpoint(finished: Path, tmp_path: Path) -> None:
    assert find_checkpoint(finished).name == "best.ckpt"
    assert find_checkpoint(finished / "last.ckpt").name == "last.ckpt"
    with pytest.raises(FileNotFoundError, match="got neither"):
        find_checkpoint(tmp_path)
    with pytest.raises(FileNotFoundError, match="no such file or folder"):
        find_checkpoint(tmp_path / "absent")


def test_the_average_is_what_is_used(finished: Path) -> None:
    content = load(finished / "last.ckpt")
    network = build_network(read_checkpoint(finished / "last.ckpt"))
    key = "stem.0.kernel"
    assert torch.equal(network.state_dict()[key], content["state_dict"][f"network.{key}"])
    assert not torch.equal(
        content["state_dict"][f"network.{key}"], content["current_model_state"][f"network.{key}"]
    )
    assert not network.training


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("--model.network=spvcnn", "checkpoint must be of spvcnn(cr=0.125, num_classes=19)"),
        ("--model.network_args.cr=0.25", "stem.0.kernel: (27, 4, 8) in the network"),
    ],
)
def test_another_networks_checkpoint_is_refused(
    finished: Path, caplog: pytest.LogCaptureFixture, override: str, message: str
) -> None:
    config = finished.parent / "config.yaml"
    before = (finished / "last.ckpt").read_bytes()
    assert train(["--config", str(config), override]) == 1
    report = caplog.records[-1].getMessage()
    assert message in report
    assert "got minkunet(cr=0.125, num_classes=19) in" in report
    assert (finished / "last.ckpt").read_bytes() == before


def test_a_finished_run_stays_finished_and_a_longer_one_goes_on(
    finished: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = finished.parent / "config.yaml"
    run_dir = tmp_path / "run"
    run_dir.mkdir()
    (run_dir / "last.ckpt").write_bytes((finished / "last.ckpt").read_bytes())
    assert train(["--config", str(config), f"--run_dir={run_dir}"]) == 0
    assert load(run_dir / "last.ckpt")["global_step"] == 4
    longer = ["--config", str(config), f"--run_dir={run_dir}", "--trainer.max_epochs=3"]
    assert train(longer) == 0
    assert load(run_dir / "last.ckpt")["global_step"] == 6
    assert any("trainer.max_epochs: 2 -> 3" in r.getMessage() for r in caplog.records)


def test_training_starts_from_given_weights(finished: Path, tmp_path: Path) -> None:
    arguments = [
        *("--config", str(finished.parent / "config.yaml"), f"--run_dir={tmp_path}"),
        *(f"--model.init_weights={finished}", "--model.optimizer.lr=0", "--ema.decay=null"),
    ]
    assert train(arguments) == 0
    given, used = (load(p / "last.ckpt")["state_dict"] for p in (finished, tmp_path))
    best = load(finished / "best.ckpt")["state_dict"]
    assert given.keys() == used.keys()
    assert torch.equal(used["network.stem.0.kernel"], best["network.stem.0.kernel"])


class _Exploit:
    def __reduce__(self) -> tuple[Any, ...]:
        return (os.mkdir, ("executed",))


def test_nothing_in_a_file_is_executed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"pointlib": _Exploit()}, tmp_path / "evil.ckpt")
    with pytest.raises(ValueError, match="damaged or foreign"):
        read_checkpoint(tmp_path / "evil.ckpt")
    assert not (tmp_path / "executed").exists()


def test_files_that_are_no_checkpoints_are_refused(finished: Path, tmp_path: Path) -> None:
    path = tmp_path / "x.ckpt"
    path.write_bytes((finished / "last.ckpt").read_bytes()[:-1000])
    with pytest.raises(ValueError, match="damaged or foreign"):
        read_checkpoint(path)
    path.write_bytes(pickle.dumps([1, 2]))
    with pytest.raises(ValueError, match=r"x\.ckpt"):
        read_checkpoint(path)
    torch.save({"state_dict": {}}, path)
    with pytest.raises(ValueError, match=r"written by tools/train.py"):
        read_checkpoint(path)
    content = load(finished / "last.ckpt")
    content["pointlib"]["format"] = 99
    torch.save(content, path)
    with pytest.raises(ValueError, match="must have format 1, got 99"):
        read_checkpoint(path)


def test_a_failed_save_keeps_the_earlier_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    io, path = AtomicCheckpointIO(), tmp_path / "last.ckpt"
    io.save_checkpoint({"step": torch.tensor(1)}, path)

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(CheckpointSaveError, match=r"No space left.*earlier checkpoint is intact"):
        io.save_checkpoint({"step": torch.tensor(2)}, path)
    monkeypatch.undo()
    assert int(io.load_checkpoint(path)["step"]) == 1
    assert [p.name for p in tmp_path.iterdir()] == ["last.ckpt"]


def test_a_disk_that_fills_up_stops_the_run_and_it_can_go_on(tmp_path: Path) -> None:
    root = write_dataset(tmp_path / "data", train=4, val=1)
    config = tiny_config(root, tmp_path / "run", trainer={"max_epochs": 1})
    path = write_config(tmp_path / "config.yaml", config)
    assert train(["--config", str(path)]) == 0
    before = (tmp_path / "run" / "last.ckpt").read_bytes()

    command = [sys.executable, str(ROOT / "tools/train.py"), "--config", str(path)]
    command += ["--trainer.max_epochs=2"]
    done = subprocess.run(
        command,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=200,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000)),
    )
    assert done.returncode == 1
    assert "last.ckpt must be writable with" in done.stderr
    assert "the earlier checkpoint is intact" in done.stderr
    assert "Traceback" not in done.stderr
    assert (tmp_path / "run" / "last.ckpt").read_bytes() == before
    assert train(["--config", str(path), "--trainer.max_epochs=2"]) == 0
    assert load(tmp_path / "run" / "last.ckpt")["global_step"] == 4
