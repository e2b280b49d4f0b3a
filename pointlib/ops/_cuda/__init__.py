"""CUDA implementations of the operators: the one seam between `pointlib.ops` and what stands in cuda/."""
