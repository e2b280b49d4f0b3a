"""Tensor-core products, matrix loads and asynchronous copies of cuda/ptx.cuh: against torch, with the fragment layouts
written down element by element as the PTX ISA has them, and on a GPU where there is one.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from pointlib.ops._cuda import engine
from tests.cuda_emulator.building import EmulatorError
from tests.cuda_emulator.emulator import Emulator
from tests.cuda_emulator.real_device import RealDevice

SOURCE = str(Path(__file__).parent / "kernels" / "tensor_cores.cu")
Device = Emulator | RealDevice


def run(device: Device, kernel: str, *arguments: engine.Argument, shared_bytes: int = 0) -> None:
    """Launch one warp of a kernel of this folder on a device like the fixture's."""
    listed = (SOURCE, f"pointlib::{kernel}")
    if isinstance(device, Emulator):
        device = Emulator(device.capability, variants=lambda _: [listed])
    device.launch(*listed, (1, 1, 1), 32, shared_bytes, arguments, torch.device("cpu"))


def needs_sm80(device: Device) -> None:
    """Skip where the instruction does not exist."""
    if device.capability < 80:
        pytest.skip("begins with sm_80")


Place = Callable[[int, int, int], tuple[int, int]]
"""(groupID, threadID_in_group, i) of a lane's element -> its row and column."""


class Shape(NamedTuple):
    """A product of the PTX ISA: m, n, k, elements of a lane's fragments, and where each stands."""

    m: int
    k: int
    dtype: torch.dtype
    a: tuple[int, Place]
    b: tuple[int, Place]
    d: tuple[int, Place]


def d_16(g: int, t: int, i: int) -> tuple[int, int]:
    """Accumulators of the shapes with 16 rows."""
    return (g if i < 2 else g + 8), t * 2 + (i & 1)


def half_16(dtype: torch.dtype) -> Shape:
    """The layout of m16n8k16 with 16-bit elements."""
    return Shape(
        16,
        16,
        dtype,
        (
            8,
            lambda g, t, i: (
                g if 0 <= i < 2 or 4 <= i < 6 else g + 8,
                t * 2 + (i & 1) + (0 if i < 4 else 8),
            ),
        ),
        (4, lambda g, t, i: (t * 2 + (i & 1) + (0 if i < 2 else 8), g)),
        (4, d_16),
    )


SHAPES = {
    "mma_f16_k8": Shape(
        16,
        8,
        torch.float16,
        (4, lambda g, t, i: (g if i < 2 else g + 8, t * 2 + (i & 1))),
        (2, lambda g, t, i: (t * 2 + i, g)),
        (4, d_16),
    ),
    "mma_f16": half_16(torch.float16),
    "mma_bf16": half_16(torch.bfloat16),
    "mma_tf32": Shape(
        16,
        8,
        torch.float32,
        (4, lambda g, t, i: (g if i in (0, 2) else g + 8, t if i in (0, 1) else t + 4)),
        (2, lambda g, t, i: (t if i == 0 else t + 4, g)),
        (4, d_16),
    ),
    "mma_s8_k16": Shape(
        8,
        16,
        torch.int8,
        (4, lambda g, t, i: (g, t * 4 + i)),
        (4, lambda g, t, i: (t * 4 + i, g)),
        (2, lambda g, t, i: (g, t * 2 + i)),
    ),
    "mma_s8": Shape(
        16,
        32,
        torch.int8,
        (
            16,
            lambda g, t, i: (
                g if 0 <= i < 4 or 8 <= i < 12 else g + 8,
                t * 4 + (i & 3) + (0 if i < 8 else 16),
            ),
        ),
        (8, lambda g, t, i: (t * 4 + (i & 3) + (0 if i < 4 else 16), g)),
        (4, d_16),
    ),
}


