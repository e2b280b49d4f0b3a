"""The tile kernels of AMX, compiled with a software model of the tile registers, pass the tests of their operators."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
from pathlib import Path

import pytest

import setup

ROOT = Path(__file__).resolve().parents[2]
TESTS = ("tests/ops/test_quantized.py", "tests/ops/test_fused_conv.py")


@pytest.mark.slow
def test_emulated_tiles(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compiler = setup.find_compiler()
    if compiler is None:
        pytest.skip("needs a C++17 compiler, setup.py finds none")
    monkeypatch.setattr(
        setup, "INSTRUCTION_SETS", {k: setup.INSTRUCTION_SETS[k] for k in ("generic", "amx")}
    )
    library = tmp_path / "emulated.so"
    setup.compile_engine(
        compiler, library, ("-O1", "-DPOINTLIB_EMULATE_AMX"), ROOT / "pointlib" / "csrc"
    )
    names = ctypes.CDLL(str(library)).pl_instruction_sets
    names.restype = ctypes.c_char_p
    if "amx" not in names().decode().split():
        pytest.skip("the rest of the set's instructions (AVX-512) must be those of this processor")
    environment = {**os.environ, "POINTLIB_CPU": "amx", "POINTLIB_CPU_LIBRARY": str(library)}
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *TESTS],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-2000:]
