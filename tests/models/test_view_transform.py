"""View transforms against mit-han-lab/bevfusion and brute force: names, views, gradients, the plan that is kept."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from pointlib.models.frustum import frustum_points
from pointlib.models.view_transform import (
    DepthLSSTransform,
    LSSTransform,
    ViewTransform,
)
from pointlib.sensors import SensorBatch
from tests.models.camera_inputs import (
    GRID,
    PUBLISHED_GRID,
    check_answers,
    filled,
    golden_batch,
    golden_facts,
)
from tests.models.deterministic_weights import uniform_input

KINDS: dict[str, type[ViewTransform]] = {"lss": LSSTransform, "depth_lss": DepthLSSTransform}
# Largest difference over largest value. In float64 nothing but rounding differs; in float32 the sums differ in order,
# and no point of this frustum is within 5e-6 cells of a border, where rounding would move it to another cell.
RTOL = {torch.float64: 1e-12, torch.float32: 1e-5}


def transform(kind: str = "lss", reference: bool = True, **changes: Any) -> ViewTransform:
    arguments = {"in_channels": 8, "out_channels": 6, "reference_truncation": reference}
    network = filled(KINDS[kind](**{**arguments, **GRID, **changes}))
    assert isinstance(network, ViewTransform)
    return network


def features(dtype: torch.dtype = torch.float32) -> Tensor:
    return uniform_input(40, (2, 3, 8, 8, 22)).to(dtype)


def changed(batch: SensorBatch, **cameras: Any) -> SensorBatch:
    assert batch.cameras is not None
    return replace(batch, cameras=replace(batch.cameras, **cameras))


# Against mit-han-lab/bevfusion


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_equals_the_original(kind: str, dtype: torch.dtype) -> None:
    network = transform(kind).to(dtype)
    view = network(features(dtype), golden_batch(dtype))
    assert isinstance(view, Tensor)
    # Gradients pass ReLUs; float32 rounding decides those at their kink.
    gradients = 1e-12 if dtype == torch.float64 else 2e-3
    check_answers(kind, network, [view], RTOL[dtype], gradients)


@pytest.mark.parametrize("kind", KINDS)
def test_published_state_dict(kind: str) -> None:
    network = KINDS[kind](256, 80, **PUBLISHED_GRID)
    wanted = golden_facts()[kind]["published_parameters"]
    assert sum(p.numel() for p in network.parameters()) == wanted
    assert wanted == {"lss": 224_166, "depth_lss": 1_610_726}[kind]
    assert network.out_channels == 80 and network.bev_size == (180, 180)
    state = network.state_dict()
    assert {"dx", "bx", "nx", "frustum"} < set(state)
    assert state["nx"].dtype == torch.int64 and state["nx"].tolist() == [360, 360, 1]
    assert state["frustum"].shape == (118, 32, 88, 3)
    network.load_state_dict({k: torch.zeros_like(v) for k, v in state.items()}, strict=True)


# Cells and pooling


def test_the_reference_truncation_matters_and_is_off_by_default() -> None:
    default = LSSTransform(8, 6, **GRID)
    assert not default.reference_truncation
    with torch.no_grad():
        views = [transform(reference=r)(features(), golden_batch()) for r in (False, True)]
    assert (views[0] - views[1]).abs().max() > 0.1


@pytest.mark.parametrize("reference", [False, True])
def test_pooling_equals_a_sum_over_all_points(reference: bool) -> None:
    network = transform(reference=reference, downsample=1, zbound=(-4.0, 4.0, 2.0)).double()
    batch = golden_batch(torch.float64)
    cameras = batch.cameras
    assert cameras is not None
    lifted = network.lift(features(torch.float64), cameras, batch)
    view = network.pool(lifted, batch)
    assert view.shape == (2, 4 * 6, 40, 30)
    lifting = "ndhw,nchw->ndhwc"
    products = torch.einsum(lifting, lifted.depth, lifted.context).reshape(2, -1, 6)
    points = frustum_points(network.frustum, cameras, batch.lidar_aug).view(2, -1, 3)
    lower = torch.tensor([-36.0, -27.0, -4.0], dtype=torch.float64)
    cells = (points - lower) / network.dx  # 1.8 m in float32
    cells = (cells.trunc() if reference else cells.floor()).long()
    inside = ((cells >= 0) & (cells < torch.tensor([40, 30, 4]))).all(-1)
    want = torch.zeros(2, 4, 40, 30, 6, dtype=torch.float64)
    for b in range(2):
        x, y, z = cells[b, inside[b]].unbind(1)
        want[b].index_put_((z, x, y), products[b, inside[b]], accumulate=True)
    want = want.permute(0, 1, 4, 2, 3).flatten(1, 2)
    torch.testing.assert_close(view, want, atol=1e-12, rtol=0)


# The plan that is kept


def test_the_plan_is_kept_until_calibration_or_augmentation_change() -> None:
    network = transform()
    batch = golden_batch()
    cameras = batch.cameras
    assert cameras is not None
    plan = network.plan(batch)
    assert network.plan(batch) is plan
    assert network.plan(golden_batch()) is plan  # the same numbers in other tensors
    absent = cameras.present.clone()
    absent[1, 2] = False
    for other in (
        changed(batch, intrinsics=cameras.intrinsics * 1.01),
        changed(batch, camera2lidar=cameras.camera2lidar + 0.01),
        changed(batch, image_aug=cameras.image_aug * 1.01),
        changed(batch, present=absent),
        replace(batch, lidar_aug=batch.lidar_aug * 1.01),
    ):
        fresh = transform().plan(other)
        kept = network.plan(other)
        assert kept is not plan
        assert torch.equal(kept.cells, fresh.cells) and torch.equal(kept.order, fresh.order)
        plan = kept


def test_changing_a_calibration_in_place_is_noticed() -> None:
    network, batch = transform(), golden_batch()
    assert batch.cameras is not None
    before = network.plan(batch)
    batch.cameras.camera2lidar[..., 0, 3] += 5.0
    assert network.plan(batch) is not before


def test_a_plan_made_in_inference_mode_serves_training() -> None:
    network = transform("depth_lss")
    with torch.inference_mode():
        network(features(), golden_batch())
    network.train()(features(), golden_batch()).sum().backward()


def test_evaluation_is_deterministic() -> None:
    network = transform("depth_lss")
    with torch.no_grad():
        first, second = (network(features(), golden_batch()) for _ in range(2))
    assert torch.equal(first, second)


# Cameras that are missing


@pytest.mark.parametrize("kind", KINDS)
def test_a_missing_camera_brings_nothing(kind: str) -> None:
    """Whatever stands in its place: features, NaN, a matrix of zeros."""
    network = transform(kind, downsample=1)
    batch = golden_batch()
    cameras = batch.cameras
    assert cameras is not None
    present = torch.tensor([[True, False, True], [True, True, False]])
    keep = present[:, :, None, None]
    broken = changed(
        batch,
        present=present,
        intrinsics=cameras.intrinsics * keep,
        camera2lidar=torch.where(keep, cameras.camera2lidar, torch.nan),
        image_aug=cameras.image_aug * keep,
    )
    feats = features().requires_grad_()
    view = network(feats, broken)
    view.square().sum().backward()
    assert feats.grad is not None and feats.grad[~present].eq(0).all()
    assert feats.grad[present].abs().amax((1, 2, 3)).gt(0).all()
    alone = torch.zeros_like(view)
    for b, n in present.nonzero().tolist():
        one = torch.zeros_like(present)
        one[b, n] = True
        alone += network(features(), changed(batch, present=one))
    torch.testing.assert_close(view, alone, atol=1e-4, rtol=0)
    assert view.isfinite().all()


# Depth from LiDAR


@pytest.mark.parametrize("kind", KINDS)
def test_inputs_are_not_changed(kind: str) -> None:
    """The original moves the points in place by the augmentation, and the LiDAR branch reads them afterwards."""
    batch, untouched = golden_batch(), golden_batch()
    feats = features()
    transform(kind).train()(feats, batch)
    assert batch.points is not None and untouched.points is not None
    assert batch.cameras is not None and untouched.cameras is not None
    assert torch.equal(feats, features())
    assert all(torch.equal(a, b) for a, b in zip(batch.points, untouched.points, strict=True))
    assert torch.equal(batch.lidar_aug, untouched.lidar_aug)
    for name, value in vars(batch.cameras).items():
        assert torch.equal(value, getattr(untouched.cameras, name)), name


def test_depth_lss_runs_without_points() -> None:
    network, batch = transform("depth_lss"), golden_batch()
    with torch.no_grad():
        without = network(features(), replace(batch, points=None))
        empty = network(features(), replace(batch, points=(torch.zeros(0, 5),) * 2))
        assert torch.equal(without, empty)
        assert not torch.equal(without, network(features(), batch))


# Training


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_reach_every_parameter_also_under_bfloat16(kind: str) -> None:
    for enabled in (False, True):
        network = transform(kind).train()
        feats = features().requires_grad_()
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            view = network(feats, golden_batch())
        view.float().square().mean().backward()
        for key, parameter in (*network.named_parameters(), ("feats", feats)):
            gradient = parameter.grad
            assert gradient is not None and gradient.isfinite().all(), key
            assert gradient.abs().max() > 0, key


@pytest.mark.parametrize("kind", KINDS)
def test_bfloat16_changes_neither_cells_nor_depths(kind: str) -> None:
    network, batch = transform(kind), golden_batch()
    with torch.no_grad():
        exact = network(features(), batch)
        cells = network.plan(batch).cells
        other = transform(kind)
        with torch.autocast("cpu", torch.bfloat16):
            rounded = other(features(), batch)
            cameras = batch.cameras
            assert cameras is not None
            lifted = other.lift(features(), cameras, batch)
    assert rounded.dtype == torch.bfloat16 and lifted.depth.dtype == torch.float32
    torch.testing.assert_close(lifted.depth.sum(1), torch.ones_like(lifted.depth[:, 0]))
    assert torch.equal(other.plan(batch).cells, cells)
    assert (rounded.float() - exact).abs().max() < 0.1 * exact.abs().max()


# Refusals


@pytest.mark.parametrize(
    ("act", "error", "message"),
    [
        (lambda: transform(downsample=3), ValueError, "downsample must be 1 or 2"),
        (lambda: transform(xbound=(-1.0, 1.0, 0.3)), ValueError, "whole cells between"),
        (
            lambda: transform("depth_lss", feature_size=(9, 22)),
            ValueError,
            "an eighth of image_size",
        ),
        (lambda: transform()(features()[:, :, :4], golden_batch()), ValueError, "feats must be"),
        (
            lambda: transform()(features(), replace(golden_batch(), cameras=None)),
            ValueError,
            "must have cameras, got None",
        ),
        (
            lambda: transform()(
                features(), changed(golden_batch(), images=torch.zeros(2, 3, 3, 60, 176))
            ),
            ValueError,
            "give the data and the network the same image_size",
        ),
        (
            lambda: transform().bfloat16()(features(torch.bfloat16), golden_batch()),
            TypeError,
            "use torch.autocast",
        ),
    ],
)
def test_refuses_what_it_cannot_do(
    act: Callable[[], object], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        act()
