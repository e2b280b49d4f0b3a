"""The operator that docs/extend.md adds works: its files are taken from the page, and its test is run."""

from __future__ import annotations

import re
import sys
import types
from pathlib import Path

import pytest
import torch

from pointlib.ops import _cuda
from pointlib.ops._cuda import compiler, engine
from tests.cuda_emulator import building
from tests.cuda_emulator.emulator import Emulator
from tests.ops.test_cuda_architectures import compile_chunk, violations

ROOT = Path(__file__).resolve().parents[1]
BLOCK = re.compile(r"^```(?:cpp|py)\n(.*?)^```", re.MULTILINE | re.DOTALL)


@pytest.fixture
def blocks() -> list[str]:
    """Kernel, launch, operator and test."""
    found = BLOCK.findall((ROOT / "docs" / "extend.md").read_text(encoding="utf-8"))
    assert len(found) == 4
    return found


def module(name: str, text: str, monkeypatch: pytest.MonkeyPatch) -> types.ModuleType:
    """A module made of text, which can be imported from its package."""
    made = types.ModuleType(name)
    package, _, attribute = name.rpartition(".")
    monkeypatch.setitem(sys.modules, name, made)
    if package:
        monkeypatch.setattr(sys.modules[package], attribute, made, raising=False)
    exec(compile(text, name, "exec"), made.__dict__)
    return made


def test_the_example_passes_its_test(
    blocks: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if building.compiler() is None:
        pytest.skip("needs a C++ compiler")
    kernel, launch, operator, test = blocks
    (tmp_path / "row_energy.cu").write_text(kernel)
    (tmp_path / "types.cuh").write_text((ROOT / "cuda" / "types.cuh").read_text())
    cuda = module(f"{_cuda.__name__}.row_energy", launch, monkeypatch)
    library = torch.library.Library("pointlib", "FRAGMENT")
    try:
        monkeypatch.setattr("pointlib.ops._library.LIB", library)
        module("pointlib.ops.row_energy", operator, monkeypatch)
        case = module("test_row_energy", test, monkeypatch).test_row_energy
        monkeypatch.setattr(engine, "SOURCES", tmp_path)
        for capability in (75, 90):
            emulator = Emulator(capability, tmp_path, cuda.variants)
            monkeypatch.setattr(engine, "_backend", emulator)
            for dtype in cuda.ELEMENTS:
                for rows, channels in ((0, 1), (1, 33), (5, 31), (4, 0)):
                    case(emulator, rows, channels, dtype)
        try:
            compiler.version()
        except ImportError as error:
            pytest.skip(str(error))
        names = [name for _, name in cuda.variants(87)]
        for name, used in compile_chunk("row_energy.cu", names, "sm_87").items():
            assert violations(name, used) == []
    finally:
        library._destroy()
