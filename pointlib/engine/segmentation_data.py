"""What a segmentation run reads: scans of a data set, augmented, voxelized and batched."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Literal

from pointlib.data import (
    LabelMap,
    SegmentationDataset,
    SemanticKITTI,
    VoxelizeSegmentation,
    collate_segmentation,
    load_label_map,
    segmentation_transforms,
)
from pointlib.engine.run_data import RunData


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


class SegmentationData(RunData):
    """Scans of a data set in SemanticKITTI's layout, augmented, voxelized and batched."""

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
        super().__init__(
            batch_size, val_batch_size, num_workers, prefetch_factor, seed, collate_segmentation
        )
        self.root = root
        self.train_split = train_split
        self.val_split = val_split
        self.label_map_name = label_map
        self.unknown_labels: Literal["raise", "ignore"] = unknown_labels
        self.on_bad_sample: Literal["raise", "skip"] = on_bad_sample
        self.voxel_size = voxel_size
        self.max_voxels = max_voxels
        self.augment = augment
        self.frame_stride = frame_stride
        self.label_map: LabelMap = load_label_map(label_map)

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
