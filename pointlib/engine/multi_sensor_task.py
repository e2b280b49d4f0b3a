"""Detection and map segmentation as a Lightning module: losses, scores. The loop around it is Lightning's."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.distributed
from torch import Tensor, nn

from pointlib import __version__
from pointlib.data.multi_sensor_batch import MultiSensorBatch
from pointlib.engine.multi_sensor_data import MultiSensorData
from pointlib.engine.multi_sensor_scores import SceneScorer, SceneScores
from pointlib.engine.options import OptimizerConfig, ScheduleConfig
from pointlib.engine.run_task import RunTask
from pointlib.engine.sensor_dropout import SensorDropout
from pointlib.models.checkpoint import CheckpointInfo
from pointlib.models.pretrained import load_image_backbone
from pointlib.models.weight_transfer import WeightSource, transfer_weights
from pointlib.sensors import ScenePrediction

PUBLISHED_OPTIMIZER = OptimizerConfig("adamw", lr=1e-4, lr_batch_size=32, weight_decay=0.01)
PUBLISHED_SCHEDULE = ScheduleConfig("one_cycle", warmup_fraction=0.4)
NO_DROPOUT = SensorDropout()


class MultiSensorTask(RunTask):
    """Trains a network that finds boxes and maps in what several sensors saw.

    The loss is the weighted sum of the network's named losses, each normalised by the network over its batch; over
    processes and accumulated batches it is averaged.
    """

    def __init__(
        self,
        network: str,
        network_args: dict[str, Any] | None = None,
        optimizer: OptimizerConfig = PUBLISHED_OPTIMIZER,
        schedule: ScheduleConfig = PUBLISHED_SCHEDULE,
        loss_weights: dict[str, float] | None = None,
        sensor_dropout: SensorDropout = NO_DROPOUT,
        init_weights: list[WeightSource] | None = None,
        image_weights: str | None = None,
        batch_norm_momentum: float | None = None,
        seed: int = 0,
    ) -> None:
        """Builds the network.

        Args:
            network: Registered name of the network, see `pointlib.list_models()`.
            network_args: Its keyword arguments, such as `voxel_size` and `class_names`.
            optimizer: The optimizer.
            schedule: The learning rate over time.
            loss_weights: Factor on the losses whose names begin with a prefix, as `{map/: 0.5}`; 1 for others.
            sensor_dropout: How often a training sample loses a sensor.
            init_weights: Weights training starts from, such as those of a LiDAR network; the later ones win.
            image_weights: File with weights of the image backbone: ImageNet's or nuImages'.
            batch_norm_momentum: Weight of a batch in the running statistics of all batch norms; null: as published,
                0.01 in most. A run of less than a thousand steps needs more, such as 0.1, or evaluation normalises by
                statistics of the first steps.
            seed: Seed of the random numbers drawn during training.
        """
        super().__init__(network, network_args, optimizer, schedule, seed)
        self.loss_weights = dict(loss_weights or {})
        self.sensor_dropout = sensor_dropout
        self.scores: SceneScores | None = None
        self._scorer: SceneScorer | None = None
        self._val_losses: list[Tensor] = []
        for module in self.network.modules() if batch_norm_momentum is not None else ():
            if isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d)):
                module.momentum = batch_norm_momentum
        for source in init_weights or []:
            transfer_weights(self.network, source)
        if image_weights is not None:
            load_image_backbone(image_backbone(self.network), image_weights)

    @property
    def data(self) -> MultiSensorData:
        """The data module of the run."""
        data = super().data
        assert isinstance(data, MultiSensorData)
        return data

    def forward(self, batch: MultiSensorBatch) -> dict[str, Any]:
        """Outputs of the network's heads."""
        outputs: dict[str, Any] = self.network(batch.sensors)
        return outputs

    # -- training ---------------------------------------------------------------------------------------------------

    def training_step(self, batch: MultiSensorBatch, batch_idx: int) -> Tensor:
        """Weighted sum of the losses of one batch."""
        outputs = self.network(self.sensor_dropout(batch.sensors))
        total = self._total_loss(outputs, batch, "train")
        (over_all,) = self.sum_over_processes(total)
        if not math.isfinite(over_all):
            self.raise_non_finite(over_all, total.detach(), batch.paths, batch_idx)
        return total

    def _total_loss(self, outputs: dict[str, Any], batch: MultiSensorBatch, stage: str) -> Tensor:
        if batch.targets is None:
            raise ValueError(
                f"{stage}: batch must have boxes or maps to learn, got none for {', '.join(batch.paths)}; use a "
                "version and split with annotations"
            )
        losses: dict[str, Tensor] = self.network.loss(outputs, batch.targets)  # type: ignore[operator]
        total = torch.stack([self._weight(name) * value for name, value in losses.items()]).sum()
        if stage == "train":
            values = {f"train/{name}": value.detach() for name, value in losses.items()}
            self.log_dict(values, batch_size=len(batch), rank_zero_only=True)
            self.log(
                "train/loss",
                total.detach(),
                prog_bar=True,
                batch_size=len(batch),
                rank_zero_only=True,
            )
        return total

    def _weight(self, name: str) -> float:
        prefixes = [prefix for prefix in self.loss_weights if name.startswith(prefix)]
        return self.loss_weights[max(prefixes, key=len)] if prefixes else 1.0

    # -- validation -------------------------------------------------------------------------------------------------

    def on_validation_epoch_start(self) -> None:
        """Starts collecting."""
        network: Any = self.network
        self._scorer = SceneScorer(
            network.class_names, network.map_classes, network.point_cloud_range
        )
        self._val_losses = []

    def validation_step(self, batch: MultiSensorBatch, batch_idx: int) -> None:
        """Collects predictions and truth of every sample."""
        network: Any = self.network
        assert self._scorer is not None
        outputs = network(batch.sensors)
        self._val_losses.append(self._total_loss(outputs, batch, "val").detach())
        predictions: list[ScenePrediction] = network.decode(outputs, batch.sensors)
        self._scorer.update(batch, predictions)

    def on_validation_epoch_end(self) -> None:
        """Logs NDS, mAP, the AP of each class, and map IoU, over all processes."""
        assert self._scorer is not None
        self.scores = self._scorer.summed_over_processes().compute()
        self._scorer = None
        values = self.scores.values()
        self.log_dict({f"val/{name}": value for name, value in values.items()})
        self.log("val/loss", torch.stack(self._val_losses).mean(), sync_dist=True)
        for name in ("nds", "map_miou"):
            if name in values:
                self.log(name, values[name], prog_bar=True, logger=False)
        if not self.trainer.sanity_checking:
            self.print(f"\nvalidation after epoch {self.current_epoch}\n{self.scores.table()}")

    # -- checkpoints ------------------------------------------------------------------------------------------------

    def checkpoint_info(self) -> CheckpointInfo:
        """The network, its classes and what its inputs are made with."""
        network: Any = self.network
        return CheckpointInfo(
            network=self.network_name,
            network_args=self.network_args,
            voxel_size=float(network.voxel_size[0]),
            class_names=list(network.class_names),
            raw_ids=[],
            config=self.run_config,
            version=__version__,
            task="multi_sensor",
            map_classes=list(network.map_classes),
            feed=self.data.feed(),
        )


def image_backbone(network: Any) -> Any:
    """The backbone of a network's cameras.

    Raises:
        ValueError: It has no cameras.
    """
    if "camera" not in network.encoders:
        raise ValueError(
            "image_backbone: model.image_weights must be null for a network without cameras"
        )
    return network.encoders["camera"]["backbone"]
