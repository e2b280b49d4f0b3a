"""What training computes: accumulation, two processes, precision, bad samples, losses that are not numbers."""

from __future__ import annotations

import csv
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pointlib.engine import train
from pointlib.engine.segmentation_task import SegmentationTask
from pointlib.nn import BatchNorm
from tests.engine.tiny_run import (
    ROOT,
    environment,
    load,
    tiny_config,
    write_config,
    write_dataset,
)


def run(tmp_path: Path, name: str, root: Path, **sections: Any) -> tuple[int, Path]:
    """One run in this process: exit status and its folder."""
    config = tiny_config(root, tmp_path / name, **sections)
    return train(
        ["--config", str(write_config(tmp_path / f"{name}.yaml", config))]
    ), tmp_path / name


def difference(first: Path, second: Path) -> float:
    """Largest relative difference between the weights of two runs."""
    a, b = (load(run_dir / "last.ckpt")["state_dict"] for run_dir in (first, second))
    return max(
        float((a[k].double() - b[k].double()).norm() / a[k].double().norm().clamp_min(1e-12))
        for k in a
        if a[k].is_floating_point()
    )


def test_accumulated_batches_equal_one_large_batch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Batch norm sees single batches by its nature, so it is frozen here; the loss is what is compared.
    never = property(lambda _: False, lambda *_: None)
    monkeypatch.setattr(BatchNorm, "training", never, raising=False)
    root = write_dataset(tmp_path / "data", train=6, val=1)
    data = {"augment": {"rotation": 0.0, "scale": 0.0}}
    results = []
    for size in (1, 2, 3, 6):
        status, folder = run(
            tmp_path,
            f"batch{size}",
            root,
            data={**data, "batch_size": size},
            trainer={"accumulate_grad_batches": 6 // size, "max_epochs": 2},
        )
        assert status == 0
        assert load(folder / "last.ckpt")["global_step"] == 2
        results.append(folder)
    for folder in results[:-1]:
        assert difference(folder, results[-1]) < 2e-5


# One step differs by float32 rounding only; later steps amplify it, the more the higher the rate.
@pytest.mark.parametrize(
    ("launcher", "epochs", "lr", "tolerance"),
    [("torchrun", 1, 0.05, 5e-5), ("trainer.devices", 3, 1e-3, 1e-3)],
)
def test_two_processes_equal_one_with_twice_the_batch(
    tmp_path: Path, launcher: str, epochs: int, lr: float, tolerance: float
) -> None:
    # The processes' shares of a step differ in size, and 3 validation scans do not divide by 2.
    root = write_dataset(tmp_path / "data", train=4, val=3)
    sections = {
        "model": {"optimizer": {"lr": lr, "lr_batch_size": None}},
        "trainer": {"max_epochs": epochs},
    }
    one = tiny_config(root, tmp_path / "one", data={"batch_size": 4}, **sections)
    assert train(["--config", str(write_config(tmp_path / "one.yaml", one))]) == 0
    two = tiny_config(root, tmp_path / "two", data={"batch_size": 2}, **sections)
    two["trainer"]["devices"] = 2
    command = [sys.executable]
    if launcher == "torchrun":
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        command += ["-m", "torch.distributed.run", "--nproc_per_node=2", f"--master_port={port}"]
    config = write_config(tmp_path / "two.yaml", two)
    command += [str(ROOT / "tools/train.py"), "--config", str(config)]
    done = subprocess.run(
        command, env=environment(), capture_output=True, text=True, timeout=300, cwd=tmp_path
    )
    assert done.returncode == 0, done.stdout + done.stderr
    first, second = load(tmp_path / "one" / "last.ckpt"), load(tmp_path / "two" / "last.ckpt")
    assert first["global_step"] == second["global_step"] == epochs
    assert difference(tmp_path / "one", tmp_path / "two") < tolerance
    scores = [c["callbacks"]["RunCheckpoints"]["best_score"] for c in (first, second)]
    assert scores[0] == pytest.approx(scores[1], abs=1e-3)


@pytest.mark.parametrize("precision", ["bf16-mixed", "16-mixed"])
def test_mixed_precision_trains_on_the_cpu(tmp_path: Path, precision: str) -> None:
    root = write_dataset(tmp_path / "data", train=4, val=1)
    status, folder = run(tmp_path, "run", root, trainer={"precision": precision, "max_epochs": 1})
    assert status == 0
    weights = load(folder / "last.ckpt")["state_dict"]
    assert all(v.isfinite().all() for v in weights.values())
    assert weights["network.stem.0.kernel"].dtype == torch.float32


def test_epochs_differ_in_order_and_learning_lowers_the_loss(tmp_path: Path) -> None:
    root = write_dataset(tmp_path / "data")
    seen: list[tuple[str, ...]] = []
    losses: list[float] = []

    class Watched(SegmentationTask):
        """Remembers batches and losses."""

        def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
            loss = super().training_step(batch, batch_idx)
            seen.append(batch.paths)
            losses.append(float(loss.detach()))
            return loss

    from pointlib.engine import cli

    original = cli._TASKS["segmentation"]["model"]
    cli._TASKS["segmentation"]["model"] = Watched
    try:
        status, _ = run(
            tmp_path,
            "run",
            root,
            model={"optimizer": {"name": "adamw", "lr": 0.01, "lr_batch_size": None}},
            trainer={"max_epochs": 6},
        )
    finally:
        cli._TASKS["segmentation"]["model"] = original
    assert status == 0
    epochs = [seen[i : i + 4] for i in range(0, len(seen), 4)]
    assert len({str(e) for e in epochs}) == len(epochs) == 6
    assert all(len({p for b in e for p in b}) == 8 for e in epochs)
    assert np.mean(losses[-4:]) < 0.8 * np.mean(losses[:4])


def test_a_loss_that_is_not_finite_stops_with_step_and_path(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    root = write_dataset(tmp_path / "data", train=4, val=1)
    status, folder = run(
        tmp_path, "run", root, model={"optimizer": {"lr": 1e30, "lr_batch_size": None}}
    )
    assert status == 1
    message = caplog.records[-1].getMessage()
    assert "loss must be finite, got nan at optimizer step 1" in message
    assert ".bin" in message
    assert (folder / "error-0.txt").read_text().count("NonFiniteLossError")
    assert load(folder / "last.ckpt")["global_step"] == 1  # what was saved before is still there


@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_bad_sample_stops_with_its_path(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, num_workers: int
) -> None:
    root = write_dataset(tmp_path / "data", train=4, val=1)
    bad = root / "sequences/00/velodyne/000002.bin"
    bad.write_bytes(bad.read_bytes()[:1001])
    status, _ = run(tmp_path, "run", root, data={"num_workers": num_workers})
    assert status == 1
    message = caplog.records[-1].getMessage()
    assert str(bad) in message
    assert "Traceback" not in message
    assert message.startswith("read_bin")


def test_a_bad_sample_is_skipped_and_counted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    root = write_dataset(tmp_path / "data", train=4, val=1)
    bad = root / "sequences/00/velodyne/000002.bin"
    bad.write_bytes(bad.read_bytes()[:1001])
    status, folder = run(tmp_path, "run", root, data={"on_bad_sample": "skip"})
    assert status == 0
    state = load(folder / "last.ckpt")["callbacks"]["SkippedSamples"]
    assert state["count"] == 3  # once an epoch
    assert sum("bad sample skipped" in r.getMessage() for r in caplog.records) == 1


def test_csv_log_has_losses_rates_times_and_scores(tmp_path: Path) -> None:
    root = write_dataset(tmp_path / "data", train=4, val=1)
    config = tiny_config(root, tmp_path / "run", trainer={"log_every_n_steps": 1})
    config["logger"] = "csv"
    assert train(["--config", str(write_config(tmp_path / "c.yaml", config))]) == 0
    (log,) = (tmp_path / "run").rglob("metrics.csv")
    with log.open() as file:
        columns = set(csv.DictReader(file).fieldnames or ())
    expected = {"train/loss", "lr", "time/data_ms", "time/step_ms", "val/miou", "iou/car"}
    assert expected <= columns
    assert (tmp_path / "run" / "config.yaml").is_file()


def test_tensorboard_is_written_and_early_stopping_stops(tmp_path: Path) -> None:
    root = write_dataset(tmp_path / "data", train=4, val=1)
    config = tiny_config(
        root,
        tmp_path / "run",
        trainer={"max_epochs": 9},
        model={"optimizer": {"lr": 0.0}},
        early_stopping={"patience": 1},
    )
    config["logger"] = "tensorboard"
    assert train(["--config", str(write_config(tmp_path / "c.yaml", config))]) == 0
    assert load(tmp_path / "run" / "last.ckpt")["epoch"] < 8
    assert any(name.startswith("events") for name in os.listdir(tmp_path / "run" / "logs"))


def test_a_logger_that_is_not_installed_names_the_command(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lightning.pytorch.loggers import wandb

    monkeypatch.setattr(wandb, "_WANDB_AVAILABLE", False)
    config = {**tiny_config(tmp_path, tmp_path / "run"), "logger": "wandb"}
    assert train(["--config", str(write_config(tmp_path / "c.yaml", config))]) == 1
    assert "pip install 'pointlib[wandb]'" in caplog.records[-1].getMessage()


def test_another_order_of_samples_is_refused_inside_an_epoch(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    root = write_dataset(tmp_path / "data", train=6, val=1)
    last = np.random.default_rng([3, 0]).permutation(6)[-1]  # the run stops inside its first epoch
    bad = root / f"sequences/00/velodyne/{last:06d}.bin"
    content = bad.read_bytes()
    bad.write_bytes(content[:1001])
    status, folder = run(tmp_path, "run", root, data={"batch_size": 1})
    assert status == 1
    assert load(folder / "last.ckpt")["global_step"] > 0
    bad.write_bytes(content)
    assert run(tmp_path, "run", root, data={"batch_size": 2})[0] == 1
    assert "global_batch_size 1 (now 2)" in caplog.records[-1].getMessage()
    assert run(tmp_path, "run", root, data={"batch_size": 1})[0] == 0
    assert load(folder / "last.ckpt")["global_step"] == 18
