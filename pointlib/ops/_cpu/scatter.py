"""The CPU implementations of this family: the compiled engine, or the composition."""

from __future__ import annotations

from pointlib.ops._cpu.composition.scatter import gather_elements as gather_elements
from pointlib.ops._cpu.composition.scatter import gather_rows as gather_rows
from pointlib.ops._cpu.composition.scatter import scatter_elements as scatter_elements
from pointlib.ops._cpu.composition.scatter import scatter_max as scatter_max
from pointlib.ops._cpu.composition.scatter import scatter_sum as scatter_sum
