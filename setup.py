"""The computed parts of the build: the CPU engine, where there is a C++ compiler, and the device sources in cuda/.

The engine is one shared library without any Python or torch in it, so one wheel serves every Python and is tagged
py3-none-<platform>. Without it the package is py3-none-any, works all the same, slower, and says so when it is
imported. The variable POINTLIB_BUILD_ENGINE decides: `auto` (the default) builds the engine if that can be done and
says loudly if not, because a working package comes first; `require` stops with the compiler's words; `none` does
without. CXX names the compiler.

The device sources travel inside the package as pointlib/_cuda_src and are compiled on the user's machine when first
used. Everything else about the package is in pyproject.toml. The recipes in configs/ and the programs in tools/ are
for a clone of the repository and are not installed; a checkpoint holds the configuration it was trained with.
"""

from __future__ import annotations

import hashlib
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import ClassVar

from setuptools import Command, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build import build
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
    "-ffp-contract=fast",
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
"""Flags of each set; the names, and what the processor must have for them, are in pointlib/csrc/engine.cpp."""
EXACT = {"kernels_i8": ["-ffp-contract=off"]}
"""Flags of sources whose specification says how each product is rounded: no fused multiply-add there."""


class CompilerError(Exception):
    """The compiler refused the engine's sources: the command and what it said."""


def _run(command: list[str]) -> None:
    """Run a compiler, pass on its warnings, and raise what it says if it fails."""
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise CompilerError(f"{shlex.join(command)}\n{done.stdout}{done.stderr}".rstrip())
    sys.stderr.write(done.stderr)


def _compiles(command: list[str], source: str) -> bool:
    """Whether a compiler makes a shared library out of this text."""
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch, "probe.cpp")
        path.write_text(source)
        try:
            _run([*command, "-shared", "-fPIC", str(path), "-o", str(path.with_suffix(".so"))])
        except (CompilerError, OSError):
            return False
    return True


def find_compiler() -> list[str] | None:
    """The C++17 compiler as a command: $CXX if that is set, else the first of the usual names that works."""
    candidates = [os.environ["CXX"]] if "CXX" in os.environ else ["c++", "g++", "clang++"]
    for command in map(shlex.split, candidates):
        if command and shutil.which(command[0]):
            probe = "#include <string>\nstd::string f() { if constexpr (true) return {}; }\n"
            if _compiles([*command, "-std=c++17"], probe):
                return command
    return None


def source_hash(sources: Path) -> str:
    """As pointlib.ops._cpu.engine.source_hash, which compares; setup.py cannot import it."""
    digest = hashlib.sha256()
    for path in sorted(p for p in sources.iterdir() if p.suffix in {".cpp", ".h", ".inc"}):
        digest.update(path.name.encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:16]


def engine_jobs(compiler: list[str], sources: Path) -> list[tuple[Path, str, list[str]]]:
    """What to compile, as (source, name of the object, flags): kernels*.cpp once for each set the compiler knows."""
    for_x86 = "#ifndef __x86_64__\n#error\n#endif\n"
    sets = [
        name
        for name, flags in INSTRUCTION_SETS.items()
        if not flags or _compiles([*compiler, "-Werror", *flags], for_x86)
    ]
    known = [f"-DPOINTLIB_WITH_{name.upper()}" for name in sets]
    known.append(f'-DPOINTLIB_SOURCE_HASH="{source_hash(sources)}"')
    jobs = []
    for source in sorted(sources.glob("*.cpp")):
        if source.name.startswith("kernels"):
            for name in sets:
                flags = [*INSTRUCTION_SETS[name], *EXACT.get(source.stem, [])]
                flags.append(f"-DPOINTLIB_SET={name}")
                jobs.append((source, f"{source.stem}-{name}.o", flags))
        else:
            jobs.append((source, f"{source.stem}.o", known))
    return jobs


def compile_engine(
    compiler: list[str],
    target: Path,
    extra: tuple[str, ...] = (),
    sources: Path = ENGINE_SOURCES,
) -> None:
    """Compile pointlib/csrc into one library that holds the kernels of every set the compiler knows.

    Args:
        compiler: The command, as of `find_compiler`.
        target: The library to write; replaced only by a complete one.
        extra: More flags, for compiling and for linking.
        sources: The folder.

    Raises:
        CompilerError: If the compiler refuses the sources.
    """
    openmp = _compiles(
        [*compiler, "-fopenmp"], "#include <omp.h>\nint f() { return omp_in_parallel(); }\n"
    )
    if not openmp:
        print(
            "pointlib: this compiler has no OpenMP, so the CPU engine uses one thread",
            file=sys.stderr,
        )
    flags = [*COMPILE, "-fopenmp" if openmp else "-Wno-unknown-pragmas", *extra]
    with tempfile.TemporaryDirectory() as scratch, ThreadPoolExecutor(os.cpu_count()) as pool:

        def compile_one(job: tuple[Path, str, list[str]]) -> str:
            source, name, own = job
            built = str(Path(scratch, name))
            _run([*compiler, *flags, *own, "-c", str(source), "-o", built])
            return built

        running = [pool.submit(compile_one, job) for job in engine_jobs(compiler, sources)]
        try:
            objects = [job.result() for job in running]
        except CompilerError:
            pool.shutdown(cancel_futures=True)
            raise
        target.parent.mkdir(parents=True, exist_ok=True)
        partial = target.with_suffix(".partial")
        _run([*compiler, "-shared", *flags, *objects, "-o", str(partial)])
        partial.replace(target)


