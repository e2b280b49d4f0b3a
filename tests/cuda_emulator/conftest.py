"""The fixture `emulator`: while it is active, `pointlib.ops._cuda.engine` runs kernels in the emulator."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from pointlib.ops._cuda import engine
from tests.cuda_emulator.building import compiler
from tests.cuda_emulator.emulator import Emulator


@pytest.fixture(params=[75, 90], ids=["sm75", "sm90"])
def emulator(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Emulator]:
    """An emulated device of either generation. Its tensors are on the CPU; new ones hold NaN or the largest integer."""
    if compiler() is None:
        pytest.skip("needs a C++ compiler: install g++ or name one by CXX")
    emulated = Emulator(request.param)
    monkeypatch.setattr(engine, "_backend", emulated)
    deterministic = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)  # which fills what `empty` returns
    yield emulated
    torch.use_deterministic_algorithms(deterministic)
