"""Semantic segmentation as a Lightning module: loss, scores, optimizer. The loop around it is Lightning's."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from pointlib import __version__
from pointlib.data.sample import IGNORE_INDEX, SegmentationBatch
from pointlib.engine.options import OptimizerConfig, ScheduleConfig
from pointlib.engine.run_task import RunTask
from pointlib.engine.segmentation_data import SegmentationData
from pointlib.metrics import ConfusionMatrix, SegmentationScores
from pointlib.models.checkpoint import CheckpointInfo, load_weights, read_checkpoint

PUBLISHED_OPTIMIZER = OptimizerConfig()
PUBLISHED_SCHEDULE = ScheduleConfig()


class SegmentationTask(RunTask):
    """Trains a network that maps voxels to class logits.

    The loss is the (weighted) cross-entropy averaged over all labelled voxels of one optimizer step: of all scans of a
    batch, of all processes and of all accumulated batches. So two processes, or two accumulated batches, give the
    gradient of one batch of twice the size (up to rounding; statistics of batch norm are shared between processes
    only, with `trainer.sync_batchnorm`).
    """

    def __init__(
        self,
        network: str,
        network_args: dict[str, Any] | None = None,
        optimizer: OptimizerConfig = PUBLISHED_OPTIMIZER,
        schedule: ScheduleConfig = PUBLISHED_SCHEDULE,
        class_weights: dict[str, float] | None = None,
        init_weights: str | None = None,
        seed: int = 0,
    ) -> None:
        """Builds the network.

        Args:
            network: Registered name of the network, see `pointlib.list_models()`.
            network_args: Its keyword arguments, such as `cr` (width) and `num_classes`.
            optimizer: The optimizer.
            schedule: The learning rate over time.
            class_weights: Weight of a class in the loss, by its name; 1 for classes not named.
            init_weights: Checkpoint (or folder of a run) whose weights training starts from; null: random ones.
            seed: Seed of the random numbers drawn during training.
        """
        super().__init__(network, network_args, optimizer, schedule, seed)
        self.class_weights = dict(class_weights or {})
        self.scores: SegmentationScores | None = None
        self._confusion: ConfusionMatrix | None = None
        self._weight: Tensor | None = None
        self._window_reference = 1.0
        self._window_voxels = 0.0
        if init_weights is not None:
            load_weights(self.network, read_checkpoint(init_weights), self.describe())

    @property
    def data(self) -> SegmentationData:
        """The data module of the run."""
        data = super().data
        assert isinstance(data, SegmentationData)
        return data

    def forward(self, batch: SegmentationBatch) -> Tensor:
        """Logits (M, num_classes) of the voxels of a batch."""
        return self.network(batch.voxels)

    # -- training ---------------------------------------------------------------------------------------------------

    def on_train_batch_start(self, batch: SegmentationBatch, batch_idx: int) -> None:
        """Seeds what the step draws, and opens the accumulation window."""
        super().on_train_batch_start(batch, batch_idx)
        if batch_idx % self.trainer.accumulate_grad_batches == 0:
            self._window_voxels = 0.0

    def training_step(self, batch: SegmentationBatch, batch_idx: int) -> Tensor:
        """Loss of one batch, weighted so that the gradient of the optimizer step is that of a mean over voxels."""
        if batch.labels is None:
            raise ValueError(
                f"training_step: batch must have labels, got none for {', '.join(batch.paths)}; "
                "train on a split with label files"
            )
        logits = self(batch)
        weight = self._loss_weight(logits.shape[1])
        loss_sum = F.cross_entropy(
            logits.float(), batch.labels, weight, ignore_index=IGNORE_INDEX, reduction="sum"
        )
        labelled = batch.labels[batch.labels != IGNORE_INDEX]
        labelled = weight[labelled].sum()
        total_loss, voxels = self.sum_over_processes(loss_sum, labelled)
        if not math.isfinite(total_loss):
            self.raise_non_finite(total_loss, loss_sum, batch.paths, batch_idx)
        voxels = max(voxels, 1.0)
        if self._window_voxels == 0.0:
            self._window_reference = voxels
        self._window_voxels += voxels
        self.log(
            "train/loss",
            total_loss / voxels,
            prog_bar=True,
            batch_size=len(batch),
            rank_zero_only=True,
        )
        return loss_sum * (self.trainer.world_size / self._window_reference)

    def _loss_weight(self, num_classes: int) -> Tensor:
        """(num_classes,) float32 weight of each class."""
        if self._weight is None:
            names = list(self.data.class_names)
            if len(names) != num_classes:
                raise ValueError(
                    f"training_step: network must have {len(names)} classes, as the label map, got "
                    f"{num_classes}; set model.network_args.num_classes"
                )
            weight = torch.ones(num_classes, device=self.device)
            for name, value in self.class_weights.items():
                if name not in names or value < 0:
                    raise ValueError(
                        f"training_step: class_weights must map class names to weights >= 0, got {name!r}: {value}; "
                        f"the classes are {', '.join(names)}"
                    )
                weight[names.index(name)] = value
            self._weight = weight
        return self._weight

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Turns the accumulated gradient into that of the mean over all voxels of the window.

        Each batch was divided by the first batch's voxels and by the number of batches per step (Lightning's part).
        """
        factor = self.trainer.accumulate_grad_batches * self._window_reference / self._window_voxels
        if factor != 1.0:
            for parameter in self.network.parameters():
                if parameter.grad is not None:
                    parameter.grad.mul_(factor)

    # -- validation -------------------------------------------------------------------------------------------------

    def on_validation_epoch_start(self) -> None:
        """Starts counting."""
        names = self.data.class_names
        self._confusion = ConfusionMatrix(len(names), IGNORE_INDEX, names, self.device)

    def validation_step(self, batch: SegmentationBatch, batch_idx: int) -> None:
        """Counts the prediction of every raw point."""
        if batch.point_labels is None:
            raise ValueError(
                f"validation_step: batch must have labels, got none for {', '.join(batch.paths)}"
            )
        assert self._confusion is not None
        voxel_class = self(batch).argmax(dim=1)
        point_class = voxel_class[batch.inverse.clamp_min(0)]
        point_class = point_class.masked_fill(batch.inverse < 0, IGNORE_INDEX)
        self._confusion.update(point_class, batch.point_labels)

    def on_validation_epoch_end(self) -> None:
        """Logs mIoU, accuracy and the IoU of each class, over all processes."""
        assert self._confusion is not None
        self.scores = self._confusion.summed_over_processes().compute(self.data.absent)
        self._confusion = None
        values = {
            "val/miou": self.scores.miou,
            "val/miou_present": self.scores.miou_present,
            "val/accuracy": self.scores.accuracy,
        }
        self.log_dict(values, rank_zero_only=False)
        self.log("miou", self.scores.miou, prog_bar=True, logger=False)
        names = self.scores.class_names
        self.log_dict(
            {f"iou/{name}": float(v) for name, v in zip(names, self.scores.iou, strict=True)}
        )
        if not self.trainer.sanity_checking:
            self.print(
                f"\nvalidation after epoch {self.current_epoch}\n{self.scores.table(present_only=True)}"
            )

    # -- checkpoints ------------------------------------------------------------------------------------------------

    def checkpoint_info(self) -> CheckpointInfo:
        """The network, its voxels and its classes."""
        data = self.data
        return CheckpointInfo(
            network=self.network_name,
            network_args=self.network_args,
            voxel_size=float(data.voxel_size),
            class_names=list(data.class_names),
            raw_ids=list(data.raw_ids),
            config=self.run_config,
            version=__version__,
            feed=data.feed(),
        )
