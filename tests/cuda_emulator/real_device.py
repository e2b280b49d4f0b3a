"""A GPU in the emulator's place: the tests keep their tensors on the CPU, each launch carries them there and back.

So every test of this folder is a test of the real device as well, of the code that NVRTC makes and of how it is
launched. What tensors on a GPU do in torch itself is tested in tests/ops/test_cuda_device.py.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from pointlib.ops._cuda.engine import Argument, Backend, Properties


class RealDevice:
    """Implements `pointlib.ops._cuda.engine.Backend` for tensors on the CPU.

    Args:
        backend: What launches on the device.
        device: The device.
    """

    def __init__(self, backend: Backend, device: torch.device) -> None:
        self._backend, self._device = backend, device

    @property
    def capability(self) -> int:
        """Compute capability that kernels are compiled for."""
        return self.properties(self._device).capability

    def properties(self, device: torch.device) -> Properties:
        """Of the GPU, whatever device is asked for."""
        return self._backend.properties(self._device)

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
        """Launch on copies of the tensors, each memory block copied once, and copy what became of them back."""
        copies: dict[int, tuple[Tensor, Tensor]] = {}

        def carried(argument: Argument) -> Argument:
            if not isinstance(argument, Tensor):
                return argument
            storage = argument.untyped_storage()
            if storage.data_ptr() not in copies:
                content = torch.empty(0, dtype=torch.uint8).set_(storage)
                copy = torch.empty(len(content), dtype=torch.uint8, device=self._device)
                copies[storage.data_ptr()] = (content, copy.copy_(content))
            there = copies[storage.data_ptr()][1].untyped_storage()
            layout = (argument.storage_offset(), argument.shape, argument.stride())
            return torch.empty(0, dtype=argument.dtype, device=self._device).set_(there, *layout)

        values = [carried(argument) for argument in arguments]
        self._backend.launch(source, kernel, grid, block, shared_bytes, values, self._device)
        for content, copy in copies.values():
            content.copy_(copy)
