"""Sparse convolution, forward and backward, against torch's dense convolutions and against lists of pairs."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from pointlib.ops.kernel_map import ConvSpec, KernelMap, build_generative_map, build_kernel_map
from pointlib.ops.sparse_conv import sparse_conv
from tests import oracles
from tests.tolerances import assert_close

DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]
SPECS = {
    "submanifold 3": ConvSpec(3),
    "submanifold 5 dilated": ConvSpec(5, dilation=2),
    "submanifold 2": ConvSpec(2),
    "submanifold off centre": ConvSpec(3, padding=(0, 2, 1)),
    "submanifold flat": ConvSpec((3, 3, 1)),
    "submanifold 7": ConvSpec(7),
    "minkowski 2 / 2": ConvSpec(2, 2),
    "minkowski 3 / 2": ConvSpec(3, 2),
    "minkowski mixed": ConvSpec((2, 3, 4), (1, 2, 3), (0, 1, 2), (1, 1, 2)),
    "minkowski 1 / 2": ConvSpec(1, 2),
    "spconv 3 / 2": ConvSpec(3, 2, 1, relation="spconv"),
    "spconv 3 / 1 valid": ConvSpec(3, 1, 0, relation="spconv"),
    "spconv mixed": ConvSpec((3, 1, 2), (2, 1, 3), (1, 0, 2), (2, 1, 1), "spconv"),
}
SHAPE = (6, 5, 7)


def geometry(spec: ConvSpec) -> tuple:
    return (spec.kernel_size, spec.stride, spec.padding, spec.dilation)


def cloud(seed: int = 0, count: int = 70, batch: int = 2) -> Tensor:
    return oracles.random_coords(np.random.default_rng(seed), count, SHAPE, batch)


def operands(
    num_in: int,
    spec: ConvSpec,
    channels: tuple[int, int],
    dtype: torch.dtype = torch.float64,
    groups: int = 1,
    seed: int = 0,
) -> tuple[Tensor, Tensor, Tensor]:
    """feats, weight and bias that require gradients."""
    generator = torch.Generator().manual_seed(seed)
    c_in, c_out = channels
    shapes = ((num_in, c_in), (spec.kernel_volume, c_in // groups, c_out), (c_out,))
    feats, weight, bias = (torch.randn(s, generator=generator, dtype=torch.float64) for s in shapes)
    return tuple(t.to(dtype).requires_grad_() for t in (feats, weight, bias))  # type: ignore[return-value]


def check_against(
    oracle: Callable[..., Tensor], kernel_map: KernelMap, tensors: tuple, groups: int = 1
) -> None:
    """Compare output and all three gradients under a random upstream gradient."""
    feats, weight, bias = tensors
    out = sparse_conv(feats, weight, kernel_map, bias, groups)
    assert out.dtype == feats.dtype and out.shape == (kernel_map.num_out, weight.shape[2])
    doubles = [t.detach().double().requires_grad_() for t in tensors]
    expected = oracle(*doubles)
    assert_close(out, expected)
    upstream = torch.randn(out.shape, generator=torch.Generator().manual_seed(1)).to(out.dtype)
    got = torch.autograd.grad(out, tensors, upstream, allow_unused=True)
    want = torch.autograd.grad(expected, doubles, upstream.double(), allow_unused=True)
    for tensor, mine, reference in zip(tensors, got, want, strict=True):
        assert mine is not None and mine.shape == tensor.shape and mine.dtype == tensor.dtype
        assert_close(mine, torch.zeros_like(mine) if reference is None else reference)


# ----------------------------------------------------------------------------- against dense convolutions


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", SPECS)
def test_equals_dense_convolution(name: str, dtype: torch.dtype) -> None:
    spec, coords = SPECS[name], cloud()
    sites, kernel_map = build_kernel_map(coords, spec, SHAPE)

    def dense(feats: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return oracles.dense_conv(feats, coords, sites, weight, *geometry(spec), bias)

    check_against(dense, kernel_map, operands(len(coords), spec, (5, 6), dtype))


@pytest.mark.parametrize("seed", range(3))
def test_spconv_equals_the_padded_dense_convolution_of_the_whole_grid(seed: int) -> None:
    """Nothing of the oracles' own geometry: torch's padding, and the sites are where occupancy reaches."""
    rng = np.random.default_rng(seed)
    kernel, stride, padding, dilation = (
        tuple(int(v) for v in rng.integers(*bounds, 3))
        for bounds in ((1, 4), (1, 3), (0, 3), (1, 3))
    )
    spec, coords = ConvSpec(kernel, stride, padding, dilation, "spconv"), cloud(seed)
    feats, weight, bias = operands(len(coords), spec, (3, 4))
    grid = torch.zeros(2, *SHAPE, 3, dtype=torch.float64)
    grid[tuple(coords.long().unbind(1))] = feats.detach()
    dense = torch.nn.functional.conv3d(
        grid.permute(0, 4, 1, 2, 3),
        oracles.dense_weight(weight.detach(), kernel),
        None,
        stride,
        padding,
        dilation,
    ).permute(0, 2, 3, 4, 1)
    sites, kernel_map = build_kernel_map(coords, spec, SHAPE)
    assert sites.tolist() == (dense != 0).any(-1).nonzero().tolist()
    out = sparse_conv(feats, weight, kernel_map, bias)
    assert_close(out, dense[tuple(sites.long().unbind(1))] + bias)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", [n for n in SPECS if not n.startswith("submanifold")])
def test_transposed_map_equals_dense_transposed_convolution(name: str, dtype: torch.dtype) -> None:
    spec, coords = SPECS[name], cloud(1)
    coarse, down = build_kernel_map(coords, spec, SHAPE)

    def dense(feats: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return oracles.dense_conv_transpose(feats, coarse, coords, weight, *geometry(spec), bias)

    check_against(dense, down.transpose(), operands(len(coarse), spec, (5, 4), dtype))


@pytest.mark.parametrize(
    "spec",
    [ConvSpec(2, 2), ConvSpec(3, 2), ConvSpec(3), ConvSpec((1, 2, 4), (1, 2, 3), 1, (1, 2, 1))],
)
def test_generative_map_equals_dense_transposed_convolution_everywhere(spec: ConvSpec) -> None:
    coords = cloud(2, count=25) - torch.tensor([0, 3, 3, 3], dtype=torch.int32)
    fine, kernel_map = build_generative_map(coords, spec)

    def dense(feats: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return oracles.dense_conv_transpose(feats, coords, fine, weight, *geometry(spec), bias)

    tensors = operands(len(coords), spec, (3, 4))
    check_against(dense, kernel_map, tensors)
    # Nothing is written anywhere else: the sum over the fine sites is the sum over the whole plane of taps.
    total = sparse_conv(tensors[0], tensors[1], kernel_map).sum(0)
    assert_close(total, torch.einsum("nc,kcd->d", tensors[0], tensors[1]).detach())


CHANNELS = [(1, 1, 1), (2, 3, 1), (3, 7, 1), (4, 1, 1), (5, 5, 5), (4, 6, 2), (4, 8, 4), (6, 3, 3)]


@pytest.mark.parametrize(("c_in", "c_out", "groups"), [*CHANNELS, (33, 17, 1), (48, 32, 16)])
@pytest.mark.parametrize("name", ["submanifold 3", "minkowski 2 / 2"])
def test_channels_and_groups(name: str, c_in: int, c_out: int, groups: int) -> None:
    spec, coords = SPECS[name], cloud(3)
    sites, kernel_map = build_kernel_map(coords, spec, SHAPE)

    def dense(feats: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return oracles.dense_conv(
            feats, coords, sites, weight, *geometry(spec), bias=bias, groups=groups
        )

    for dtype in (torch.float64, torch.float32, torch.bfloat16):
        tensors = operands(len(coords), spec, (c_in, c_out), dtype, groups)
        check_against(dense, kernel_map, tensors, groups)


# ------------------------------------------------------------------------------- sizes, extents, many rows


@pytest.mark.parametrize("sorted_rows", [True, False])
@pytest.mark.parametrize(("count", "channels"), [(3000, (700, 2)), (3000, (3, 600))])
def test_more_rows_than_any_block(count: int, channels: tuple[int, int], sorted_rows: bool) -> None:
    rng = np.random.default_rng(4)
    coords = oracles.random_coords(rng, count, extent=16, batch=2, lower=-5)
    if sorted_rows:
        coords = torch.unique(coords, dim=0)
    for spec in (ConvSpec(3), ConvSpec(2, 2)):
        sites, kernel_map = build_kernel_map(coords, spec)
        pairs = oracles.map_pairs(coords.tolist(), sites.tolist(), *geometry(spec))

        def by_pairs(feats: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
            return oracles.conv_of_pairs(feats, weight, pairs, len(sites), bias)  # noqa: B023

        tensors = operands(len(coords), spec, channels, torch.float32)
        check_against(by_pairs, kernel_map, tensors)
        if spec.stride != (1, 1, 1):
            swapped = [(tap, out, inside) for tap, inside, out in pairs]

            def back(feats: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
                return oracles.conv_of_pairs(feats, weight, swapped, len(coords), bias)  # noqa: B023

            tensors = operands(len(sites), spec, channels, torch.float32)
            check_against(back, kernel_map.transpose(), tensors)


def test_huge_extents() -> None:
    rng = np.random.default_rng(5)
    near = oracles.random_coords(rng, 60, extent=4)
    coords = torch.cat([near, near + torch.tensor([0, 2**20, -(2**19), 2**20]).int()])
    for spec in (ConvSpec(3), ConvSpec(2, 2), ConvSpec(3, 2, 1, relation="spconv")):
        sites, kernel_map = build_kernel_map(coords, spec)
        pairs = oracles.map_pairs(coords.tolist(), sites.tolist(), *geometry(spec))

        def by_pairs(feats: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
            return oracles.conv_of_pairs(feats, weight, pairs, len(sites), bias)  # noqa: B023

        check_against(by_pairs, kernel_map, operands(len(coords), spec, (4, 5)))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("spec", [ConvSpec(3), ConvSpec(2, 2), ConvSpec(3, 2, relation="spconv")])
def test_no_voxel(spec: ConvSpec, groups: int, dtype: torch.dtype) -> None:
    for coords in (torch.empty(0, 4, dtype=torch.int32), torch.ones(1, 4, dtype=torch.int32)):
        sites, kernel_map = build_kernel_map(coords, spec, (2, 2, 2))
        if not len(coords):
            assert len(sites) == 0
        for way in (kernel_map, kernel_map.transpose()):
            feats, weight, bias = operands(way.num_in, spec, (4, 6), dtype, groups)
            out = sparse_conv(feats, weight, way, bias, groups)
            assert out.shape == (way.num_out, 6) and out.dtype == dtype
            if not way.num_pairs:
                assert torch.equal(out, bias.expand(way.num_out, 6))
            out.sum().backward()
            if not way.num_pairs:
                assert not feats.grad.any() and not weight.grad.any()
            assert torch.equal(bias.grad, torch.full_like(bias, way.num_out))


def test_an_empty_batch_entry_leaves_the_others_alone() -> None:
    spec, both = ConvSpec(3), cloud(6)
    second = both[both[:, 0] == 1]
    feats, weight, bias = operands(len(second), spec, (3, 4))
    alone = sparse_conv(feats, weight, build_kernel_map(second, spec).kernel_map, bias)
    shifted = second + torch.tensor([4, 0, 0, 0], dtype=torch.int32)
    moved = sparse_conv(feats, weight, build_kernel_map(shifted, spec).kernel_map, bias)
    assert torch.equal(alone, moved)


def test_a_nan_reaches_its_neighbours_only() -> None:
    coords, spec = cloud(7), ConvSpec(3)
    kernel_map = build_kernel_map(coords, spec).kernel_map
    feats, weight, bias = (t.detach() for t in operands(len(coords), spec, (3, 4)))
    clean = sparse_conv(feats, weight, kernel_map, bias)
    feats[11] = torch.nan
    dirty = sparse_conv(feats, weight, kernel_map, bias)
    reached = torch.zeros(len(coords), dtype=torch.bool)
    reached[kernel_map.out_index[kernel_map.in_index == 11].long()] = True
    assert 1 < reached.sum() < len(coords)
    assert torch.equal(dirty[~reached], clean[~reached])
    assert bool(dirty[reached].isnan().all())


# ------------------------------------------------------------------------------------------------ gradients


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize(
    "spec", [ConvSpec(3), ConvSpec(2, 2), ConvSpec((1, 3, 2), (2, 1, 2), 1, relation="spconv")]
)
def test_gradcheck(spec: ConvSpec, groups: int) -> None:
    coords = oracles.random_coords(np.random.default_rng(8), 10, extent=3, batch=2)
    kernel_map = build_kernel_map(coords, spec).kernel_map
    for way in (kernel_map, kernel_map.transpose()):
        tensors = operands(way.num_in, spec, (2, 4), groups=groups)

        def conv(feats: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
            return sparse_conv(feats, weight, way, bias, groups)  # noqa: B023

        assert torch.autograd.gradcheck(conv, tensors, fast_mode=False)
        assert torch.autograd.gradgradcheck(conv, tensors, fast_mode=True)


@pytest.mark.parametrize("wanted", [(0,), (1,), (2,), (0, 1), (1, 2)])
def test_only_the_gradients_asked_for(wanted: tuple[int, ...]) -> None:
    coords, spec = cloud(9), ConvSpec(3)
    kernel_map = build_kernel_map(coords, spec).kernel_map
    every = operands(len(coords), spec, (3, 4))
    full = torch.autograd.grad(sparse_conv(every[0], every[1], kernel_map, every[2]).sum(), every)
    some = [t.detach().requires_grad_(i in wanted) for i, t in enumerate(every)]
    sparse_conv(some[0], some[1], kernel_map, some[2]).sum().backward()
    for index, tensor in enumerate(some):
        assert (tensor.grad is not None) == (index in wanted)
        if index in wanted:
            assert torch.equal(tensor.grad, full[index])


def test_no_gradient_is_recorded_without_need() -> None:
    coords, spec = cloud(9), ConvSpec(3)
    kernel_map = build_kernel_map(coords, spec).kernel_map
    feats, weight, bias = operands(len(coords), spec, (3, 4))
    with torch.no_grad():
        assert not sparse_conv(feats, weight, kernel_map, bias).requires_grad
    with torch.inference_mode():
        assert sparse_conv(feats, weight, kernel_map, bias).is_inference()
    plain = sparse_conv(feats.detach(), weight.detach(), kernel_map)
    assert not plain.requires_grad


def test_strided_feats_weights_and_upstream_gradients() -> None:
    """Views give the bits of their copies: spconv reads a strided view as if it were packed."""
    coords, spec = cloud(10), ConvSpec(3)
    kernel_map = build_kernel_map(coords, spec).kernel_map
    feats, weight, bias = (t.detach() for t in operands(len(coords), spec, (3, 4)))
    expected = sparse_conv(feats, weight, kernel_map, bias)
    wide = torch.stack([feats, -feats], 2).flatten(1)
    views = {
        "every other channel": (wide[:, ::2], weight),
        "column major": (feats.t().contiguous().t(), weight),
        "channels of a wider tensor": (torch.cat([feats, feats], 1)[:, 3:], weight),
        "weight of permuted layout": (feats, weight.permute(2, 1, 0).contiguous().permute(2, 1, 0)),
        "expanded": (feats[:1].expand_as(feats), weight),
    }
    for name, (x, w) in views.items():
        same = sparse_conv(x.clone(memory_format=torch.contiguous_format), w, kernel_map, bias)
        x, w = x.requires_grad_(), w.detach().requires_grad_()
        out = sparse_conv(x, w, kernel_map, bias)
        assert_close(out, same)
        if name != "expanded":
            assert_close(out, expected)
        strided = torch.ones(4, len(coords), dtype=torch.float64).t()
        for upstream in (strided, torch.ones(1, 1, dtype=torch.float64).expand_as(out)):
            dx, dw = torch.autograd.grad(out, (x, w), upstream, retain_graph=True)
            packed = torch.ones_like(out, memory_format=torch.contiguous_format)
            dx_packed, dw_packed = torch.autograd.grad(out, (x, w), packed, retain_graph=True)
            assert_close(dx, dx_packed)
            assert_close(dw, dw_packed)


def test_arguments_are_left_alone() -> None:
    coords, spec = cloud(10), ConvSpec(2, 2)
    kernel_map = build_kernel_map(coords, spec).kernel_map
    tensors = operands(len(coords), spec, (3, 4))
    before = [t.detach().clone() for t in tensors]
    index = kernel_map.in_index.clone(), kernel_map.out_index.clone()
    sparse_conv(tensors[0], tensors[1], kernel_map, tensors[2]).sum().backward()
    assert all(torch.equal(a, b) for a, b in zip(before, tensors, strict=True))
    assert torch.equal(index[0], kernel_map.in_index)
    assert torch.equal(index[1], kernel_map.out_index)


# ----------------------------------------------------------------------------- without a kernel map


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("rows", [0, 1, 9000])
def test_without_a_map_every_row_feeds_itself(rows: int, groups: int, dtype: torch.dtype) -> None:
    tensors = operands(rows, ConvSpec(1), (6, 10), dtype, groups)
    feats, weight, bias = tensors
    out = sparse_conv(feats, weight, None, bias, groups)
    doubles = [t.detach().double().requires_grad_() for t in tensors]
    parts = zip(doubles[0].chunk(groups, 1), doubles[1][0].chunk(groups, 1), strict=True)
    expected = torch.cat([x @ w for x, w in parts], 1) + doubles[2]
    assert_close(out, expected)
    upstream = torch.randn(out.shape).to(dtype)
    got = torch.autograd.grad(out, tensors, upstream)
    want = torch.autograd.grad(expected, doubles, upstream.double())
    for mine, reference in zip(got, want, strict=True):
        assert mine.dtype == dtype
        assert_close(mine, reference)


def test_without_a_map_gradients_of_gradients() -> None:
    tensors = operands(7, ConvSpec(1), (3, 4))
    assert torch.autograd.gradgradcheck(lambda x, w, b: sparse_conv(x, w, None, b), tensors)
