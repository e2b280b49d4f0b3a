"""PointPillars without zero rows and with bad input; SECOND and SECONDFPN at other strides and with bad input."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch

from pointlib.models.pillars import PointPillarsEncoder
from pointlib.models.point_voxelization import GroupedPoints, PointGrouping
from pointlib.models.second import SECOND, SECONDFPN
from tests.models.lidar_branch_inputs import PILLAR_RANGE, PILLAR_SIZE, point_clouds

GEOMETRY: dict[str, Any] = {"voxel_size": PILLAR_SIZE, "point_cloud_range": PILLAR_RANGE}


def grouped(max_points: int | None = None) -> GroupedPoints:
    clouds = [torch.from_numpy(cloud) for cloud in point_clouds()]
    return PointGrouping(**GEOMETRY, max_points=max_points)(clouds)


def encoder(max_points: int | None = None, **arguments: Any) -> PointPillarsEncoder:
    torch.manual_seed(0)
    sizes: dict[str, Any] = {"feat_channels": (8, 6), "output_shape": (20, 16)} | arguments
    return PointPillarsEncoder(**GEOMETRY, max_points=max_points, **sizes)


def test_dynamic_pillars_hold_the_largest_feature_of_their_points() -> None:
    """One layer, pillar by pillar in float64."""
    groups, network = grouped(), encoder(feat_channels=(6,)).double().eval()
    groups = dataclasses.replace(groups, points=groups.points.double())
    layer = network.pts_voxel_encoder.pfn_layers[0]
    view = network(groups)
    assert view.shape == (2, 6, 20, 16)
    assert int((view.abs().sum(1) > 0).sum()) <= len(groups.coords)
    for number in range(0, len(groups.coords), 37):
        sample, x, y, _ = groups.coords[number].tolist()
        points = groups.points[groups.voxel == number]
        centre = torch.tensor([(x + 0.5) * 0.2 - 2.0, (y + 0.5) * 0.2 - 1.6]).double()
        decorated = torch.cat(
            [points, points[:, :3] - points[:, :3].mean(0), points[:, :2] - centre], 1
        )
        want = torch.relu(layer.norm(layer.linear(decorated))).amax(0)
        torch.testing.assert_close(view[sample, :, x, y], want, rtol=1e-5, atol=1e-6)


def test_zero_rows_do_not_matter_to_full_pillars() -> None:
    groups = grouped(max_points=2)
    dynamic, padded = encoder(None).eval(), encoder(2).eval()
    with torch.no_grad():
        a, b = dynamic(groups), padded(groups)
    full, part = groups.coords[groups.counts == 2].long(), groups.coords[groups.counts < 2].long()
    assert torch.equal(*(view[full[:, 0], :, full[:, 1], full[:, 2]] for view in (a, b)))
    short = [view[part[:, 0], :, part[:, 1], part[:, 2]] for view in (a, b)]
    assert (short[1] > short[0]).any()


@pytest.mark.parametrize("max_points", [None, 4])
def test_training_reaches_every_parameter(max_points: int | None) -> None:
    network = encoder(max_points)
    network(grouped(max_points)).square().sum().backward()
    for key, parameter in network.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().sum() > 0, key


@pytest.mark.parametrize("training", [False, True])
def test_no_point_at_all_gives_zeros(training: bool) -> None:
    groups = PointGrouping(**GEOMETRY, max_points=4)([torch.zeros(0, 5)])
    view = encoder(4).train(training)(groups)
    assert view.shape == (1, 6, 20, 16)
    assert not view.any()


def test_one_pillar_alone() -> None:
    groups = PointGrouping(**GEOMETRY, max_points=4)([torch.tensor([[0.1, 0.1, 0, 7, 0.0]])])
    view = encoder(4).eval()(groups)
    assert view.any(1).nonzero().tolist() == [[0, 10, 8]]


def test_bad_groups() -> None:
    with pytest.raises(ValueError, match="at most max_points 4 points"):
        encoder(4)(grouped(None))
    with pytest.raises(ValueError, match="must have 4 columns, got 5"):
        encoder(in_channels=4)(grouped())
    with pytest.raises(ValueError, match="grouped into"):
        encoder(output_shape=(16, 20))(grouped())
    with pytest.raises(ValueError, match="must name a layer"):
        encoder(feat_channels=())


def test_maps_of_second_meet_in_its_pyramid() -> None:
    second = SECOND(4, (4, 6, 8), (1, 2, 1), (2, 2, 2))
    pyramid = SECONDFPN((4, 6, 8), (5, 5, 5), (0.5, 1, 2), use_conv_for_no_stride=False)
    maps = second(torch.randn(2, 4, 32, 16))
    assert [tuple(x.shape) for x in maps] == [(2, 4, 16, 8), (2, 6, 8, 4), (2, 8, 4, 2)]
    view = pyramid(maps)
    assert view.shape == (2, 15, 8, 4)
    view.sum().backward()
    assert all(p.grad is not None for m in (second, pyramid) for p in m.parameters())


def test_bad_maps_and_arguments() -> None:
    with pytest.raises(ValueError, match="one entry a stage"):
        SECOND(4, (4, 6), (1, 2, 1), (2, 2))
    with pytest.raises(ValueError, match="one entry a map"):
        SECONDFPN((4, 6), (5, 5), (1,))
    pyramid = SECONDFPN((4, 6), (5, 5), (1, 2))
    with pytest.raises(ValueError, match="must be 2 tensors, got 1"):
        pyramid([torch.zeros(1, 4, 8, 8)])
    with pytest.raises(ValueError, match="one resolution after upsample_strides"):
        pyramid([torch.zeros(1, 4, 9, 8), torch.zeros(1, 6, 5, 4)])
