"""`Nvrtc` over the fake driver: run by tests/ops/test_cuda_nvrtc.py in a process that finds it as libcuda.so.1.

cuda.core, NVRTC and the disk cache are the real ones. What a CUDA build of torch would say of devices and streams is
said here, and torch's device guard also sets the context, as the CUDA runtime does.
"""

from __future__ import annotations

import ctypes
import logging
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from pointlib.ops._cuda import compiler, engine, nvrtc
from pointlib.ops._cuda.cache import KernelCache
from pointlib.ops._cuda.nvrtc import Nvrtc

SOURCE = """#include "scale.cuh"
template <int N>
__global__ void __launch_bounds__(64) scale(float* data, long long n, long long m, float factor) {
    data[N] = scaled(n + m, factor);
}
"""
HEADER = (
    "__device__ inline float scaled(long long value, float factor) { return value * factor; }\n"
)
SYMBOL = "_Z5scaleILi3EEvPfxxf"
KERNEL = "scale<3>"
RELAXED = 2


class Driver:
    """The fake driver, and torch's idea of the current device and stream."""

    def __init__(self) -> None:
        self._library = ctypes.CDLL("libcuda.so.1")
        self._library.fake_log.restype = ctypes.c_char_p
        self.device = 0
        self.stream = 0x77

    def reset(self) -> None:
        self._library.fake_reset()

    def log(self, *beginnings: str) -> list[str]:
        """What was asked since the last reset, of these kinds."""
        return [
            x for x in self._library.fake_log().decode().splitlines() if x.startswith(beginnings)
        ]

    def fail(self, function: str, status: int) -> None:
        self._library.fake_failure(function.encode(), status)


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch) -> Driver:
    from cuda.core import Device

    fake = Driver()

    class Guard:
        def __init__(self, index: int) -> None:
            self.before, self.index = fake.device, index

        def __enter__(self) -> None:
            fake.device = self.index
            Device(self.index).set_current()

        def __exit__(self, *error: object) -> None:
            fake.device = self.before
            Device(self.before).set_current()

    monkeypatch.setattr(torch.cuda, "current_device", lambda: fake.device)
    monkeypatch.setattr(torch.cuda, "device", Guard)
    monkeypatch.setattr(nvrtc, "_cuda_is_available", lambda: True)
    monkeypatch.setattr(nvrtc, "_current_stream", lambda index: fake.stream)
    fake.reset()
    return fake


