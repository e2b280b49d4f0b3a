"""Specifications of kernel maps, what is refused, and the operators' registration."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from pointlib.ops.kernel_map import (
    ConvSpec,
    build_generative_map,
    build_kernel_map,
    kernel_offsets,
    kernel_taps,
)
from tests import oracles
from tests.ops.test_kernel_map import KERNELS, check_map

# --------------------------------------------------------------------------------- taps and specifications


def test_taps_run_x_fastest_if_odd_and_z_fastest_if_even() -> None:
    assert kernel_taps(3)[:4] == [(0, 0, 0), (1, 0, 0), (2, 0, 0), (0, 1, 0)]
    assert kernel_taps(2)[:4] == [(0, 0, 0), (0, 0, 1), (0, 1, 0), (0, 1, 1)]
    for kernel in KERNELS:
        size = (kernel,) * 3 if isinstance(kernel, int) else kernel
        assert kernel_taps(kernel) == oracles.taps(size)
        centred = torch.tensor(oracles.taps(size)) - (torch.tensor(size) - 1) // 2
        assert torch.equal(kernel_offsets(kernel), centred.int())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"kernel_size": 0}, "kernel_size must be an int >= 1"),
        ({"kernel_size": 8}, "kernel_size must be at most 7, got 8"),
        ({"kernel_size": (3, 3)}, "kernel_size must be .* three of them"),
        ({"kernel_size": 2.5}, "kernel_size must be"),
        ({"kernel_size": None}, "kernel_size must be"),
        ({"kernel_size": "333"}, "kernel_size must be"),
        ({"stride": 0, "relation": "minkowski"}, "stride must be an int >= 1"),
        ({"stride": (1, 2, -1)}, "stride must be an int >= 1"),
        ({"padding": -1}, "padding must be an int >= 0"),
        ({"dilation": 0}, "dilation must be an int >= 1"),
        ({"dilation": 2**31}, "dilation must be at most 2147483647"),
        ({"padding": (0, 2**40, 0)}, "padding must be at most 2147483647"),
        ({"stride": 2**31, "relation": "spconv"}, "stride must be at most 2147483647"),
        ({"relation": "torchsparse"}, "relation must be one of .*submanifold"),
        ({"stride": 2, "relation": "submanifold"}, "stride must be 1 where relation is"),
    ],
    ids=str,
)
def test_specifications_out_of_range_are_refused(changes: dict, message: str) -> None:
    with pytest.raises((ValueError, TypeError), match=f"ConvSpec: {message}"):
        ConvSpec(**{"kernel_size": 3, **changes})


def test_equal_specifications_are_one_key_and_different_ones_are_not() -> None:
    """A cache that leaves padding or dilation out of its key serves wrong maps."""
    assert ConvSpec(3) == ConvSpec((3, 3, 3), 1, 1, (1, 1, 1), "submanifold")
    assert hash(ConvSpec(3)) == hash(ConvSpec((3, 3, 3), (1, 1, 1), 1))
    assert ConvSpec([3, 3, 3]) == ConvSpec(3)  # type: ignore[arg-type]
    different = {
        ConvSpec(3),
        ConvSpec(3, padding=0),
        ConvSpec(3, dilation=2, padding=1),
        ConvSpec(3, relation="minkowski"),
        ConvSpec(3, relation="spconv", padding=1),
        ConvSpec(3, stride=2),
        ConvSpec(5),
    }
    assert len(different) == 7


# ------------------------------------------------------------------------------------------------ bad input


@pytest.mark.parametrize(
    "spec", [ConvSpec(3), ConvSpec(1), ConvSpec(2), ConvSpec(2, 2), ConvSpec(3, 2, 1, 1, "spconv")]
)
def test_duplicates_are_refused_with_the_remedy(spec: ConvSpec) -> None:
    coords = torch.tensor([[0, 1, 2, 3], [0, 5, 5, 5], [0, 1, 2, 3]], dtype=torch.int32)
    with pytest.raises(ValueError, match=r"coords must be distinct.*(voxelize|unique_coords)"):
        build_kernel_map(coords, spec)
    with pytest.raises(ValueError, match="coords must be distinct"):
        build_generative_map(coords, spec)


@pytest.mark.parametrize("build", [build_kernel_map, build_generative_map])
def test_wrong_dtypes_and_shapes_are_refused(build) -> None:
    with pytest.raises(TypeError, match=rf"{build.__name__}: coords must be \(N, 4\) int32"):
        build(torch.zeros(3, 4, dtype=torch.int64), ConvSpec(3))
    with pytest.raises(ValueError, match=rf"{build.__name__}: coords must be \(N, 4\) int32"):
        build(torch.zeros(3, 3, dtype=torch.int32), ConvSpec(3))


def test_an_extent_past_the_keys_is_refused() -> None:
    wide = torch.tensor([[0, -(2**30), -(2**30), -(2**30)], [0, 2**30, 2**30, 2**30]]).int()
    for spec in (ConvSpec(3), ConvSpec(2, 2), ConvSpec(3, 2, 1, relation="spconv")):
        with pytest.raises(ValueError, match="63 bits"):
            build_kernel_map(wide, spec)


def test_the_margin_of_the_kernel_counts_towards_the_extent() -> None:
    """2^21 voxels on each axis fill the key; one voxel of margin more would not fit and must not wrap around."""
    full = torch.tensor([[0, 0, 0, 0], [0, 2**21 - 1, 2**21 - 1, 2**21 - 1]]).int()
    check_map(full, ConvSpec(1))
    with pytest.raises(ValueError, match="63 bits"):
        build_kernel_map(full, ConvSpec(3))
    check_map(full - torch.tensor([0, 2**20, 2**20, 2**20]).int(), ConvSpec(1))


def test_fine_voxels_beyond_int32_are_refused() -> None:
    coarse = torch.tensor([[0, 2**30, 0, 0]], dtype=torch.int32)
    with pytest.raises(ValueError, match="int32"):
        build_generative_map(coarse, ConvSpec(2, 2))
    with pytest.raises(ValueError, match="int32"):
        build_generative_map(-coarse, ConvSpec(3, 3, 3))
    edge = torch.tensor([[0, 2**31 - 1, 0, 0]], dtype=torch.int32)
    with pytest.raises(ValueError, match="int32"):
        build_kernel_map(edge, ConvSpec(3, 1, 3, relation="spconv"))


# -------------------------------------------------------------------------------------------------- opcheck


@pytest.mark.parametrize("count", [0, 1, 40])
def test_opcheck(count: int) -> None:
    coords = oracles.random_coords(np.random.default_rng(13), count, extent=4, batch=2)
    geometry = ([3, 3, 3], [2, 2, 2], [1, 1, 1], [1, 1, 1])
    ops = torch.ops.pointlib
    for operator, arguments in (
        (ops.conv_sites.default, (coords, *geometry, False, None)),
        (ops.conv_sites.default, (coords, *geometry, True, [3, 3, 3])),
        (ops.generative_sites.default, (coords, *geometry)),
        (ops.kernel_map.default, (coords, coords, [3] * 3, [1] * 3, [1] * 3, [1] * 3, True)),
        (ops.kernel_map.default, (coords, coords, *geometry, False)),
    ):
        results = torch.library.opcheck(operator, arguments)
        assert set(results.values()) == {"SUCCESS"}
