"""Points in, labels out: from a checkpoint, from every file format."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

import pointlib
from pointlib.data import SemanticKITTI, read_labels, read_points, write_points
from pointlib.deploy import find_point_clouds, load_predictor, predict_files
from pointlib.engine import train
from pointlib.engine.evaluator import evaluate
from pointlib.models.checkpoint import read_checkpoint
from tests.engine.tiny_run import tiny_config, write_config, write_dataset


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with data/ and a trained run/."""
    folder = tmp_path_factory.mktemp("predictor")
    root = write_dataset(folder / "data", train=4, val=2)
    config = tiny_config(root, folder / "run", trainer={"max_epochs": 1})
    assert train(["--config", str(write_config(folder / "config.yaml", config))]) == 0
    return folder


def test_labels_and_probabilities_of_every_point(trained: Path) -> None:
    predictor = pointlib.load_predictor(trained / "run", device="cpu")
    points = SemanticKITTI(trained / "data", ["08"])[0].points
    labels, probabilities = predictor(points, return_probabilities=True)
    assert labels.shape == (len(points),) and labels.dtype == np.uint8
    assert probabilities is not None and probabilities.shape == (len(points), 19)
    np.testing.assert_allclose(probabilities.sum(1), 1.0, atol=1e-5)
    assert (probabilities.argmax(1) == labels).all()
    assert predictor(torch.from_numpy(points)).probabilities is None
    assert (predictor(torch.from_numpy(points)).labels == labels).all()
    assert predictor.class_names[0] == "car"
    assert predictor.raw_ids(np.array([0, 8], np.uint8)).tolist() == [10, 40]


def test_predicts_what_the_evaluator_writes(trained: Path, tmp_path: Path) -> None:
    scans = SemanticKITTI(trained / "data", ["08"])
    evaluate(read_checkpoint(trained / "run"), scans, num_workers=0, predictions=tmp_path)
    predictor = load_predictor(trained / "run", "cpu")
    written = read_labels(tmp_path / "sequences/08/predictions/000001.label").semantic
    assert (predictor.raw_ids(predictor(scans[1].points).labels) == written).all()


def test_one_point_no_points_and_wrong_points(trained: Path) -> None:
    predictor = load_predictor(trained / "run" / "last.ckpt", "cpu")
    assert predictor(np.ones((1, 4), np.float32)).labels.shape == (1,)
    empty = predictor(np.ones((0, 4), np.float32), return_probabilities=True)
    assert empty.labels.shape == (0,)
    assert empty.probabilities is not None and empty.probabilities.shape == (0, 19)
    assert predictor(np.ones((2, 5))).labels.shape == (2,)  # float64, more columns
    for wrong in (np.ones((4, 3), np.float32), np.ones(4, np.float32), np.ones((4, 4), np.int32)):
        with pytest.raises(ValueError, match="points must be floating"):
            predictor(wrong)
    with pytest.raises(ValueError, match="must be finite"):
        predictor(np.full((3, 4), np.nan, np.float32))


def test_every_format_gives_the_same_labels(trained: Path, tmp_path: Path) -> None:
    predictor = load_predictor(trained / "run", "cpu")
    points = SemanticKITTI(trained / "data", ["08"])[0].points
    sources = tmp_path / "in" / "deep"
    sources.mkdir(parents=True)
    for suffix in (".bin", ".npy", ".pcd", ".ply"):
        write_points(sources / f"scan{suffix[1:]}{suffix}", points)
    found = find_point_clouds(tmp_path / "in")
    assert len(found) == 4
    expected = predictor.raw_ids(predictor(points).labels)
    out = tmp_path / "out"
    for file in predict_files(predictor, found, tmp_path / "in", out):
        assert file.target == out / "deep" / f"{file.source.stem}.label"
        assert (read_labels(file.target).semantic == expected).all()
        assert (read_points(file.source) == file.points).all()
    assert find_point_clouds(found[0]) == [found[0]]


def test_nothing_to_predict_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="a folder without any"):
        find_point_clouds(tmp_path)
    with pytest.raises(FileNotFoundError, match="nothing there"):
        find_point_clouds(tmp_path / "absent.pcd")
    with pytest.raises(FileNotFoundError, match="must be a checkpoint"):
        load_predictor(tmp_path)
