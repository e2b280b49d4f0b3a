"""From a multi-sensor sample as recorded to the arrays a network is fed: paste, augment, crop, rasterize the map.

Everything that is random comes from one generator of (seed, epoch, index), split into one each for pasting, the
scene, the images and the order of points, so that an option of one does not change what another draws.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from pointlib.data.gt_paste import ObjectPaste
from pointlib.data.image_transforms import ImageConfig, draw_placement, normalize_image
from pointlib.data.lidar_transforms import (
    LidarAugmentConfig,
    augment_boxes,
    augment_points,
    check_range,
    crop_points,
    draw_lidar_aug,
    in_range,
)
from pointlib.data.multi_sensor import CameraImage, MultiSensorSample, MultiSensorSource
from pointlib.data.multi_sensor_batch import PreparedCameras, PreparedSample, PreparedTargets
from pointlib.data.nuscenes_map import MapGrid, rasterize_map
from pointlib.data.sample import BadSampleError
from pointlib.data.seeded_dataset import SeededDataset
from pointlib.geometry import invert


@dataclass(frozen=True)
class MultiSensorPipeline:
    """Prepares samples: `pipeline(sample, epoch, rng)`.

    Attributes:
        point_cloud_range: x, y, z minimum and maximum of the points that the network sees [m].
        training: Whether to draw random numbers, and to leave out boxes whose centre, seen from above, is out of range
            or that have less than `min_box_points` points. In evaluation nothing is random and every box stays.
        augment: Random changes of training scenes; None for none.
        image: Size, scale and random changes of the images; None to leave cameras out.
        paste: Objects of other scenes put into training scenes; None for none.
        map_grid: The map's cells; None to leave the map out.
        with_points: Whether the network has a LiDAR.
        with_targets: Whether to give boxes and map.
        min_box_points: LiDAR points of a box that training needs, by the dataset's count (`box_points`). Datasets
            leave out boxes that no sensor sees by themselves: nuScenes' count radar too, as is published.

    Raises:
        ValueError: If an option is not as above, or objects are to be pasted where cameras would not see them.
    """

    point_cloud_range: tuple[float, ...]
    training: bool
    augment: LidarAugmentConfig | None = None
    image: ImageConfig | None = None
    paste: ObjectPaste | None = None
    map_grid: MapGrid | None = None
    with_points: bool = True
    with_targets: bool = True
    min_box_points: int = 0

    def __post_init__(self) -> None:
        check_range("MultiSensorPipeline", self.point_cloud_range)
        if not self.with_points and self.image is None:
            raise ValueError(
                "MultiSensorPipeline: with_points must be true without cameras, got image None and no points: "
                "there would be nothing to see."
            )
        if not self.training and (self.augment is not None or self.paste is not None):
            raise ValueError(
                "MultiSensorPipeline: augment and paste must be None in evaluation, got one of them."
            )
        if self.paste is not None and self.image is not None:
            raise ValueError(
                "MultiSensorPipeline: paste must be None with cameras, got both: images would not show what is "
                "pasted into the cloud. The published fusion recipe trains the LiDAR branch with paste, then both "
                "without."
            )

    def __call__(
        self, sample: MultiSensorSample, epoch: int, rng: np.random.Generator
    ) -> PreparedSample:
        """Prepare one sample.

        Args:
            sample: As recorded; not changed.
            epoch: Pasting stops at one.
            rng: Source of all that is random.

        Returns:
            The sample, its points, boxes, map and matrices all in the augmented frame.

        Raises:
            BadSampleError: If no point is in range, an image is not RGB or a camera's pose not rigid.
        """
        paste_rng, scene_rng, image_rng, order_rng = rng.spawn(4)
        if self.paste is not None:
            sample = self.paste(sample, epoch, paste_rng)
        lidar_aug = np.eye(4)
        if self.augment is not None:
            lidar_aug = draw_lidar_aug(self.augment, scene_rng)
        points = None
        if self.with_points:
            points = augment_points(sample.points, lidar_aug)
            shuffle = order_rng if self.training else None
            points = crop_points(points, self.point_cloud_range, shuffle, sample.path)
        cameras = None
        if self.image is not None:
            cameras = prepare_cameras(
                sample.cameras, self.image, image_rng if self.training else None, sample.path
            )
        return PreparedSample(
            points=points,
            cameras=cameras,
            lidar_aug=lidar_aug,
            targets=self._targets(sample, lidar_aug) if self.with_targets else None,
            token=sample.token,
            path=sample.path,
            lidar2ego=sample.lidar2ego,
            ego2global=sample.ego2global,
        )

    def _targets(
        self, sample: MultiSensorSample, lidar_aug: npt.NDArray[np.float64]
    ) -> PreparedTargets:
        boxes, labels = augment_boxes(sample.boxes, lidar_aug), sample.box_labels
        if self.training:
            kept = in_range(boxes, self.point_cloud_range, bev=True)
            kept &= sample.box_points >= self.min_box_points
            boxes, labels = boxes[kept], labels[kept]
        masks = None
        if self.map_grid is not None:
            if sample.map is None:
                raise BadSampleError(
                    f"MultiSensorPipeline: {sample.path} must come with its map to rasterize map_grid, got none. "
                    "Ask the source for maps, or set map_grid to null."
                )
            masks = rasterize_map(sample.map, lidar_aug, self.map_grid)
        return PreparedTargets(boxes, labels, masks)


class MultiSensorDataset(SeededDataset[PreparedSample]):
    """Samples of a source, prepared for a network.

    Indices are `SampleKey(epoch, index)` as `EpochSampler` yields them, or plain integers; see `SeededDataset`.

    Args:
        source: Where samples come from.
        pipeline: What prepares them.
        seed: First part of every sample's seed.
        on_bad_sample: What a broken sample does: "raise" stops with its path, "skip" takes the next one in its place,
            the same in every run, and counts it. Use "raise" for evaluation.
        indices: Samples of the source to use, in this order, repeated ones allowed, each with random numbers of its
            own: `balanced_indices`. None for all.

    Raises:
        ValueError: If there is no sample, an index does not exist, or the pasted objects' classes are not the source's.
    """

    def __init__(
        self,
        source: MultiSensorSource,
        pipeline: MultiSensorPipeline,
        seed: int = 0,
        on_bad_sample: Literal["raise", "skip"] = "raise",
        indices: Sequence[int] | npt.NDArray[np.int64] | None = None,
    ) -> None:
        super().__init__(source, seed, on_bad_sample)
        self.source = source
        self.pipeline = pipeline
        self.indices = np.arange(len(source)) if indices is None else np.asarray(indices, np.int64)
        if not len(self.indices):
            raise ValueError("MultiSensorDataset: indices must hold at least one sample, got none.")
        if self.indices.min() < 0 or self.indices.max() >= len(source):
            raise ValueError(
                f"MultiSensorDataset: indices must be 0..{len(source) - 1}, got {self.indices.min()}.."
                f"{self.indices.max()}."
            )
        if pipeline.paste is not None:
            pipeline.paste.check_classes(source.class_names)

    def __len__(self) -> int:
        return len(self.indices)

    def make_sample(self, index: int, epoch: int, rng: np.random.Generator) -> PreparedSample:
        """Read and prepare one sample."""
        return self.pipeline(self.source[int(self.indices[index])], epoch, rng)

    def without_score(self, sample: PreparedSample) -> PreparedSample:
        """Return the sample, marked as not counted."""
        return dataclasses.replace(sample, counted=False)


def prepare_cameras(
    cameras: Sequence[CameraImage],
    config: ImageConfig,
    rng: np.random.Generator | None,
    path: str,
) -> PreparedCameras:
    """Cut, vary and normalise the images of one sample.

    Args:
        cameras: Each as recorded; one whose image is None comes out black and not `present`.
        config: Sizes and ranges.
        rng: Varies each camera on its own; None for evaluation.
        path: File of the sample, for messages.

    Returns:
        Images, matrices and which cameras are there.

    Raises:
        BadSampleError: If there is no camera, an image is not (H, W, 3) uint8, or a pose is not rigid.
    """
    if not cameras:
        raise BadSampleError(
            f"prepare_cameras: {path} must come with camera images, got none. Ask the source for cameras, or leave "
            "the image section out of the config."
        )
    images = np.empty((len(cameras), 3, *config.final_size), dtype=np.float32)
    image_aug = np.empty((len(cameras), 4, 4), dtype=np.float32)
    for i, camera in enumerate(cameras):
        placement = draw_placement(config, _recorded_size(camera), rng)
        if camera.image is None:
            shown = np.zeros((*config.final_size, 3), dtype=np.uint8)
        else:
            shown = placement.apply(camera.image)
        normalize_image(shown, config, images[i])
        image_aug[i] = placement.matrix()
    return PreparedCameras(
        images=images,
        intrinsics=np.stack([camera.intrinsics for camera in cameras]).astype(np.float32),
        camera2lidar=np.stack([_camera2lidar(camera) for camera in cameras]).astype(np.float32),
        image_aug=image_aug,
        present=np.array([camera.image is not None for camera in cameras]),
    )


def _recorded_size(camera: CameraImage) -> tuple[int, int]:
    """Height and width; of a missing image, as if the optical axis met its middle."""
    image = camera.image
    if image is None:
        return round(2 * camera.intrinsics[1, 2]), round(2 * camera.intrinsics[0, 2])
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or 0 in image.shape:
        raise BadSampleError(
            f"prepare_cameras: {camera.path} must be an (H, W, 3) uint8 RGB image, got {image.dtype} of shape "
            f"{image.shape}."
        )
    return image.shape[0], image.shape[1]


def _camera2lidar(camera: CameraImage) -> npt.NDArray[np.float64]:
    try:
        return invert(camera.lidar2camera)
    except ValueError as error:
        raise BadSampleError(
            f"prepare_cameras: {camera.name} of {camera.path} must have a rigid lidar2camera: {error}"
        ) from error
