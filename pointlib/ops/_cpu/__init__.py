"""CPU implementations of the operators: the one seam between `pointlib.ops` and whatever computes on the CPU."""

from pointlib.ops._cpu import coords as coords
from pointlib.ops._cpu import kernel_map as kernel_map
from pointlib.ops._cpu import quantized as quantized
from pointlib.ops._cpu import sparse_conv as sparse_conv
