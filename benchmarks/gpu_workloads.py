"""The seven workloads that TorchSparse++ is measured on: real scans where test data is found, synthetic ones elsewhere.

SemanticKITTI MinkUNet 0.5x and 1x, nuScenes MinkUNet with 1 and 3 sweeps, nuScenes CenterPoint with 10, Waymo
CenterPoint with 1 and 3. No Waymo scan may be passed on, so those two are synthetic, of its density and range.
"""

from __future__ import annotations

import os
import tempfile
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import torch
from scenes import ROOT
from torch import Tensor

Points = np.ndarray
"""(N, 4 or more) float32 x, y, z [m], intensity, ..."""

CENTERPOINT_NUSCENES = ((-54.0, -54.0, -5.0), (54.0, 54.0, 3.0), (0.075, 0.075, 0.2))
CENTERPOINT_WAYMO = ((-75.2, -75.2, -2.0), (75.2, 75.2, 4.0), (0.1, 0.1, 0.15))
QUICK_POINTS = 5000
SWEEPS = "nuscenes/nvidia_10sweep/ff9eff4389a740848f9a56ad749a4ae8.f16.bin"


@dataclass(frozen=True)
class Workload:
    """A network and two scans of one place.

    Attributes:
        name: As in TorchSparse++'s tables.
        network: "minkunet" or "centerpoint".
        width: Channel ratio of MinkUNet.
        scans: coords (N, 4) int32 `[batch, x, y, z]`, sorted, non-negative, and feats (N, C) float32, of each scan.
        shape: Extent of the grid (x, y, z).
        source: Where the scans come from.
    """

    name: str
    network: str
    width: float
    scans: tuple[tuple[Tensor, Tensor], ...]
    shape: tuple[int, int, int]
    source: str

    @property
    def in_channels(self) -> int:
        """C."""
        return self.scans[0][1].shape[1]

    def batch(self) -> tuple[Tensor, Tensor]:
        """Both scans as one batch."""
        coords = torch.cat([coords for coords, _ in self.scans])
        coords[len(self.scans[0][0]) :, 0] = 1
        return coords, torch.cat([feats for _, feats in self.scans])


def load_workloads(names: list[str] | None, quick: bool) -> list[Workload]:
    """The named workloads, or all; `quick` keeps a few thousand points of each scan."""
    chosen = [name for name in MAKERS if names is None or name in names]
    return [_make(name, quick) for name in chosen]


