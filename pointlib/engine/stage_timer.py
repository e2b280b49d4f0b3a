"""How long each part of a multi-sensor network takes, measured while it runs."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import nn

from pointlib.metrics import LatencyMeter

VIEW_TRANSFORM = "camera view transform"


@contextmanager
def timed_stages(network: Any, meter: LatencyMeter, device: torch.device) -> Iterator[None]:
    """Adds the time of every part of a `BEVFusion` network to `meter` while the body runs.

    On a CUDA device the queued work is waited for before and after each part, so the sum is a little more than the
    network takes undisturbed. The stages, in order: camera backbone, camera neck, camera view transform (depth,
    geometry, pooling and the convolutions after it), lidar voxelize, lidar backbone (with its kernel maps), fuser,
    decoder, head of each task.
    """
    started: dict[str, float] = {}
    camera = {"whole": 0.0, "parts": 0.0}

    def now() -> float:
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter()

    def begin(stage: str, module: nn.Module, inputs: Any) -> None:
        started[stage] = now()

    def end(stage: str, module: nn.Module, inputs: Any, output: Any) -> None:
        seconds = now() - started[stage]
        if stage == VIEW_TRANSFORM:  # the encoder as a whole, less the parts before
            meter.add(stage, seconds - camera["parts"])
            camera["parts"] = 0.0
            return
        if stage.startswith("camera"):
            camera["parts"] += seconds
        meter.add(stage, seconds)

    hooks = []
    for stage, module in _stages(network).items():
        hooks.append(module.register_forward_pre_hook(partial(begin, stage)))
        hooks.append(module.register_forward_hook(partial(end, stage)))
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _stages(network: Any) -> dict[str, nn.Module]:
    found: dict[str, nn.Module] = {}
    encoders = network.encoders
    if "camera" in encoders:
        found["camera backbone"] = encoders["camera"]["backbone"]
        found["camera neck"] = encoders["camera"]["neck"]
        found[VIEW_TRANSFORM] = encoders["camera"]
    if "lidar" in encoders:
        found["lidar voxelize"] = encoders["lidar"]["voxelize"]
        found["lidar backbone"] = encoders["lidar"]["backbone"]
    if network.fuser is not None:
        found["fuser"] = network.fuser
    found["decoder backbone"] = network.decoder["backbone"]
    found["decoder neck"] = network.decoder["neck"]
    return found | {f"head {name}": head for name, head in network.heads.items()}
