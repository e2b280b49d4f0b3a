"""The operator tests once more: through each instruction set, through the composition, and under sanitizers."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

import setup
from pointlib.ops._cpu import engine

ROOT = Path(__file__).resolve().parents[2]
HERE = Path(__file__).resolve().parent
ELSEWHERE = "cpu_paths|cpu_engine|memory|compile|cuda|best_device|timing|tun(e|able|ed)|box"
"""Files about loading, the C library (which a sanitizer replaces), torch.compile, GPUs, tuning, and code in numba."""
EVERYTHING = sorted(
    str(path.relative_to(ROOT))
    for path in [*HERE.glob("test_*.py"), *(ROOT / "tests/nn").glob("test_*.py")]
    if not re.search(ELSEWHERE, path.stem)
)
FEATURES = [p for p in EVERYTHING if "/ops/" in p and not re.search("coords|map|dataflow", p)]
"""What the inner loops differ in between the instruction sets; coordinates and maps are one code for all."""

ONCE_IS_ENOUGH = "forked or fewer_threads or compiles"
"""Tests that start processes or compile: no other for another instruction set, and no sanitizer survives them all."""

RUN = """
import sys, pytest
from pointlib.ops._cpu import engine
wanted = sys.argv[1]
in_use = engine.LIBRARY.pl_in_use().decode() if engine.LIBRARY else "composition"
assert wanted == in_use == engine.INSTRUCTION_SET, (wanted, in_use, engine.INSTRUCTION_SET)
sys.exit(pytest.main(sys.argv[2:]))
"""


def run_tests(name: str, files: list[str], *options: str, **environment: str) -> str:
    """Run test files in a process that computes with an instruction set, or fail with its output."""
    command = [
        sys.executable,
        "-c",
        RUN,
        name,
        "-q",
        "-x",
        "--capture=sys",
        "-m",
        "not slow",
        "-k",
        f"not ({ONCE_IS_ENOUGH})",
        *options,
        *files,
    ]
    done = subprocess.run(
        [*command, "-p", "no:cacheprovider"],
        cwd=ROOT,
        env={**os.environ, "POINTLIB_CPU": name, **environment},
        capture_output=True,
        text=True,
        timeout=1800,
    )
    output = done.stdout + done.stderr
    assert done.returncode == 0, output[-8000:]
    passed = re.search(r"(\d+) passed", output)
    assert passed and int(passed[1]) > 100, output[-8000:]
    return output


def present_sets() -> list[str]:
    """Instruction sets that the library holds and this processor has, best first."""
    return engine.LIBRARY.pl_instruction_sets().decode().split() if engine.LIBRARY else []


@pytest.mark.slow
@pytest.mark.parametrize("name", [*setup.INSTRUCTION_SETS, "composition"])
def test_operators_through(name: str) -> None:
    """Everything through the plain path, the composition and tiles; what computes on features through the others."""
    if name != "composition" and name not in present_sets():
        pytest.skip(
            f"needs {name}: this processor or this build of the engine has {present_sets()}"
        )
    everything = name in {"generic", "amx", "composition"}
    run_tests(name, EVERYTHING if everything else FEATURES)


@pytest.fixture(scope="module")
def sanitized(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Environment of a process that loads the engine built with the address and undefined-behaviour sanitizers."""
    compiler = setup.find_compiler()
    if compiler is None:
        pytest.skip("needs a C++17 compiler, setup.py finds none")
    runtimes = []
    for runtime in (
        "libasan.so",
        "libubsan.so",
        "libstdc++.so.6",
    ):  # the last: asan wraps its throw
        command = [*compiler, f"-print-file-name={runtime}"]
        path = Path(subprocess.run(command, capture_output=True, text=True).stdout.strip())
        if not path.is_absolute():
            pytest.skip(f"needs {runtime}, {shlex.join(compiler)} has none")
        runtimes.append(str(path.resolve()))
    library = tmp_path_factory.mktemp("sanitized") / "libpointlib_cpu.so"
    flags = ("-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-g", "-O1", "-w")
    setup.compile_engine(compiler, library, flags, engine.SOURCES)
    return {
        "POINTLIB_CPU_LIBRARY": str(library),
        "LD_PRELOAD": ":".join(runtimes),
        # GCC before 14 aligns the frames of use-after-return to 32 bytes, less than a vector of AVX-512 (bug 110027).
        "ASAN_OPTIONS": "detect_leaks=0:detect_stack_use_after_return=0",
        "UBSAN_OPTIONS": "print_stacktrace=1",
    }


@pytest.mark.slow
@pytest.mark.parametrize("path", ["plain", "best"])
def test_operators_under_sanitizers(path: str, sanitized: dict[str, str]) -> None:
    if not present_sets():
        pytest.skip("needs the compiled engine, this is the composition")
    name, files = ("generic", EVERYTHING) if path == "plain" else (present_sets()[0], FEATURES)
    run_tests(name, files, "-p", "no:faulthandler", **sanitized)  # which hides the report


@pytest.mark.slow
def test_the_sanitizers_see_a_fault(sanitized: dict[str, str]) -> None:
    """Reading a name without an end is reported, so that the runs above mean something."""
    code = (
        "import ctypes, torch; from pointlib.ops._cpu import engine\n"
        "engine.call('pl_use', torch.tensor(list(b'gen'), dtype=torch.uint8))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env={**os.environ, **sanitized},
        capture_output=True,
        text=True,
    )
    assert done.returncode != 0
    assert "AddressSanitizer" in done.stderr
