"""Pictures: projections, figures, files, messages; nothing needs a display."""

from __future__ import annotations

import builtins
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure

from pointlib.data import load_label_map, write_labels, write_points
from pointlib.viz import (
    birds_eye,
    draw_scans,
    find_scans,
    overview,
    range_image,
    range_projection,
    save_figure,
    show_points,
    side_by_side,
)
from pointlib.viz.painting import class_colors, error_colors

CAR, ROAD, NONE = 0, 8, 255


@pytest.fixture
def scan() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    points = rng.uniform((-30, -30, -2, 0), (30, 30, 1, 1), (3000, 4)).astype(np.float32)
    labels = np.where(points[:, 2] < -1, ROAD, CAR).astype(np.uint8)
    labels[::10] = NONE
    return points, labels


def pixels(figure: Figure) -> np.ndarray:
    figure.canvas.draw()
    return np.asarray(figure.canvas.buffer_rgba())[..., :3]  # type: ignore[attr-defined]


def legend(figure: Figure) -> list[str]:
    return [text.get_text() for text in figure.legends[0].get_texts()]


def has(image: np.ndarray, color: tuple[int, ...]) -> bool:
    return bool((np.abs(image.astype(int) - color).max(axis=-1) <= 2).any())


def test_projection_puts_points_where_the_sensor_looks() -> None:
    # Ahead, left, behind just left of the seam, right; then a nearer one hiding the first.
    points = np.array([[20, 0, 0], [0, 10, 0], [-10, 0.01, 0], [0, -10, 0], [5, 0, 0]], np.float32)
    image = range_projection(points, rows=28, columns=8, field=(np.radians(3), np.radians(-25)))
    assert image.shape == (28, 8)
    assert image[3, [4, 2, 0, 6]].tolist() == [4, 1, 2, 3]
    assert (image >= 0).sum() == 4


def test_projection_leaves_out_what_is_above_or_below() -> None:
    points = np.array([[1, 0, 5], [1, 0, -5], [10, 0, -1]], np.float32)
    image = range_projection(points)
    assert image[image >= 0].tolist() == [2]


def test_birds_eye_shows_the_classes_in_their_colours(scan: tuple[np.ndarray, np.ndarray]) -> None:
    points, labels = scan
    figure = birds_eye(points, labels, extent=30, title="a title")
    image, names = pixels(figure), load_label_map()
    assert legend(figure) == ["car", "road", "no class"]
    assert has(image, tuple(names.colors[CAR])) and has(image, tuple(names.colors[ROAD]))
    assert not has(image, tuple(names.colors[13]))


def test_forward_is_up_and_left_is_left() -> None:
    image = pixels(birds_eye([[30, 0, 0], [0, 20, 0]], [CAR, ROAD], extent=40))
    colors = load_label_map().colors
    found = {}
    for name in (CAR, ROAD):
        # The legend, in the lowest tenth, shows the colours too.
        drawn = image[: int(0.9 * len(image))].astype(int)
        rows, columns = np.nonzero(np.abs(drawn - colors[name]).max(axis=-1) <= 2)
        found[name] = (rows.mean(), columns.mean())
    assert found[CAR][0] < found[ROAD][0] and found[CAR][1] > found[ROAD][1]


def test_pictures_without_labels(scan: tuple[np.ndarray, np.ndarray]) -> None:
    points, _ = scan
    for figure in (birds_eye(points), range_image(points[:, :3]), overview(points)):
        assert not figure.legends
        assert np.unique(pixels(figure).reshape(-1, 3), axis=0).shape[0] > 100


def test_range_image_has_a_strip_for_each_quantity(scan: tuple[np.ndarray, np.ndarray]) -> None:
    points, labels = scan
    titles = [axes.get_title() for axes in range_image(points, labels).axes]
    assert titles == ["distance", "intensity", "classes"]
    assert [a.get_title() for a in range_image(points[:, :3]).axes] == ["distance"]


@pytest.mark.parametrize(("view", "count"), [("bev", 3), ("range", 3), ("both", 6)])
def test_comparison_scores_and_shows_errors(
    scan: tuple[np.ndarray, np.ndarray], view: Any, count: int
) -> None:
    points, truth = scan
    prediction = np.where(truth == NONE, CAR, truth)
    prediction[truth == CAR] = ROAD
    figure = side_by_side(points, truth, prediction, view=view, title="scan")
    cars, roads = (truth == CAR).sum(), (truth == ROAD).sum()
    expected = 100 * roads / (cars + roads) / 2
    assert figure.get_suptitle().startswith(f"scan: mIoU {expected:.1f} %")
    assert [axes.get_title() for axes in figure.axes] == ["truth", "prediction", "errors (red)"] * (
        count // 3
    )
    assert legend(figure) == ["car", "road", "no class"]


