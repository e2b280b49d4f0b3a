"""The CPU implementations of this family: the compiled engine, or the composition."""

from __future__ import annotations

from pointlib.ops._cpu.composition.kernel_map import conv_sites as conv_sites
from pointlib.ops._cpu.composition.kernel_map import generative_sites as generative_sites
from pointlib.ops._cpu.composition.kernel_map import kernel_map as kernel_map
