"""BEVDepth's view transform: depth targets and loss against brute force, learning, and knowledge of the camera."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from pointlib.models.bev_depth import BEVDepthTransform, camera_numbers
from pointlib.models.frustum import lidar_depth_images
from pointlib.models.view_transform import LSSTransform
from pointlib.sensors import SensorBatch
from tests.models.camera_inputs import GRID, filled, golden_batch
from tests.models.deterministic_weights import uniform_input


def transform(**changes: Any) -> BEVDepthTransform:
    network = filled(BEVDepthTransform(8, 6, **{**GRID, **changes}))
    assert isinstance(network, BEVDepthTransform)
    return network


def features() -> Tensor:
    return uniform_input(40, (2, 3, 8, 8, 22))


def test_depth_bins_are_nearest_to_the_nearest_point_of_each_cell() -> None:
    network, batch = transform(), golden_batch()
    assert batch.cameras is not None and batch.points is not None
    bins = network.depth_bins(batch)
    images = lidar_depth_images(batch.points, batch.cameras, batch.lidar_aug, (64, 176))
    depths = network.frustum[:, 0, 0, 2]  # 1 to 38.5 m
    found = 0
    for image, row in zip(images.flatten(0, 1), bins, strict=True):
        for y in range(8):
            for x in range(22):
                cell = image[8 * y : 8 * y + 8, 8 * x : 8 * x + 8]
                near = float(cell[cell > 0].min()) if (cell > 0).any() else None
                if near is None or not 0.25 < near < 39.25:
                    assert row[y, x] == -1
                    continue
                found += 1
                assert row[y, x] == (depths - near).abs().argmin()
    assert found > 100


def test_the_loss_is_the_published_one() -> None:
    """Binary cross entropy over all depths, averaged over cells with a point, times three."""
    network, batch = transform(), golden_batch()
    assert batch.cameras is not None
    depth = network.lift(features(), batch.cameras, batch).depth.detach()
    bins, total, count = network.depth_bins(batch), 0.0, 0
    for n, y, x in (bins >= 0).nonzero().tolist():
        p = depth[n, :, y, x].double()
        right = int(bins[n, y, x])
        total -= float(p[right].log() + (1 - p).log().sum() - (1 - p[right]).log())
        count += 1
    _, losses = network.forward_with_losses(features(), batch)
    assert float(losses["depth"].detach()) == pytest.approx(3 * total / count, rel=1e-5)


def test_the_view_is_that_of_forward_and_other_transforms_have_no_loss() -> None:
    network, batch = transform(), golden_batch()
    with torch.no_grad():
        view, losses = network.forward_with_losses(features(), batch)
        assert torch.equal(view, network(features(), batch))
        assert set(losses) == {"depth"}
        assert network.forward_with_losses(features(), replace(batch, points=None))[1] == {}
        plain = LSSTransform(8, 6, **GRID).eval()
        view, losses = plain.forward_with_losses(features(), batch)
        assert torch.equal(view, plain(features(), batch)) and losses == {}


def test_no_visible_point_gives_a_loss_of_zero_with_gradients() -> None:
    network = transform()
    far = replace(golden_batch(), points=(torch.zeros(0, 5),) * 2)
    _, losses = network.forward_with_losses(features(), far)
    losses["depth"].backward()
    assert float(losses["depth"].detach()) == 0.0


@pytest.mark.parametrize("enabled", [False, True], ids=["float32", "bfloat16"])
def test_gradients_reach_every_parameter(enabled: bool) -> None:
    network = transform().train()
    with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
        view, losses = network.forward_with_losses(features(), golden_batch())
        (view.float().square().mean() + losses["depth"]).backward()
    for key, parameter in network.named_parameters():
        gradient = parameter.grad
        assert gradient is not None and gradient.isfinite().all(), key
        assert gradient.abs().max() > 0, key


def test_it_learns_the_lidar_depth() -> None:
    network, batch = transform().train(), golden_batch()
    optimizer = torch.optim.Adam(network.parameters(), 3e-3)
    history = []
    for _ in range(25):
        optimizer.zero_grad()
        loss = network.forward_with_losses(features(), batch)[1]["depth"]
        loss.backward()
        optimizer.step()
        history.append(float(loss.detach()))
    assert history[-1] < 0.75 * history[0]


def test_depth_depends_on_the_camera_but_not_on_a_missing_one() -> None:
    network, batch = transform(), golden_batch()
    cameras = batch.cameras
    assert cameras is not None

    def depth(other: SensorBatch) -> Tensor:
        assert other.cameras is not None
        with torch.no_grad():
            return network.lift(features(), other.cameras, other).depth.view(2, 3, -1)

    wider = replace(batch, cameras=replace(cameras, intrinsics=cameras.intrinsics * 0.5))
    assert (depth(batch) - depth(wider)).abs().max() > 1e-3
    present = torch.tensor([[True, False, True]] * 2)
    broken = torch.where(present[..., None, None], cameras.camera2lidar, torch.nan)
    without = replace(batch, cameras=replace(cameras, present=present, camera2lidar=broken))
    assert torch.equal(depth(batch)[present], depth(without)[present])
    assert depth(without).isfinite().all()
    numbers = camera_numbers(cameras, batch.lidar_aug, (64, 176))
    assert numbers.shape == (2, 3, 27) and numbers.abs().max() < 40


def test_refuses_features_that_do_not_divide_the_image() -> None:
    with pytest.raises(ValueError, match=r"feature_size must divide image_size \(64, 176\)"):
        transform(feature_size=(9, 22))
