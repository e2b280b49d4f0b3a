"""Writes a complete synthetic nuScenes dataset: tables, LiDAR sweeps, camera images, boxes, point labels and maps.

Every key frame depends on (seed, scene, frame) only, so the number of workers, the order of work and interruptions
leave no trace in the files.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from functools import lru_cache
from pathlib import Path
from typing import Any

from tqdm import tqdm

from pointlib.data.job_pool import run_jobs
from pointlib.data.synthetic_nuscenes_frame import FrameMaker, FrameSettings, SceneFiles, read_note
from pointlib.data.synthetic_nuscenes_layout import ScenePlace, lay_out, scene_names, scene_seed
from pointlib.data.synthetic_nuscenes_map import write_maps
from pointlib.data.synthetic_nuscenes_rig import Hdl32
from pointlib.data.synthetic_nuscenes_scene import NuScenesScene, plan_drive
from pointlib.data.synthetic_nuscenes_shapes import load_shapely
from pointlib.data.synthetic_nuscenes_tables import SceneRecord, build_tables
from pointlib.files import write_file

FORMAT = 1
"""Raised whenever the same seed gives other files than before."""

SETTINGS_FILE = "synthetic_nuscenes.json"

_Job = tuple[str, ScenePlace, int, FrameSettings, int]


def generate_nuscenes(
    root: str | Path,
    version: str = "v1.0-mini",
    scenes: int | Sequence[str] = 4,
    samples_per_scene: int = 10,
    *,
    seed: int = 0,
    workers: int = 2,
    image_size: tuple[int, int] = (400, 225),
    sweeps: int = 9,
    beams: int = 32,
    azimuth_steps: int = 1084,
    progress: bool = True,
) -> Path:
    """Write a nuScenes dataset of synthetic street scenes that nuscenes-devkit loads, renders and evaluates on.

    Key frames are 0.5 s apart. Key frames that are already complete under the same settings are kept, so an
    interrupted call can simply be repeated. With ``workers > 1`` processes are spawned: a script calls this under
    ``if __name__ == "__main__":``.

    Args:
        root: dataset folder, made if missing; it holds one dataset.
        version: ``v1.0-mini`` or ``v1.0-trainval``; scenes are named after its splits.
        scenes: how many (a quarter of them for validation), or their names.
        samples_per_scene: key frames of each scene.
        seed: of everything; not negative.
        workers: processes.
        image_size: width and height of the camera images [pixels]; intrinsics are scaled from 1600x900.
        sweeps: LiDAR sweeps between two key frames, and before the first; 9 is the sensor's 20 Hz.
        beams: and
        azimuth_steps: of the LiDAR; fewer make smaller clouds over the same field of view.
        progress: show a bar with the time left on stderr.

    Returns:
        The root as a Path.

    Raises:
        ValueError: an argument out of range, or a root that holds other data.
        ImportError: shapely is missing, or nuscenes-devkit for v1.0-trainval.
        OSError: a file cannot be written; complete key frames stay.
    """
    root = Path(root)
    _check(samples_per_scene, seed, workers, image_size, sweeps)
    Hdl32(beams, azimuth_steps)
    load_shapely()
    names = scene_names(version, scenes)
    size = (int(image_size[0]), int(image_size[1]))
    settings = FrameSettings(version, samples_per_scene, size, int(sweeps), beams, azimuth_steps)
    _claim(root, {"format": FORMAT, "seed": seed, "scenes": list(names), **asdict(settings)})
    lengths = [plan_drive(settings.duration, scene_seed(seed, name)).length for name in names]
    places, sizes = lay_out(names, lengths, seed)
    jobs: list[_Job] = [
        (str(root), place, number, settings, frame)
        for number, place in enumerate(places)
        for frame in range(samples_per_scene)
    ]
    missing = [job for job in jobs if not _complete(job)]
    if progress and len(missing) < len(jobs):
        tqdm.write(
            f"generate_nuscenes: kept {len(jobs) - len(missing)} complete key frames in {root}",
            file=sys.stderr,
        )
    bar = tqdm(run_jobs(_make, missing, workers), total=len(missing), desc="synthetic key frames",
               unit="frame", disable=not progress)  # fmt: skip
    for _ in bar:
        pass
    _write_tables(root, places, sizes, settings)
    return root


def _check(
    samples_per_scene: int, seed: int, workers: int, image_size: Sequence[int], sweeps: int
) -> None:
    if not 1 <= samples_per_scene <= 400 or seed < 0 or workers < 1 or not 0 <= sweeps <= 49:
        raise ValueError(
            "generate_nuscenes: samples_per_scene must be 1..400, seed >= 0, workers >= 1 and sweeps 0..49, got "
            f"{samples_per_scene}, {seed}, {workers} and {sweeps}"
        )
    if len(image_size) != 2 or min(image_size) < 16:
        raise ValueError(
            f"generate_nuscenes: image_size must be a width and a height of at least 16, got {image_size}"
        )


def _claim(root: Path, settings: dict[str, Any]) -> None:
    """Note the settings in a new dataset; refuse a root with others."""
    note = root / SETTINGS_FILE
    wanted = json.loads(json.dumps(settings))
    if note.exists():
        found = json.loads(note.read_text())
        if found != wanted:
            raise ValueError(
                f"generate_nuscenes: {root} must be empty or hold a dataset of the same settings, got {found} "
                f"instead of {wanted}; choose another root or remove that dataset"
            )
        for left in root.rglob(".*.tmp"):  # of a call that was killed
            left.unlink()
        return
    if any((root / name).exists() for name in ("samples", "sweeps", "maps", settings["version"])):
        raise ValueError(
            f"generate_nuscenes: {root} must not hold recorded data, got a folder without {SETTINGS_FILE}; choose "
            "another root"
        )
    write_file(note, json.dumps(wanted, indent=2) + "\n")


@lru_cache(maxsize=2)
def _maker(root: str, place: ScenePlace, number: int, settings: FrameSettings) -> FrameMaker:
    scene = NuScenesScene(place.seed, settings.duration, place.origin)
    return FrameMaker(Path(root), SceneFiles(place, number, settings, scene))


def _complete(job: _Job) -> bool:
    """Whether a key frame's note, which is written last, and all its files are there."""
    return all(path.exists() for path in _maker(*job[:4]).paths(job[4]))


def _make(job: _Job) -> None:
    _maker(*job[:4]).make(job[4])


def _write_tables(
    root: Path,
    places: Sequence[ScenePlace],
    sizes: dict[str, tuple[float, float]],
    settings: FrameSettings,
) -> None:
    """Maps, then tables from the notes of all key frames."""
    records = []
    on_map: dict[str, list[tuple[str, NuScenesScene]]] = {}
    for number, place in enumerate(places):
        maker = _maker(str(root), place, number, settings)
        frames = range(settings.samples_per_scene)
        files = [file for frame in frames for file in maker.files.of_frame(frame)]
        notes = [read_note(maker.note(frame)) for frame in frames]
        stamps = [maker.files.key_us(frame) for frame in frames]
        records.append(
            SceneRecord(place.name, place.location, "Synthetic street", stamps, files, notes)
        )
        on_map.setdefault(place.location, []).append((place.name, maker.scene))
    masks = write_maps(root, on_map, sizes)
    tables = build_tables(records, masks, settings.version, settings.image_size)
    for name, rows in tables.items():
        write_file(root / settings.version / f"{name}.json", json.dumps(rows))
