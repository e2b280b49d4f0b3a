"""The synthetic nuScenes data set: what the devkit makes of it, geometry, determinism, resuming, refusals."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pointlib.data import synthetic_nuscenes_frame as frame_module
from pointlib.data.synthetic_nuscenes import SETTINGS_FILE, generate_nuscenes
from pointlib.data.synthetic_nuscenes_layout import scene_names
from pointlib.data.synthetic_nuscenes_rig import CAMERAS, MOUNTS
from pointlib.data.synthetic_nuscenes_scene import NuScenesScene
from pointlib.data.synthetic_nuscenes_tables import token as token_of
from pointlib.geometry import invert, quaternion_rotation, rigid_transform

pytest.importorskip("nuscenes")

SMALL: dict[str, Any] = {
    "image_size": (160, 90), "sweeps": 2, "beams": 16, "azimuth_steps": 240, "progress": False,
}  # fmt: skip
TINY = SMALL | {"image_size": (64, 36), "sweeps": 1, "azimuth_steps": 90}
FRAMES = 3


def contents(root: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(root)): path.read_bytes()
        for path in sorted(root.rglob("*"))
        if path.is_file()
    }


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return generate_nuscenes(
        tmp_path_factory.mktemp("nuscenes"), scenes=2, samples_per_scene=FRAMES, workers=1, **SMALL
    )


@pytest.fixture(scope="module")
def devkit(root: Path) -> Any:
    from nuscenes.nuscenes import NuScenes

    return NuScenes("v1.0-mini", str(root), verbose=False)


def pose_of(record: dict[str, Any]) -> np.ndarray:
    rotation = quaternion_rotation(np.array(record["rotation"]))
    return rigid_transform(rotation, record["translation"])


def sensor2global(devkit: Any, data: dict[str, Any]) -> np.ndarray:
    mount = pose_of(devkit.get("calibrated_sensor", data["calibrated_sensor_token"]))
    return pose_of(devkit.get("ego_pose", data["ego_pose_token"])) @ mount


def test_the_devkit_loads_every_table_and_link(devkit: Any) -> None:
    assert [scene["name"] for scene in devkit.scene] == ["scene-0061", "scene-0103"]
    assert len(devkit.sample) == 2 * FRAMES
    assert len(devkit.sample_data) == 2 * FRAMES * (3 + len(CAMERAS))
    assert len(devkit.category) == 32 and len(devkit.attribute) == 8 and len(devkit.sensor) == 7
    for table in ("sample", "sample_data", "sample_annotation"):
        for record in getattr(devkit, table):
            for one, other in (("next", "prev"), ("prev", "next")):
                if record[one]:
                    assert devkit.get(table, record[one])[other] == record["token"]
    for instance in devkit.instance:
        token, count = instance["first_annotation_token"], 0
        while token:
            last, token = token, devkit.get("sample_annotation", token)["next"]
            count += 1
        assert (last, count) == (instance["last_annotation_token"], instance["nbr_annotations"])
    for sample in devkit.sample:
        assert set(sample["data"]) == set(MOUNTS)


def test_the_devkit_draws_boxes_labels_and_points(devkit: Any, tmp_path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    data = devkit.sample[1]["data"]
    devkit.render_sample_data(data["CAM_FRONT"], out_path=str(tmp_path / "front.png"))
    devkit.render_sample_data(
        data["LIDAR_TOP"], show_lidarseg=True, nsweeps=1, underlay_map=False,
        out_path=str(tmp_path / "lidar.png"),
    )  # fmt: skip
    devkit.render_sample_data(
        data["LIDAR_TOP"], nsweeps=3, underlay_map=False, out_path=str(tmp_path / "sweeps.png")
    )
    assert all(path.stat().st_size > 5000 for path in tmp_path.glob("*.png"))
    assert len(list(tmp_path.glob("*.png"))) == 3


def test_boxes_hold_the_points_they_say(devkit: Any) -> None:
    from nuscenes.utils.data_classes import LidarPointCloud
    from nuscenes.utils.geometry_utils import points_in_box

    filled = 0
    for sample in devkit.sample:
        path, boxes, _ = devkit.get_sample_data(sample["data"]["LIDAR_TOP"])
        cloud = LidarPointCloud.from_file(path).points[:3]
        for box in boxes:
            annotation = devkit.get("sample_annotation", box.token)
            assert points_in_box(box, cloud).sum() == annotation["num_lidar_pts"]
            filled += annotation["num_lidar_pts"] > 5
    assert filled > 20


def test_points_of_a_thing_are_labelled_as_it_is(devkit: Any, root: Path) -> None:
    from nuscenes.utils.data_classes import LidarPointCloud
    from nuscenes.utils.geometry_utils import points_in_box

    right, total = 0, 0
    index_of = {category["name"]: category["index"] for category in devkit.category}
    for sample in devkit.sample:
        data = sample["data"]["LIDAR_TOP"]
        path, boxes, _ = devkit.get_sample_data(data)
        cloud = LidarPointCloud.from_file(path).points[:3]
        labels = np.fromfile(root / devkit.get("lidarseg", data)["filename"], np.uint8)
        packed = np.load(root / devkit.get("panoptic", data)["filename"])["data"]
        assert len(labels) == cloud.shape[1] and np.array_equal(packed // 1000, labels)
        assert ((packed % 1000 > 0) == ((labels > 0) & (labels < 24))).all()
        assert set(np.unique(labels)) >= {24, 28}
        for box in boxes:
            held = points_in_box(box, cloud)
            right += (labels[held] == index_of[box.name]).sum()
            total += held.sum()
    assert right > 0.93 * total


def test_points_in_boxes_project_into_their_outline(devkit: Any) -> None:
    from nuscenes.utils.data_classes import LidarPointCloud
    from nuscenes.utils.geometry_utils import points_in_box
    from scipy.spatial import ConvexHull

    seen = 0
    sample = devkit.sample[1]
    lidar = devkit.get("sample_data", sample["data"]["LIDAR_TOP"])
    path, boxes, _ = devkit.get_sample_data(lidar["token"])
    cloud = LidarPointCloud.from_file(path).points[:3]
    for channel in CAMERAS:
        data = devkit.get("sample_data", sample["data"][channel])
        mount = devkit.get("calibrated_sensor", data["calibrated_sensor_token"])
        matrix = np.array(mount["camera_intrinsic"])
        assert (data["width"], data["height"]) == SMALL["image_size"]
        to_camera = invert(sensor2global(devkit, data)) @ sensor2global(devkit, lidar)
        _, outlines, _ = devkit.get_sample_data(data["token"])
        corners_of = {box.token: box.corners() for box in outlines}
        for box in boxes:
            corners = corners_of.get(box.token)
            if corners is None or (corners[2] < 0.5).any():
                continue
            inside = cloud[:, points_in_box(box, cloud)]
            pixels = matrix @ (to_camera[:3, :3] @ inside + to_camera[:3, 3:])
            outline = matrix @ corners
            hull = ConvexHull((outline[:2] / outline[2]).T)
            over = hull.equations[:, :2] @ (pixels[:2] / pixels[2]) + hull.equations[:, 2:]
            assert (over < 1e-6).all()
            seen += inside.shape[1]
    assert seen > 100


def test_velocities_are_those_of_the_trajectories(devkit: Any, root: Path) -> None:
    settings = json.loads((root / SETTINGS_FILE).read_text())
    assert settings["scenes"][0] == "scene-0061"
    scene = NuScenesScene((0, 61), 0.5 * (FRAMES + 1))
    first = devkit.scene[0]
    middle = devkit.get("sample", devkit.get("sample", first["first_sample_token"])["next"])
    # The scene here lies at the origin of the map; velocities do not mind.
    times = (0.5, 1.5)
    states = [
        {box.instance: box for box in scene.boxes(t, scene.drive.station(1.0))} for t in times
    ]
    by_token = {token_of("instance", "scene-0061", number): number for number in states[0]}
    moving = 0
    for token in middle["anns"]:
        annotation = devkit.get("sample_annotation", token)
        number = by_token.get(annotation["instance_token"])
        if not (annotation["prev"] and annotation["next"]) or number not in states[1]:
            continue
        way = states[1][number].centre - states[0][number].centre
        velocity = devkit.box_velocity(token)
        np.testing.assert_allclose(velocity[:2], way[:2] / (times[1] - times[0]), atol=1e-6)
        attribute = devkit.get("attribute", annotation["attribute_tokens"][0])["name"] if (
            annotation["attribute_tokens"]) else ""  # fmt: skip
        speed = np.linalg.norm(velocity[:2])
        assert (speed > 0.4) == (attribute.endswith((".moving", "with_rider")))
        moving += speed > 0.4
    assert moving > 5


def test_the_ego_drives_on_and_stays_on_the_road(devkit: Any, root: Path) -> None:
    from nuscenes.utils.map_mask import MapMask

    for scene in devkit.scene:
        sample = devkit.get("sample", scene["first_sample_token"])
        record = devkit.get("sample_data", sample["data"]["LIDAR_TOP"])
        while record["prev"]:
            record = devkit.get("sample_data", record["prev"])
        log = devkit.get("log", scene["log_token"])
        mask = MapMask(str(root / devkit.get("map", log["map_token"])["filename"]))
        poses, times = [], []
        while True:
            pose = pose_of(devkit.get("ego_pose", record["ego_pose_token"]))
            assert mask.is_on_mask(*pose[:2, 3]).all()
            poses.append(pose)
            times.append(record["timestamp"])
            if not record["next"]:
                break
            record = devkit.get("sample_data", record["next"])
        steps = np.diff(times) * 1e-6
        assert len(times) == 3 * FRAMES and (steps > 0).all()
        for before, after, step in zip(poses[:-1], poses[1:], steps, strict=True):
            ahead, aside, up = invert(before)[:3, :3] @ (after - before)[:3, 3]
            assert 0.5 < ahead / step < 15 and abs(aside) < 0.1 and up == 0


def test_the_devkit_reads_the_map(devkit: Any, root: Path) -> None:
    from nuscenes.map_expansion.map_api import NuScenesMap

    layers = ["drivable_area", "ped_crossing", "walkway", "stop_line", "carpark_area",
              "road_divider", "lane_divider"]  # fmt: skip
    for scene in devkit.scene:
        location = devkit.get("log", scene["log_token"])["location"]
        api = NuScenesMap(str(root), location)
        for polygon in api.polygon:
            assert api.extract_polygon(polygon["token"]).is_valid
        sample = devkit.get("sample", scene["first_sample_token"])
        data = devkit.get("sample_data", sample["data"]["LIDAR_TOP"])
        x, y, _ = devkit.get("ego_pose", data["ego_pose_token"])["translation"]
        mask = api.get_map_mask((x, y, 100.0, 100.0), 0.0, layers, (200, 200))
        assert mask.shape == (7, 200, 200) and (mask[[0, 2, 5, 6]].sum(axis=(1, 2)) > 50).all()
        lane = api.get_closest_lane(x, y, radius=4)
        assert lane
        path = np.array(api.discretize_lanes([lane], 0.5)[lane])
        assert np.hypot(path[:, 0] - x, path[:, 1] - y).min() < 1.0
        assert all(
            api.get(layer, record["token"]) for layer in layers for record in getattr(api, layer)
        )


def test_a_submission_of_the_truth_scores_full_marks(devkit: Any, tmp_path: Path) -> None:
    from nuscenes.eval.detection.config import config_factory
    from nuscenes.eval.detection.evaluate import DetectionEval
    from nuscenes.eval.detection.utils import (
        category_to_detection_name,
        detection_name_to_rel_attributes,
    )

    results: dict[str, list[Any]] = {}
    names = set()
    for sample in devkit.sample:
        scene = devkit.get("scene", sample["scene_token"])["name"]
        rows = results.setdefault(sample["token"], []) if scene == "scene-0103" else []
        for token in sample["anns"]:
            annotation = devkit.get("sample_annotation", token)
            name = category_to_detection_name(annotation["category_name"])
            names.add(name)
            attributes = [
                devkit.get("attribute", t)["name"] for t in annotation["attribute_tokens"]
            ]
            assert set(attributes) <= set(detection_name_to_rel_attributes(name))
            if annotation["num_lidar_pts"] == 0:
                continue  # the devkit leaves these out of the truth
            rows.append(
                {
                    "sample_token": sample["token"], "translation": annotation["translation"],
                    "size": annotation["size"], "rotation": annotation["rotation"],
                    "velocity": devkit.box_velocity(token)[:2].tolist(), "detection_name": name,
                    "detection_score": 0.5, "attribute_name": attributes[0] if attributes else "",
                }
            )  # fmt: skip
    assert len(names) == 10
    path = tmp_path / "results.json"
    meta = dict.fromkeys(("use_camera", "use_lidar", "use_radar", "use_map", "use_external"), False)
    path.write_text(json.dumps({"meta": meta, "results": results}))
    evaluation = DetectionEval(
        devkit, config_factory("detection_cvpr_2019"), str(path), "mini_val", str(tmp_path), False
    )
    metrics, _ = evaluation.evaluate()
    present = {box.detection_name for boxes in evaluation.gt_boxes.boxes.values() for box in boxes}
    for name in present:
        assert metrics.mean_dist_aps[name] > 0.99
        assert metrics.get_label_tp(name, "trans_err") < 1e-6


def test_one_and_two_workers_write_the_same_bytes(tmp_path: Path) -> None:
    for workers in (1, 2):
        generate_nuscenes(
            tmp_path / str(workers), scenes=["scene-0916"], samples_per_scene=2, seed=4, workers=workers, **TINY
        )  # fmt: skip
    one, two = contents(tmp_path / "1"), contents(tmp_path / "2")
    assert one == two and len(one) > 35


def test_an_interrupted_call_goes_on_and_other_settings_are_refused(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = contents(root)
    lost = sorted((root / "synthetic_frames" / "scene-0103").glob("*.json"))[1]
    gone = [
        lost,
        min((root / "samples" / "CAM_BACK").glob("*scene-0103*")),
        root / "v1.0-mini" / "log.json",
    ]
    for path in gone:
        path.unlink()
    (root / "samples" / ".cloud.bin.1-0.tmp").write_bytes(b"half of a file")
    made: list[int] = []
    whole = frame_module.FrameMaker.make

    def make(maker: Any, frame: int) -> None:
        made.append(frame)
        whole(maker, frame)

    monkeypatch.setattr(frame_module.FrameMaker, "make", make)
    generate_nuscenes(root, scenes=2, samples_per_scene=FRAMES, workers=1, **SMALL)
    assert sorted(made) == [0, 1] and contents(root) == before
    with pytest.raises(ValueError, match="same settings"):
        generate_nuscenes(
            root, scenes=2, samples_per_scene=FRAMES, workers=1, **SMALL | {"beams": 8}
        )


def test_wrong_arguments_are_refused(tmp_path: Path) -> None:
    for wrong, message in (
        ({"version": "v1.0-test"}, "version must be"),
        ({"scenes": 11}, "scenes must be 1..10"),
        ({"scenes": ["scene-0001"]}, "scenes must be different names"),
        ({"samples_per_scene": 0}, "samples_per_scene must be"),
        ({"image_size": (8, 8)}, "image_size must be"),
        ({"beams": 1}, "beams must be"),
    ):
        with pytest.raises(ValueError, match=message):
            generate_nuscenes(tmp_path, progress=False, **wrong)
    assert not contents(tmp_path)
    (tmp_path / "samples").mkdir()
    with pytest.raises(ValueError, match="must not hold recorded data"):
        generate_nuscenes(tmp_path, progress=False)


def test_scenes_are_named_after_the_splits() -> None:
    from nuscenes.utils import splits

    assert scene_names("v1.0-mini", 10) == (*splits.mini_train, *splits.mini_val)
    names = scene_names("v1.0-trainval", 12)
    assert len(set(names)) == 12
    assert (len(set(names) & set(splits.train)), len(set(names) & set(splits.val))) == (9, 3)
