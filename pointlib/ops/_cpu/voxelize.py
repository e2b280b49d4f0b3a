"""The CPU implementations of this family: the compiled engine, or the composition."""

from __future__ import annotations

from pointlib.ops._cpu.composition.voxelize import devoxelize as devoxelize
from pointlib.ops._cpu.composition.voxelize import devoxelize_transpose as devoxelize_transpose
