"""What the functions of CUDA C++ do in kernels, against what its programming guide says, and on a GPU where there is
one: grids, votes, shuffles, atomics, bits, and the conversions of the 16-bit floating-point types.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from pointlib.ops._cuda import engine
from tests.cuda_emulator.emulator import Emulator
from tests.cuda_emulator.real_device import RealDevice

SOURCE = str(Path(__file__).parent / "kernels" / "cuda_functions.cu")
Device = Emulator | RealDevice


def run(
    device: Device,
    kernel: str,
    *arguments: engine.Argument,
    grid: tuple[int, int, int] = (1, 1, 1),
    block: int = 32,
) -> None:
    """Launch a kernel of this folder on a device like the fixture's."""
    listed = (SOURCE, f"pointlib::{kernel}")
    if isinstance(device, Emulator):
        device = Emulator(device.capability, variants=lambda _: [listed])
    device.launch(*listed, grid, block, 0, arguments, torch.device("cpu"))


def test_every_thread_of_every_block_runs_once(emulator: Device) -> None:
    out = torch.zeros(24 * 40, dtype=torch.int64)
    run(emulator, "places", out, grid=(2, 3, 4), block=40)
    blocks, threads = torch.arange(24)[:, None], torch.arange(40)
    assert torch.equal(out, (blocks * 1000 + threads).view(-1))


def test_shuffles_and_votes_of_a_warp(emulator: Device) -> None:
    values = torch.randperm(32).tolist()
    out = torch.empty(14, 32, dtype=torch.int32)
    run(emulator, "shuffles", torch.tensor(values, dtype=torch.int32), out)
    sources: list[Callable[[int], int]] = [
        lambda lane: 5,
        lambda lane: (lane + 1) % 32,
        lambda lane: lane // 8 * 8 + 2,
        lambda lane: lane - 3 if lane >= 3 else lane,
        lambda lane: lane - 1 if lane % 16 >= 1 else lane,
        lambda lane: lane + 3 if lane + 3 < 32 else lane,
        lambda lane: lane + 5 if lane % 8 + 5 < 8 else lane,
        lambda lane: lane ^ 1,
        lambda lane: lane ^ 16,
    ]
    for row, source in zip(out, sources, strict=False):
        assert row.tolist() == [values[source(lane)] for lane in range(32)]
    ballot = sum(1 << lane for lane, value in enumerate(values) if value % 3 == 0)
    assert {value % 2**32 for value in out[9].tolist()} == {ballot}
    assert out[10:].bool().all(1).tolist() == [True, False, True, False]


def test_votes_of_a_block(emulator: Device) -> None:
    x, out = torch.randperm(96).int(), torch.empty(96, dtype=torch.int32)
    run(emulator, "votes", x, out, block=96)
    assert (out == 1 + 2 * 1 + 4 * 0 + 8 * 48).all()


def test_atomics(emulator: Device) -> None:
    out = torch.tensor([0, 0, 0, -1, 0, 0, 0, 0, 0], dtype=torch.int32)
    extremes = torch.tensor([2**62, -(2**62), 0])
    run(emulator, "atomics", out, extremes, grid=(3, 1, 1), block=64)
    total = sum(range(192))
    low = 2**20 - 1
    assert out.tolist() == [total, 384, low, -1 - low, -191, 191, 192, 1, 1]
    assert extremes.tolist() == [0, 191 << 40, total << 32]


def test_bits(emulator: Device) -> None:
    x = torch.cat([torch.tensor([0, 1, -1, 2**31 - 1, -(2**31)]), torch.randint(2**31, (95,))])
    out = torch.empty(6, 100, dtype=torch.int32)
    run(emulator, "bits", x.int(), out, 100, block=128)
    for i, value in enumerate((x % 2**32).tolist()):
        lowest = (value & -value).bit_length()
        reverse = int(f"{value:032b}"[::-1], 2)
        leading, wide = 32 - value.bit_length(), 44 - value.bit_length()
        expected = [value.bit_count(), lowest, leading, reverse, value.bit_count()]
        assert (out[:, i].long() % 2**32).tolist() == [*expected, wide if value else 64]


TYPES = {"__half": torch.float16, "__nv_bfloat16": torch.bfloat16}


@pytest.mark.parametrize("name", TYPES)
def test_all_values_of_16_bits_become_floats(emulator: Device, name: str) -> None:
    x = torch.arange(-(2**15), 2**15).short().view(TYPES[name])
    out = torch.empty(2**16)
    run(emulator, f"to_float<{name}>", x, out, 2**16, grid=(64, 1, 1), block=1024)
    assert torch.equal(out.isnan(), x.isnan())
    expected = x.float()[~x.isnan()]
    assert torch.equal(out[~x.isnan()].view(torch.int32), expected.view(torch.int32))


@pytest.mark.parametrize("name", TYPES)
def test_floats_are_rounded_to_16_bits(emulator: Device, name: str) -> None:
    exact = torch.arange(-(2**15), 2**15).short().view(TYPES[name]).float()
    # Every value, what lies between it and the next, and what lies just beside that.
    bits = exact.view(torch.int32)
    half_step = 2 ** (12 if name == "__half" else 15)
    between = [(bits + half_step + i).view(torch.float32) for i in (-1, 0, 1)]
    random = torch.randint(-(2**31), 2**31, (2**16,)).int().view(torch.float32)
    subnormal = torch.randn(2**15) * 2.0 ** torch.randint(-26, -13, (2**15,))
    x = torch.cat([exact, *between, random, subnormal, torch.tensor([65519.9, 65520.0, 3.4e38])])
    out = torch.empty(len(x), dtype=TYPES[name])
    run(
        emulator,
        f"from_float<{name}>",
        x,
        out,
        len(x),
        grid=(engine.ceil_div(len(x), 1024), 1, 1),
        block=1024,
    )
    expected = x.to(TYPES[name])
    assert torch.equal(out.isnan(), x.isnan())
    assert torch.equal(out[~x.isnan()].view(torch.int16), expected[~x.isnan()].view(torch.int16))
