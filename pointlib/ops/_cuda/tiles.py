"""Tiles of the kernels that multiply panels of gathered rows: their names, threads and shared memory.

What stands here says again what cuda/product_tile.cuh and cuda/gathered_rows.cuh compute from the same numbers.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from pointlib.ops._cuda.types import ELEMENTS


@dataclass(frozen=True)
class Product:
    """Sums of m x n that a block keeps in registers, over panels of some depth.

    Attributes:
        dtype: Of the panels.
        m: Rows of the tile.
        n: Columns of the tile.
        tensor_cores: By tensor cores (float32 as tf32), or by exact fused multiply-adds.
    """

    dtype: torch.dtype
    m: int
    n: int
    tensor_cores: bool

    @property
    def depth(self) -> int:
        """Of the panels: 64 bytes of a row."""
        return 64 // self.dtype.itemsize

    @property
    def threads(self) -> int:
        """Of a block."""
        if not self.tensor_cores:
            return 256
        warps_m = 1 if self.m == 16 else 2
        return 32 * warps_m * (4 if self.m == 16 or self.n == 128 else 2)

    @property
    def arguments(self) -> str:
        """Template arguments of a kernel."""
        return f"{ELEMENTS[self.dtype]}, {self.m}, {self.n}, {self.depth}"

    def shared_bytes(self, capability: int, transposed: bool) -> int:
        """Of all stages. `transposed`: a row of the first panel is a step in depth, not a row of the tile."""
        padding = 4 if not transposed and self.dtype.itemsize == 4 else 8
        rows, columns = (self.depth, self.m) if transposed else (self.m, self.depth)
        elements = rows * (columns + padding) + self.depth * (self.n + 8)
        return stages(capability) * elements * self.dtype.itemsize


def stages(capability: int) -> int:
    """Stages of shared memory: two are filled ahead where copies are asynchronous."""
    return 3 if capability >= 80 else 2


def on_tensor_cores(dtype: torch.dtype, capability: int) -> bool:
    """Whether a dtype is multiplied by tensor cores; float32 where torch allows its own products to be in TF32."""
    if dtype == torch.float32:
        return capability >= 80 and _allows_tf32()
    return dtype == torch.float16 or (dtype == torch.bfloat16 and capability >= 80)


def _allows_tf32() -> bool:
    """By torch's setting since 2.9, beside which the older one may not be read, or else by that."""
    settings = torch.backends.cuda.matmul
    precision = getattr(settings, "fp32_precision", None)
    return settings.allow_tf32 if precision is None else precision == "tf32"


def tensor_core_types(capability: int) -> tuple[torch.dtype, ...]:
    """The dtypes for which `on_tensor_cores` may hold."""
    types = (torch.float16, torch.bfloat16, torch.float32)
    return types if capability >= 80 else types[:1]


def exact_types(capability: int) -> tuple[torch.dtype, ...]:
    """The dtypes for which `on_tensor_cores` may not hold."""
    types = (torch.float32, torch.float64, torch.bfloat16)
    return types[:2] if capability >= 80 else types


def rows_are_vectors(matrix: Tensor) -> int:
    """1 where every row of a contiguous matrix begins at 16 bytes, so that it can be copied by vectors, else 0."""
    row_bytes = matrix.shape[1] * matrix.element_size()
    return int(row_bytes % 16 == 0 and matrix.data_ptr() % 16 == 0)
