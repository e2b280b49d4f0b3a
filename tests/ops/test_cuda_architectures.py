"""Every variant of every kernel compiles for every architecture, and keeps its budget of registers and memory.

NVRTC needs no GPU for that. Run with -s to see the list: family, variants, most registers, seconds.
"""

from __future__ import annotations

import os
import re
import struct
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import pytest

from pointlib.ops._cuda import compiler, engine, quantized, tiles, weight_grad, weight_stationary
from pointlib.ops._cuda.types import ELEMENTS

ARCHITECTURES = [
    "sm_75",
    "sm_80",
    "sm_86",
    "sm_87",
    "sm_89",
    "sm_90a",
    "sm_100a",
    "sm_110",
    "sm_120",
]
KERNELS_A_PROGRAM = 8
"""Large enough that reading the headers does not count, small enough to keep all processors busy."""
REGISTERS = 65536
"""Of a multiprocessor, on every architecture; a thread gets a multiple of 8."""
STACK_BYTES = 64
"""The slow path of sinf and cosf, for large arguments, keeps some numbers there."""
MAX_THREADS = 5
"""The attribute of `__launch_bounds__` in a cubin's section .nv.info of the kernel."""


class Usage(NamedTuple):
    """What ptxas reports of one kernel, and the threads of its `__launch_bounds__`."""

    registers: int
    spill_bytes: int
    stack_bytes: int
    static_shared_bytes: int
    threads: int


@pytest.fixture(scope="module", autouse=True)
def nvrtc() -> None:
    """Skip where there is no NVRTC, except in continuous integration."""
    try:
        compiler.version()
    except ImportError as error:
        if os.environ.get("CI"):
            raise
        pytest.skip(str(error))


def sections(cubin: bytes) -> Iterator[tuple[str, bytes]]:
    """Name and content of each section of a 64-bit ELF file."""
    (table,) = struct.unpack_from("<Q", cubin, 0x28)
    size, count, names = struct.unpack_from("<HHH", cubin, 0x3A)
    headers = [struct.unpack_from("<IIQQQQ", cubin, table + i * size) for i in range(count)]
    text = headers[names][4]
    for name, kind, _, _, offset, length in headers:
        start = text + name
        content = b"" if kind == 8 else cubin[offset : offset + length]  # 8: occupies no space
        yield cubin[start : cubin.index(b"\0", start)].decode(), content


def launch_bounds(cubin: bytes) -> dict[str, int]:
    """Symbol of each kernel that has them -> most threads a block."""
    found = {}
    for name, content in sections(cubin):
        if not name.startswith(".nv.info."):
            continue
        at = 0
        while at < len(content):
            form, attribute, size = struct.unpack_from("<BBH", content, at)
            if attribute == MAX_THREADS and form == 4:
                x, y, z = struct.unpack_from("<III", content, at + 4)
                found[name.removeprefix(".nv.info.")] = x * y * z
            at += 4 + (size if form == 4 else 0)
    return found


ENTRY = re.compile(r"Compiling entry function '(\w+)'.*?(?=Compiling entry function|\Z)", re.DOTALL)


def number(pattern: str, text: str) -> int:
    match = re.search(pattern, text)
    return int(match[1]) if match else 0


def usage(made: compiler.Compiled) -> dict[str, Usage]:
    """Symbol -> what ptxas reports."""
    bounds = launch_bounds(made.code)
    found = {}
    for entry in ENTRY.finditer(made.report):
        text, symbol = entry[0], entry[1]
        spills = number(r"(\d+) bytes spill stores", text) + number(
            r"(\d+) bytes spill loads", text
        )
        found[symbol] = Usage(
            number(r"Used (\d+) registers", text),
            spills,
            number(r"(\d+) bytes stack frame", text),
            number(r"(\d+) bytes smem", text),
            bounds.get(symbol, 1024),
        )
    return found


