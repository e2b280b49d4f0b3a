"""Multi-sensor runs: the loss falls, any checkpoint leads to the same end, checkpoints rebuild and are evaluated."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from pointlib.engine import checkpoint as checkpoint_module
from pointlib.engine import train
from pointlib.models.checkpoint import build_network, read_checkpoint
from tests.engine.tiny_run import assert_same_weights, load, write_config
from tests.engine.tiny_scenes import scene_config, write_scenes
from tests.models.tiny_networks import tiny_batch
from tools.evaluate import main as evaluate_main

pytest.importorskip("nuscenes")

STILL = {"rotation": 0.0, "translation": 0.0, "scale": [1.0, 1.0], "flip_x": 0.0, "flip_y": 0.0}


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The dataset, with its index."""
    return write_scenes(tmp_path_factory.mktemp("scenes"))


@pytest.fixture(scope="module")
def finished(scenes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a finished run, with its config beside it, and in `saved` every checkpoint of it."""
    folder = tmp_path_factory.mktemp("finished")
    config = scene_config(
        scenes,
        folder / "run",
        model={
            "sensor_dropout": {"camera": 0.3, "lidar": 0.3},
            "schedule": {"name": "one_cycle", "momentum_cycle": [0.9, 0.8]},
            "optimizer": {
                "name": "adamw",
                "lr": 0.003,
                "lr_batch_size": None,
                "lr_multipliers": {"encoders.camera.backbone.": 0.1},
                "no_decay": ["relative_position_bias_table"],
            },
        },
    )
    saved: list[bytes] = []
    plain_write = checkpoint_module.write_file

    def recording_write(target: Path, content: memoryview) -> None:
        if Path(target).name == "last.ckpt":
            saved.append(bytes(content))
        plain_write(target, content)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checkpoint_module, "write_file", recording_write)
        assert train(["--config", str(write_config(folder / "config.yaml", config))]) == 0
    (folder / "saved").mkdir()
    for number, content in enumerate(saved):
        (folder / "saved" / f"{number}.ckpt").write_bytes(content)
    return folder


@pytest.mark.parametrize("number", [0, 1])  # inside the first epoch, and after it
def test_a_resumed_run_ends_with_the_bits_of_the_uninterrupted_one(
    finished: Path, tmp_path: Path, number: int
) -> None:
    start = finished / "saved" / f"{number}.ckpt"
    assert load(start)["global_step"] == number + 1
    overrides = [f"--run_dir={tmp_path}", f"--resume={start}"]
    assert train(["--config", str(finished / "config.yaml"), *overrides]) == 0
    assert_same_weights(load(finished / "run/last.ckpt"), load(tmp_path / "last.ckpt"))


def test_groups_have_their_rates_and_momentum_turns(finished: Path) -> None:
    groups = load(finished / "run/last.ckpt")["optimizer_states"][0]["param_groups"]
    peak = groups[0]["initial_lr"]
    kinds = {(round(g["initial_lr"] / peak, 6), g["weight_decay"]) for g in groups}
    assert kinds == {(1.0, 0.01), (0.1, 0.01), (0.1, 0.0)}
    middle = load(finished / "saved/0.ckpt")["optimizer_states"][0]["param_groups"]
    assert middle[0]["betas"][0] < 0.85  # it turns after 30 % of four steps
    assert groups[0]["betas"][0] == pytest.approx(0.9)


def test_a_checkpoint_rebuilds_and_says_what_it_was_fed(finished: Path) -> None:
    checkpoint = read_checkpoint(finished / "run/last.ckpt")
    info = checkpoint.info
    assert info.task == "multi_sensor"
    assert info.class_names[:2] == ["car", "truck"] and info.map_classes == []
    assert info.feed == {"dataset": "nuscenes", "num_sweeps": 2, "test_resize": 0.4}
    predictions: Any = build_network(checkpoint).predict(tiny_batch())  # type: ignore[operator]
    assert len(predictions) == 2 and predictions[0].detections.boxes.shape[1] == 9


@pytest.mark.parametrize("network", ["bevfusion_det_cl", "bevfusion_seg_cl", "centerpoint_pillar"])
def test_the_loss_falls(scenes: Path, tmp_path: Path, network: str) -> None:
    config = scene_config(
        scenes,
        tmp_path,
        network,
        data={
            "augment": STILL,
            "image": {"resize_range": [0.4, 0.4], "rotation": 0.0, "flip": 0.0},
        },
        trainer={"max_epochs": 8, "check_val_every_n_epoch": 8, "log_every_n_steps": 1},
    )
    config["logger"] = "csv"
    assert train(["--config", str(write_config(tmp_path / "c.yaml", config))]) == 0
    (log,) = tmp_path.rglob("metrics.csv")
    with log.open() as file:
        rows = list(csv.DictReader(file))
    losses = [float(row["train/loss"]) for row in rows if row.get("train/loss")]
    assert sum(losses[-4:]) < 0.7 * sum(losses[:4])
    columns = set(rows[0])
    expected = (
        {"val/map_miou", "val/iou/divider"} if "seg" in network else {"val/nds", "val/ap/car"}
    )
    assert {"val/loss", *expected} <= columns


def test_evaluation_writes_scores_of_the_devkit_and_latencies(
    finished: Path, scenes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--checkpoint", str(finished / "run"), "--data.root", str(scenes)]
    arguments += ["--num_workers=0", "--device=cpu"]
    assert evaluate_main([*arguments, f"--out={tmp_path / 'whole'}"]) == 0
    shown = capsys.readouterr().out
    assert "nuscenes-devkit" in shown and "missing sensors" not in shown
    report = json.loads((tmp_path / "whole/scores.json").read_text())
    assert report["num_samples"] == 2 and report["missing_sensors"] == {}
    assert 0 <= report["nuscenes_devkit"]["nds"] <= 1
    stages = {"prepare", "camera view transform", "lidar voxelize", "decode", "end to end"}
    assert stages <= set(report["latency"])
    parts = [v["mean_ms"] for k, v in report["latency"].items() if k != "end to end"]
    assert sum(parts) == pytest.approx(report["latency"]["end to end"]["mean_ms"], rel=0.3)
    submission = json.loads((tmp_path / "whole/results_nusc.json").read_text())
    assert submission["meta"]["use_camera"] and submission["meta"]["use_lidar"]

    assert evaluate_main([*arguments, "--without", "camera", f"--out={tmp_path / 'half'}"]) == 0
    assert "missing sensors: camera in 2 of 2 samples" in capsys.readouterr().out
    submission = json.loads((tmp_path / "half/results_nusc.json").read_text())
    assert not submission["meta"]["use_camera"]

    assert evaluate_main([*arguments, "--without", "camera", "lidar"]) == 1
    assert "leave one of the network's sensors (camera, lidar)" in capsys.readouterr().err


def test_classes_that_do_not_match_are_refused(
    finished: Path, scenes: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    names = list(read_checkpoint(finished / "run").info.class_names)
    swapped = [names[1], names[0], *names[2:]]
    config = ["--config", str(finished / "config.yaml")]
    resumed = [*config, f"--model.network_args.class_names={swapped}"]
    assert train([*resumed, f"--run_dir={finished / 'run'}"]) == 1
    assert "must keep its class_names (car, truck," in caplog.records[-1].getMessage()
    started = [f"--run_dir={tmp_path}", f"--model.init_weights=[{{path: {finished / 'run'}}}]"]
    assert train([*resumed, *started]) == 1
    assert (
        "must be trained on the network's class_names (truck, car"
        in caplog.records[-1].getMessage()
    )
    foreign = [*config, f"--run_dir={tmp_path}", "--model.network_args.class_names=[car, tram]"]
    assert train(foreign) == 1
    assert "class_names must be distinct names of" in caplog.records[-1].getMessage()

    content = load(finished / "run/last.ckpt")  # trained on classes that the data does not have
    content["pointlib"]["class_names"] = ["tram", *names[1:]]
    content["pointlib"]["network_args"]["class_names"] = ["tram", *names[1:]]
    torch.save(content, tmp_path / "tram.ckpt")
    given = ["--checkpoint", str(tmp_path / "tram.ckpt"), "--data.root", str(scenes)]
    assert evaluate_main([*given, "--num_workers=0"]) == 1


def test_fusion_starts_from_a_lidar_network(scenes: Path, tmp_path: Path) -> None:
    lidar = scene_config(scenes, tmp_path / "lidar", "bevfusion_det_l", trainer={"max_epochs": 1})
    assert train(["--config", str(write_config(tmp_path / "lidar.yaml", lidar))]) == 0
    both = scene_config(
        scenes,
        tmp_path / "both",
        trainer={"max_epochs": 1},
        model={
            "init_weights": [{"path": str(tmp_path / "lidar")}],
            "optimizer": {"name": "adamw", "lr": 0.0, "lr_batch_size": None},
        },
    )
    assert train(["--config", str(write_config(tmp_path / "both.yaml", both))]) == 0
    given = load(tmp_path / "lidar/best.ckpt")["state_dict"]
    used = load(tmp_path / "both/last.ckpt")["state_dict"]
    learned = [k for k in given if k.endswith(("weight", "bias"))]
    assert len(learned) > 30 and all(torch.equal(given[k], used[k]) for k in learned)


def test_published_weights_are_evaluated_with_a_config(
    finished: Path, scenes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    weights = dict(read_checkpoint(finished / "run/last.ckpt").weights)
    torch.save({"meta": {"epoch": 20}, "state_dict": weights}, tmp_path / "published.pth")
    common = [f"--data.root={scenes}", "--num_workers=0", "--device=cpu"]
    given = [
        f"--checkpoint={tmp_path / 'published.pth'}",
        f"--config={finished / 'run/config.yaml'}",
    ]
    assert evaluate_main([*common, *given, f"--out={tmp_path / 'published'}"]) == 0
    own = [f"--checkpoint={finished / 'run/last.ckpt'}", f"--out={tmp_path / 'own'}"]
    assert evaluate_main([*common, *own]) == 0
    submissions = [
        (tmp_path / name / "results_nusc.json").read_text() for name in ("published", "own")
    ]
    assert submissions[0] == submissions[1]

    del weights["fuser.0.weight"]
    torch.save({"state_dict": weights}, tmp_path / "published.pth")
    assert evaluate_main([*common, *given]) == 1
    assert "fuser.0.weight" in capsys.readouterr().err
