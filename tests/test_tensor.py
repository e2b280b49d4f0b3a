"""SparseTensor, PointTensor and Sites: what they accept, what they share, and that no cached map is served wrongly."""

from __future__ import annotations

import copy
import gc
import pickle
import weakref
from itertools import combinations

import numpy as np
import pytest
import torch
from torch import Tensor

from pointlib.ops.kernel_map import ConvSpec, build_kernel_map
from pointlib.sites import Sites
from pointlib.tensor import PointTensor, SparseTensor
from tests import oracles


def cloud(
    seed: int = 0, count: int = 60, extent: int = 6, batch: int = 2, lower: int = 0
) -> Tensor:
    return oracles.random_coords(np.random.default_rng(seed), count, extent, batch, lower)


def tensor(seed: int = 0, channels: int = 3, **kwargs: object) -> SparseTensor:
    coords = cloud(seed)
    feats = torch.randn(len(coords), channels, generator=torch.Generator().manual_seed(seed))
    return SparseTensor(feats, coords, **kwargs)  # type: ignore[arg-type]


# ------------------------------------------------------------------------------------------------ the cache

SPECS = [
    ConvSpec(3),
    ConvSpec(3, padding=0),
    ConvSpec(3, padding=(1, 1, 0)),
    ConvSpec(3, dilation=2),
    ConvSpec(3, dilation=2, padding=1),
    ConvSpec(5),
    ConvSpec(2),
    ConvSpec(3, relation="minkowski"),
    ConvSpec(3, padding=1, relation="spconv"),
    ConvSpec(2, 2),
    ConvSpec(3, 2),
    ConvSpec(3, 2, 0),
    ConvSpec(3, 2, 1, relation="spconv"),
    ConvSpec(3, 2, 0, relation="spconv"),
    ConvSpec(3, (2, 2, 1)),
]


def test_the_same_convolution_finds_the_same_map() -> None:
    x = tensor(spatial_shape=6)
    for spec in SPECS:
        first = x.maps.conv(x.sites, spec)
        equal = ConvSpec(spec.kernel_size, spec.stride, spec.padding, spec.dilation, spec.relation)
        for again in (
            x.maps.conv(x.sites, spec),
            x.with_feats(x.feats * 2).maps.conv(x.sites, equal),
        ):
            assert again[0] is first[0] and again[1] is first[1]


def test_whatever_else_was_built_first_every_map_is_right() -> None:
    """In torchsparse dilation is ignored, and one map serves every padding."""
    x = tensor(spatial_shape=6)
    for spec in (*SPECS, *reversed(SPECS)):
        sites, kernel_map = x.maps.conv(x.sites, spec)
        geometry = (spec.kernel_size, spec.stride, spec.padding, spec.dilation)
        outs = oracles.out_sites(x.coords.tolist(), spec.relation, *geometry, (6, 6, 6))
        assert [tuple(row) for row in sites.coords.tolist()] == outs
        pairs = oracles.map_pairs(x.coords.tolist(), outs, *geometry)
        taps = torch.repeat_interleave(kernel_map.offset_ptr.diff()).tolist()
        index = (kernel_map.in_index.tolist(), kernel_map.out_index.tolist())
        assert set(zip(taps, *index, strict=True)) == set(pairs)


def test_maps_that_differ_are_different_objects() -> None:
    x = tensor(spatial_shape=6)
    maps = [x.maps.conv(x.sites, spec)[1] for spec in SPECS]
    assert all(a is not b for a, b in combinations(maps, 2))


def test_tensors_on_equal_voxels_made_apart_share_nothing() -> None:
    a, b = tensor(), tensor()
    assert a.maps.conv(a.sites, ConvSpec(3))[1] is not b.maps.conv(b.sites, ConvSpec(3))[1]


def test_submanifold_stays_on_its_sites_and_floors_meet_on_one() -> None:
    """Two branches that go down by the same stride can be added or concatenated."""
    x = tensor()
    assert x.maps.conv(x.sites, ConvSpec(3))[0] is x.sites
    assert x.maps.conv(x.sites, ConvSpec(2, 2))[0] is x.maps.conv(x.sites, ConvSpec(3, 2))[0]
    assert (
        x.maps.conv(x.sites, ConvSpec(2, 2))[0]
        is not x.maps.conv(x.sites, ConvSpec(3, (2, 2, 1)))[0]
    )


