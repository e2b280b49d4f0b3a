"""What a segmentation run reads: scans of a data set, augmented, voxelized and batched."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any, Literal

from pointlib.data import (
    LabelMap,
    SegmentationDataset,
    VoxelizeSegmentation,
    collate_segmentation,
    load_label_map,
    segmentation_transforms,
)
from pointlib.data.nuscenes_lidarseg import FrameKind
from pointlib.data.pandaset_sequence import Sensor
from pointlib.engine.run_data import RunData
from pointlib.engine.segmentation_sources import (
    LabelledScans,
    ScanDatasetName,
    dataset_keys,
    open_scans,
    scan_traits,
)
from pointlib.metrics.segmentation import AbsentRule


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
    """Scans of a data set, augmented, voxelized and batched."""

    def __init__(
        self,
        dataset: ScanDatasetName = "semantic_kitti",
        root: str = "data/semantic_kitti",
        train_split: str | list[str] = "train",
        val_split: str | list[str] = "val",
        label_map: str | None = None,
        unknown_labels: Literal["raise", "ignore"] | None = None,
        version: str | None = None,
        num_frames: int | None = None,
        frames: FrameKind | None = None,
        sensor: Sensor | None = None,
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
            dataset: "semantic_kitti", or anything in its layout; "nuscenes"; "pandaset".
            root: Its folder: the one that holds sequences/00, 01, ...; samples, sweeps and lidarseg; or 001, 002, ...
            train_split: Name of a split ("train"; of v1.0-mini "mini_train"), or a list of sequences (not of
                nuScenes).
            val_split: The same ("val", "mini_val").
            label_map: A YAML file, or "official" (SemanticKITTI's), "spvnas" (its looser one), "nuscenes_lidarseg",
                "pandaset"; null: the dataset's own.
            unknown_labels: SemanticKITTI only: what a raw label id that the map lacks does, "raise" (null) or "ignore".
            version: nuScenes only: the folder of its tables; null: v1.0-trainval.
            num_frames: nuScenes only: clouds a scan, the key frame's and those before it; null: 1. With more, every
                point has its time as a fifth channel, and `model.network_args.in_channels` is 5.
            frames: nuScenes only: what the clouds before it are, "sweeps" (null), 0.05 s apart, or "key_frames", 0.5 s.
            sensor: PandaSet only: "pandar64" (null), "pandargt" or "both".
            on_bad_sample: What a broken scan does in training: "raise" stops with its path, "skip" replaces and
                counts it.
            voxel_size: Voxel edge in metres.
            max_voxels: Largest number of voxels of a training scan; more are thinned at random. null: no limit.
            augment: Random changes of training scans.
            batch_size: Training scans per batch and device.
            val_batch_size: Validation scans per batch and device.
            num_workers: Loader processes per device; 0: load in the training process.
            prefetch_factor: Batches each worker prepares ahead.
            frame_stride: Use every n-th training scan of each sequence; of nuScenes, of the split.
            seed: Seed of order and augmentation.

        Raises:
            ValueError: A key belongs to another dataset, or there is no such label map.
        """
        super().__init__(
            batch_size, val_batch_size, num_workers, prefetch_factor, seed, collate_segmentation
        )
        self.dataset = dataset
        self.root = root
        self.train_split = train_split
        self.val_split = val_split
        self.label_map_name = label_map or scan_traits(dataset).label_map
        self.dataset_keys = dataset_keys(
            dataset,
            {
                "unknown_labels": unknown_labels,
                "version": version,
                "num_frames": num_frames,
                "frames": frames,
                "sensor": sensor,
            },
        )
        self.on_bad_sample: Literal["raise", "skip"] = on_bad_sample
        self.voxel_size = voxel_size
        self.max_voxels = max_voxels
        self.augment = augment
        self.frame_stride = frame_stride
        self.label_map: LabelMap = load_label_map(self.label_map_name)

    @property
    def class_names(self) -> tuple[str, ...]:
        """Name of each class."""
        return self.label_map.class_names

    @property
    def raw_ids(self) -> list[int]:
        """Raw id that is written for each class."""
        return [int(i) for i in self.label_map.raw_ids[: self.label_map.num_classes]]

    @property
    def absent(self) -> AbsentRule:
        """How the dataset's benchmark counts classes without ground truth."""
        return scan_traits(self.dataset).absent

    def feed(self) -> dict[str, Any]:
        """What a checkpoint says about how its inputs are made, beside the voxels: the dataset and its own keys."""
        return {"dataset": self.dataset, **self.dataset_keys}

    def setup(self, stage: str) -> None:
        """Lists the scans of both splits.

        Raises:
            ValueError: The network does not take the channels of the scans.
        """
        if self._train is not None:
            return
        self._check_channels()
        traits = scan_traits(self.dataset)
        transforms = segmentation_transforms(
            **dataclasses.asdict(self.augment), things=traits.things, pitch=traits.pitch
        )
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

    def _scans(self, split: str | list[str], frame_stride: int) -> LabelledScans:
        return open_scans(
            self.dataset,
            self.root,
            split,
            label_map=self.label_map_name,
            frame_stride=frame_stride,
            **self.dataset_keys,
        )

    def _check_channels(self) -> None:
        assert self.trainer is not None
        network = self.trainer.lightning_module.network
        channels = 5 if self.dataset_keys.get("num_frames", 1) > 1 else 4
        taken = getattr(network, "in_channels", channels)
        if taken != channels:
            raise ValueError(
                f"SegmentationData: the network must take {channels} channels (x, y, z, intensity"
                f"{', time' if channels == 5 else ''}), got {taken}; set model.network_args.in_channels, or "
                "data.num_frames"
            )
