"""Inputs of the camera branch's tests, and comparison with what the original implementations answered.

tests/golden/camera_branch.* hold answers on weights and inputs of `deterministic_weights`: Swin Transformer of
OpenPCDet 8cacccec (mmdetection's, in plain torch), ResNet of torchvision 0.29, FPN of mmdetection 3.3, and
GeneralizedLSSFPN, LSSFPN, GeneralizedResNet, LSSTransform and DepthLSSTransform of mit-han-lab/bevfusion db75150, the
last two in float64 with an index_add in place of their CUDA pool.
"""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from pointlib.sensors import CameraBatch, SensorBatch
from tests.models.deterministic_weights import fill_state_dict, uniform_input

GOLDEN = Path(__file__).parents[1] / "golden"
GRID = {
    "image_size": (64, 176),
    "feature_size": (8, 22),
    "xbound": (-36.0, 36.0, 1.8),
    "ybound": (-27.0, 27.0, 1.8),
    "zbound": (-4.0, 4.0, 8.0),
    "dbound": (1.0, 40.0, 1.5),
    "downsample": 2,
}
"""Of the view transforms behind the golden answers; 8 channels in and 6 out."""
PUBLISHED_GRID = {
    "image_size": (256, 704),
    "feature_size": (32, 88),
    "xbound": (-54.0, 54.0, 0.3),
    "ybound": (-54.0, 54.0, 0.3),
    "zbound": (-10.0, 10.0, 20.0),
    "dbound": (1.0, 60.0, 0.5),
    "downsample": 2,
}
"""Of BEVFusion's detector; 256 channels in and 80 out."""


@functools.cache
def golden_arrays() -> dict[str, np.ndarray]:
    """Sampled answers."""
    with np.load(GOLDEN / "camera_branch.npz", allow_pickle=False) as archive:
        return dict(archive)


@functools.cache
def golden_facts() -> dict[str, Any]:
    """State-dict names and shapes, numbers of parameters, shapes of answers."""
    return json.loads((GOLDEN / "camera_branch.json").read_text())


def sampled(tensor: Tensor, count: int) -> np.ndarray:
    """Evenly spaced entries of a flattened tensor, as the golden answers are."""
    flat = tensor.detach().flatten()
    return flat[np.linspace(0, len(flat) - 1, count).astype(np.int64)].numpy()


def filled(network: nn.Module) -> nn.Module:
    """The network with reproducible weights, for evaluation."""
    fill_state_dict(network)
    return network.eval()


def check_answers(
    name: str, network: nn.Module, maps: list[Tensor], rtol: float, largest: float = 0.0
) -> None:
    """Compare names, shapes, outputs and gradients with the original's.

    Args:
        name: Prefix of the golden answers.
        network: That made the maps, with gradients.
        maps: Its outputs.
        rtol: Allowed difference, relative to the largest value of each answer.
        largest: As rtol, for gradients; rtol if 0. A ReLU at its kink changes gradients by more than rounding.
    """
    arrays, facts = golden_arrays(), golden_facts()[name]
    state = network.state_dict()
    assert {key: list(value.shape) for key, value in state.items()} == facts["shapes"]
    assert sum(p.numel() for p in network.parameters() if p.requires_grad) == facts["parameters"]
    assert [list(x.shape) for x in maps] == facts["maps"]
    total = torch.zeros(())
    for i, x in enumerate(maps):
        want = arrays[f"{name}/map{i}"]
        got = sampled(x, len(want))
        np.testing.assert_allclose(got, want, rtol=0, atol=rtol * np.abs(want).max())
        spread = float(x.detach().double().abs().sum())
        np.testing.assert_allclose(spread, arrays[f"{name}/map{i}/abs_sum"], rtol=rtol)
        total = total + (x * uniform_input(900 + i, tuple(x.shape)).to(x.dtype)).sum()
    total.backward()
    parameters = dict(network.named_parameters())
    prefix = f"{name}/grad/"
    for key in (key for key in arrays if key.startswith(prefix)):
        gradient = parameters[key.removeprefix(prefix)].grad
        assert gradient is not None
        scale = float(gradient.abs().max())
        got = sampled(gradient, len(arrays[key]))
        np.testing.assert_allclose(got, arrays[key], rtol=0, atol=(largest or rtol) * scale)


def golden_batch(dtype: torch.dtype = torch.float32) -> SensorBatch:
    """Two samples of three cameras: LiDAR turned, scaled and mirrored, images scaled, turned, moved and mirrored."""
    arrays = {
        key.removeprefix("view/"): torch.tensor(value)
        for key, value in golden_arrays().items()
        if key.startswith("view/") and value.ndim
    }
    calibration = ("intrinsics", "camera2lidar", "image_aug")
    samples, count = arrays["intrinsics"].shape[:2]
    cameras = CameraBatch(
        images=torch.zeros(samples, count, 3, *GRID["image_size"]),
        present=torch.ones(samples, count, dtype=torch.bool),
        **{key: arrays[key].to(dtype) for key in calibration},
    )
    points = tuple(arrays[f"points{i}"].to(dtype) for i in range(samples))
    return SensorBatch(points=points, cameras=cameras, lidar_aug=arrays["lidar_aug"].to(dtype))
