"""Point segmentation on nuScenes and PandaSet: training, what is scored, the devkit's own numbers, wrong datasets."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pointlib.data import NuScenesLidarSeg
from pointlib.deploy import load_predictor
from pointlib.engine import train
from pointlib.engine.evaluator import evaluate
from pointlib.engine.segmentation_data import SegmentationData
from pointlib.engine.segmentation_sources import open_scans
from pointlib.models.checkpoint import read_checkpoint
from tests.engine.tiny_run import (
    ROOT,
    assert_same_weights,
    load,
    tiny_config,
    write_config,
    write_dataset,
)

sys.path.insert(0, str(ROOT))
from tools import evaluate as evaluate_tool

pytest.importorskip("nuscenes")
MINI = {"dataset": "nuscenes", "version": "v1.0-mini"}
SPLITS = {"train_split": "mini_train", "val_split": "mini_val"}


def nuscenes_config(root: Path, run_dir: Path, num_frames: int, epochs: int) -> dict[str, Any]:
    channels = 5 if num_frames > 1 else 4
    return tiny_config(
        root,
        run_dir,
        model={
            "network_args": {"cr": 0.125, "in_channels": channels, "num_classes": 16},
            "optimizer": {"name": "adamw", "lr": 0.02, "lr_batch_size": None},
            "schedule": {"name": "constant"},
        },
        data={**MINI, **SPLITS, "num_frames": num_frames, "voxel_size": 0.8},
        trainer={"max_epochs": epochs},
    )


def run(config: dict[str, Any]) -> Path:
    """Trains; returns the run's folder."""
    folder = Path(config["run_dir"])
    assert train(["--config", str(write_config(folder.with_suffix(".yaml"), config))]) == 0
    return folder


