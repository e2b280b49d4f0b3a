"""The compiled CPU engine is loaded, chosen and called rightly; wrong libraries are refused with a remedy."""

from __future__ import annotations

import ctypes
import importlib
import re
import shutil
import subprocess
import warnings
from pathlib import Path

import pytest
import torch

import setup
from pointlib.ops._cpu import engine
from tests.ops.conftest import declared

ROOT = Path(__file__).resolve().parents[2]
NATIVE = sorted((ROOT / "pointlib/ops/_cpu").glob("*.py"))
needs_engine = pytest.mark.skipif(
    engine.LIBRARY is None, reason="needs the compiled engine, this is the composition"
)


@pytest.fixture
def library() -> Path:
    """The library that is in use."""
    assert engine.LIBRARY is not None
    return Path(engine.LIBRARY._name)


# Loading


def test_the_engine_is_built_where_there_is_a_compiler() -> None:
    if setup.find_compiler() is None:
        pytest.skip("needs a C++17 compiler, setup.py finds none")
    assert (ROOT / "pointlib" / engine.LIBRARY_NAME).exists(), "build the engine: make install"


def test_setup_and_engine_agree_on_the_name_and_on_the_sources() -> None:
    assert setup.ENGINE_LIBRARY == engine.LIBRARY_NAME
    assert setup.source_hash(engine.SOURCES) == engine.source_hash(engine.SOURCES)
    header = (engine.SOURCES / "engine.h").read_text()
    assert f"#define POINTLIB_ABI {engine.ABI}\n" in header


