"""Conv3d: the module around sparse_conv, from its arguments to whole pyramids of it."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn

from pointlib.nn.conv import Conv3d
from pointlib.tensor import SparseTensor
from tests import oracles
from tests.tolerances import assert_close

SHAPE = (7, 6, 5)


def voxels(
    channels: int = 4, seed: int = 0, dtype: torch.dtype = torch.float64, **kwargs: object
) -> SparseTensor:
    coords = oracles.random_coords(np.random.default_rng(seed), 70, SHAPE, batch=2)
    generator = torch.Generator().manual_seed(seed)
    feats = torch.randn(len(coords), channels, generator=generator, dtype=torch.float64).to(dtype)
    kwargs.setdefault("spatial_shape", SHAPE)
    return SparseTensor(feats.requires_grad_(), coords, **kwargs)  # type: ignore[arg-type]


def geometry(conv: Conv3d) -> tuple:
    return (conv.spec.kernel_size, conv.spec.stride, conv.spec.padding, conv.spec.dilation)


DOWN = [
    {"kernel_size": 3},
    {"kernel_size": 3, "bias": True},
    {"kernel_size": 5, "dilation": 2},
    {"kernel_size": (3, 1, 2)},
    {"kernel_size": 1},
    {"kernel_size": 1, "bias": True, "groups": 2},
    {"kernel_size": 1, "padding": 1},
    {"kernel_size": 3, "groups": 2},
    {"kernel_size": 3, "groups": 4, "bias": True},
    {"kernel_size": 2, "stride": 2},
    {"kernel_size": 3, "stride": 2, "padding": 1, "bias": True},
    {"kernel_size": 3, "stride": (2, 1, 3), "padding": (0, 1, 2), "dilation": (1, 2, 1)},
    {"kernel_size": 1, "stride": 2},
    {"kernel_size": 3, "stride": 2, "padding": 1, "relation": "spconv"},
    {"kernel_size": 3, "stride": 1, "padding": 1, "relation": "spconv"},
    {"kernel_size": 1, "stride": 1, "relation": "spconv", "bias": True},
    {"kernel_size": (3, 1, 1), "stride": (2, 1, 1), "relation": "spconv", "bias": True},
]


@pytest.mark.parametrize("kwargs", DOWN, ids=str)
def test_equals_dense_convolution(kwargs: dict) -> None:
    torch.manual_seed(0)
    x, conv = voxels(), Conv3d(4, 8, **kwargs).double()
    y = conv(x)
    outs = oracles.out_sites(x.coords.tolist(), conv.spec.relation, *geometry(conv), SHAPE)
    assert sorted(map(tuple, y.coords.tolist())) == sorted(outs)
    assert y.stride == conv.spec.stride
    assert y.batch_size == x.batch_size
    weight = conv.kernel if conv.kernel.dim() == 3 else conv.kernel[None]
    expected = oracles.dense_conv(
        x.feats, x.coords, y.coords, weight, *geometry(conv), conv.bias, conv.groups
    )
    assert_close(y.feats, expected)
    parameters = (x.feats, *conv.parameters())
    upstream = torch.randn_like(expected)
    got = torch.autograd.grad(y.feats, parameters, upstream)
    for mine, reference in zip(
        got, torch.autograd.grad(expected, parameters, upstream), strict=True
    ):
        assert_close(mine, reference)


@pytest.mark.parametrize("kwargs", [k for k in DOWN if "stride" in k], ids=str)
def test_transposed_goes_back_to_the_voxels_it_came_from(kwargs: dict) -> None:
    torch.manual_seed(0)
    down, up = Conv3d(4, 5, **kwargs).double(), Conv3d(5, 3, transposed=True, **kwargs).double()
    x = voxels()
    y = down(x)
    if down.is_pointwise:
        return
    z = up(y)
    assert z.sites is x.sites
    assert z.stride == (1, 1, 1)
    expected = oracles.dense_conv_transpose(
        y.feats, y.coords, x.coords, up.kernel, *geometry(up), up.bias
    )
    assert_close(z.feats, expected)


@pytest.mark.parametrize(
    "kwargs", [{"kernel_size": 2, "stride": 2}, {"kernel_size": 3, "stride": 2, "bias": True}]
)
def test_generative_makes_every_voxel_it_reaches(kwargs: dict) -> None:
    x, conv = voxels(stride=2), Conv3d(4, 3, generative=True, **kwargs).double()
    y = conv(x)
    assert [tuple(row) for row in y.coords.tolist()] == oracles.generative_sites(
        x.coords.tolist(), *geometry(conv)
    )
    assert y.stride == (1, 1, 1)
    expected = oracles.dense_conv_transpose(
        x.feats, x.coords, y.coords, conv.kernel, *geometry(conv), conv.bias
    )
    assert_close(y.feats, expected)


def test_padding_and_dilation_take_effect() -> None:
    """In torchsparse dilation changes nothing, and the second of two paddings gets the map of the first."""
    x = voxels()
    torch.manual_seed(0)
    kernel = torch.randn(27, 4, 4, dtype=torch.float64)
    results = []
    for kwargs in ({}, {"dilation": 2}, {"padding": 0}, {"padding": (2, 1, 1)}):
        for stride in (1, 2):
            conv = Conv3d(4, 4, 3, stride, **kwargs).double()
            conv.kernel.data = kernel
            y = conv(x)  # the same x, so the same cache
            expected = oracles.dense_conv(x.feats, x.coords, y.coords, kernel, *geometry(conv))
            assert_close(y.feats, expected)
            results.append(y.feats)
    for stride in (0, 1):
        of_one_stride = results[stride::2]
        assert all(not torch.allclose(a, of_one_stride[0]) for a in of_one_stride[1:])


def test_transposed_without_its_convolution_is_refused() -> None:
    """torchsparse: AttributeError on None."""
    x = voxels()
    with pytest.raises(ValueError, match=r"transposed convolution: .*generative=True"):
        Conv3d(4, 4, 2, 2, transposed=True).double()(x)
    y = Conv3d(4, 4, 2, 2).double()(x)
    with pytest.raises(ValueError, match="transposed convolution"):
        Conv3d(4, 4, 3, 2, transposed=True).double()(y)


def test_a_pyramid_down_and_up_restores_every_level() -> None:
    x = voxels()
    levels = [x]
    for _ in range(3):
        levels.append(Conv3d(4, 4, 2, 2).double()(levels[-1]))
    assert [level.stride[0] for level in levels] == [1, 2, 4, 8]
    y = levels[-1]
    for level in reversed(levels[:-1]):
        y = Conv3d(4, 4, 2, 2, transposed=True).double()(y)
        assert y.sites is level.sites
    y.feats.sum().backward()
    assert x.feats.grad is not None and bool(x.feats.grad.isfinite().all())


def test_kernel_shape_is_that_of_torchsparse() -> None:
    assert Conv3d(4, 8, 3).kernel.shape == (27, 4, 8)
    assert Conv3d(4, 8, (3, 1, 2)).kernel.shape == (6, 4, 8)
    assert Conv3d(4, 8, 1).kernel.shape == (4, 8)
    assert Conv3d(4, 8, 1, bias=True).bias.shape == (8,)
    assert Conv3d(4, 8, 2, 2, transposed=True).kernel.shape == (8, 4, 8)
    assert Conv3d(4, 8, 3, groups=4).kernel.shape == (27, 1, 8)
    assert list(Conv3d(4, 8, 3).state_dict()) == ["kernel"]
    assert list(Conv3d(4, 8, 3, bias=True).state_dict()) == ["kernel", "bias"]


def test_state_dict_round_trip_gives_the_same_bits() -> None:
    a, b = Conv3d(4, 8, 3, bias=True), Conv3d(4, 8, 3, bias=True)
    x = voxels(dtype=torch.float32)
    assert not torch.equal(a(x).feats, b(x).feats)
    b.load_state_dict(a.state_dict())
    assert torch.equal(a(x).feats, b(x).feats)


@pytest.mark.parametrize("groups", [1, 4])
@pytest.mark.parametrize("transposed", [False, True])
def test_fresh_parameters_lie_within_their_bound(transposed: bool, groups: int) -> None:
    conv = Conv3d(16, 32, 3, 2, groups=groups, bias=True, transposed=transposed)
    bound = 1 / math.sqrt((32 if transposed else 16) * 27 / groups)
    for parameter in conv.parameters():
        assert bound * 0.8 < float(parameter.detach().abs().max()) <= bound
    assert float(conv.kernel.detach().std()) == pytest.approx(bound / math.sqrt(3), rel=0.05)


def test_no_voxel_and_one() -> None:
    for count in (0, 1):
        coords = torch.full((count, 4), -3, dtype=torch.int32).index_fill_(1, torch.tensor(0), 0)
        x = SparseTensor(torch.ones(count, 4), coords, batch_size=2)
        down, up = Conv3d(4, 6, 2, 2, bias=True), Conv3d(6, 5, 2, 2, transposed=True)
        y = up(down(Conv3d(4, 4, 3)(Conv3d(4, 4, 1)(x))))
        assert y.feats.shape == (count, 5) and y.batch_size == 2
        y.feats.sum().backward()
        assert down.kernel.grad is not None
        assert Conv3d(4, 6, 2, 2, relation="spconv")(x).num_channels == 6


def test_autocast_mixes_with_dense_layers() -> None:
    torch.manual_seed(0)
    x = voxels(dtype=torch.float32)
    stem, point, head = Conv3d(4, 8, 3), Conv3d(8, 8, 1), nn.Linear(8, 3)
    with torch.autocast("cpu", torch.bfloat16):
        y = point(stem(x))
        out = head(y.feats)
    assert y.dtype == out.dtype == torch.bfloat16
    out.float().sum().backward()
    exact = head(point(stem(x)).feats)
    assert_close(out, exact, torch.bfloat16)
    for layer in (stem, point):
        assert layer.kernel.grad.dtype == torch.float32


def test_bfloat16_module() -> None:
    x = voxels(dtype=torch.bfloat16)
    conv = Conv3d(4, 8, 3, bias=True).bfloat16()
    y = conv(x)
    assert y.dtype == torch.bfloat16
    exact = oracles.dense_conv(
        x.feats, x.coords, y.coords, conv.kernel, *geometry(conv), bias=conv.bias
    )
    assert_close(y.feats, exact)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"groups": 3}, "Conv3d: groups must divide"),
        ({"groups": 0}, "Conv3d: groups must divide"),
        ({"kernel_size": 8}, "kernel_size must be at most 7"),
        ({"stride": 2, "relation": "submanifold"}, "stride must be 1 where relation"),
        ({"relation": "torchsparse"}, "relation must be one of"),
        ({"padding": -1}, "padding must be"),
        ({"in_channels": 0}, "in_channels and out_channels must be"),
        ({"out_channels": 0}, "in_channels and out_channels must be"),
    ],
    ids=str,
)
def test_wrong_arguments_are_refused(kwargs: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Conv3d(**{"in_channels": 4, "out_channels": 8, **kwargs})


@pytest.mark.parametrize("kernel_size", [1, 3])
def test_wrong_inputs_are_refused(kernel_size: int) -> None:
    conv = Conv3d(4, 8, kernel_size)
    with pytest.raises(ValueError, match="Conv3d: x must have 4 channels, got 5"):
        conv(voxels(5, dtype=torch.float32))
    with pytest.raises(TypeError, match=r"(sparse_conv|Conv3d): .*(float64|double)"):
        conv(voxels(4, dtype=torch.float64))


def test_repr_names_what_matters() -> None:
    text = repr(Conv3d(4, 8, 3, 2, 1, relation="spconv"))
    for part in (
        "4, 8",
        "kernel_size=(3, 3, 3)",
        "stride=(2, 2, 2)",
        "padding=(1, 1, 1)",
        "spconv",
    ):
        assert part in text
