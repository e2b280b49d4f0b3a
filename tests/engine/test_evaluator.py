"""The evaluator: every raw point scored, the official numbers, the submission layout."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from pointlib.data import SemanticKITTI, load_label_map, read_labels
from pointlib.engine import train
from pointlib.engine.evaluator import TTA_VIEWS, TimedScans, evaluate, write_report
from pointlib.metrics import ConfusionMatrix
from pointlib.models.checkpoint import Checkpoint, read_checkpoint
from tests.engine.tiny_run import load, tiny_config, write_config, write_dataset


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with data/ and a trained run/."""
    folder = tmp_path_factory.mktemp("trained")
    root = write_dataset(folder / "data", train=6, val=3)
    optimizer = {"name": "adamw", "lr": 0.01, "lr_batch_size": None}
    config = tiny_config(
        root, folder / "run", trainer={"max_epochs": 5}, model={"optimizer": optimizer}
    )
    assert train(["--config", str(write_config(folder / "config.yaml", config))]) == 0
    return folder


@pytest.fixture(scope="module")
def checkpoint(trained: Path) -> Checkpoint:
    """Its best checkpoint."""
    return read_checkpoint(trained / "run")


def official_scores(data: Path, predictions: Path) -> tuple[float, list[float]]:
    """semantic-kitti-api's way, spelt out: from files, in its ids 0..19, with its formula."""
    lut = load_label_map("official").train_ids
    confusion = np.zeros((20, 20), dtype=np.int64)
    for label in sorted((data / "sequences/08/labels").glob("*.label")):
        truth = np.fromfile(label, dtype=np.uint32) & 0xFFFF
        found = np.fromfile(predictions / "sequences/08/predictions" / label.name, dtype=np.uint32)
        ids = [np.where(lut[raw] == 255, 0, lut[raw] + 1) for raw in (found & 0xFFFF, truth)]
        np.add.at(confusion, tuple(ids), 1)
    confusion[:, 0] = 0
    tp = np.diag(confusion)
    union = tp + (confusion.sum(1) - tp) + (confusion.sum(0) - tp) + 1e-15
    iou = tp / union
    return float((tp[1:] / union[1:]).mean()), iou[1:].tolist()


@pytest.mark.parametrize("tta", [False, True])
def test_scores_equal_the_official_ones_of_the_written_files(
    trained: Path, checkpoint: Checkpoint, tmp_path: Path, tta: bool
) -> None:
    scans = SemanticKITTI(trained / "data", ["08"])
    result = evaluate(checkpoint, scans, num_workers=0, predictions=tmp_path, tta=tta)
    assert result.scores is not None
    miou, iou = official_scores(trained / "data", tmp_path)
    assert result.scores.miou == miou
    assert result.scores.iou.tolist() == iou
    assert result.scores.miou_present > 0.3
    assert result.num_scans == 3
    for index in range(3):
        written = tmp_path / f"sequences/08/predictions/{index:06d}.label"
        assert written.stat().st_size == 4 * len(scans[index])  # every raw point has a label
        assert set(read_labels(written).semantic) <= set(scans.label_map.raw_ids[:19].tolist())
    stages = result.latency.stats()
    assert list(stages) == ["load", "voxelize", "forward", "write"]
    assert all(s.count == 3 and s.median_ms > 0 for s in stages.values())


def test_validation_in_training_and_the_evaluator_agree(
    trained: Path, checkpoint: Checkpoint
) -> None:
    scans = SemanticKITTI(trained / "data", ["08"])
    result = evaluate(checkpoint, scans, num_workers=1)
    assert result.scores is not None
    in_training = load(trained / "run" / "best.ckpt")["callbacks"]["RunCheckpoints"]["best_score"]
    assert result.scores.miou == pytest.approx(in_training, rel=1e-6)


def test_turned_views_hold_the_same_points(trained: Path) -> None:
    scans = SemanticKITTI(trained / "data", ["08"])
    timed = TimedScans(scans, 0.4, TTA_VIEWS)[1]
    assert len(timed.views) == 8
    norms = [
        view.voxels.feats[view.inverse][:, :2].norm(dim=1).sort().values for view in timed.views
    ]
    assert all(len(view.inverse) == len(scans[1]) for view in timed.views)
    assert torch.equal(timed.views[0].point_labels, timed.views[5].point_labels)
    first = timed.views[0].voxels.feats
    mirrored = timed.views[4].voxels.feats
    assert sorted(first[:, 0].tolist())[:20] != sorted(mirrored[:, 1].tolist())[:20]
    assert norms[0].shape == norms[7].shape


def test_reports_absent_classes_by_either_rule_and_json(
    trained: Path, checkpoint: Checkpoint, tmp_path: Path
) -> None:
    scans = SemanticKITTI(trained / "data", ["08"])
    result = evaluate(checkpoint, scans, num_workers=0, absent="one", precision="bf16")
    assert result.scores is not None
    assert result.scores.iou[1] == 1.0
    write_report(tmp_path / "sub" / "scores.json", result, {"split": "val"})
    report = json.loads((tmp_path / "sub" / "scores.json").read_text())
    assert report["scores"]["miou"] == result.scores.miou
    assert report["latency"]["forward"]["count"] == 3
    assert report["split"] == "val"


def test_a_split_without_labels_is_predicted_only(
    trained: Path, checkpoint: Checkpoint, tmp_path: Path
) -> None:
    scans = SemanticKITTI(trained / "data", ["08"], with_labels=False)
    result = evaluate(checkpoint, scans, num_workers=0, predictions=tmp_path)
    assert result.scores is None
    assert len(list(tmp_path.rglob("*.label"))) == 3


def test_foreign_classes_are_refused(trained: Path, checkpoint: Checkpoint, tmp_path: Path) -> None:
    text = (
        Path(load_label_map.__code__.co_filename).parent / "label_maps/semantic_kitti.yaml"
    ).read_text()
    (tmp_path / "own.yaml").write_text(text.replace("  - car\n", "  - automobile\n"))
    scans = SemanticKITTI(trained / "data", ["08"], label_map=tmp_path / "own.yaml")
    with pytest.raises(ValueError, match="must have the 19 classes"):
        evaluate(checkpoint, scans)


def test_matrix_of_the_evaluator_counts_every_labelled_point(
    trained: Path, checkpoint: Checkpoint
) -> None:
    scans = SemanticKITTI(trained / "data", ["08"])
    result = evaluate(checkpoint, scans, num_workers=0)
    matrix = ConfusionMatrix(19)
    for index in range(3):
        labels = torch.from_numpy(scans[index].labels)
        matrix.update(labels, labels)
    assert result.scores is not None
    assert result.scores.support.tolist() == matrix.compute().support.tolist()
