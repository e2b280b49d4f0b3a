"""The engine's row operators against the composition: values, errors, and the same bits for any number of threads."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from pointlib.ops._cpu import engine
from pointlib.ops._cpu import pooling as native_pooling
from pointlib.ops._cpu import scatter as native
from pointlib.ops._cpu import voxelize as native_voxelize
from pointlib.ops._cpu.composition import pooling, scatter, voxelize
from tests.tolerances import assert_close

pytestmark = pytest.mark.skipif(engine.LIBRARY is None, reason="the CPU engine is not compiled")

DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]
Case = tuple[Callable[..., Any], Callable[..., Any], tuple[Any, ...]]


@pytest.fixture(autouse=True)
def keep_threads() -> Iterator[None]:
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def rows(count: int, channels: int, dtype: torch.dtype) -> Tensor:
    """Features on a coarse grid of values, so that maxima tie, with NaN and infinities among them."""
    feats = (torch.randn(count, channels) * 4).round() / 4
    feats[torch.rand(feats.shape) < 0.01] = float("nan")
    feats[torch.rand(feats.shape) < 0.01] = float("inf")
    return feats.to(dtype)


def exact_cases(num_in: int, num_out: int, channels: int, dtype: torch.dtype) -> dict[str, Case]:
    """Operators whose results must have the composition's bits: (engine, composition, arguments)."""
    feats, index = rows(num_in, channels, dtype), torch.randint(-1, num_out, (num_in,))
    elements = torch.randint(-1, num_out, (num_in, channels))
    taken = torch.randint(-1, num_in, (num_out, channels))
    pairs = [torch.randint(-1, size, (3 * num_in,)).int() for size in (num_in, num_out)]
    return {
        "scatter_sum": (native.scatter_sum, scatter.scatter_sum, (feats, index, num_out)),
        "scatter_max": (native.scatter_max, scatter.scatter_max, (feats, index, num_out)),
        "gather_rows": (
            native.gather_rows,
            scatter.gather_rows,
            (feats, torch.randint(-1, num_in, (50,))),
        ),
        "scatter_elements": (
            *(native.scatter_elements, scatter.scatter_elements),
            (feats, elements, num_out),
        ),
        "gather_elements": (native.gather_elements, scatter.gather_elements, (feats, taken)),
        "pool_sum": (native_pooling.pool_sum, pooling.pool_sum, (feats, *pairs, num_out)),
        "pool_max": (native_pooling.pool_max, pooling.pool_max, (feats, *pairs, num_out)),
    }


def weighted_cases(num_in: int, num_out: int, channels: int, dtype: torch.dtype) -> dict[str, Case]:
    """Operators that multiply and add, which some processors round once and others twice."""
    feats = torch.randn(num_in, channels).to(dtype)
    corners, weights = torch.randint(-1, num_in, (num_out, 8)), torch.rand(num_out, 8)
    weights[torch.rand(num_out, 8) < 0.2] = 0
    weights = weights.to(torch.promote_types(dtype, torch.float32))
    grad = torch.randn(num_out, channels).to(dtype)
    return {
        "devoxelize": (
            *(native_voxelize.devoxelize, voxelize.devoxelize),
            (feats, corners, weights),
        ),
        "devoxelize_transpose": (
            *(native_voxelize.devoxelize_transpose, voxelize.devoxelize_transpose),
            (grad, corners, weights, num_in),
        ),
    }


def results(function: Callable[..., Any], arguments: tuple[Any, ...]) -> tuple[Tensor, ...]:
    out = function(*arguments)
    return out if isinstance(out, tuple) else (out,)


def same_bits(a: Tensor, b: Tensor) -> bool:
    return (
        a.dtype == b.dtype
        and torch.equal(a.isnan(), b.isnan())
        and torch.equal(a.nan_to_num(0.5), b.nan_to_num(0.5))
    )


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("num_in", "num_out", "channels"), [(700, 90, 19), (1, 1, 1), (40, 500, 33), (9, 3, 0)]
)
def test_has_the_bits_of_the_composition(
    num_in: int, num_out: int, channels: int, dtype: torch.dtype
) -> None:
    for name, (ours, theirs, args) in exact_cases(num_in, num_out, channels, dtype).items():
        for a, b in zip(results(ours, args), results(theirs, args), strict=True):
            assert same_bits(a, b), name
    for ours, theirs, args in weighted_cases(num_in, num_out, channels, dtype).values():
        assert_close(ours(*args), theirs(*args))


@pytest.mark.parametrize("dtype", DTYPES)
def test_same_bits_for_any_number_of_threads(dtype: torch.dtype) -> None:
    cases = {
        **exact_cases(9000, 800, 33, dtype),
        **weighted_cases(800, 9000, 33, dtype),
        "few outputs": (
            *(native.scatter_sum, scatter.scatter_sum),
            (torch.randn(50_000, 7).to(dtype), torch.randint(-1, 3, (50_000,)), 3),
        ),
    }
    for name, (ours, _, args) in cases.items():
        torch.set_num_threads(1)
        once = results(ours, args)
        for threads in (2, 3, 8):
            torch.set_num_threads(threads)
            again = results(ours, args)
            assert all(same_bits(a, b) for a, b in zip(again, once, strict=True)), (name, threads)


