"""What every kind of training shares: the network, its optimizer, seeds, the guard against losses that are no numbers.

A subclass computes the loss and the scores; the loop around it is Lightning's.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.distributed
from lightning.pytorch import LightningModule
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor

from pointlib.engine.optimization import (
    build_optimizer,
    build_schedule,
    parameter_groups,
    scaled_lr,
)
from pointlib.engine.options import OptimizerConfig, ScheduleConfig
from pointlib.engine.run_data import RunData
from pointlib.models import create_model
from pointlib.models.checkpoint import ENTRY, CheckpointInfo


class NonFiniteLossError(RuntimeError):
    """The loss is NaN or infinite; training cannot go on."""


class RunTask(LightningModule, ABC):
    """A network in training. Random numbers of a step (dropout) come from a generator seeded by (seed, epoch, batch,
    process), so a resumed run draws the same ones.

    Args:
        network: Registered name of the network.
        network_args: Its keyword arguments.
        optimizer: The optimizer.
        schedule: The learning rate over time.
        seed: Seed of the random numbers drawn during training.
    """

    def __init__(
        self,
        network: str,
        network_args: dict[str, Any] | None,
        optimizer: OptimizerConfig,
        schedule: ScheduleConfig,
        seed: int,
    ) -> None:
        super().__init__()
        self.network_name = network
        self.network_args = dict(network_args or {})
        self.network = create_model(network, **self.network_args)
        self.optimizer_config = optimizer
        self.schedule_config = schedule
        self.seed = seed
        self.run_config: dict[str, Any] = {}

    def describe(self) -> str:
        """The network with its arguments, as in a call."""
        return CheckpointInfo(self.network_name, self.network_args, 0.0, [], []).describe()

    @property
    def data(self) -> RunData:
        """The data module of the run."""
        data: RunData = self.trainer.datamodule  # type: ignore[attr-defined]
        return data

    @abstractmethod
    def checkpoint_info(self) -> CheckpointInfo:
        """What a checkpoint says about the network and how to feed it."""

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """The optimizer, with its schedule stepped after each optimizer step."""
        data, trainer = self.data, self.trainer
        scans = data.batch_size * trainer.accumulate_grad_batches * trainer.world_size
        batches = data.num_train_batches()
        limit = trainer.limit_train_batches
        used = min(batches, limit) if isinstance(limit, int) else int(batches * limit)
        steps = math.ceil(used / trainer.accumulate_grad_batches) * (trainer.max_epochs or 1)
        groups = parameter_groups(self.network, self.optimizer_config, scans)
        optimizer = build_optimizer(groups, self.optimizer_config, scans)
        schedule = build_schedule(optimizer, self.schedule_config, steps)
        self.print(
            f"learning rate {scaled_lr(self.optimizer_config, scans):.6g} for {scans} scans per optimizer step, "
            f"{steps} steps"
        )
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": schedule, "interval": "step", "frequency": 1},
        }

    def on_train_epoch_start(self) -> None:
        """Tells the sampler the epoch: Lightning does so for samplers only, not for batch samplers."""
        self.data.set_epoch(self.current_epoch)

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Seeds what the step draws."""
        key = [self.seed, self.current_epoch, batch_idx, self.global_rank]
        seed = int(np.random.SeedSequence(key).generate_state(1, np.uint64)[0])
        torch.manual_seed(seed)

    @staticmethod
    def sum_over_processes(*values: Tensor) -> list[float]:
        """Sums of scalars over all processes, in float64."""
        totals = torch.stack([value.detach().double() for value in values])
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            torch.distributed.all_reduce(totals)
        summed: list[float] = totals.tolist()
        return summed

    def raise_non_finite(
        self, total: float, mine: Tensor, paths: Sequence[str], batch_idx: int
    ) -> None:
        """Stops training, naming the step and the samples of the processes whose own loss is not finite."""
        named: list[str] = [] if torch.isfinite(mine) else list(paths)
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            gathered: list[Any] = [None] * self.trainer.world_size
            torch.distributed.all_gather_object(gathered, named)
            named = [path for part in gathered for path in part]
        raise NonFiniteLossError(
            f"training_step: loss must be finite, got {total} at optimizer step {self.global_step} (epoch "
            f"{self.current_epoch}, batch {batch_idx}) on {', '.join(named)}. Lower model.optimizer.lr, set "
            "trainer.gradient_clip_val, or look at these scans. Checkpoints saved before are intact."
        )

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Adds what is needed to rebuild and feed the network."""
        checkpoint[ENTRY] = self.checkpoint_info().as_dict()
