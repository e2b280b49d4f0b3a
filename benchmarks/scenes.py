"""The voxels that are measured: a real scan, a synthetic street, and both in other sizes."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

ROOT = Path(__file__).parents[1]
QUICK_VOXELS = 5_000
BLOCK = 50_000
"""Voxels of what larger scenes are made of."""


class Scene(NamedTuple):
    """Voxels: coords (N, 4) int32 in lexicographic order, feats (N, 4) x, y, z [m], intensity."""

    name: str
    coords: Tensor
    feats: Tensor


class Drive(NamedTuple):
    """Two scans of one place: single ones are measured on the first, a batch of two holds both."""

    scan: Scene
    other: Scene


def load_drives(scans: list[Path] | None, quick: bool, count: int) -> list[Drive]:
    """The named scans or SemanticKITTI's first two where test data is found, and a synthetic street.

    Args:
        scans: One or two .bin files instead of all that; one alone makes the batch of two by itself.
        quick: Keep the voxels nearest the sensor.
        count: Of drives, at most.
    """
    drives = []
    if scans is not None:
        pair = [_voxelize(path.name, path) for path in scans]
        drives.append(Drive(pair[0], pair[-1]))
    else:
        data = Path(os.environ.get("POINTLIB_TEST_DATA", ROOT.parent / "shared" / "data"))
        folder = data / "semantickitti" / "sequences" / "00" / "velodyne"
        real = [folder / f"00000{frame}.bin" for frame in (0, 1)]
        if all(path.exists() for path in real):
            drives.append(Drive(*(_voxelize(f"SemanticKITTI 00/{p.stem}", p) for p in real)))
        if len(drives) < count:
            drives.append(_synthetic())
    if quick:
        drives = [Drive(*(resize(scene, QUICK_VOXELS) for scene in drive)) for drive in drives]
    return drives


def resize(scene: Scene, count: int) -> Scene:
    """The `count` voxels nearest the sensor; for more than BLOCK, copies of the nearest BLOCK laid side by side.

    So a million voxels have the density of a scan, and an extent whose cells fit in int32, which spconv's maps need.
    """
    block = min(count, BLOCK, len(scene.coords))
    near = torch.sort(scene.feats[:, :3].norm(dim=1).topk(block, largest=False).indices)[0]
    coords, feats = scene.coords[near], scene.feats[near]
    coords[:, 1:] -= coords[:, 1:].amin(0) // 16 * 16  # the strided voxels stay the same ones
    copies = -(-count // block)
    shift = torch.zeros(copies, 1, 4, dtype=torch.int32)
    shift[:, 0, 1] = torch.arange(copies) * ((coords[:, 1].max() + 32) // 16 * 16)
    coords = (coords + shift).view(-1, 4)[:count].contiguous()
    return Scene(scene.name, coords, feats.repeat(copies, 1)[:count])


def batch_of(drive: Drive) -> Scene:
    """Both scans of a drive as one batch."""
    scans = (drive.scan, drive.other)
    coords = torch.cat([scan.coords for scan in scans])
    coords[len(drive.scan.coords) :, 0] = 1
    return Scene(
        f"{drive.scan.name} and the next", coords, torch.cat([scan.feats for scan in scans])
    )


def _synthetic() -> Drive:
    from pointlib.data.synthetic import generate_dataset

    with tempfile.TemporaryDirectory() as folder:
        generate_dataset(Path(folder), sequences={"00": 2}, seed=0, workers=1, progress=False)
        paths = sorted(Path(folder).rglob("*.bin"))
        first, second = (_voxelize(f"synthetic street, frame {p.stem}", p) for p in paths)
        return Drive(first, second)


def _voxelize(name: str, path: Path, voxel_size: float = 0.05) -> Scene:
    points = np.fromfile(path, dtype=np.float32).reshape(-1, 4)
    cells = np.round(points[:, :3] / voxel_size).astype(np.int32)
    cells, first = np.unique(cells - cells.min(axis=0), axis=0, return_index=True)
    coords = np.pad(cells, ((0, 0), (1, 0)))
    return Scene(name, torch.from_numpy(coords), torch.from_numpy(points[first]))
