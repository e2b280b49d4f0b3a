"""Writes synthetic LiDAR sequences in SemanticKITTI's layout: scans, labels, calibration, poses, times.

Scenes come from `synthetic_scene`, returns from `lidar_sensor`. Every scan depends on (seed, sequence, frame) only, so
the number of workers, the order of work and interruptions leave no trace in the files.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

from pointlib.data.job_pool import run_jobs
from pointlib.data.lidar_sensor import LidarSensor, Scan
from pointlib.data.synthetic_scene import Scene, ground_materials
from pointlib.files import write_file

VERSION = 1
"""Raised whenever the same seed gives other files than before."""

EGO_SPEED = 8.0
"""Of the recording vehicle [m/s]; with the frame spacing it gives times.txt."""

LIDAR2CAMERA = np.array(
    [[0.0, -1.0, 0.0, 0.0], [0.0, 0.0, -1.0, -0.08], [1.0, 0.0, 0.0, -0.27], [0.0, 0.0, 0.0, 1.0]]
)
"""calib.txt's Tr: camera x right, y down, z forward, mounted 0.27 m in front of and 0.08 m below the LiDAR."""

_FOCAL, _CENTRE_X, _CENTRE_Y = 720.0, 610.0, 185.0
_BASELINES = {"P0": 0.0, "P1": -0.54, "P2": 0.06, "P3": -0.48}


class ScanStatistics(NamedTuple):
    """Sparse-convolution workload of one scan, per level (stride 1, 2, 4, ...).

    Args:
        voxels: number of occupied voxels.
        pairs: mean number of occupied voxels in the 3x3x3 around an occupied one, itself included.
    """

    voxels: tuple[int, ...]
    pairs: tuple[float, ...]


@dataclass(frozen=True)
class _Settings:
    """What the content of a sequence's files depends on; kept beside them as synthetic.json."""

    seed: int
    beams: int
    azimuth_steps: int
    frame_stride_m: float
    version: int = VERSION


def generate_dataset(
    root: str | Path,
    sequences: Mapping[str, int],
    *,
    seed: int = 0,
    beams: int = 64,
    azimuth_steps: int = 2160,
    frame_stride_m: float = 8.0,
    workers: int = 2,
    overwrite: bool = False,
    progress: bool = True,
) -> Path:
    """Write synthetic street scans as ``root/sequences/XX/{velodyne,labels,calib.txt,poses.txt,times.txt}``.

    Every sequence is another street; its frames are consecutive moments of a drive along it at 8 m/s. Scans that
    are already complete under the same settings are kept, so an interrupted call can simply be repeated, and a
    sequence can be made longer. Raw SemanticKITTI ids are written, moving things with the ids 252-259; returns
    beyond 50 m are unlabelled, as in the original.

    With ``workers > 1`` processes are spawned: a script calls this under ``if __name__ == "__main__":``.

    Args:
        root: dataset folder, made if missing.
        sequences: number of scans of each two-digit sequence, such as ``{"00": 40, "08": 10}``.
        seed: of everything; not negative.
        beams: of the sensor; fewer than 64 thin the field of view.
        azimuth_steps: firings a revolution; 2160 and 64 beams give about 115,000 points a scan.
        frame_stride_m: way between two frames [m]. 0.8 is SemanticKITTI's 10 Hz, larger gives more varied scenes.
        workers: processes.
        overwrite: make every scan anew, and replace sequences made with other settings.
        progress: show a bar with the time left on stderr.

    Returns:
        The root as a Path.

    Raises:
        ValueError: an argument out of range, or a sequence folder that holds other data.
        OSError: a file cannot be written; complete scans stay.
    """
    root = Path(root)
    _check(sequences, seed, frame_stride_m, workers)
    settings = _Settings(seed, beams, azimuth_steps, float(frame_stride_m))
    LidarSensor(beams, azimuth_steps)
    for name, count in sequences.items():
        _prepare(root / "sequences" / name, count, settings, overwrite)
    jobs = []
    for name, count in sequences.items():
        folder = root / "sequences" / name
        lengths = max(count, _frames_present(folder))
        jobs += [
            (folder, frame, lengths, settings)
            for frame in range(count)
            if overwrite or not _complete(folder, frame)
        ]
    kept = sum(sequences.values()) - len(jobs)
    if progress and kept:
        tqdm.write(
            f"generate_dataset: kept {kept} complete scans of the same settings in {root}, "
            f"{len(jobs)} to make",
            file=sys.stderr,
        )
    for _ in tqdm(
        run_jobs(_make, jobs, workers),
        total=len(jobs),
        desc="synthetic scans",
        unit="scan",
        disable=not progress,
    ):
        pass
    return root


