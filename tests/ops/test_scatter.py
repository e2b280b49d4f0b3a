"""Scatter reductions and gathers against loops over rows."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck
from torch.library import opcheck

from pointlib.ops.scatter import gather_rows, scatter_max, scatter_mean, scatter_sum
from tests.tolerances import assert_close

OPS = torch.ops.pointlib
DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]
INDEX = torch.tensor([0, 2, 2, 4, -1, 0, 2])
REDUCTIONS = {
    "sum": scatter_sum,
    "mean": scatter_mean,
    "max": lambda *args: scatter_max(*args).feats,
}


def reduce_by_loop(src: Tensor, index: Tensor, num_rows: int, how: str) -> Tensor:
    """Float64 reduction, one output row at a time."""
    out = torch.zeros(num_rows, src.shape[1], dtype=torch.float64)
    for row in range(num_rows):
        members = src.detach().double()[index == row]
        if len(members):
            out[row] = members.amax(0) if how == "max" else getattr(members, how)(0)
    return out


def features(rows: int, channels: int = 3, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(rows, channels, dtype=torch.float64).to(dtype).requires_grad_()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("how", REDUCTIONS)
def test_reduces_as_a_loop_does(how: str, dtype: torch.dtype) -> None:
    src, index = features(500, 5, dtype), torch.randint(-1, 40, (500,))
    actual = REDUCTIONS[how](src, index, 45)
    assert actual.dtype == dtype
    assert_close(actual, reduce_by_loop(src, index, 45, how))


@pytest.mark.parametrize("how", REDUCTIONS)
def test_gradients(how: str) -> None:
    src = features(7)
    assert gradcheck(lambda s: REDUCTIONS[how](s, INDEX, 6), src)
    assert gradgradcheck(lambda s: REDUCTIONS[how](s, INDEX, 6), src)


def test_gather_is_the_transpose_of_scatter_sum() -> None:
    src, rows = features(6), features(7)
    gathered = gather_rows(src, INDEX)
    assert torch.equal(gathered[4], torch.zeros(3, dtype=torch.float64))
    assert torch.equal(gathered[INDEX >= 0], src[INDEX[INDEX >= 0]])
    assert_close((gathered * rows).sum(), (src * scatter_sum(rows, INDEX, 6)).sum())
    assert gradcheck(lambda s: gather_rows(s, INDEX), src)
    assert gradgradcheck(lambda s: gather_rows(s, INDEX), src)


def test_opcheck() -> None:
    src, elements = features(7), torch.randint(-1, 7, (5, 3))
    opcheck(OPS.scatter_sum, (src, INDEX, 6))
    opcheck(OPS.scatter_mean, (src, INDEX, 6))
    opcheck(OPS.scatter_max, (src, INDEX, 6))
    opcheck(OPS.gather_rows, (src, INDEX))
    opcheck(OPS.gather_elements, (src, elements))
    opcheck(OPS.scatter_elements, (features(5), elements, 7))


def test_max_names_the_lowest_row_at_a_tie() -> None:
    src = torch.tensor([[1.0, -2.0], [3.0, -1.0], [3.0, -1.0], [9.0, 9.0]])
    out, argmax = scatter_max(src, torch.tensor([1, 1, 1, -1]), 3)
    assert out.tolist() == [[0, 0], [3, -1], [0, 0]]
    assert argmax.tolist() == [[-1, -1], [1, 1], [-1, -1]]


def test_max_keeps_nan_and_infinity() -> None:
    src = torch.tensor([[1.0], [float("nan")], [5.0], [float("nan")], [float("-inf")]])
    out, argmax = scatter_max(src, torch.tensor([0, 0, 0, 0, 1]), 2)
    assert out[0].isnan()
    assert out[1] == float("-inf")
    assert argmax.flatten().tolist() == [1, 4]


def test_half_precision_sums_round_once() -> None:
    ones = torch.ones(4097, 1, dtype=torch.bfloat16)
    assert scatter_sum(ones, torch.zeros(4097, dtype=torch.int64), 1).item() == 4096
    scattered = torch.zeros(4097, dtype=torch.int64).index_fill_(0, torch.arange(0, 4097, 2), 1)
    assert scatter_mean(ones, scattered, 2).tolist() == [[1], [1]]


def test_long_float32_sums_do_not_drift() -> None:
    src = torch.full((200_000, 1), 0.1)
    mean = scatter_mean(src, torch.zeros(len(src), dtype=torch.int64), 1)
    torch.testing.assert_close(mean, src[:1], rtol=1e-7, atol=0)


@pytest.mark.parametrize("how", REDUCTIONS)
def test_empty_and_single(how: str) -> None:
    none = torch.empty(0, dtype=torch.int64)
    assert REDUCTIONS[how](torch.empty(0, 3), none, 2).tolist() == [[0] * 3] * 2
    assert REDUCTIONS[how](torch.empty(0, 3), none, 0).shape == (0, 3)
    assert REDUCTIONS[how](torch.empty(4, 0), torch.zeros(4, dtype=torch.int64), 2).shape == (2, 0)
    row = torch.tensor([[1.0, -2.0]])
    assert REDUCTIONS[how](row, torch.tensor([1]), 2).tolist() == [[0, 0], [1, -2]]
    assert REDUCTIONS[how](row, torch.tensor([-1]), 0).shape == (0, 2)
    assert gather_rows(torch.empty(0, 2), torch.tensor([-1])).tolist() == [[0, 0]]
    empty = torch.empty(0, 3, requires_grad=True)
    REDUCTIONS[how](empty, none, 2).sum().backward()
    assert empty.grad is not None and empty.grad.shape == (0, 3)


@pytest.mark.parametrize("how", REDUCTIONS)
def test_non_contiguous_input(how: str) -> None:
    src, index = torch.randn(3, 14).t()[::2], INDEX.repeat_interleave(2)[::2]
    assert not src.is_contiguous() and not index.is_contiguous()
    assert torch.equal(
        REDUCTIONS[how](src, index, 6), REDUCTIONS[how](src.contiguous(), INDEX.clone(), 6)
    )


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"src": torch.ones(7)}, ValueError, r"src must be of shape \(N, C\), got \(7,\)"),
        ({"src": torch.ones(7, 1).long()}, TypeError, "src must be .* floating .* got torch.int64"),
        ({"index": INDEX.int()}, TypeError, "index must be an int64 tensor, got torch.int32"),
        ({"index": INDEX[:, None]}, ValueError, r"index must have 1 dimension.*got shape \(7, 1\)"),
        ({"index": INDEX[:3]}, ValueError, "index must have one entry per row of src, got 3 for 7"),
        ({"index": INDEX.to("meta")}, ValueError, "index must be on cpu .* got meta"),
        ({"num_rows": 4}, ValueError, r"index must be in \[0, 4\).*got 4"),
        ({"index": INDEX - 1}, ValueError, r"index must be in \[0, 6\).*got -2"),
        ({"num_rows": -1}, ValueError, "num_rows must be >= 0, got -1"),
    ],
)
@pytest.mark.parametrize("how", REDUCTIONS)
def test_refuses(how: str, change: dict, error: type[Exception], words: str) -> None:
    arguments = {"src": torch.ones(7, 1), "index": INDEX, "num_rows": 6, **change}
    with pytest.raises(error, match=words):
        REDUCTIONS[how](*arguments.values())


def test_gather_refuses_rows_that_do_not_exist() -> None:
    with pytest.raises(ValueError, match=r"gather_rows: index must be in \[0, 2\).*got 4"):
        gather_rows(torch.ones(2, 1), INDEX)


def test_same_bits_whatever_the_thread_count() -> None:
    src, index = torch.randn(20_000, 8, requires_grad=True), torch.randint(0, 300, (20_000,))
    threads, results = torch.get_num_threads(), []
    for count in (1, 2, 2):
        torch.set_num_threads(count)
        mean, largest = scatter_mean(src, index, 300), scatter_max(src, index, 300).feats
        (grad,) = torch.autograd.grad(gather_rows(mean * largest, index), src, src.detach())
        results.append((mean, largest, grad))
    torch.set_num_threads(threads)
    for again in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(again, results[0], strict=True))


def test_compiles_without_a_break() -> None:
    torch._dynamo.reset()

    def network(src: Tensor, index: Tensor) -> Tensor:
        return gather_rows(scatter_mean(src, index, 6) + scatter_max(src, index, 6).feats, index)

    compiled = torch.compile(network, fullgraph=True, dynamic=True, backend="aot_eager")
    for rows in (7, 11):
        src, index = features(rows), torch.randint(-1, 6, (rows,))
        assert torch.equal(compiled(src, index), network(src, index))
        (grad,) = torch.autograd.grad(compiled(src, index).square().sum(), src)
        (expected,) = torch.autograd.grad(network(src, index).square().sum(), src)
        assert torch.equal(grad, expected)
