"""Runs what stands in cuda/ on a machine without a GPU: g++ builds the very same sources against the headers of this
folder, and each launch runs under several schedules whose results must have the same bits.
"""

from __future__ import annotations

import ctypes
import functools
import os
import re
import struct
import sys
import threading
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from pointlib.ops import _cuda
from pointlib.ops._cuda import engine
from pointlib.ops._cuda.engine import Argument, Properties
from tests.cuda_emulator.building import MAX_THREADS, EmulatorError, Kernel, Kind, runtime

SHARED_BYTES = {
    75: 64 << 10,
    80: 163 << 10,
    86: 99 << 10,
    87: 163 << 10,
    89: 99 << 10,
    90: 227 << 10,
}
"""Shared memory that one block may use, from the table of capabilities in the CUDA programming guide."""
NUM_SMS = 4
MAX_GRID = (2**31 - 1, 65535, 65535)

ONE_LAUNCH = threading.Lock()
"""The runtime has one device, whose launches other threads wait for."""

Variants = Callable[[int], Iterable[tuple[str, str]]]


def schedules() -> tuple[int, ...]:
    """Seeds of the schedules: POINTLIB_EMULATOR_SCHEDULES such as `0,1,7`, else 0 (forward) and 1 (backward)."""
    named = os.environ.get("POINTLIB_EMULATOR_SCHEDULES", "0,1")
    return tuple(int(seed) for seed in named.split(","))


@functools.cache
def family_variants(module: str, capability: int) -> frozenset[tuple[str, str]]:
    """What one module of `pointlib.ops._cuda` says it may launch on a capability."""
    variants: Variants = getattr(sys.modules[module], "variants", lambda capability: ())
    return frozenset(variants(capability))


def is_listed(capability: int, source: str, kernel: str) -> bool:
    """Whether a family lists a kernel: one of those that are imported, for who launches is."""
    families = [name for name in sys.modules if name.startswith(f"{_cuda.__name__}.")]
    return any((source, kernel) in family_variants(name, capability) for name in families)


# The structures of launch.h


class _Argument(ctypes.Structure):
    _fields_ = (
        ("value", ctypes.c_ulonglong),
        ("bytes", ctypes.c_longlong),
        ("is_tensor", ctypes.c_int),
        ("writable", ctypes.c_int),
    )


class _Launch(ctypes.Structure):
    _fields_ = (
        ("body", ctypes.c_void_p),
        ("arguments", ctypes.POINTER(_Argument)),
        ("seeds", ctypes.POINTER(ctypes.c_longlong)),
        ("program_counter", ctypes.POINTER(ctypes.c_ulonglong)),
        ("shared_bytes", ctypes.c_longlong),
        ("count", ctypes.c_int),
        ("num_seeds", ctypes.c_int),
        ("block", ctypes.c_int),
        ("grid", ctypes.c_uint * 3),
    )


# Arguments


def described(value: Argument) -> str:
    """An argument in a few words."""
    if isinstance(value, Tensor):
        return f"{str(value.dtype).removeprefix('torch.')} {tuple(value.shape)}"
    return f"{type(value).__name__} {value}"


def points_to(tensor: Tensor, kind: Kind) -> bool:
    """Whether a kernel's pointer may be given this tensor: same type; integers and bytes by size alone."""
    if kind.element == "?":
        return True
    letters = {torch.float16: "h", torch.bfloat16: "b"}
    letter = letters.get(tensor.dtype, "f" if tensor.dtype.is_floating_point else "i")
    return (tensor.element_size(), letter) == (kind.size, kind.element)


def packed(index: int, value: Argument, kind: Kind) -> _Argument:
    """One argument as the runtime takes it, checked against the kernel's parameter.

    Raises:
        EmulatorError: If the kernel takes something else there.
    """
    if kind.passing == "i" and type(value) is int and -(2**63) <= value < 2**63:
        return _Argument(value % 2**64, 0, 0, 0)
    if kind.passing == "f" and type(value) is float:
        return _Argument(struct.unpack("I", struct.pack("f", value))[0], 0, 0, 0)
    if kind.passing in "pP" and value is None:
        return _Argument(0, 0, 0, 0)
    if kind.passing in "pP" and isinstance(value, Tensor) and points_to(value, kind):
        return _Argument(value.data_ptr(), value.nbytes, 1, kind.passing == "P")
    names = {"f": "float", "h": "half", "b": "bfloat16", "i": "integer", "?": "any"}
    wanted = {
        "i": "an int that fits int64_t",
        "f": "a float",
        "?": "passed as a pointer, an int64_t or a float: change the kernel's parameter",
    }.get(kind.passing, f"a tensor of {kind.size}-byte {names[kind.element]} elements or None")
    raise EmulatorError(f"argument {index} must be {wanted}, got {described(value)}")


