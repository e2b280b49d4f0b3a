"""The implicit GEMM in the emulator: every dtype, map, channel count, split and epilogue against float64 on the CPU."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence

import numpy as np
import pytest
import torch
from torch import Tensor

from pointlib.ops._cpu.composition import sparse_conv as cpu
from pointlib.ops._cuda import engine, row_map, sparse_conv
from pointlib.ops._cuda.gemm_tiles import GemmTile, Plan, candidate_plans, choose_plan, tiles
from pointlib.ops._cuda.implicit_gemm import NO_EPILOGUE, Epilogue, Pairs, convolve, variants
from pointlib.ops._cuda.tiles import on_tensor_cores
from pointlib.ops.dataflow import MapStatistics
from pointlib.ops.kernel_map import ConvSpec, KernelMap, build_generative_map, build_kernel_map
from tests import oracles
from tests.cuda_emulator.emulator import SHARED_BYTES
from tests.tolerances import assert_close

pytestmark = pytest.mark.usefixtures("emulator")
DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]
TILE = Plan(GemmTile(64, 32), 1)
MAPS = ["submanifold", "strided", "transposed", "generative", "none"]


@pytest.fixture(params=[True])
def tf32(request: pytest.FixtureRequest) -> Iterator[bool]:
    """Whether torch allows its matrix products to be in TF32."""
    settings = torch.backends.cuda.matmul
    before, settings.allow_tf32 = settings.allow_tf32, request.param
    yield request.param
    settings.allow_tf32 = before


def sites(count: int, extent: int = 6) -> Tensor:
    rng = np.random.default_rng(count)
    return oracles.random_coords(rng, 4 * count, extent, batch=2, lower=-3)[:count]


def map_of(kind: str = "submanifold", count: int = 70, kernel: int = 3) -> KernelMap | None:
    coords = sites(count)
    if kind == "none":
        return None
    if kind == "generative":
        return build_generative_map(coords, ConvSpec(3, 2)).kernel_map
    if kind == "submanifold":
        return build_kernel_map(coords, ConvSpec(kernel)).kernel_map
    down = build_kernel_map(coords, ConvSpec(kernel, 2)).kernel_map
    return down.transpose() if kind == "transposed" else down


def pairs_of(kernel_map: KernelMap | None, count: int = 70) -> Pairs:
    if kernel_map is None:
        return Pairs(None, None, None, count)
    ends = (kernel_map.in_index, kernel_map.out_index)
    return Pairs(*ends, kernel_map.offset_ptr, kernel_map.num_out, kernel_map.identity_tap)


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def operands(
    kernel_map: KernelMap | None, channels: Sequence[int], c_out: int, dtype: torch.dtype
) -> tuple[list[Tensor], Tensor]:
    """Random feats and weight."""
    rows, taps = (70, 1) if kernel_map is None else (kernel_map.num_in, kernel_map.kernel_volume)
    feats = [draw(rows, c, seed=i).to(dtype) for i, c in enumerate(channels)]
    return feats, draw(taps, sum(channels), c_out, seed=7).to(dtype)


def expected(
    feats: Sequence[Tensor], weight: Tensor, pairs: Pairs, epilogue: Epilogue = NO_EPILOGUE
) -> Tensor:
    added = [None if t is None else t.double() for t in epilogue[:3]]
    ends = (*pairs[:3], pairs.num_out)
    parts = [part.double() for part in feats]
    return cpu.fused_sparse_conv(parts, weight.double(), *ends, *added, epilogue.negative_slope)


def check(
    kernel_map: KernelMap | None,
    channels: Sequence[int],
    c_out: int,
    dtype: torch.dtype,
    plan: Plan | None = None,
    precision: torch.dtype | None = None,
) -> Tensor:
    feats, weight = operands(kernel_map, channels, c_out, dtype)
    pairs = pairs_of(kernel_map)
    out = convolve(feats, weight, pairs, plan=plan)
    assert out.dtype == dtype and out.shape == (pairs.num_out, c_out)
    assert_close(out, expected(feats, weight, pairs), precision)
    return out


def plan_for(dtype: torch.dtype, capability: int, cols: int = 32, splits: int = 1) -> Plan:
    exact = dtype == torch.float64 or dtype == torch.float32
    exact = exact or (dtype == torch.bfloat16 and capability < 80)
    return Plan(GemmTile(64, cols, exact=exact), splits)


# ----------------------------------------------------------------------------- maps, dtypes, sizes


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("kind", MAPS)
def test_every_map_and_dtype(kind: str, dtype: torch.dtype, emulator: engine.Backend) -> None:
    capability = engine.properties(torch.empty(0)).capability
    check(map_of(kind), [32], 32, dtype, plan_for(dtype, capability))


@pytest.mark.usefixtures("tf32")
def test_tf32_where_torch_allows_it() -> None:
    kernel_map = map_of()
    out = check(kernel_map, [32], 32, torch.float32, precision=torch.float16)
    feats, weight = operands(kernel_map, [32], 32, torch.float32)
    error = (out - expected(feats, weight, pairs_of(kernel_map))).abs().max()
    on_tensor_cores = engine.properties(out).capability >= 80
    assert (error > 1e-4) == on_tensor_cores


@pytest.mark.skipif(
    not hasattr(torch.backends, "fp32_precision"), reason="needs torch 2.9 or newer"
)
def test_tf32_by_the_newer_setting() -> None:
    settings = torch.backends.cuda.matmul
    before, settings.fp32_precision = settings.fp32_precision, "tf32"
    try:
        assert on_tensor_cores(torch.float32, 80) and not on_tensor_cores(torch.float32, 75)
        settings.fp32_precision = "ieee"
        assert not on_tensor_cores(torch.float32, 80)
    finally:
        settings.fp32_precision = before


@pytest.mark.parametrize("rows", [0, 1, 63, 64, 65])
def test_any_number_of_rows(rows: int) -> None:
    kernel_map = build_kernel_map(sites(rows), ConvSpec(3)).kernel_map
    check(kernel_map, [32], 32, torch.float16, TILE)
    check(kernel_map, [4], 32, torch.float16)
    feats, weight = draw(rows, 32).half(), draw(1, 32, 32).half()
    alone = Pairs(None, None, None, rows)
    assert_close(convolve([feats], weight, alone, plan=TILE), expected([feats], weight, alone))


@pytest.mark.parametrize("kernel", [1, 2, 3, 5])
def test_any_number_of_taps(kernel: int) -> None:
    check(map_of(kernel=kernel), [32], 32, torch.float16, TILE)
    check(map_of("strided", kernel=kernel), [3], 8, torch.float16)


@pytest.mark.parametrize("c_in", [1, 3, 4, 5, 8, 16, 17, 33, 36, 64, 96])
def test_any_number_of_input_channels(c_in: int) -> None:
    check(map_of(), [c_in], 32, torch.float16, TILE if c_in % 8 == 0 else None)


@pytest.mark.parametrize("c_out", [1, 3, 8, 17, 33, 64, 96])
def test_any_number_of_output_channels(c_out: int) -> None:
    check(map_of(), [32], c_out, torch.float16, TILE)
    check(map_of(), [4], c_out, torch.float32)


def test_few_channels_to_a_row_that_ends_within_a_group() -> None:
    check(map_of(), [3], 70, torch.float64)  # 35 vectors of 16 bytes, not groups of 4


@pytest.mark.parametrize("channels", [(6,), (7,), (33,)])
def test_exact_rows_of_any_width(channels: tuple[int, ...]) -> None:
    check(map_of(), channels, 33, torch.float32)


def test_no_channels() -> None:
    feats, weight = operands(map_of(), [0], 4, torch.float16)
    out = convolve([feats[0]], weight, pairs_of(map_of()), Epilogue(shift=torch.arange(4.0)))
    assert torch.equal(out, torch.arange(4.0).half().expand(len(out), 4))
    weight = weight.new_empty(27, 0, 0)
    assert convolve([feats[0]], weight, pairs_of(map_of())).shape == (len(out), 0)


@pytest.mark.parametrize("channels", [(16, 16), (8, 64), (12, 20), (7, 33), (2, 2)])
def test_inputs_side_by_side(channels: tuple[int, int]) -> None:
    check(map_of("strided"), channels, 32, torch.float16)


def test_a_plan_for_wide_rows_serves_narrow_ones() -> None:
    check(map_of(), [12, 20], 32, torch.float16, TILE)


def test_choices_are_remembered_for_maps_of_about_one_size() -> None:
    chosen = [
        choose_plan(MapStatistics(pairs, 27, rows), torch.float16, [64], 64, False, 90, 132)
        for pairs, rows in ((286_000, 94_625), (287_000, 95_000))
    ]
    assert chosen[0] is chosen[1]


def test_inputs_that_lie_badly() -> None:
    """Transposed, and beginning at an odd place."""
    kernel_map = map_of()
    feats, weight = operands(kernel_map, [32], 32, torch.float16)
    strided = feats[0].t().contiguous().t()
    shifted = torch.cat([feats[0].new_zeros(1), feats[0].flatten()])[1:].view_as(feats[0])
    turned = weight.transpose(1, 2).contiguous().transpose(1, 2)
    scale = draw(33).float()[1:]
    pairs, epilogue = pairs_of(kernel_map), Epilogue(scale=scale, residual=shifted)
    want = expected(feats, weight, pairs, epilogue)
    for part, kernel in itertools.product((strided, shifted), (weight, turned)):
        assert_close(convolve([part], kernel, pairs, epilogue, plan=TILE), want)


# ----------------------------------------------------------------------------- plans


def test_splits_agree() -> None:
    """Each is the same run after run, which the emulator checks under two schedules of every launch."""
    kernel_map = map_of(kernel=5)
    epilogue = Epilogue(scale=draw(40), shift=draw(40), residual=draw(70, 40).half())
    feats, weight = operands(kernel_map, [16], 40, torch.float16)
    pairs, want = pairs_of(kernel_map), expected(feats, weight, pairs_of(kernel_map), epilogue)
    for splits in range(5):
        plan = Plan(TILE.tile, splits)
        out = convolve(feats, weight, pairs, epilogue, plan=plan)
        assert_close(out, want)
        assert torch.equal(out, convolve(feats, weight, pairs, epilogue, plan=plan))


def test_splits_may_leave_a_row_without_pairs() -> None:
    offsets = torch.tensor([0, 0, 0, 2])
    pairs = Pairs(torch.tensor([1, 0]).int(), torch.tensor([0, 2]).int(), offsets, 4)
    feats, weight = draw(2, 32).half(), draw(3, 32, 32).half()
    epilogue = Epilogue(shift=draw(32))
    for splits in range(4):
        plan = Plan(TILE.tile, splits)
        out = convolve([feats], weight, pairs, epilogue, plan=plan)
        assert_close(out, expected([feats], weight, pairs, epilogue))


@pytest.mark.parametrize("capability", [75, 80, 86, 90])
def test_every_tile_has_the_shared_memory_it_needs(capability: int) -> None:
    for dtype, exact in itertools.product(DTYPES, (False, True)):
        if exact == (dtype == torch.float64) or dtype == torch.float32:
            for tile in tiles(dtype, exact, 16, capability):
                assert tile.shared_bytes(dtype, capability) <= SHARED_BYTES[capability]


@pytest.mark.slow
@pytest.mark.parametrize("tf32", [False, True], ids=["ieee", "tf32"], indirect=True)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_tile(dtype: torch.dtype, tf32: bool) -> None:
    capability = engine.properties(torch.empty(0)).capability
    if dtype == torch.bfloat16 and capability < 80:
        pytest.skip("bfloat16 is multiplied as float32")
    exact = not on_tensor_cores(dtype, capability)
    precision = torch.float16 if dtype == torch.float32 and not exact else None
    for width in (16, 8, 4):
        if width >= dtype.itemsize:
            c_in = 80 + width // dtype.itemsize if width < 16 else 80
            for tile in tiles(dtype, exact, width, capability):
                check(map_of(count=150), [c_in], 136, dtype, Plan(tile), precision)


@pytest.mark.parametrize("capability", [75, 87, 90])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_candidates_are_few_and_can_be_launched(dtype: torch.dtype, capability: int) -> None:
    listed = set(variants(capability))
    exact = dtype in (torch.float32, torch.float64) or (dtype == torch.bfloat16 and capability < 80)
    dtype = torch.float32 if dtype == torch.bfloat16 and capability < 80 else dtype
    for channels, width in (([64], 16), ([16, 12 if dtype.itemsize < 8 else 3], 8)):
        for pairs, taps, rows in ((286_000, 27, 94_625), (70, 1, 70), (900, 8, 900)):
            sizes = (MapStatistics(pairs, taps, rows), dtype, channels, 96, exact)
            plans = candidate_plans(*sizes, capability, 132)
            assert 1 <= len(plans) <= 6 and len(set(plans)) == len(plans)
            for plan in plans:
                assert 0 <= plan.splits <= taps
                wide = 16 if dtype == torch.float32 else width
                name = plan.tile.kernel(dtype, capability, wide)
                assert ("implicit_gemm.cu", name) in listed


def test_the_prior_knows_what_sorting_and_small_tiles_are_for() -> None:
    def best(rows: int, c: int) -> Plan:
        scan = MapStatistics(8 * rows, 27, rows)
        return candidate_plans(scan, torch.float16, [c], c, False, 90, 132)[0]

    assert best(100_000, 32).tile.rows > best(3_000, 64).tile.rows
    assert best(100_000, 32).tile.cols == 32 and best(100_000, 96).tile.cols == 96
    assert best(40_000, 256).splits > best(3_000, 32).splits


# ----------------------------------------------------------------------------- what follows the sum

FINISHES = list(itertools.product([False, True], [False, True], [False, True], [1.0, 0.1, 0.0]))


@pytest.mark.parametrize("finish", FINISHES, ids=str)
def test_every_epilogue(finish: tuple[bool, bool, bool, float]) -> None:
    scaled, shifted, added, slope = finish
    kernel_map = map_of()
    pairs = pairs_of(kernel_map)
    for c_in, c_out, dtype in ((32, 32, torch.float16), (4, 20, torch.float16)):
        feats, weight = operands(kernel_map, [c_in], c_out, dtype)
        epilogue = Epilogue(
            draw(c_out, seed=1) if scaled else None,
            draw(c_out, seed=2) if shifted else None,
            draw(pairs.num_out, c_out, seed=3).to(dtype) if added else None,
            slope,
        )
        want = expected(feats, weight, pairs, epilogue)
        assert_close(sparse_conv.fused_sparse_conv(feats, weight, *pairs[:4], *epilogue), want)
        if epilogue.residual is not None:
            sparse_conv.fused_sparse_conv_(feats, weight, *pairs[:4], *epilogue)
            assert_close(epilogue.residual, want)


def test_the_slope_of_float64_is_a_float64() -> None:
    feats, weight = operands(None, [32], 32, torch.float64)
    epilogue = Epilogue(negative_slope=0.01)
    out = convolve(feats, weight, pairs_of(None), epilogue)
    assert_close(out, expected(feats, weight, pairs_of(None), epilogue))


def test_relu_of_infinity_and_nan() -> None:
    feats, weight = torch.ones(3, 8).half(), torch.ones(1, 8, 8).half()
    shift = torch.tensor([-torch.inf, torch.inf, torch.nan, -1, 1, 0, -9, -8])
    out = convolve([feats], weight, Pairs(None, None, None, 3), Epilogue(None, shift, None, 0.0))
    want = torch.tensor([0, torch.inf, torch.nan, 7, 9, 8, 0, 0]).half().expand(3, 8)
    assert torch.equal(out.nan_to_num(5), want.nan_to_num(5))


def test_a_residual_that_feeds_the_sum_is_not_overwritten_too_early() -> None:
    kernel_map = map_of()
    pairs = pairs_of(kernel_map)
    feats, weight = operands(kernel_map, [32], 32, torch.float16)
    epilogue = Epilogue(residual=feats[0].clone())
    want = expected(feats, weight, pairs, epilogue)
    sparse_conv.fused_sparse_conv_(feats, weight, *pairs[:4], None, None, feats[0], 1.0)
    assert_close(feats[0], want)


# ----------------------------------------------------------------------------- operators


@pytest.mark.parametrize("kind", ["submanifold", "strided", "none"])
@pytest.mark.parametrize("channels", [(32, 64), (4, 32), (32, 4)])
def test_input_gradient(kind: str, channels: tuple[int, int]) -> None:
    """As autograd asks for it: the map's ends change places, the weight is a transposed view."""
    c_in, c_out = channels
    kernel_map = map_of(kind)
    pairs = pairs_of(kernel_map)
    feats, weight = operands(kernel_map, [c_in], c_out, torch.float16)
    bias = draw(c_out).half()
    tail = (1, pairs.identity_tap)
    out = sparse_conv.sparse_conv(feats[0], weight, bias, *pairs[:4], *tail)
    assert_close(out, expected(feats, weight, pairs, Epilogue(shift=bias)))

    turned = Pairs(pairs.out_index, pairs.in_index, pairs.offset_ptr, len(feats[0]))
    grad, back = draw(*out.shape, seed=5).half(), weight.transpose(1, 2)
    got = sparse_conv.sparse_conv(grad, back, None, *turned[:4], *tail)
    assert_close(got, expected([grad], back, turned))
    if kind == "submanifold":
        ends = (pairs.in_index, pairs.out_index)
        assert row_map.is_known(*ends) and not row_map.is_known(*ends[::-1])