def test_the_way_back_is_the_way_down_swapped() -> None:
    x = tensor()
    for spec in SPECS:
        coarse, down = x.maps.conv(x.sites, spec)
        fine, up = x.maps.inverse(coarse, spec)
        assert fine is x.sites
        assert up.in_index is down.out_index and up.out_index is down.in_index
        assert (up.num_in, up.num_out) == (down.num_out, down.num_in)


def test_two_levels_down_and_up() -> None:
    x, spec = tensor(spatial_shape=6), ConvSpec(2, 2)
    middle, _ = x.maps.conv(x.sites, spec)
    bottom, _ = x.maps.conv(middle, spec)
    assert (middle.stride, bottom.stride) == ((2, 2, 2), (4, 4, 4))
    assert (middle.spatial_shape, bottom.spatial_shape) == ((3, 3, 3), (2, 2, 2))
    assert bottom.batch_size == x.batch_size
    assert x.maps.inverse(bottom, spec)[0] is middle
    assert x.maps.inverse(middle, spec)[0] is x.sites


@pytest.mark.parametrize(
    "other", [ConvSpec(3, 2), ConvSpec(2, 2, dilation=2), ConvSpec(2, (2, 2, 1))]
)
def test_transposed_without_its_convolution_is_refused(other: ConvSpec) -> None:
    x = tensor()
    with pytest.raises(ValueError, match=r"transposed convolution: .*none.*generative"):
        x.maps.inverse(x.sites, ConvSpec(2, 2))
    coarse, _ = x.maps.conv(x.sites, ConvSpec(2, 2))
    with pytest.raises(ValueError, match=r"transposed convolution: .*kernel_size=\(2, 2, 2\)"):
        x.maps.inverse(coarse, other)


def test_generative_is_cached_and_divides_the_stride() -> None:
    x = tensor(stride=4)
    fine, kernel_map = x.maps.generative(x.sites, ConvSpec(2, 2))
    assert x.maps.generative(x.sites, ConvSpec(2, 2))[1] is kernel_map
    assert fine.stride == (2, 2, 2)
    assert len(fine) == 8 * len(x)
    with pytest.raises(ValueError, match="stride must divide"):
        x.maps.generative(x.sites, ConvSpec(3, 3))


def test_rows_removed_are_other_voxels() -> None:
    x = tensor()
    x.maps.conv(x.sites, ConvSpec(3))
    keep = x.coords[:, 1] > 2
    pruned = SparseTensor(x.feats[keep], x.coords[keep], x.stride, x.spatial_shape, x.batch_size)
    expected = build_kernel_map(x.coords[keep], ConvSpec(3)).kernel_map
    assert torch.equal(pruned.maps.conv(pruned.sites, ConvSpec(3))[1].in_index, expected.in_index)


# --------------------------------------------------------------------------------------------- construction


def test_attributes() -> None:
    x = tensor(stride=(2, 2, 1), spatial_shape=(9, 8, 7), batch_size=5)
    assert (x.stride, x.spatial_shape, x.batch_size) == ((2, 2, 1), (9, 8, 7), 5)
    assert (len(x), x.num_channels, x.dtype) == (len(x.feats), 3, torch.float32)
    assert tensor().batch_size == 2
    assert tensor().spatial_shape is None
    assert f"num_voxels={len(x)}" in repr(x)


def test_with_feats_keeps_the_sites_and_the_old_tensor() -> None:
    x = tensor()
    before = x.feats.clone()
    y = x.with_feats(torch.zeros(len(x), 7))
    assert y.sites is x.sites and y.coords is x.coords
    assert torch.equal(x.feats, before) and y.num_channels == 7


def test_to_changes_the_features_and_keeps_the_sites_on_one_device() -> None:
    x = tensor()
    y = x.to(torch.float64)
    assert y.dtype == torch.float64 and x.dtype == torch.float32
    assert y.sites is x.sites and y.coords.dtype == torch.int32
    assert x.to("cpu", torch.bfloat16).dtype == torch.bfloat16
    moved = x.to("meta")
    assert moved.feats.device.type == moved.coords.device.type == "meta"
    assert x.feats.device.type == "cpu"


