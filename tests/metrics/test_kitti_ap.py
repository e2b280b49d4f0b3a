"""KITTI's AP: equal to OpenPCDet's evaluator on a random set, to mmdetection3d's unit test, and to cases by hand."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pointlib.metrics.kitti_ap import LOOSE_MIN_OVERLAPS, METRICS, MIN_OVERLAPS, kitti_ap

GOLDEN = Path(__file__).parents[1] / "golden" / "kitti" / "ap.npz"


@dataclass(frozen=True)
class Objects:
    names: Any
    truncated: Any
    occluded: Any
    alpha: Any
    bbox: Any
    size_hwl: Any
    location: Any
    rotation_y: Any
    scores: Any = None


def objects(names: list[str], rows: Any, scored: bool) -> Objects:
    """Rows: truncated, occluded, alpha, bbox, height, width, length, location, rotation_y[, score]."""
    rows = np.asarray(rows, dtype=np.float64)
    return Objects(
        names=np.array(names, dtype=object),
        truncated=rows[:, 0],
        occluded=rows[:, 1].astype(np.int64),
        alpha=rows[:, 2],
        bbox=rows[:, 3:7],
        size_hwl=rows[:, 7:10],
        location=rows[:, 10:13],
        rotation_y=rows[:, 13],
        scores=rows[:, 14] if scored else None,
    )


def golden_frames(golden: Any, tag: str) -> list[Objects]:
    starts = np.cumsum([0, *golden[f"{tag}_counts"]])
    names = golden["names"][golden[f"{tag}_names"]]
    rows = golden[f"{tag}_rows"]
    return [
        objects([str(n) for n in names[a:b]], rows[a:b], scored=tag == "found")
        for a, b in itertools.pairwise(starts)
    ]


@pytest.mark.parametrize("table", [0, 1])
def test_equals_the_reference_on_a_random_set(table: int) -> None:
    """OpenPCDet's eval.py, with shapely in place of its CUDA overlap, on 50 images with every kind of exception."""
    golden = np.load(GOLDEN)
    overlaps = (MIN_OVERLAPS, LOOSE_MIN_OVERLAPS)[table]
    scores = kitti_ap(
        golden_frames(golden, "truth"), golden_frames(golden, "found"), min_overlaps=overlaps
    )
    np.testing.assert_allclose(scores.ap40, golden["ap40"][table], atol=1e-9)
    np.testing.assert_allclose(scores.ap11, golden["ap11"][table], atol=1e-9)
    assert np.count_nonzero(scores.ap40) > 30


def test_equals_the_unit_test_of_mmdetection3d() -> None:
    """Inputs and numbers of its tests/test_evaluation/test_functional/test_kitti_eval.py."""
    truth_rows = [
        [0, 0, -1.57, 674.9179, 165.48549, 693.23694, 193.42134, 2.85, 2.63, 12.34, 0.47, 1.49, 69.44, -1.56],
        [0, 0, 1.85, 676.21954, 165.70988, 691.63745, 193.83748, 1.67, 1.87, 3.69, -16.53, 2.39, 58.49, 1.57],
        [0, 3, -1.65, 389.4093, 182.48041, 421.49072, 202.13422, 1.86, 0.6, 2.02, 4.59, 1.32, 45.84, -1.55],
        [-1, -1, -10, 232.0577, 186.16724, 301.94623, 217.4024, *[-1] * 3, *[-1000] * 3, -10],
        [-1, -1, -10, 758.6537, 172.98509, 816.32434, 212.76743, *[-1] * 3, *[-1000] * 3, -10],
        [-1, -1, -10, 532.37, 176.35, 542.68, 185.27, *[-1] * 3, *[-1000] * 3, -10],
        [-1, -1, -10, 559.62, 175.83, 575.4, 183.15, *[-1] * 3, *[-1000] * 3, -10],
    ]  # fmt: skip
    place = [1.74, 0.53, 1.44, 4.667, 1.285, 45.8, 1.17]
    found_rows = [
        [0, 0, alpha, *truth_rows[i][3:7], *place, score]
        for i, (alpha, score) in enumerate(
            [
                (1.0744612, 0.18151495),
                (1.2775835, 0.57920843),
                (1.82563, 0.27795696),
                (2.1145396, 0.23100418),
                (-1.7676563, 0.21541929),
            ]
        )
    ]
    names = ["Pedestrian", "Cyclist", "Car", "Car", "Car"]
    truth = objects([*names, "DontCare", "DontCare"], truth_rows, scored=False)
    found = objects(names, found_rows, scored=True)
    scores = kitti_ap([truth], [found], ("Pedestrian", "Cyclist", "Car"))
    expected11 = np.zeros((3, 4, 3))
    expected11[:, METRICS.index("bbox"), 1:] = 9.09090909
    expected11[0, 3, 1:], expected11[1, 3, 1:] = 0.55020816, 8.36633862
    expected11[:, :, 0] = 0  # all are too small to be easy
    expected11[2, 3, 1:] = 8.63476893
    expected40 = np.zeros((3, 4, 3))
    expected40[2, 0, 1:], expected40[2, 3, 1:] = 2.5, 1.58140643
    np.testing.assert_allclose(scores.ap11, expected11, atol=1e-6)
    np.testing.assert_allclose(scores.ap40, expected40, atol=1e-6)


