"""NVRTC: which architecture a device needs, where CUDA's headers are, and kernels compiled from what stands in cuda/.

Nothing here needs a GPU. NVRTC and its Python names come with CUDA builds of torch, cuda.core by itself.
"""

from __future__ import annotations

import importlib
import importlib.util
import io
import os
import pkgutil
import re
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import torch

from pointlib.ops import OLDEST_CAPABILITY, _cuda
from pointlib.ops._cuda import engine

OPTIONS: dict[str, Any] = {"std": "c++17", "lineinfo": True, "ptxas_options": ["-v"]}
"""NVRTC's defaults otherwise: no fast math (denormals kept, exact division and square root), fused multiply-add."""
OLDEST = 10 * OLDEST_CAPABILITY[0] + OLDEST_CAPABILITY[1]
ARCHITECTURE_SPECIFIC = (9, 10)
"""Major capabilities whose `a` features (wgmma, tcgen05) kernels may use; such code runs on that one capability."""
HEADER = "cuda_fp16.h"
INCLUDE = re.compile(r'^\s*#include\s+"([^"]+)"', re.MULTILINE)

Variants = Callable[[int], Iterator[tuple[str, str]]]
"""Capability -> every (source, name expression) that an operator family may launch on it."""


class CompileError(RuntimeError):
    """NVRTC refused a kernel; the message holds the kernel, the architecture and NVRTC's words."""


class Compiled(NamedTuple):
    """Machine code (cubin, or PTX for `compute_*`), the symbol of each name expression, and ptxas' report."""

    code: bytes
    symbols: dict[str, bytes]
    report: str


@cache
def require_cuda_core() -> None:
    """Raise ImportError, with the pip command, unless cuda.core and its bindings can be imported."""
    try:
        from cuda.bindings import nvrtc  # noqa: F401
        from cuda.core import Program  # noqa: F401
    except ImportError as error:
        major = (torch.version.cuda or "13").partition(".")[0]
        raise ImportError(
            f"pointlib: CUDA kernels must be compiled through cuda.core 1.0 or newer, got {error!r}. Install it: "
            f'pip install "cuda-core>=1" "cuda-bindings=={major}.*"'
        ) from error


@cache
def version() -> tuple[int, int]:
    """NVRTC's release, such as (13, 0)."""
    return _ask_nvrtc("nvrtcVersion")


def _ask_nvrtc(question: str) -> Any:
    """What a function of NVRTC without arguments returns; loads the library at the first call."""
    require_cuda_core()
    from cuda.bindings import nvrtc

    try:
        status, *answer = getattr(nvrtc, question)()
    except RuntimeError as error:  # of the search for the library
        major = (torch.version.cuda or "13").partition(".")[0]
        package = "nvidia-cuda-nvrtc" if int(major) > 12 else f"nvidia-cuda-nvrtc-cu{major}"
        raise ImportError(
            f"pointlib: NVRTC must be installed, in the release of torch's CUDA, got {error}. It comes with "
            f'CUDA builds of torch, or: pip install "{package}=={major}.*"'
        ) from error
    if int(status):
        raise RuntimeError(f"pointlib: NVRTC must answer {question}, got error {int(status)}.")
    return answer[0] if len(answer) == 1 else tuple(answer)


def architecture(capability: int) -> str:
    """What to compile for, given a device's capability: `sm_87`, `sm_90a`, or PTX where NVRTC is older than the device.

    Args:
        capability: As one number, such as 87.

    Raises:
        RuntimeError: The device is older than any that the kernels are written for, or than NVRTC supports.
    """
    known = _ask_nvrtc("nvrtcGetSupportedArchs")
    oldest = max(OLDEST, min(known))
    if capability < oldest:
        older = "An older CUDA build of torch knows it; or use the CPU"
        remedy = older if capability >= OLDEST else "Use the CPU"
        raise RuntimeError(
            f"pointlib: the GPU must have compute capability {oldest / 10:.1f} or newer, got {capability / 10:.1f}. "
            f"{remedy}."
        )
    if capability in known:
        return f"sm_{capability}{'a' if capability // 10 in ARCHITECTURE_SPECIFIC else ''}"
    return f"compute_{max(number for number in known if number < capability)}"


