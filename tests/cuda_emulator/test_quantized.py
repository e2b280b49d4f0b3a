"""int8 convolution on the emulated device, bit by bit against the CPU's."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from torch import Tensor

from pointlib.ops import quantized as operators
from pointlib.ops._cpu.composition import quantized as composition
from pointlib.ops._cuda import quantized as family
from pointlib.ops._cuda.quantized import pack_int8_weight, quantize_int8, sparse_conv_int8
from pointlib.ops.kernel_map import ConvSpec, KernelMap, build_kernel_map
from tests import oracles
from tests.cuda_emulator.emulator import Emulator

ENDINGS = [
    *((torch.int8, False, False), (torch.int8, True, True), (torch.float32, True, False)),
    (torch.bfloat16, False, True),
]
"""out_dtype, with a residual, with relu."""


def draw(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(-127, 128, shape, generator=generator).to(torch.int8)


def cloud(count: int, kernel_size: int = 3, stride: int = 1) -> KernelMap:
    coords = oracles.random_coords(np.random.default_rng(count), count, 7, 2)
    return build_kernel_map(coords, ConvSpec(kernel_size, stride)).kernel_map


def check(
    parts: Sequence[Tensor], c_out: int, pairs: KernelMap, endings: Sequence = ENDINGS
) -> None:
    """Every ending, with the plain and with the packed weight."""
    c_in = sum(part.shape[1] for part in parts)
    weight = draw(pairs.kernel_volume, c_in, c_out, seed=1)
    generator = torch.Generator().manual_seed(c_out)
    scale = torch.randn(c_out, generator=generator) * 0.02 / (c_in + 1) ** 0.5
    shift = torch.randn(c_out, generator=generator) * 20
    residual = draw(pairs.num_out, c_out, seed=2)
    triple = (pairs.in_index, pairs.out_index, pairs.offset_ptr)
    for dtype, with_residual, relu in endings:
        rest = (*triple, pairs.num_out, scale, shift)
        rest += (residual, 0.37, relu, dtype) if with_residual else (None, 0.0, relu, dtype)
        expected = composition.sparse_conv_int8(parts, weight, *rest)
        for given in (weight, pack_int8_weight(weight)):
            actual = sparse_conv_int8(parts, given, *rest)
            assert actual.dtype == dtype
            assert torch.equal(actual, expected)


@pytest.mark.parametrize(("c_in", "c_out"), [(4, 16), (33, 40), (64, 64), (130, 48), (48, 130)])
def test_bits_are_those_of_the_specification(emulator: Emulator, c_in: int, c_out: int) -> None:
    pairs = cloud(150)
    check([draw(pairs.num_in, c_in)], c_out, pairs)


@pytest.mark.parametrize(("left", "right"), [(32, 16), (5, 30)])
def test_two_inputs_are_not_concatenated_in_memory(
    emulator: Emulator, left: int, right: int
) -> None:
    pairs = cloud(150)
    parts = [draw(pairs.num_in, left), draw(pairs.num_in, right, seed=3)]
    check(parts, 24, pairs, ENDINGS[:2])


@pytest.mark.parametrize("kernel_size", [1, 2, 4])
def test_strided_maps(emulator: Emulator, kernel_size: int) -> None:
    pairs = cloud(200, kernel_size, 2)
    check([draw(pairs.num_in, 24)], 24, pairs, ENDINGS[1:2])


@pytest.mark.parametrize("rows", [1, 63, 64, 65, 127, 128, 129])
def test_rows_that_feed_themselves(emulator: Emulator, rows: int) -> None:
    index = torch.arange(rows, dtype=torch.int32)
    pairs = KernelMap(index, index, torch.tensor([0, rows]), rows, rows, 0)
    check([draw(rows, 24)], 24, pairs, ENDINGS[1:2])


@pytest.mark.parametrize("columns", [96, 128])
def test_wide_tiles_of_many_rows(
    emulator: Emulator, columns: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(family, "_choose_tile", lambda num_out, c_out, num_sms: (128, columns))
    pairs = cloud(160)
    check([draw(pairs.num_in, 24)], columns - 8, pairs, ENDINGS[:1])


def test_nothing_feeds_an_output(emulator: Emulator) -> None:
    empty = torch.empty(0, dtype=torch.int32)
    pairs = KernelMap(empty, empty.clone(), torch.zeros(9, dtype=torch.int64), 5, 7, -1)
    check([draw(5, 16)], 24, pairs)
    check([draw(5, 0)], 24, pairs)
    check([draw(5, 16)], 0, pairs)
    check([draw(0, 16)], 16, KernelMap(empty, empty, torch.zeros(2, dtype=torch.int64), 0, 0, 0))


def test_not_a_number(emulator: Emulator) -> None:
    index = torch.arange(3, dtype=torch.int32)
    scale, shift = torch.tensor([float("nan"), float("inf")]), torch.zeros(2)
    for dtype in operators.OUT_DTYPES:
        rest = (index, index, torch.tensor([0, 3]), 3, scale, shift, None, 0.0, False, dtype)
        feats, weight = [draw(3, 4)], draw(1, 4, 2, seed=1)
        actual = sparse_conv_int8(feats, weight, *rest)
        expected = composition.sparse_conv_int8(feats, weight, *rest)
        torch.testing.assert_close(actual, expected, rtol=0, atol=0, equal_nan=True)


def test_strided_and_misaligned_tensors(emulator: Emulator) -> None:
    pairs = cloud(90)
    rows = draw(pairs.num_in * 32 + 1).flatten()[1:].view(-1, 32)
    check([rows], 24, pairs, ENDINGS[:1])
    check([draw(32, pairs.num_in).t()], 24, pairs, ENDINGS[:1])


def test_packed_weight_of_another_shape_is_refused(emulator: Emulator) -> None:
    index = torch.arange(3, dtype=torch.int32)
    rest = (index, index, torch.tensor([0, 3]), 3, torch.ones(32), torch.ones(32))
    rest += (None, 0.0, False, torch.int8)
    packed = pack_int8_weight(draw(1, 32, 16))
    assert len(packed) == family.packed_bytes(1, 32, 16)
    for _ in range(2):
        with pytest.raises(RuntimeError, match=r"packed weight must be of \(1, 16, 32\)"):
            sparse_conv_int8([draw(3, 16)], packed, *rest)
    with pytest.raises(RuntimeError, match="got other bytes"):
        sparse_conv_int8([draw(3, 16)], torch.zeros(700, dtype=torch.uint8), *rest)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
def test_quantize(emulator: Emulator, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(2051, generator=generator, dtype=torch.float64) * 30
    values[:6] = torch.tensor([float("nan"), float("inf"), -float("inf"), 0.15, -0.25, 0.35])
    feats = values.to(dtype)
    for given, step in ((feats, 0.1), (feats[1:], 0.3), (feats[:0], 1.0), (feats[:2050:2], 0.7)):
        assert torch.equal(quantize_int8(given, step), composition.quantize_int8(given, step))
