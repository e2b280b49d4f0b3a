"""Unusual input and circumstances for the CPU engine: right, or refused with a message; with any number of threads."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from pointlib.ops._cpu import engine
from pointlib.ops.kernel_map import ConvSpec, KernelMap, build_kernel_map
from pointlib.ops.scatter import gather_rows, scatter_max, scatter_sum
from pointlib.ops.sparse_conv import sparse_conv
from tests.ops.operator_results import coord_results, feature_results, scene
from tests.tolerances import assert_close

ROOT = Path(__file__).resolve().parents[2]
HALF = (torch.bfloat16, torch.float16)
needs_engine = pytest.mark.skipif(
    engine.LIBRARY is None, reason="the composition's products depend on the number of threads"
)


def displaced(elements: int) -> Callable[[Tensor], Tensor]:
    """Function that moves a tensor so many elements past an aligned address; still contiguous."""

    def move(tensor: Tensor) -> Tensor:
        room = tensor.new_empty(tensor.numel() + elements)
        moved = room[elements:].view(tensor.shape)
        assert moved.is_contiguous()
        return moved.copy_(tensor)

    return move


def interleaved(tensor: Tensor) -> Tensor:
    """The same values with a hole after each."""
    room = tensor.new_full((*tensor.shape, 2), -7)
    room[..., 0] = tensor
    return room[..., 0]


def transposed(tensor: Tensor) -> Tensor:
    """The same values with the first axis innermost."""
    return tensor.T.contiguous().T if tensor.dim() == 2 else interleaved(tensor)


def expect_equal(actual: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    """Assert that two runs gave the same bits."""
    assert actual.keys() == expected.keys()
    for name, value in expected.items():
        assert torch.equal(actual[name], value), name


@pytest.fixture
def threads() -> Iterator[Callable[[int], None]]:
    """Function that sets torch's number of threads, for this test."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


# Against float64, which the compositions compute


@pytest.mark.parametrize("dtype", [torch.float32, *HALF])
@pytest.mark.parametrize("channels", [(5, 19), (16, 64), (1, 1), (33, 3)])
def test_results_are_those_of_float64(dtype: torch.dtype, channels: tuple[int, int]) -> None:
    oracle = feature_results(torch.float64, channels=channels)
    for name, value in feature_results(dtype, channels=channels).items():
        if (
            dtype in HALF and name == "unpool"
        ):  # which of two equal maxima wins is decided before rounding
            continue
        assert_close(value, oracle[name], dtype)


# How a tensor lies in memory