def capability_of(name: str) -> int:
    """The number in an architecture's name: 90 of `sm_90a`.

    Raises:
        ValueError: It is no such name.
    """
    match = re.fullmatch(r"(?:sm|compute)_(\d{2,3})[af]?", name)
    if match is None:
        raise ValueError(f"capability_of: an architecture must be named like sm_87, got {name!r}.")
    return int(match[1])


@cache
def toolkit_headers() -> Path:
    """Folder with CUDA's headers, of NVRTC's major release: of the packages nvidia-cuda-runtime*, or of a toolkit.

    Raises:
        FileNotFoundError: There is none.
    """
    from cuda.pathfinder import find_nvidia_header_directory

    nvidia = importlib.util.find_spec("nvidia")
    roots = (nvidia and nvidia.submodule_search_locations) or ()
    folders = [path for root in roots for path in sorted(Path(root).glob("*/include"))]
    named = (os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH"), "/usr/local/cuda")
    folders += [Path(root, "include") for root in named if root]
    located = find_nvidia_header_directory("cudart")  # knows conda's places too
    folders += [Path(located)] if located else []
    major = version()[0]
    for folder in folders:
        if (folder / HEADER).is_file() and _major_release(folder) == major:
            return folder
    package = "nvidia-cuda-runtime" if major > 12 else f"nvidia-cuda-runtime-cu{major}"
    raise FileNotFoundError(
        f"pointlib: {HEADER} of CUDA {major} must be found, got none in {', '.join(map(str, folders))}. Install it: "
        f'pip install "{package}=={major}.*", or name a CUDA {major} toolkit in CUDA_HOME.'
    )


def _major_release(folder: Path) -> int | None:
    header = folder / "cuda_runtime_api.h"
    text = header.read_text(errors="replace") if header.is_file() else ""
    match = re.search(r"#define\s+CUDART_VERSION\s+(\d+)", text)
    return int(match[1]) // 1000 if match else None


def source_files(source: str) -> list[Path]:
    """A file of cuda/ and every file there that it includes, in the order of inclusion.

    Raises:
        FileNotFoundError: It is missing.
    """
    first = engine.SOURCES / source
    if not first.is_file():
        raise FileNotFoundError(
            f"pointlib: the device code {source} must be in {engine.SOURCES}, got no such file. Install pointlib "
            "again, with pip."
        )
    found: list[Path] = []
    wanted = [first]
    while wanted:
        path = wanted.pop(0)
        if path not in found and path.is_file():  # the emulator's are not there
            found.append(path)
            wanted += [path.parent / name for name in INCLUDE.findall(path.read_text("utf-8"))]
    return found


def compile_kernels(source: str, kernels: Sequence[str], name: str) -> Compiled:
    """Compile variants of one file of cuda/ for an architecture, in one program.

    Args:
        source: File in cuda/.
        kernels: Name expressions, such as `pointlib::gather_rows<float>`.
        name: Of the architecture, as of `architecture`.

    Raises:
        CompileError: NVRTC refuses.
    """
    require_cuda_core()
    from cuda.core import Program, ProgramOptions

    path = source_files(source)[0]
    options = ProgramOptions(
        name=str(path),
        arch=name,
        include_path=[str(path.parent), str(toolkit_headers())],
        **OPTIONS,
    )
    log = io.StringIO()
    program = Program(path.read_text("utf-8"), "c++", options)
    try:
        form = "ptx" if name.startswith("compute") else "cubin"
        made = program.compile(form, name_expressions=tuple(kernels), logs=log)
    except Exception as error:  # cuda.core has no public class for it
        raise CompileError(
            f"pointlib: {source} must compile for {name} with NVRTC {'.'.join(map(str, version()))}, got, for "
            f"{', '.join(kernels)}:\n{error}"
        ) from error
    finally:
        program.close()
    code = made.code.encode() if isinstance(made.code, str) else bytes(made.code)
    return Compiled(code, made.symbol_mapping, log.getvalue())


def families() -> dict[str, Variants]:
    """Every operator family that has kernels -> its variants."""
    found = {}
    for module in pkgutil.iter_modules(_cuda.__path__):
        loaded = importlib.import_module(f"{_cuda.__name__}.{module.name}")
        if hasattr(loaded, "variants"):
            found[module.name] = loaded.variants
    return found
