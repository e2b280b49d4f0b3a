"""Element types of features in device code, as cuda/types.cuh has them."""

from __future__ import annotations

import torch

ELEMENTS = {
    torch.float32: "float",
    torch.float64: "double",
    torch.float16: "__half",
    torch.bfloat16: "__nv_bfloat16",
}
"""Their names."""


def accumulator(dtype: torch.dtype) -> torch.dtype:
    """What values of a dtype are summed in."""
    return torch.promote_types(dtype, torch.float32)
