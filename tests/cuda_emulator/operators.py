"""Operators of pointlib that run as on a GPU: the functions of `pointlib.ops._cuda` in the place of the CPU's."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

ANY_ARCHITECTURE = [
    pytest.mark.usefixtures("emulator"),
    pytest.mark.parametrize(
        "emulator", [75, pytest.param("gpu", marks=pytest.mark.gpu)], indirect=True
    ),
]
"""Marks of tests whose sources do not ask for the architecture, so that one emulated device stands for all."""


class OnDevice(TorchDispatchMode):
    """While it is active, pointlib's operators are these functions; counts how often each was called.

    Args:
        functions: By the operators' names.
    """

    def __init__(self, **functions: Callable[..., Any]) -> None:
        super().__init__()
        self.functions = functions
        self.calls = dict.fromkeys(functions, 0)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        namespace, _, name = func._schema.name.partition("::")
        if namespace != "pointlib":
            return func(*args, **(kwargs or {}))
        if name not in self.functions:
            raise AssertionError(f"pointlib::{name} is called, and has no function here")
        self.calls[name] += 1
        return self.functions[name](*args, **(kwargs or {}))


def same_bits(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Whether two tensors are of one dtype and equal, NaN where NaN is."""
    both_nan = a.isnan() & b.isnan()
    return a.dtype == b.dtype and a.shape == b.shape and bool(((a == b) | both_nan).all())
