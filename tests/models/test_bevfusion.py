"""Multi-sensor networks as a whole: published sizes, missing sensors, losses, what a config may change."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch

from pointlib.models import create_model
from pointlib.models.fusers import AddFuser, ConvFuser
from pointlib.sensors import SensorBatch
from tests.models.tiny_networks import tiny_batch, tiny_multi_sensor, tiny_targets

# Parts as in mit-han-lab/bevfusion at db75150, counted there.
PUBLISHED = {
    "bevfusion_det_cl": 27_520_506 + 1_591_296 + 1_610_726 + 2_694_352 + 774_656 + 4_576_768 + 1_034_910,
    "bevfusion_det_l": 2_694_352 + 4_576_768 + 1_034_910,
    "transfusion_l": 2_694_352 + 4_576_768 + 1_034_910,
    "bevfusion_det_c": 27_520_506 + 1_591_296 + 224_166 + 11_039_488 + 1_345_024 + 1_519_686,
    "bevfusion_seg_cl": 27_520_506 + 1_591_296 + 224_166 + 2_694_352 + 774_656 + 4_576_768 + 4_723_718,
}  # fmt: skip


@pytest.mark.parametrize("name", sorted(PUBLISHED))
def test_networks_have_the_published_number_of_parameters(name: str) -> None:
    with torch.device("meta"):
        network = create_model(name)
    assert sum(p.numel() for p in network.parameters()) == PUBLISHED[name]


def test_names_are_the_published_ones() -> None:
    with torch.device("meta"):
        state = create_model("bevfusion_det_cl").state_dict()
    shapes = {
        "encoders.camera.backbone.stages.2.blocks.5.attn.w_msa.qkv.weight": (1152, 384),
        "encoders.camera.neck.lateral_convs.0.conv.weight": (256, 448, 1, 1),
        "encoders.camera.vtransform.frustum": (118, 32, 88, 3),
        "encoders.camera.vtransform.dtransform.3.weight": (32, 8, 5, 5),
        "encoders.lidar.backbone.conv_input.0.weight": (3, 3, 3, 5, 16),
        "encoders.lidar.backbone.encoder_layers.encoder_layer4.1.conv2.weight": (3, 3, 3, 128, 128),
        "fuser.0.weight": (256, 336, 3, 3),
        "decoder.backbone.blocks.1.0.weight": (256, 128, 3, 3),
        "decoder.neck.deblocks.1.0.weight": (256, 256, 2, 2),
        "heads.object.class_encoding.weight": (128, 10, 1),
    }
    assert {key: tuple(state[key].shape) for key in shapes} == shapes


def build(name: str, **changes: Any) -> Any:
    torch.manual_seed(0)
    return create_model(name, **{**tiny_multi_sensor(name), **changes})


def settled(network: Any) -> Any:
    """In evaluation mode, with the statistics of one batch: those of a fresh network let signals die out."""
    for module in network.modules():
        if hasattr(module, "running_var"):
            module.momentum = 1.0
    with torch.no_grad():
        network.train()(tiny_batch())
    return network.eval()


def without(batch: SensorBatch, *names: str) -> SensorBatch:
    return dataclasses.replace(
        batch,
        points=None if "lidar" in names else batch.points,
        cameras=None if "camera" in names else batch.cameras,
    )


@pytest.mark.parametrize("name", ["bevfusion_det_cl", "bevfusion_seg_cl"])
def test_every_way_of_missing_a_sensor_is_reported(name: str) -> None:
    network, batch = build(name).eval(), tiny_batch()
    assert batch.points is not None and batch.cameras is not None
    empty = dataclasses.replace(batch, points=tuple(cloud[:0] for cloud in batch.points))
    dark = torch.zeros_like(batch.cameras.present)
    blind = dataclasses.replace(batch, cameras=dataclasses.replace(batch.cameras, present=dark))
    one = dark.logical_not()
    one[1, 1] = False
    half = dataclasses.replace(batch, cameras=dataclasses.replace(batch.cameras, present=one))
    mixed = dataclasses.replace(batch, points=(batch.points[0], batch.points[1][:0]))
    cases: list[tuple[SensorBatch, list[tuple[str, ...]]]] = [
        (batch, [(), ()]),
        (without(batch, "camera"), [("camera",), ("camera",)]),
        (without(batch, "lidar"), [("lidar",), ("lidar",)]),
        (without(batch, "camera", "lidar"), [("camera", "lidar"), ("camera", "lidar")]),
        (empty, [("lidar",), ("lidar",)]),
        (blind, [("camera",), ("camera",)]),
        (half, [(), ("camera 1",)]),
        (mixed, [(), ("lidar",)]),
    ]
    for given, expected in cases:
        predictions = network.predict(given)
        assert [p.missing_sensors for p in predictions] == expected
        for prediction in predictions:
            values = prediction.map_probabilities
            values = prediction.detections.scores if values is None else values
            assert values.isfinite().all()


def test_a_sensor_that_is_missing_in_one_sample_is_zero_there() -> None:
    network, batch = settled(build("bevfusion_seg_cl")), tiny_batch()
    assert batch.points is not None
    mixed = dataclasses.replace(batch, points=(batch.points[0], batch.points[1][:0]))
    both = network.predict(mixed)
    full, bare = network.predict(batch), network.predict(without(batch, "lidar"))
    for got, expected in ((both[0], full[0]), (both[1], bare[1])):
        torch.testing.assert_close(got.map_probabilities, expected.map_probabilities)
    assert not torch.allclose(both[1].map_probabilities, full[1].map_probabilities)


def test_a_sensor_changes_what_is_predicted() -> None:
    network, batch = settled(build("bevfusion_seg_cl")), tiny_batch()
    whole = network.predict(batch)[0].map_probabilities
    for name in ("camera", "lidar"):
        assert not torch.allclose(whole, network.predict(without(batch, name))[0].map_probabilities)


def test_losses_are_named_and_inputs_are_left_alone() -> None:
    network, batch = build("bevfusion_det_cl"), tiny_batch()
    assert batch.points is not None
    before = [cloud.clone() for cloud in batch.points]
    losses = network.loss(network(batch), tiny_targets())
    assert set(losses) == {"object/heatmap", "object/class", "object/bbox"}
    assert all(torch.equal(a, b) for a, b in zip(before, batch.points, strict=True))


def test_a_view_transform_brings_its_own_loss() -> None:
    camera = {**tiny_multi_sensor("bevfusion_det_c")["camera"], "view_transform": "bev_depth"}
    network = build("bevfusion_det_c", camera=camera)
    losses = network.loss(network(tiny_batch()), tiny_targets())
    (name,) = (key for key in losses if key.startswith("camera/"))
    losses[name].backward()
    assert network.encoders["camera"]["backbone"].patch_embed.projection.weight.grad is not None


def test_the_add_fuser_averages_the_sensors_that_are_there() -> None:
    fuser = AddFuser([2, 3], 4).eval()
    views = [torch.randn(3, 2, 5, 5), torch.randn(3, 3, 5, 5)]
    first, second = (t(v) for t, v in zip(fuser.transforms, views, strict=True))
    present = torch.tensor([[True, True], [False, True], [False, False]])
    out = fuser(views, present)
    torch.testing.assert_close(out[0], (first[0] + second[0]) / 2)
    torch.testing.assert_close(out[1], second[1])
    assert not out[2].any()


def test_the_conv_fuser_stacks_the_sensors_in_order() -> None:
    fuser = ConvFuser([1, 1], 1).eval()
    with torch.no_grad():
        fuser[0].weight.zero_()
        fuser[0].weight[0, 1, 1, 1] = 2.0  # the centre of the second sensor
    views = [torch.rand(1, 1, 3, 3), torch.rand(1, 1, 3, 3)]
    expected = 2.0 * views[1] / (1 + fuser[1].eps) ** 0.5
    torch.testing.assert_close(fuser(views, torch.ones(1, 2, dtype=torch.bool)), expected)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"lidar": {"base_chanels": 8}}, TypeError, "did you mean 'base_channels'"),
        ({"camera": {"backbone": "swinn"}}, ValueError, "did you mean 'swin'"),
        ({"fuser": {"name": "cat"}}, ValueError, "fuser: name must be a registered one"),
        ({"head": {"num_proposal": 3}}, TypeError, "did you mean 'num_proposals'"),
        ({"decoder": {"name": "sekond"}}, ValueError, "did you mean 'second'"),
    ],
)
def test_wrong_sizes_are_refused_by_name(
    changes: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        build("bevfusion_det_cl", **changes)


@pytest.mark.parametrize(
    ("view_transform", "expected"), [("lss", False), ("depth_lss", True), ("bev_depth", True)]
)
def test_cameras_that_find_depth_with_points_ask_for_them(
    view_transform: str, expected: bool
) -> None:
    with torch.device("meta"):
        network = create_model("bevfusion_det_c", camera={"view_transform": view_transform})
        assert network.reads_points == expected
        assert create_model("bevfusion_det_l").reads_points
