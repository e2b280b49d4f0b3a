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
REMEDY = (
    "Build it again on this machine (make install, or pip install .), or set POINTLIB_CPU=composition to do without "
    "it, several times slower."
)

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
    """Load a library; refuse one that does not load here or was not built from the sources that stand beside it."""
    try:
        library = ctypes.CDLL(str(path))
        for name in ("pl_source_hash", "pl_last_error", "pl_instruction_sets", "pl_in_use"):
            getattr(library, name).restype = ctypes.c_char_p
        library.pl_abi.restype = ctypes.c_int64
    except (
        OSError,
        AttributeError,
    ) as error:  # corrupt, of another architecture, too new for this libc
        raise ImportError(
            f"pointlib: {path} must be the CPU engine, built for this machine, got {error}. {REMEDY}"
        ) from error
    if library.pl_abi() != ABI:
        raise ImportError(f"pointlib: {path} must have ABI {ABI}, got {library.pl_abi()}. {REMEDY}")
    if SOURCES.is_dir() and library.pl_source_hash().decode() != source_hash(SOURCES):
        raise ImportError(
            f"pointlib: {path} must be built from {SOURCES}, got a build of other code. {REMEDY}"
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
            "times slower. Install a C++ compiler (apt install g++) and then pointlib again; with "
            "POINTLIB_BUILD_ENGINE=require its installation stops where the engine cannot be compiled, and tells why.",
            stacklevel=2,
        )
        return None, "composition"
    library = _open(path)
    sets = library.pl_instruction_sets().decode().split()
    chosen = sets[0] if choice == "auto" else choice
    if chosen not in sets or library.pl_use(chosen.encode()):
        raise ImportError(
            f"pointlib: POINTLIB_CPU must be auto, composition or, on this processor, {' or '.join(sets)}, "
            f"got {choice!r}."
        )
    return library, chosen


LIBRARY, INSTRUCTION_SET = _load(os.environ.get("POINTLIB_CPU") or "auto")


def or_composition(composition: Function) -> Callable[[Function], Function]:
    """Decorate a native implementation: where no engine is loaded, `composition` stands in its place."""
    return lambda native: composition if LIBRARY is None else native


Argument = Tensor | int | float | ctypes.Structure | None
_functions: dict[tuple[Any, ...], Any] = {}
"""(name, type of each argument) -> the function with these types declared, so that a call converts nothing twice."""
_PLAIN = frozenset({int, float, type(None)})


def call(name: str, *arguments: Argument) -> int:
    """Call a function of the engine; a C++ int64_t, const void*, float or struct pointer an argument.

    Tensors must be contiguous and on the CPU, and are passed as their address; None is a null pointer. The
    interpreter lock is released meanwhile, and a signal is handled when the function has returned.

    Raises:
        EngineError: If the function fails.
    """
    function = _functions.get((name, *map(type, arguments))) or _declare(name, arguments)
    result: int = function(*map(_pass, arguments))
    if result < 0:
        assert LIBRARY is not None
        raise EngineError(f"{name}: {LIBRARY.pl_last_error().decode()}")
    return result


def _declare(name: str, arguments: tuple[Argument, ...]) -> Any:
    """A function object of its own for each combination of types; ctypes would pass a bare int as 32 bits."""
    assert LIBRARY is not None
    function = LIBRARY[name]
    function.restype = ctypes.c_int64
    function.argtypes = [
        ctypes.c_int64
        if isinstance(argument, int)
        else (ctypes.c_float if isinstance(argument, float) else ctypes.c_void_p)
        for argument in arguments
    ]
    _functions[(name, *map(type, arguments))] = function
    return function


def _pass(argument: Argument) -> Any:
    if type(argument) in _PLAIN:
        return argument
    if isinstance(argument, Tensor):
        assert argument.is_cpu and argument.is_contiguous()
        return argument.data_ptr()
    return ctypes.byref(argument) if isinstance(argument, ctypes.Structure) else argument


_forked = False


def _in_child() -> None:
    global _forked
    _forked = True


os.register_at_fork(after_in_child=_in_child)


def num_threads() -> int:
    """Threads that a call may use: torch's own setting, but 1 in a forked process.

    OpenMP's threads do not survive a fork, and a child that asks for more than one waits for them for ever; torch's
    functions do, unless it calls torch.set_num_threads(1) as DataLoader's workers do. The results have the same bits
    for any number.
    """
    return 1 if _forked else torch.get_num_threads()
