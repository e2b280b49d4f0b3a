"""The weight gradient on the emulated device against the CPU's composition in float64."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from torch import Tensor

from pointlib.ops._cpu.composition import sparse_conv as composition
from pointlib.ops._cuda import engine
from pointlib.ops._cuda import weight_grad as family
from pointlib.ops._cuda.weight_grad import weight_grad
from pointlib.ops.kernel_map import ConvSpec, KernelMap, build_kernel_map
from tests import oracles
from tests.cuda_emulator.emulator import Emulator
from tests.tolerances import assert_close


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that few pairs make several chunks of a tap."""
    monkeypatch.setattr(family, "MIN_PAIRS", 64)
    monkeypatch.setattr(family, "BLOCKS_PER_SM", 1024)


def cloud(count: int, kernel_size: int = 3, stride: int = 1) -> KernelMap:
    coords = oracles.random_coords(np.random.default_rng(count), count, 7, 2)
    return build_kernel_map(coords, ConvSpec(kernel_size, stride)).kernel_map


def draw(rows: int, columns: int, dtype: torch.dtype, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(rows, columns, generator=generator, dtype=torch.float64).to(dtype)


def check(pairs: KernelMap, c_in: int, c_out: int, dtype: torch.dtype, groups: int = 1) -> None:
    feats, grad = draw(pairs.num_in, c_in, dtype), draw(pairs.num_out, c_out, dtype, 1)
    triple = (pairs.in_index, pairs.out_index, pairs.offset_ptr)
    actual = weight_grad(feats, grad, *triple, groups)
    expected = composition.sparse_conv_grad_weight(
        feats.double(), grad.double(), *triple, groups, -1
    )
    assert actual.dtype == dtype
    assert_close(actual, expected)


HALVES = [(4, 32), (24, 24), (33, 40)]


@pytest.mark.parametrize(("c_in", "c_out"), HALVES)
def test_float16_on_tensor_cores(emulator: Emulator, c_in: int, c_out: int) -> None:
    check(cloud(150), c_in, c_out, torch.float16)


def test_wide_tile(emulator: Emulator) -> None:
    check(cloud(90, 2, 2), 130, 120, torch.float16)


def test_bfloat16(emulator: Emulator) -> None:
    check(cloud(120), 24, 32, torch.bfloat16)


@pytest.mark.parametrize(("c_in", "c_out"), [(5, 17), (20, 70)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_exact(emulator: Emulator, dtype: torch.dtype, c_in: int, c_out: int) -> None:
    check(cloud(120), c_in, c_out, dtype)


@pytest.fixture
def tf32() -> Iterator[None]:
    """Let torch use tf32, as many training scripts do."""
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = True
    yield
    torch.backends.cuda.matmul.allow_tf32 = before


def test_tf32_where_torch_allows_it(emulator: Emulator, tf32: None) -> None:
    pairs = cloud(120)
    feats, grad = draw(pairs.num_in, 20, torch.float32), draw(pairs.num_out, 36, torch.float32, 1)
    triple = (pairs.in_index, pairs.out_index, pairs.offset_ptr)
    actual = weight_grad(feats, grad, *triple, 1)
    expected = composition.sparse_conv_grad_weight(feats.double(), grad.double(), *triple, 1, -1)
    assert_close(actual, expected, torch.float16)  # tf32 has float16's significand
    largest = float((actual - expected).abs().max() / expected.abs().max())
    assert (largest > 1e-5) == (engine.properties(feats).capability >= 80)


@pytest.mark.parametrize("groups", [2, 12])
@pytest.mark.parametrize("dtype", [torch.float16, torch.float64])
def test_groups(emulator: Emulator, dtype: torch.dtype, groups: int) -> None:
    check(cloud(150), 12, 24, dtype, groups)


@pytest.mark.parametrize("rows", [1, 31, 32, 33, 64, 65, 200])
def test_rows_that_feed_themselves(emulator: Emulator, rows: int) -> None:
    feats, grad = draw(rows, 24, torch.float16), draw(rows, 24, torch.float16, 1)
    actual = weight_grad(feats, grad, None, None, None, 1)
    assert_close(actual, (feats.double().t() @ grad.double())[None])


def test_nothing_to_add(emulator: Emulator) -> None:
    empty = torch.empty(0, dtype=torch.int32)
    feats = torch.ones(3, 8)
    assert not weight_grad(feats, feats, empty, empty, torch.zeros(28, dtype=torch.int64), 1).any()
    assert weight_grad(feats[:0], feats[:0], None, None, None, 1).shape == (1, 8, 8)
    assert weight_grad(feats[:, :0], feats, None, None, None, 1).shape == (1, 0, 8)


def test_strided_and_misaligned_rows(emulator: Emulator) -> None:
    storage = draw(70, 34, torch.float16).flatten()
    feats, grad = storage[1:-1][: 69 * 32].view(69, 32), draw(32, 69, torch.float16).t()
    actual = weight_grad(feats, grad, None, None, None, 1)
    assert_close(actual, (feats.double().t() @ grad.double())[None])


def test_float16_does_not_overflow_within_a_sum(emulator: Emulator) -> None:
    feats = torch.full((128, 24), 200.0, dtype=torch.float16)
    grad = torch.full((128, 24), 200.0, dtype=torch.float16)
    grad[64:] = -200.0
    grad[0] += 1
    actual = weight_grad(feats, grad, None, None, None, 1)
    torch.testing.assert_close(actual, torch.full_like(actual, 200.0), rtol=0, atol=0)


def test_same_bits_every_time(emulator: Emulator) -> None:
    pairs = cloud(150)
    feats, grad = draw(pairs.num_in, 24, torch.float16), draw(pairs.num_out, 24, torch.float16, 1)
    triple = (pairs.in_index, pairs.out_index, pairs.offset_ptr)
    first = weight_grad(feats, grad, *triple, 1)
    assert torch.equal(weight_grad(feats, grad, *triple, 1), first)
