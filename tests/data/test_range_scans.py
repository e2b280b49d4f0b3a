"""Range-image scans become a tree that reads back to the same points and labels."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from pointlib.data import BadSampleError, SemanticKITTI
from pointlib.data.range_scans import write_range_tree


def write_npz(folder: Path, name: str, seed: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    points = rng.normal(size=(25, 4)).astype(np.float32)
    label = (np.arange(25) % 20).astype(np.uint8)
    np.savez(folder / f"{name}.npz", xyzi=points, label=label)
    return points, label


def test_scans_are_shared_out_and_read_back(tree: Path, tmp_path: Path) -> None:
    source = tmp_path / "npz"
    source.mkdir()
    made = {f"{i:06d}": write_npz(source, f"{i:06d}", i) for i in range(4)}
    written = write_range_tree(source, tmp_path / "out", ["000002"], labelled_tree=tree)
    names = {sequence: [path.stem for path in paths] for sequence, paths in written.items()}
    assert names == {
        "00": ["000000", "000001", "000003", "000000", "000001", "000002"],
        "08": ["000002"],
    }
    train = SemanticKITTI(tmp_path / "out", ["00"])
    for index, name in enumerate(("000000", "000001", "000003")):
        points, label = made[name]
        sample = train[index]
        assert np.array_equal(sample.points, points)
        assert np.array_equal(sample.labels, np.where(label == 0, 255, label.astype(int) - 1))
    original = SemanticKITTI(tree, ["00"])
    assert np.array_equal(train[4].points, original[1].points)
    assert np.array_equal(train[4].labels, original[1].labels)
    assert len(SemanticKITTI(tmp_path / "out", "val")) == 1


def test_wrong_sources_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"must hold \.npz files, got none"):
        write_range_tree(tmp_path, tmp_path / "out")
    write_npz(tmp_path, "000000", 0)
    with pytest.raises(ValueError, match=r"must name scans of .* got 12"):
        write_range_tree(tmp_path, tmp_path / "out", ["12"])
    np.savez(tmp_path / "000001.npz", xyzi=np.zeros((3, 4)), label=np.full(3, 20))
    with pytest.raises(BadSampleError, match=r"000001\.npz .*0\.\.19.*largest label 20"):
        write_range_tree(tmp_path, tmp_path / "out")
    np.savez(tmp_path / "000001.npz", xyzi=np.zeros((3, 4)))
    with pytest.raises(BadSampleError, match="with xyzi and label"):
        write_range_tree(tmp_path, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_real_scans(test_data: Path, tmp_path: Path) -> None:
    source = test_data / "semantickitti_range/seq00"
    held_out = [f"{i:06d}" for i in range(12, 16)]
    write_range_tree(source, tmp_path, held_out, test_data / "semantickitti")
    train, val = SemanticKITTI(tmp_path, ["00"]), SemanticKITTI(tmp_path, "val")
    assert [len(train), len(val)] == [13, 4]
    assert [len(train[0]), len(train[12])] == [51_770, 124_668]
