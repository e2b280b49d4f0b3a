"""Configs: round trip, unknown keys with the nearest name, wrong types, what the published files say."""

from __future__ import annotations

import dataclasses
import inspect
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from pointlib.data import segmentation_transforms
from pointlib.engine import load_config, train
from pointlib.engine.config_parser import nearest_key
from pointlib.engine.optimization import build_optimizer, lr_factor, scaled_lr
from pointlib.engine.options import OptimizerConfig, ScheduleConfig
from pointlib.engine.segmentation_data import AugmentConfig
from tests.engine.tiny_run import ROOT, tiny_config, write_config

PUBLISHED = sorted((ROOT / "configs" / "semantic_kitti").glob("*_cr*.yaml"))


def test_a_resolved_config_loads_to_itself(tmp_path: Path) -> None:
    resolved = load_config(PUBLISHED[0])
    again = tmp_path / "config.yaml"
    again.write_text(yaml.safe_dump(resolved))
    assert load_config(again) == resolved
    assert yaml.safe_load(yaml.safe_dump(resolved)) == resolved  # plain types only


@pytest.mark.parametrize("path", PUBLISHED, ids=lambda p: p.stem)
def test_published_configs_hold_the_published_schedule(path: Path) -> None:
    config = load_config(path)
    optimizer, data, trainer = (
        config["model"]["optimizer"],
        config["data"],
        config["trainer"],
    )
    assert (optimizer["name"], optimizer["lr"], optimizer["momentum"]) == ("sgd", 0.24, 0.9)
    assert optimizer["nesterov"] and optimizer["weight_decay"] == 1e-4
    assert (data["batch_size"], data["voxel_size"], data["max_voxels"]) == (2, 0.05, 80000)
    assert trainer["max_epochs"] == 15 and trainer["precision"] == "16-mixed"
    assert config["model"]["schedule"]["name"] == "cosine"
    network, width = path.stem.split("_cr")
    assert config["model"]["network"] == network
    assert config["model"]["network_args"]["cr"] == float(width.replace("p", "."))


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("model.optimizer.lrr", 1, "did you mean 'model.optimizer.lr'?"),
        ("modl.network", "x", "did you mean 'model"),
        ("optimizer.lr", 1, "did you mean 'model.optimizer"),
        ("trainer.max_epoch", 1, "did you mean 'trainer.max_epochs'?"),
        ("data.voxelsize", {}, "did you mean 'data.voxel_size'?"),
        ("nonsense.qqq", 1, "the sections are"),
    ],
)
def test_an_unknown_key_names_the_nearest(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], key: str, value: Any, message: str
) -> None:
    config = tiny_config(tmp_path, tmp_path / "run")
    node = config
    *sections, leaf = key.split(".")
    for section in sections:
        node = node.setdefault(section, {})
    node[leaf] = value
    path = write_config(tmp_path / "c.yaml", config)
    with pytest.raises(ValueError, match=r"key must be a known one") as error:
        load_config(path)
    assert message in str(error.value)

    good = write_config(tmp_path / "good.yaml", tiny_config(tmp_path, tmp_path / "run"))
    with pytest.raises(SystemExit) as exit_status:
        train(["--config", str(good), f"--{key}=1"])
    assert exit_status.value.code == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("override", "error", "message"),
    [
        ("--model.optimizer.lr=big", ValueError, "model.optimizer.lr"),
        ("--trainer.precision=fp8", ValueError, "trainer.precision"),
        ("--logger=mlflow", ValueError, "logger"),
        ("--model.network_args.crr=0.5", TypeError, "did you mean 'cr'"),
        ("--model.network=minkunett", ValueError, "did you mean 'minkunet'"),
        ("--trainer.callbacks=os.system", ValueError, "trainer"),
        ('--trainer={"class_path": "os.system"}', ValueError, "class_path"),
    ],
)
def test_wrong_values_are_refused_by_name(
    override: str, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        load_config(PUBLISHED[0], [override])


def test_overrides_and_numbers_in_scientific_form() -> None:
    config = load_config(
        PUBLISHED[0], ["--model.optimizer.lr=1e-3", "--data.root=/scans", "--ema.decay=0.99"]
    )
    assert config["model"]["optimizer"]["lr"] == 0.001
    assert config["data"]["root"] == "/scans"
    assert config["ema"]["decay"] == 0.99
    assert config["model"]["network_args"]["num_classes"] == 19


def test_files_that_are_no_configs_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="does not exist"):
        load_config(tmp_path / "absent.yaml")
    broken = tmp_path / "broken.yaml"
    broken.write_text("model: [1,")
    with pytest.raises(ValueError, match="valid YAML"):
        load_config(broken)
    broken.write_text("- 1\n")
    with pytest.raises(ValueError, match="mapping of keys"):
        load_config(broken)


def test_print_config_prints_every_key(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_status:
        train(["--config", str(PUBLISHED[0]), "--print_config"])
    assert exit_status.value.code == 0
    printed = yaml.safe_load(capsys.readouterr().out)
    assert printed == load_config(PUBLISHED[0])


def test_nearest_key_by_path_and_by_last_part() -> None:
    known = ["model.optimizer.lr", "data.root", "trainer.max_epochs"]
    assert nearest_key("dta.root", known) == "data.root"
    assert nearest_key("max_epochs", known) == "trainer.max_epochs"
    assert nearest_key("zzz", known) is None


def test_augmentation_keys_are_the_transforms_arguments() -> None:
    parameters = inspect.signature(segmentation_transforms).parameters
    fields = {f.name: f.default for f in dataclasses.fields(AugmentConfig)}
    from_dataset = {"things", "pitch"}
    assert fields == {n: p.default for n, p in parameters.items() if n not in from_dataset}


def test_schedules_by_hand() -> None:
    cosine = lr_factor(ScheduleConfig("cosine", warmup_steps=4), 14)
    assert [cosine(i) for i in range(4)] == [0.25, 0.5, 0.75, 1.0]
    assert cosine(4) == 1.0
    assert cosine(9) == pytest.approx(0.5)
    assert cosine(14) == pytest.approx(0.0)
    cycle = lr_factor(ScheduleConfig("one_cycle", warmup_fraction=0.25, start_factor=0.1), 8)
    assert cycle(0) == pytest.approx(0.1)
    assert cycle(2) == pytest.approx(1.0)
    assert cycle(5) == pytest.approx(0.5)
    assert cycle(8) == pytest.approx(0.0)
    constant = lr_factor(ScheduleConfig("constant", warmup_steps=2), 8)
    assert [constant(i) for i in (0, 1, 2, 7)] == [0.5, 1.0, 1.0, 1.0]


def test_the_rate_follows_the_batch_size() -> None:
    config = OptimizerConfig()
    assert scaled_lr(config, 16) == 0.24
    assert scaled_lr(config, 2) == pytest.approx(0.03)
    assert scaled_lr(dataclasses.replace(config, lr_batch_size=None), 2) == 0.24
    weights = [torch.nn.Parameter(torch.zeros(1))]
    adamw = build_optimizer(weights, OptimizerConfig("adamw", lr=0.01, betas=(0.8, 0.9)), 16)
    assert isinstance(adamw, torch.optim.AdamW)
    assert adamw.defaults["betas"] == (0.8, 0.9)
