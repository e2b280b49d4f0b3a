"""The CPU implementations of this family: the compiled engine, or the composition."""

from __future__ import annotations

from pointlib.ops._cpu.composition.pooling import pool_max as pool_max
from pointlib.ops._cpu.composition.pooling import pool_sum as pool_sum