def test_colours_of_errors_and_ignored_points() -> None:
    truth, prediction = np.array([0, 0, 255]), np.array([0, 3, 3])
    right, wrong, ignored = error_colors(truth, prediction).tolist()
    assert right[1] > right[0] and wrong[0] == 255 and wrong[1] < 100
    assert max(ignored) < 100
    assert class_colors(truth, load_label_map())[2].max() > 0  # visible on black


def test_figures_leave_no_process_wide_state(scan: tuple[np.ndarray, np.ndarray]) -> None:
    before = "matplotlib.pyplot" in sys.modules
    birds_eye(*scan)
    assert ("matplotlib.pyplot" in sys.modules) == before


def test_files_are_written_whole(scan: tuple[np.ndarray, np.ndarray], tmp_path: Path) -> None:
    figure = birds_eye(*scan, size=3)
    for suffix, magic in ((".png", b"\x89PNG"), (".pdf", b"%PDF"), (".jpg", b"\xff\xd8")):
        path = save_figure(figure, tmp_path / "new" / f"a{suffix}", dpi=40)
        assert path.read_bytes().startswith(magic)
    assert len(list((tmp_path / "new").iterdir())) == 3
    with pytest.raises(ValueError, match=r"must end in \.png"):
        save_figure(figure, tmp_path / "a.bmp")


def test_wrong_input_is_named(scan: tuple[np.ndarray, np.ndarray]) -> None:
    points, labels = scan
    broken = points.copy()
    broken[3, 1] = np.nan
    for wrong, message in (
        (lambda: birds_eye(np.zeros((0, 4))), "birds_eye: points must be"),
        (lambda: range_image(broken), "range_image: points must be finite"),
        (lambda: birds_eye(points, labels[:-1]), r"labels must be \(3000,\)"),
        (lambda: birds_eye(points, labels + np.uint8(40)), "train ids 0..18 or 255"),
        (lambda: birds_eye(points, extent=0), "extent must be positive"),
        (lambda: side_by_side(points, labels, labels[1:]), "prediction must be"),
        (lambda: side_by_side(points, labels, labels, view="top"), "view must be one of"),  # type: ignore[arg-type]
        (lambda: range_projection(points, rows=0), "rows and columns must be positive"),
        (lambda: birds_eye(points, labels, label_map="nowhere"), "name_or_path must be"),
    ):
        with pytest.raises(ValueError, match=message):
            wrong()


def test_the_viewer_names_its_extra(
    scan: tuple[np.ndarray, np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    real = builtins.__import__

    def without_open3d(name: str, *args: Any, **kwargs: Any) -> Any:
        if name == "open3d":
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without_open3d)
    with pytest.raises(ImportError, match=r'pip install "pointlib\[viz\]"'):
        show_points(*scan)


def write_tree(root: Path, points: np.ndarray, frames: int = 3) -> Path:
    raw = np.full(len(points), 40, np.uint16)
    for sequence in ("00", "08"):
        for frame in range(frames):
            folder = root / "sequences" / sequence
            write_points(folder / f"velodyne/{frame:06d}.bin", points)
            write_labels(folder / f"labels/{frame:06d}.label", raw)
    return root


def test_scans_of_a_tree_or_a_sequence_are_found(
    scan: tuple[np.ndarray, np.ndarray], tmp_path: Path
) -> None:
    root = write_tree(tmp_path / "data", scan[0])
    guesses = tmp_path / "guesses"
    raw = np.full(len(scan[0]), 48, np.uint16)
    write_labels(guesses / "sequences/08/predictions/000002.label", raw)
    scans = find_scans(root, every=2, predictions=guesses)
    assert [s.name for s in scans] == ["00_000000", "00_000002", "08_000000", "08_000002"]
    assert [s.prediction is not None for s in scans] == [False, False, False, True]
    assert all(s.labels is not None for s in scans)
    alone = find_scans(root / "sequences/08", predictions=guesses)
    assert [s.name for s in alone] == ["08_000000", "08_000001", "08_000002"]
    with pytest.raises(ValueError, match="sequences must be among 00, 08"):
        find_scans(root, sequences=["11"])
    with pytest.raises(ValueError, match="every must be at least 1"):
        find_scans(root, every=0)
    paths = draw_scans(scans[2:], tmp_path / "out", dpi=30, progress=False)
    assert [path.name for path in paths] == ["08_000000.png", "08_000002.png"]
    assert all(path.stat().st_size > 1000 for path in paths)


def test_labels_of_another_scan_are_refused(
    scan: tuple[np.ndarray, np.ndarray], tmp_path: Path
) -> None:
    root = write_tree(tmp_path, scan[0], frames=1)
    write_labels(root / "sequences/08/labels/000000.label", np.zeros(7, np.uint16))
    with pytest.raises(ValueError, match=r"000000\.label must hold one label a point"):
        draw_scans(find_scans(root, sequences=["08"]), tmp_path / "out", progress=False)
