"""Convolution in channel groups on the emulated device against the CPU's composition in float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from pointlib.ops._cpu.composition import sparse_conv as composition
from pointlib.ops._cuda.grouped_conv import grouped_conv
from pointlib.ops.kernel_map import ConvSpec, KernelMap, build_kernel_map
from tests import oracles
from tests.cuda_emulator.emulator import Emulator
from tests.tolerances import assert_close


def cloud(count: int, kernel_size: int, stride: int = 1) -> KernelMap:
    coords = oracles.random_coords(np.random.default_rng(count), count, 7, 2)
    return build_kernel_map(coords, ConvSpec(kernel_size, stride)).kernel_map


def draw(*shape: int, dtype: torch.dtype, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)


def check(pairs: KernelMap, c_in: int, c_out: int, groups: int, dtype: torch.dtype) -> None:
    feats = draw(pairs.num_in, c_in, dtype=dtype)
    weight = draw(pairs.kernel_volume, c_in // groups, c_out, dtype=dtype, seed=1)
    bias = draw(c_out, dtype=dtype, seed=2)
    triple = (pairs.in_index, pairs.out_index, pairs.offset_ptr, pairs.num_out)
    for given in (bias, None):
        actual = grouped_conv(feats, weight, given, *triple, groups)
        wide = None if given is None else given.double()
        expected = composition.sparse_conv(
            feats.double(), weight.double(), wide, *triple, groups, -1
        )
        assert actual.dtype == dtype
        assert_close(actual, expected)


@pytest.mark.parametrize(("c_in", "c_out", "groups"), [(12, 8, 2), (12, 24, 12)])
@pytest.mark.parametrize("dtype", [torch.float16, torch.float64])
def test_groups(emulator: Emulator, dtype: torch.dtype, c_in: int, c_out: int, groups: int) -> None:
    check(cloud(120, 3), c_in, c_out, groups, dtype)


@pytest.mark.parametrize("channels", [13, 16])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_depthwise(emulator: Emulator, dtype: torch.dtype, channels: int) -> None:
    check(cloud(120, 3), channels, channels, channels, dtype)


@pytest.mark.parametrize("kernel_size", [1, 2, 4, 5])
def test_strided_maps(emulator: Emulator, kernel_size: int) -> None:
    check(cloud(120, kernel_size, 2), 16, 16, 16, torch.float32)
    check(cloud(120, kernel_size, 2), 12, 8, 2, torch.float16)


@pytest.mark.parametrize("rows", [1, 15, 16, 17])
def test_rows_that_feed_themselves(emulator: Emulator, rows: int) -> None:
    feats = draw(rows, 16, dtype=torch.float32)
    weight = draw(1, 1, 16, dtype=torch.float32, seed=1)
    actual = grouped_conv(feats, weight, None, None, None, None, rows, 16)
    assert_close(actual, feats.double() * weight.double().flatten())


def test_nothing_feeds_an_output(emulator: Emulator) -> None:
    empty = torch.empty(0, dtype=torch.int32)
    triple = (empty, empty.clone(), torch.zeros(9, dtype=torch.int64))
    bias = torch.arange(16.0)
    actual = grouped_conv(torch.ones(3, 16), torch.ones(8, 1, 16), bias, *triple, 5, 16)
    assert torch.equal(actual, bias.expand(5, 16))
    assert grouped_conv(torch.ones(3, 16), torch.ones(8, 1, 16), bias, *triple, 0, 16).numel() == 0


def test_misaligned_rows(emulator: Emulator) -> None:
    feats = draw(20 * 16 + 1, dtype=torch.float32)[1:].view(20, 16)
    weight = draw(16, 1, 1, dtype=torch.float32, seed=1).permute(1, 2, 0)
    actual = grouped_conv(feats, weight, None, None, None, None, 20, 16)
    assert_close(actual, feats.double() * weight.double().flatten())
