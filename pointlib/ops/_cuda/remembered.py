"""What was derived from a tensor, kept for as long as the tensor lives and is not written to."""

from __future__ import annotations

from typing import Generic, TypeVar

from torch import Tensor
from torch.utils.weak import WeakIdKeyDictionary, WeakIdRef

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

    def __len__(self) -> int:
        """Tensors that live and have a value."""
        return len(self._values)


class RememberedPair(Generic[T]):
    """A value for each last tensor, as long as the first one is the same and neither is written to."""

    def __init__(self) -> None:
        self._known: Remembered[tuple[WeakIdRef | None, tuple[object, ...] | None, T]] = (
            Remembered()
        )

    def get(self, first: Tensor | None, last: Tensor) -> T | None:
        """The value, or None if there is none of these two as they are now."""
        known = self._known.get(last)
        if known is None:
            return None
        reference, state, value = known
        if first is None or reference is None:
            return value if first is None and reference is None else None
        return value if reference() is first and state == state_of(first) else None

    def put(self, first: Tensor | None, last: Tensor, value: T) -> T:
        """Remember the value, and return it."""
        reference = None if first is None else WeakIdRef(first)
        self._known.put(last, (reference, None if first is None else state_of(first), value))
        return value

    def __len__(self) -> int:
        """Last tensors that live and have a value."""
        return len(self._known)
