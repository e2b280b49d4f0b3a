"""Batches of multi-sensor samples: what they join, where they go, and what does not fit together."""

from __future__ import annotations

import pytest
import torch
from torch.utils.data import DataLoader

from pointlib.data.multi_sensor_batch import (
    MultiSensorBatch,
    PreparedSample,
    collate_multi_sensor,
)
from pointlib.data.multi_sensor_pipeline import MultiSensorDataset, MultiSensorPipeline
from pointlib.data.sample import BadSampleError
from pointlib.data.sampler import EpochSampler, SampleKey
from tests.data.multi_sensor_scenes import (
    EVALUATION,
    RANGE,
    SMALL,
    TRAINING,
    make_scene,
    make_source,
)


def test_batches_join_and_move() -> None:
    dataset = MultiSensorDataset(make_source(), TRAINING)
    batch = collate_multi_sensor(
        [dataset[SampleKey(0, 1)], dataset[SampleKey(0, 2, counted=False)]]
    )
    assert len(batch) == 2 and batch.sensors.batch_size == 2
    assert batch.tokens == ("token1", "token2") and batch.paths == ("scene1.bin", "scene2.bin")
    assert batch.counted == (True, False)
    cameras, points, targets = batch.sensors.cameras, batch.sensors.points, batch.targets
    assert cameras is not None and points is not None and targets is not None
    assert cameras.images.shape == (2, 2, 3, 48, 80) and cameras.intrinsics.shape == (2, 2, 3, 3)
    assert cameras.camera2lidar.shape == cameras.image_aug.shape == (2, 2, 4, 4)
    assert cameras.present.dtype == torch.bool and cameras.present.all()
    floats = (*points, *targets.boxes, cameras.images, batch.sensors.lidar_aug, cameras.image_aug)
    assert all(tensor.dtype == torch.float32 for tensor in floats)
    assert all(cloud.shape[1] == 5 for cloud in points)
    assert all(label.dtype == torch.int64 for label in targets.labels)
    assert batch.lidar2ego.dtype == batch.ego2global.dtype == torch.float64
    moved = batch.to("meta")
    assert moved.sensors.device.type == "meta" and moved.targets is not None
    assert moved.targets.boxes[0].device.type == "meta"
    assert moved.lidar2ego.device.type == "cpu" and moved.tokens == batch.tokens


def test_parts_may_be_left_out() -> None:
    source = make_source()
    lidar = collate_multi_sensor([MultiSensorDataset(source, MultiSensorPipeline(RANGE, False))[0]])
    assert lidar.sensors.cameras is None and lidar.sensors.points is not None
    only = MultiSensorPipeline(RANGE, False, image=SMALL, with_points=False, with_targets=False)
    camera = collate_multi_sensor([MultiSensorDataset(source, only)[0]])
    assert camera.sensors.points is None and camera.targets is None
    assert camera.sensors.cameras is not None


def test_loader_workers_give_the_same_batches() -> None:
    dataset = MultiSensorDataset(make_source(6), TRAINING, seed=1)
    runs = []
    for workers in (0, 2):
        sampler = EpochSampler(len(dataset), 2, seed=1)
        load: DataLoader[MultiSensorBatch] = DataLoader(
            dataset,  # type: ignore[arg-type]
            batch_sampler=sampler,  # type: ignore[arg-type]
            collate_fn=collate_multi_sensor,
            num_workers=workers,
        )
        runs.append(list(load))
    for one, two in zip(*runs, strict=True):
        assert one.tokens == two.tokens
        assert torch.equal(one.sensors.lidar_aug, two.sensors.lidar_aug)
        assert all(map(torch.equal, one.sensors.points, two.sensors.points))
        assert torch.equal(one.sensors.cameras.images, two.sensors.cameras.images)


def test_broken_samples_stop_or_are_replaced(caplog: pytest.LogCaptureFixture) -> None:
    source = make_source(broken=(1, 2))
    with pytest.raises(BadSampleError, match=r"scene1\.bin"):
        MultiSensorDataset(source, TRAINING)[1]
    dataset = MultiSensorDataset(source, TRAINING, on_bad_sample="skip")
    batch = collate_multi_sensor([dataset[0], dataset[1]])
    assert batch.tokens == ("token0", "token3")
    assert len(batch.skipped) == 2 and "scene1.bin" in batch.skipped[0]
    assert "skipped a bad sample" in caplog.text


def test_batches_of_unlike_samples_are_refused() -> None:
    source = make_source()
    one = MultiSensorDataset(source, EVALUATION)[0]
    other = MultiSensorDataset(source, MultiSensorPipeline(RANGE, False))[0]
    three = MultiSensorDataset(make_source(cameras=3), EVALUATION)[0]
    with pytest.raises(ValueError, match="all have cameras or none, got 1 of 2"):
        collate_multi_sensor([one, other])
    with pytest.raises(ValueError, match="images of one shape"):
        collate_multi_sensor([one, three])
    with pytest.raises(ValueError, match="at least one sample"):
        collate_multi_sensor([])
    with pytest.raises(TypeError, match="PreparedSample, got MultiSensorSample"):
        collate_multi_sensor([make_scene()])  # type: ignore[list-item]
    assert isinstance(one, PreparedSample)
