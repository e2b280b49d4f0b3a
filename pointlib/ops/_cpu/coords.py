"""The CPU implementations of this family: the compiled engine, or the composition."""

from __future__ import annotations

from pointlib.ops._cpu.composition.coords import lookup_keys as lookup_keys
from pointlib.ops._cpu.composition.coords import unique_keys as unique_keys