def scan_statistics(
    points: np.ndarray, voxel_size: float = 0.05, levels: int = 5
) -> ScanStatistics:
    """Count voxels and their neighbours at strides 1, 2, 4, ... as a sparse U-Net sees them.

    Args:
        points: (N, 3+) float, x, y, z [m] first.
        voxel_size: edge of a stride-1 voxel [m]; its index is ``round(p / voxel_size)``, coarser ones ``floor(c / 2)``.
        levels: number of strides.

    Returns:
        ScanStatistics with one entry a level.

    Raises:
        ValueError: no point, or a voxel size that is not positive.
    """
    if voxel_size <= 0 or len(points) == 0:
        raise ValueError(
            "scan_statistics: points must not be empty and voxel_size must be positive, got "
            f"{len(points)} points and {voxel_size}"
        )
    coords = np.round(np.asarray(points)[:, :3].astype(np.float64) / voxel_size).astype(np.int64)
    offsets = np.stack(np.meshgrid(*[(-1, 0, 1)] * 3, indexing="ij"), axis=-1).reshape(-1, 3)
    steps = offsets @ (1 << 42, 1 << 21, 1)
    voxels, pairs = [], []
    for _ in range(levels):
        shifted = coords + (1 << 20)
        keys, first = np.unique(shifted @ (1 << 42, 1 << 21, 1), return_index=True)
        found = 0
        for step in steps:
            row = np.searchsorted(keys, keys + step)
            found += int((keys[np.minimum(row, len(keys) - 1)] == keys + step).sum())
        voxels.append(len(keys))
        pairs.append(found / len(keys))
        coords = coords[first] >> 1
    return ScanStatistics(tuple(voxels), tuple(pairs))


def _check(sequences: Mapping[str, int], seed: int, frame_stride_m: float, workers: int) -> None:
    for name, count in sequences.items():
        if not (isinstance(name, str) and len(name) == 2 and name.isdigit()):
            raise ValueError(
                f"generate_dataset: sequences must be named by two digits such as '00', got {name!r}"
            )
        if isinstance(count, bool) or not isinstance(count, int) or not 0 < count < 1_000_000:
            raise ValueError(
                f"generate_dataset: sequences[{name!r}] must be a number of scans in 1..999999, got {count!r}"
            )
    if not sequences or seed < 0 or workers < 1 or not 0 < frame_stride_m <= 100:
        raise ValueError(
            "generate_dataset: sequences must not be empty, seed >= 0, workers >= 1 and 0 < frame_stride_m <= 100, "
            f"got {dict(sequences)}, {seed}, {workers}, {frame_stride_m}"
        )


