"""The emulator itself: it finds what is wrong with a kernel, and nothing where nothing is wrong."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor

from pointlib.ops._cuda import engine
from tests.cuda_emulator import building
from tests.cuda_emulator.building import EmulatorError
from tests.cuda_emulator.emulator import Emulator

KERNELS = Path(__file__).parent / "kernels"


@pytest.fixture
def emulator() -> Emulator:
    """What these tests are about, and never a GPU, whose memory a fault would spoil."""
    if building.compiler() is None:
        pytest.skip("needs a C++ compiler: install g++ or name one by CXX")
    return Emulator(90)


def run(
    emulator: Emulator,
    kernel: str,
    *arguments: engine.Argument,
    source: str = "faults.cu",
    grid: int = 1,
    block: int = 128,
    shared_bytes: int = 0,
    seeds: Sequence[int] = (0, 1),
) -> None:
    """Launch a kernel of this folder on a device like the fixture's."""
    listed = [(source, f"pointlib::{kernel}")]
    device = Emulator(emulator.capability, KERNELS, lambda _: listed, seeds)
    device.launch(*listed[0], (grid, 1, 1), block, shared_bytes, arguments, torch.device("cpu"))


def ramp(count: int) -> Tensor:
    """Numbers 1 to count."""
    return torch.arange(1, count + 1, dtype=torch.float32)


# The planted faults: race, missing wait, out-of-bounds read, wrong fragment


@pytest.mark.parametrize("seeds", [(0, 1), (0, 2), (3, 4, 5)])
def test_a_race_is_found(emulator: Emulator, seeds: tuple[int, ...]) -> None:
    x, out = ramp(128), torch.empty(128)
    with pytest.raises(EmulatorError, match=r"race, .* argument 1 \(float32 \(128,\)\), byte"):
        run(emulator, "race<true>", x, out, shared_bytes=512, seeds=seeds)
    run(emulator, "race<false>", x, out, shared_bytes=512, seeds=seeds)
    assert torch.equal(out, x.roll(-1))


def test_data_overwritten_before_all_have_read_it_are_found(emulator: Emulator) -> None:
    x, out = ramp(128), torch.empty(128)
    with pytest.raises(EmulatorError, match="race, "):
        run(emulator, "overwritten_too_early<true>", x, out, shared_bytes=512)
    run(emulator, "overwritten_too_early<false>", x, out, shared_bytes=512)
    assert torch.equal(out, x.roll(-1) + x.roll(-2) + x.roll(-3) + x.roll(-4))


def test_a_race_between_lanes_is_found(emulator: Emulator) -> None:
    x, out = ramp(32), torch.empty(32)
    with pytest.raises(EmulatorError, match="race, "):
        run(emulator, "race_in_warp<true>", x, out, block=32, shared_bytes=128)
    run(emulator, "race_in_warp<false>", x, out, block=32, shared_bytes=128)
    assert torch.equal(out, x.view(16, 2).flip(1).view(32))


def test_a_race_after_a_collective_is_found(emulator: Emulator) -> None:
    out = torch.empty(32, dtype=torch.int32)
    with pytest.raises(EmulatorError, match=r"race, .* byte 20 of 128"):
        run(emulator, "race_after_meeting<true>", out, block=32, shared_bytes=4)
    run(emulator, "race_after_meeting<false>", out, block=32, shared_bytes=4)
    assert out.nonzero().tolist() == [[5]] and out[5] == 1


def test_a_race_between_blocks_is_found(emulator: Emulator) -> None:
    out = torch.zeros(1, dtype=torch.int32)
    with pytest.raises(EmulatorError, match="race, "):
        run(emulator, "race_of_blocks<true>", out, grid=3)
    assert out.item() == 0, "a failed launch changes nothing"
    run(emulator, "race_of_blocks<false>", out, grid=3)
    assert out.item() == 2


def test_a_missing_wait_is_found(emulator: Emulator) -> None:
    x, out = ramp(256), torch.empty(256)
    with pytest.raises(EmulatorError, match=r"argument 1 .*, byte 512 "):  # the second tile
        run(emulator, "missing_wait<true>", x, out, block=32, shared_bytes=1024)
    run(emulator, "missing_wait<true>", x, out, block=32, shared_bytes=1024, seeds=(0,))
    assert torch.equal(out[:128], x[:128])
    assert out[128:].isnan().all(), "poison, not data, without the wait"
    run(emulator, "missing_wait<false>", x, out, block=32, shared_bytes=1024)
    assert torch.equal(out, x)


