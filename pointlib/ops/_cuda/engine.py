"""Launches what stands in cuda/, on a GPU (nvrtc.py) or in the emulator of the tests.

A kernel is a function template; `launch` names its file and its template arguments, and NVRTC (through cuda.core)
compiles just that variant at its first use. What a kernel may take, here and in the emulator of tests/cuda_emulator:
pointers (a tensor, or None for null), int64_t (a Python int) and float (a Python float).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

PACKAGE = Path(__file__).resolve().parents[2]
SOURCES = next(
    (path for path in (PACKAGE.parent / "cuda", PACKAGE / "_cuda_src") if path.is_dir()),
    PACKAGE / "_cuda_src",
)
"""The device code: in a clone beside the package, in an installation inside it."""

Argument = Tensor | int | float | None
Grid = int | tuple[int, int] | tuple[int, int, int]


@dataclass(frozen=True)
class Properties:
    """What a choice between kernels needs to know of a device.

    Attributes:
        capability: Compute capability as one number, 75 to 120.
        num_sms: Streaming multiprocessors.
        shared_bytes: Shared memory that one block may use.
    """

    capability: int
    num_sms: int
    shared_bytes: int

    @property
    def name(self) -> str:
        """What choices tuned for such a device are kept under."""
        return f"sm_{self.capability} {self.num_sms} multiprocessors"


class Backend(Protocol):
    """What runs kernels: a GPU, or the emulator of the tests."""

    def properties(self, device: torch.device) -> Properties:
        """Of a device."""

    def launch(
        self,
        source: str,
        kernel: str,
        grid: tuple[int, int, int],
        block: int,
        shared_bytes: int,
        arguments: Sequence[Argument],
        device: torch.device,
    ) -> None:
        """Enqueue a kernel on the device's current stream."""


def _default_backend() -> Backend:
    from pointlib.ops._cuda.nvrtc import Nvrtc

    return Nvrtc()


_backend: Backend | None = None


def backend() -> Backend:
    """What runs kernels, made at its first use, for `import pointlib` must not need a GPU."""
    global _backend
    if _backend is None:
        _backend = _default_backend()
    return _backend


def properties(tensor: Tensor) -> Properties:
    """Of the device that a tensor is on."""
    return backend().properties(tensor.device)


def launch(
    source: str, kernel: str, grid: Grid, block: int, *arguments: Argument, shared_bytes: int = 0
) -> None:
    """Enqueue one kernel on the current stream of the device that its tensors are on.

    Args:
        source: File in cuda/, such as `sparse_conv.cu`.
        kernel: Name expression, such as `pointlib::implicit_gemm<__half, 64, 32>`.
        grid: Blocks, (x), (x, y) or (x, y, z); none are launched where one is 0.
        block: Threads of a block.
        arguments: In the order of the kernel's parameters. Tensors must be contiguous and on one device.
        shared_bytes: Dynamic shared memory of a block.

    Raises:
        ValueError: The tensors are on several devices.
    """
    x, y, z = (*(grid if isinstance(grid, tuple) else (grid,)), 1, 1)[:3]
    device = None
    for argument in arguments:
        if isinstance(argument, Tensor):
            device = device or argument.device
            if argument.device != device:
                raise ValueError(
                    f"{kernel}: all tensors must be on one device, got {device} and {argument.device}. Move them "
                    "with .to(device)."
                )
            assert argument.is_contiguous(), kernel
    assert device is not None, kernel
    if x and y and z:
        backend().launch(source, kernel, (x, y, z), block, shared_bytes, arguments, device)


def ceil_div(value: int, divisor: int) -> int:
    """Blocks of `divisor` that hold `value`."""
    return -(-value // divisor)