def _prepare(folder: Path, count: int, settings: _Settings, overwrite: bool) -> None:
    """Make one sequence's folder and its small files, refusing to mix with other data."""
    note = folder / "synthetic.json"
    if note.exists():
        found = json.loads(note.read_text())
        if found != asdict(settings) and not overwrite:
            raise ValueError(
                f"generate_dataset: {folder} must be empty or hold scans of the same settings, got {found} "
                f"instead of {asdict(settings)}; pass overwrite=True to replace them, or choose another root"
            )
        if overwrite:
            for frame in range(count, _frames_present(folder)):
                for path in _files(folder, frame):
                    path.unlink(missing_ok=True)
    elif (folder / "velodyne").exists():
        raise ValueError(
            f"generate_dataset: {folder} must not hold recorded scans, got a velodyne folder without "
            "synthetic.json; choose another root"
        )
    for name in ("velodyne", "labels"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    write_file(note, json.dumps(asdict(settings), indent=2).encode() + b"\n")
    total = max(count, _frames_present(folder))
    scene = Scene(total * settings.frame_stride_m, _scene_seed(folder, settings), EGO_SPEED)
    write_file(folder / "calib.txt", _calibration().encode())
    write_file(folder / "poses.txt", _poses(scene, total, settings.frame_stride_m).encode())
    step = settings.frame_stride_m / EGO_SPEED
    write_file(folder / "times.txt", "".join(f"{i * step:.6e}\n" for i in range(total)).encode())


def _scene_seed(folder: Path, settings: _Settings) -> tuple[int, int]:
    return settings.seed, int(folder.name)


def _files(folder: Path, frame: int) -> tuple[Path, Path]:
    return folder / "velodyne" / f"{frame:06d}.bin", folder / "labels" / f"{frame:06d}.label"


def _frames_present(folder: Path) -> int:
    """One more than the highest frame number in a sequence's folder."""
    names = [path.stem for path in (folder / "velodyne").glob("??????.bin") if path.stem.isdigit()]
    return max((int(name) + 1 for name in names), default=0)


def _complete(folder: Path, frame: int) -> bool:
    points, labels = _files(folder, frame)
    if not (points.exists() and labels.exists()):
        return False
    size = points.stat().st_size
    return size > 0 and size % 16 == 0 and labels.stat().st_size * 4 == size


def _calibration() -> str:
    lines = []
    for name, baseline in _BASELINES.items():
        matrix = np.array(
            [[_FOCAL, 0, _CENTRE_X, _FOCAL * baseline], [0, _FOCAL, _CENTRE_Y, 0], [0, 0, 1, 0]]
        )
        lines.append(f"{name}: {_row(matrix)}")
    lines.append(f"Tr: {_row(LIDAR2CAMERA[:3])}")
    return "\n".join(lines) + "\n"


def _poses(scene: Scene, count: int, stride: float) -> str:
    """KITTI's pose file: the camera's pose in the first camera's frame, 3x4 row by row."""
    lidars = [_sensor_pose(scene, frame * stride) for frame in range(count)]
    camera2lidar = np.linalg.inv(LIDAR2CAMERA)
    world2first = LIDAR2CAMERA @ np.linalg.inv(lidars[0])
    return "".join(_row((world2first @ pose @ camera2lidar)[:3]) + "\n" for pose in lidars)


def _row(matrix: np.ndarray) -> str:
    return " ".join(f"{value:.12e}" for value in matrix.ravel())


def _sensor_pose(scene: Scene, station: float, height: float = LidarSensor.height) -> np.ndarray:
    """lidar2world (4, 4) at a station."""
    pose = scene.pose(station)
    pose[:3, 3] += height * pose[:3, 2]
    return pose


@lru_cache(maxsize=4)
def _scene(length: float, seed: tuple[int, ...]) -> Scene:
    return Scene(length, seed, EGO_SPEED)


@lru_cache(maxsize=4)
def _sensor(beams: int, azimuth_steps: int) -> LidarSensor:
    return LidarSensor(beams, azimuth_steps)


def simulate_scan(scene: Scene, sensor: LidarSensor, station: float, seed: int) -> Scan:
    """The scan a sensor takes when the ego passes `station` [m]; equal arguments give equal bits."""
    pose = _sensor_pose(scene, station, sensor.height)
    ground = scene.street.height_field(pose[0, 3], pose[1, 3])
    return sensor.scan(ground, ground_materials(), scene.bodies(station), pose, seed)


def _make(job: tuple[Path, int, int, _Settings]) -> None:
    """Simulate and write one frame; the points last, so that an interrupted frame is never complete."""
    folder, frame, total, settings = job
    seed = _scene_seed(folder, settings)
    scene = _scene(total * settings.frame_stride_m, seed)
    noise = int(np.random.default_rng([*seed, 9, frame]).integers(1 << 60))
    sensor = _sensor(settings.beams, settings.azimuth_steps)
    scan = simulate_scan(scene, sensor, frame * settings.frame_stride_m, noise)
    points, labels = _files(folder, frame)
    write_file(labels, (scan.semantic | scan.instance << np.uint32(16)).astype("<u4").tobytes())
    write_file(points, scan.points.astype("<f4").tobytes())
