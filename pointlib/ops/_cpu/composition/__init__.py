"""The operators as compositions of torch, numpy and numba: float64, and every dtype where no engine was compiled."""
