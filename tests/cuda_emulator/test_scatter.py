"""Scatter reductions and gathers as on a GPU, against the CPU operators and float64 sums."""

from __future__ import annotations

import gc

import pytest
import torch
from torch import Tensor

from pointlib.ops import scatter as public
from pointlib.ops._cpu import scatter as cpu
from pointlib.ops._cuda import engine, segments
from pointlib.ops._cuda import scatter as cuda
from tests.cuda_emulator.emulator import Emulator
from tests.cuda_emulator.operators import ANY_ARCHITECTURE, OnDevice, same_bits
from tests.tolerances import assert_close

pytestmark = ANY_ARCHITECTURE
BLOCK = segments.BLOCK
OPERATORS = {
    name: getattr(cuda, name)
    for name in (
        *("scatter_sum", "scatter_mean", "scatter_max"),
        *("gather_rows", "scatter_elements", "gather_elements"),
    )
}


def features(rows: int, channels: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """On a coarse grid of values, so that maxima tie, with NaN and infinities among them."""
    feats = (torch.randn(rows, channels) * 4).round() / 4
    feats[torch.rand(feats.shape) < 0.01] = float("nan")
    feats[torch.rand(feats.shape) < 0.01] = float("-inf")
    return feats.to(dtype)


def summed(src: Tensor, index: Tensor, num_rows: int) -> Tensor:
    out = torch.zeros(num_rows + 1, src.shape[1], dtype=torch.float64)
    return out.index_add_(0, index % (num_rows + 1), src.double())[:num_rows]


def indices(rows: int, num_rows: int) -> dict[str, Tensor]:
    ordered = torch.arange(rows) % max(num_rows, 1)
    return {
        "random": torch.randint(-1, num_rows, (rows,)),
        "one segment": torch.full((rows,), num_rows - 1),
        "sorted": ordered.sort().values,
        "nowhere": torch.full((rows,), -1),
    }


@pytest.mark.parametrize("channels", [1, 3, 4, 17, 64, 257])
@pytest.mark.parametrize("rows", [0, 1, BLOCK - 1, BLOCK, BLOCK + 1])
def test_sizes(rows: int, channels: int) -> None:
    for index in indices(rows, 40).values():
        src = torch.randn(rows, channels)
        assert_close(cuda.scatter_sum(src, index, 40), summed(src, index, 40))
        src = features(rows, 1)
        for ours, theirs in zip(
            cuda.scatter_max(src, index, 40), cpu.scatter_max(src, index, 40), strict=True
        ):
            assert same_bits(ours, theirs)


@pytest.mark.parametrize(
    ("dtype", "channels"),
    [(torch.float64, 6), (torch.float16, 24), (torch.bfloat16, 24), (torch.float32, 8)],
)
def test_dtypes(dtype: torch.dtype, channels: int) -> None:
    src, index = features(700, channels, dtype), torch.randint(-1, 90, (700,))
    ours = cuda.scatter_sum(src, index, 95)
    assert same_bits(ours, cpu.scatter_sum(src, index, 95))
    if dtype == torch.bfloat16:
        for best, theirs in zip(
            cuda.scatter_max(src, index, 95), cpu.scatter_max(src, index, 95), strict=True
        ):
            assert same_bits(best, theirs)


@pytest.mark.parametrize("length", [256, 257, 512, 2000])
def test_rows_of_very_many_pairs(length: int) -> None:
    """Before, between and behind short rows; the first of two long ones ends in the tile where the second starts."""
    parts = [(0, 3), (1, length), (2, 5), (3, length + 1), (4, 1), (6, 300), (-1, 9)]
    index = torch.cat([torch.full((count,), row) for row, count in parts])
    index = index[torch.randperm(len(index))]
    for channels in (4, 17):
        src = torch.randn(len(index), channels)
        assert_close(cuda.scatter_sum(src, index, 7), summed(src, index, 7))
    for src in (features(len(index), 1), features(len(index), 2, torch.float64)):
        for ours, theirs in zip(
            cuda.scatter_max(src, index, 7), cpu.scatter_max(src, index, 7), strict=True
        ):
            assert same_bits(ours, theirs)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("longest", [1, 200, 256, 257, 700])
def test_means_and_their_counts(longest: int, dtype: torch.dtype) -> None:
    index = torch.cat([torch.randint(-1, 30, (300,)), torch.full((longest,), 33)])
    src = torch.randn(len(index), 8).to(dtype)
    mean, count = cuda.scatter_mean(src, index, 35)
    expected = torch.bincount(index[index >= 0], minlength=35).clamp(min=1)[:, None]
    assert (mean.dtype, count.dtype) == (dtype, torch.float32)
    assert torch.equal(count, expected.float())
    assert_close(mean, summed(src, index, 35) / expected)
    assert torch.equal(cuda.scatter_mean(src[:, :0], index, 35)[1], count)


def test_long_float32_sums_do_not_drift() -> None:
    src = torch.full((20_000, 4), 0.1)
    total = cuda.scatter_sum(src, torch.zeros(len(src), dtype=torch.int64), 1)
    torch.testing.assert_close(total, src.double().sum(0)[None].float(), rtol=1e-7, atol=0)


def test_long_half_precision_sums_round_once() -> None:
    src = torch.ones(2 * BLOCK + 1, 8, dtype=torch.float16)
    total = cuda.scatter_sum(src * 16, torch.zeros(len(src), dtype=torch.int64), 1)
    assert total.unique().tolist() == [8208]  # (2 * 256 + 1) * 16; steps of one would stop at 2048


@pytest.mark.parametrize("channels", [1, 3, 4, 17, 64, 257])
def test_gathers(channels: int) -> None:
    for count in (0, 1, BLOCK + 1):
        for dtype in (torch.float32, torch.float16):
            src = features(50, channels, dtype)
            index = torch.randint(-1, 50, (count,))
            assert same_bits(cuda.gather_rows(src, index), cpu.gather_rows(src, index))
            index = torch.randint(-1, 50, (count, channels))
            assert same_bits(cuda.gather_elements(src, index), cpu.gather_elements(src, index))


def test_gathers_from_nothing() -> None:
    none, index = torch.empty(0, 3), torch.tensor([-1, -1])
    assert torch.equal(cuda.gather_rows(none, index), torch.zeros(2, 3))
    elements = index[:, None].expand(2, 3)
    assert torch.equal(cuda.gather_elements(none, elements), torch.zeros(2, 3))


@pytest.mark.parametrize("num_rows", [1, 300])
def test_scatters_elements(num_rows: int) -> None:
    for channels in (1, 3):
        src, index = torch.randn(500, channels), torch.randint(-1, num_rows, (500, channels))
        oracle = cpu.scatter_elements(src.double(), index, num_rows)
        assert_close(cuda.scatter_elements(src, index, num_rows), oracle)


def test_empty_results() -> None:
    none = torch.empty(0, dtype=torch.int64)
    assert cuda.scatter_sum(torch.empty(0, 3), none, 0).shape == (0, 3)
    assert cuda.scatter_sum(torch.empty(4, 0), torch.zeros(4).long(), 2).shape == (2, 0)
    assert cuda.scatter_elements(torch.empty(4, 0), torch.zeros(4, 0).long(), 2).shape == (2, 0)
    assert cuda.scatter_max(torch.empty(0, 2), none, 2)[1].tolist() == [[-1, -1], [-1, -1]]


def test_takes_what_is_not_contiguous_or_not_aligned() -> None:
    src, index = torch.randn(8, 60).t(), torch.randint(-1, 9, (120,))[::2]
    assert torch.equal(cuda.scatter_sum(src, index, 9), cpu.scatter_sum(src, index, 9))
    assert torch.equal(cuda.gather_rows(src, index), src[index].masked_fill(index[:, None] < 0, 0))
    shifted = torch.randn(60 * 8 + 1)[1:].view(60, 8)
    assert shifted.data_ptr() % 16
    assert torch.equal(cuda.scatter_sum(shifted, index, 9), cpu.scatter_sum(shifted, index, 9))
    assert torch.equal(cuda.gather_rows(shifted, index), cpu.gather_rows(shifted, index))


def test_refuses_rows_that_do_not_exist() -> None:
    src = torch.randn(5, 4)
    for bad in (-2, 7, 2**32):
        index = torch.tensor([0, 1, bad, 3, -1])
        with pytest.raises(RuntimeError, match=r"scatter_sum: index must be in \[0, 7\), or -1"):
            cuda.scatter_sum(src, index, 7)
        with pytest.raises(RuntimeError, match=r"gather_rows: index must be in \[0, 5\), or -1"):
            cuda.gather_rows(src, index)
        elements = index[:, None].expand(5, 4).contiguous()
        with pytest.raises(RuntimeError, match="gather_elements: index must be in"):
            cuda.gather_elements(src, elements)
        with pytest.raises(RuntimeError, match="scatter_elements: index must be in"):
            cuda.scatter_elements(src, elements, 7)
    with pytest.raises(
        ValueError, match="scatter_sum: pairs and rows must be fewer than 2147483647"
    ):
        cuda.scatter_sum(src, torch.zeros(5).long(), 2**31 - 1)


class Counting:
    """A back end that counts launches."""

    def __init__(self, emulator: Emulator) -> None:
        self.emulator, self.kernels = emulator, []  # type: ignore[var-annotated]
        self.properties = emulator.properties

    def launch(self, source: str, kernel: str, *rest: object) -> None:
        self.kernels.append(kernel)
        self.emulator.launch(source, kernel, *rest)  # type: ignore[arg-type]


def test_sorts_and_checks_an_index_once(
    emulator: Emulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    counting = Counting(emulator)
    monkeypatch.setattr(engine, "_backend", counting)
    src, index = torch.randn(30, 4), torch.randint(-1, 9, (30,))
    first = cuda.scatter_sum(src, index, 9)
    assert len(counting.kernels) == 3
    assert torch.equal(cuda.scatter_sum(src, index, 9), first)
    assert len(counting.kernels) == 4
    cuda.scatter_sum(src, index, 10)
    assert len(counting.kernels) == 7
    index.fill_(0)
    assert torch.equal(cuda.scatter_sum(src, index, 10)[1:], torch.zeros(9, 4))
    known = len(segments._known)
    del index
    gc.collect()
    assert len(segments._known) == known - 1


def test_public_functions_and_their_gradients() -> None:
    index = torch.randint(-1, 9, (60,))
    for how in (public.scatter_sum, public.scatter_mean, lambda *a: public.scatter_max(*a).feats):
        here, there = (torch.linspace(-1, 1, 240).view(60, 4).requires_grad_() for _ in range(2))
        upstream = torch.randn(9, 4)
        with OnDevice(**OPERATORS) as mode:
            ours = how(here, index, 9)
            ours.backward(upstream)
        assert sum(mode.calls.values()) >= 2
        theirs = how(there, index, 9)
        theirs.backward(upstream)
        assert_close(ours, theirs)
        assert here.grad is not None and there.grad is not None
        assert_close(here.grad, there.grad)
