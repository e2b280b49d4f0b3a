"""A synthetic nuScenes dataset and a config so small that a whole multi-sensor run takes seconds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pointlib.data.synthetic_nuscenes import generate_nuscenes
from tests.models.tiny_networks import tiny_multi_sensor

SCENES = ("scene-0061", "scene-0103")  # of mini_train and mini_val


def write_scenes(root: Path) -> Path:
    """Two scenes of two key frames with one earlier cloud each."""
    return generate_nuscenes(
        root,
        "v1.0-mini",
        SCENES,
        2,
        workers=1,
        image_size=(160, 90),
        sweeps=1,
        azimuth_steps=180,
        progress=False,
    )


def scene_config(
    root: Path, run_dir: Path, network: str = "bevfusion_det_cl", **sections: dict[str, Any]
) -> dict[str, Any]:
    """A config for `write_scenes`; keyword arguments replace keys of its sections."""
    config: dict[str, Any] = {
        "task": "multi_sensor",
        "seed": 3,
        "run_dir": str(run_dir),
        "logger": "none",
        "model": {
            "network": network,
            "network_args": tiny_multi_sensor(network),
            "optimizer": {"name": "adamw", "lr": 0.003, "lr_batch_size": None},
            "schedule": {"name": "constant"},
        },
        "data": {
            "root": str(root),
            "version": "v1.0-mini",
            "train_split": "mini_train",
            "val_split": "mini_val",
            "num_sweeps": 2,
            "class_balanced": False,
            "image": {"resize_range": [0.4, 0.4], "test_resize": 0.4, "rotation": 0.0},
            "batch_size": 1,
            "num_workers": 0,
        },
        "trainer": {
            "max_epochs": 2,
            "accelerator": "cpu",
            "devices": 1,
            "num_sanity_val_steps": 0,
            "progress_bar": False,
        },
        "checkpoint": {
            "every_n_steps": 1,
            "every_n_minutes": 0,
            "monitor": "val/loss",
            "mode": "min",
        },
    }
    for name, keys in sections.items():
        config[name].update(keys)
    return config