def violations(kernel: str, used: Usage) -> list[str]:
    """What of its budget a kernel exceeds."""
    found = []
    if not used.registers:
        found.append("ptxas reports no registers")
    if used.spill_bytes:
        found.append(f"spills {used.spill_bytes} bytes")
    if used.stack_bytes > STACK_BYTES:
        found.append(f"{used.stack_bytes} bytes of stack, more than {STACK_BYTES}")
    if used.static_shared_bytes:
        found.append(
            f"{used.static_shared_bytes} bytes of static shared memory; it must be dynamic"
        )
    needed = -(-used.registers // 8) * 8 * used.threads
    if needed > REGISTERS:
        found.append(
            f"{used.registers} registers for each of {used.threads} threads, more than {REGISTERS} in all; "
            "state the block in __launch_bounds__"
        )
    return [f"{kernel}: {what}" for what in found]


def compile_chunk(source: str, kernels: list[str], architecture: str) -> dict[str, Usage]:
    """Name expression -> what ptxas reports."""
    made = compiler.compile_kernels(source, kernels, architecture)
    assert set(made.symbols) == set(kernels)
    used = usage(made)
    return {kernel: used[made.symbols[kernel].decode()] for kernel in kernels}


def jobs(variants: compiler.Variants, capability: int) -> Iterator[tuple[str, list[str]]]:
    """The variants of a family by source, a few a program; a variant that is listed twice is an error."""
    by_source: dict[str, list[str]] = {}
    for source, kernel in variants(capability):
        assert kernel not in by_source.setdefault(source, []), f"listed twice: {kernel}"
        by_source[source].append(kernel)
    for source, kernels in by_source.items():
        for start in range(0, len(kernels), KERNELS_A_PROGRAM):
            yield source, kernels[start : start + KERNELS_A_PROGRAM]


@pytest.mark.slow
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_variant_compiles_within_its_budget(architecture: str) -> None:
    capability = compiler.capability_of(architecture)
    if compiler.architecture(capability) != architecture and not os.environ.get("CI"):
        pytest.skip(f"NVRTC {compiler.version()} does not know {architecture}")
    problems: list[str] = []
    assert compiler.families()
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        start = time.perf_counter()
        running = {
            family: [
                pool.submit(compile_chunk, source, kernels, architecture)
                for source, kernels in jobs(variants, capability)
            ]
            for family, variants in compiler.families().items()
        }
        for family, chunks in running.items():
            used: dict[str, Usage] = {}
            for chunk in chunks:
                try:
                    used |= chunk.result()
                except compiler.CompileError as error:
                    problems.append(str(error))
            most = max((use.registers for use in used.values()), default=0)
            seconds = time.perf_counter() - start
            print(
                f"{architecture:8} {family:24} {len(used):4} variants, {most:3} registers, {seconds:5.1f} s"
            )
            problems += [line for kernel, use in used.items() for line in violations(kernel, use)]
    if problems:
        pytest.fail("\n".join(problems), pytrace=False)


SHARED_KIB = {75: 64, 80: 163, 86: 99, 87: 163, 89: 99, 90: 227, 100: 227, 110: 227, 120: 99}
"""That a block may use, from the table of capabilities in the CUDA programming guide."""
PRODUCT = re.compile(r"_(tensor|exact)<(\w+), (\d+), (\d+), \d+>")


@pytest.mark.parametrize("capability", SHARED_KIB)
def test_tiles_fit_into_shared_memory(capability: int) -> None:
    dtypes = {name: dtype for dtype, name in ELEMENTS.items()}
    sizes = {f"int8 {tile}": quantized._shared_bytes(*tile, capability) for tile in quantized.TILES}
    for family in (weight_grad, weight_stationary):
        for _, kernel in family.variants(capability):
            if match := PRODUCT.search(kernel):
                m, n = int(match[3]), int(match[4])
                product = tiles.Product(dtypes[match[2]], m, n, match[1] == "tensor")
                transposed = family is weight_grad
                sizes[kernel] = product.shared_bytes(capability, transposed) + 4 * m
    assert len(sizes) > 20
    limit = SHARED_KIB[capability] << 10
    assert {kernel: size for kernel, size in sizes.items() if size > limit} == {}


BROKEN = """// Kernels that break one rule each.
template <int N>
__global__ void __launch_bounds__(1024) spilling(float* data) {
    float kept[N];
#pragma unroll
    for (int i = 0; i < N; ++i) kept[i] = data[i * 1024 + threadIdx.x];
    __syncthreads();
#pragma unroll
    for (int i = 0; i < N; ++i) data[(i * 7 + 3) % N * 1024 + threadIdx.x] = kept[i] * kept[N - 1 - i];
}
__global__ void __launch_bounds__(64) stacking(float* data, long long where) {
    float kept[64] = {};
    for (int i = 0; i < 64; ++i) kept[i * where % 64] += data[i];
    for (int i = 0; i < 64; ++i) data[i] = kept[i];
}
__global__ void __launch_bounds__(64) sharing(float* data) {
    __shared__ float kept[64];
    kept[threadIdx.x] = data[threadIdx.x];
    __syncthreads();
    data[threadIdx.x] = kept[63 - threadIdx.x];
}
template <int N>
__global__ void unbounded(float* data) {
    float kept[N];
#pragma unroll
    for (int i = 0; i < N; ++i) kept[i] = data[i * 1024 + threadIdx.x];
    __syncthreads();
#pragma unroll
    for (int i = 0; i < N; ++i) data[(i * 7 + 3) % N * 1024 + threadIdx.x] = kept[i] * kept[N - 1 - i];
}
"""


def test_a_kernel_over_its_budget_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "broken.cu").write_text(BROKEN)
    monkeypatch.setattr(engine, "SOURCES", tmp_path)
    complaints = {
        "spilling<120>": "spills",
        "stacking": "bytes of stack",
        "sharing": "static shared memory",
        "unbounded<120>": "__launch_bounds__",
    }
    used = compile_chunk("broken.cu", list(complaints), "sm_80")
    assert used["spilling<120>"].threads == 1024
    assert used["sharing"].threads == 64
    for kernel, complaint in complaints.items():
        found = violations(kernel, used[kernel])
        assert len(found) == 1 and complaint in found[0], found
    with pytest.raises(AssertionError, match="listed twice"):
        list(jobs(lambda capability: iter([("broken.cu", "sharing")] * 2), 80))