@pytest.mark.parametrize("dtype", DTYPES)
def test_many_rows_into_few(dtype: torch.dtype) -> None:
    src, index = rows(30_000, 5, dtype), torch.randint(-1, 2, (30_000,))
    for a, b in zip(
        native.scatter_max(src, index, 2), scatter.scatter_max(src, index, 2), strict=True
    ):
        assert same_bits(a, b)
    numbers = src.nan_to_num(0.5, 0.25, 0.25)
    # Both carry float64; pieces of 4096 rows only change its last bits.
    expected = scatter.scatter_sum(numbers, index, 2)
    assert_close(native.scatter_sum(numbers, index, 2), expected)


def test_a_long_sum_does_not_drift() -> None:
    src = torch.full((200_000, 1), 0.1)
    total = native.scatter_sum(src, torch.zeros(len(src), dtype=torch.int64), 1)
    assert total.item() == (src.double().sum().float()).item()


def test_nothing_in_or_nothing_out() -> None:
    none = torch.empty(0, dtype=torch.int64)
    assert native.scatter_sum(torch.empty(0, 3), none, 2).tolist() == [[0] * 3] * 2
    assert native.scatter_sum(torch.ones(2, 3), torch.tensor([-1, -1]), 0).shape == (0, 3)
    out, argmax = native.scatter_max(torch.empty(0, 2), none, 1)
    assert (out.tolist(), argmax.tolist()) == ([[0, 0]], [[-1, -1]])
    assert native.gather_rows(torch.empty(0, 2), torch.tensor([-1])).tolist() == [[0, 0]]
    assert native.gather_elements(torch.empty(0, 1), torch.tensor([[-1]])).tolist() == [[0]]
    assert native.scatter_elements(torch.empty(0, 2), none.view(0, 2), 1).tolist() == [[0, 0]]
    empty = torch.empty(0, 8)
    assert native_voxelize.devoxelize(torch.ones(1, 2), empty.long(), empty).shape == (0, 2)


def test_a_weight_of_zero_keeps_infinity_out() -> None:
    feats, index = torch.tensor([[float("inf")], [2.0]]), torch.tensor([[0, 1]])
    weights = torch.tensor([[0.0, 0.5]])
    assert native_voxelize.devoxelize(feats, index, weights).item() == 1
    assert native_voxelize.devoxelize_transpose(feats[:1], index, weights, 2)[0].item() == 0


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_rounds_as_torch_does(dtype: torch.dtype) -> None:
    edges = torch.tensor([0.0, -0.0, 65504, 65519.996, 65520, 3.4e38, 2**-24, 2**-25, 1e-40])
    values = torch.cat([edges, torch.randn(4000) * torch.logspace(-12, 6, 4000)])
    halves = (values[:, None] * torch.tensor([1.0, -1.0])).to(dtype)
    # A sum of two halves is exact in float32 or rounds there once, as torch's does.
    pair = torch.cat([halves, halves.flip(0)])
    index = torch.arange(len(halves)).repeat(2)
    expected = (halves.float() + halves.flip(0).float()).to(dtype)
    assert same_bits(native.scatter_sum(pair, index, len(halves)), expected)


def test_takes_float64_weights_and_many_corners() -> None:
    feats, index = torch.randn(20, 3), torch.randint(-1, 20, (4, 70))
    for weights in (torch.rand(4, 70), torch.rand(4, 70, dtype=torch.float64)):
        expected = voxelize.devoxelize(feats, index, weights)
        assert torch.equal(native_voxelize.devoxelize(feats, index, weights), expected)
        back = native_voxelize.devoxelize_transpose(feats[:4], index, weights, 20)
        assert_close(back, voxelize.devoxelize_transpose(feats[:4], index, weights, 20))


@pytest.mark.parametrize("row", [5, -2])
def test_refuses_rows_that_do_not_exist(row: int) -> None:
    src, bad = torch.ones(3, 2), torch.tensor([0, row, 1])
    good, elements = torch.tensor([0, 0, 1]), bad[:, None].expand(3, 2)
    words = rf"index must be in \[0, \d\), or -1 for none, got {row}"
    calls: list[tuple[Callable[..., Any], tuple[Any, ...]]] = [
        (native.scatter_sum, (src, bad, 3)),
        (native.scatter_max, (src, bad, 3)),
        (native.gather_rows, (src, bad)),
        (native.scatter_elements, (src, elements, 3)),
        (native.gather_elements, (src, elements)),
        (native_pooling.pool_sum, (src, bad, good, 3)),
        (native_pooling.pool_sum, (src, good, bad, 3)),
        (native_pooling.pool_max, (src, bad, good, 3)),
        (native_voxelize.devoxelize, (src, bad[:, None], torch.ones(3, 1))),
        (native_voxelize.devoxelize_transpose, (src, bad[:, None], torch.ones(3, 1), 3)),
    ]
    for function, arguments in calls:
        with pytest.raises(ValueError, match=rf"{function.__name__}: {words}"):
            function(*arguments)


def test_refuses_a_dtype_without_sums() -> None:
    with pytest.raises(TypeError, match=r"scatter_sum: features must be float32.*got .*float8"):
        native.scatter_sum(torch.ones(1, 1).to(torch.float8_e5m2), torch.tensor([0]), 1)
