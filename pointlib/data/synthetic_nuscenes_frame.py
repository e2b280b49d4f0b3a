"""One key frame of a synthetic nuScenes scene: its sweeps, key cloud, point labels, images, and a note of its boxes."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from pointlib.data.camera_render import Camera
from pointlib.data.camera_shading import draw_weather
from pointlib.data.raycast import HeightField
from pointlib.data.synthetic_nuscenes_boxes import ThingBox
from pointlib.data.synthetic_nuscenes_camera import Picture, take_picture
from pointlib.data.synthetic_nuscenes_layout import ScenePlace
from pointlib.data.synthetic_nuscenes_rig import CAMERAS, MOUNTS, Hdl32, Sweep
from pointlib.data.synthetic_nuscenes_scene import NuScenesScene
from pointlib.data.synthetic_nuscenes_street import ground_materials
from pointlib.data.synthetic_nuscenes_tables import CATEGORIES, SensorFile, file_token, label_files
from pointlib.files import write_file

FRAME_US = 500_000
"""Between two key frames [us]."""

_FIRST_TIME_US = 1_532_402_900_000_000
_SCENE_US = 100_000_000

_INDEX = {name: index for index, name in enumerate(CATEGORIES)}
_STUFF = {
    40: "flat.driveable_surface", 44: "flat.driveable_surface", 60: "flat.driveable_surface",
    61: "flat.driveable_surface", 48: "flat.sidewalk", 49: "flat.other", 72: "flat.terrain", 50: "static.manmade",
    51: "static.manmade", 52: "static.manmade", 80: "static.manmade", 81: "static.manmade", 99: "static.other",
    70: "static.vegetation", 71: "static.vegetation",
}  # fmt: skip
_LABELS = np.zeros(300, np.uint8)
for _id, _name in _STUFF.items():
    _LABELS[_id] = _INDEX[_name]


@dataclass(frozen=True)
class FrameSettings:
    """What the content of a key frame's files depends on, its scene apart.

    Args:
        version: of the dataset. samples_per_scene: key frames. image_size: width, height [pixels].
        sweeps: between two key frames, and before the first. beams: and azimuth_steps: of the LiDAR.
    """

    version: str
    samples_per_scene: int
    image_size: tuple[int, int]
    sweeps: int
    beams: int
    azimuth_steps: int

    @property
    def duration(self) -> float:
        """Of a scene [s]; half a second of sweeps stands before the first key frame."""
        return 0.5 * (self.samples_per_scene + 1)


@dataclass(frozen=True)
class SceneFiles:
    """Names, times and poses of one scene's files.

    Args:
        place: of the scene. number: of the scene in the dataset. settings: of the dataset. scene: for the poses.
    """

    place: ScenePlace
    number: int
    settings: FrameSettings
    scene: NuScenesScene

    @property
    def start_us(self) -> int:
        """Time stamp of the scene's time 0 [us]."""
        return _FIRST_TIME_US + self.number * _SCENE_US

    def key_us(self, frame: int) -> int:
        """Time stamp of a sample [us]."""
        return self.start_us + (frame + 1) * FRAME_US

    def seconds(self, timestamp_us: int) -> float:
        """Scene time [s] of a time stamp."""
        return (timestamp_us - self.start_us) * 1e-6

    def of_frame(self, frame: int) -> list[SensorFile]:
        """Files of one key frame and of the sweeps before it, in order of time."""
        key_us, sweeps = self.key_us(frame), self.settings.sweeps
        files = []
        for k in range(sweeps, -1, -1):
            files.append(
                self._file("LIDAR_TOP", frame, key_us - k * FRAME_US // (sweeps + 1), k == 0)
            )
        for channel in CAMERAS:
            files.append(self._file(channel, frame, key_us + MOUNTS[channel].delay_us, True))
        return files

    def _file(self, channel: str, frame: int, timestamp_us: int, key: bool) -> SensorFile:
        pose = self.scene.ego_pose(self.seconds(timestamp_us))
        half = np.arctan2(pose[1, 0], pose[0, 0]) / 2
        folder, image = "samples" if key else "sweeps", channel in CAMERAS
        ending = "jpg" if image else "pcd.bin"
        name = f"{folder}/{channel}/synthetic-{self.place.name}__{channel}__{timestamp_us}.{ending}"
        width, height = self.settings.image_size if image else (0, 0)
        return SensorFile(
            channel, frame, timestamp_us, key, (float(np.cos(half)), 0.0, 0.0, float(np.sin(half))),
            tuple(pose[:3, 3].tolist()), name, width, height,
        )  # fmt: skip


class FrameMaker:
    """Makes the key frames of one scene.

    Args:
        root: of the dataset. files: of the scene.
    """

    def __init__(self, root: Path, files: SceneFiles) -> None:
        self.root, self.files, self.scene = root, files, files.scene
        settings = files.settings
        self.lidar = Hdl32(settings.beams, settings.azimuth_steps)
        self.weather = draw_weather(np.random.default_rng([*files.place.seed, 46]))

    def make(self, frame: int) -> None:
        """Write everything of one key frame; the note last, so that an interrupted frame is never complete."""
        key_time = self.files.seconds(self.files.key_us(frame))
        station = self.scene.drive.station(key_time)
        pose = self.scene.ego_pose(key_time)
        ground = self.scene.street.height_field(pose[0, 3], pose[1, 3])
        boxes = self.scene.boxes(key_time, station)
        instances = np.unique([box.instance for box in boxes])
        shown = np.zeros((2, len(instances)), np.int64)
        counts = np.zeros(len(boxes), np.int64)
        for number, file in enumerate(self.files.of_frame(frame)):
            seed = self._seed(frame * 64 + number)
            if file.channel in CAMERAS:
                picture = self._picture(file, station, ground, instances, seed)
                shown += (picture.visible, picture.alone)
                write_file(self.root / file.filename, _as_jpeg(picture.image))
                continue
            sweep = self._sweep(file, station, ground, seed)
            write_file(self.root / file.filename, sweep.points.astype("<f4").tobytes())
            if file.key:
                self._write_labels(file, sweep)
                lidar2world = pose @ MOUNTS["LIDAR_TOP"].sensor2ego
                counts = points_in_boxes(sweep.points, lidar2world, boxes)
        shares = dict(
            zip(instances.tolist(), (shown[0] / np.maximum(shown[1], 1)).tolist(), strict=True)
        )
        things = [
            _thing(box, int(count), min(shares[box.instance], 1.0))
            for box, count in zip(boxes, counts, strict=True)
        ]
        write_file(self.note(frame), json.dumps(things))

    def note(self, frame: int) -> Path:
        """The file that says that a key frame is complete and what boxes it has."""
        return self.root / "synthetic_frames" / self.files.place.name / f"{frame:04d}.json"

    def paths(self, frame: int) -> list[Path]:
        """All files of a key frame."""
        files = self.files.of_frame(frame)
        clouds = [file for file in files if file.channel == "LIDAR_TOP" and file.key]
        labels = [path for file in clouds for path in self._label_paths(file)]
        return [self.note(frame), *labels, *(self.root / file.filename for file in files)]

    def _label_paths(self, file: SensorFile) -> tuple[Path, Path]:
        """Where the semantic and the panoptic labels of a key cloud go."""
        lidarseg, panoptic = label_files(self.files.settings.version, file_token(file))
        return self.root / lidarseg, self.root / panoptic

    def _seed(self, number: int) -> int:
        return int(np.random.default_rng([*self.files.place.seed, 9, number]).integers(1 << 60))

    def _picture(
        self,
        file: SensorFile,
        station: float,
        ground: HeightField,
        instances: np.ndarray,
        seed: int,
    ) -> Picture:
        mount, time = MOUNTS[file.channel], self.files.seconds(file.timestamp_us)
        camera = Camera(
            mount.camera_matrix(file.width, file.height),
            self.scene.ego_pose(time) @ mount.sensor2ego,
            file.width,
            file.height,
        )
        painted, boxes = self.scene.painted(time, station), self.scene.boxes(time, station)
        return take_picture(
            camera, painted, ground, self.scene.street, boxes, instances, self.weather, seed
        )

    def _sweep(self, file: SensorFile, station: float, ground: HeightField, seed: int) -> Sweep:
        time = self.files.seconds(file.timestamp_us)
        lidar2world = self.scene.ego_pose(time) @ MOUNTS["LIDAR_TOP"].sensor2ego
        bodies = self.scene.painted(time, station).bodies
        return self.lidar.sweep(ground, ground_materials(), bodies, lidar2world, seed)

    @cached_property
    def _things(self) -> tuple[np.ndarray, np.ndarray]:
        """Lidarseg index and number within its category, of each instance, as lookup tables."""
        categories = self.scene.categories()
        index = np.zeros(max(categories, default=0) + 1, np.int64)
        ordinal = np.zeros_like(index)
        met: dict[str, int] = {}
        for instance, category in sorted(categories.items()):
            met[category] = met.get(category, 0) + 1
            index[instance], ordinal[instance] = _INDEX[category], met[category]
        return index, ordinal

    def _write_labels(self, file: SensorFile, sweep: Sweep) -> None:
        index, ordinal = self._things
        thing = sweep.instance > 0
        semantic = np.where(thing, index[sweep.instance], _LABELS[sweep.label])
        panoptic = semantic * 1000 + np.where(thing, ordinal[sweep.instance], 0)
        lidarseg, panoptic_file = self._label_paths(file)
        write_file(lidarseg, semantic.astype(np.uint8).tobytes())
        packed = io.BytesIO()
        np.savez_compressed(packed, data=panoptic.astype(np.uint16))
        write_file(panoptic_file, packed.getvalue())


def _thing(box: ThingBox, points: int, visibility: float) -> dict[str, Any]:
    return {
        "instance": box.instance,
        "category": box.category,
        "attribute": box.attribute,
        "centre": box.centre.tolist(),
        "size": box.size.tolist(),
        "yaw": box.yaw,
        "points": points,
        "visibility": visibility,
        "seen": points > 0 or visibility >= 0.4,
    }


def _as_jpeg(image: np.ndarray) -> bytes:
    packed = io.BytesIO()
    Image.fromarray(image).save(packed, "JPEG", quality=92)
    return packed.getvalue()


def points_in_boxes(
    points: np.ndarray, lidar2world: np.ndarray, boxes: Sequence[ThingBox]
) -> np.ndarray:
    """(len(boxes),) int64 points (N, 3+) of the LiDAR frame in each box, its faces included."""
    world = points[:, :3].astype(np.float64) @ lidar2world[:3, :3].T + lidar2world[:3, 3]
    counts = np.zeros(len(boxes), np.int64)
    for k, box in enumerate(boxes):
        offset = world - box.centre
        near = np.flatnonzero(
            (offset[:, :2] ** 2).sum(axis=1) <= (box.size[:2] ** 2).sum() / 4 + 1e-6
        )
        cos, sin = np.cos(box.yaw), np.sin(box.yaw)
        turn = np.array([[cos, -sin, 0.0], [sin, cos, 0.0], [0.0, 0.0, 1.0]])
        counts[k] = (np.abs(offset[near] @ turn) <= box.size / 2).all(axis=1).sum()
    return counts


def read_note(path: Path) -> list[dict[str, Any]]:
    """The boxes of one complete key frame."""
    things: list[dict[str, Any]] = json.loads(path.read_text())
    return things
