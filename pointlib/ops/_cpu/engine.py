"""Loads the compiled CPU engine (pointlib/csrc) and calls it; says once when there is none.

The environment variable POINTLIB_CPU chooses what computes, when the package is imported: `auto` (the default) is the
best instruction set of the processor, a name such as `avx2` is that one, `composition` is torch, numpy and numba.
POINTLIB_CPU_LIBRARY names another build of the library, such as one with sanitizers.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

ABI = 1
LIBRARY_NAME = "libpointlib_cpu.so"
PACKAGE = Path(__file__).resolve().parents[2]
SOURCES = PACKAGE / "csrc"

Function = TypeVar("Function", bound=Callable[..., Any])


class EngineError(RuntimeError):
    """A call into the compiled engine failed; the message is the engine's."""


def source_hash(sources: Path) -> str:
    """What identifies the sources a library was built from; setup.py compiles it in."""
    digest = hashlib.sha256()
    for path in sorted(p for p in sources.iterdir() if p.suffix in {".cpp", ".h", ".inc"}):
        digest.update(path.name.encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:16]


def _open(path: Path) -> ctypes.CDLL:
    """Load a library and refuse one that was not built from the sources that stand beside it."""
    library = ctypes.CDLL(str(path))
    for name in ("pl_source_hash", "pl_last_error", "pl_instruction_sets"):
        getattr(library, name).restype = ctypes.c_char_p
    library.pl_abi.restype = ctypes.c_int64
    remedy = "Build it again: make install, or pip install ."
    if library.pl_abi() != ABI:
        raise ImportError(f"pointlib: {path} must have ABI {ABI}, got {library.pl_abi()}. {remedy}")
    if SOURCES.is_dir() and library.pl_source_hash().decode() != source_hash(SOURCES):
        raise ImportError(
            f"pointlib: {path} must be built from {SOURCES}, got older code. {remedy}"
        )
    return library


def _load(choice: str) -> tuple[ctypes.CDLL | None, str]:
    """The library and the instruction set in use, or None and "composition"."""
    if choice == "composition":
        return None, choice
    named = os.environ.get("POINTLIB_CPU_LIBRARY")
    path = Path(named) if named else PACKAGE / LIBRARY_NAME
    if not path.exists():
        if named or choice != "auto":
            raise ImportError(
                f"pointlib: POINTLIB_CPU={choice} must find the compiled engine, got no file {path}. "
                "Build it with a C++ compiler: make install, or pip install ."
            )
        warnings.warn(
            "pointlib: the CPU engine is not compiled, so operators run as torch compositions: right, but several "
            "times slower. Install a C++ compiler (apt install g++) and then pointlib again.",
            stacklevel=2,
        )
        return None, "composition"
    library = _open(path)
    sets = library.pl_instruction_sets().decode().split()
    chosen = sets[0] if choice == "auto" else choice
    if chosen not in sets:
        raise ImportError(
            f"pointlib: POINTLIB_CPU must be auto, composition or one of {', '.join(sets)}, got {choice!r}."
        )
    library.pl_use(chosen.encode())
    return library, chosen


LIBRARY, INSTRUCTION_SET = _load(os.environ.get("POINTLIB_CPU", "auto"))


def or_composition(composition: Function) -> Callable[[Function], Function]:
    """Decorate a native implementation: where no engine is loaded, `composition` stands in its place."""
    return lambda native: composition if LIBRARY is None else native


def call(name: str, *arguments: Tensor | int | float | ctypes.Structure | None) -> int:
    """Call a function of the engine; a C++ int64_t, const void*, float or struct pointer an argument.

    Tensors must be contiguous and on the CPU, and are passed as their address; None is a null pointer; the engine
    uses `torch.get_num_threads()` where a function takes the number of threads.

    Raises:
        EngineError: If the function fails.
    """
    assert LIBRARY is not None
    result = getattr(LIBRARY, name)(*map(_convert, arguments))
    if result < 0:
        raise EngineError(f"{name}: {LIBRARY.pl_last_error().decode()}")
    return int(result)


def _convert(argument: Tensor | int | float | ctypes.Structure | None) -> Any:
    if isinstance(argument, Tensor):
        assert argument.is_contiguous() and argument.device.type == "cpu"
        return ctypes.c_void_p(argument.data_ptr())
    if isinstance(argument, int):
        return ctypes.c_int64(argument)
    if isinstance(argument, float):
        return ctypes.c_float(argument)
    return None if argument is None else ctypes.byref(argument)


def num_threads() -> int:
    """Threads that a call may use: torch's own setting."""
    return torch.get_num_threads()