@needs_engine
def test_a_library_of_other_sources_is_refused(
    library: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sources = tmp_path / "csrc"
    shutil.copytree(engine.SOURCES, sources)
    monkeypatch.setattr(engine, "SOURCES", sources)
    engine._open(library)
    for name in ("engine.cpp", "kernels.h", next(engine.SOURCES.glob("*.inc")).name):
        text = (sources / name).read_text()
        (sources / name).write_text(text + "\n")
        with pytest.raises(ImportError, match=r"must be built from .*csrc, got a build of other"):
            engine._open(library)
        (sources / name).write_text(text)
    (sources / "another.cpp").touch()
    with pytest.raises(ImportError, match="make install, or pip install"):
        engine._open(library)


@needs_engine
def test_a_library_of_another_abi_is_refused(
    library: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine, "ABI", engine.ABI + 1)
    with pytest.raises(ImportError, match=f"must have ABI {engine.ABI}, got {engine.ABI - 1}"):
        engine._open(library)


def another_architecture(library: bytes) -> bytes:
    """The same ELF file, for a machine that nobody has (e_machine is at byte 18)."""
    return library[:18] + b"\xfe\x01" + library[20:]


@needs_engine
@pytest.mark.parametrize(
    "spoil", [another_architecture, lambda _: b"", lambda _: b"no library", lambda b: b[:100]]
)
def test_a_library_that_does_not_load_is_refused(library: Path, tmp_path: Path, spoil) -> None:
    spoilt = tmp_path / "spoilt.so"
    spoilt.write_bytes(spoil(library.read_bytes()))
    with pytest.raises(
        ImportError, match=r"must be the CPU engine, built for this machine, got "
    ) as e:
        engine._open(spoilt)
    assert str(spoilt) in str(e.value)
    assert "POINTLIB_CPU=composition" in str(e.value)


def test_another_library_is_refused() -> None:
    with pytest.raises(ImportError, match=r"must be the CPU engine.*got .*pl_"):
        engine._open(Path("libc.so.6"))


def test_without_a_library_the_composition_is_used_and_says_so_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("POINTLIB_CPU_LIBRARY", raising=False)
    monkeypatch.setattr(engine, "PACKAGE", tmp_path)
    with pytest.warns(UserWarning, match="the CPU engine is not compiled") as caught:
        assert engine._load("auto") == (None, "composition")
    assert len(caught) == 1
    assert "apt install g++" in str(caught[0].message)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert engine._load("composition") == (None, "composition")
    with pytest.raises(ImportError, match=r"POINTLIB_CPU=avx2 must find .* got no file"):
        engine._load("avx2")
    monkeypatch.setenv("POINTLIB_CPU_LIBRARY", str(tmp_path / "named.so"))
    with pytest.raises(ImportError, match=r"got no file .*named\.so"):
        engine._load("auto")


@needs_engine
def test_an_unknown_instruction_set_is_refused() -> None:
    with pytest.raises(ImportError, match=r"auto, composition or, .* generic, got 'sse9'"):
        engine._load("sse9")


@needs_engine
def test_instruction_sets_are_those_of_the_processor_best_first() -> None:
    sets = engine.LIBRARY.pl_instruction_sets().decode().split()
    order = list(setup.INSTRUCTION_SETS)[::-1]
    assert sets == [name for name in order if name in sets]
    assert sets[-1] == "generic"
    assert engine.INSTRUCTION_SET in sets
    if not Path("/proc/cpuinfo").exists():
        return
    flags = set(Path("/proc/cpuinfo").read_text().partition("flags")[2].partition("\n")[0].split())
    wanted = {
        "avx2": {"avx2", "fma", "f16c"},
        "avx512": {"avx512f", "avx512bw", "avx512dq", "avx512vl"},
        "avx512_vnni": {"avx512_vnni"},
        "avx512_bf16": {"avx512_bf16"},
        "amx": {"amx_tile", "amx_bf16", "amx_int8"},
    }
    for name, needed in wanted.items():
        if name in sets:
            assert needed <= flags, name


# Calling


@needs_engine
def test_a_failed_call_raises_what_the_engine_says() -> None:
    name = torch.tensor(list(b"nothing\0"), dtype=torch.uint8)
    with pytest.raises(engine.EngineError, match=r"pl_use: name must be one of"):
        engine.call("pl_use", name)


@needs_engine
def test_arguments_and_results_keep_64_bits() -> None:
    function = engine._declare("pl_abi", (torch.zeros(1), 1, 1.0, None, True))
    assert function.restype is ctypes.c_int64
    pointer, integer, real = ctypes.c_void_p, ctypes.c_int64, ctypes.c_float
    assert list(function.argtypes) == [pointer, integer, real, pointer, integer]


@needs_engine
def test_tensors_that_the_engine_cannot_read_are_not_passed() -> None:
    for unreadable in (torch.zeros(3, 4).t(), torch.zeros(3, device="meta")):
        with pytest.raises(AssertionError):
            engine._pass(unreadable)


@needs_engine
def test_calls_are_held_against_the_declarations() -> None:
    assert declared()["pl_use"] == ["*"] and declared()["pl_abi"] == []
    engine.call("pl_abi")
    wrong = [("pl_abi", 1), ("pl_use",), ("pl_use", 1.0), ("pl_use", "generic"), ("pl_nothing",)]
    for name, *arguments in wrong:
        with pytest.raises(AssertionError, match=name):
            engine.call(name, *arguments)


SIZES = {"int64_t": 8, "int32_t": 4, "double": 8, "float": 4}
FIELDS = re.compile(r"(?:const )?(\w+)(\*?) (\*?\w+(?:\[\w+\])?(?:, \*?\w+(?:\[\w+\])?)*)")


def native_fields(name: str) -> list[tuple[str, int]]:
    """Name and size of an element of each field of a C++ struct, in order."""
    found = []
    for path in sorted(engine.SOURCES.glob("*.[ch]*")):
        text = re.sub(r"//[^\n]*", "", path.read_text())
        match = re.search(rf"struct {name} \{{(.*?)\n\}};", text, re.S)
        for statement in match[1].split(";") if match else ():
            if fields := FIELDS.fullmatch(" ".join(statement.split())):
                kind, pointer, names = fields.groups()
                for field in names.split(", "):
                    size = 8 if pointer or "*" in field else SIZES[kind]
                    found.append((field.partition("[")[0].lstrip("*"), size))
    return found


def element_size(kind: type) -> int:
    """Of a field's type, or of an array's element."""
    return ctypes.sizeof(kind._type_ if issubclass(kind, ctypes.Array) else kind)


def test_structures_have_the_fields_of_the_engine() -> None:
    checked = []
    for path in NATIVE:
        module = importlib.import_module(f"pointlib.ops._cpu.{path.stem}")
        for name, kind in vars(module).items():
            if isinstance(kind, type) and issubclass(kind, ctypes.Structure):
                fields = [(field, element_size(of)) for field, of in kind._fields_]
                assert fields == native_fields(name.lstrip("_")), name
                checked.append(name)
    assert "ConvArguments" in checked


def test_kernels_leave_nothing_that_other_code_could_be_linked_to(tmp_path: Path) -> None:
    """An inline library function compiled with wide instructions must not stand in for the plain one (weak symbols)."""
    compiler = setup.find_compiler()
    if compiler is None or shutil.which("nm") is None:
        pytest.skip("needs a C++17 compiler and nm")
    for source, name, flags in setup.engine_jobs(compiler, engine.SOURCES):
        if not source.name.startswith("kernels") or not name.endswith("-avx2.o"):
            continue
        built = tmp_path / name
        command = [
            *compiler,
            *setup.COMPILE,
            "-fopenmp",
            *flags,
            "-c",
            str(source),
            "-o",
            str(built),
        ]
        subprocess.run(command, check=True)
        listed = subprocess.run(
            ["nm", "--demangle", "--defined-only", "--extern-only", str(built)],
            capture_output=True,
            text=True,
            check=True,
        ).stdout.splitlines()
        kinds = [line.split(maxsplit=2)[-2:] for line in listed]
        kinds = [(kind, symbol) for kind, symbol in kinds if not symbol.startswith("DW.ref.")]
        assert [symbol for kind, symbol in kinds if kind not in "TDBR"] == [], name
        assert all("pointlib::avx2::" in symbol for _, symbol in kinds), kinds
