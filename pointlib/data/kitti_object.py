"""KITTI's 3D object benchmark as multi-sensor samples: a cloud, the left colour image, boxes.

The tree is `{training,testing}/{velodyne,image_2,calib,label_2}/NNNNNN.*`, beside it `ImageSets/{train,val,...}.txt`
(Geiger et al., "Are we ready for autonomous driving?", CVPR 2012; the usual split is Chen et al.'s of NIPS 2015).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch.utils.data import Dataset

from pointlib.data.image_file import read_image
from pointlib.data.kitti_labels import (
    KittiCalibration,
    KittiObjects,
    boxes_to_objects,
    objects_to_boxes,
    read_object_calibration,
    read_objects,
)
from pointlib.data.multi_sensor import CameraImage, MultiSensorSample
from pointlib.data.point_cloud_io import read_bin
from pointlib.data.sample import BadSampleError
from pointlib.geometry import project_points, projection_matrix
from pointlib.ops.boxes import points_in_boxes_all

CAMERA = "image_2"
SPLITS = ("train", "val", "trainval", "test")


class KITTIObject(Dataset[MultiSensorSample]):
    """Frames of KITTI's object benchmark as a `MultiSensorSource`.

    Points are in the LiDAR frame (x forward, y left, z up), intensity is 0 to 1, the time is 0; velocities are not
    known (NaN). Objects are labelled only where the camera sees them. The benchmark says nothing about the vehicle, so
    ego and global are the LiDAR frame.

    Args:
        root: Folder that holds `training`, for the test split `testing`, and `ImageSets`.
        split: "train", "val", "trainval" or "test", whose frames `ImageSets/SPLIT.txt` lists; or None for all frames in
            `training`.
        class_names: Types that boxes are read of, in the order of the classes; all others are left out.
        cameras: Whether to read images.
        front_view: Keep only points that the image shows, as is usual; else all around, with labels only in front.
        min_points: Boxes with fewer of the points are left out.

    Raises:
        ValueError: If the split or its list does not exist, there is no frame, or a listed frame has no cloud.
    """

    def __init__(
        self,
        root: str | Path,
        split: str | None = "train",
        class_names: Sequence[str] = ("Car", "Pedestrian", "Cyclist"),
        cameras: bool = True,
        front_view: bool = True,
        min_points: int = 0,
    ) -> None:
        if split not in (*SPLITS, None):
            raise ValueError(
                f"KITTIObject: split must be one of {', '.join(SPLITS)} or None, got {split!r}."
            )
        if not class_names:
            raise ValueError("KITTIObject: class_names must name at least one type, got none.")
        self.root = Path(root)
        self.folder = self.root / ("testing" if split == "test" else "training")
        self.with_labels = split != "test"
        self.cameras = cameras
        self.front_view = front_view
        self.min_points = min_points
        self._class_names = tuple(class_names)
        self.frames = _list_frames(self.root, self.folder, split)

    @property
    def class_names(self) -> tuple[str, ...]:
        """Name of each class of boxes."""
        return self._class_names

    @property
    def camera_names(self) -> tuple[str, ...]:
        """("image_2",): the left colour camera; empty without cameras."""
        return (CAMERA,) if self.cameras else ()

    def __len__(self) -> int:
        return len(self.frames)

    def __getitem__(self, index: int) -> MultiSensorSample:
        """Read one frame.

        Raises:
            IndexError: If there is no such frame.
            BadSampleError: If one of its files is missing or broken; the message names the file.
        """
        frame = self._frame(index)
        calibration = self.calibration(index)
        path = self.folder / "velodyne" / f"{frame}.bin"
        scan = read_bin(path)
        points = np.column_stack([scan, np.zeros(len(scan), dtype=np.float32)])
        if self.front_view:
            points = points[_seen(points, calibration, self.image_size(index))]
        boxes, labels, counts = self._boxes(index, calibration, points)
        return MultiSensorSample(
            points=np.ascontiguousarray(points),
            boxes=boxes,
            box_labels=labels,
            box_points=counts,
            cameras=(self._image(frame, calibration),) if self.cameras else (),
            lidar2ego=np.eye(4),
            ego2global=np.eye(4),
            map=None,
            token=frame,
            path=str(path),
            timestamp_us=0,
        )

    def class_counts(self, index: int) -> npt.NDArray[np.int64]:
        """(num_classes,) boxes of each class in a frame, those without returns too; reads its label file alone."""
        names = self.objects(index).names
        return np.array([np.count_nonzero(names == name) for name in self.class_names])

    def objects(self, index: int) -> KittiObjects:
        """The label file of a frame, all types, for `pointlib.metrics.kitti_ap`; no object in the test split."""
        frame = self._frame(index)
        if not self.with_labels:
            return KittiObjects.empty()
        return read_objects(self.folder / "label_2" / f"{frame}.txt")

    def calibration(self, index: int) -> KittiCalibration:
        """The calibration of a frame."""
        return read_object_calibration(self.folder / "calib" / f"{self._frame(index)}.txt")

    def image_size(self, index: int) -> tuple[int, int]:
        """Height and width of a frame's image [pixels], without decoding it."""
        path = self.folder / CAMERA / f"{self._frame(index)}.png"
        try:
            with Image.open(path) as image:
                return image.height, image.width
        except OSError as error:
            raise BadSampleError(
                f"KITTIObject: {path} must be an image, got {error}. Extract KITTI's image_2 again, or read with "
                "front_view=False and cameras=False."
            ) from error

    def found_objects(
        self,
        index: int,
        boxes: npt.NDArray[np.float32],
        scores: npt.NDArray[np.float32],
        labels: npt.NDArray[np.int64],
    ) -> KittiObjects:
        """Detections in a frame as KITTI wants them, for `kitti_ap` and for `kitti_labels.write_objects`.

        Args:
            index: The frame.
            boxes: (K, 7) or (K, 9) in the LiDAR frame.
            scores: (K,).
            labels: (K,) class of each.

        Returns:
            Those that the image shows any part of.
        """
        names = np.array(self.class_names, dtype=object)[labels]
        return boxes_to_objects(
            boxes, names, scores, self.calibration(index), self.image_size(index)
        )

    def _frame(self, index: int) -> str:
        if not 0 <= index < len(self):
            raise IndexError(f"KITTIObject: index must be 0..{len(self) - 1}, got {index}.")
        return self.frames[index]

    def _boxes(
        self, index: int, calibration: KittiCalibration, points: npt.NDArray[np.float32]
    ) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """Boxes with unknown velocity, their classes and how many of the points they hold."""
        objects = self.objects(index)
        classes = {name: i for i, name in enumerate(self.class_names)}
        objects = objects.select(np.isin(objects.names.astype(str), list(classes)))
        boxes = np.full((len(objects), 9), np.nan, dtype=np.float32)
        boxes[:, :7] = objects_to_boxes(objects, calibration)
        labels = np.array([classes[name] for name in objects.names], dtype=np.int64)
        inside = points_in_boxes_all(torch.from_numpy(points), torch.from_numpy(boxes))
        counts = inside.sum(0).numpy()
        keep = counts >= self.min_points
        return boxes[keep], labels[keep], counts[keep]

    def _image(self, frame: str, calibration: KittiCalibration) -> CameraImage:
        path = self.folder / CAMERA / f"{frame}.png"
        return CameraImage(
            name=CAMERA,
            image=read_image(path),
            intrinsics=calibration.intrinsics,
            lidar2camera=calibration.lidar2camera,
            path=str(path),
        )