def test_a_missing_barrier_after_the_wait_is_found(emulator: Emulator) -> None:
    x, out = ramp(64), torch.empty(64)
    with pytest.raises(EmulatorError, match="race, "):
        run(emulator, "missing_barrier_after_wait<true>", x, out, block=64, shared_bytes=256)
    run(emulator, "missing_barrier_after_wait<false>", x, out, block=64, shared_bytes=256)
    assert torch.equal(out, x.roll(-1))


def test_an_out_of_bounds_read_is_found(emulator: Emulator) -> None:
    x, out = ramp(300), torch.empty(300)
    with pytest.raises(EmulatorError) as caught:
        run(emulator, "out_of_bounds_read<true>", x, out, 300, grid=3)
    for part in (
        "faults.cu: pointlib::out_of_bounds_read<true>",
        "block (2, 0, 0), thread 43: out-of-bounds access",
        "argument 0 (float32 (300,)), byte 1200 of 1200",
    ):
        assert part in str(caught.value)
    run(emulator, "out_of_bounds_read<false>", x, out, 300, grid=3)
    assert torch.equal(out[:-1], x[:-1] + x[1:])


def test_a_read_before_the_start_is_found(emulator: Emulator) -> None:
    x, out = ramp(100), torch.empty(100)
    with pytest.raises(EmulatorError, match=r"argument 0 .*, byte -4 of 400"):
        run(emulator, "read_before_start<true>", x, out, 100)
    run(emulator, "read_before_start<false>", x, out, 100)


@pytest.mark.parametrize(("count", "block"), [(4, 5), (3, 4), (127, 128), (127, 256)])
def test_an_out_of_bounds_write_is_found(emulator: Emulator, count: int, block: int) -> None:
    # 3 elements end 4 bytes before the inaccessible page: the block's end finds what stands there.
    x, out = ramp(count), torch.empty(count)
    expected = rf"out-of-bounds write.*argument 1 \(.*\), byte \d+ of {4 * count}\b"
    with pytest.raises(EmulatorError, match=expected):
        run(emulator, "out_of_bounds_write<true>", x, out, count, block=block)
    run(emulator, "out_of_bounds_write<false>", x, out, count, block=block)
    assert torch.equal(out, x)


def test_a_wrong_fragment_is_found(emulator: Emulator) -> None:
    a, b = torch.randn(16, 8).half(), torch.randn(8, 8).half()
    product = a.double() @ b.double().T
    out = torch.empty(16, 8)
    run(emulator, "wrong_fragment<true>", a, b, out, block=32)
    assert not torch.allclose(out.double(), product, atol=1e-5)
    run(emulator, "wrong_fragment<false>", a, b, out, block=32)
    assert torch.allclose(out.double(), product, atol=1e-5)


# Other faults


def test_leaving_before_a_barrier_is_found(emulator: Emulator) -> None:
    out = torch.empty(100, dtype=torch.int32)
    expected = r"thread 0: waits at __syncthreads_count \(faults.cu:\d+\), but thread 100 has ended"
    with pytest.raises(EmulatorError, match=expected):
        run(emulator, "exit_before_barrier<true>", out, 100)
    run(emulator, "exit_before_barrier<false>", out, 100)
    assert (out == 100).all()


def test_diverging_barriers_are_found(emulator: Emulator) -> None:
    out = torch.empty(128, dtype=torch.int32)
    expected = r"waits at __syncthreads \(faults.cu:\d+\), but thread 32 waits at __syncthreads"
    with pytest.raises(EmulatorError, match=expected):
        run(emulator, "divergent_barriers<true>", out)
    run(emulator, "divergent_barriers<false>", out)
    assert torch.equal(out, torch.arange(128, dtype=torch.int32))


def test_missing_lanes_are_found(emulator: Emulator) -> None:
    out = torch.empty(64, dtype=torch.int32)
    expected = r"thread 0: waits at __shfl_xor_sync .*, but thread 31 waits at __syncthreads"
    with pytest.raises(EmulatorError, match=expected):
        run(emulator, "missing_lanes<true>", out, block=64)
    run(emulator, "missing_lanes<false>", out, block=64)
    assert (out == sum(range(32))).all()


def test_a_small_last_warp_cannot_meet(emulator: Emulator) -> None:
    out = torch.empty(40, dtype=torch.int32)
    with pytest.raises(EmulatorError, match="must be called by 32 lanes, but a block of 40"):
        run(emulator, "missing_lanes<false>", out, block=40)