@pytest.fixture(scope="module", params=[1, 3], ids=["one_cloud", "three_clouds"])
def trained(
    request: pytest.FixtureRequest,
    synthetic_nuscenes: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    """A run of four epochs."""
    folder = tmp_path_factory.mktemp("lidarseg") / "run"
    return run(nuscenes_config(synthetic_nuscenes, folder, request.param, epochs=4))


@pytest.fixture(scope="module")
def evaluated(trained: Path, synthetic_nuscenes: Path) -> Path:
    """Folder of tools/evaluate.py's predictions and scores.json."""
    out = trained / "evaluation"
    command = ["--checkpoint", str(trained), "--data.root", str(synthetic_nuscenes)]
    assert evaluate_tool.main([*command, "--split", "mini_val", "--out", str(out), *CPU]) == 0
    return out


CPU = ("--device", "cpu", "--num_workers", "0")


def key_frames(root: Path, **options: Any) -> NuScenesLidarSeg:
    return NuScenesLidarSeg(root, "v1.0-mini", "mini_val", **options)


def test_a_run_stopped_half_way_goes_on_to_the_same_weights(
    trained: Path, synthetic_nuscenes: Path, tmp_path: Path
) -> None:
    num_frames = read_checkpoint(trained).info.feed["num_frames"]
    for epochs in (2, 4):
        resumed = run(nuscenes_config(synthetic_nuscenes, tmp_path / "run", num_frames, epochs))
    assert_same_weights(load(trained / "last.ckpt"), load(resumed / "last.ckpt"))


def test_the_score_is_the_devkits(evaluated: Path, trained: Path) -> None:
    report = json.loads((evaluated / "scores.json").read_text())
    ours, devkit = report["scores"], report["nuscenes_devkit"]
    assert ours["miou"] == pytest.approx(devkit["miou"], abs=1e-6)
    assert 0 < ours["miou"] < 1 and ours["iou"].keys() == devkit["iou"].keys()
    for name, value in devkit["iou"].items():
        assert ours["iou"][name] == (None if value is None else pytest.approx(value, abs=1e-6))
    last = load(trained / "best.ckpt")["callbacks"]["RunCheckpoints"]["best_score"]
    assert ours["miou"] == pytest.approx(last, rel=1e-6)


def test_every_point_of_the_key_frames_and_no_other_is_scored(
    evaluated: Path, synthetic_nuscenes: Path
) -> None:
    source = key_frames(synthetic_nuscenes)
    files = sorted((evaluated / "lidarseg/mini_val").iterdir())
    assert len(files) == len(source) == 4
    labelled = np.zeros(16, np.int64)
    for index, scan in enumerate(source):
        path = evaluated / f"lidarseg/mini_val/{source.token(index)}_lidarseg.bin"
        predicted = np.fromfile(path, np.uint8)
        assert len(predicted) == len(scan)
        assert predicted.min() >= 1 and predicted.max() <= 16
        assert scan.labels is not None
        labelled += np.bincount(scan.labels[scan.labels != 255], minlength=16)
    support = json.loads((evaluated / "scores.json").read_text())["scores"]["support"]
    assert list(support.values()) == labelled.tolist()
    meta = json.loads((evaluated / "mini_val/submission.json").read_text())["meta"]
    assert meta["use_lidar"] and not meta["use_external"]


def test_without_a_folder_the_devkit_scores_too(
    trained: Path, synthetic_nuscenes: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["--checkpoint", str(trained / "last.ckpt"), "--data.root", str(synthetic_nuscenes)]
    before = len(list(trained.rglob("*_lidarseg.bin")))
    assert evaluate_tool.main([*command, *CPU]) == 0  # on mini_val, as in training
    out = capsys.readouterr().out
    assert "4 scans of split mini_val" in out
    mine = next(line for line in out.splitlines() if line.startswith("mean IoU"))
    assert f"nuscenes-devkit: mean IoU {mine.split()[2]} %" in out
    assert len(list(trained.rglob("*_lidarseg.bin"))) == before


def test_a_split_without_labels_is_predicted_only(
    trained: Path, synthetic_nuscenes: Path, tmp_path: Path
) -> None:
    checkpoint = read_checkpoint(trained)
    frames = checkpoint.info.feed["num_frames"]
    scans = key_frames(synthetic_nuscenes, labels=None, num_frames=frames)
    result = evaluate(checkpoint, scans, num_workers=0, predictions=tmp_path)
    assert result.scores is None and result.num_scans == 4
    files = list((tmp_path / "lidarseg/mini_val").iterdir())
    assert sum(f.stat().st_size for f in files) == sum(
        len(s) for s in key_frames(synthetic_nuscenes)
    )


def test_a_checkpoint_knows_its_source_and_predicts_from_python(
    trained: Path, synthetic_nuscenes: Path
) -> None:
    info = read_checkpoint(trained).info
    frames = info.feed["num_frames"]
    assert info.feed == {**MINI, "num_frames": frames, "frames": "sweeps"}
    assert info.raw_ids == list(range(1, 17)) and info.class_names[3] == "car"
    predictor = load_predictor(trained, "cpu")
    scan = key_frames(synthetic_nuscenes, num_frames=frames)[0]
    assert 0 <= scan.points[:, 3].min() < scan.points[:, 3].max() <= 1
    assert len(predictor(scan.points).labels) == len(scan)
    if frames > 1:
        with pytest.raises(ValueError, match=r"\(N, 5 or more\) x, y, z, intensity, time"):
            predictor(scan.points[:, :4])


def test_classes_of_another_dataset_are_refused(
    trained: Path, synthetic_nuscenes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["--checkpoint", str(trained), *CPU, "--split", "mini_val", "--data.root"]
    own = tmp_path / "own.yaml"
    text = (ROOT / "pointlib/data/label_maps/nuscenes_lidarseg.yaml").read_text()
    own.write_text(text.replace("  - car\n", "  - automobile\n"))
    given = [str(synthetic_nuscenes), "--data.label_map", str(own)]
    assert evaluate_tool.main([*command, *given]) == 1
    assert "must have the 16 classes" in capsys.readouterr().err
    root = write_dataset(tmp_path / "kitti", train=1, val=1)
    if read_checkpoint(trained).info.feed["num_frames"] == 1:
        given = [str(root), "--data.dataset", "semantic_kitti", "--split", "08"]
        assert evaluate_tool.main([*command, *given]) == 1
        assert "got 19 of the label map 'semantic_kitti'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("dataset", "keys", "message"),
    [
        ("semantic_kitti", {"num_frames": 3}, "data.num_frames .* belongs to nuscenes"),
        ("semantic_kitti", {"sensor": "both"}, "data.sensor .* belongs to pandaset"),
        ("nuscenes", {"unknown_labels": "ignore"}, "unknown_labels .* belongs to semantic_kitti"),
        ("pandaset", {"version": "v1.0-mini"}, "data.version must not be given .* 'pandaset'"),
        ("waymo", {}, "dataset must be one of semantic_kitti, nuscenes, pandaset, got 'waymo'"),
    ],
)
def test_keys_of_another_dataset_are_refused(
    dataset: Any, keys: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        SegmentationData(dataset=dataset, **keys)


def test_classes_are_the_datasets_own_unless_named() -> None:
    assert SegmentationData().class_names[0] == "car"
    assert SegmentationData().feed() == {"dataset": "semantic_kitti", "unknown_labels": "raise"}
    assert SegmentationData(dataset="nuscenes").class_names[0] == "barrier"
    assert SegmentationData(dataset="pandaset").raw_ids[3] == 13
    with pytest.raises(ValueError, match="name of a split of nuScenes"):
        open_scans("nuscenes", "data", ["scene-0061"])


def test_a_network_of_other_channels_is_refused(
    synthetic_nuscenes: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = nuscenes_config(synthetic_nuscenes, tmp_path / "run", num_frames=3, epochs=1)
    config["model"]["network_args"]["in_channels"] = 4
    assert train(["--config", str(write_config(tmp_path / "c.yaml", config))]) == 1
    assert "must take 5 channels (x, y, z, intensity, time), got 4" in caplog.text


def test_pandaset_trains_and_scores_real_frames(test_data: Path, tmp_path: Path) -> None:
    if not (test_data / "pandaset").is_dir():
        pytest.skip(f"no PandaSet in {test_data}")
    config = tiny_config(
        test_data / "pandaset",
        tmp_path / "run",
        model={
            "network_args": {"cr": 0.125, "num_classes": 16},
            "optimizer": {"name": "adamw", "lr": 0.02, "lr_batch_size": None},
        },
        data={
            "dataset": "pandaset",
            "train_split": ["002"],
            "val_split": ["002"],
            "frame_stride": 2,
            "voxel_size": 1.0,
            "batch_size": 1,
        },
        trainer={"max_epochs": 2, "limit_val_batches": 2},
    )
    checkpoint = read_checkpoint(run(config))
    assert checkpoint.info.feed == {"dataset": "pandaset", "sensor": "pandar64"}
    scans = open_scans("pandaset", str(test_data / "pandaset"), ["002"], frame_stride=3)
    assert len(scans) == 2
    result = evaluate(checkpoint, scans, num_workers=0, absent="skip", predictions=tmp_path)
    assert result.scores is not None
    assert result.scores.iou[scans.class_names.index("driveable_surface")] > 0.5
    labels = np.fromfile(tmp_path / "sequences/002/predictions/03.label", np.uint32)
    assert len(labels) == len(scans[1]) and set(labels) <= set(
        scans.label_map.raw_ids[:16].tolist()
    )
    assert torch.isfinite(torch.tensor(result.scores.miou))