def test_empty_tensor() -> None:
    x = SparseTensor(torch.empty(0, 4), torch.empty(0, 4, dtype=torch.int32), batch_size=2)
    assert (len(x), x.batch_size) == (0, 2)
    assert SparseTensor(torch.empty(0, 4), torch.empty(0, 4, dtype=torch.int32)).batch_size == 0
    assert x.dense(shape=(2, 3, 4)).shape == (2, 4, 2, 3, 4)
    coarse, down = x.maps.conv(x.sites, ConvSpec(2, 2))
    assert (len(coarse), down.num_pairs, coarse.batch_size) == (0, 0, 2)


@pytest.mark.parametrize("copies", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))])
def test_copies_hold_the_same_values(copies) -> None:
    x = tensor()
    _, down = x.maps.conv(x.sites, ConvSpec(2, 2))
    y = copies(x)
    assert torch.equal(y.feats, x.feats) and torch.equal(y.coords, x.coords)
    assert torch.equal(y.maps.conv(y.sites, ConvSpec(2, 2))[1].in_index, down.in_index)
    assert y.maps.inverse(y.maps.conv(y.sites, ConvSpec(2, 2))[0], ConvSpec(2, 2))[0] is y.sites


def test_strided_coordinates_are_packed() -> None:
    coords = cloud()
    view = coords.t().contiguous().t()
    x = SparseTensor(torch.ones(len(coords), 1), view)
    assert torch.equal(x.coords, coords)
    assert x.coords.is_contiguous()


@pytest.mark.parametrize(
    ("error", "message", "changes"),
    [
        (TypeError, r"SparseTensor: coords must be \(N, 4\) int32", {"coords": torch.zeros(3, 4)}),
        (TypeError, "coords must be", {"coords": torch.zeros(3, 4, dtype=torch.int64)}),
        (ValueError, "coords must be", {"coords": torch.zeros(3, 3, dtype=torch.int32)}),
        (ValueError, r"SparseTensor: feats must be \(N, C\)", {"feats": torch.zeros(2, 1)}),
        (ValueError, "feats must be", {"feats": torch.zeros(3)}),
        (TypeError, "feats must be floating", {"feats": torch.zeros(3, 1, dtype=torch.int64)}),
        (ValueError, "one device", {"feats": torch.zeros(3, 1, device="meta")}),
        (ValueError, "stride must be", {"stride": 0}),
        (ValueError, "stride must be", {"stride": (1, 2)}),
        (ValueError, "spatial_shape must be", {"spatial_shape": -1}),
        (ValueError, "spatial_shape must be", {"spatial_shape": (4, 4)}),
        (ValueError, "batch_size must be", {"batch_size": -1}),
        (ValueError, "batch_size must be", {"batch_size": 1}),
        (ValueError, r"coords must lie in \[0, spatial_shape\)", {"spatial_shape": (2, 2, 2)}),
        (ValueError, "batch", {"coords": torch.tensor([[-1, 0, 0, 0]] * 3, dtype=torch.int32)}),
    ],
    ids=lambda value: str(value)[:40] if not isinstance(value, type) else None,
)
def test_wrong_arguments_are_refused(error: type, message: str, changes: dict) -> None:
    coords = torch.tensor([[0, 0, 0, 0], [1, 0, 0, 1], [1, 0, 0, 2]], dtype=torch.int32)
    with pytest.raises(error, match=message):
        SparseTensor(**{"feats": torch.zeros(3, 1), "coords": coords, **changes})


def test_feats_of_other_voxels_are_refused() -> None:
    x = tensor()
    with pytest.raises(ValueError, match="one row a coordinate"):
        x.with_feats(x.feats[:-1])
    with pytest.raises(ValueError, match="one row a coordinate"):
        x.on(x.sites, torch.zeros(3, 1))


def test_duplicates_are_found_by_the_first_map() -> None:
    coords = torch.tensor([[0, 1, 1, 1], [0, 1, 1, 1]], dtype=torch.int32)
    x = SparseTensor(torch.zeros(2, 1), coords)
    for spec in SPECS:
        with pytest.raises(ValueError, match="distinct"):
            x.maps.conv(x.sites, spec)


# ---------------------------------------------------------------------------------------------------- dense


def test_dense_and_back() -> None:
    x = tensor(spatial_shape=(6, 7, 8))
    grid = x.dense()
    assert grid.shape == (2, 3, 6, 7, 8)
    b, i, j, k = x.coords.long().unbind(1)
    assert torch.equal(grid[b, :, i, j, k], x.feats)
    assert grid.count_nonzero() == x.feats.count_nonzero()
    back = SparseTensor.from_dense(grid)
    assert (back.spatial_shape, back.batch_size) == ((6, 7, 8), 2)
    assert back.coords.tolist() == sorted(x.coords.tolist())
    assert torch.equal(back.dense(), grid)


