"""Ground-truth paste: the database holds what the boxes hold; what is pasted stands free and is complete."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pointlib.data.gt_paste import ObjectPaste, PasteConfig
from pointlib.data.image_transforms import ImageConfig
from pointlib.data.multi_sensor import MultiSensorSample
from pointlib.data.multi_sensor_batch import collate_multi_sensor
from pointlib.data.multi_sensor_pipeline import MultiSensorDataset, MultiSensorPipeline
from pointlib.data.paste_database import PasteDatabase, build_paste_database, cut_objects
from pointlib.data.sample import BadSampleError
from pointlib.data.sampler import SampleKey
from pointlib.geometry import box_corners
from pointlib.ops.boxes import points_in_boxes
from tests.data.multi_sensor_scenes import CLASSES, RANGE, MemorySource, make_scene

COUNTS = {"car": 5, "pedestrian": 4, "barrier": 3}


def scenes(count: int = 8) -> list[MultiSensorSample]:
    return [make_scene(seed) for seed in range(count)]


@pytest.fixture
def database(tmp_path: Path) -> PasteDatabase:
    return build_paste_database(MemorySource(scenes()), tmp_path / "objects", progress=False)


def empty_scene() -> MultiSensorSample:
    """Ground and no boxes."""
    return make_scene(100, num_boxes=0, num_background=5000)


# The database


def test_the_database_holds_what_the_boxes_hold(database: PasteDatabase) -> None:
    source = scenes()
    assert len(database) == sum(len(scene.boxes) for scene in source)
    assert database.class_names == CLASSES
    assert np.array_equal(database.samples, np.repeat(np.arange(8), 6))
    row = 0
    for scene in source:
        for i, box in enumerate(scene.boxes):
            assert np.array_equal(database.boxes[row], box)
            assert database.labels[row] == scene.box_labels[i]
            expected = scene.points[20 * i : 20 * i + 20]  # the ground lies below the boxes
            assert np.abs(database.points_of(row) - expected).max() < 1e-5
            assert np.array_equal(database.points_of(row)[:, 3:], expected[:, 3:])
            row += 1
    assert "car" in database.summary() and str(20 * 16) in database.summary()


def test_objects_of_few_points_are_left_out() -> None:
    scene = make_scene(num_boxes=3, num_background=0)
    cut = cut_objects(scene.replace(points=scene.points[:44]), min_points=5)
    assert cut.counts.tolist() == [20, 20]
    assert np.array_equal(cut.boxes, scene.boxes[:2])
    nothing = cut_objects(scene.replace(points=scene.points[:0]), min_points=5)
    assert nothing.points.shape == (0, 5) and len(nothing.boxes) == 0
    no_boxes = cut_objects(empty_scene(), min_points=5)
    assert no_boxes.points.shape == (0, 5) and no_boxes.boxes.shape == (0, 9)


def test_a_point_in_two_boxes_belongs_to_both() -> None:
    scene = make_scene(num_boxes=1, num_background=0)
    twice = scene.replace(boxes=scene.boxes.repeat(2, 0), box_labels=np.array([0, 1]))
    assert cut_objects(twice, 5).counts.tolist() == [20, 20]


def test_workers_write_the_same_database(database: PasteDatabase, tmp_path: Path) -> None:
    source = MemorySource(scenes())
    other = build_paste_database(source, tmp_path / "other", workers=2, progress=False)
    for name in ("points.bin", "objects.arrays"):
        assert (other.folder / name).read_bytes() == (database.folder / name).read_bytes()


def test_a_pickled_database_sends_its_folder_alone(database: PasteDatabase) -> None:
    sent = pickle.dumps(database)
    assert len(sent) < 500
    back = pickle.loads(sent)
    assert np.array_equal(back.points_of(17), database.points_of(17))
    assert isinstance(back._points, np.memmap)


def test_an_existing_database_is_kept_only_if_it_is_the_same(database: PasteDatabase) -> None:
    written = (database.folder / "points.bin").stat().st_mtime_ns
    again = build_paste_database(MemorySource(scenes()), database.folder, progress=False)
    assert len(again) == len(database)
    assert (database.folder / "points.bin").stat().st_mtime_ns == written
    with pytest.raises(ValueError, match=r"must be new or hold a database of.*set overwrite"):
        build_paste_database(MemorySource(scenes(2)), database.folder, progress=False)
    with pytest.raises(ValueError, match="must be new or hold"):
        build_paste_database(
            MemorySource(scenes()), database.folder, origin={"num_sweeps": 1}, progress=False
        )
    fewer = build_paste_database(
        MemorySource(scenes(2)), database.folder, overwrite=True, progress=False
    )
    assert len(fewer) == 12
    assert sorted(path.name for path in database.folder.parent.iterdir()) == ["objects"]


def test_a_broken_sample_stops_or_is_left_out(tmp_path: Path) -> None:
    source = MemorySource(scenes(), broken=[3])
    with pytest.raises(BadSampleError, match=r"scene3\.bin"):
        build_paste_database(source, tmp_path / "objects", progress=False)
    assert not list(tmp_path.iterdir())  # nothing half-written stays
    skipped = build_paste_database(
        source, tmp_path / "objects", on_bad_sample="skip", progress=False
    )
    assert set(skipped.samples.tolist()) == {0, 1, 2, 4, 5, 6, 7}


def test_a_split_without_boxes_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="boxes of at least 5 points, got none in 2 samples"):
        build_paste_database(MemorySource([empty_scene()] * 2), tmp_path / "x", progress=False)
    assert not list(tmp_path.iterdir())


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-40])


def flip_byte(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("damage", "name", "verify", "message"),
    [
        (truncate, "points.bin", False, r"points\.bin must have .* bytes, got"),
        (Path.unlink, "points.bin", False, r"points\.bin must have .* bytes, got none"),
        (flip_byte, "points.bin", True, r"points\.bin must have the SHA-256"),
        (truncate, "objects.arrays", False, r"objects\.arrays must be whole"),
        (Path.unlink, "objects.arrays", False, "without objects.arrays. Run"),
    ],
)
def test_damage_is_found(
    database: PasteDatabase, damage: Callable[[Path], None], name: str, verify: bool, message: str
) -> None:
    damage(database.folder / name)
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        PasteDatabase(database.folder, verify)


# Pasting


def rectangles_meet(one: np.ndarray, other: np.ndarray) -> bool:
    """Whether two footprints overlap: no edge of either separates them."""
    first, second = (box_corners(box[None].astype(float))[0, :4, :2] for box in (one, other))
    for corners in (first, second):
        for edge in (corners[1] - corners[0], corners[2] - corners[1]):
            a, b = first @ edge, second @ edge
            if a.max() <= b.min() or b.max() <= a.min():
                return False
    return True


@pytest.mark.parametrize("seed", range(5))
def test_what_is_pasted_stands_free_and_is_complete(database: PasteDatabase, seed: int) -> None:
    """No two boxes overlap; a pasted box holds its object's points and nothing else; the rest is as it was."""
    scene = make_scene(50 + seed, num_boxes=3, num_background=6000)
    # Points everywhere, also where objects will be.
    scene.points[60:, 2] = np.random.default_rng(seed).uniform(-1, 1, len(scene.points) - 60)
    pasted = ObjectPaste(database, COUNTS)(scene, 0, np.random.default_rng(seed))
    assert len(pasted.boxes) > 5
    assert np.array_equal(pasted.boxes[:3], scene.boxes)
    for i, box in enumerate(pasted.boxes):
        assert not any(rectangles_meet(box, other) for other in pasted.boxes[:i])
    rows = [int(np.flatnonzero((database.boxes == box).all(1))[0]) for box in pasted.boxes[3:]]
    assert np.array_equal(database.labels[rows], pasted.box_labels[3:])
    objects = np.concatenate([database.points_of(row) for row in rows])
    count = len(pasted.points) - len(objects)
    assert np.array_equal(pasted.points[count:], objects)
    new = torch.from_numpy(pasted.boxes[3:])
    assert (points_in_boxes(torch.from_numpy(pasted.points[:count]), new) < 0).all()
    outside = points_in_boxes(torch.from_numpy(scene.points), new) < 0
    assert (~outside).sum() > 0
    assert np.array_equal(pasted.points[:count], scene.points[outside.numpy()])
    assert (pasted.box_points[3:] == 20).all()


