"""The loaders of any run: the same batches in the same order, however often it was killed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

from lightning.pytorch import LightningDataModule, Trainer
from lightning.pytorch.loops.progress import _ProcessedTracker
from torch.utils.data import DataLoader, Dataset

from pointlib.data import EpochSampler


class SizedDataset(Protocol):
    """A dataset with a length, whose samples are asked for by `SampleKey`."""

    def __len__(self) -> int:
        """Number of samples."""


class RunData(LightningDataModule):
    """What every data module of this package shares: loaders that resume at any batch.

    Every sample depends on (seed, epoch, index) alone and the order on (seed, epoch), so resuming needs no more than
    the number of batches done, which Lightning's loop saves. A subclass sets `_train`, `_val` (in `setup`) and
    `collate`.

    Args:
        batch_size: Training samples per batch and device.
        val_batch_size: Validation samples per batch and device.
        num_workers: Loader processes per device; 0: load in the training process.
        prefetch_factor: Batches each worker prepares ahead.
        seed: Seed of order and augmentation.
        collate: Makes a batch of samples.
    """

    def __init__(
        self,
        batch_size: int,
        val_batch_size: int,
        num_workers: int,
        prefetch_factor: int,
        seed: int,
        collate: Callable[[Sequence[Any]], Any],
    ) -> None:
        super().__init__()
        self.batch_size = batch_size
        self.val_batch_size = val_batch_size
        self.num_workers = num_workers
        self.prefetch_factor = prefetch_factor
        self.seed = seed
        self._collate = collate
        self._train: SizedDataset | None = None
        self._val: SizedDataset | None = None
        self._sampler: EpochSampler | None = None
        self._saved_order: dict[str, Any] | None = None

    def num_train_batches(self) -> int:
        """Batches per epoch on each device."""
        return len(self._train_sampler())

    def _train_sampler(self) -> EpochSampler:
        assert self._train is not None and self.trainer is not None
        return EpochSampler(
            len(self._train),
            self.batch_size,
            shuffle=True,
            seed=self.seed,
            rank=self.trainer.global_rank,
            world_size=self.trainer.world_size,
            drop_last=True,
        )

    def train_dataloader(self) -> DataLoader[Any]:
        """Batches of the epoch in progress, from the first one that has not been trained on."""
        assert self._train is not None and self.trainer is not None
        sampler = self._train_sampler()
        epoch, batches_done = training_position(self.trainer)
        sampler.set_epoch(epoch)
        if batches_done:
            place = {**(self._saved_order or sampler.state_dict(0)), "epoch": epoch}
            sampler.load_state_dict({**place, "batch": batches_done})
        self._sampler = sampler
        return self._loader(self._train, sampler)

    def state_dict(self) -> dict[str, Any]:
        """The order of samples, so that a run does not go on in the middle of another order."""
        return self._sampler.state_dict(0) if self._sampler is not None else {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Remembers the order; `train_dataloader` compares it when it starts inside an epoch."""
        self._saved_order = state_dict

    def set_epoch(self, epoch: int) -> None:
        """Chooses the epoch of the training batches that are asked for next."""
        assert self._sampler is not None
        self._sampler.set_epoch(epoch)

    def val_dataloader(self) -> DataLoader[Any]:
        """All validation samples, each exactly once over all processes."""
        assert self._val is not None and self.trainer is not None
        sampler = EpochSampler(
            len(self._val),
            self.val_batch_size,
            shuffle=False,
            rank=self.trainer.global_rank,
            world_size=self.trainer.world_size,
        )
        return self._loader(self._val, sampler)

    def _loader(self, dataset: SizedDataset, sampler: EpochSampler) -> DataLoader[Any]:
        assert isinstance(dataset, Dataset)
        return ResumableLoader(
            dataset,
            batch_sampler=sampler,
            collate_fn=self._collate,
            num_workers=self.num_workers,
            prefetch_factor=self.prefetch_factor if self.num_workers else None,
            persistent_workers=self.num_workers > 0,
            pin_memory=self.trainer is not None
            and self.trainer.strategy.root_device.type == "cuda",
        )


class ResumableLoader(DataLoader[Any]):
    """Tells Lightning that a break inside an epoch is no problem: its sampler starts where training stopped."""

    def state_dict(self) -> dict[str, int]:
        """Nothing: the position is in the loop's own counters."""
        return {}

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        """Nothing: see `training_position`."""


def training_position(trainer: Trainer) -> tuple[int, int]:
    """Epoch in progress and its batches already trained on, as restored from a checkpoint (else 0, 0)."""
    progress = trainer.fit_loop.epoch_progress.current
    batches = trainer.fit_loop.epoch_loop.batch_progress.current
    assert isinstance(progress, _ProcessedTracker)
    assert isinstance(batches, _ProcessedTracker)
    inside_epoch = progress.started > progress.processed
    return progress.processed, batches.processed if inside_epoch else 0
