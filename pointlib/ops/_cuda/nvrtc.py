"""The engine's back end on a GPU: loads compiled kernels and launches them on torch's current stream."""

from __future__ import annotations

import ctypes
import logging
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from pointlib.ops._cuda import compiler
from pointlib.ops._cuda.cache import KernelCache
from pointlib.ops._cuda.engine import Argument, Properties

if TYPE_CHECKING:
    from cuda.core import Kernel, ObjectCode, Stream

SHARED_BYTES = 48 * 1024
"""Dynamic shared memory that a block may use without asking for more."""
PATIENCE_SECONDS = 1.0
UPDATE = "Update the GPU's driver: it is older than the CUDA that torch brings."
EARLIER = "An earlier kernel did that; CUDA_LAUNCH_BLOCKING=1 and compute-sanitizer tell which."
REMEDIES = {
    "CUDA_ERROR_OUT_OF_MEMORY": "Free memory of the GPU: a smaller batch, or torch.cuda.empty_cache().",
    "CUDA_ERROR_NO_BINARY_FOR_GPU": UPDATE,
    "CUDA_ERROR_UNSUPPORTED_PTX_VERSION": UPDATE,
    "CUDA_ERROR_INVALID_IMAGE": UPDATE,
    "CUDA_ERROR_ILLEGAL_ADDRESS": EARLIER,
    "CUDA_ERROR_MISALIGNED_ADDRESS": EARLIER,
    "CUDA_ERROR_LAUNCH_FAILED": EARLIER,
}

logger = logging.getLogger(__name__)


@dataclass
class _Loaded:
    """A kernel on a device. `code` keeps its library; more shared memory than SHARED_BYTES is asked for once."""

    kernel: Kernel
    code: ObjectCode
    shared_bytes: int = SHARED_BYTES


@dataclass(frozen=True)
class _Gpu:
    properties: Properties
    architecture: str


