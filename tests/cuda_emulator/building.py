"""Builds the emulator's runtime and single kernels with the host's C++ compiler, and keeps what it built on disk."""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from pointlib.ops._cuda import engine

HERE = Path(__file__).resolve().parent
MAX_THREADS = 1024
RUNTIME = ("launch.cpp", "scheduler.cpp", "faults.cpp", "copies.cpp", "tensor_cores.cpp")

FLAGS = [
    *("-std=c++17", "-g1", "-gdwarf-4", "-fPIC", "-shared", "-fvisibility=hidden"),
    *("-fno-strict-aliasing", "-fwrapv", "-ffp-contract=off"),
    *("-U_FORTIFY_SOURCE", "-fno-stack-protector"),  # both look askance at stacks that are switched
    *("-Wall", "-Wextra", "-Werror", "-Wno-unknown-warning-option"),
]
KERNEL_FLAGS = [
    *("-O1", "-DPOINTLIB_CUDA_EMULATOR", "-include", "cuda_emulator.h"),
    *("-fsanitize=alignment,bounds,shift-exponent", "-fsanitize-undefined-trap-on-error"),
    "-fstack-clash-protection",  # a large array meets the page below the stack, not what is beyond
    *("-Wno-unknown-pragmas", "-Wno-unused-function", "-Wno-unused-parameter"),
    *("-Wno-maybe-uninitialized", "-Wno-sign-compare"),
]
"""What the compiler warns of otherwise is a mistake on a device too."""


class EmulatorError(RuntimeError):
    """A kernel does not compile, is launched wrongly, or does what is undefined on a device."""


def compiler() -> str | None:
    """Path of the C++ compiler: CXX, else g++."""
    return shutil.which(os.environ.get("CXX", "g++"))


