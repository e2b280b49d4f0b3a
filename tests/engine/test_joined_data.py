"""Several real datasets in one run: what is opened, what is skipped, which boxes count for the recall."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pointlib.data.multi_sensor_batch import MultiSensorBatch
from pointlib.data.nuscenes_info import NuScenesInfo
from pointlib.data.pandaset import CLASS_NAMES, PandaSet
from pointlib.engine.config_parser import ConfigParser
from pointlib.engine.multi_sensor_data import MultiSensorData
from pointlib.engine.multi_sensor_scores import SceneScorer
from pointlib.engine.multi_sensor_sources import FurtherData, Needs, open_source
from pointlib.engine.multi_sensor_task import MultiSensorTask
from pointlib.sensors import Detections, ScenePrediction, SceneTargets, SensorBatch
from tests.models.tiny_networks import tiny_multi_sensor

RANGE = (-50.0, -50.0, -5.0, 50.0, 50.0, 3.0)
CAMERAS = Needs(CLASS_NAMES, (), RANGE, True, (32, 88), None)
LIDAR = Needs(CLASS_NAMES, (), RANGE, True, None, None)


def test_real_samples_of_two_datasets_are_joined(test_data: Path) -> None:
    data = MultiSensorData(
        dataset="pandaset",
        root=str(test_data / "pandaset"),
        num_sweeps=1,
        missing_cameras="skip",
        further=[FurtherData("nuscenes_info", str(test_data / "nuscenes/scene0061_kf0/info.json"))],
        keep_in_memory=True,
    )
    joined: Any = data._open(["002"], CAMERAS, 1)
    assert [type(source) for source in joined.sources] == [PandaSet, NuScenesInfo]
    assert len(joined) == 3 and joined[2] is joined[2]
    assert len(data._open(["002"], LIDAR, 1)) == 6  # frames without images do for a LiDAR


def test_what_cannot_be_opened_is_refused(test_data: Path) -> None:
    info = str(test_data / "nuscenes/scene0061_kf0/info.json")
    with pytest.raises(
        ValueError, match="missing_cameras must be raise or allow for nuscenes_info"
    ):
        open_source("nuscenes_info", info, "train", CAMERAS, missing_cameras="skip")
    mapped = Needs((), ("drivable_area",), RANGE, True, None, ((-10.0, 10.0, 0.5),) * 2)
    for dataset, root in (("nuscenes_info", info), ("pandaset", str(test_data / "pandaset"))):
        with pytest.raises(
            ValueError, match=f"must have a map for a network with a map head, got '{dataset}'"
        ):
            open_source(dataset, root, ["002"], mapped)  # type: ignore[arg-type]


def test_recall_counts_boxes_in_range() -> None:
    boxes = torch.zeros(4, 9)
    boxes[:, 0] = torch.tensor([5.0, 20.0, 30.0, 60.0])  # the last is out of range
    boxes[:, 3:6] = 2
    labels = torch.tensor([0, 0, 8, 0])
    found = boxes[[0, 1, 2]].clone()
    found[:, 1] = torch.tensor([1.9, 2.1, 0.0])
    predicted = Detections(found, torch.tensor([0.9, 0.8, 0.7]), torch.tensor([0, 0, 8]))
    batch = MultiSensorBatch(
        SensorBatch(None, None, torch.eye(4)[None]),
        SceneTargets((boxes,), (labels,)),
        ("a",),
        ("a.bin",),
        torch.eye(4, dtype=torch.float64)[None],
        torch.eye(4, dtype=torch.float64)[None],
    )
    scorer = SceneScorer(CLASS_NAMES, (), RANGE)
    scorer.update(batch, [ScenePrediction(predicted)])
    scores = scorer.compute()
    assert scores.recall is not None and scores.recall.objects.sum() == 3
    assert scores.values()["recall_2m"] == pytest.approx(2 / 3)
    assert "centres found to 2 m" in scores.table()


def test_momentum_of_batch_norms_can_be_set() -> None:
    def momenta(value: float | None) -> set[float | None]:
        task = MultiSensorTask(
            "bevfusion_det_cl", tiny_multi_sensor("bevfusion_det_cl"), batch_norm_momentum=value
        )
        kinds = (torch.nn.BatchNorm1d, torch.nn.BatchNorm2d)
        return {m.momentum for m in task.network.modules() if isinstance(m, kinds)}

    assert momenta(None) == {0.01, 0.1} and momenta(0.25) == {0.25}


def test_further_datasets_are_plain_keys_of_a_config() -> None:
    """The further datasets of a run are written in a config as plain keys."""
    parser = ConfigParser()
    parser.add_argument("--further", type=list[FurtherData] | None, default=None)
    options = parser.parse_args(["--further=[{dataset: nuscenes_info, root: info.json}]"])
    assert options.further[0].num_sweeps == 1
    assert np.array_equal(options.further[0].split, "train")