def test_input_gradient_without_a_forward_pass() -> None:
    kernel_map = map_of()
    pairs = pairs_of(kernel_map.transpose())
    grad, weight = operands(kernel_map, [32], 32, torch.float16)
    got = convolve(grad, weight, pairs, plan=TILE)
    assert_close(got, expected(grad, weight, pairs))


def test_weight_gradient_and_groups() -> None:
    kernel_map = map_of("strided")
    pairs = pairs_of(kernel_map)
    feats, _ = operands(kernel_map, [16], 16, torch.float32)
    grad = draw(pairs.num_out, 16, seed=2).float()
    ends = (pairs.in_index, pairs.out_index, pairs.offset_ptr)
    for groups in (1, 2):
        weight = draw(27, 16 // groups, 16).float()
        tail = (groups, pairs.identity_tap)
        doubles = (feats[0].double(), grad.double())
        got = sparse_conv.sparse_conv_grad_weight(feats[0], grad, *ends, *tail)
        assert_close(got, cpu.sparse_conv_grad_weight(*doubles, *ends, *tail))
        bias = draw(16).float()
        out = sparse_conv.sparse_conv(feats[0], weight, bias, *pairs[:4], *tail)
        want = cpu.sparse_conv(doubles[0], weight.double(), bias.double(), *pairs[:4], *tail)
        assert_close(out, want)