CAR = [0, 0, -1.57, 100, 100, 200, 180, 1.5, 1.6, 3.9, 0, 1.6, 20, -1.57]


def cars(count: int, score: float | None = None) -> Objects:
    """Easy cars side by side; the score rises to the right."""
    rows = np.array([CAR] * count, dtype=float).reshape(count, len(CAR))
    rows[:, [3, 5]] += 110 * np.arange(count)[:, None]
    rows[:, 10] = 4 * np.arange(count)
    if score is not None:
        rows = np.column_stack([rows, score + 0.01 * np.arange(count)])
    return objects(["Car"] * count, rows, scored=score is not None)


def test_truth_as_prediction_is_perfect_and_nothing_is_zero() -> None:
    perfect = kitti_ap([cars(5)] * 20, [cars(5, 0.9)] * 20, ("Car",))
    np.testing.assert_allclose(perfect.ap40, 100)
    np.testing.assert_allclose(perfect.ap11, 100)
    assert perfect.counted.tolist() == [[100, 100, 100]]
    nothing = kitti_ap([cars(5)] * 20, [cars(0, 0.9)] * 20, ("Car",))
    assert nothing.ap40.max() == nothing.ap11.max() == 0


def test_a_wrong_detection_costs_precision_unless_it_is_in_a_dont_care_region() -> None:
    found = [cars(6, 0.9)] * 20
    lone = kitti_ap([cars(5)] * 20, found, ("Car",)).ap40[0, :, 1]
    assert (lone < 100).all()
    region = objects(
        ["DontCare"], [[-1, -1, -10, 640, 90, 760, 190, *[-1] * 3, *[-1000] * 3, -10]], False
    )
    parts = {
        name: np.concatenate([getattr(cars(5), name), getattr(region, name)])
        for name in ("names", "truncated", "occluded", "alpha", "bbox", "size_hwl", "location", "rotation_y")
    }  # fmt: skip
    excused = kitti_ap([Objects(**parts)] * 20, found, ("Car",)).ap40[0, :, 1]
    np.testing.assert_allclose(excused[[0, 3]], 100)
    np.testing.assert_allclose(excused[1:3], lone[1:3])  # only the image knows such regions


def test_a_van_is_neither_right_nor_wrong() -> None:
    van = replace(cars(5), names=np.array(["Car"] * 4 + ["Van"], dtype=object))
    scores = kitti_ap([van] * 20, [cars(5, 0.9)] * 20, ("Car",))
    np.testing.assert_allclose(scores.ap40, 100)
    assert scores.counted.tolist() == [[80, 80, 80]]
    truck = replace(van, names=np.array(["Car"] * 4 + ["Truck"], dtype=object))
    assert (kitti_ap([truck] * 20, [cars(5, 0.95)] * 20, ("Car",)).ap40 < 100).all()


def test_orientation_counts_the_error_of_alpha() -> None:
    found = cars(5, 0.9)
    for error, expected in ((np.pi / 2, 50), (np.pi, 0), (2 * np.pi, 100)):
        turned = replace(found, alpha=found.alpha + error)
        aos = kitti_ap([cars(5)] * 20, [turned] * 20, ("Car",)).ap40[0, METRICS.index("aos")]
        np.testing.assert_allclose(aos, expected, atol=1e-9)
    without = replace(found, alpha=np.full(5, -10.0))
    assert kitti_ap([cars(5)] * 20, [without] * 20, ("Car",)).ap40[0, 3].max() == 0


def test_results_have_names() -> None:
    scores = kitti_ap([cars(5)] * 20, [cars(5, 0.9)] * 20, ("Car",))
    assert scores.as_dict()["Car/3d_moderate_ap40"] == pytest.approx(100)
    assert len(scores.as_dict()) == 2 * 4 * 3
    assert "Car 3d" in scores.table() and "moderate" in scores.table()


def test_bad_input_is_refused() -> None:
    with pytest.raises(ValueError, match=r"each of the 2 images, got 1"):
        kitti_ap([cars(1)] * 2, [cars(1, 0.5)])
    with pytest.raises(ValueError, match="finite scores, got none or others at 0"):
        kitti_ap([cars(1)], [cars(1)])
    with pytest.raises(ValueError, match="every class of class_names, got none for Tram"):
        kitti_ap([cars(1)], [cars(1, 0.5)], ("Car", "Tram"))
