"""Functional operators on sparse voxels and points, one family a file."""

from __future__ import annotations

import importlib
import pkgutil

import torch

OLDEST_CAPABILITY = (7, 5)


def best_device() -> torch.device:
    """The GPU if there is an NVIDIA one of compute capability 7.5 or newer, else the CPU.

    Example:
        >>> best_device().type in ("cpu", "cuda")
        True
    """
    usable = torch.version.cuda is not None and torch.cuda.is_available()
    if usable and torch.cuda.get_device_capability() >= OLDEST_CAPABILITY:
        return torch.device("cpu" if operators_without("CUDA") else "cuda")
    return torch.device("cpu")


def operators_without(dispatch_key: str) -> list[str]:
    """Operators that have no implementation for a kind of device, by name.

    Args:
        dispatch_key: Such as "CUDA".
    """
    for module in pkgutil.iter_modules(__path__):
        if not module.name.startswith("_"):
            importlib.import_module(f"{__name__}.{module.name}")  # defines its operators
    has_kernel = torch._C._dispatch_has_kernel_for_dispatch_key
    keys = (dispatch_key, "CompositeExplicitAutograd", "CompositeImplicitAutograd")
    names = (
        name for name in torch._C._dispatch_get_all_op_names() if name.startswith("pointlib::")
    )
    return sorted(name for name in names if not any(has_kernel(name, key) for key in keys))
