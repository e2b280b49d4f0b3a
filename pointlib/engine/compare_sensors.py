"""A trained network beside itself with one sensor alone, and beside the same network with fresh weights."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import torch

from pointlib.engine.multi_sensor_evaluator import SceneEvaluation
from pointlib.models import create_model
from pointlib.models.checkpoint import Checkpoint

ALL_SENSORS = "all sensors"
UNTRAINED = "untrained"


def sensor_variants(checkpoint: Checkpoint) -> dict[str, list[str]]:
    """What to score: for each line of the comparison, the sensors that are taken away."""
    with torch.device("meta"):
        network: Any = create_model(checkpoint.info.network, **checkpoint.info.network_args)
    sensors = list(network.encoders)
    alone = {f"{name} alone": [s for s in sensors if s != name] for name in sensors}
    return {ALL_SENSORS: [], **(alone if len(sensors) > 1 else {}), UNTRAINED: []}


def untrained(checkpoint: Checkpoint, seed: int = 0) -> Checkpoint:
    """The checkpoint's network with fresh weights."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = create_model(checkpoint.info.network, **checkpoint.info.network_args)
    return dataclasses.replace(checkpoint, weights=network.state_dict())


def comparison(results: Mapping[str, SceneEvaluation]) -> dict[str, dict[str, float]]:
    """NDS, mAP and map mIoU of each variant, as far as there are any."""
    return {name: _scores(result) for name, result in results.items()}


def comparison_table(results: Mapping[str, SceneEvaluation]) -> str:
    """`comparison` as a plain-text table, in percent."""
    rows = comparison(results)
    columns = list(dict.fromkeys(column for row in rows.values() for column in row))
    width = max(len(name) for name in rows)
    lines = [" " * width + "".join(f"{column:>10}" for column in columns)]
    for name, row in rows.items():
        cells = (f"{100 * row[c]:10.2f}" if c in row else f"{'-':>10}" for c in columns)
        lines.append(f"{name:<{width}}" + "".join(cells))
    return "\n".join(lines)


def _scores(result: SceneEvaluation) -> dict[str, float]:
    found: dict[str, float] = {}
    scores = result.scores
    if result.devkit is not None:
        found |= {"NDS": result.devkit.nds, "mAP": result.devkit.mean_ap}
    elif scores is not None and scores.detection is not None:
        found |= {"NDS": scores.nds, "mAP": scores.detection.mean_ap}
    if scores is not None and scores.map is not None:
        found["mIoU"] = scores.map.miou
    return found