def test_classes_are_filled_up_to_their_counts(database: PasteDatabase) -> None:
    """Into an empty scene, as often as it takes, all that fits; never more than the count."""
    paste = ObjectPaste(database, {"car": 2, "barrier": 1})
    seen = []
    for seed in range(20):
        pasted = paste(empty_scene(), 0, np.random.default_rng(seed))
        seen.append(np.bincount(pasted.box_labels, minlength=3))
    assert np.max(seen, 0).tolist() == [2, 0, 1]
    full = make_scene(0)  # two of each class
    assert paste(full, 0, np.random.default_rng(0)) is full
    hidden = full.replace(box_points=np.zeros(6, np.int64))  # which no one can see
    added = [len(paste(hidden, 0, np.random.default_rng(seed)).boxes) - 6 for seed in range(20)]
    assert 1 <= max(added) <= 3


def test_pasting_stops_at_an_epoch(database: PasteDatabase) -> None:
    pipeline = MultiSensorPipeline(RANGE, True, paste=ObjectPaste(database, COUNTS, stop_epoch=2))
    dataset = MultiSensorDataset(MemorySource([empty_scene()]), pipeline)
    counts = []
    for epoch in range(4):
        targets = collate_multi_sensor([dataset[SampleKey(epoch, 0)]]).targets
        assert targets is not None
        counts.append(len(targets.boxes[0]))
    assert counts[0] > 3 and counts[1] > 3 and counts[2:] == [0, 0]
    forever = ObjectPaste(database, COUNTS, stop_epoch=None)
    assert len(forever(empty_scene(), 1000, np.random.default_rng(0)).boxes) > 3


