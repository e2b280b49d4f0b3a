"""nuScenes samples from mmdetection3d's info files (info version 1.1), as JSON, as a source of multi-sensor samples.

The files that mmdetection3d makes are pickles, which can run code when they are opened: convert them once, where
mmdetection3d is installed, `json.dump(mmengine.load(pkl), file, default=lambda a: a.tolist())`.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pointlib.data.image_file import read_image
from pointlib.data.multi_sensor import CameraImage, MultiSensorSample
from pointlib.data.nuscenes import check_options, class_table
from pointlib.data.nuscenes_index import CAMERAS, DETECTION_CLASSES, LIDAR
from pointlib.data.nuscenes_sweeps import Sweep, WhenMissing, join_sweeps
from pointlib.data.sample import BadSampleError
from pointlib.geometry import invert


class NuScenesInfo:
    """Samples of an info file. It is a `MultiSensorSource`; frames, boxes and sweeps are as in `NuScenes`.

    A file FILE of sensor SENSOR is looked for in `root` as the info names it, then as samples/SENSOR/FILE,
    sweeps/SENSOR/FILE and FILE; and, for an info of one sample, as SENSOR with the same suffix (CAM_FRONT.jpg).

    Args:
        info: The JSON file: `{"metainfo": {"categories": ...}, "data_list": [...]}`.
        root: Folder of the data; None for the folder of the info file.
        num_sweeps: As in `NuScenes`; an info without `lidar_sweeps` has the key frame alone.
        cameras: Whether to read the images.
        min_points: As in `NuScenes`.
        missing_cameras: As in `NuScenes`.
        missing_sweeps: As in `NuScenes`.
        class_names: As in `NuScenes`.

    Raises:
        ValueError: The file is no such info file, or an option makes no sense.
    """

    def __init__(
        self,
        info: str | Path,
        root: str | Path | None = None,
        num_sweeps: int = 10,
        cameras: bool = True,
        min_points: int = 1,
        missing_cameras: WhenMissing = "raise",
        missing_sweeps: WhenMissing = "raise",
        class_names: Sequence[str] | None = None,
    ) -> None:
        check_options("NuScenesInfo", num_sweeps, 1, missing_cameras, missing_sweeps)
        self.root = Path(info).parent if root is None else Path(root)
        self._samples, categories = _read_info(Path(info))
        self._classes = tuple(class_names or DETECTION_CLASSES)
        ours = class_table(self._classes)
        self._label_of = {
            label: int(ours[DETECTION_CLASSES.index(name)])
            for name, label in categories.items()
            if name in DETECTION_CLASSES
        }
        self._num_sweeps = num_sweeps
        self._cameras = CAMERAS if cameras else ()
        self._min_points = min_points
        self._missing_cameras = missing_cameras
        self._missing_sweeps: WhenMissing = missing_sweeps

    @property
    def class_names(self) -> tuple[str, ...]:
        """Name of each class of boxes."""
        return self._classes

    @property
    def camera_names(self) -> tuple[str, ...]:
        """Name of each camera, in the order of every sample; empty without cameras."""
        return self._cameras

    def __len__(self) -> int:
        return len(self._samples)

    def __getitem__(self, index: int) -> MultiSensorSample:
        """Read one sample.

        Raises:
            IndexError: There is no such sample.
            BadSampleError: A file is missing or broken, or the entry lacks a field; the message names it.
        """
        sample = self._sample(index)
        try:
            lidar = sample["lidar_points"]
            path = self._find(lidar["lidar_path"], LIDAR)
            boxes, labels, points = self._boxes(sample)
            return MultiSensorSample(
                points=join_sweeps(path, self._sweeps(sample), self._missing_sweeps),
                boxes=boxes,
                box_labels=labels,
                box_points=points,
                cameras=tuple(self._camera(sample, name) for name in self._cameras),
                lidar2ego=np.array(lidar["lidar2ego"], np.float64),
                ego2global=np.array(sample["ego2global"], np.float64),
                map=None,
                token=str(sample["token"]),
                path=str(path),
                timestamp_us=_microseconds(sample["timestamp"]),
            )
        except KeyError as error:
            raise BadSampleError(
                f"NuScenesInfo: entry {index} must have the fields of info version 1.1, got none named {error}."
            ) from error

    def class_counts(self, index: int) -> npt.NDArray[np.int64]:
        """(num_classes,) boxes of each class in a sample, without reading its files; for class-balanced sampling."""
        _, labels, _ = self._boxes(self._sample(index))
        return np.bincount(labels, minlength=len(self._classes))

    def _sample(self, index: int) -> dict[str, Any]:
        if not 0 <= index < len(self):
            raise IndexError(f"NuScenesInfo: index must be 0..{len(self) - 1}, got {index}.")
        return self._samples[index]

    def _find(self, name: str, sensor: str) -> Path:
        """The first place where the file is; the place of nuScenes' own layout if it is nowhere."""
        file = Path(name).name
        places = [self.root / name, self.root / "samples" / sensor / file]
        places += [self.root / "sweeps" / sensor / file, self.root / file]
        if len(self._samples) == 1:
            suffix = ".pcd.bin" if file.endswith(".pcd.bin") else Path(file).suffix
            places.append(self.root / f"{sensor}{suffix}")
        return next((place for place in places if place.is_file()), places[1])

    def _sweeps(self, sample: dict[str, Any]) -> list[Sweep]:
        return [
            Sweep(
                self._find(sweep["lidar_points"]["lidar_path"], LIDAR),
                invert(np.array(sweep["lidar_points"]["lidar2sensor"], np.float64)),
                sample["timestamp"] - sweep["timestamp"],
            )
            for sweep in sample.get("lidar_sweeps", [])[: self._num_sweeps - 1]
        ]

    def _boxes(
        self, sample: dict[str, Any]
    ) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        kept = [
            box
            for box in sample.get("instances", [])
            if box["num_lidar_pts"] + box["num_radar_pts"] >= self._min_points
            and self._label_of.get(box["bbox_label_3d"], -1) >= 0
        ]
        columns = [[*box["bbox_3d"][:7], *box["velocity"]] for box in kept]
        return (
            np.array(columns, np.float32).reshape(-1, 9),
            np.array([self._label_of[box["bbox_label_3d"]] for box in kept], np.int64),
            np.array([box["num_lidar_pts"] for box in kept], np.int64),
        )

    def _camera(self, sample: dict[str, Any], name: str) -> CameraImage:
        camera = sample["images"][name]
        path = self._find(camera["img_path"], name)
        there = path.is_file()
        if not there and self._missing_cameras == "raise":
            raise BadSampleError(
                f"NuScenesInfo: sample {sample['token']} must have an image of {name}, got no file {path}. Check "
                'root, or pass missing_cameras="allow".'
            )
        return CameraImage(
            name=name,
            image=read_image(path) if there else None,
            intrinsics=np.array(camera["cam2img"], np.float64),
            lidar2camera=np.array(camera["lidar2cam"], np.float64),
            path=str(path),
            timestamp_us=_microseconds(camera["timestamp"]),
        )


def _microseconds(seconds: float) -> int:
    return round(seconds * 1e6)


def _read_info(path: Path) -> tuple[list[dict[str, Any]], dict[str, int]]:
    """Samples and categories of an info file."""
    if path.suffix == ".pkl":
        raise ValueError(
            f"NuScenesInfo: info must be a JSON file, got {path}: a pickle can run code when it is opened. Convert it "
            "where mmdetection3d is installed: json.dump(mmengine.load(pkl), file, default=lambda a: a.tolist())."
        )
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        version = content["metainfo"]["info_version"]
        samples, categories = content["data_list"], content["metainfo"]["categories"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"NuScenesInfo: info must be a JSON file with metainfo (info_version, categories) and data_list, got "
            f"{path} ({type(error).__name__}: {error})."
        ) from error
    if version != "1.1":
        raise ValueError(f"NuScenesInfo: {path} must be of info version 1.1, got {version}.")
    return samples, categories