class Nvrtc:
    """Compiles each kernel at its first launch, for the exact device, unless the cache has it.

    Args:
        cache: Of compiled kernels; by default the user's.

    Raises:
        ImportError: cuda.core or NVRTC is missing.
        RuntimeError: There is no NVIDIA GPU, or its driver is older than NVRTC.
    """

    def __init__(self, cache: KernelCache | None = None) -> None:
        compiler.require_cuda_core()
        from cuda import core
        from cuda.bindings import driver

        self._core, self._driver = core, driver
        if not _cuda_is_available():
            raise RuntimeError(
                f"pointlib: CUDA kernels must have an NVIDIA GPU, got none that torch {torch.__version__} can use. See "
                "what nvidia-smi says; a CPU build of torch must be replaced by a CUDA build."
            )
        _, newest = driver.cuDriverGetVersion()
        if compiler.version()[0] > newest // 1000:
            release = ".".join(map(str, compiler.version()))
            raise RuntimeError(
                f"pointlib: NVRTC must not be of a newer CUDA than the GPU's driver, got {release} and "
                f'{newest // 1000}.{newest % 1000 // 10}. Update the driver, or: pip install "cuda-bindings=='
                f'{newest // 1000}.*"'
            )
        self._cache = cache or KernelCache()
        self._gpus: dict[int, _Gpu] = {}
        self._kernels: dict[tuple[int, str, str], _Loaded] = {}
        self._streams: dict[tuple[int, int], Stream] = {}
        self._lock = threading.Lock()
        self._thread = threading.local()
        self._seconds = 0.0  # spent compiling
        self._announced = False

    def properties(self, device: torch.device) -> Properties:
        """Of a device; its capability is the one that kernels are compiled for, at most its own.

        Raises:
            RuntimeError: The device is too old.
        """
        return self._gpu(_index(device)).properties

    def launch(
        self,
        source: str,
        kernel: str,
        grid: tuple[int, int, int],
        block: int,
        shared_bytes: int,
        arguments: Sequence[Argument],
        device: torch.device,
    ) -> None:
        """Enqueue a kernel on the device's current stream, also while a CUDA graph records it."""
        values = [_value(argument) for argument in arguments]
        index = _index(device)
        if index == torch.cuda.current_device():
            self._enqueue(index, source, kernel, grid, block, shared_bytes, values)
        else:
            with torch.cuda.device(index):
                self._enqueue(index, source, kernel, grid, block, shared_bytes, values)

    def _enqueue(
        self,
        index: int,
        source: str,
        kernel: str,
        grid: tuple[int, int, int],
        block: int,
        shared_bytes: int,
        values: list[Any],
    ) -> None:
        self._bind_context(index)
        loaded = self._kernels.get((index, source, kernel)) or self._load(index, source, kernel)
        if shared_bytes > loaded.shared_bytes:
            self._ask_for_shared_memory(loaded, index, kernel)
        config = self._core.LaunchConfig(grid=grid, block=block, shmem_size=shared_bytes)
        try:
            self._core.launch(self._stream(index), config, loaded.kernel, *values)
        except Exception as error:  # cuda.core has no public class for it
            shape = f"grid {grid}, block {block}, {shared_bytes} bytes of shared memory"
            raise _explained(error, f"{kernel}, {shape}") from error

    def _gpu(self, index: int) -> _Gpu:
        if index not in self._gpus:
            device = self._core.Device(index)
            major, minor = device.compute_capability
            name = compiler.architecture(10 * major + minor)
            self._gpus[index] = _Gpu(
                Properties(
                    compiler.capability_of(name),
                    device.properties.multiprocessor_count,
                    device.properties.max_shared_memory_per_block_optin,
                ),
                name,
            )
        return self._gpus[index]

    def _bind_context(self, index: int) -> None:
        """Give a new thread the current device's context, which the driver, unlike torch, does not do by itself."""
        if not getattr(self._thread, "bound", False):
            self._core.Device(index).set_current()
            self._thread.bound = True

    def _stream(self, index: int) -> Stream:
        handle = _current_stream(index)
        stream = self._streams.get((index, handle))
        if stream is None:
            stream = self._streams[index, handle] = self._core.Stream.from_handle(handle)
        return stream

    def _load(self, index: int, source: str, kernel: str) -> _Loaded:
        name = self._gpu(index).architecture
        with self._lock:
            if (index, source, kernel) in self._kernels:  # by another thread meanwhile
                return self._kernels[index, source, kernel]
            start = time.perf_counter()
            kept = self._cache.get(source, kernel, name)
            self._announce(time.perf_counter() - start, name)
            binary = self._core.ObjectCode
            make = binary.from_ptx if name.startswith("compute") else binary.from_cubin
            try:
                with self._capture_relaxed():
                    code = make(kept.code, name=kernel, symbol_mapping={kernel: kept.symbol})
                    loaded = _Loaded(code.get_kernel(kernel), code)
                    _ = loaded.kernel.attributes.num_regs  # loads it now, not lazily at its launch
            except Exception as error:  # cuda.core has no public class for it
                raise _explained(error, f"loading {kernel} for {name}") from error
            self._kernels[index, source, kernel] = loaded
            return loaded

    @contextmanager
    def _capture_relaxed(self) -> Iterator[None]:
        """Let this thread load code while a stream records a CUDA graph, which forbids it otherwise."""
        exchange = self._driver.cuThreadExchangeStreamCaptureMode
        _, before = exchange(self._driver.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_RELAXED)
        try:
            yield
        finally:
            exchange(before)

    def _announce(self, seconds: float, architecture: str) -> None:
        """Say once why the first call takes long."""
        self._seconds += seconds
        if self._seconds > PATIENCE_SECONDS and not self._announced:
            self._announced = True
            logger.warning(
                "pointlib: compiling CUDA kernels for %s at their first use; they are kept in %s. To do it ahead: "
                "python -m pointlib.ops.precompile --arch %s",
                architecture,
                self._cache.folder,
                architecture,
            )

    def _ask_for_shared_memory(self, loaded: _Loaded, index: int, kernel: str) -> None:
        """Let a kernel use all that a block may have."""
        attribute = (
            self._driver.CUfunction_attribute.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
        )
        limit = self._gpu(index).properties.shared_bytes
        limit -= loaded.kernel.attributes.shared_size_bytes  # what it has besides
        (status,) = self._driver.cuKernelSetAttribute(attribute, limit, loaded.kernel.handle, index)
        if int(status):
            raise _explained(RuntimeError(status.name), f"{kernel}, {limit} bytes of shared memory")
        loaded.shared_bytes = limit


def _value(argument: Argument) -> int | ctypes.c_float:
    """What cuda.core passes as a pointer, an int64_t or a float."""
    if isinstance(argument, Tensor):
        return argument.data_ptr()
    if isinstance(argument, float):
        return ctypes.c_float(argument)
    return 0 if argument is None else int(argument)


def _explained(error: Exception, doing: str) -> RuntimeError:
    """An error of the driver with what it happened to, and what can be done."""
    code = next((code for code in REMEDIES if code in str(error)), "")
    kind = torch.OutOfMemoryError if code == "CUDA_ERROR_OUT_OF_MEMORY" else RuntimeError
    return kind(f"pointlib: {doing}: {error} {REMEDIES.get(code, '')}".rstrip())


def _index(device: torch.device) -> int:
    assert device.type == "cuda", device
    return torch.cuda.current_device() if device.index is None else device.index


def _cuda_is_available() -> bool:
    return torch.version.cuda is not None and torch.cuda.is_available()


def _current_stream(index: int) -> int:
    """Address of torch's current stream; torch.cuda.current_stream() says the same in ten times the time."""
    return int(torch._C._cuda_getCurrentRawStream(index))