def _make(name: str, quick: bool) -> Workload:
    network, width, grid, sweeps, loader = MAKERS[name]
    source, frames = loader(sweeps)
    if quick:
        frames = [points[:: max(len(points) // QUICK_POINTS, 1)] for points in frames]
    scans, shape = _voxelize_all(frames, grid)
    if name == "NS-C10f" and not quick and (published := _published_voxels()):
        source, scans = "nuScenes, voxels of libspconv's example", (published, scans[1])
    return Workload(name, network, width, scans, shape, source)


def _published_voxels() -> tuple[Tensor, Tensor] | None:
    """The 79,745 voxels of a sample that NVIDIA's libspconv is shown on: the size that published times are for."""
    names = ("in_indices_zyx.int32", "in_features.fp16")
    paths = [_data() / "nuscenes" / "nvidia_voxels" / f"centerpoint_{n}.tensor" for n in names]
    if not all(path.exists() for path in paths):
        return None
    arrays = []
    for path, dtype in zip(paths, (np.int32, np.float16), strict=True):
        content = path.read_bytes()
        rank = int(
            np.frombuffer(content, np.int32, 1, 4)[0]
        )  # after a magic number, before the type
        sizes = np.frombuffer(content, np.int32, rank, 12)
        arrays.append(np.frombuffer(content, dtype, -1, 12 + 4 * rank).reshape(sizes))
    coords = arrays[0][:, [0, 3, 2, 1]]
    order = np.lexsort(coords.T[::-1])
    feats = arrays[1].astype(np.float32)[order]
    return torch.from_numpy(np.ascontiguousarray(coords[order])), torch.from_numpy(feats)


def _voxelize_all(
    frames: list[Points], grid: float | tuple
) -> tuple[tuple[tuple[Tensor, Tensor], ...], tuple[int, int, int]]:
    """Voxels of each frame with the features of one of their points, and an extent that holds them all."""
    cells = []
    for points in frames:
        if isinstance(grid, float):
            index = np.floor(points[:, :3] / grid).astype(np.int32)
            cells.append((index - index.min(0), points))
        else:
            lower, upper, size = (np.asarray(edge, np.float32) for edge in grid)
            kept = points[np.all((points[:, :3] >= lower) & (points[:, :3] < upper), 1)]
            cells.append((((kept[:, :3] - lower) / size).astype(np.int32), kept))
    scans = []
    for index, points in cells:
        unique, first = np.unique(index, axis=0, return_index=True)
        coords = torch.from_numpy(np.pad(unique, ((0, 0), (1, 0))))
        scans.append((coords, torch.from_numpy(points[first])))
    largest = [int(max(index[:, axis].max() for index, _ in cells)) for axis in range(3)]
    if not isinstance(grid, float):
        lower, upper, size = (np.asarray(edge) for edge in grid)
        largest = [round(n) for n in (upper - lower) / size]
        largest[2] += 1  # as published: 41 slices of 40 cells
        return tuple(scans), (largest[0], largest[1], largest[2])
    x, y, z = ((n // 16 + 1) * 16 for n in largest)
    return tuple(scans), (x, y, z)


def _data() -> Path:
    return Path(os.environ.get("POINTLIB_TEST_DATA", ROOT.parent / "shared" / "data"))


def semantic_kitti(sweeps: int) -> tuple[str, list[Points]]:
    """Frames 0 and 1 of sequence 00."""
    folder = _data() / "semantickitti" / "sequences" / "00" / "velodyne"
    paths = [folder / f"00000{frame}.bin" for frame in (0, 1)]
    if all(path.exists() for path in paths):
        return "SemanticKITTI 00", [np.fromfile(p, np.float32).reshape(-1, 4) for p in paths]
    return "synthetic, 64 beams", _synthetic(64, 2160, 2)


def nuscenes(sweeps: int) -> tuple[str, list[Points]]:
    """The first sweeps of one sample, and as many later ones."""
    path = _data() / SWEEPS
    if not path.exists():
        frames = _synthetic(32, 1086, 2 * sweeps)
        return "synthetic, 32 beams", [np.concatenate(frames[i::2]) for i in (0, 1)]
    points = np.fromfile(path, np.float16).reshape(-1, 5).astype(np.float32)
    times = np.unique(points[:, 4])
    groups = (times[:sweeps], times[-sweeps:])
    return "nuScenes", [points[np.isin(points[:, 4], group)] for group in groups]


def waymo(sweeps: int) -> tuple[str, list[Points]]:
    """Synthetic frames with Waymo's number of points, 150 to 170 thousand each."""
    frames = _synthetic(64, 2650, 2 * sweeps)
    return "synthetic, 64 beams", [np.concatenate(frames[i::2]) for i in (0, 1)]


@cache
def _synthetic(beams: int, azimuth_steps: int, count: int) -> list[Points]:
    from pointlib.data.synthetic import generate_dataset

    with tempfile.TemporaryDirectory() as folder:
        settings = {"beams": beams, "azimuth_steps": azimuth_steps, "frame_stride_m": 1.0}
        generate_dataset(folder, {"00": count}, seed=0, workers=1, progress=False, **settings)
        paths = sorted(Path(folder).rglob("*.bin"))
        return [np.fromfile(path, np.float32).reshape(-1, 4) for path in paths]


MAKERS = {
    "SK-M0.5x": ("minkunet", 0.5, 0.05, 1, semantic_kitti),
    "SK-M1x": ("minkunet", 1.0, 0.05, 1, semantic_kitti),
    "NS-M1f": ("minkunet", 1.0, 0.1, 1, nuscenes),
    "NS-M3f": ("minkunet", 1.0, 0.1, 3, nuscenes),
    "NS-C10f": ("centerpoint", 1.0, CENTERPOINT_NUSCENES, 10, nuscenes),
    "WM-C1f": ("centerpoint", 1.0, CENTERPOINT_WAYMO, 1, waymo),
    "WM-C3f": ("centerpoint", 1.0, CENTERPOINT_WAYMO, 3, waymo),
}
"""Name -> network, width, voxel edge [m] or (lower, upper, edge), sweeps of a scan, and where they come from."""
