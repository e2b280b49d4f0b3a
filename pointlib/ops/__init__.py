"""Functional operators on sparse voxels and points, one family a file."""

from __future__ import annotations

import torch


def best_device() -> torch.device:
    """The GPU if there is one that the operators have kernels for, else the CPU.

    Example:
        >>> best_device().type in ("cpu", "cuda")
        True
    """
    from pointlib.ops import sparse_conv as sparse_conv  # defines the operator

    has_kernels = torch._C._dispatch_has_kernel_for_dispatch_key("pointlib::sparse_conv", "CUDA")
    return torch.device("cuda" if has_kernels and torch.cuda.is_available() else "cpu")
