"""What a multi-sensor run reads: samples of a dataset, augmented and batched, as the network in training needs them."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, Literal

from pointlib.data.class_balance import balanced_indices
from pointlib.data.gt_paste import ObjectPaste, PasteConfig
from pointlib.data.joined_sources import JoinedSources
from pointlib.data.lidar_transforms import LidarAugmentConfig
from pointlib.data.multi_sensor import MultiSensorSource
from pointlib.data.multi_sensor_batch import collate_multi_sensor
from pointlib.data.multi_sensor_pipeline import MultiSensorDataset, MultiSensorPipeline
from pointlib.engine.multi_sensor_sources import (
    DatasetName,
    FurtherData,
    ImageAugmentConfig,
    MissingCameras,
    Needs,
    check_classes,
    open_source,
)
from pointlib.engine.run_data import RunData

PUBLISHED_AUGMENTATION = LidarAugmentConfig()
PUBLISHED_IMAGES = ImageAugmentConfig()


class MultiSensorData(RunData):
    """Samples of a multi-sensor dataset. Classes, range, images and map cells are those of the network in training."""

    def __init__(
        self,
        dataset: DatasetName = "nuscenes",
        root: str = "data/nuscenes",
        version: str = "v1.0-trainval",
        train_split: str | list[str] = "train",
        val_split: str | list[str] = "val",
        num_sweeps: int = 10,
        frame_stride: int = 1,
        min_box_points: int = 1,
        missing_cameras: MissingCameras = "raise",
        further: list[FurtherData] | None = None,
        keep_in_memory: bool = False,
        on_bad_sample: Literal["raise", "skip"] = "raise",
        class_balanced: bool = True,
        augment: LidarAugmentConfig = PUBLISHED_AUGMENTATION,
        image: ImageAugmentConfig = PUBLISHED_IMAGES,
        paste: PasteConfig | None = None,
        batch_size: int = 4,
        val_batch_size: int = 1,
        num_workers: int = 4,
        prefetch_factor: int = 2,
        seed: int = 0,
    ) -> None:
        """Remembers what to load; reads nothing yet.

        Args:
            dataset: "nuscenes", "nuscenes_info", "pandaset" or "kitti".
            root: Its folder; of nuscenes_info the JSON file.
            version: Of nuScenes: the folder of its tables.
            train_split: Name of a split, or for PandaSet a list of sequences.
            val_split: The same.
            num_sweeps: Clouds a sample: the key frame's and those before it.
            frame_stride: Use every n-th training key frame; nuScenes only.
            min_box_points: Returns that a box has at least, in training and in validation.
            missing_cameras: What a missing image does: "raise" stops with its path, "allow" makes it black, "skip"
                leaves out its frame (PandaSet only).
            further: Other datasets whose samples are joined to these.
            keep_in_memory: Keep each sample in every loader process once it was read: for a handful of samples.
            on_bad_sample: What a broken sample does in training: "raise" stops with its path, "skip" replaces and
                counts it.
            class_balanced: Draw training samples so that every class has the same share of them (CBGS); needs boxes.
            augment: Random changes of training scenes.
            image: Scale of the images and their random changes in training; their size is the network's.
            paste: Objects of other scenes put into training scenes, for networks without cameras; null for none.
            batch_size: Training samples per batch and device.
            val_batch_size: Validation samples per batch and device.
            num_workers: Loader processes per device; 0: load in the training process.
            prefetch_factor: Batches each worker prepares ahead.
            seed: Seed of order and augmentation.
        """
        super().__init__(
            batch_size, val_batch_size, num_workers, prefetch_factor, seed, collate_multi_sensor
        )
        self.dataset = dataset
        self.root = root
        self.version = version
        self.train_split = train_split
        self.val_split = val_split
        self.num_sweeps = num_sweeps
        self.frame_stride = frame_stride
        self.min_box_points = min_box_points
        self.missing_cameras: MissingCameras = missing_cameras
        self.further = tuple(further or ())
        self.keep_in_memory = keep_in_memory
        self.on_bad_sample: Literal["raise", "skip"] = on_bad_sample
        self.class_balanced = class_balanced
        self.augment = augment
        self.image = image
        self.paste = paste

    def feed(self) -> dict[str, Any]:
        """What a checkpoint says about how its inputs are made, beside the network's own sizes."""
        return self.describe_feed(self.dataset, self.num_sweeps, self.image.test_resize)

    @staticmethod
    def describe_feed(dataset: str, num_sweeps: int, test_resize: float) -> dict[str, Any]:
        """`feed` from plain values."""
        return {"dataset": dataset, "num_sweeps": num_sweeps, "test_resize": test_resize}

    def setup(self, stage: str) -> None:
        """Opens both splits, once the network to be trained is known."""
        if self._train is not None:
            return
        assert self.trainer is not None
        needs = Needs.of(self.trainer.lightning_module.network)
        train = self._open(self.train_split, needs, self.frame_stride)
        chosen = balanced_indices(train, self.seed) if self.class_balanced else None
        pipeline = self._pipeline(needs, training=True)
        self._train = MultiSensorDataset(train, pipeline, self.seed, self.on_bad_sample, chosen)
        self._val = MultiSensorDataset(
            self._open(self.val_split, needs, 1), self._pipeline(needs, training=False)
        )

    def _open(
        self, split: str | Sequence[str], needs: Needs, frame_stride: int
    ) -> MultiSensorSource:
        source = open_source(
            self.dataset,
            self.root,
            split,
            needs,
            version=self.version,
            num_sweeps=self.num_sweeps,
            frame_stride=frame_stride,
            min_points=self.min_box_points,
            missing_cameras=self.missing_cameras,
        )
        others = [
            open_source(
                other.dataset,
                other.root,
                other.split,
                needs,
                version=self.version,
                num_sweeps=other.num_sweeps,
                min_points=self.min_box_points,
            )
            for other in self.further
        ]
        for each in (source, *others):
            check_classes(each, needs)
        if not others and not self.keep_in_memory:
            return source
        return JoinedSources([source, *others], self.keep_in_memory)

    def _pipeline(self, needs: Needs, training: bool) -> MultiSensorPipeline:
        return make_pipeline(
            needs,
            self.image,
            augment=self.augment if training else None,
            paste=ObjectPaste.from_config(self.paste) if training and self.paste else None,
        )


def make_pipeline(
    needs: Needs,
    image: ImageAugmentConfig,
    augment: LidarAugmentConfig | None = None,
    paste: ObjectPaste | None = None,
    with_targets: bool = True,
) -> MultiSensorPipeline:
    """The pipeline that feeds a network.

    Args:
        needs: Of the network.
        image: How its images are scaled.
        augment: Random changes of the scene, which make it a pipeline for training; None for evaluation.
        paste: Objects to paste; training only.
        with_targets: Whether to give boxes and map.
    """
    pipeline = MultiSensorPipeline(
        point_cloud_range=needs.point_cloud_range,
        training=augment is not None,
        image=None if needs.image_size is None else image.image_config(needs.image_size),
        map_grid=needs.map_grid(),
        with_points=needs.points,
        with_targets=with_targets,
    )
    return dataclasses.replace(pipeline, augment=augment, paste=paste)
