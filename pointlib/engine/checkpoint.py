"""Saving a run so that it survives any kill: whole files or none, at points from which training continues exactly.

A checkpoint is taken only where nothing is half done: after an optimizer step inside an epoch, or after an epoch
with its validation. Position in the data, schedule, optimizer, loss scale and averaged weights are in it;
randomness needs no state, since every batch and sample seeds its own (see `SegmentationTask` and
`SegmentationData`).
"""

from __future__ import annotations

import io
import math
import time
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint

from pointlib.engine.options import CheckpointConfig
from pointlib.files import write_file

LAST = "last.ckpt"
BEST = "best.ckpt"


class CheckpointSaveError(OSError):
    """A checkpoint could not be written; the earlier one is intact."""


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes checkpoints whole or not at all, and reads them without executing anything."""

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None
    ) -> None:
        """Writes one checkpoint file.

        Raises:
            CheckpointSaveError: The disk is full or the folder is not writable.
        """
        buffer = io.BytesIO()
        torch.save(checkpoint, buffer)
        try:
            write_file(path, buffer.getbuffer())
        except OSError as error:
            kept = (
                "the earlier checkpoint is intact" if Path(path).exists() else "there is none yet"
            )
            raise CheckpointSaveError(
                f"save_checkpoint: {path} must be writable with {buffer.tell() / 1e6:.1f} MB free, got "
                f"'{error.strerror or error}'; {kept}. Free some space and run the same command again: it resumes."
            ) from error

    def load_checkpoint(
        self, path: Any, map_location: Any = "cpu", weights_only: bool | None = True
    ) -> dict[str, Any]:
        """Reads one checkpoint file; `weights_only` is always on."""
        return torch.load(path, map_location=map_location, weights_only=True)


class RunCheckpoints(Checkpoint):
    """Keeps `last.ckpt` (to resume from) and `best.ckpt` (by score) in one folder."""

    def __init__(self, config: CheckpointConfig, folder: Path) -> None:
        """Saves into `folder` when `config` says."""
        self.config = config
        self.folder = folder
        self.best_score: float | None = None
        self._best_is_due = False
        self._seen_step = 0
        self._saved_at = 0.0

    def state_dict(self) -> dict[str, Any]:
        """The best score so far."""
        return {"best_score": self.best_score}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restores the best score so far."""
        self.best_score = state_dict["best_score"]

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Starts the clock, and removes what a process killed while saving left behind."""
        if trainer.is_global_zero:
            for leftover in self.folder.glob(".*.ckpt.*.tmp"):
                leftover.unlink(missing_ok=True)
        self._saved_at = time.monotonic()
        self._seen_step = trainer.global_step

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Saves inside an epoch, right after an optimizer step; its last batch waits for the validation."""
        step = trainer.global_step
        stepped = step != self._seen_step
        self._seen_step = step
        if stepped and not trainer.is_last_batch and self._is_due(trainer, step):
            self._save(trainer, LAST)

    def _is_due(self, trainer: Trainer, step: int) -> bool:
        if self.config.every_n_steps > 0 and step % self.config.every_n_steps == 0:
            return True
        if self.config.every_n_minutes <= 0:
            return False
        elapsed = time.monotonic() - self._saved_at >= 60.0 * self.config.every_n_minutes
        return bool(trainer.strategy.broadcast(elapsed)) if trainer.world_size > 1 else elapsed

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Notes whether the score improved; inside an epoch, saves the best checkpoint at once.

        At the end of an epoch it is saved with the epoch closed, so that a run resumed from it is exact.
        """
        value = trainer.callback_metrics.get(self.config.monitor)
        if trainer.sanity_checking or value is None or not math.isfinite(float(value)):
            return
        score = float(value)
        sign = 1.0 if self.config.mode == "max" else -1.0
        if self.best_score is not None and sign * score <= sign * self.best_score:
            return
        self.best_score = score
        if trainer.is_last_batch:
            self._best_is_due = True
        else:
            self._write(trainer, BEST)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Saves after the epoch and its validation."""
        if self._best_is_due:
            self._best_is_due = False
            self._write(trainer, BEST)
        self._save(trainer, LAST)

    def _save(self, trainer: Trainer, name: str) -> None:
        self._write(trainer, name)
        self._saved_at = time.monotonic()

    def _write(self, trainer: Trainer, name: str) -> None:
        trainer.save_checkpoint(self.folder / name)