class Emulator:
    """A device of the emulator: implements `pointlib.ops._cuda.engine.Backend` for tensors on the CPU.

    Args:
        capability: Compute capability that sources are compiled for.
        sources: Folder of the sources.
        variants: Kernels that may be launched; by default those that the families list.
        seeds: Schedules of each launch; by default those of `schedules`.
    """

    def __init__(
        self,
        capability: int,
        sources: Path = engine.SOURCES,
        variants: Variants | None = None,
        seeds: Sequence[int] = (),
    ) -> None:
        self.capability = capability
        self.shared_bytes = SHARED_BYTES[capability]
        self._sources = sources
        self._variants = None if variants is None else frozenset(variants(capability))
        self._seeds = tuple(seeds) or schedules()
        self._kernels: dict[tuple[str, str], Kernel] = {}

    def properties(self, device: torch.device) -> Properties:
        """Of this device."""
        return Properties(self.capability, NUM_SMS, self.shared_bytes)

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
        """Run a kernel to its end, once for each schedule.

        Raises:
            EmulatorError: If it does not compile or does what is undefined on a device; the message says where.
        """
        with ONE_LAUNCH:
            try:
                self._check(source, kernel, grid, block, shared_bytes)
                if (source, kernel) not in self._kernels:
                    compiled = Kernel(source, kernel, self.capability, self._sources)
                    self._kernels[source, kernel] = compiled
                self._run(self._kernels[source, kernel], grid, block, shared_bytes, arguments)
            except EmulatorError as error:
                raise EmulatorError(f"{source}: {kernel}: {error}") from None

    def _check(
        self, source: str, kernel: str, grid: tuple[int, int, int], block: int, shared_bytes: int
    ) -> None:
        """Refuse what a device refuses, and kernels that the compilation ahead of time would miss."""
        if self._variants is None:
            listed = is_listed(self.capability, source, kernel)
        else:
            listed = (source, kernel) in self._variants
        if not listed:
            raise EmulatorError(
                f"must be listed by its family's variants({self.capability}), is not"
            )
        if not 1 <= block <= MAX_THREADS:
            raise EmulatorError(f"block must be 1 to {MAX_THREADS} threads, got {block}")
        if any(not 1 <= size <= limit for size, limit in zip(grid, MAX_GRID, strict=True)):
            raise EmulatorError(f"grid must be at least 1 and at most {MAX_GRID}, got {grid}")
        if not 0 <= shared_bytes <= self.shared_bytes:
            raise EmulatorError(
                f"shared_bytes must be 0 to {self.shared_bytes}, got {shared_bytes}"
            )

    def _run(
        self,
        kernel: Kernel,
        grid: tuple[int, int, int],
        block: int,
        shared_bytes: int,
        arguments: Sequence[Argument],
    ) -> None:
        if block > kernel.max_threads:
            raise EmulatorError(
                f"block must be at most {kernel.max_threads} threads, its __launch_bounds__, got {block}"
            )
        if len(arguments) != len(kernel.kinds):
            raise EmulatorError(f"must get {len(kernel.kinds)} arguments, got {len(arguments)}")
        values = [packed(i, arguments[i], kind) for i, kind in enumerate(kernel.kinds)]
        program_counter = ctypes.c_ulonglong(0)
        launch = _Launch(
            kernel.body,
            (_Argument * len(values))(*values),
            (ctypes.c_longlong * len(self._seeds))(*self._seeds),
            ctypes.pointer(program_counter),
            shared_bytes,
            len(values),
            len(self._seeds),
            block,
            (ctypes.c_uint * 3)(*grid),
        )
        message = ctypes.create_string_buffer(1024)
        if not runtime().emulator_launch(ctypes.byref(launch), message, ctypes.c_longlong(1024)):
            return
        text = re.sub(
            r"argument (\d+)",
            lambda found: f"{found[0]} ({described(arguments[int(found[1])])})",
            message.value.decode(),
        )
        lines = kernel.lines(program_counter.value) if program_counter.value else ""
        raise EmulatorError(f"{text} ({lines})" if lines else text)
