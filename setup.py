"""The computed parts of the build: the CPU engine, where there is a C++ compiler, and the device sources in cuda/.

The engine is one shared library without any Python or torch in it, so one wheel serves every Python. Where it cannot
be compiled, the package is built without it and works all the same, slower; the build says so.

The device sources travel inside the package as pointlib/_cuda_src and are compiled on the user's machine when first
used. Everything else about the package is in pyproject.toml. The recipes in configs/ and the programs in tools/ are
for a clone of the repository and are not installed; a checkpoint holds the configuration it was trained with.
"""

from __future__ import annotations

import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

DEVICE_SOURCES = ("*.cu", "*.cuh", "README.md")
ENGINE_SOURCES = Path("pointlib", "csrc")
ENGINE_LIBRARY = "libpointlib_cpu.so"

COMPILE = [
    "-std=c++17",
    "-O3",
    "-fPIC",
    "-fvisibility=hidden",
    "-fno-math-errno",
    "-fopenmp",
    "-Wall",
    "-Wextra",
]
AVX2 = ["-mavx2", "-mfma", "-mf16c"]
AVX512 = [*AVX2, "-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mprefer-vector-width=512"]
INSTRUCTION_SETS = {
    "generic": [],
    "avx2": AVX2,
    "avx512": AVX512,
    "avx512_vnni": [*AVX512, "-mavx512vnni"],
    "avx512_bf16": [*AVX512, "-mavx512vnni", "-mavx512bf16"],
    "amx": [*AVX512, "-mavx512vnni", "-mavx512bf16", "-mamx-tile", "-mamx-bf16", "-mamx-int8"],
}
"""Flags of each set; the names are those of pointlib/csrc/engine.cpp."""


def find_compiler() -> list[str] | None:
    """The C++ compiler as a command: $CXX, else the first of the usual names that works."""
    candidates = [os.environ["CXX"]] if "CXX" in os.environ else ["c++", "g++", "clang++"]
    commands = [shlex.split(name) for name in candidates]
    return next((c for c in commands if c and shutil.which(c[0])), None)


def source_hash(sources: Path) -> str:
    """As pointlib.ops._cpu.engine.source_hash, which compares; setup.py cannot import it."""
    digest = hashlib.sha256()
    for path in sorted(p for p in sources.iterdir() if p.suffix in {".cpp", ".h", ".inc"}):
        digest.update(path.name.encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:16]


def compile_engine(compiler: list[str], target: Path, extra: tuple[str, ...] = ()) -> None:
    """Compile pointlib/csrc into one library that holds the kernels of every set the compiler knows.

    Raises:
        subprocess.CalledProcessError: If the compiler refuses the sources.
    """
    on_x86 = platform.machine() in {"x86_64", "AMD64"}
    with tempfile.TemporaryDirectory() as scratch:

        def understands(flags: list[str]) -> bool:
            empty = Path(scratch, "empty.cpp")
            empty.write_text("")
            command = [*compiler, "-Werror", *flags, "-c", str(empty), "-o", os.devnull]
            return subprocess.run(command, capture_output=True).returncode == 0

        sets = [n for n, f in INSTRUCTION_SETS.items() if not f or (on_x86 and understands(f))]
        known = [f"-DPOINTLIB_WITH_{name.upper()}" for name in sets]
        known.append(f'-DPOINTLIB_SOURCE_HASH="{source_hash(ENGINE_SOURCES)}"')
        jobs = []
        for source in sorted(ENGINE_SOURCES.glob("*.cpp")):
            if not source.name.startswith("kernels"):
                jobs.append((source, source.stem, known))
                continue
            for name in sets:
                flags = [*INSTRUCTION_SETS[name], f"-DPOINTLIB_SET={name}"]
                jobs.append((source, f"{source.stem}-{name}", flags))

        def build(job: tuple[Path, str, list[str]]) -> str:
            source, stem, flags = job
            built = str(Path(scratch, stem + ".o"))
            command = [*compiler, *COMPILE, *extra, *flags, "-c", str(source), "-o", built]
            subprocess.run(command, check=True)
            return built

        with ThreadPoolExecutor(os.cpu_count()) as pool:
            objects = list(pool.map(build, jobs))
        target.parent.mkdir(parents=True, exist_ok=True)
        partial = target.with_suffix(".partial")
        command = [*compiler, "-shared", "-fopenmp", *extra, *objects, "-o", str(partial)]
        subprocess.run(command, check=True)
        partial.replace(target)


class Build(build_py):
    """Copy cuda/ into the package, except in an editable install, and compile the engine into it."""

    def _device_sources(self) -> dict[str, str]:
        """Copied file -> file in the repository."""
        if self.editable_mode:
            return {}
        root = Path("cuda")
        target = Path(self.build_lib, "pointlib", "_cuda_src")
        found = (path for pattern in DEVICE_SOURCES for path in sorted(root.rglob(pattern)))
        return {str(target / path.relative_to(root)): str(path) for path in found}

    @property
    def _engine(self) -> Path:
        return Path("" if self.editable_mode else self.build_lib, "pointlib", ENGINE_LIBRARY)

    def run(self) -> None:
        """Build the Python part, copy, compile."""
        super().run()
        for target, source in self._device_sources().items():
            self.mkpath(str(Path(target).parent))
            self.copy_file(source, target)
        compiler = find_compiler()
        if compiler is None:
            self.warn(
                "no C++ compiler found: pointlib is built without its CPU engine and runs slower"
            )
            return
        self.announce(f"compiling {self._engine} with {shlex.join(compiler)}", level=2)
        compile_engine(compiler, self._engine)

    def get_outputs(self, include_bytecode: bool = True) -> list[str]:
        """Name everything built, so that installing records it."""
        engine = [] if self.editable_mode or not self._engine.exists() else [str(self._engine)]
        return [*super().get_outputs(include_bytecode), *self._device_sources(), *engine]

    def get_output_mapping(self) -> dict[str, str]:
        """Tell which built file comes from which source."""
        return {**super().get_output_mapping(), **self._device_sources()}


setup(cmdclass={"build_py": Build})
