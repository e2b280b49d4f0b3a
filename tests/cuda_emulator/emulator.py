"""Runs what stands in cuda/ on a machine without a GPU: g++ builds the very same sources against the headers of this
folder, and each launch runs under several schedules whose results must have the same bits.
"""

from __future__ import annotations

import ctypes
import functools
import getpass
import hashlib
import importlib
import os
import pkgutil
import re
import shutil
import struct
import subprocess
import tempfile
import threading
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from pointlib.ops import _cuda
from pointlib.ops._cuda import engine
from pointlib.ops._cuda.engine import Argument, Properties

HERE = Path(__file__).resolve().parent
SHARED_BYTES = {
    75: 64 << 10,
    80: 163 << 10,
    86: 99 << 10,
    87: 163 << 10,
    89: 99 << 10,
    90: 227 << 10,
}
NUM_SMS = 4
MAX_THREADS = 1024
MAX_GRID = (2**31 - 1, 65535, 65535)

RUNTIME = ("launch.cpp", "scheduler.cpp", "faults.cpp", "copies.cpp", "tensor_cores.cpp")

Variants = Callable[[int], Iterable[tuple[str, str]]]

FLAGS = [
    *("-std=c++17", "-g1", "-fPIC", "-shared", "-fvisibility=hidden"),
    *("-fno-strict-aliasing", "-fwrapv", "-ffp-contract=off"),
    *("-U_FORTIFY_SOURCE", "-fno-stack-protector"),  # both look askance at stacks that are switched
    *("-Wall", "-Wextra", "-Werror", "-Wno-unknown-warning-option"),
]
KERNEL_FLAGS = [
    *("-O1", "-DPOINTLIB_CUDA_EMULATOR", "-include", "cuda_emulator.h"),
    *("-fsanitize=alignment,bounds,shift-exponent", "-fsanitize-undefined-trap-on-error"),
    *("-Wno-unknown-pragmas", "-Wno-unused-function", "-Wno-unused-parameter"),
    *("-Wno-maybe-uninitialized", "-Wno-sign-compare"),
]
"""A source may say more than g++ asks for; what it warns of otherwise is a mistake on a device too."""


class EmulatorError(RuntimeError):
    """A kernel does not compile, is launched wrongly, or does what is undefined on a device."""


def compiler() -> str | None:
    """The C++ compiler: CXX, else g++."""
    return shutil.which(os.environ.get("CXX", "g++"))


def schedules() -> tuple[int, ...]:
    """Seeds of the schedules: POINTLIB_EMULATOR_SCHEDULES such as `0,1,7`, else forward and backward."""
    named = os.environ.get("POINTLIB_EMULATOR_SCHEDULES", "0,1")
    return tuple(int(seed) for seed in named.split(","))


def listed_variants(capability: int) -> set[tuple[str, str]]:
    """What the families of `pointlib.ops._cuda` may launch on a capability."""
    listed: set[tuple[str, str]] = set()
    for module in pkgutil.iter_modules(_cuda.__path__):
        family = importlib.import_module(f"{_cuda.__name__}.{module.name}")
        if hasattr(family, "variants"):
            listed.update(family.variants(capability))
    return listed


# The structures of launch.h and kernel_entry.h


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


class _Kind(ctypes.Structure):
    _fields_ = (("passing", ctypes.c_char), ("size", ctypes.c_byte), ("element", ctypes.c_char))


# Building


def cache_folder() -> Path:
    """Where built kernels stay between runs."""
    folder = Path(tempfile.gettempdir()) / f"pointlib-emulator-{getpass.getuser()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    return folder


def included(path: Path, folders: Sequence[Path], found: dict[Path, bytes]) -> None:
    """Collect a file and everything that it includes from these folders."""
    if path in found:
        return
    found[path] = path.read_bytes()
    for name in re.findall(rb'^\s*#include\s+[<"]([^>"]+)[>"]', found[path], re.MULTILINE):
        for folder in (path.parent, *folders):
            if (folder / name.decode()).is_file():
                included(folder / name.decode(), folders, found)
                break


def build(name: str, text: str, flags: Sequence[str], folders: Sequence[Path]) -> Path:
    """Compile a translation unit into a shared library, or find the one built before.

    Args:
        name: What a message calls it.
        text: The translation unit.
        flags: Of the compiler.
        folders: Where it finds included files; these and the flags make up the key of the cache.
    """
    command = [os.environ.get("CXX", "g++"), *FLAGS, *flags, *(f"-I{folder}" for folder in folders)]
    files: dict[Path, bytes] = {}
    for line in re.findall(r'#include "([^"]+)"', text):
        included(next(f / line for f in folders if (f / line).is_file()), folders, files)
    key = hashlib.sha256(repr((command, text, sorted(files.items()))).encode()).hexdigest()[:32]
    library = cache_folder() / f"{key}.so"
    if library.exists():
        return library
    with tempfile.TemporaryDirectory(dir=cache_folder()) as scratch:
        source, output = Path(scratch) / "unit.cpp", Path(scratch) / "unit.so"
        source.write_text(text)
        done = subprocess.run(
            [*command, "-o", str(output), str(source)], capture_output=True, text=True
        )
        if done.returncode:
            raise EmulatorError(f"{name} does not compile:\n{done.stderr[:8000]}")
        output.replace(library)
    return library


@functools.cache
def runtime() -> ctypes.CDLL:
    """The runtime, whose symbols the kernels' libraries find."""
    text = "".join(f'#include "{file}"\n' for file in RUNTIME)
    library = build("the emulator", text, ["-O3"], [HERE])
    return ctypes.CDLL(str(library), mode=ctypes.RTLD_GLOBAL)