def test_dense_fits_the_voxels_moves_the_origin_and_refuses_what_lies_outside() -> None:
    coords = cloud(lower=-3)
    x = SparseTensor(torch.ones(len(coords), 1), coords)
    with pytest.raises(ValueError, match=r"SparseTensor\.dense: voxels must lie in"):
        x.dense()
    grid = x.dense(origin=(-3, -3, -3))
    assert grid.shape[2:] == tuple((coords[:, 1:].amax(0) + 4).tolist())
    assert grid.sum() == len(coords)
    with pytest.raises(ValueError, match="must lie in"):
        x.dense(origin=(-3, -3, -3), shape=(2, 9, 9))
    assert x.dense((-3, -3, -3), (9, 9, 9)).sum() == len(coords)


def test_dense_is_differentiable() -> None:
    coords = cloud(count=8, extent=3)
    feats = torch.randn(len(coords), 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(
        lambda f: SparseTensor(f, coords, spatial_shape=3).dense(), feats
    )
    grid = torch.randn(1, 2, 3, 2, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda g: SparseTensor.from_dense(g).feats, grid)


def test_from_dense_refuses_other_shapes() -> None:
    with pytest.raises(ValueError, match=r"from_dense: grid must be \(B, C, X, Y, Z\)"):
        SparseTensor.from_dense(torch.zeros(3, 4, 4, 4))


# --------------------------------------------------------------------------------------------------- points


def test_point_tensor() -> None:
    coords = torch.rand(5, 4)
    points = PointTensor(torch.zeros(5, 2), coords)
    assert (len(points), points.num_channels) == (5, 2)
    other = points.with_feats(torch.ones(5, 3))
    assert other.coords is coords and other.cache is points.cache
    half = points.to(torch.bfloat16)
    assert half.feats.dtype == torch.bfloat16 and half.coords.dtype == torch.float32


@pytest.mark.parametrize(
    ("error", "feats", "coords"),
    [
        (TypeError, torch.zeros(3, 1), torch.zeros(3, 4, dtype=torch.int32)),
        (ValueError, torch.zeros(3, 1), torch.zeros(3, 3)),
        (ValueError, torch.zeros(2, 1), torch.zeros(3, 4)),
        (TypeError, torch.zeros(3, 1, dtype=torch.int32), torch.zeros(3, 4)),
    ],
)
def test_wrong_points_are_refused(error: type, feats: Tensor, coords: Tensor) -> None:
    with pytest.raises(error, match="PointTensor: "):
        PointTensor(feats, coords)


def test_sites_to_another_device_leave_their_maps_behind() -> None:
    sites = Sites(cloud(), 2, 6)
    assert sites.to("cpu") is sites
    moved = sites.to("meta")
    assert (moved.stride, moved.spatial_shape, moved.batch_size) == ((2,) * 3, (6,) * 3, 2)
    assert moved is not sites


# ------------------------------------------------------------------------------------------- whose maps are whose


def test_maps_of_another_input_are_refused() -> None:
    """Two scans number their voxels alike; taking one's for the other's would be silently wrong."""
    a, b, spec = tensor(0), tensor(1), ConvSpec(2, 2)
    coarse, _ = a.maps.conv(a.sites, spec)
    b.maps.conv(b.sites, spec)
    for lookup in (b.maps.conv, b.maps.inverse, b.maps.generative):
        for sites in (a.sites, coarse):
            with pytest.raises(ValueError, match="SiteMaps: sites must descend from the input"):
                lookup(sites, spec)


def test_maps_are_freed_with_the_last_tensor_and_not_by_the_collector() -> None:
    """A reference cycle would keep every scan's maps until Python happens to look for cycles."""
    gc.disable()
    try:
        x = tensor()
        coarse, down = x.maps.conv(x.sites, ConvSpec(2, 2))
        x.maps.conv(x.sites, ConvSpec(3))
        y = x.on(coarse, torch.zeros(len(coarse), 1))
        y.maps.inverse(coarse, ConvSpec(2, 2))
        watched = [weakref.ref(thing) for thing in (x.sites, coarse, down)]
        del x, coarse, down
        assert all(ref() is not None for ref in watched)  # y still needs the way back
        del y
        assert all(ref() is None for ref in watched)
    finally:
        gc.enable()
