"""NVRTC and the cache of kernels: architectures, headers, errors, and what is kept on disk."""

from __future__ import annotations

import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pointlib.ops._cuda import compiler, engine
from pointlib.ops._cuda.cache import Kernel, KernelCache

HEADER = "__device__ inline float twice(float value) { return 2 * value; }\n"
SOURCE = """#include "twice.cuh"
#include <cuda_fp16.h>
#ifdef ABSENT
#include "absent.cuh"
#endif
namespace pointlib {
template <class T>
__global__ void __launch_bounds__(64) double_it(T* data) {
    data[threadIdx.x] = static_cast<T>(twice(static_cast<float>(data[threadIdx.x])));
}
}
"""
KERNEL = "pointlib::double_it<float>"


@pytest.fixture
def sources(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "cuda"
    folder.mkdir()
    (folder / "double.cu").write_text(SOURCE)
    (folder / "twice.cuh").write_text(HEADER)
    monkeypatch.setattr(engine, "SOURCES", folder)
    return folder


@pytest.fixture
def cache(tmp_path: Path) -> KernelCache:
    return KernelCache(tmp_path / "kernels")


@pytest.fixture
def needs_nvrtc() -> None:
    try:
        compiler.version()
    except ImportError as error:
        pytest.skip(str(error))


# Architectures


@pytest.fixture
def nvrtc_of(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Function that sets what NVRTC says it supports."""

    def use(*known: int) -> None:
        answers = {"nvrtcGetSupportedArchs": list(known), "nvrtcVersion": (12, 6)}
        monkeypatch.setattr(compiler, "_ask_nvrtc", answers.__getitem__)

    return use


def test_architectures_of_devices(nvrtc_of: Callable[..., None]) -> None:
    nvrtc_of(75, 80, 86, 87, 89, 90, 100, 103, 110, 120, 121)
    names = {capability: compiler.architecture(capability) for capability in (75, 87, 89, 110, 121)}
    assert names == {75: "sm_75", 87: "sm_87", 89: "sm_89", 110: "sm_110", 121: "sm_121"}
    assert [compiler.architecture(c) for c in (90, 100, 103)] == ["sm_90a", "sm_100a", "sm_103a"]
    assert compiler.architecture(130) == "compute_121", "newer than NVRTC: PTX"
    assert compiler.architecture(88) == "compute_87", "binaries of 8.7 are for 8.7 alone"


def test_a_device_too_old_is_refused(nvrtc_of: Callable[..., None]) -> None:
    nvrtc_of(50, 70, 75, 80)
    with pytest.raises(RuntimeError, match=r"capability 7\.5 or newer, got 7\.0\. Use the CPU"):
        compiler.architecture(70)
    nvrtc_of(90, 100)
    with pytest.raises(
        RuntimeError, match=r"9\.0 or newer, got 8\.6\. An older CUDA build of torch"
    ):
        compiler.architecture(86)


@pytest.mark.parametrize(
    ("name", "capability"), [("sm_87", 87), ("sm_90a", 90), ("sm_100f", 100), ("compute_120", 120)]
)
def test_capability_of_an_architecture(name: str, capability: int) -> None:
    assert compiler.capability_of(name) == capability


@pytest.mark.parametrize("name", ["orin", "87", "sm_8", "sm_90b", "sm_87 "])
def test_other_names_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match="must be named like sm_87, got"):
        compiler.capability_of(name)


# What is missing


def test_without_cuda_core_the_pip_command_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    compiler.require_cuda_core.cache_clear()
    monkeypatch.setitem(sys.modules, "cuda.core", None)
    with pytest.raises(ImportError, match=r'pip install "cuda-core>=1" "cuda-bindings==\d+\.\*"'):
        compiler.require_cuda_core()


def test_without_nvrtc_the_pip_command_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    nvrtc = pytest.importorskip("cuda.bindings.nvrtc")

    def missing() -> None:
        raise RuntimeError("Failure finding libnvrtc.so")

    monkeypatch.setattr(nvrtc, "nvrtcVersion", missing)
    compiler.version.cache_clear()
    with pytest.raises(ImportError, match=r'libnvrtc\.so.*pip install "nvidia-cuda-nvrtc'):
        compiler.version()


def test_headers_of_another_release_are_not_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, needs_nvrtc: None
) -> None:
    right = compiler.toolkit_headers()
    assert (right / compiler.HEADER).is_file()
    major = compiler.version()[0]
    for name, release in (("old", major - 1), ("new", major)):
        folder = tmp_path / name / "include"
        folder.mkdir(parents=True)
        (folder / compiler.HEADER).touch()
        (folder / "cuda_runtime_api.h").write_text(f"#define CUDART_VERSION  {release}010\n")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    monkeypatch.setattr("cuda.pathfinder.find_nvidia_header_directory", lambda name: None)
    monkeypatch.setenv("CUDA_HOME", str(tmp_path / "old"))
    monkeypatch.setenv("CUDA_PATH", str(tmp_path / "new"))
    find = compiler.toolkit_headers.__wrapped__
    assert find() == tmp_path / "new" / "include"
    monkeypatch.setenv("CUDA_PATH", str(tmp_path / "none"))
    if not Path("/usr/local/cuda/include").exists():
        with pytest.raises(FileNotFoundError, match=r'got none in .*old.*pip install "nvidia-cuda'):
            find()


def test_missing_device_code_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "SOURCES", tmp_path)
    with pytest.raises(FileNotFoundError, match=r"double\.cu must be in .*Install pointlib again"):
        compiler.source_files("double.cu")


# Compilation


def test_a_program_of_several_kernels(sources: Path, needs_nvrtc: None) -> None:
    kernels = [KERNEL, "pointlib::double_it<__half>"]
    made = compiler.compile_kernels("double.cu", kernels, "sm_80")
    assert made.code.startswith(b"\x7fELF")
    assert [made.symbols[kernel].decode() for kernel in kernels] == [
        "_ZN8pointlib9double_itIfEEvPT_",
        "_ZN8pointlib9double_itI6__halfEEvPT_",
    ]
    assert "Used " in made.report


def test_an_error_names_kernel_and_architecture_and_shows_the_log(
    sources: Path, needs_nvrtc: None
) -> None:
    (sources / "double.cu").write_text(SOURCE.replace("twice(static", "thrice(static"))
    with pytest.raises(compiler.CompileError) as caught:
        compiler.compile_kernels("double.cu", [KERNEL], "sm_80")
    for part in ("double.cu", KERNEL, "sm_80", "NVRTC 1", 'identifier "thrice" is undefined'):
        assert part in str(caught.value)


def test_every_family_is_found() -> None:
    found = compiler.families()
    assert {"row_map", "kernel_map", "coords"} <= set(found)
    for family, variants in found.items():
        for source, kernel in variants(90):
            assert (engine.SOURCES / source).is_file(), family
            assert kernel.startswith("pointlib::"), family


def test_the_readme_names_every_source() -> None:
    text = (engine.SOURCES / "README.md").read_text()
    assert [p.name for p in engine.SOURCES.glob("*.cu*") if f"`{p.name}`" not in text] == []


def test_importing_the_operators_imports_no_cuda() -> None:
    code = "import sys, pointlib, pointlib.ops._cuda.nvrtc; print(any(m.startswith('cuda.core') for m in sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


# The cache


@pytest.fixture
def compilations(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Kernels that were compiled, by a compiler that makes its name into the code."""
    made: list[str] = []

    def fake(source: str, kernels: list[str], name: str) -> compiler.Compiled:
        made.extend(kernels)
        return compiler.Compiled(
            b"code\n\0 of " + name.encode(), dict.fromkeys(kernels, b"_Z1k"), ""
        )

    monkeypatch.setattr(compiler, "compile_kernels", fake)
    monkeypatch.setattr(compiler, "version", lambda: (13, 0))
    yield made


def test_a_kernel_is_compiled_once(
    sources: Path, cache: KernelCache, compilations: list[str]
) -> None:
    first = cache.get("double.cu", KERNEL, "sm_80")
    assert first == Kernel(b"code\n\0 of sm_80", b"_Z1k")
    assert KernelCache(cache.folder).get("double.cu", KERNEL, "sm_80") == first
    assert compilations == [KERNEL]


def test_everything_that_decides_the_code_decides_the_file(
    sources: Path, cache: KernelCache, compilations: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = [cache.path("double.cu", KERNEL, "sm_80")]
    assert paths[0] == cache.path("double.cu", KERNEL, "sm_80")
    paths.append(cache.path("double.cu", KERNEL, "sm_86"))
    paths.append(cache.path("double.cu", "pointlib::double_it<int>", "sm_80"))
    (sources / "twice.cuh").write_text(HEADER.replace("2 *", "2.f *"))
    paths.append(cache.path("double.cu", KERNEL, "sm_80"))
    monkeypatch.setattr(compiler, "version", lambda: (13, 1))
    paths.append(cache.path("double.cu", KERNEL, "sm_80"))
    monkeypatch.setattr(compiler, "OPTIONS", {"std": "c++17"})
    paths.append(cache.path("double.cu", KERNEL, "sm_80"))
    assert len(set(paths)) == len(paths)
    (sources / "unrelated.cuh").write_text("// nothing\n")
    assert paths[-1] == cache.path("double.cu", KERNEL, "sm_80")


@pytest.mark.parametrize("damage", ["truncated", "flipped", "empty", "foreign"])
def test_a_damaged_file_is_replaced(
    sources: Path, cache: KernelCache, compilations: list[str], damage: str
) -> None:
    good = cache.get("double.cu", KERNEL, "sm_80")
    path = cache.path("double.cu", KERNEL, "sm_80")
    content = path.read_bytes()
    flipped = content[:-1] + bytes([content[-1] ^ 1])
    damaged = {
        "truncated": content[:-5],
        "flipped": flipped,
        "empty": b"",
        "foreign": b"\xff\xfe\0",
    }
    path.write_bytes(damaged[damage])
    assert cache.read(path) is None
    assert cache.get("double.cu", KERNEL, "sm_80") == good
    assert len(compilations) == 2
    assert path.read_bytes() == content


def test_a_folder_that_cannot_be_written_is_reported_once(
    sources: Path, tmp_path: Path, compilations: list[str]
) -> None:
    (tmp_path / "file").touch()
    cache = KernelCache(tmp_path / "file" / "kernels")
    with pytest.warns(UserWarning, match=r"file.kernels, got .*POINTLIB_CACHE"):
        assert cache.get("double.cu", KERNEL, "sm_80").symbol == b"_Z1k"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        cache.get("double.cu", KERNEL, "sm_86")


def test_the_folder_is_the_users(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("POINTLIB_CACHE", str(tmp_path))
    assert KernelCache().folder == tmp_path / "kernels"


TWO = """
import sys
from pathlib import Path
from pointlib.ops._cuda import engine
from pointlib.ops._cuda.cache import KernelCache
engine.SOURCES = Path(sys.argv[1])
print(int(KernelCache(Path(sys.argv[2])).get("double.cu", sys.argv[3], "sm_80").code[:4] == b"\\x7fELF"))
"""


def test_two_processes_compile_the_same_kernel(
    sources: Path, cache: KernelCache, needs_nvrtc: None
) -> None:
    command = [sys.executable, "-c", TWO, str(sources), str(cache.folder), KERNEL]
    running = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    assert [process.communicate()[0].strip() for process in running] == ["1", "1"]
    path = cache.path("double.cu", KERNEL, "sm_80")
    assert list(cache.folder.iterdir()) == [path], "no temporary file is left"
    assert cache.read(path) is not None