class Kernel:
    """One compiled kernel."""

    def __init__(self, source: str, expression: str, capability: int, folder: Path) -> None:
        runtime()
        text = (
            f'#include "{source}"\n#include "kernel_entry.h"\n'
            "namespace {\nconst auto kernel = &(EMULATED);\n}\n".replace("EMULATED", expression)
            + 'extern "C" EMULATOR_API const emulator::Kind* emulated_kinds() {\n'
            "    return emulator::kinds_of(kernel);\n}\n"
            'extern "C" EMULATOR_API void emulated_body(void* const* arguments) {\n'
            "    emulator::call(kernel, arguments);\n}\n"
        )
        flags = [*KERNEL_FLAGS, f"-D__CUDA_ARCH__={capability}0"]
        self.path = build(f"{source}: {expression}", text, flags, [folder, HERE])
        library = ctypes.CDLL(str(self.path))
        library.emulated_kinds.restype = ctypes.POINTER(_Kind)
        kinds = library.emulated_kinds()
        self.kinds: list[tuple[str, int, str]] = []
        while kinds[len(self.kinds)].passing != b"\0":
            kind = kinds[len(self.kinds)]
            self.kinds.append((kind.passing.decode(), kind.size, kind.element.decode()))
        self.body = ctypes.cast(library.emulated_body, ctypes.c_void_p)


# Launching


def element_of(tensor: Tensor) -> str:
    """The letter of kernel_entry.h for a tensor's elements."""
    if tensor.dtype == torch.float16:
        return "h"
    if tensor.dtype == torch.bfloat16:
        return "b"
    return "f" if tensor.dtype.is_floating_point else "i"


def packed(index: int, value: Argument, kind: tuple[str, int, str]) -> _Argument:
    """One argument in the runtime's form, after checking it against the kernel's parameter.

    Raises:
        EmulatorError: If the kernel takes something else.
    """
    passing, size, element = kind
    wanted = {"i": "int64_t (an int)", "f": "float (a float)"}.get(passing, "a pointer")
    got = type(value).__name__
    if passing == "?":
        raise EmulatorError(f"parameter {index} must be a pointer, an int64_t or a float")
    if passing in "pP":
        if value is None:
            return _Argument(0, 0, 0, 0)
        if isinstance(value, Tensor):
            fits = element == "?" or (value.element_size() == size and element_of(value) == element)
            if not fits:
                raise EmulatorError(
                    f"argument {index} must point to {size}-byte elements of kind {element}, got {value.dtype}"
                )
            return _Argument(value.data_ptr(), value.nbytes, 1, passing == "P")
    elif passing == "i" and type(value) is int:
        if not -(2**63) <= value < 2**63:
            raise EmulatorError(f"argument {index} must fit an int64_t, got {value}")
        return _Argument(value % 2**64, 0, 0, 0)
    elif passing == "f" and type(value) is float:
        return _Argument(struct.unpack("I", struct.pack("f", value))[0], 0, 0, 0)
    raise EmulatorError(f"argument {index} must be {wanted}, got {got}")


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
        variants: Variants = listed_variants,
        seeds: Sequence[int] | None = None,
    ) -> None:
        self.capability = capability
        self.sources = sources
        self.variants = functools.cache(lambda: set(variants(capability)))
        self.seeds = tuple(seeds or schedules())
        self.kernel = functools.cache(
            lambda source, name: Kernel(source, name, capability, self.sources)
        )
        self._lock = threading.Lock()

    def properties(self, device: torch.device) -> Properties:
        """Of this device."""
        return Properties(self.capability, NUM_SMS, SHARED_BYTES[self.capability])

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
        where = f"{source}: {kernel}"
        if (source, kernel) not in self.variants():
            raise EmulatorError(f"{where}: must be listed by variants({self.capability}), is not")
        if not 1 <= block <= MAX_THREADS:
            raise EmulatorError(f"{where}: block must be 1 to {MAX_THREADS} threads, got {block}")
        if any(not 1 <= size <= limit for size, limit in zip(grid, MAX_GRID, strict=True)):
            raise EmulatorError(f"{where}: grid must be at most {MAX_GRID}, got {grid}")
        if not 0 <= shared_bytes <= SHARED_BYTES[self.capability]:
            raise EmulatorError(
                f"{where}: shared_bytes must be at most {SHARED_BYTES[self.capability]}, got {shared_bytes}"
            )
        compiled = self.kernel(source, kernel)
        if len(arguments) != len(compiled.kinds):
            raise EmulatorError(
                f"{where}: must get {len(compiled.kinds)} arguments, got {len(arguments)}"
            )
        try:
            values = [
                packed(i, value, kind)
                for i, (value, kind) in enumerate(zip(arguments, compiled.kinds, strict=True))
            ]
        except EmulatorError as error:
            raise EmulatorError(f"{where}: {error}") from None
        fault = ctypes.c_ulonglong(0)
        launch = _Launch(
            compiled.body,
            (_Argument * len(values))(*values),
            (ctypes.c_longlong * len(self.seeds))(*self.seeds),
            ctypes.pointer(fault),
            shared_bytes,
            len(values),
            len(self.seeds),
            block,
            (ctypes.c_uint * 3)(*grid),
        )
        message = ctypes.create_string_buffer(1024)
        with self._lock:
            failed = runtime().emulator_launch(
                ctypes.byref(launch), message, ctypes.c_longlong(len(message))
            )
        if failed:
            raise EmulatorError(f"{where}: {message.value.decode()}")
