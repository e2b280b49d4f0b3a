"""What carries tensors to a GPU and back for the tests, tried with the emulator as the device."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.cuda_emulator.building import compiler
from tests.cuda_emulator.emulator import Emulator
from tests.cuda_emulator.real_device import RealDevice

SOURCE = """// For a test.
#include "types.cuh"
namespace pointlib {
__global__ void shift(const float* from, float* to, const float* scale, int64_t count, float offset) {
    const int64_t i = global_thread();
    if (i < count) to[i] = from[i] * (scale ? scale[0] : 1) + offset;
}
}  // namespace pointlib
"""


def test_tensors_travel_with_their_memory_and_come_back(tmp_path: Path) -> None:
    if compiler() is None:
        pytest.skip("needs a C++ compiler: install g++ or name one by CXX")
    types = Path(__file__).parents[2] / "cuda" / "types.cuh"
    (tmp_path / "types.cuh").write_text(types.read_text())
    (tmp_path / "shift.cu").write_text(SOURCE)
    listed = [("shift.cu", "pointlib::shift")]
    emulator = Emulator(80, tmp_path, lambda capability: listed)
    device = RealDevice(emulator, torch.device("cpu"))
    memory = torch.arange(8.0)
    first, second = memory[:4], memory[4:]  # two arguments in one memory block
    arguments = [first, second, None, 4, 0.5]
    device.launch(*listed[0], (1, 1, 1), 32, 0, arguments, memory.device)
    assert memory.tolist() == [0, 1, 2, 3, 0.5, 1.5, 2.5, 3.5]
    scale = torch.tensor([2.0])
    device.launch(*listed[0], (1, 1, 1), 32, 0, [second, first, scale, 4, 0.0], memory.device)
    assert memory.tolist() == [1, 3, 5, 7, 0.5, 1.5, 2.5, 3.5]
    assert device.capability == 80