@pytest.fixture
def backend(driver: Driver, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Nvrtc:
    (tmp_path / "scale.cu").write_text(SOURCE)
    (tmp_path / "scale.cuh").write_text(HEADER)
    monkeypatch.setattr(engine, "SOURCES", tmp_path)
    return Nvrtc(KernelCache(tmp_path / "cache"))


@pytest.fixture
def launch(backend: Nvrtc) -> Iterator[Callable[..., torch.Tensor]]:
    """Function that launches the kernel on a device; returns the tensor whose address it passed."""

    def run(device: int = 0, shared_bytes: int = 0, factor: float = 2.5) -> torch.Tensor:
        data = torch.zeros(4)
        where = torch.device("cuda", device)
        backend.launch(
            "scale.cu", KERNEL, (5, 2, 1), 64, shared_bytes, [data, -7, 2**40, factor], where
        )
        return data

    return run


Launch = Callable[..., torch.Tensor]


def test_a_launch_passes_everything(driver: Driver, launch: Launch) -> None:
    data = launch(shared_bytes=320)
    assert driver.log("load", "kernel") == [f"load cubin capture {RELAXED}", f"kernel {SYMBOL}"]
    assert driver.log("launch") == [
        f"launch grid 5 2 1 block 64 1 1 shared 320 stream 0x77 on 0: {data.data_ptr():x} -7 {2**40} 2.5"
    ]
    driver.stream = 0x78
    launch()
    assert len(driver.log("load")) == 1
    assert "stream 0x78" in driver.log("launch")[1]


def test_none_is_a_null_pointer_and_any_integer_is_eight_bytes(
    driver: Driver, backend: Nvrtc
) -> None:
    where = torch.device("cuda", 0)
    backend.launch("scale.cu", KERNEL, (1, 1, 1), 64, 0, [None, True, -1, 0.5], where)
    assert driver.log("launch")[0].endswith("on 0: 0 1 -1 0.5")


def test_properties(backend: Nvrtc) -> None:
    assert backend.properties(torch.device("cuda")) == engine.Properties(90, 132, 232448)
    newer = backend.properties(torch.device("cuda", 1))
    assert newer.capability < 130, "the capability that kernels are compiled for"
    with pytest.raises(RuntimeError, match=r"must have compute capability 7\.5 or newer, got 7\.0"):
        backend.properties(torch.device("cuda", 2))


def test_a_device_newer_than_nvrtc_gets_ptx_under_its_guard(
    driver: Driver, launch: Launch, tmp_path: Path
) -> None:
    launch(device=1)
    assert driver.log("load") == [f"load ptx capture {RELAXED}"]
    (kept,) = tmp_path.glob("cache/scale-compute_*.kernel")
    assert b"mul.f32" in kept.read_bytes(), "no fast math: denormals are kept"
    assert " on 1: " in driver.log("launch")[0]
    assert driver.device == 0
    assert driver.log("context")[-1] == "context 0"
    launch(device=0)
    assert len(driver.log("load")) == 2, "each device loads its own code"
    assert " on 0: " in driver.log("launch")[1]


def test_a_driver_older_than_nvrtc_is_refused(
    driver: Driver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compiler, "version", lambda: (14, 2))
    with pytest.raises(RuntimeError, match=r"got 14\.2 and 13\.9\. .*cuda-bindings==13\."):
        Nvrtc()


def test_more_shared_memory_is_asked_for_once(driver: Driver, launch: Launch) -> None:
    launch(shared_bytes=48 * 1024)
    assert driver.log("attribute") == []
    launch(shared_bytes=48 * 1024 + 16)
    launch(shared_bytes=100_000)
    assert driver.log("attribute") == [f"attribute 8 = {232448 - 16} on 0"]
    assert "shared 100000 " in driver.log("launch")[-1]


def test_a_new_thread_gets_the_context(driver: Driver, launch: Launch) -> None:
    launch()
    driver.reset()
    thread = threading.Thread(target=launch)
    thread.start()
    thread.join()
    launch()
    assert driver.log("context", "load") == ["context 0"]
    assert len(driver.log("launch")) == 2


def test_threads_load_a_kernel_once(driver: Driver, launch: Launch) -> None:
    threads = [threading.Thread(target=launch) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(driver.log("load")) == 1
    assert len(driver.log("launch")) == 4


@pytest.mark.parametrize(
    ("function", "status", "kind", "words"),
    [
        ("cuLaunchKernelEx", 700, RuntimeError, r"scale<3>, grid \(5, 2, 1\), block 64.*ILLEGAL_ADDRESS.*sanitizer"),
        ("cuLaunchKernelEx", 1, RuntimeError, r"scale<3>, grid \(5, 2, 1\).*INVALID_VALUE"),
        ("cuLaunchKernelEx", 2, torch.OutOfMemoryError, r"scale<3>.*OUT_OF_MEMORY.*empty_cache"),
        ("cuLibraryLoadData", 2, torch.OutOfMemoryError, r"loading scale<3> for sm_90a.*OUT_OF_MEMORY.*empty_cache"),
        ("cuLibraryLoadData", 222, RuntimeError, r"loading scale<3> for sm_90a.*Update the GPU's driver"),
        ("cuKernelSetAttribute", 1, RuntimeError, r"scale<3>, \d+ bytes of shared memory: CUDA_ERROR_INVALID_VALUE"),
    ],
)  # fmt: skip
def test_a_failure_says_what_to_do_and_passes(
    driver: Driver, launch: Launch, function: str, status: int, kind: type[Exception], words: str
) -> None:
    driver.fail(function, status)
    with pytest.raises(kind, match=f"(?s){words}"):
        launch(shared_bytes=50_000)
    driver.reset()
    launch(shared_bytes=50_000)
    assert len(driver.log("launch")) == 1


def test_kernels_come_from_the_disk_and_a_slow_start_is_explained_once(
    driver: Driver,
    backend: Nvrtc,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.WARNING)
    monkeypatch.setattr(nvrtc, "PATIENCE_SECONDS", 0.0)
    where = torch.device("cuda", 0)
    for kernel in (KERNEL, "scale<2>", KERNEL):
        backend.launch("scale.cu", kernel, (1, 1, 1), 64, 0, [torch.zeros(4), 1, 1, 1.0], where)
    (record,) = caplog.records
    assert "pointlib.ops.precompile --arch sm_90a" in record.message
    assert str(tmp_path / "cache") in record.message

    def refuse(*arguments: object) -> None:
        raise AssertionError("compiled again")

    monkeypatch.setattr("pointlib.ops._cuda.compiler.compile_kernels", refuse)
    again = Nvrtc(KernelCache(tmp_path / "cache"))
    again.launch("scale.cu", KERNEL, (1, 1, 1), 64, 0, [torch.zeros(4), 1, 1, 1.0], where)
    assert len(driver.log("launch")) == 4


def test_the_engine_launches_on_it(
    driver: Driver, backend: Nvrtc, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine, "_backend", None)
    monkeypatch.setattr(nvrtc, "Nvrtc", lambda: backend)
    assert engine.backend() is backend is engine.backend()
