"""A trained network as a function of raw points, fed exactly as in evaluation."""

from __future__ import annotations

import os
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from pointlib.data import PointCloudSample, VoxelizeSegmentation, collate_segmentation
from pointlib.models.checkpoint import CheckpointInfo, build_network, read_checkpoint
from pointlib.ops import best_device


class Prediction(NamedTuple):
    """What a predictor says about N points.

    Attributes:
        labels: (N,) uint8 train ids: indices into `Predictor.class_names`.
        probabilities: (N, num_classes) float32 softmax probabilities, or None when not asked for.
    """

    labels: npt.NDArray[np.uint8]
    probabilities: npt.NDArray[np.float32] | None


class Predictor:
    """Labels every point of a cloud.

    Attributes:
        info: What the checkpoint says about the network.
        device: Where the network runs.
    """

    def __init__(
        self, network: nn.Module, info: CheckpointInfo, device: torch.device | str = "cpu"
    ) -> None:
        """Takes a network in evaluation mode and moves it to `device`."""
        self.info = info
        self.device = torch.device(device)
        self.network = network.to(self.device).eval()
        self._voxelize = VoxelizeSegmentation(info.voxel_size, max_voxels=None)
        self._raw_ids = np.asarray(info.raw_ids, dtype=np.uint16)
        self._columns = 5 if info.feed.get("num_frames", 1) > 1 else 4

    @property
    def class_names(self) -> tuple[str, ...]:
        """Name of each train id."""
        return tuple(self.info.class_names)

    @torch.inference_mode()
    def __call__(
        self, points: npt.NDArray[np.float32] | Tensor, return_probabilities: bool = False
    ) -> Prediction:
        """Predicts one cloud.

        Args:
            points: (N, 4 or more) x, y, z in metres in the LiDAR frame, intensity 0..1 (nuScenes and PandaSet store
                0..255: divide); then, for a network that joins several clouds, the time before the newest in seconds;
                further columns are ignored.
            return_probabilities: Whether to return the probability of every class.

        Returns:
            The prediction, in the order of `points`; empty for no points.

        Raises:
            ValueError: The shape is wrong or a coordinate is not finite.
        """
        cloud = _as_cloud(points, self._columns)
        if len(cloud) == 0:
            empty = np.zeros((0, len(self.class_names)), dtype=np.float32)
            return Prediction(np.zeros(0, np.uint8), empty if return_probabilities else None)
        sample = PointCloudSample(cloud, path="<points>")
        voxels = self._voxelize(sample, np.random.default_rng(0))
        batch = collate_segmentation([voxels]).to(self.device)
        logits = self.network(batch.voxels).float()
        labels = logits.argmax(1).to(torch.uint8)[batch.inverse].cpu().numpy()
        if not return_probabilities:
            return Prediction(labels, None)
        return Prediction(labels, logits.softmax(1)[batch.inverse].cpu().numpy())

    def raw_ids(self, labels: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint16]:
        """Raw data-set ids of train ids, as .label files hold them: (N,) uint8 to (N,) uint16."""
        return self._raw_ids[labels]


def load_predictor(
    checkpoint: str | os.PathLike[str], device: torch.device | str = "auto"
) -> Predictor:
    """Loads a trained model for use; nothing in the file is executed.

    Args:
        checkpoint: A checkpoint of tools/train.py, or the folder of a run (its best, else its last checkpoint).
        device: "auto" (the best that the operators run on), or a torch device.

    Returns:
        The predictor: `predictor(points)` gives a label for every point.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is not a checkpoint of pointlib, or not of a network that labels points.
    """
    if device == "auto":
        device = best_device()
    loaded = read_checkpoint(checkpoint)
    if loaded.info.task != "segmentation":
        raise ValueError(
            f"load_predictor: checkpoint must be of a network that labels points, got {loaded.info.describe()} of task "
            f"{loaded.info.task} in {loaded.path}; tools/evaluate.py predicts boxes and maps"
        )
    return Predictor(build_network(loaded), loaded.info, device)


def _as_cloud(points: npt.NDArray[np.float32] | Tensor, columns: int) -> npt.NDArray[np.float32]:
    """Returns (N, columns) float32."""
    array = points.detach().cpu().numpy() if isinstance(points, Tensor) else np.asarray(points)
    if array.ndim != 2 or array.shape[1] < columns or not np.issubdtype(array.dtype, np.floating):
        names, missing = (
            ("x, y, z, intensity", "intensities")
            if columns == 4
            else ("x, y, z, intensity, time", "times, zeros for a cloud alone,")
        )
        raise ValueError(
            f"Predictor: points must be floating (N, {columns} or more) {names}, got "
            f"{array.shape} {array.dtype}; add a column of {missing} if there is none"
        )
    return np.ascontiguousarray(array[:, :columns], dtype=np.float32)
