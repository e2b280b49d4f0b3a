"""What was derived from a tensor, kept for as long as the tensor lives and is not written to."""

from __future__ import annotations

from typing import Generic, TypeVar

from torch import Tensor
from torch.utils.weak import WeakIdKeyDictionary

T = TypeVar("T")


def state_of(tensor: Tensor) -> tuple[object, ...]:
    """What changes when a tensor is written to. Of tensors made under inference_mode torch does not tell."""
    version = None if tensor.is_inference() else tensor._version
    return (tensor.data_ptr(), tuple(tensor.shape), version)


class Remembered(Generic[T]):
    """A value for each tensor. The value must not hold the tensor itself, or neither is ever freed."""

    def __init__(self) -> None:
        self._values: WeakIdKeyDictionary = WeakIdKeyDictionary()

    def get(self, tensor: Tensor) -> T | None:
        """The value, or None if there is none or the tensor was written to since."""
        state, value = self._values.get(tensor, (None, None))
        return value if state == state_of(tensor) else None

    def put(self, tensor: Tensor, value: T) -> T:
        """Remember the value, and return it."""
        self._values[tensor] = (state_of(tensor), value)
        return value
