"""Multi-sensor datasets by name, and what a network asks of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

from pointlib.data.image_transforms import ImageConfig
from pointlib.data.multi_sensor import MultiSensorSource
from pointlib.data.nuscenes_map import MapGrid

DatasetName = Literal["nuscenes", "nuscenes_info", "pandaset", "kitti"]
MissingCameras = Literal["raise", "allow", "skip"]


@dataclass(frozen=True)
class Needs:
    """What a network is fed with and trained towards.

    Attributes:
        class_names: Classes of boxes, in the order of labels; () without a detection head.
        map_classes: Classes of the map; () without a map head.
        point_cloud_range: x, y, z from, then to [m].
        points: Whether it has a LiDAR encoder, or cameras that use points.
        image_size: Height and width of the images [pixels]; None without cameras.
        map_scope: From, to and step of the map's cells along x and y [m]; None without map.
    """

    class_names: tuple[str, ...]
    map_classes: tuple[str, ...]
    point_cloud_range: tuple[float, ...]
    points: bool
    image_size: tuple[int, int] | None
    map_scope: tuple[tuple[float, float, float], ...] | None

    @classmethod
    def of(cls, network: Any) -> Needs:
        """What a `BEVFusion` network needs."""
        return cls(
            network.class_names,
            network.map_classes,
            network.point_cloud_range,
            network.reads_points,
            network.image_size,
            network.map_scope,
        )

    def map_grid(self) -> MapGrid | None:
        """The map's cells; None without map.

        Raises:
            ValueError: The cells are not square.
        """
        if self.map_scope is None:
            return None
        (x_from, x_to, x_step), (y_from, y_to, y_step) = self.map_scope
        if x_step != y_step:
            raise ValueError(
                f"Needs.map_grid: map_scope must have square cells, got {x_step} by {y_step} m"
            )
        return MapGrid((x_from, x_to), (y_from, y_to), x_step, self.map_classes)


@dataclass(frozen=True)
class FurtherData:
    """Another dataset whose samples are joined to those of a run, in training and in validation.

    Attributes:
        dataset: "nuscenes", "nuscenes_info", "pandaset" or "kitti".
        root: Its folder; of nuscenes_info the JSON file.
        split: As of `open_source`.
        num_sweeps: Clouds a sample.
    """

    dataset: DatasetName
    root: str
    split: str | list[str] = "train"
    num_sweeps: int = 1


@dataclass(frozen=True)
class ImageAugmentConfig:
    """How images vary in training. The defaults are BEVFusion's published ones for 1600 x 900 pixels.

    Attributes:
        resize_range: Scale of training images, from U(low, high).
        test_resize: Scale in evaluation.
        rotation: Turn of training images by an angle from U(-rotation, rotation), radians.
        flip: Probability of mirroring a training image left to right.
    """

    resize_range: tuple[float, float] = (0.38, 0.55)
    test_resize: float = 0.48
    rotation: float = 0.0942478
    flip: float = 0.5

    def image_config(self, image_size: tuple[int, int]) -> ImageConfig:
        """With the size of a network's images."""
        return ImageConfig(
            image_size, self.resize_range, self.test_resize, self.rotation, self.flip
        )


def open_source(
    dataset: DatasetName,
    root: str,
    split: str | Sequence[str],
    needs: Needs,
    version: str = "v1.0-trainval",
    num_sweeps: int = 10,
    frame_stride: int = 1,
    min_points: int = 1,
    missing_cameras: MissingCameras = "raise",
) -> MultiSensorSource:
    """Open a split of a dataset, reading only what a network needs.

    Args:
        dataset: Its name.
        root: Its folder; of nuscenes_info the JSON file.
        split: One of its splits; for PandaSet also a list of sequences; for KITTI also "all"; nuscenes_info
            has none.
        needs: Classes, cameras and map.
        version: Of nuScenes.
        num_sweeps: Clouds a sample; KITTI has one.
        frame_stride: Every n-th key frame; nuScenes only.
        min_points: Returns that a box has at least.
        missing_cameras: What a missing image does: "raise", "allow" a black one, or, of PandaSet, "skip" its frame.

    Raises:
        ValueError: There is no such dataset, split or class; or it has no map, and the network asks for one.
    """
    if missing_cameras == "skip" and dataset != "pandaset":
        raise ValueError(
            f"open_source: missing_cameras must be raise or allow for {dataset}, got skip; set on_bad_sample to skip"
        )
    if dataset == "nuscenes_info":
        from pointlib.data.nuscenes_info import NuScenesInfo

        if needs.map_scope is not None:
            raise _no_map(dataset)
        return NuScenesInfo(
            root,
            num_sweeps=num_sweeps,
            cameras=needs.image_size is not None,
            min_points=min_points,
            missing_cameras="raise" if missing_cameras == "raise" else "allow",
            class_names=needs.class_names or None,
        )
    if dataset == "nuscenes":
        from pointlib.data.nuscenes import NuScenes

        if not isinstance(split, str):
            raise ValueError(
                f"open_source: split must be the name of a split of nuScenes, got {list(split)}"
            )
        return NuScenes(
            root,
            version,
            split,
            num_sweeps=num_sweeps,
            cameras=needs.image_size is not None,
            map=needs.map_scope is not None,
            min_points=min_points,
            missing_cameras="raise" if missing_cameras == "raise" else "allow",
            class_names=needs.class_names or None,
            frame_stride=frame_stride,
        )
    if dataset == "pandaset":
        from pointlib.data.pandaset import PandaSet

        if needs.map_scope is not None:
            raise _no_map(dataset)
        return PandaSet(
            root,
            split,
            sweeps=num_sweeps,
            cameras=needs.image_size is not None,
            missing_images="black" if missing_cameras == "allow" else missing_cameras,
            min_points=min_points,
        )
    if dataset == "kitti":
        from pointlib.data.kitti_object import KITTIObject

        if needs.map_scope is not None:
            raise _no_map(dataset)
        if not isinstance(split, str):
            raise ValueError(
                f"open_source: split must be the name of a split of KITTI, got {list(split)}"
            )
        return KITTIObject(
            root,
            None if split == "all" else split,
            class_names=needs.class_names,
            cameras=needs.image_size is not None,
            min_points=min_points,
        )
    raise ValueError(
        f"open_source: dataset must be one of {', '.join(get_args(DatasetName))}, got {dataset!r}"
    )


def _no_map(dataset: str) -> ValueError:
    return ValueError(
        f"open_source: dataset must have a map for a network with a map head, got {dataset!r}"
    )


def check_classes(source: MultiSensorSource, needs: Needs) -> None:
    """Refuse a source whose classes are not the network's, in the same order.

    Raises:
        ValueError: They differ; the message names the first difference.
    """
    given, trained = tuple(source.class_names), needs.class_names
    if not trained or given == trained:
        return
    first = next(
        (i for i, (a, b) in enumerate(zip(given, trained, strict=False)) if a != b),
        min(len(given), len(trained)),
    )
    raise ValueError(
        f"check_classes: the data must have the network's {len(trained)} classes in its order "
        f"({', '.join(trained)}), got {len(given)} ({', '.join(given)}); they differ from number {first} on. Set "
        "model.network_args.class_names to the data's, or use a checkpoint trained on these classes."
    )
