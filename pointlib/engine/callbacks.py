"""What a run does beside training: time the loader against the step, save its config, average its weights."""

from __future__ import annotations

import datetime
import logging
import sys
import time
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import EarlyStopping, EMAWeightAveraging, TQDMProgressBar

from pointlib.engine.options import EarlyStoppingConfig, EmaConfig

log = logging.getLogger("pointlib")


class StepTimer(Callback):
    """Logs how long a batch was waited for and how long its step took, so that a starving loader is seen.

    `time/data_ms` and `time/step_ms` go to the logger; the progress bar shows the share of the time spent waiting
    (`data%`). Without synchronisation a CUDA step's time is that of launching it, until the next read of the loss.
    """

    def __init__(self) -> None:
        """Starts without a measurement."""
        self._ended: float | None = None
        self._started = 0.0

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """The first batch of an epoch includes starting the workers: not counted."""
        self._ended = None

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """The batch has arrived."""
        self._started = time.perf_counter()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """The step is done."""
        now = time.perf_counter()
        if self._ended is not None:
            waited, worked = self._started - self._ended, now - self._started
            values = {"time/data_ms": 1e3 * waited, "time/step_ms": 1e3 * worked}
            pl_module.log_dict(values, batch_size=1, rank_zero_only=True)
            share = 100.0 * waited / max(waited + worked, 1e-9)
            pl_module.log(
                "data%", share, prog_bar=True, logger=False, batch_size=1, rank_zero_only=True
            )
        self._ended = now


class LearningRateLog(Callback):
    """Logs the learning rate of each step as `lr`, and shows it in the progress bar."""

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Reads the rate the step is about to use."""
        rate = trainer.optimizers[0].param_groups[0]["lr"]
        pl_module.log("lr", rate, prog_bar=True, batch_size=1, rank_zero_only=True)


class SkippedSamples(Callback):
    """Counts the bad samples that the loader replaced, and names each once (`data.on_bad_sample: skip`)."""

    def __init__(self) -> None:
        """Starts from zero."""
        self.count = 0
        self._named: set[str] = set()

    def state_dict(self) -> dict[str, Any]:
        """The count so far."""
        return {"count": self.count}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restores the count."""
        self.count = state_dict["count"]

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Adds what this batch replaced."""
        for message in batch.skipped:
            self.count += 1
            if message not in self._named:
                self._named.add(message)
                log.warning("bad sample skipped: %s", message)
        if batch.skipped:
            pl_module.log("skipped_samples", float(self.count), batch_size=1, rank_zero_only=True)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """States the total."""
        if self.count:
            log.warning("%d bad samples were skipped and replaced by others", self.count)


class RunProgressBar(TQDMProgressBar):
    """Lightning's bar with the time left until the end of the run (`left`, h:mm:ss), not only of the epoch."""

    def __init__(self) -> None:
        """Refreshes with every batch on a terminal, and rarely where the output goes to a file."""
        super().__init__(refresh_rate=1 if sys.stdout.isatty() else 50)
        self._started = 0.0
        self._batches_before = 0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Starts the clock; batches of an earlier process of the run do not count."""
        super().on_train_start(trainer, pl_module)
        self._started = time.monotonic()
        self._batches_before = self._batches_done(trainer)

    def get_metrics(
        self, trainer: Trainer, pl_module: LightningModule
    ) -> dict[str, int | str | float | dict[str, float]]:
        """What stands at the end of the bar."""
        items = super().get_metrics(trainer, pl_module)
        items.pop("v_num", None)
        done = self._batches_done(trainer)
        fresh = done - self._batches_before
        if trainer.training and fresh > 0 and trainer.max_epochs:
            left = trainer.max_epochs * int(trainer.num_training_batches) - done
            seconds = int(max(left, 0) * (time.monotonic() - self._started) / fresh)
            items["left"] = str(datetime.timedelta(seconds=seconds))
        return items

    @staticmethod
    def _batches_done(trainer: Trainer) -> int:
        return trainer.fit_loop.epoch_loop.batch_progress.total.ready


def build_ema(config: EmaConfig) -> EMAWeightAveraging | None:
    """Lightning's averaging of weights and batch-norm statistics, or None when switched off."""
    if config.decay is None:
        return None
    if not 0.0 < config.decay < 1.0:
        raise ValueError(f"build_ema: ema.decay must lie in (0, 1) or be null, got {config.decay}")
    return EMAWeightAveraging(
        decay=config.decay, use_buffers=True, update_starting_at_step=config.start_step
    )


def build_early_stopping(config: EarlyStoppingConfig) -> EarlyStopping | None:
    """Lightning's early stopping, or None when switched off."""
    if config.patience is None:
        return None
    return EarlyStopping(
        monitor=config.monitor,
        mode=config.mode,
        patience=config.patience,
        min_delta=config.min_delta,
    )