@pytest.mark.parametrize(
    "lay",
    [displaced(1), displaced(3), displaced(16), interleaved, transposed],
    ids=["displaced by 1", "displaced by 3", "displaced by 16", "interleaved", "transposed"],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_features_may_lie_anyhow_in_memory(
    lay: Callable[[Tensor], Tensor], dtype: torch.dtype
) -> None:
    moved, expected = feature_results(dtype, prepare=lay), feature_results(dtype)
    for name in ("submanifold", "submanifold transposed", "down", "down transposed"):
        bias = f"conv {name} grad 2"  # torch's sum, which adds in the order of memory
        assert_close(moved.pop(bias), expected.pop(bias), dtype)
    if engine.LIBRARY is None:  # torch's products, too
        for name, value in expected.items():
            assert_close(moved[name], value, dtype)
    else:
        expect_equal(moved, expected)


@pytest.mark.parametrize(
    "lay",
    [displaced(1), interleaved, transposed],
    ids=["displaced by 1", "interleaved", "transposed"],
)
def test_coordinates_may_lie_anyhow_in_memory(lay: Callable[[Tensor], Tensor]) -> None:
    expect_equal(coord_results(prepare=lay), coord_results())


@pytest.mark.parametrize("permute", [(0, 2, 1), (2, 1, 0), (1, 0, 2)])
def test_weights_may_have_any_strides(permute: tuple[int, int, int]) -> None:
    held = build_kernel_map(scene(200), ConvSpec(3)).kernel_map
    feats, weight = torch.randn(held.num_in, 6), torch.randn(27, 6, 10)
    strided = weight.permute(permute).contiguous().permute(permute)
    assert not strided.is_contiguous()
    assert torch.equal(sparse_conv(feats, strided, held), sparse_conv(feats, weight, held))
    one_for_all = weight[:1, :1].expand(27, 6, 10)
    assert torch.equal(
        sparse_conv(feats, one_for_all, held), sparse_conv(feats, one_for_all.clone(), held)
    )


# Sizes


@pytest.mark.parametrize("rows", [0, 1, 2, 3])
def test_few_rows(rows: int, threads: Callable[[int], None]) -> None:
    threads(4)
    coord_results(rows)
    oracle = feature_results(torch.float64, rows)
    for name, value in feature_results(rows=rows).items():
        assert_close(value, oracle[name], torch.float32)


@pytest.mark.parametrize("channels", [(0, 8), (8, 0), (0, 0)])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_zero_channels(channels: tuple[int, int], dtype: torch.dtype) -> None:
    held = build_kernel_map(scene(50), ConvSpec(3)).kernel_map
    feats = torch.zeros(held.num_in, channels[0], dtype=dtype, requires_grad=True)
    weight = torch.zeros(27, *channels, dtype=dtype, requires_grad=True)
    bias = torch.arange(channels[1], dtype=dtype, requires_grad=True)
    out = sparse_conv(feats, weight, held, bias)
    assert torch.equal(out, bias.expand(held.num_out, -1))
    out.sum().backward()
    assert feats.grad.shape == feats.shape and weight.grad.shape == weight.shape
    index = torch.zeros(held.num_in, dtype=torch.int64)
    assert scatter_sum(feats, index, 3).shape == (3, channels[0])
    assert scatter_max(feats, index, 3).feats.shape == (3, channels[0])
    assert gather_rows(feats, index).shape == feats.shape


def free_memory() -> float:
    """GiB that a test may take without swapping; 0 where Linux does not tell."""
    table = Path("/proc/meminfo")
    lines = table.read_text().splitlines() if table.exists() else []
    return sum(int(line.split()[1]) / 2**20 for line in lines if line.startswith("MemAvailable"))


def few_pairs(num_in: int, num_out: int) -> KernelMap:
    """A map of two taps whose pairs touch the first and the last rows."""
    in_index = torch.tensor([0, num_in - 1, num_in - 2, 1], dtype=torch.int32)
    out_index = torch.tensor([0, num_out - 1, 0, num_out - 1], dtype=torch.int32)
    return KernelMap(in_index, out_index, torch.tensor([0, 2, 4]), num_in, num_out)


@pytest.mark.slow
def test_more_than_2_to_31_input_elements() -> None:
    rows, channels = 2**25 + 3, 64
    if not sys.platform.startswith("linux"):
        pytest.skip("needs Linux, where zeros that nobody writes take no memory")
    feats = torch.from_numpy(np.zeros((rows, channels), np.float32))
    feats[:2], feats[-2:] = torch.randn(2, channels), torch.randn(2, channels)
    held, weight = few_pairs(rows, 5), torch.randn(2, channels, 7)
    small = torch.cat([feats[:2], feats[-2:]])
    assert torch.equal(
        sparse_conv(feats, weight, held), sparse_conv(small, weight, few_pairs(4, 5))
    )
    index = torch.tensor([rows - 1, 0, -1, rows - 2])
    assert torch.equal(gather_rows(feats, index), gather_rows(small, torch.tensor([3, 0, -1, 2])))


@pytest.mark.slow
def test_more_than_2_to_31_output_elements() -> None:
    if free_memory() < 16:
        pytest.skip(f"needs 16 GiB of free memory, has {free_memory():.0f}")
    rows, channels = 2**25 + 3, 64
    held, weight = few_pairs(4, rows), torch.randn(2, 6, channels).bfloat16()
    feats, bias = torch.randn(4, 6).bfloat16(), torch.randn(channels).bfloat16()
    expected = sparse_conv(feats, weight, few_pairs(4, 5), bias)
    out = sparse_conv(feats, weight, held, bias)
    assert torch.equal(out[0], expected[0]) and torch.equal(out[-1], expected[-1])
    assert torch.equal(out[2**25 - 1 : 2**25 + 2], expected[1:4])


# Threads, processes, signals


@needs_engine
def test_any_number_of_threads_gives_the_same_bits(threads: Callable[[int], None]) -> None:
    threads(1)
    coords, feats = coord_results(), feature_results(channels=(24, 40))
    half = feature_results(torch.bfloat16)
    for number in (2, 3, 7):
        threads(number)
        expect_equal(coord_results(), coords)
        expect_equal(feature_results(channels=(24, 40)), feats)
        expect_equal(feature_results(torch.bfloat16), half)


def run_script(body: str, **environment: str) -> str:
    """What a Python process prints; it and its children are ended if they take minutes."""
    process = subprocess.Popen(
        [sys.executable, "-c", body],
        cwd=ROOT,
        env={**os.environ, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        output, errors = process.communicate(timeout=300)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        output, errors = process.communicate()
    assert process.returncode == 0, errors
    return output


DIGEST = """
import hashlib, sys, torch
from tests.ops.operator_results import coord_results, feature_results

def digest():
    found = hashlib.sha256()
    for results in (coord_results(), feature_results(), feature_results(torch.bfloat16)):
        for name in sorted(results):
            found.update(results[name].contiguous().view(torch.uint8).numpy().tobytes())
    return found.hexdigest()
"""


@needs_engine
def test_fewer_threads_than_asked_for_give_the_same_bits() -> None:
    script = DIGEST + "torch.set_num_threads(4); print(digest())"
    free, limited = (run_script(script, OMP_THREAD_LIMIT=limit) for limit in ("64", "1"))
    assert free == limited


FORK = """
import multiprocessing
from pointlib.ops._cpu import engine
from pointlib.ops.kernel_map import ConvSpec, build_kernel_map
from pointlib.ops.sparse_conv import sparse_conv
from tests.ops.operator_results import scene

def child(everything, queue):
    if everything:
        torch.set_num_threads(1)
        queue.put(digest())
    else:  # torch's own functions may wait for ever on 2 threads
        queue.put((engine.num_threads(), sparse_conv(feats, weight, held).tolist()))

class Samples(torch.utils.data.Dataset):
    def __len__(self): return 2
    def __getitem__(self, index): return digest()

torch.set_num_threads(2)
held = build_kernel_map(scene(50), ConvSpec(3)).kernel_map
feats, weight = torch.randn(held.num_in, 8), torch.randn(27, 8, 8)
digest()
torch.set_num_threads(1)
expected, out = digest(), sparse_conv(feats, weight, held).tolist()
torch.set_num_threads(2)
context = multiprocessing.get_context("fork")
for everything in (True, False) if engine.LIBRARY else (True,):
    queue = context.Queue()
    process = context.Process(target=child, args=(everything, queue), daemon=True)
    process.start()
    assert queue.get(timeout=60) == (expected if everything else (1, out))
    process.join()
loader = torch.utils.data.DataLoader(Samples(), num_workers=2, multiprocessing_context="fork", timeout=60)
assert [one for batch in loader for one in batch] == [expected] * 2
torch.set_num_threads(1)
assert digest() == expected
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_process_computes_with_one_thread() -> None:
    """After its parent has used 2; DataLoader's workers too, for which torch sets 1 itself."""
    run_script(DIGEST + FORK)


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="needs interval timers")
def test_an_interrupt_is_raised_after_the_call_and_breaks_nothing() -> None:
    held = build_kernel_map(scene(20000, 60), ConvSpec(3)).kernel_map
    feats, weight = torch.randn(held.num_in, 32), torch.randn(27, 32, 32)
    expected = sparse_conv(feats, weight, held)
    before = signal.signal(signal.SIGALRM, signal.default_int_handler)
    interrupted = 0
    try:
        for microseconds in range(100, 4100, 400):
            try:
                signal.setitimer(signal.ITIMER_REAL, microseconds * 1e-6)
                deadline = time.monotonic() + 1
                while time.monotonic() < deadline:
                    sparse_conv(feats, weight, held)
            except KeyboardInterrupt:
                interrupted += 1
            assert torch.equal(sparse_conv(feats, weight, held), expected)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert interrupted > 5  # one that comes inside a destructor is only reported
