"""The loaders of a segmentation run: the same batches in the same order, however often it was killed."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any, Literal

from lightning.pytorch import LightningDataModule, Trainer
from lightning.pytorch.loops.progress import _ProcessedTracker
from torch.utils.data import DataLoader

from pointlib.data import (
    EpochSampler,
    LabelMap,
    SegmentationDataset,
    SemanticKITTI,
    VoxelizeSegmentation,
    VoxelSample,
    collate_segmentation,
    load_label_map,
    segmentation_transforms,
)


@dataclass(frozen=True)
class AugmentConfig:
    """Random changes of training scans; the defaults are SPVNAS' published ones.

    Attributes:
        rotation: Turn about z by an angle from U(0, rotation), radians.
        scale: Scale by a factor from U(1 - scale, 1 + scale).
        flip: Probability of mirroring x, and of mirroring y.
        jitter: Standard deviation of each point's own shift in metres.
        translation: Standard deviation of the scan's shift on each axis in metres.
        drop: Largest share of points left out.
        polar_mix: Probability of PolarMix with another scan.
        laser_mix: Probability of LaserMix with another scan.
    """

    rotation: float = 2 * math.pi
    scale: float = 0.05
    flip: float = 0.0
    jitter: float = 0.0
    translation: float = 0.0
    drop: float = 0.0
    polar_mix: float = 0.0
    laser_mix: float = 0.0


PUBLISHED_AUGMENTATION = AugmentConfig()


class SegmentationData(LightningDataModule):
    """Scans of a data set in SemanticKITTI's layout, augmented, voxelized and batched.

    Every sample depends on (seed, epoch, index) alone and the order on (seed, epoch), so resuming needs no more
    than the number of batches done, which Lightning's loop saves.
    """

    def __init__(
        self,
        root: str = "data/semantic_kitti",
        train_split: str | list[str] = "train",
        val_split: str | list[str] = "val",
        label_map: str = "official",
        unknown_labels: Literal["raise", "ignore"] = "raise",
        on_bad_sample: Literal["raise", "skip"] = "raise",
        voxel_size: float = 0.05,
        max_voxels: int | None = 80_000,
        augment: AugmentConfig = PUBLISHED_AUGMENTATION,
        batch_size: int = 2,
        val_batch_size: int = 1,
        num_workers: int = 4,
        prefetch_factor: int = 4,
        frame_stride: int = 1,
        seed: int = 0,
    ) -> None:
        """Remembers what to load; reads nothing yet.

        Args:
            root: Folder that holds sequences/00, 01, ...
            train_split: "train" or a list of sequences.
            val_split: "val" or a list of sequences.
            label_map: "official" (the benchmark's), "spvnas" (its looser one) or a YAML file.
            unknown_labels: What a raw label id that the map lacks does: "raise" or "ignore".
            on_bad_sample: What a broken scan does in training: "raise" stops with its path, "skip" replaces and
                counts it.
            voxel_size: Voxel edge in metres.
            max_voxels: Largest number of voxels of a training scan; more are thinned at random. null: no limit.
            augment: Random changes of training scans.
            batch_size: Training scans per batch and device.
            val_batch_size: Validation scans per batch and device.
            num_workers: Loader processes per device; 0: load in the training process.
            prefetch_factor: Batches each worker prepares ahead.
            frame_stride: Use every n-th training scan of each sequence.
            seed: Seed of order and augmentation.
        """
        super().__init__()
        self.root = root
        self.train_split = train_split
        self.val_split = val_split
        self.label_map_name = label_map
        self.unknown_labels: Literal["raise", "ignore"] = unknown_labels
        self.on_bad_sample: Literal["raise", "skip"] = on_bad_sample
        self.voxel_size = voxel_size
        self.max_voxels = max_voxels
        self.augment = augment
        self.batch_size = batch_size
        self.val_batch_size = val_batch_size
        self.num_workers = num_workers
        self.prefetch_factor = prefetch_factor
        self.frame_stride = frame_stride
        self.seed = seed
        self.label_map: LabelMap = load_label_map(label_map)
        self._train: SegmentationDataset | None = None
        self._val: SegmentationDataset | None = None
        self._sampler: EpochSampler | None = None
        self._saved_order: dict[str, Any] | None = None

    @property
    def class_names(self) -> tuple[str, ...]:
        """Name of each class."""
        return self.label_map.class_names

    @property
    def raw_ids(self) -> list[int]:
        """Raw id that is written for each class."""
        return [int(i) for i in self.label_map.raw_ids[: self.label_map.num_classes]]

    def setup(self, stage: str) -> None:
        """Lists the scans of both splits."""
        if self._train is not None:
            return
        transforms = segmentation_transforms(**dataclasses.asdict(self.augment))
        self._train = SegmentationDataset(
            self._scans(self.train_split, self.frame_stride),
            VoxelizeSegmentation(self.voxel_size, self.max_voxels),
            transforms,
            seed=self.seed,
            on_bad_sample=self.on_bad_sample,
        )
        self._val = SegmentationDataset(
            self._scans(self.val_split, 1), VoxelizeSegmentation(self.voxel_size, None)
        )

    def _scans(self, split: str | list[str], frame_stride: int) -> SemanticKITTI:
        return SemanticKITTI(
            self.root,
            split,
            label_map=self.label_map_name,
            unknown_labels=self.unknown_labels,
            frame_stride=frame_stride,
        )

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

    def train_dataloader(self) -> DataLoader[VoxelSample]:
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

    def val_dataloader(self) -> DataLoader[VoxelSample]:
        """All validation scans, each exactly once over all processes."""
        assert self._val is not None and self.trainer is not None
        sampler = EpochSampler(
            len(self._val),
            self.val_batch_size,
            shuffle=False,
            rank=self.trainer.global_rank,
            world_size=self.trainer.world_size,
        )
        return self._loader(self._val, sampler)

    def _loader(
        self, dataset: SegmentationDataset, sampler: EpochSampler
    ) -> DataLoader[VoxelSample]:
        return ResumableLoader(
            dataset,
            batch_sampler=sampler,
            collate_fn=collate_segmentation,
            num_workers=self.num_workers,
            prefetch_factor=self.prefetch_factor if self.num_workers else None,
            persistent_workers=self.num_workers > 0,
            pin_memory=self.trainer is not None
            and self.trainer.strategy.root_device.type == "cuda",
        )


class ResumableLoader(DataLoader[VoxelSample]):
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
