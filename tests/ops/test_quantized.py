"""int8 convolution, bit by bit, against int64 and float32 arithmetic of numpy, on every instruction set."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from pointlib.ops._cpu import engine
from pointlib.ops._cpu.composition import quantized as composition
from pointlib.ops.kernel_map import ConvSpec, KernelMap, build_kernel_map
from pointlib.ops.quantized import (
    MAX_PRODUCTS,
    OUT_DTYPES,
    pack_int8_weight,
    quantize,
    quantize_weight,
    sparse_conv_int8,
)
from tests import oracles

SETS = ["composition"]
if engine.LIBRARY is not None:
    SETS += engine.LIBRARY.pl_instruction_sets().decode().split()


@pytest.fixture(params=SETS)
def path(request: pytest.FixtureRequest) -> Iterator[str]:
    """Every instruction set of this processor, and the composition in place of the engine."""
    if request.param == "composition":
        yield request.param
        return
    assert engine.LIBRARY is not None
    engine.LIBRARY.pl_use(request.param.encode())
    yield request.param
    engine.LIBRARY.pl_use(engine.INSTRUCTION_SET.encode())


def draw(*shape: int, seed: int = 0, low: int = -127, high: int = 127) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(low, high + 1, shape, generator=generator).to(torch.int8)


def scales(c_out: int, size: float) -> tuple[Tensor, Tensor]:
    """Of both signs, so that outputs lie between and beyond the limits."""
    generator = torch.Generator().manual_seed(c_out)
    scale = torch.randn(c_out, generator=generator) * size
    return scale, torch.randn(c_out, generator=generator) * 20


def cloud(spec: ConvSpec, count: int = 90, shuffled: bool = False) -> KernelMap:
    coords = oracles.random_coords(np.random.default_rng(count), count, 6, 2)
    if shuffled:
        coords = coords[torch.randperm(len(coords), generator=torch.Generator().manual_seed(0))]
    return build_kernel_map(coords.contiguous(), spec).kernel_map


def run(path: str, feats: Sequence[Tensor], weight: Tensor, pairs: KernelMap, *rest: Any) -> Tensor:
    """sparse_conv_int8 on the instruction set, or the composition with the same arguments."""
    if path != "composition":
        return sparse_conv_int8(feats, weight, pairs, *rest)
    scale, shift, residual, residual_scale, activation, dtype = rest
    return composition.sparse_conv_int8(
        *(feats, weight, pairs.in_index, pairs.out_index, pairs.offset_ptr, pairs.num_out),
        *(scale, shift, residual, residual_scale or 0.0, activation == "relu", dtype),
    )


def round_to(y: np.ndarray, dtype: torch.dtype) -> Tensor:
    if dtype != torch.int8:
        return torch.from_numpy(y).to(dtype)
    return torch.from_numpy(np.clip(np.rint(np.where(np.isnan(y), 0, y)), -127, 127).astype("int8"))


def oracle(
    feats: Sequence[Tensor],
    weight: Tensor,
    pairs: KernelMap,
    scale: Tensor,
    shift: Tensor,
    residual: Tensor | None,
    residual_scale: float | None,
    activation: str,
    dtype: torch.dtype,
) -> Tensor:
    """The specification in pointlib/ops/quantized.py, line by line."""
    rows, taps = torch.cat(list(feats), 1).numpy().astype("int64"), weight.numpy().astype("int64")
    sums = np.zeros((pairs.num_out, weight.shape[2]), "int64")
    for tap in range(len(taps)):
        some = slice(int(pairs.offset_ptr[tap]), int(pairs.offset_ptr[tap + 1]))
        np.add.at(
            sums, pairs.out_index[some].numpy(), rows[pairs.in_index[some].numpy()] @ taps[tap]
        )
    assert np.abs(sums).max(initial=0) < 2**31
    y = sums.astype("float32") * scale.numpy()
    y = y + shift.numpy()
    if residual is not None:
        y = y + residual.numpy().astype("float32") * np.float32(residual_scale)
    if activation == "relu":
        y = np.where(y > 0, y, np.float32(0))
    assert y.dtype == np.float32
    return round_to(y, dtype)


def assert_equal_bits(actual: Tensor, expected: Tensor) -> None:
    assert actual.dtype == expected.dtype and actual.shape == expected.shape
    torch.testing.assert_close(actual, expected, rtol=0, atol=0, equal_nan=True)


# ----------------------------------------------------------------------------------- the specification

CHANNELS = [
    *((1, 1), (3, 17), (4, 16), (16, 33), (17, 3), (33, 64), (64, 96), (96, 128), (130, 48)),
    *((128, 256), (256, 17), (0, 5), (5, 0)),
]
ENDINGS = [
    *((torch.int8, False, "none"), (torch.int8, True, "relu"), (torch.float32, True, "none")),
    (torch.bfloat16, False, "relu"),
]


@pytest.mark.parametrize(("c_in", "c_out"), CHANNELS)
@pytest.mark.parametrize("spec", [ConvSpec(3), ConvSpec(2, 2)], ids=["submanifold", "strided"])
def test_bits_are_those_of_the_specification(
    path: str, c_in: int, c_out: int, spec: ConvSpec
) -> None:
    pairs = cloud(spec)
    feats, weight = draw(pairs.num_in, c_in), draw(pairs.kernel_volume, c_in, c_out, seed=1)
    scale, shift = scales(c_out, 0.02 / (c_in + 1) ** 0.5)
    residual = draw(pairs.num_out, c_out, seed=2)
    for dtype, with_residual, activation in ENDINGS:
        extra = (residual, 0.37) if with_residual else (None, None)
        rest = (scale, shift, *extra, activation, dtype)
        expected = oracle([feats], weight, pairs, *rest)
        assert_equal_bits(run(path, [feats], weight, pairs, *rest), expected)
        for split in (c_in // 3, c_in):
            parts = [feats[:, :split], feats[:, split:]]
            assert_equal_bits(run(path, parts, weight, pairs, *rest), expected)


@pytest.mark.parametrize("spec", [ConvSpec(3), ConvSpec(3, 2)], ids=["submanifold", "strided"])
def test_voxels_in_any_order(path: str, spec: ConvSpec) -> None:
    pairs = cloud(spec, 700, shuffled=True)
    feats, weight = draw(pairs.num_in, 20), draw(pairs.kernel_volume, 20, 24, seed=1)
    rest = (*scales(24, 0.003), None, None, "none", torch.int8)
    assert_equal_bits(
        run(path, [feats], weight, pairs, *rest), oracle([feats], weight, pairs, *rest)
    )


@pytest.mark.parametrize(
    ("value", "weight_value"), [(127, 127), (127, -127), (-128, 127), (-128, -128)]
)
def test_largest_sums(path: str, value: int, weight_value: int) -> None:
    c_in = MAX_PRODUCTS // 343
    grid = torch.cartesian_prod(torch.arange(1), *[torch.arange(7)] * 3).int()
    pairs = build_kernel_map(grid, ConvSpec(7)).kernel_map
    feats = torch.full((343, c_in), value, dtype=torch.int8)
    weight = torch.full((343, c_in, 2), weight_value, dtype=torch.int8)
    rest = (torch.ones(2), torch.zeros(2), None, None, "none", torch.float32)
    out = run(path, [feats], weight, pairs, *rest)
    assert float(out[171, 0]) == np.float32(343 * c_in * value * weight_value)
    assert_equal_bits(out, oracle([feats], weight, pairs, *rest))


def test_halves_go_to_even_and_what_is_not_finite_is_limited(path: str) -> None:
    feats = torch.arange(-127, 128).to(torch.int8)[:, None]
    pairs = KernelMap(*(torch.arange(255).int(),) * 2, torch.tensor([0, 255]), 255, 255)
    scale = torch.tensor([0.5, 1.0, 1.5, -0.5, np.inf, np.nan, 3e38, 0.0, 1e-38, -0.0])
    shift = torch.tensor([0.0, 0.5, 0.0, 0.5, 0.0, 0.0, -np.inf, -0.0, 2.5, np.nan])
    weight = torch.ones(1, 1, len(scale), dtype=torch.int8)
    residual = draw(255, len(scale))
    for dtype in OUT_DTYPES:
        for activation in ("none", "relu"):
            for extra in ((None, None), (residual, 0.5), (residual, 3e38)):
                rest = (scale, shift, *extra, activation, dtype)
                with np.errstate(all="ignore"):
                    expected = oracle([feats], weight, pairs, *rest)
                assert_equal_bits(run(path, [feats], weight, pairs, *rest), expected)


def test_few_rows_and_pairs(path: str) -> None:
    weight = draw(27, 9, 10)
    for count in (0, 1):
        coords = torch.zeros(count, 4, dtype=torch.int32)
        pairs = build_kernel_map(coords, ConvSpec(3)).kernel_map
        rest = (*scales(10, 0.01), None, None, "none", torch.int8)
        out = run(path, [draw(count, 9)], weight, pairs, *rest)
        assert_equal_bits(out, oracle([draw(count, 9)], weight, pairs, *rest))
    nothing = KernelMap(*(torch.empty(0).int(),) * 2, torch.zeros(28, dtype=torch.int64), 3, 4)
    out = run(path, [draw(3, 9)], weight, nothing, *rest)
    assert_equal_bits(out, round_to(rest[1].expand(4, 10).numpy(), torch.int8))


def test_no_map_is_one_tap_that_keeps_every_row() -> None:
    feats, weight = draw(50, 12), draw(1, 12, 7, seed=1)
    scale, shift = scales(7, 0.01)
    index = torch.arange(50).int()
    pairs = KernelMap(index, index, torch.tensor([0, 50]), 50, 50)
    assert_equal_bits(
        sparse_conv_int8(feats, weight, None, scale, shift),
        sparse_conv_int8(feats, weight, pairs, scale, shift),
    )


def test_threads_and_layout_of_arguments_change_nothing() -> None:
    pairs = cloud(ConvSpec(3), 3000)
    feats, weight = draw(pairs.num_in, 36), draw(27, 36, 40, seed=1)
    arguments = (*scales(40, 0.003), draw(pairs.num_out, 40, seed=2), 0.5, "relu")
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        expected = sparse_conv_int8(feats, weight, pairs, *arguments)
        for threads in (2, 7):
            torch.set_num_threads(threads)
            assert torch.equal(sparse_conv_int8(feats, weight, pairs, *arguments), expected)
    finally:
        torch.set_num_threads(before)
    strided = torch.stack([feats, feats], 2)[:, :, 0]
    turned = weight.permute(2, 0, 1).contiguous().permute(1, 2, 0)
    assert not strided.is_contiguous() and not turned.is_contiguous()
    assert torch.equal(sparse_conv_int8(strided, turned, pairs, *arguments), expected)
    assert torch.equal(
        sparse_conv_int8(strided, pack_int8_weight(turned), pairs, *arguments), expected
    )


# --------------------------------------------------------------------------------------- quantization


@pytest.mark.parametrize(
    "dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64], ids=str
)
def test_quantize_rounds_as_specified(path: str, dtype: torch.dtype) -> None:
    values = torch.cat([torch.randn(1003) * 40, torch.arange(-300, 300) / 4])
    feats = torch.cat([values, torch.tensor([np.nan, np.inf, -np.inf, 1e38, -0.0])]).to(dtype)
    for step in (0.5, 0.37, 2.0**-126, 1e30):
        with np.errstate(all="ignore"):
            expected = round_to(feats.float().numpy() / np.float32(step), torch.int8)
        got = composition.quantize_int8 if path == "composition" else quantize
        assert_equal_bits(got(feats, step), expected)
        assert_equal_bits(
            got(feats[:1600].view(40, 40).t(), step), expected[:1600].view(40, 40).t()
        )


def test_quantize_weight_loses_half_a_step_at_most() -> None:
    weight = torch.randn(27, 5, 6) * torch.tensor([1e-3, 1.0, 50.0, 0.0, 1e-44, 1e30])
    values, step = quantize_weight(weight)
    assert values.dtype == torch.int8 and values.shape == weight.shape and step.shape == (6,)
    assert ((values * step - weight).abs() <= step * 0.5001).all()
    assert values.abs().amax((0, 1)).tolist() == [127, 127, 127, 0, 0, 127]
    assert step[3:5].tolist() == [1.0, 1.0]
    assert quantize_weight(torch.empty(27, 0, 4)).step.tolist() == [1.0] * 4
    with pytest.raises(ValueError, match="quantize_weight: weight must be finite"):
        quantize_weight(torch.tensor([[1.0, float("nan")]]))
    with pytest.raises(TypeError, match="quantize_weight: weight must be floating"):
        quantize_weight(values)


def test_quantized_convolution_is_close_to_the_float_one() -> None:
    pairs = cloud(ConvSpec(3), 400)
    feats, weight = torch.randn(pairs.num_in, 32), torch.randn(27, 32, 24) / 10
    rows = [(*map(int, o),) for o in zip(pairs.in_index, pairs.out_index, strict=True)]
    expected = torch.zeros(pairs.num_out, 24)
    for tap in range(27):
        for i, o in rows[int(pairs.offset_ptr[tap]) : int(pairs.offset_ptr[tap + 1])]:
            expected[o] += feats[i] @ weight[tap]
    step = float(feats.abs().max()) / 127
    values, weight_step = quantize_weight(weight)
    out = sparse_conv_int8(
        *(quantize(feats, step), values, pairs, weight_step * step, torch.zeros(24)),
        out_dtype=torch.float32,
    )
    assert (out - expected).abs().max() < 0.02 * expected.abs().max()


# --------------------------------------------------------------------------------- registration, refusals


def operands(**changes: Any) -> dict[str, Any]:
    pairs = cloud(ConvSpec(3))
    named = {
        "feats": draw(pairs.num_in, 4),
        "weight": draw(27, 4, 8, seed=1),
        "kernel_map": pairs,
        "scale": torch.ones(8),
        "shift": torch.zeros(8),
    }
    return {**named, **changes}


REFUSED = [
    (TypeError, "feats must be torch.int8, got torch.float32", {"feats": torch.zeros(3, 4)}),
    (TypeError, "scale must be torch.float32", {"scale": torch.ones(8).double()}),
    (TypeError, "shift must be torch.float32", {"shift": torch.ones(8).int()}),
    (TypeError, r"weight must be \(K, C_in, C_out\) int8", {"weight": torch.zeros(27, 4, 8)}),
    (TypeError, "out_dtype must be one of", {"out_dtype": torch.float16}),
    (TypeError, "residual must be torch.int8", {"residual": torch.zeros(90, 8)}),
    (ValueError, "feats must be one tensor or two, got 3", {"feats": [draw(1, 1)] * 3}),
    (ValueError, r"feats must be \(\d+, C_in\)", {"feats": draw(3, 4)}),
    (ValueError, r"weight must be \(27, 4, 8\)", {"weight": draw(27, 5, 8)}),
    (ValueError, r"scale and shift must be \(C_out,\)", {"shift": torch.zeros(9)}),
    (ValueError, "residual and residual_scale must be given together", {"residual_scale": 1.0}),
    (ValueError, "activation must be 'none' or 'relu'", {"activation": "gelu"}),
    (RuntimeError, "scale must not require a gradient", {"scale": torch.ones(8).requires_grad_()}),
    (RuntimeError, "weight must be int8 or come from", {"weight": torch.zeros(90).byte()}),
    (RuntimeError, "weight must be int8 or come from", {"weight": torch.zeros(9).byte()}),
    (RuntimeError, "packed weight must be of", {"weight": pack_int8_weight(draw(27, 4, 9))}),
    (RuntimeError, "packed weight must be of", {"weight": pack_int8_weight(draw(27, 4, 8))[:-1]}),
]


@pytest.mark.parametrize(("error", "message", "changes"), REFUSED)
def test_wrong_arguments_are_refused(
    error: type[Exception], message: str, changes: dict[str, Any]
) -> None:
    with pytest.raises(error, match=message):
        sparse_conv_int8(**operands(**changes))


def test_more_products_than_int32_holds_are_refused() -> None:
    wide = MAX_PRODUCTS // 27 + 1
    num_in = operands()["kernel_map"].num_in
    with pytest.raises(ValueError, match=r"K \* C_in must be at most 131071"):
        sparse_conv_int8(**operands(feats=draw(num_in, wide), weight=draw(27, wide, 8)))
    with pytest.raises(ValueError, match=r"quantize: step must be in"):
        quantize(torch.ones(3), 0.0)
    with pytest.raises(TypeError, match="quantize: feats must be floating"):
        quantize(draw(3), 1.0)
    with pytest.raises(RuntimeError, match="quantize: feats must not require a gradient"):
        quantize(torch.ones(3).requires_grad_(), 1.0)
    with pytest.raises(TypeError, match="pack_int8_weight: weight must be int8"):
        pack_int8_weight(torch.ones(27, 4, 8))
    with pytest.raises(ValueError, match=r"pack_int8_weight: weight must be \(K, C_in, C_out\)"):
        pack_int8_weight(draw(4, 8))


@pytest.mark.skipif(engine.LIBRARY is None, reason="the CPU engine is not compiled")
def test_the_engine_refuses_rows_outside_and_weights_of_another_set() -> None:
    good = operands()
    pairs = good["kernel_map"]
    for index in ("in_index", "out_index"):
        for row in (-1, 1000):
            wrong = getattr(pairs, index).clone()
            wrong[40] = row
            bad = replace(pairs, **{index: wrong})
            with pytest.raises(RuntimeError, match="rows must lie in"):
                sparse_conv_int8(**{**good, "kernel_map": bad})
    packed = pack_int8_weight(good["weight"])
    packed[8] += 1  # the layout
    with pytest.raises(RuntimeError, match="packed for the instruction set in use"):
        sparse_conv_int8(**{**good, "weight": packed})


def test_operators_are_registered() -> None:
    good = operands()
    pairs = good["kernel_map"]
    index = (pairs.in_index, pairs.out_index, pairs.offset_ptr, pairs.num_out)
    ops = torch.ops.pointlib
    for weight in (good["weight"], pack_int8_weight(good["weight"])):
        rest = (good["scale"], good["shift"], None, 0.0, True, torch.bfloat16)
        torch.library.opcheck(
            ops.sparse_conv_int8.default, ([good["feats"]], weight, *index, *rest)
        )
    torch.library.opcheck(ops.pack_int8_weight.default, (good["weight"],))
    torch.library.opcheck(ops.quantize_int8.default, (torch.randn(5, 3).t(), 0.5))
