"""SemanticKITTI in its on-disk layout: scans, labels, splits, poses.

The tree is `sequences/XX/{velodyne/NNNNNN.bin, labels/NNNNNN.label, calib.txt, poses.txt, times.txt}`.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt
from torch.utils.data import Dataset

from pointlib.data.kitti_calibration import read_lidar2world
from pointlib.data.label_map import LabelMap, load_label_map
from pointlib.data.point_cloud_io import read_bin
from pointlib.data.sample import BadSampleError, PointCloudSample
from pointlib.files import write_file

_SEQUENCE_NAME = re.compile(r"\d\d+")


class RawLabels(NamedTuple):
    """A .label file.

    Attributes:
        semantic: (N,) uint16 raw class ids, the low half of each word.
        instance: (N,) uint16 instance ids, the high half; 0 for none.
    """

    semantic: npt.NDArray[np.uint16]
    instance: npt.NDArray[np.uint16]


class SemanticKITTI(Dataset[PointCloudSample]):
    """The scans of one split, as they are on disk: no augmentation, no voxels.

    Wrap it in `SegmentationDataset` for training. Objects are small (a few bytes a scan), so workers start fast.

    Args:
        root: Folder of the data set: it, its `sequences` or its `dataset/sequences` holds the sequences.
        split: "train" (00-07, 09, 10), "val" (08), "test" (11-21), or a list of sequences such as ["00", "03"].
        sequences: Read only these sequences of the split, for a download that is not complete.
        label_map: "official", "spvnas", or the path of a YAML file (see `load_label_map`).
        with_labels: Whether scans must have labels; None means all but the test split.
        unknown_labels: What a raw id without an entry in the map does: "raise", or "ignore" to make it 255.
        columns: float32 values a point has in a .bin: 4 (x, y, z, intensity), or 5 (the fifth is dropped).
        frame_stride: Read every n-th scan of each sequence.

    Raises:
        ValueError: If the root, the split or a sequence does not exist; the message names the path, what is there and
            the remedy.
    """

    def __init__(
        self,
        root: str | Path,
        split: str | Sequence[str] = "train",
        sequences: Sequence[str] | None = None,
        label_map: str | Path = "official",
        with_labels: bool | None = None,
        unknown_labels: Literal["raise", "ignore"] = "raise",
        columns: int = 4,
        frame_stride: int = 1,
    ) -> None:
        if unknown_labels not in ("raise", "ignore"):
            raise ValueError(
                f'SemanticKITTI: unknown_labels must be "raise" or "ignore", got {unknown_labels!r}.'
            )
        if frame_stride < 1:
            raise ValueError(f"SemanticKITTI: frame_stride must be at least 1, got {frame_stride}.")
        self.label_map: LabelMap = load_label_map(label_map)
        self.sequences_dir = find_sequences_dir(root)
        self.sequences = self._choose_sequences(split, sequences)
        self.with_labels = split != "test" if with_labels is None else with_labels
        self.unknown_labels: Literal["raise", "ignore"] = unknown_labels
        self.columns = columns
        frames = [list_frames(self.sequences_dir / name)[::frame_stride] for name in self.sequences]
        self._frames = np.array([frame for part in frames for frame in part], dtype=np.bytes_)
        self._sequence_of = np.repeat(
            np.arange(len(frames), dtype=np.int16), [len(part) for part in frames]
        )

    def __len__(self) -> int:
        return len(self._frames)

    def __getitem__(self, index: int) -> PointCloudSample:
        """Read one scan.

        Raises:
            IndexError: If there is no such scan.
            BadSampleError: If its files are missing or broken; the message names the file.
        """
        scan_path, label_path = self.paths(index)
        points = read_bin(scan_path, columns=self.columns)[:, :4]
        if not self.with_labels:
            return PointCloudSample(np.ascontiguousarray(points), path=str(scan_path))
        raw = read_labels(label_path)
        if len(raw.semantic) != len(points):
            raise BadSampleError(
                f"SemanticKITTI: {label_path} must have one label for each of the {len(points)} points of "
                f"{scan_path}, got {len(raw.semantic)}. One of the two was not copied completely or belongs to "
                "another scan; extract both again."
            )
        return PointCloudSample(
            points=np.ascontiguousarray(points),
            labels=self.label_map.to_train(raw.semantic, str(label_path), self.unknown_labels),
            path=str(scan_path),
            instance=raw.instance.astype(np.int32),
        )

    def paths(self, index: int) -> tuple[Path, Path]:
        """Return the .bin and .label path of a scan; neither need exist.

        Raises:
            IndexError: If there is no such scan.
        """
        if not 0 <= index < len(self):
            raise IndexError(f"SemanticKITTI: index must be 0..{len(self) - 1}, got {index}.")
        folder = self.sequences_dir / self.sequences[self._sequence_of[index]]
        frame = os.fsdecode(self._frames[index])
        return folder / "velodyne" / f"{frame}.bin", folder / "labels" / f"{frame}.label"

    def lidar2world(self, sequence: str) -> npt.NDArray[np.float64]:
        """Return the LiDAR poses of a sequence, (n, 4, 4); see `read_lidar2world`."""
        return read_lidar2world(self.sequences_dir / sequence)

    @property
    def class_names(self) -> tuple[str, ...]:
        """Name of each train id."""
        return self.label_map.class_names

    @property
    def num_classes(self) -> int:
        """Number of train ids."""
        return self.label_map.num_classes

    def _choose_sequences(
        self, split: str | Sequence[str], sequences: Sequence[str] | None
    ) -> tuple[str, ...]:
        splits = self.label_map.splits
        if isinstance(split, str):
            if split not in splits:
                raise ValueError(
                    f"SemanticKITTI: split must be one of {sorted(splits)} or a list of sequences, got "
                    f'{split!r}. Write split=["{split}"] for a single sequence.'
                )
            wanted = splits[split]
        else:
            wanted = tuple(split)
        if sequences is not None:
            foreign = sorted(set(sequences) - set(wanted))
            if foreign:
                raise ValueError(
                    f"SemanticKITTI: sequences must belong to the split {split!r} ({', '.join(wanted)}), got "
                    f"{', '.join(foreign)}. Pass split={list(sequences)} to read any sequences."
                )
            wanted = tuple(sequences)
        if not wanted:
            raise ValueError("SemanticKITTI: sequences must name at least one sequence, got none.")
        present = list_sequences(self.sequences_dir)
        missing = [name for name in wanted if name not in present]
        if missing:
            there = [name for name in wanted if name in present]
            remedy = f"sequences={there}" if there else f"split={present}"
            raise ValueError(
                f"SemanticKITTI: {self.sequences_dir} must hold sequence {', '.join(missing)} for split "
                f"{split!r}, got {', '.join(present) or 'no sequence'}. Extract the missing ones there, or pass "
                f"{remedy} to use what is there."
            )
        return wanted


def find_sequences_dir(root: str | Path) -> Path:
    """Find the folder of the sequences under a root.

    Args:
        root: DIR, where DIR, DIR/sequences or DIR/dataset/sequences holds 00, 01, ...

    Returns:
        The folder that holds them.

    Raises:
        ValueError: If there is none.
    """
    candidates = [Path(root, *parts) for parts in (("sequences",), ("dataset", "sequences"), ())]
    for folder in candidates:
        if folder.is_dir() and list_sequences(folder):
            return folder
    state = "a folder without sequences" if Path(root).is_dir() else "no folder"
    raise ValueError(
        f"find_sequences_dir: root must hold 00, 01, ... with velodyne/ inside, in itself, sequences/ or "
        f"dataset/sequences/, got {root} ({state}). Extract KITTI odometry's velodyne archive and "
        "SemanticKITTI's labels there, or make scenes with `tools/prepare_data.py synthetic`."
    )


def list_sequences(sequences_dir: str | Path) -> list[str]:
    """Return the sorted names of the folders that look like a sequence (digits, with velodyne/ inside)."""
    return sorted(
        entry.name
        for entry in Path(sequences_dir).iterdir()
        if _SEQUENCE_NAME.fullmatch(entry.name) and (entry / "velodyne").is_dir()
    )


def list_frames(sequence_dir: str | Path) -> list[str]:
    """Return the sorted names, without suffix, of a sequence's scans.

    Raises:
        ValueError: If there is no scan.
    """
    folder = Path(sequence_dir) / "velodyne"
    frames = sorted(name[:-4] for name in os.listdir(folder) if name.endswith(".bin"))
    if not frames:
        raise ValueError(
            f"list_frames: {folder} must hold NNNNNN.bin files, got none. Extract the sequence again."
        )
    return frames


def read_labels(path: str | Path) -> RawLabels:
    """Read a .label file.

    Args:
        path: Little-endian uint32 words, one a point: low half class, high half instance.

    Returns:
        Raw class and instance ids.

    Raises:
        BadSampleError: If the file cannot be read or its size is no multiple of 4 bytes.
    """
    try:
        content = Path(path).read_bytes()
    except OSError as error:
        raise BadSampleError(
            f"read_labels: path must be a readable .label file, got {path} ({error}). Extract "
            "SemanticKITTI's labels into the same tree, or read without labels (with_labels=False)."
        ) from error
    if len(content) % 4:
        raise BadSampleError(
            f"read_labels: {path} must hold 4 bytes a point, got {len(content)} bytes. The file was not "
            "copied completely; extract it again."
        )
    words = np.frombuffer(content, dtype="<u4")
    return RawLabels((words & 0xFFFF).astype(np.uint16), (words >> 16).astype(np.uint16))


def write_labels(
    path: str | Path,
    semantic: npt.NDArray[np.uint16],
    instance: npt.NDArray[np.uint16] | None = None,
) -> None:
    """Write a .label file, as the benchmark wants predictions (`sequences/XX/predictions/NNNNNN.label`).

    Args:
        path: Where to write; missing folders are made.
        semantic: (N,) uint16 raw class ids (`LabelMap.to_raw`).
        instance: (N,) uint16 instance ids, or None for zeros.

    Raises:
        TypeError: If an array is not uint16.
        ValueError: If the lengths differ.
    """
    for name, value in (("semantic", semantic), ("instance", instance)):
        if value is not None and value.dtype != np.uint16:
            raise TypeError(f"write_labels: {name} must be uint16, got {value.dtype}.")
    words = semantic.astype("<u4")
    if instance is not None:
        if instance.shape != semantic.shape:
            raise ValueError(
                f"write_labels: instance must have the shape of semantic {semantic.shape}, got "
                f"{instance.shape}."
            )
        words |= instance.astype("<u4") << 16
    write_file(path, words.tobytes())