def fragments(matrix: Tensor, count: int, place: Place) -> Tensor:
    """A matrix dealt out to 32 lanes, `count` elements each."""
    places = [place(lane // 4, lane % 4, i) for lane in range(32) for i in range(count)]
    rows, columns = torch.tensor(places).unbind(1)
    return matrix[rows, columns].view(32, count)


def product(
    device: Device, name: str, a: Tensor, b: Tensor, c: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """The sums that the lanes hold after d = c + a b, and those they should hold, without and with |.|."""
    shape = SHAPES[name]
    lanes_a, lanes_b = fragments(a, *shape.a), fragments(b, *shape.b)
    held = fragments(c, *shape.d).contiguous()
    run(device, name, lanes_a.view(torch.int32), lanes_b.view(torch.int32), held)
    exact = c.double() + a.double() @ b.double()
    magnitude = c.double().abs() + a.double().abs() @ b.double().abs()
    return held, fragments(exact, *shape.d), fragments(magnitude, *shape.d)


@pytest.mark.parametrize("name", SHAPES)
def test_a_product_is_the_matrix_product(emulator: Device, name: str) -> None:
    shape = SHAPES[name]
    if name not in ("mma_f16_k8", "mma_s8_k16"):
        needs_sm80(emulator)
    if shape.dtype == torch.int8:
        a = torch.randint(-128, 128, (shape.m, shape.k), dtype=torch.int8)
        b = torch.randint(-128, 128, (shape.k, 8), dtype=torch.int8)
        c = torch.randint(-(2**30), 2**30, (shape.m, 8), dtype=torch.int32)
        held, expected, _ = product(emulator, name, a, b, c)
        assert torch.equal(held.double(), expected)
        return
    a, b = torch.randn(shape.m, shape.k).to(shape.dtype), torch.randn(shape.k, 8).to(shape.dtype)
    if name == "mma_tf32":  # representable, so that the products are exact
        a, b = a.bfloat16().float(), b.bfloat16().float()
    held, expected, magnitude = product(emulator, name, a, b, torch.randn(shape.m, 8))
    # Tensor cores add in float, some of them with truncation: 2^-22 of the sum of magnitudes a term.
    assert ((held - expected).abs() <= shape.k * 2.0**-22 * magnitude).all()


def test_a_product_reads_tf32_of_its_operands(emulator: Device) -> None:
    needs_sm80(emulator)
    a, b = torch.randn(16, 8), torch.randn(8, 8)
    zeros = torch.zeros(16, 8)

    def truncated(x: Tensor) -> Tensor:
        return (x.view(torch.int32) & -(1 << 13)).view(torch.float32)

    held = product(emulator, "mma_tf32", a, b, zeros)[0]
    assert torch.equal(held, product(emulator, "mma_tf32", truncated(a), truncated(b), zeros)[0])


def test_to_tf32_rounds_to_nearest_with_ties_away_from_zero(emulator: Device) -> None:
    needs_sm80(emulator)
    ties = [1 + 2.0**-11, -1 - 2.0**-11, 1 + 3 * 2.0**-11, 1 + 2.0**-11 - 2.0**-23]
    x = torch.cat([torch.tensor([*ties, 0.0, torch.inf, -torch.inf]), torch.randn(1000)])
    out = torch.empty_like(x)
    run(emulator, "to_tf32", x[:32], out[:32], 32)
    expected = torch.tensor([1 + 2.0**-10, -1 - 2.0**-10, 1 + 2.0**-9, 1.0])
    assert torch.equal(out[:4], expected)
    assert torch.equal(out[4:7], x[4:7])
    assert ((out - x)[7:32].abs() <= 2.0**-11 * x[7:32].abs()).all()
    assert (out[:32].view(torch.int32) & ((1 << 13) - 1) == 0).all()


@pytest.mark.parametrize("count", [2, 4])
@pytest.mark.parametrize("transposed", [False, True])
def test_matrices_arrive_as_documented(emulator: Device, count: int, transposed: bool) -> None:
    matrices = torch.arange(64 * count, dtype=torch.int16).view(count, 8, 8)
    out = torch.empty(count, 32, 2, dtype=torch.int16)
    kernel = f"load_matrices<{count}, {str(transposed).lower()}>"
    run(emulator, kernel, matrices, out, shared_bytes=128 * count)
    # Lane l receives elements 2 (l % 4), + 1 of row l / 4: the rows of a matrix, cut into pairs.
    rows = matrices.transpose(1, 2) if transposed else matrices
    assert torch.equal(out, rows.reshape(count, 32, 2))


def test_matrices_must_be_aligned_and_in_shared_memory(emulator: Device) -> None:
    if isinstance(emulator, RealDevice):
        pytest.skip("spoils a real device")
    out = torch.empty(32, dtype=torch.int32)
    run(emulator, "load_matrices_at", out, 0, shared_bytes=256)
    with pytest.raises(EmulatorError, match="the row's address must be a multiple of 16"):
        run(emulator, "load_matrices_at", out, 2, shared_bytes=256)
    with pytest.raises(EmulatorError, match="the row must lie in shared memory"):
        run(emulator, "load_matrices_at", out, 16, shared_bytes=256)


@pytest.mark.parametrize("size", [4, 8, 16])
def test_copies_arrive_with_zeros_where_there_is_nothing(emulator: Device, size: int) -> None:
    needs_sm80(emulator)
    count = 32 * size // 4
    x, out = torch.randn(count // 2), torch.empty(count)
    run(emulator, f"copy<{size}>", x, out, count // 2, 0, shared_bytes=32 * size)
    assert torch.equal(out, torch.cat([x, torch.zeros(count // 2)]))


@pytest.mark.parametrize(
    ("valid", "offset", "message"),
    [
        (128, 0, r"access: argument 0 \(.*\), byte \d+ of 256"),
        (64, 4, "cp_async: the shared address must be a multiple of 16"),
        (64, 16, "cp_async: must write inside shared memory"),
    ],
)
def test_wrong_copies_are_found(emulator: Device, valid: int, offset: int, message: str) -> None:
    needs_sm80(emulator)
    if isinstance(emulator, RealDevice):
        pytest.skip("spoils a real device")
    with pytest.raises(EmulatorError, match=message):
        out = torch.empty(128)
        run(emulator, "copy<16>", torch.randn(64), out, valid, offset, shared_bytes=512)
