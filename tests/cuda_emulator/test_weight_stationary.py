"""Convolution tap by tap on the emulated device against the CPU's composition in float64."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from pointlib.ops._cpu.composition import sparse_conv as composition
from pointlib.ops._cuda.weight_stationary import batch_taps, fetch_on_demand, gather_scatter
from pointlib.ops.kernel_map import ConvSpec, KernelMap, build_kernel_map
from tests import oracles
from tests.cuda_emulator.emulator import Emulator
from tests.tolerances import assert_close

DATAFLOWS = [fetch_on_demand, gather_scatter]
dataflows = pytest.mark.parametrize("convolve", DATAFLOWS)


def cloud(count: int, kernel_size: int = 3, stride: int = 1) -> KernelMap:
    coords = oracles.random_coords(np.random.default_rng(count), count, 7, 2)
    return build_kernel_map(coords, ConvSpec(kernel_size, stride)).kernel_map


def draw(*shape: int, dtype: torch.dtype, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)


def check(
    convolve: Callable[..., Tensor], pairs: KernelMap, c_in: int, c_out: int, dtype: torch.dtype
) -> None:
    feats = draw(pairs.num_in, c_in, dtype=dtype)
    weight = draw(pairs.kernel_volume, c_in, c_out, dtype=dtype, seed=1)
    bias = draw(c_out, dtype=dtype, seed=2)
    triple = (pairs.in_index, pairs.out_index, pairs.offset_ptr)
    for given in (bias, None):
        actual = convolve(feats, weight, given, *triple, pairs.num_out)
        wide = None if given is None else given.double()
        expected = composition.sparse_conv(
            *(feats.double(), weight.double(), wide, *triple, pairs.num_out, 1, -1)
        )
        assert actual.dtype == dtype
        assert_close(actual, expected)


@pytest.mark.parametrize(("c_in", "c_out"), [(4, 32), (33, 40), (40, 33)])
@dataflows
def test_float16(emulator: Emulator, convolve: Callable, c_in: int, c_out: int) -> None:
    check(convolve, cloud(250), c_in, c_out, torch.float16)


@dataflows
def test_bfloat16(emulator: Emulator, convolve: Callable) -> None:
    check(convolve, cloud(150), 24, 48, torch.bfloat16)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@dataflows
def test_exact(emulator: Emulator, convolve: Callable, dtype: torch.dtype) -> None:
    check(convolve, cloud(150), 20, 70, dtype)


@pytest.mark.parametrize("c_out", [90, 130])
def test_wide_tiles(emulator: Emulator, c_out: int) -> None:
    check(fetch_on_demand, cloud(70, 2, 2), 70, c_out, torch.float16)


def test_tf32_where_torch_allows_it(emulator: Emulator) -> None:
    pairs = cloud(150)
    feats, weight = (
        draw(pairs.num_in, 20, dtype=torch.float32),
        draw(27, 20, 70, dtype=torch.float32),
    )
    triple = (pairs.in_index, pairs.out_index, pairs.offset_ptr, pairs.num_out)
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = True
    try:
        actual = fetch_on_demand(feats, weight, None, *triple)
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before
    expected = composition.sparse_conv(feats.double(), weight.double(), None, *triple, 1, -1)
    assert_close(actual, expected, torch.float16)  # tf32 has float16's significand


@pytest.mark.parametrize("rows", [1, 63, 64, 65])
@dataflows
def test_rows_that_feed_themselves(emulator: Emulator, convolve: Callable, rows: int) -> None:
    feats, weight = (
        draw(rows, 24, dtype=torch.float16),
        draw(1, 24, 32, dtype=torch.float16, seed=1),
    )
    actual = convolve(feats, weight, None, None, None, None, rows)
    assert_close(actual, feats.double() @ weight[0].double())


@pytest.mark.parametrize("kernel_size", [1, 2, 4, 5])
@dataflows
def test_strided_maps(emulator: Emulator, convolve: Callable, kernel_size: int) -> None:
    check(convolve, cloud(120, kernel_size, 2), 24, 32, torch.float16)


@dataflows
def test_nothing_feeds_an_output(emulator: Emulator, convolve: Callable) -> None:
    empty = torch.empty(0, dtype=torch.int32)
    offsets = torch.zeros(28, dtype=torch.int64)
    feats, weight = torch.ones(3, 24).half(), torch.ones(27, 24, 32).half()
    bias = torch.arange(32).half()
    actual = convolve(feats, weight, bias, empty, empty.clone(), offsets, 5)
    assert torch.equal(actual, bias.expand(5, 32))
    assert convolve(feats, weight, bias, empty, empty.clone(), offsets, 0).shape == (0, 32)
    none = convolve(feats[:, :0], weight[:1, :0], bias, None, None, None, 3)
    assert torch.equal(none, bias.expand(3, 32))


@dataflows
def test_strided_and_misaligned_tensors(emulator: Emulator, convolve: Callable) -> None:
    storage = draw(70, 34, dtype=torch.float16).flatten()
    feats = storage[1:-1][: 65 * 32].view(65, 32)
    weight = draw(32, 32, 1, dtype=torch.float16, seed=1).permute(2, 1, 0)
    bias = draw(64, dtype=torch.float16)[::2]
    actual = convolve(feats, weight, bias, None, None, None, 65)
    assert_close(actual, feats.double() @ weight[0].double() + bias.double())


@dataflows
def test_same_bits_every_time(emulator: Emulator, convolve: Callable) -> None:
    pairs = cloud(150)
    feats = draw(pairs.num_in, 24, dtype=torch.float16)
    weight = draw(27, 24, 32, dtype=torch.float16)
    rest = (None, pairs.in_index, pairs.out_index, pairs.offset_ptr, pairs.num_out)
    assert torch.equal(convolve(feats, weight, *rest), convolve(feats, weight, *rest))


def test_taps_of_like_size_share_a_batch() -> None:
    sizes = [3, 100, 0, 90, 2, 40, 101]
    batches = batch_taps(sizes, 0.1)
    assert sorted(tap for taps, _ in batches for tap in taps) == [0, 1, 3, 4, 5, 6]
    for taps, size in batches:
        assert size == max(sizes[tap] for tap in taps)
        assert len(taps) * size <= 1.1 * sum(sizes[tap] for tap in taps)
    assert [taps for taps, _ in batches] == [[6, 1, 3], [5], [0], [4]]