@functools.cache
def compiler_version() -> str:
    """First line of what the compiler says of itself."""
    command = [compiler() or "g++", "--version"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.split("\n")[0]


def cache_folder() -> Path:
    """Where what was built stays between runs.

    Raises:
        EmulatorError: If it is another user's, whose libraries must not be loaded.
    """
    folder = Path(tempfile.gettempdir()) / f"pointlib-emulator-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    if folder.stat().st_uid != os.getuid():
        raise EmulatorError(f"{folder} must belong to this user: remove it or set TMPDIR")
    return folder


def included(name: str, folders: Sequence[Path], found: dict[str, bytes]) -> None:
    """Collect a file and, in turn, all that it includes from these folders."""
    path = next((folder / name for folder in folders if (folder / name).is_file()), None)
    if path is None or str(path) in found:
        return
    found[str(path)] = path.read_bytes()
    for inner in re.findall(rb'^\s*#\s*include\s+[<"]([^>"]+)[>"]', found[str(path)], re.MULTILINE):
        included(inner.decode(), [path.parent, *folders], found)


def build(what: str, text: str, flags: Sequence[str], folders: Sequence[Path]) -> Path:
    """Compile a translation unit into a shared library, or find the one built before.

    Args:
        what: Its name in a message.
        text: The translation unit.
        flags: Of the compiler, besides FLAGS.
        folders: Where included files are looked for. Their contents are part of the key of what is kept.

    Raises:
        EmulatorError: With the compiler's own words.
    """
    command = [compiler() or "g++", *FLAGS, *flags, *(f"-I{folder}" for folder in folders)]
    files: dict[str, bytes] = {}
    for name in ["cuda_emulator.h", *re.findall(r'#include "([^"]+)"', text)]:
        included(name, folders, files)
    contents = (compiler_version(), command, text, sorted(files.items()))
    key = hashlib.sha256(repr(contents).encode()).hexdigest()[:32]
    library = cache_folder() / f"{key}.so"
    if library.exists():
        return library
    with tempfile.TemporaryDirectory(dir=cache_folder()) as scratch:
        source, output = Path(scratch) / "unit.cpp", Path(scratch) / "unit.so"
        source.write_text(text)
        compilation = [*command, "-o", str(output), str(source)]
        done = subprocess.run(compilation, capture_output=True, text=True)
        if done.returncode:
            raise EmulatorError(f"{what} does not compile:\n{done.stderr[:8000]}")
        output.replace(library)  # a whole file or none, whoever else builds the same
    return library


@functools.cache
def runtime() -> ctypes.CDLL:
    """The runtime, in whose symbols the kernels' libraries find what they call."""
    text = "".join(f'#include "{file}"\n' for file in RUNTIME)
    return ctypes.CDLL(str(build("the emulator", text, ["-O3"], [HERE])), mode=ctypes.RTLD_GLOBAL)


BOUNDED = re.compile(
    r"(?:template\s*<(?P<parameters>[^{};]*?)>\s*)?"
    r"__global__\s+void\s+__launch_bounds__\((?P<bounds>(?:[^()]|\([^()]*\))*)\)\s*(?P<name>\w+)\s*\("
)
"""How a kernel states the threads that its block may have; g++ has nothing that could keep it."""


def bound_of(source: str, expression: str, folders: Sequence[Path]) -> tuple[str, str]:
    """C++ for the launch bounds of a kernel: a declaration, and the expression whose value they are."""
    files: dict[str, bytes] = {}
    included(source, folders, files)
    parts = re.match(r"((?:\w+::)*)(\w+)", expression)
    assert parts, expression
    scope, name, arguments = parts[1], parts[2], expression[parts.end() :]
    for text in files.values():
        for found in BOUNDED.finditer(text.decode()):
            if found["name"] == name:
                template = f"template <{found['parameters']}> " if arguments else ""
                value = f"constexpr long long bound_of_{name} = emulator::first({found['bounds']});"
                opened = f"namespace {scope.removesuffix('::')} {{ {template}{value} }}"
                return opened, f"{scope}bound_of_{name}{arguments}"
    return "", str(MAX_THREADS)


class Kind(NamedTuple):
    """What a parameter of a kernel takes; kernel_entry.h explains the letters.

    Attributes:
        passing: How it is passed: `i` int64_t, `f` float, `p` const pointer, `P` pointer, `?` anything else.
        size: Bytes of an element; 0 where any will do.
        element: `f` floating point, `h` __half, `b` __nv_bfloat16, `i` integer, `?` anything.
    """

    passing: str
    size: int
    element: str


class _Kind(ctypes.Structure):
    _fields_ = (("passing", ctypes.c_char), ("size", ctypes.c_byte), ("element", ctypes.c_char))


class Kernel:
    """One compiled kernel.

    Args:
        source: File of the kernel.
        expression: The kernel's name with its template arguments.
        capability: Compute capability, which `__CUDA_ARCH__` tells the source.
        folder: Where the source is; what it includes may be in cuda/ too.

    Attributes:
        kinds: Of its parameters.
        max_threads: Of a block, which `__launch_bounds__` promised the compiler.
        body: Address of the function that runs one thread.
    """

    def __init__(self, source: str, expression: str, capability: int, folder: Path) -> None:
        runtime()
        folders = [folder, engine.SOURCES, HERE]
        declaration, bound = bound_of(source, expression, folders)
        text = f"""#include "{source}"
#include "kernel_entry.h"
namespace {{
const auto kernel = &({expression});
}}
{declaration}
extern "C" EMULATOR_API long long emulated_bound() {{
    return {bound};
}}
extern "C" EMULATOR_API const emulator::Kind* emulated_kinds() {{
    return emulator::kinds_of(kernel);
}}
extern "C" EMULATOR_API void emulated_body(void* const* arguments) {{
    emulator::call(kernel, arguments);
}}
"""
        flags = [*KERNEL_FLAGS, f"-D__CUDA_ARCH__={capability}0"]
        self._path = build(f"{source}: {expression} (sm_{capability})", text, flags, folders)
        library = ctypes.CDLL(str(self._path))
        library.emulated_kinds.restype = ctypes.POINTER(_Kind)
        self.kinds: list[Kind] = []
        for kind in library.emulated_kinds():
            if kind.passing == b"\0":
                break
            self.kinds.append(Kind(kind.passing.decode(), kind.size, kind.element.decode()))
        library.emulated_bound.restype = ctypes.c_longlong
        self.max_threads: int = library.emulated_bound()
        self.body = ctypes.cast(library.emulated_body, ctypes.c_void_p)

    def lines(self, offset: int) -> str:
        """Source lines of an instruction, innermost first, where binutils is there to tell them."""
        tool = shutil.which("addr2line")
        if tool is None:
            return ""
        command = [tool, "-i", "-e", str(self._path), hex(offset)]
        done = subprocess.run(command, capture_output=True, text=True)
        places = [line.split(" ")[0].split("/")[-1] for line in done.stdout.splitlines()]
        return ", called at ".join(place for place in places if re.search(r"\.cuh?:\d+$", place))
