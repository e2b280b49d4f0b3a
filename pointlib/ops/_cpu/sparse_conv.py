"""The CPU implementations of this family: the compiled engine, or the composition."""

from __future__ import annotations

from pointlib.ops._cpu.composition.sparse_conv import sparse_conv as sparse_conv
from pointlib.ops._cpu.composition.sparse_conv import (
    sparse_conv_grad_weight as sparse_conv_grad_weight,
)