def _seen(
    points: npt.NDArray[np.float32], calibration: KittiCalibration, image_size: tuple[int, int]
) -> npt.NDArray[np.bool_]:
    """Which points the image shows."""
    lidar2image = projection_matrix(calibration.intrinsics, calibration.lidar2camera)
    pixels = project_points(points.astype(np.float64), lidar2image).pixels
    height, width = image_size
    u, v = pixels.T
    return (u >= 0) & (u < width) & (v >= 0) & (v < height)  # NaN, behind the camera, is not


def _list_frames(root: Path, folder: Path, split: str | None) -> tuple[str, ...]:
    there = {path.stem for path in (folder / "velodyne").glob("*.bin")}
    if not there:
        raise ValueError(
            f"KITTIObject: root must hold {folder.name}/velodyne/NNNNNN.bin, got none in {root}. Give the folder that "
            "the archives data_object_velodyne, _image_2, _calib and _label_2 were extracted into."
        )
    if split is None:
        return tuple(sorted(there))
    path = root / "ImageSets" / f"{split}.txt"
    try:
        wanted = path.read_text(encoding="utf-8").split()
    except OSError as error:
        raise ValueError(
            f"KITTIObject: split {split!r} must be listed in {path}, got {error}. Copy the lists from OpenPCDet's "
            "data/kitti/ImageSets, or pass split=None for all frames."
        ) from error
    missing = [frame for frame in wanted if frame not in there]
    if missing or not wanted:
        raise ValueError(
            f"KITTIObject: {folder / 'velodyne'} must hold every frame of {path}, got none for "
            f"{len(missing)} of {len(wanted)}: {', '.join(missing[:8])}. Extract data_object_velodyne again."
        )
    return tuple(wanted)
