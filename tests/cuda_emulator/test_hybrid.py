"""The hybrid dataflow on the emulated device against the CPU's composition in float64."""

from __future__ import annotations

import gc
import weakref

import numpy as np
import pytest
import torch
from torch import Tensor

from pointlib.ops._cpu.composition import sparse_conv as composition
from pointlib.ops._cuda.hybrid import RARE, hybrid, split_taps
from pointlib.ops._cuda.implicit_gemm import Pairs
from pointlib.ops.kernel_map import ConvSpec, KernelMap, build_kernel_map
from tests import oracles
from tests.cuda_emulator.emulator import Emulator
from tests.tolerances import assert_close


def surface(count: int, extent: tuple[int, int, int]) -> KernelMap:
    """Voxels in a box and three on top of it: where the box is flat, few pairs go up or down."""
    coords = oracles.random_coords(np.random.default_rng(count), count, extent)
    above = coords[:3] + torch.tensor([0, 0, 0, extent[2]], dtype=torch.int32)
    return build_kernel_map(torch.cat([coords, above]), ConvSpec(3)).kernel_map


def pairs_of(kernel_map: KernelMap) -> Pairs:
    triple = (kernel_map.in_index, kernel_map.out_index, kernel_map.offset_ptr)
    return Pairs(*triple, kernel_map.num_out, kernel_map.identity_tap)


def draw(*shape: int, dtype: torch.dtype, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)


def check(kernel_map: KernelMap, c_in: int, c_out: int, dtype: torch.dtype) -> None:
    pairs = pairs_of(kernel_map)
    feats = draw(kernel_map.num_in, c_in, dtype=dtype)
    weight = draw(kernel_map.kernel_volume, c_in, c_out, dtype=dtype, seed=1)
    bias = draw(c_out, dtype=dtype, seed=2)
    actual = hybrid(feats, weight, bias, pairs)
    wide = (feats.double(), weight.double(), bias.double())
    assert actual.dtype == dtype
    assert_close(actual, composition.sparse_conv(*wide, *pairs[:4], 1, -1))
    assert torch.equal(hybrid(feats, weight, bias, pairs), actual)


MAPS = {
    "some taps are rare": (110, (12, 12, 1)),
    "all taps but the middle one": (60, (40, 40, 40)),
    "no tap is rare": (150, (6, 6, 6)),
}


@pytest.mark.parametrize("name", MAPS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.float64])
def test_common_and_rare_taps(emulator: Emulator, dtype: torch.dtype, name: str) -> None:
    kernel_map = surface(*MAPS[name])
    parts = split_taps(pairs_of(kernel_map))
    common, rare = len(parts.common_taps), len(parts.rare_taps)
    assert common + rare == 27
    assert (rare > 0) == (name != "no tap is rare")
    assert (common == 1) == (parts.common.in_index is None) == name.startswith("all taps but")
    check(kernel_map, 24, 32, dtype)


def test_bfloat16(emulator: Emulator) -> None:
    check(surface(*MAPS["some taps are rare"]), 24, 32, torch.bfloat16)


def test_every_tap_is_rare(emulator: Emulator) -> None:
    first, last = torch.tensor([3, 1], dtype=torch.int32), torch.tensor([0, 70], dtype=torch.int32)
    offsets = torch.tensor([0, 1, 1, 2])
    check(KernelMap(first, last, offsets, 4, 80, -1), 24, 32, torch.float16)
    check(KernelMap(first[:0], last[:0], offsets * 0, 4, 80, -1), 24, 32, torch.float16)
    check(KernelMap(first[:0], last[:0], offsets * 0, 4, 0, -1), 24, 32, torch.float16)


def test_few_channels_take_their_own_kernel(emulator: Emulator) -> None:
    check(surface(*MAPS["some taps are rare"]), 4, 16, torch.float16)


def test_parts_have_all_pairs_and_go_with_the_map() -> None:
    kernel_map = surface(*MAPS["some taps are rare"])
    pairs = pairs_of(kernel_map)
    parts = split_taps(pairs)
    assert split_taps(pairs) is parts
    sizes = kernel_map.offset_ptr.diff()
    assert torch.equal(sizes[parts.common_taps], parts.common.offset_ptr.diff())
    assert bool((sizes[parts.rare_taps] * RARE < kernel_map.num_out).all())
    for part in (parts.common, parts.rare):
        assert len(part.in_index) == len(part.out_index) == int(part.offset_ptr[-1])
    tap = int(parts.rare_taps[-1])
    last = slice(int(kernel_map.offset_ptr[tap]), int(kernel_map.offset_ptr[tap + 1]))
    assert torch.equal(parts.rare.in_index[-int(sizes[tap]) :], kernel_map.in_index[last])
    held = weakref.ref(parts.rare.in_index)
    del pairs, parts, part, kernel_map
    gc.collect()
    assert held() is None
