"""KITTI from a config to its official scores: one step of a small CenterPoint on real frames, result files, AP."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pointlib.data.kitti_labels import read_objects
from pointlib.data.kitti_object import KITTIObject
from pointlib.engine import train
from pointlib.engine.kitti_results import KittiResults
from pointlib.sensors import Detections
from tests.engine.tiny_run import write_config
from tools.evaluate import main as evaluate_main


@pytest.fixture
def tree(test_data: Path, tmp_path: Path) -> Path:
    """Frame 000008 of the benchmark as training and validation split."""
    real = test_data / "kitti_object" / "training"
    for path in real.glob("*/000008.*"):
        target = tmp_path / "kitti" / "training" / path.relative_to(real)
        target.parent.mkdir(parents=True, exist_ok=True)
        os.symlink(path, target)
    (tmp_path / "kitti" / "ImageSets").mkdir()
    for split in ("train", "val"):
        (tmp_path / "kitti" / "ImageSets" / f"{split}.txt").write_text("000008\n")
    return tmp_path / "kitti"


def test_a_run_ends_in_kittis_scores(
    tree: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config: dict[str, Any] = {
        "task": "multi_sensor",
        "run_dir": str(tmp_path / "run"),
        "logger": "none",
        "model": {
            "network": "centerpoint_voxel0075",
            "network_args": {
                "point_cloud_range": [0.0, -19.2, -3.0, 38.4, 19.2, 1.0],
                "voxel_size": [0.2, 0.2, 0.1],
                "tasks": [["Car"], ["Pedestrian"], ["Cyclist"]],
                "lidar": {
                    "base_channels": 4,
                    "encoder_channels": [[4, 4, 8], [8, 8, 8], [8, 8, 8], [8, 8]],
                    "output_channels": 8,
                },
                "decoder": {"out_channels": [8, 8], "layer_nums": [1, 1], "neck_channels": [8, 8]},
                "head": {"velocity": False, "shared_channels": 8, "score_threshold": 0.0},
            },
        },
        "data": {
            "dataset": "kitti",
            "root": str(tree),
            "num_sweeps": 1,
            "class_balanced": False,
            "batch_size": 1,
            "num_workers": 0,
        },
        "trainer": {"max_epochs": 1, "accelerator": "cpu", "num_sanity_val_steps": 0, "progress_bar": False},
        "checkpoint": {"monitor": "val/loss", "mode": "min"},
    }  # fmt: skip
    assert train(["--config", str(write_config(tmp_path / "config.yaml", config))]) == 0
    out = tmp_path / "scores"
    arguments = ["--checkpoint", str(tmp_path / "run"), "--data.root", str(tree)]
    assert evaluate_main([*arguments, "--out", str(out), "--num_workers", "0"]) == 0
    assert "Car 3d" in capsys.readouterr().out
    scores = json.loads((out / "scores.json").read_text())["kitti"]
    assert 0 <= scores["Car/3d_moderate_ap40"] <= 100
    assert read_objects(out / "kitti" / "000008.txt").scores is not None


def test_the_truth_as_result_scores_what_can_be_scored(tree: Path, tmp_path: Path) -> None:
    source = KITTIObject(tree, "train")
    results = KittiResults(source, tmp_path / "files")
    sample = source[0]
    scores = torch.linspace(0.9, 0.5, len(sample.boxes))
    results.add(
        0, Detections(torch.from_numpy(sample.boxes), scores, torch.from_numpy(sample.box_labels))
    )
    found = results.compute()
    # 4 cars count at "hard": AP at 40 recalls sees only the first of its thresholds
    assert found.counted.tolist()[0] == [1, 4, 4]
    np.testing.assert_allclose(found.precision[0, 1:3, 2, :4], 1.0)
    assert len(read_objects(tmp_path / "files" / "000008.txt")) == 6
    shutil.rmtree(tmp_path / "files")