class BuildPackage(build_py):
    """Copy cuda/ into the package, except in an editable install."""

    def _device_sources(self) -> dict[str, str]:
        """Copied file -> file in the repository."""
        if self.editable_mode:
            return {}
        root = Path("cuda")
        target = Path(self.build_lib, "pointlib", "_cuda_src")
        found = (path for pattern in DEVICE_SOURCES for path in sorted(root.rglob(pattern)))
        return {str(target / path.relative_to(root)): str(path) for path in found}

    def run(self) -> None:
        """Build the Python part, then copy."""
        super().run()
        for target, source in self._device_sources().items():
            self.mkpath(str(Path(target).parent))
            self.copy_file(source, target)

    def get_outputs(self, include_bytecode: bool = True) -> list[str]:
        """Name everything built, so that installing records it."""
        return [*super().get_outputs(include_bytecode), *self._device_sources()]

    def get_output_mapping(self) -> dict[str, str]:
        """Tell which built file comes from which source."""
        return {**super().get_output_mapping(), **self._device_sources()}


class BuildEngine(Command):
    """Compile the CPU engine into the package; into the repository for an editable install."""

    description = "compile the CPU engine"
    user_options: ClassVar[list[tuple[str, str, str]]] = []

    def initialize_options(self) -> None:
        """Declare what setuptools sets."""
        self.build_lib: str | None = None
        self.editable_mode = False

    def finalize_options(self) -> None:
        """Take over where the package is built."""
        self.set_undefined_options("build", ("build_lib", "build_lib"))

    @property
    def library(self) -> Path:
        """Where the library goes."""
        return Path("" if self.editable_mode else self.build_lib, "pointlib", ENGINE_LIBRARY)

    def run(self) -> None:
        """Compile, or say why not."""
        wanted = os.environ.get("POINTLIB_BUILD_ENGINE") or "auto"
        if wanted not in {"auto", "require", "none"}:
            raise SystemExit(
                f"setup.py: POINTLIB_BUILD_ENGINE must be auto, require or none, got {wanted!r}."
            )
        if wanted == "none":
            return self.library.unlink(missing_ok=True)
        compiler = find_compiler()
        if compiler is None:
            named = f"CXX={os.environ['CXX']}" if "CXX" in os.environ else "c++, g++ and clang++"
            reason = (
                f"no C++17 compiler works (tried {named}). On Debian and Ubuntu: apt install g++"
            )
        else:
            print(
                f"pointlib: compiling {self.library} with {shlex.join(compiler)}", file=sys.stderr
            )
            try:
                return compile_engine(compiler, self.library)
            except CompilerError as error:
                reason = f"the compiler failed. CXX names another one.\n{error}"
        if wanted == "require":
            raise SystemExit(f"setup.py: the CPU engine must be built, got: {reason}")
        self.library.unlink(missing_ok=True)  # of an earlier build
        line = "*" * 100
        print(
            f"{line}\npointlib is built WITHOUT its CPU engine and will be several times slower:\n{reason}\n{line}",
            file=sys.stderr,
        )

    def get_source_files(self) -> list[str]:
        """Name what a source distribution must hold."""
        return [
            str(p) for p in sorted(ENGINE_SOURCES.iterdir()) if p.suffix in {".cpp", ".h", ".inc"}
        ]

    def get_outputs(self) -> list[str]:
        """Name everything built, so that installing records it."""
        return [str(self.library)] if self.library.exists() and not self.editable_mode else []

    def get_output_mapping(self) -> dict[str, str]:
        """Tell which built file comes from which source: the library from none alone."""
        return {}


class Wheel(bdist_wheel):
    """Tag the wheel after what is in it: for one platform with the engine, for any without, for no one Python."""

    def run(self) -> None:
        """Build first, because whether there is an engine decides where the files belong."""
        self.run_command("build")
        if self.get_finalized_command("build_engine").library.exists():
            self.root_is_pure = False
            self.distribution.has_ext_modules = lambda: True
        super().run()

    def get_tag(self) -> tuple[str, str, str]:
        """Say py3-none-<platform>: the library knows no Python."""
        return ("py3", "none", super().get_tag()[2])


if __name__ == "__main__":
    build.sub_commands = [*build.sub_commands, ("build_engine", None)]
    setup(cmdclass={"build_py": BuildPackage, "build_engine": BuildEngine, "bdist_wheel": Wheel})
