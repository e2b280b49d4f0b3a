"""A data set and a config so small that a whole training run takes seconds."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml

ROOT = Path(__file__).resolve().parents[2]
RAW_IDS = (40, 50, 10, 70)


def write_scan(folder: Path, frame: str, rng: np.random.Generator, num_points: int = 300) -> None:
    """One scan: ground, a wall, a car-sized box and a bush, each with its own label."""
    xyz = rng.uniform([-6, -6, 0], [6, 6, 0.1], (num_points, 3))
    part = rng.integers(0, 4, num_points)
    xyz[part == 1] *= [1, 0, 20]
    xyz[part == 1] += [0, 5, 0]
    xyz[part == 2] *= [0.3, 0.15, 14]
    xyz[part == 3] = rng.normal([-4, -3, 1], 0.5, (int((part == 3).sum()), 3))
    intensity = 0.2 * part + rng.uniform(0, 0.1, num_points)
    points = np.column_stack([xyz, intensity]).astype("<f4")
    (folder / "velodyne").mkdir(parents=True, exist_ok=True)
    (folder / "labels").mkdir(parents=True, exist_ok=True)
    points.tofile(folder / "velodyne" / f"{frame}.bin")
    np.asarray(RAW_IDS, dtype="<u4")[part].tofile(folder / "labels" / f"{frame}.label")


def write_dataset(root: Path, train: int = 8, val: int = 3, num_points: int = 300) -> Path:
    """Sequences 00 (train) and 08 (val) in SemanticKITTI's layout."""
    rng = np.random.default_rng(0)
    for sequence, count in (("00", train), ("08", val)):
        for i in range(count):
            size = (
                num_points + 20 * i
            )  # scans differ in size, so that means over voxels are not means of means
            write_scan(root / "sequences" / sequence, f"{i:06d}", rng, size)
    return root


def tiny_config(root: Path, run_dir: Path, **sections: dict[str, Any]) -> dict[str, Any]:
    """A config for `write_dataset`; keyword arguments replace keys of its sections."""
    config: dict[str, Any] = {
        "seed": 3,
        "run_dir": str(run_dir),
        "logger": "none",
        "model": {
            "network": "minkunet",
            "network_args": {"cr": 0.125, "num_classes": 19},
            "optimizer": {"name": "sgd", "lr": 0.05, "lr_batch_size": None},
            "schedule": {"name": "cosine", "warmup_steps": 2},
        },
        "data": {
            "root": str(root),
            "train_split": ["00"],
            "val_split": ["08"],
            "voxel_size": 0.4,
            "batch_size": 2,
            "num_workers": 0,
        },
        "trainer": {
            "max_epochs": 3,
            "accelerator": "cpu",
            "devices": 1,
            "num_sanity_val_steps": 0,
            "progress_bar": False,
        },
        "checkpoint": {"every_n_steps": 1, "every_n_minutes": 0},
    }
    for name, keys in sections.items():
        config.setdefault(name, {}).update(keys)
    return config


def write_config(path: Path, config: dict[str, Any]) -> Path:
    """The config as a YAML file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump(config))
    return path


def environment(**extra: str) -> dict[str, str]:
    """Environment of a child process that finds this tree and uses one thread."""
    return {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **extra}


def start_training(config: Path, *overrides: str, **popen: Any) -> subprocess.Popen[str]:
    """tools/train.py as a process of its own."""
    command = [sys.executable, str(ROOT / "tools/train.py"), "--config", str(config), *overrides]
    popen.setdefault("stdout", subprocess.PIPE)
    popen.setdefault("stderr", subprocess.STDOUT)
    return subprocess.Popen(command, text=True, env=environment(), **popen)


def load(path: Path) -> dict[str, Any]:
    """A checkpoint, read as anybody would."""
    return torch.load(path, weights_only=True)


def assert_same_weights(first: dict[str, Any], second: dict[str, Any]) -> None:
    """Both checkpoints hold the same bits: weights, optimizer, schedule."""
    assert first["global_step"] == second["global_step"]
    for key, value in first["state_dict"].items():
        assert torch.equal(value, second["state_dict"][key]), key
    moments = [ckpt["optimizer_states"][0]["state"] for ckpt in (first, second)]
    for index, state in moments[0].items():
        for name, value in state.items():
            assert torch.equal(torch.as_tensor(value), torch.as_tensor(moments[1][index][name]))
    assert first["lr_schedulers"] == second["lr_schedulers"]
