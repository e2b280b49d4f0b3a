"""The multi-sensor pipeline: a point is on its pixel after any augmentation; samples repeat; batches join."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pointlib.data.image_transforms import ImageConfig
from pointlib.data.lidar_transforms import LidarAugmentConfig
from pointlib.data.multi_sensor import MapLayers, MultiSensorSample
from pointlib.data.multi_sensor_batch import (
    collate_multi_sensor,
)
from pointlib.data.multi_sensor_pipeline import MultiSensorDataset, MultiSensorPipeline
from pointlib.data.nuscenes_info import NuScenesInfo
from pointlib.data.nuscenes_map import MapGrid
from pointlib.data.sample import BadSampleError
from pointlib.data.sampler import SampleKey
from pointlib.geometry import project_points, projection_matrix, transform_points
from tests.data.multi_sensor_scenes import (
    EVALUATION,
    RANGE,
    SMALL,
    TRAINING,
    MemorySource,
    make_camera,
    make_scene,
    make_source,
)


def same(one: Any, two: Any) -> bool:
    """Whether two prepared samples are equal to the bit."""
    if hasattr(one, "__dataclass_fields__"):
        return all(same(vars(one)[name], vars(two)[name]) for name in vars(one))
    return np.array_equal(one, two)


# Points and pixels


def colour_of(direction: np.ndarray) -> np.ndarray:
    """A colour for each direction in which a camera looks, changing slowly: (..., 2) -> (..., 3) in 0..255."""
    x, y = direction[..., 0], direction[..., 1]
    waves = [np.sin(8 * x), np.cos(9 * y), np.sin(5 * x + 7 * y)]
    return np.stack([127 + 90 * wave for wave in waves], -1)


def painted_scene(seed: int) -> MultiSensorSample:
    """Two cameras whose every pixel shows the colour of its direction, and points whose intensity is their number."""
    rng = np.random.default_rng(seed)
    size = (450, 800)
    v, u = np.mgrid[: size[0], : size[1]] + 0.5
    cameras = []
    for i, yaw in enumerate((0.2, 2.5)):
        blank = make_camera(f"CAM_{i}", yaw, None, size)
        f, cu, cv = blank.intrinsics[0, 0], blank.intrinsics[0, 2], blank.intrinsics[1, 2]
        image = colour_of(np.stack([(u - cu) / f, (v - cv) / f], -1)).round().astype(np.uint8)
        cameras.append(make_camera(f"CAM_{i}", yaw, image, size))
    points = np.zeros((4000, 5), np.float32)
    points[:, :3] = rng.uniform([-30, -30, -3], [30, 30, 2], (4000, 3))
    points[:, 3] = np.arange(4000)
    return make_scene(seed).replace(points=points, cameras=tuple(cameras))


def colour_at(image: np.ndarray, pixels: np.ndarray) -> np.ndarray:
    """Colour of a (3, H, W) image at (N, 2) places between the centres of its pixels."""
    corner = np.floor(pixels - 0.5).astype(int)
    (x, y), (fx, fy) = corner.T, (pixels - 0.5 - corner).T
    upper = image[:, y, x] * (1 - fx) + image[:, y, x + 1] * fx
    lower = image[:, y + 1, x] * (1 - fx) + image[:, y + 1, x + 1] * fx
    return (upper * (1 - fy) + lower * fy).T


@pytest.mark.parametrize("seed", range(8))
def test_augmented_points_meet_augmented_images(seed: int) -> None:
    """The colour at a point's place in the augmented image is the one that the raw point has in the recorded image.

    The way is the network's: augmented cloud, back through `lidar_aug`, into the camera, onto the recorded image,
    through `image_aug`. Half a pixel off would be 4 levels.
    """
    scene = painted_scene(seed)
    config = ImageConfig((160, 280), (0.4, 0.6), rotation=0.1, mean=(0, 0, 0), std=(1, 1, 1))
    wide = (-200.0, -200.0, -50.0, 200.0, 200.0, 50.0)
    pipeline = MultiSensorPipeline(wide, True, LidarAugmentConfig(), config)
    dataset = MultiSensorDataset(MemorySource([scene]), pipeline, seed=seed)
    sensors = collate_multi_sensor([dataset[0]]).sensors
    assert sensors.points is not None and sensors.cameras is not None
    points = sensors.points[0].double().numpy()
    raw = scene.points[points[:, 3].astype(int), :3].astype(float)
    assert np.abs(points[:, :3] - raw).max() > 1.0
    recorded = transform_points(points[:, :3], np.linalg.inv(sensors.lidar_aug[0].double()))
    compared = 0
    for i, camera in enumerate(scene.cameras):
        lidar2camera = np.linalg.inv(sensors.cameras.camera2lidar[0, i].double().numpy())
        intrinsics = sensors.cameras.intrinsics[0, i].double().numpy()
        seen = project_points(recorded, projection_matrix(intrinsics, lidar2camera))
        matrix = sensors.cameras.image_aug[0, i].double().numpy()
        pixels = seen.pixels @ matrix[:2, :2].T + matrix[:2, 3]
        x, y, depth = transform_points(raw, camera.lidar2camera).T
        direction = np.stack([x, y], 1) / depth[:, None]
        inside = ((pixels >= 3) & (pixels < [277, 157])).all(1) & (depth > 1.0)
        inside &= (np.abs(direction) < [0.61, 0.34]).all(
            1
        )  # 10 pixels from the recorded image's border
        shown = 255 * colour_at(sensors.cameras.images[0, i].numpy(), pixels[inside])
        assert np.abs(shown - colour_of(direction[inside])).max() < 2.5
        compared += int(inside.sum())
    assert compared > 100


def test_boxes_map_and_points_move_together() -> None:
    """Points in boxes stay in boxes, and the map is drawn around the same place."""
    square = np.array([[5.0, 5.0], [15.0, 5.0], [15.0, 12.0], [5.0, 12.0]])
    layers = MapLayers({"drivable_area": [[square]]}, {})
    inside = np.array([[10.0, 8.0, 0, 0, 0], [6, 6, 0, 0, 0], [14, 11, 0, 0, 0]], np.float32)
    outside = np.array([[3.0, 3, 0, 0, 0], [17, 8, 0, 0, 0], [10, 14, 0, 0, 0]], np.float32)
    scene = make_scene().replace(points=np.concatenate([inside, outside]), map=layers)
    grid = MapGrid((-32.0, 32.0), (-32.0, 32.0), 0.5, ("drivable_area",))
    pytest.importorskip("shapely")
    pytest.importorskip("cv2")
    pipeline = MultiSensorPipeline(RANGE, True, LidarAugmentConfig(), map_grid=grid)
    dataset = MultiSensorDataset(MemorySource([scene]), pipeline)
    for epoch in range(6):
        sample = dataset[SampleKey(epoch, 0)]
        assert sample.targets is not None and sample.targets.map_masks is not None
        masks = sample.targets.map_masks
        assert masks.shape == (1, 128, 128) and masks.dtype == bool
        for points, covered in ((inside, True), (outside, False)):
            moved = transform_points(points.astype(float), sample.lidar_aug)
            x, y = np.floor((moved[:, :2] + 32) / 0.5).astype(int).T
            assert (masks[0, x, y] == covered).all()


# Samples


def test_a_sample_depends_on_seed_epoch_and_index_alone() -> None:
    dataset = MultiSensorDataset(make_source(), TRAINING, seed=3)
    want = dataset[SampleKey(2, 3)]
    dataset[SampleKey(0, 1)]
    assert same(dataset[SampleKey(2, 3)], want)
    assert same(pickle.loads(pickle.dumps(dataset))[SampleKey(2, 3)], want)
    assert not same(dataset[SampleKey(1, 3)], want)
    assert not same(MultiSensorDataset(make_source(), TRAINING, seed=4)[SampleKey(2, 3)], want)
    dataset.set_epoch(2)
    assert same(dataset[3], want)


def test_repeated_indices_are_varied_each_on_its_own() -> None:
    source = make_source()
    dataset = MultiSensorDataset(source, TRAINING, indices=[2, 4, 2])
    assert len(dataset) == 3
    one, other, again = (dataset[i] for i in range(3))
    assert one.token == again.token == "token2" and other.token == "token4"
    assert not np.array_equal(one.lidar_aug, again.lidar_aug)
    for wrong in ([], [5], [-1]):
        with pytest.raises(ValueError, match="MultiSensorDataset: indices must"):
            MultiSensorDataset(source, TRAINING, indices=wrong)


def test_options_do_not_change_each_others_numbers() -> None:
    """Images vary the same with and without an augmented scene."""
    source = make_source()
    one = MultiSensorDataset(source, TRAINING)[1]
    other = MultiSensorDataset(source, MultiSensorPipeline(RANGE, True, None, SMALL))[1]
    assert one.cameras is not None and other.cameras is not None
    assert np.array_equal(one.cameras.images, other.cameras.images)
    assert not np.array_equal(one.lidar_aug, other.lidar_aug)


def test_evaluation_changes_nothing() -> None:
    source = make_source()
    far = source.samples[0].boxes.copy()
    far[0, 0] = 300.0
    source.samples[0] = source.samples[0].replace(boxes=far, box_points=np.zeros(6, np.int64))
    sample = MultiSensorDataset(source, EVALUATION)[SampleKey(5, 0)]
    assert sample.points is not None and sample.targets is not None and sample.cameras is not None
    assert np.array_equal(sample.points, source.samples[0].points)
    assert np.allclose(sample.targets.boxes, far, atol=1e-6)
    assert np.array_equal(sample.lidar_aug, np.eye(4))
    assert np.array_equal(sample.cameras.image_aug[0], sample.cameras.image_aug[1])
    assert np.allclose(sample.cameras.image_aug[0][:2, :2], 0.55 * np.eye(2))


def test_the_source_is_never_changed() -> None:
    source = make_source(1)
    arrays = [value for value in vars(source.samples[0]).values() if isinstance(value, np.ndarray)]
    arrays += [camera.image for camera in source.samples[0].cameras if camera.image is not None]
    for array in arrays:
        array.flags.writeable = False
    for pipeline in (TRAINING, EVALUATION):
        sample = MultiSensorDataset(source, pipeline)[0]
        assert sample.points is not None
        assert not any(np.shares_memory(sample.points, array) for array in arrays)


def test_training_leaves_out_boxes_that_cannot_be_learned() -> None:
    scene = make_scene()
    boxes, counts = scene.boxes.copy(), scene.box_points.copy()
    boxes[0, 0], boxes[1, 2], counts[2] = 41.0, 100.0, 0  # too far, too high, without points
    source = MemorySource([scene.replace(boxes=boxes, box_points=counts)])
    sample = MultiSensorDataset(source, MultiSensorPipeline(RANGE, True, min_box_points=1))[0]
    assert sample.targets is not None
    assert np.allclose(sample.targets.boxes, boxes[[1, 3, 4, 5]], atol=1e-6)
    assert sample.targets.labels.tolist() == scene.box_labels[[1, 3, 4, 5]].tolist()
    strict = MultiSensorDataset(source, MultiSensorPipeline(RANGE, True, min_box_points=21))[0]
    loose = MultiSensorDataset(source, MultiSensorPipeline(RANGE, True))[0]
    assert loose.targets is not None and len(loose.targets.boxes) == 5
    assert strict.targets is not None and strict.targets.boxes.shape == (0, 9)


def test_a_missing_image_is_black_and_reported() -> None:
    scene = make_scene(num_cameras=3)
    cameras = list(scene.cameras)
    cameras[1] = make_camera("CAM_1", 2.0, None)
    source = MemorySource([scene.replace(cameras=tuple(cameras))])
    sample = MultiSensorDataset(source, EVALUATION)[0]
    assert sample.cameras is not None
    assert sample.cameras.present.tolist() == [True, False, True]
    black = -np.array(SMALL.mean) / np.array(SMALL.std)
    assert np.allclose(sample.cameras.images[1], black[:, None, None])
    assert sample.cameras.images[0].std() > 0.1
    # Its size is guessed from where its axis is, so its matrix is that of its neighbours.
    assert np.allclose(sample.cameras.image_aug[1], sample.cameras.image_aug[0])


# Wrong input


def broken_scene(change: dict[str, Any]) -> MultiSensorSample:
    """A scene whose first camera is changed."""
    scene = make_scene(num_cameras=1)
    camera = scene.cameras[0]
    return scene.replace(cameras=(type(camera)(**{**vars(camera), **change}),))


@pytest.mark.parametrize(
    ("scene", "pipeline", "message"),
    [
        (make_scene(), EVALUATION, "must come with camera images, got none"),
        (
            broken_scene({"image": np.zeros((90, 160), np.uint8)}),
            EVALUATION,
            r"CAM_0.jpg must be an \(H, W, 3\) uint8 RGB image",
        ),
        (
            broken_scene({"image": np.zeros((90, 160, 3), np.float32)}),
            TRAINING,
            r"CAM_0.jpg must be an \(H, W, 3\) uint8 RGB image, got float32",
        ),
        (
            broken_scene({"lidar2camera": 2 * np.eye(4)}),
            EVALUATION,
            "CAM_0 of .* must have a rigid",
        ),
        (make_scene(first_x=1000, num_background=0), TRAINING, "points inside point_cloud_range"),
        (
            make_scene(),
            MultiSensorPipeline(RANGE, False, map_grid=MapGrid()),
            "must come with its map",
        ),
    ],
)
def test_a_broken_sample_is_named(
    scene: MultiSensorSample, pipeline: MultiSensorPipeline, message: str
) -> None:
    with pytest.raises(BadSampleError, match=message):
        MultiSensorDataset(MemorySource([scene]), pipeline)[0]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"point_cloud_range": (0, 0, 0, 1, 1)}, "point_cloud_range must be 3 minima"),
        ({"with_points": False, "image": None}, "nothing to see"),
        ({"training": False, "augment": LidarAugmentConfig()}, "must be None in evaluation"),
    ],
)
def test_a_wrong_pipeline_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MultiSensorPipeline(**{"point_cloud_range": RANGE, "training": True, **options})


def test_a_real_sample_is_prepared_as_published(test_data: Path) -> None:
    """Six images of nuScenes: scaled by 0.48 and cut at the bottom, to one level."""
    info = test_data / "nuscenes/scene0061_kf0/info.json"
    if not info.exists():
        pytest.skip("needs nuscenes/scene0061_kf0")
    source = NuScenesInfo(info, num_sweeps=1)
    config = ImageConfig()
    pipeline = MultiSensorPipeline((-54, -54, -5, 54, 54, 3), False, image=config)
    sample = MultiSensorDataset(source, pipeline)[0]
    assert sample.points is not None and sample.cameras is not None and sample.targets is not None
    assert sample.cameras.present.all() and len(sample.targets.boxes) == len(source[0].boxes) > 50
    for shown, recorded in zip(sample.cameras.images, source[0].cameras, strict=True):
        assert recorded.image is not None
        scaled = Image.fromarray(recorded.image).resize((768, 432), Image.Resampling.BICUBIC)
        expected = np.asarray(scaled.crop((32, 176, 736, 432))) / 255.0
        levels = shown.transpose(1, 2, 0) * config.std + config.mean
        assert np.abs(levels - expected).max() < 1.01 / 255
