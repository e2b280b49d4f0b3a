"""The fixture `emulator`: while it is active, `pointlib.ops._cuda.engine` runs kernels in the emulator, or on a GPU."""

from __future__ import annotations

import functools
from collections.abc import Iterator

import pytest
import torch

from pointlib.ops._cuda import engine
from pointlib.ops._cuda.nvrtc import Nvrtc
from tests.cuda_emulator.building import compiler
from tests.cuda_emulator.emulator import Emulator
from tests.cuda_emulator.real_device import RealDevice

GPU = pytest.param("gpu", marks=pytest.mark.gpu)


@functools.cache
def real_device() -> RealDevice:
    """The GPU, with the kernels that earlier tests loaded."""
    return RealDevice(Nvrtc(), torch.device("cuda"))


@pytest.fixture(params=[75, 90, GPU], ids=["sm75", "sm90", "gpu"])
def emulator(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Emulator | RealDevice]:
    """An emulated device of either generation, or the GPU where there is one.

    Tensors are on the CPU; new ones hold NaN or the largest integer.
    """
    emulated: Emulator | RealDevice
    if request.param == "gpu":
        emulated = real_device()
    elif compiler() is None:
        pytest.skip("needs a C++ compiler: install g++ or name one by CXX")
    else:
        emulated = Emulator(request.param)
    monkeypatch.setattr(engine, "_backend", emulated)
    deterministic = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)  # which fills what `empty` returns
    yield emulated
    torch.use_deterministic_algorithms(deterministic)
