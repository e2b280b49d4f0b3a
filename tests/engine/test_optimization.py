"""Groups of parameters, cycled momentum and sensor dropout: what multi-sensor training adds to a step."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import nn

from pointlib.engine.compare_sensors import sensor_variants, untrained
from pointlib.engine.optimization import build_optimizer, build_schedule, parameter_groups
from pointlib.engine.options import OptimizerConfig, ScheduleConfig
from pointlib.engine.sensor_dropout import SensorDropout, without_sensors
from pointlib.models import create_model
from pointlib.models.checkpoint import Checkpoint, CheckpointInfo, build_network
from tests.models.tiny_networks import tiny_batch, tiny_multi_sensor


def network() -> nn.Module:
    """Four parameters below two prefixes, one of them frozen."""
    parts = nn.ModuleDict({"image": nn.Linear(2, 2), "head": nn.Linear(2, 2)})
    parts["head"].bias.requires_grad_(False)
    return parts


def test_rates_and_decay_go_by_name() -> None:
    config = OptimizerConfig(
        "adamw",
        lr=1e-2,
        lr_batch_size=4,
        weight_decay=0.1,
        lr_multipliers={"image.": 0.5, "image.bias": 0.1},
        no_decay=["bias"],
    )
    net = network()
    optimizer = build_optimizer(parameter_groups(net, config, 2), config, 2)
    found = {
        id(parameter): (group["lr"], group["weight_decay"])
        for group in optimizer.param_groups
        for parameter in group["params"]
    }
    names = {name: found.get(id(parameter)) for name, parameter in net.named_parameters()}
    assert names == {
        "image.weight": (pytest.approx(2.5e-3), 0.1),
        "image.bias": (pytest.approx(5e-4), 0.0),
        "head.weight": (pytest.approx(5e-3), 0.1),
        "head.bias": None,  # frozen
    }
    assert optimizer.param_groups[0]["params"][0] is net["head"].weight  # what the log shows


@pytest.mark.parametrize("key", ["lr_multipliers", "no_decay"])
def test_a_name_that_fits_nothing_is_refused(key: str) -> None:
    value = {"imgae.": 0.1} if key == "lr_multipliers" else ["imgae."]
    config = OptimizerConfig("adamw", **{key: value})
    with pytest.raises(ValueError, match=r"'imgae\.'; its names begin with head, image"):
        parameter_groups(network(), config, 1)


@pytest.mark.parametrize(("name", "key"), [("adamw", "betas"), ("sgd", "momentum")])
def test_momentum_falls_while_the_rate_rises(name: str, key: str) -> None:
    config = OptimizerConfig(name, lr=1.0, lr_batch_size=None, betas=(0.9, 0.99))  # type: ignore[arg-type]
    optimizer = build_optimizer(network().parameters(), config, 1)
    schedule = ScheduleConfig(
        "one_cycle", warmup_fraction=0.4, start_factor=0.1, momentum_cycle=(0.95, 0.85)
    )
    scheduler = build_schedule(optimizer, schedule, 10)
    seen = []
    for _ in range(10):
        group = optimizer.param_groups[0]
        seen.append((group["lr"], group["betas"][0] if key == "betas" else group["momentum"]))
        optimizer.step()
        scheduler.step()
    rates, momenta = zip(*seen, strict=True)
    assert rates[0] == pytest.approx(0.1) and momenta[0] == pytest.approx(0.95)
    assert rates.index(max(rates)) == momenta.index(min(momenta)) == 4
    assert max(rates) == pytest.approx(1.0) and min(momenta) == pytest.approx(0.85)
    assert momenta[9] > 0.93 and optimizer.param_groups[0][key] != 0
    assert not any(callable(value) for value in scheduler.state_dict().values())


def test_linear_warm_up_starts_where_it_is_told() -> None:
    optimizer = build_optimizer(network().parameters(), OptimizerConfig(lr_batch_size=None), 1)
    config = ScheduleConfig("cosine", warmup_steps=4, warmup_start=1 / 3)
    scheduler = build_schedule(optimizer, config, 10)
    rates = []
    for _ in range(5):
        rates.append(optimizer.param_groups[0]["lr"] / 0.24)
        optimizer.step()
        scheduler.step()
    assert rates == pytest.approx([1 / 3, 1 / 2, 2 / 3, 5 / 6, 1.0])


def test_dropout_takes_one_sensor_of_a_sample_as_often_as_asked() -> None:
    batch = tiny_batch(batch_size=200, cameras=1)
    torch.manual_seed(0)
    dropped = SensorDropout(camera=0.2, lidar=0.3)(batch)
    assert dropped.points is not None and dropped.cameras is not None
    no_points = torch.tensor([len(cloud) == 0 for cloud in dropped.points])
    no_camera = ~dropped.cameras.present.any(1)
    assert not (no_points & no_camera).any()
    assert 0.2 < no_points.float().mean() < 0.4 and 0.1 < no_camera.float().mean() < 0.3
    assert not dropped.cameras.images[no_camera].any()
    assert dropped.cameras.images[~no_camera].flatten(1).any(1).all()
    again = SensorDropout()(batch)
    assert again is batch
    with pytest.raises(ValueError, match="at most 1 together"):
        SensorDropout(camera=0.6, lidar=0.5)


def test_sensors_are_taken_away_by_name() -> None:
    batch = tiny_batch()
    assert without_sensors(batch, ["camera"]).cameras is None
    assert without_sensors(batch, ["lidar"]).points is None
    with pytest.raises(ValueError, match="got radar"):
        without_sensors(batch, ["radar"])


def test_a_comparison_has_each_sensor_alone_and_fresh_weights() -> None:
    sizes = tiny_multi_sensor("bevfusion_det_cl")
    info = CheckpointInfo("bevfusion_det_cl", sizes, 0.2, [], [], task="multi_sensor")
    torch.manual_seed(5)
    checkpoint = Checkpoint("x", info, create_model("bevfusion_det_cl", **sizes).state_dict())
    assert sensor_variants(checkpoint) == {
        "all sensors": [],
        "camera alone": ["lidar"],
        "lidar alone": ["camera"],
        "untrained": [],
    }
    one, other = (build_network(untrained(checkpoint)).state_dict() for _ in range(2))
    key = "fuser.0.weight"
    assert torch.equal(one[key], other[key]) and not torch.equal(one[key], checkpoint.weights[key])
    lidar = dataclasses.replace(info, network="bevfusion_det_l", network_args={})
    assert list(sensor_variants(Checkpoint("x", lidar, {}))) == ["all sensors", "untrained"]
