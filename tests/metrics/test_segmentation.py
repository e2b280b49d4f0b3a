"""The confusion matrix against semantic-kitti-api's numbers, by hand and in two processes."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.multiprocessing

from pointlib.metrics import ConfusionMatrix


def test_equals_the_official_evaluator_to_the_last_bit(test_data: Path) -> None:
    folder = test_data / "vectors" / "semantic-kitti-api"
    if not folder.is_dir():
        pytest.skip(f"no official vectors in {folder}")
    expected = json.loads((folder / "segpan_00.json").read_text())["expected"]
    with np.load(folder / "segpan_00.npz") as file:
        pred, truth = (file[k].astype(np.int64) for k in ("pred_sem", "gt_sem"))
    # Official ids: 0 is ignored, 1..19 are our 0..18.
    pred, truth = (np.where(ids == 0, 255, ids - 1) for ids in (pred, truth))
    matrix = ConfusionMatrix(19)
    for half in np.array_split(np.arange(len(pred)), 2):
        matrix.update(torch.from_numpy(pred[half]), torch.from_numpy(truth[half]))
    scores = matrix.compute()
    assert scores.miou == expected["miou"]
    assert scores.iou.tolist() == expected["class_iou"][1:]
    assert scores.accuracy == expected["acc"]
    official = np.array(expected["confusion"])
    assert matrix.counts[:19].tolist() == official[1:, 1:].tolist()
    assert matrix.counts[19].tolist() == official[0, 1:].tolist()


def test_by_hand() -> None:
    matrix = ConfusionMatrix(4, class_names=("a", "b", "c", "d"))
    pred = torch.tensor([0, 0, 1, 1, 255, 3])
    truth = torch.tensor([0, 1, 1, 255, 1, 0])
    matrix.update(pred, truth)
    scores = matrix.compute()
    # a: 1 hit, 1 false alarm, 1 miss; b: 1 hit, 2 misses; c absent; d: 1 false alarm
    assert scores.iou.tolist() == pytest.approx([1 / 3, 1 / 3, 0.0, 0.0])
    assert scores.miou == pytest.approx(1 / 6)
    assert scores.miou_present == pytest.approx(1 / 3)
    assert scores.support.tolist() == [2, 3, 0, 0]
    assert scores.accuracy == pytest.approx(2 / 4)
    assert scores.as_dict()["iou"]["b"] == pytest.approx(1 / 3)
    assert "b" in scores.table()
    assert "\nc " not in scores.table(present_only=True)
    assert matrix.compute(absent="one").iou.tolist() == pytest.approx([1 / 3, 1 / 3, 1.0, 1.0])


def test_perfect_prediction_and_no_points() -> None:
    matrix = ConfusionMatrix(3)
    assert math.isnan(matrix.compute().miou_present)
    assert matrix.compute().miou == 0.0
    ids = torch.arange(3).repeat(5)
    matrix.update(ids, ids)
    assert matrix.compute().iou.tolist() == pytest.approx([1.0, 1.0, 1.0])
    matrix.reset()
    assert int(matrix.counts.sum()) == 0
    matrix.update(torch.empty(0, dtype=torch.int64), torch.empty(0, dtype=torch.int64))
    assert int(matrix.counts.sum()) == 0


def test_counts_are_exact_beyond_float32() -> None:
    matrix = ConfusionMatrix(1)
    matrix.counts[0, 0] = 2**40
    matrix.update(torch.zeros(1, dtype=torch.uint8), torch.zeros(1, dtype=torch.int32))
    assert int(matrix.counts[0, 0]) == 2**40 + 1


@pytest.mark.parametrize(
    ("pred", "truth", "message"),
    [
        ([0, 1], [0], "one shape"),
        ([3], [0], r"pred must hold ids in \[0, 3\) or 255, got 3"),
        ([0], [-1], "target must hold ids"),
        ([-7], [0], "got -7"),
    ],
)
def test_wrong_ids_are_refused(pred: list[int], truth: list[int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ConfusionMatrix(3).update(torch.tensor(pred), torch.tensor(truth))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_classes": 0}, "num_classes must be >= 1"),
        ({"num_classes": 3, "ignore_index": 2}, "ignore_index must lie outside"),
        ({"num_classes": 3, "class_names": ("a",)}, "3 entries, got 1"),
    ],
)
def test_wrong_arguments_are_refused(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ConfusionMatrix(**arguments)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="absent must be"):
        ConfusionMatrix(2).compute(absent="nan")  # type: ignore[arg-type]


def _sum_in_process(rank: int, file: str, queue: object) -> None:
    torch.distributed.init_process_group("gloo", f"file://{file}", rank=rank, world_size=2)
    matrix = ConfusionMatrix(2)
    matrix.update(torch.tensor([rank, rank]), torch.tensor([0, 1]))
    total = matrix.summed_over_processes()
    queue.put((rank, matrix.counts.tolist(), total.counts.tolist()))  # type: ignore[attr-defined]
    torch.distributed.destroy_process_group()


def test_sums_over_processes(tmp_path: Path) -> None:
    context = torch.multiprocessing.get_context("spawn")
    queue = context.SimpleQueue()
    torch.multiprocessing.spawn(_sum_in_process, (str(tmp_path / "store"), queue), nprocs=2)
    for _ in range(2):
        rank, own, total = queue.get()
        assert own[rank] == [1, 1]
        assert total == [[1, 1], [1, 1], [0, 0]]


def test_skipping_absent_classes_equals_nuscenes_devkit() -> None:
    devkit = pytest.importorskip("nuscenes.eval.lidarseg.utils")
    rng = np.random.default_rng(5)
    truth = rng.choice([255, 0, 1, 2, 4], 4000)
    pred = np.where(rng.random(4000) < 0.6, np.where(truth == 255, 0, truth), rng.choice(4, 4000))
    matrix = ConfusionMatrix(6)  # class 3 is predicted only, class 5 neither there nor predicted
    matrix.update(torch.from_numpy(pred), torch.from_numpy(truth))
    scores = matrix.compute(absent="skip")
    official = devkit.ConfusionMatrix(7, ignore_idx=0)
    official.update(np.where(truth == 255, 0, truth + 1), pred + 1)
    expected = official.get_per_class_iou()[1:]
    np.testing.assert_allclose(scores.iou, expected, atol=1e-6)
    assert np.isnan(scores.iou[5]) and scores.iou[3] == 0
    assert scores.miou == pytest.approx(official.get_mean_iou(), abs=1e-6)
    assert scores.miou == pytest.approx(np.mean(scores.iou[:5]))
    assert json.loads(json.dumps(scores.as_dict(), allow_nan=False))["iou"]["5"] is None
    assert " - " in scores.table()
    assert math.isnan(ConfusionMatrix(3).compute(absent="skip").miou)
    with pytest.raises(ValueError, match="absent must be one of zero, one, skip"):
        matrix.compute(absent="two")  # type: ignore[arg-type]
