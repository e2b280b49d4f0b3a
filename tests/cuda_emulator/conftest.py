"""The fixture `emulator`: while it is active, `pointlib.ops._cuda.engine` runs kernels in the emulator."""

from __future__ import annotations

import pytest

from pointlib.ops._cuda import engine
from tests.cuda_emulator.emulator import Emulator, compiler


@pytest.fixture(params=[75, 90], ids=["sm75", "sm90"])
def emulator(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Emulator:
    """An emulated device of either generation; tensors are on the CPU."""
    if compiler() is None:
        pytest.skip("needs a C++ compiler: install g++ or name one by CXX")
    emulated = Emulator(request.param)
    monkeypatch.setattr(engine, "_backend", emulated)
    return emulated