@pytest.mark.parametrize("block", [126, 128])
def test_a_shared_overrun_is_found(emulator: Emulator, block: int) -> None:
    # 504 bytes end 8 bytes before the inaccessible page.
    out = torch.empty(block, dtype=torch.int32)
    with pytest.raises(EmulatorError, match=r"write: shared memory, byte 512 of 5\d\d"):
        run(emulator, "shared_overrun<true>", out, block=block, shared_bytes=4 * block)
    run(emulator, "shared_overrun<false>", out, block=block, shared_bytes=4 * block)
    assert torch.equal(out, torch.arange(block, dtype=torch.int32))


def test_uninitialised_shared_memory_is_found(emulator: Emulator) -> None:
    out = torch.empty(128, dtype=torch.int32)
    with pytest.raises(EmulatorError, match="use of undefined memory"):
        run(emulator, "uninitialised_shared<true>", out, shared_bytes=512)
    run(emulator, "uninitialised_shared<false>", out, shared_bytes=512)
    assert (out == 0).all()


def test_a_misaligned_vector_is_found(emulator: Emulator) -> None:
    x, out = ramp(8), torch.empty(4)
    with pytest.raises(EmulatorError, match="misaligned"):
        run(emulator, "misaligned<true>", x, out, block=1)
    with pytest.raises(EmulatorError, match="misaligned"):
        run(
            emulator, "misaligned<false>", x[1:], out, block=1
        )  # the address of a view stays what it is
    run(emulator, "misaligned<false>", x, out, block=1)
    assert torch.equal(out, x[:4])


def test_a_thread_that_never_ends_is_found(emulator: Emulator) -> None:
    out = torch.zeros(1, dtype=torch.int32)
    with pytest.raises(EmulatorError, match="does not end"):
        run(emulator, "waits_forever<true>", out, block=1)
    run(emulator, "waits_forever<false>", out, block=1)
    assert out.item() == 1


def test_a_write_to_a_const_tensor_is_found(emulator: Emulator) -> None:
    x, out = torch.arange(128).int(), torch.empty(128, dtype=torch.int32)
    with pytest.raises(EmulatorError, match=r"write: argument 0 .*, byte 0 of 512, which is const"):
        run(emulator, "writes_const<true>", x, out)
    run(emulator, "writes_const<false>", x, out)
    assert torch.equal(out, x)


def test_a_full_stack_is_found(emulator: Emulator) -> None:
    out = torch.empty(128, dtype=torch.int32)
    with pytest.raises(EmulatorError, match="the stack of a thread, of 256 KiB, is full"):
        run(emulator, "full_stack<true>", out)
    run(emulator, "full_stack<false>", out)
    assert out[127].item() == 10


def test_a_shift_beyond_the_width_is_found(emulator: Emulator) -> None:
    x, out = torch.arange(128).int(), torch.empty(128, dtype=torch.int32)
    with pytest.raises(EmulatorError, match="shift by the width or more"):
        run(emulator, "wide_shift<true>", x, out, 2)
    run(emulator, "wide_shift<false>", x, out, 2)
    assert torch.equal(out, x // 4)


def test_a_null_pointer_is_found(emulator: Emulator) -> None:
    with pytest.raises(EmulatorError, match="a null pointer"):
        run(emulator, "writes_const<false>", None, torch.empty(128, dtype=torch.int32))


def test_faults_name_their_line(emulator: Emulator) -> None:
    if shutil.which("addr2line") is None:
        pytest.skip("needs addr2line of binutils")
    lines = (KERNELS / "faults.cu").read_text().splitlines()
    line = next(i for i, text in enumerate(lines, 1) if "const_cast<int*>" in text)
    with pytest.raises(EmulatorError, match=rf"\(faults.cu:{line}"):
        run(emulator, "writes_const<true>", torch.ones(8).int(), torch.ones(8).int(), block=8)


def test_work_goes_on_after_a_fault(emulator: Emulator) -> None:
    x, out = ramp(128), torch.empty(128)
    for _ in range(20):
        with pytest.raises(EmulatorError):
            run(emulator, "out_of_bounds_read<true>", x, out, 128)
        run(emulator, "out_of_bounds_read<false>", x, out, 128)


def test_shuffled_schedules_differ(emulator: Emulator) -> None:
    results = set()
    for seed in range(6):
        out = torch.zeros(1, dtype=torch.int32)
        run(emulator, "race_of_blocks<true>", out, grid=50, seeds=(seed,))
        results.add(out.item())
    assert {0, 49} < results
