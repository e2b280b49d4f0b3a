"""Published weights as a checkpoint: the network comes from a config, the weights from the file."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from pointlib.engine.cli import load_config
from pointlib.engine.multi_sensor_data import MultiSensorData
from pointlib.models import create_model
from pointlib.models.checkpoint import Checkpoint, CheckpointInfo
from pointlib.models.weight_transfer import load_published


def published_checkpoint(path: str | os.PathLike[str], config: str | Path) -> Checkpoint:
    """Read a file such as mit-han-lab's bevfusion-det.pth as a checkpoint of the config's network.

    Args:
        path: The file; read with `weights_only`.
        config: YAML of a `multi_sensor` task.

    Raises:
        ValueError: The config is of another task, or the file has other weights; the message names the first.
    """
    content = load_config(config)
    if content["task"] != "multi_sensor":
        raise ValueError(
            f"published_checkpoint: {config} must be of task multi_sensor, got {content['task']}"
        )
    model, data = content["model"], content["data"]
    network: Any = create_model(model["network"], **(model["network_args"] or {}))
    load_published(network, path)
    info = CheckpointInfo(
        network=model["network"],
        network_args=dict(model["network_args"] or {}),
        voxel_size=float(network.voxel_size[0]),
        class_names=list(network.class_names),
        raw_ids=[],
        config=content,
        task="multi_sensor",
        map_classes=list(network.map_classes),
        feed=MultiSensorData.describe_feed(
            data["dataset"], data["num_sweeps"], data["image"]["test_resize"]
        ),
    )
    return Checkpoint(str(path), info, network.state_dict())
