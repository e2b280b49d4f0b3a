"""Multi-sensor networks so small that a forward pass takes milliseconds, and a batch that fits all of them."""

from __future__ import annotations

import inspect
from typing import Any

import numpy as np
import torch

from pointlib.models import create_model
from pointlib.models._registry import MODELS
from pointlib.sensors import CameraBatch, ScenePrediction, SceneTargets, SensorBatch

RANGE = [-12.8, -12.8, -5.0, 12.8, 12.8, 3.0]
MAP_SCOPE = [[-10.0, 10.0, 1.0], [-10.0, 10.0, 1.0]]
IMAGE_SIZE = (32, 64)
CAMERA = {
    "backbone_args": {
        "embed_dims": 8,
        "depths": [1, 1, 1],
        "num_heads": [1, 2, 4],
        "window_size": 4,
        "out_indices": [1, 2],
        "drop_path_rate": 0.0,
    },
    "neck_channels": 16,
    "out_channels": 8,
    "dbound": [1.0, 11.0, 1.0],
}
VOXELS = {
    "base_channels": 8,
    "encoder_channels": [[8, 8], [8, 8], [8, 16], [16]],
    "encoder_paddings": [[0, 1], [0, 1], [0, [1, 1, 0]], [0]],
    "output_channels": 16,
    "max_voxels": None,
}
DECODER = {"out_channels": [16, 16], "layer_nums": [1, 1], "neck_channels": [16, 16]}
RESNET_DECODER = {"blocks": [[1, 16, 2], [1, 16, 2]], "neck_channels": 16}
TRANSFUSION = {"num_proposals": 20, "hidden_channels": 16, "num_heads": 2, "ffn_channels": 16}
PILLAR_DECODER = {
    "out_channels": [16, 16],
    "layer_nums": [1, 1],
    "layer_strides": [2, 2],
    "neck_channels": [16, 16],
    "upsample_strides": [0.5, 1],
}


def is_multi_sensor(name: str) -> bool:
    """Whether a registered model takes a `SensorBatch`."""
    return "point_cloud_range" in inspect.signature(MODELS.get(name)).parameters


def tiny_multi_sensor(name: str) -> dict[str, Any]:
    """Arguments that make a registered multi-sensor network tiny."""
    sizes: dict[str, Any] = {"point_cloud_range": RANGE, "voxel_size": [0.2, 0.2, 0.25]}
    if name == "centerpoint_pillar":
        pillars = {"voxel_size": [0.4, 0.4, 8.0], "lidar": {"feat_channels": [8, 8]}}
        return {**sizes, **pillars, "decoder": PILLAR_DECODER, "head": {"shared_channels": 8}}
    camera, lidar = name.endswith(("_c", "_cl")), not name.endswith("_c")
    if camera:
        sizes |= {"image_size": list(IMAGE_SIZE), "camera": CAMERA}
    if lidar:
        sizes |= {"lidar": VOXELS}
    if camera and lidar:
        sizes |= {"fuser": {"out_channels": 16}}
    sizes["decoder"] = DECODER if lidar else RESNET_DECODER
    if "_seg_" in name:
        return {**sizes, "map_scope": MAP_SCOPE}
    centre = name in ("bevfusion_det_c", "centerpoint_voxel0075")
    return {**sizes, "head": {"shared_channels": 8} if centre else TRANSFUSION}


def tiny_batch(batch_size: int = 2, cameras: int = 2, seed: int = 0) -> SensorBatch:
    """Points all around and noise images of cameras that look forward and backward."""
    rng = np.random.default_rng(seed)
    points = rng.uniform([-12, -12, -2, 0, 0], [12, 12, 2, 1, 0.5], (batch_size, 400, 5))
    height, width = IMAGE_SIZE
    intrinsics = np.array([[40.0, 0, width / 2], [0, 40.0, height / 2], [0, 0, 1]])
    poses = np.stack([np.eye(4)] * cameras)
    for i in range(cameras):  # camera z looks along lidar +-x, camera y down
        sign = 1.0 if i % 2 == 0 else -1.0
        poses[i, :3, :3] = np.array([[0, 0, sign], [-sign, 0, 0], [0, -1, 0]])
    shape = (batch_size, cameras)

    def repeated(array: np.ndarray) -> torch.Tensor:
        wide = np.broadcast_to(array, (*shape, *array.shape[-2:]))
        return torch.tensor(wide.copy(), dtype=torch.float32)

    return SensorBatch(
        points=tuple(torch.tensor(cloud, dtype=torch.float32) for cloud in points),
        cameras=CameraBatch(
            images=torch.tensor(rng.normal(size=(*shape, 3, height, width)), dtype=torch.float32),
            intrinsics=repeated(intrinsics),
            camera2lidar=repeated(poses),
            image_aug=repeated(np.eye(4)),
            present=torch.ones(shape, dtype=torch.bool),
        ),
        lidar_aug=torch.eye(4).repeat(batch_size, 1, 1),
    )


def tiny_targets(batch_size: int = 2, map_classes: int = 6) -> SceneTargets:
    """A car and a pedestrian in each sample, and half the map covered by each class."""
    boxes = torch.tensor(
        [[4.0, 2.0, -1.0, 4.2, 1.9, 1.6, 0.3, 1.0, 0.0], [-5.0, 3.0, -1.0, 0.7, 0.7, 1.8, 0, 0, 0]]
    )
    masks = torch.zeros(batch_size, map_classes, 20, 20, dtype=torch.bool)
    masks[:, :, :10] = True
    labels = torch.tensor([0, 8])
    return SceneTargets((boxes,) * batch_size, (labels,) * batch_size, masks)


def check_learns_and_round_trips(name: str, arguments: dict[str, Any]) -> None:
    """Every parameter has a gradient, and a twin with the same weights predicts the same bits."""
    model: Any = create_model(name, **arguments)
    batch, targets = tiny_batch(), tiny_targets()
    torch.stack(list(model.loss(model(batch), targets).values())).sum().backward()
    for key, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), key

    torch.manual_seed(1)
    twin: Any = create_model(name, **arguments)
    twin.load_state_dict(model.state_dict())
    for mine, theirs in zip(model.eval().predict(batch), twin.eval().predict(batch), strict=True):
        for one, other in (
            (mine.map_probabilities, theirs.map_probabilities),
            (_boxes(mine), _boxes(theirs)),
        ):
            assert (one is None) == (other is None)
            assert one is None or torch.equal(one, other)


def _boxes(prediction: ScenePrediction) -> torch.Tensor | None:
    return None if prediction.detections is None else prediction.detections.boxes