def test_sweeps_that_the_scene_lacks_are_not_pasted(database: PasteDatabase) -> None:
    """Objects come with the sweeps at 0, 0.05 and 0.1 s; the scene has the first two, a little later."""
    scene = empty_scene()
    scene.points[:, 4] = np.where(np.arange(len(scene.points)) % 2, 0.054, 0.0)
    pasted = ObjectPaste(database, COUNTS)(scene, 0, np.random.default_rng(1))
    added = pasted.points[-int(pasted.box_points.sum()) :]
    assert set(added[:, 4].tolist()) == {0.0, float(np.float32(0.05))}
    assert (pasted.box_points < 20).all() and (pasted.box_points >= 5).all()


def test_the_choice_depends_on_the_generator_alone(database: PasteDatabase) -> None:
    paste = ObjectPaste(database, COUNTS)
    one, two, other = (
        paste(empty_scene(), 0, np.random.default_rng(seed)).boxes for seed in (1, 1, 2)
    )
    assert np.array_equal(one, two)
    assert not np.array_equal(one, other)


def test_config_opens_its_database(database: PasteDatabase) -> None:
    config = PasteConfig(str(database.folder), {"car": 1}, min_points=20, stop_epoch=None)
    paste = ObjectPaste.from_config(config)
    assert len(paste(empty_scene(), 99, np.random.default_rng(0)).boxes) == 1
    many = ObjectPaste(database, {"car": 1}, min_points=21)
    assert len(many(empty_scene(), 0, np.random.default_rng(0)).boxes) == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"counts": {"tram": 2}}, r"counts must name classes of the database.*got \['tram'\]"),
        ({"counts": {"car": -1}}, "counts must be at least 0"),
        ({"min_points": 0, "counts": COUNTS}, "min_points at least 1"),
    ],
)
def test_wrong_options_are_named(
    database: PasteDatabase, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        ObjectPaste(database, **options)


def test_what_does_not_fit_together_is_refused(database: PasteDatabase) -> None:
    paste = ObjectPaste(database, COUNTS)
    with pytest.raises(ValueError, match="images would not show what is pasted"):
        MultiSensorPipeline(RANGE, True, image=ImageConfig(), paste=paste)
    source = MemorySource(scenes())
    source.class_names = ("truck", "pedestrian", "barrier")
    with pytest.raises(ValueError, match="must be of the classes"):
        MultiSensorDataset(source, MultiSensorPipeline(RANGE, True, paste=paste))
    scene = empty_scene()
    wide = scene.replace(points=np.concatenate([scene.points, scene.points[:, :1]], 1))
    with pytest.raises(ValueError, match="must have 5 columns as the database's, got 6"):
        paste(wide, 0, np.random.default_rng(0))
