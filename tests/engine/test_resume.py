"""A run that was killed ends with the bits of the run that never was."""

from __future__ import annotations

import multiprocessing
import os
import random
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from pointlib.engine import checkpoint as checkpoint_module
from pointlib.engine import train
from tests.engine.tiny_run import (
    assert_same_weights,
    load,
    tiny_config,
    write_config,
    write_dataset,
)

# What a checkpoint must carry: dropout's randomness, the average, an open accumulation window, clipping.
DEMANDING: dict[str, dict[str, Any]] = {
    "model": {"network": "spvcnn"},
    "ema": {"decay": 0.9},
    "trainer": {"max_epochs": 3, "accumulate_grad_batches": 3, "gradient_clip_val": 1.0},
    "data": {"batch_size": 1, "voxel_size": 0.3, "augment": {"flip": 0.5, "polar_mix": 0.5}},
}


def run(path: Path, *overrides: str) -> int:
    """One training run in this process."""
    return train(["--config", str(path), *overrides])


def test_every_checkpoint_of_a_run_leads_to_the_same_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = write_dataset(tmp_path / "data", train=7, val=2, num_points=200)
    config = tiny_config(root, tmp_path / "run", **DEMANDING)
    path = write_config(tmp_path / "config.yaml", config)
    saved: list[tuple[str, bytes]] = []
    plain_write = checkpoint_module.write_file

    def recording_write(target: Path, content: memoryview) -> None:
        saved.append((Path(target).name, bytes(content)))
        plain_write(target, content)

    monkeypatch.setattr(checkpoint_module, "write_file", recording_write)
    assert run(path) == 0
    monkeypatch.undo()
    reference = load(tmp_path / "run" / "last.ckpt")
    assert reference["epoch"] == 2
    assert [name for name, _ in saved].count(
        "last.ckpt"
    ) == 9  # 3 epochs of 3 steps, the third after validation

    for number, (name, content) in enumerate(saved[:-1]):
        again = tmp_path / f"again{number}"
        again.mkdir()
        (again / name).write_bytes(content)
        assert run(path, f"--run_dir={again}", f"--resume={again / name}") == 0
        end = again / "last.ckpt"  # not written where nothing was left to do
        assert_same_weights(reference, load(end if end.exists() else again / name))


def _child(arguments: list[str]) -> None:
    os.setpgrp()  # its loader workers are killed with it
    raise SystemExit(train(arguments))


@pytest.mark.parametrize("kills", [3, pytest.param(20, marks=pytest.mark.slow)])
def test_sigkill_at_random_moments(tmp_path: Path, kills: int) -> None:
    root = write_dataset(tmp_path / "data", train=8, val=2, num_points=200)
    sections = {**DEMANDING, "trainer": {**DEMANDING["trainer"], "max_epochs": 4 + kills}}
    sections["data"] = {**sections["data"], "num_workers": 1}
    config = tiny_config(root, tmp_path / "whole", **sections)
    path = write_config(tmp_path / "config.yaml", config)
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["pointlib.engine"])

    def start(run_dir: Path) -> Any:
        arguments = ["--config", str(path), f"--run_dir={run_dir}"]
        process = context.Process(target=_child, args=(arguments,))
        process.start()
        return process

    whole = start(tmp_path / "whole")
    whole.join()
    assert whole.exitcode == 0
    reference = load(tmp_path / "whole" / "last.ckpt")

    moments = random.Random(kills)
    killed_dir = tmp_path / "killed"
    for _ in range(kills):
        process = start(killed_dir)
        wait_for_a_new_checkpoint(killed_dir / "last.ckpt", process)
        time.sleep(moments.uniform(0.0, 0.4))
        assert process.is_alive(), "the run ended before it could be killed: make it longer"
        os.killpg(process.pid, signal.SIGKILL)
        process.join()
    last = start(killed_dir)
    last.join()
    assert last.exitcode == 0
    assert_same_weights(reference, load(killed_dir / "last.ckpt"))
    leftovers = [p.name for p in killed_dir.iterdir() if p.name.endswith(".tmp")]
    assert leftovers == []


def wait_for_a_new_checkpoint(path: Path, process: Any) -> None:
    """Returns when `path` is younger than this call, so that each attempt gets a little further."""
    before = path.stat().st_mtime_ns if path.exists() else 0
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and process.is_alive():
        if path.exists() and path.stat().st_mtime_ns > before:
            return
        time.sleep(0.005)
    pytest.fail("no checkpoint appeared")
