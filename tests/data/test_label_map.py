"""Label maps: the two that ship, entry by entry, and what a map of one's own must hold."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import yaml

from pointlib.data import BadSampleError, load_label_map
from pointlib.data.label_map import LABEL_MAP_DIR

OFFICIAL_CLASS = {
    0: 0, 1: 0, 10: 1, 11: 2, 13: 5, 15: 3, 16: 5, 18: 4, 20: 5, 30: 6, 31: 7, 32: 8, 40: 9, 44: 10,
    48: 11, 49: 12, 50: 13, 51: 14, 52: 0, 60: 9, 70: 15, 71: 16, 72: 17, 80: 18, 81: 19, 99: 0,
    252: 1, 253: 7, 254: 6, 255: 8, 256: 5, 257: 5, 258: 4, 259: 5,
}  # fmt: skip
SPVNAS_IGNORES = {13, 16, 60, 256, 257}
RAW = np.array(sorted(OFFICIAL_CLASS), dtype=np.uint16)


def test_official_map_is_the_benchmark_s() -> None:
    label_map = load_label_map("official")
    want = [OFFICIAL_CLASS[int(raw)] for raw in RAW]
    assert label_map.to_train(RAW).tolist() == [255 if c == 0 else c - 1 for c in want]
    assert label_map.num_classes == 19
    assert label_map.class_names[0] == "car" and label_map.class_names[18] == "traffic-sign"
    assert label_map.splits["val"] == ("08",)
    assert len(label_map.splits["train"]) == 10 and "08" not in label_map.splits["train"]
    assert label_map.splits["test"] == tuple(str(i) for i in range(11, 22))


def test_spvnas_map_differs_in_five_ids_only() -> None:
    official, spvnas = load_label_map("official"), load_label_map("spvnas")
    differs = official.to_train(RAW) != spvnas.to_train(RAW)
    assert set(RAW[differs].tolist()) == SPVNAS_IGNORES
    assert (spvnas.to_train(RAW)[differs] == 255).all()
    assert spvnas.class_names == official.class_names


def test_raw_ids_written_for_the_benchmark_come_back() -> None:
    label_map = load_label_map()
    train = np.array([*range(19), 255], dtype=np.uint8)
    raw = label_map.to_raw(train)
    assert raw.tolist() == [
        10,
        11,
        15,
        18,
        20,
        30,
        31,
        32,
        40,
        44,
        48,
        49,
        50,
        51,
        70,
        71,
        72,
        80,
        81,
        0,
    ]
    assert np.array_equal(label_map.to_train(raw), train)


def test_colors_are_rgb() -> None:
    label_map = load_label_map()
    assert label_map.colors[0].tolist() == [100, 150, 245]  # car: light blue
    assert label_map.colors[14].tolist() == [0, 175, 0]  # vegetation: green
    assert label_map.colors[255].tolist() == [0, 0, 0]
    assert label_map.colors.shape == (256, 3)


@pytest.mark.parametrize("raw_id", [2, 258 + 2, 65535])
def test_unknown_ids_name_the_file_and_the_id(raw_id: int) -> None:
    raw = np.array([10, raw_id, raw_id], dtype=np.uint16)
    with pytest.raises(BadSampleError, match=rf"00/labels/5\.label .* {raw_id} \(2 points\)"):
        load_label_map().to_train(raw, "00/labels/5.label")
    assert load_label_map().to_train(raw, unknown="ignore").tolist() == [0, 255, 255]


def test_wrong_arrays_are_refused() -> None:
    with pytest.raises(TypeError, match="must be uint16, got int64"):
        load_label_map().to_train(np.array([10]))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"0\.\.18 or 255, got \[19\]"):
        load_label_map().to_raw(np.array([0, 19]))


def test_no_points() -> None:
    assert load_label_map().to_train(np.zeros(0, np.uint16)).shape == (0,)


def test_a_map_of_one_s_own_may_build_on_another(tmp_path: Path) -> None:
    base = LABEL_MAP_DIR / "semantic_kitti.yaml"
    path = tmp_path / "own.yaml"
    path.write_text(
        f"base: {base}\nname: own\nlearning_map: {{300: 0}}\nsplits: {{train: ['42']}}\n"
    )
    label_map = load_label_map(path)
    assert label_map.name == "own"
    assert label_map.to_train(np.array([300, 10, 40], np.uint16)).tolist() == [0, 0, 8]
    assert label_map.splits["train"] == ("42",) and label_map.splits["val"] == ("08",)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"colours": {}}, "unknown .*colours"),
        ({"ignore_index": 0}, "ignore_index in .* must be 255, got 0"),
        ({"learning_map": {10: 19}}, "learning_map in .* got 10: 19"),
        ({"learning_map": {70000: 0}}, "learning_map in .* got 70000: 0"),
        ({"inverse_map": {20: 0}}, "inverse_map in .* got 20: 0"),
    ],
)
def test_broken_maps_name_the_key(tmp_path: Path, change: dict[str, object], message: str) -> None:
    content = yaml.safe_load((LABEL_MAP_DIR / "semantic_kitti.yaml").read_text())
    path = tmp_path / "own.yaml"
    path.write_text(yaml.safe_dump({**content, **change}))
    with pytest.raises(ValueError, match=message):
        load_label_map(path)


def test_missing_maps_and_wrong_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"\[.*'official', .*\] or a YAML file, got 'oficial'"):
        load_label_map("oficial")
    path = tmp_path / "own.yaml"
    path.write_text("- 1\n")
    with pytest.raises(ValueError, match="must be a mapping"):
        load_label_map(path)
    path.write_text("a: [1\n")
    with pytest.raises(ValueError, match="must be valid YAML"):
        load_label_map(path)
