"""Counting a model's multiply-accumulate operations on a given input, in all and by module."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode


def count_macs(model: nn.Module, *inputs: Any) -> int:
    """Count the multiply-accumulates of one forward pass.

    Convolutions (sparse, dense and transposed), linear layers and the two products of attention are counted: a sparse
    convolution costs C_in * C_out / groups for each pair of its kernel map, a dense one for each tap of each output,
    padding included, a linear layer for each row. Biases, norms, activations, interpolation, pooling and scattering
    are not, as is usual.

    Args:
        model: A network; run in eval mode without gradients, and left in the mode it was in.
        *inputs: Its inputs, on the CPU or a GPU.

    Returns:
        Multiply-accumulates.

    Example:
        >>> count_macs(nn.Linear(3, 5), torch.zeros(2, 3))
        30
    """
    return macs_by_module(model, *inputs).get("", 0)


def macs_by_module(model: nn.Module, *inputs: Any) -> dict[str, int]:
    """Count the multiply-accumulates of one forward pass by module; arguments as `count_macs`.

    Returns:
        For each module that was called and multiplied anything, by its name in `named_modules`, what it and the modules
        within it did; "" is the whole.

    Example:
        >>> macs_by_module(nn.Sequential(nn.Linear(3, 5), nn.ReLU()), torch.zeros(2, 3))
        {'': 30, '0': 30}
    """
    formulas = {torch.ops.pointlib.sparse_conv: _sparse_conv_flops}
    was_training = model.training
    counter = FlopCounterMode(display=False, custom_mapping=formulas)
    try:
        with torch.no_grad(), _visible_products(), counter:
            model.eval()(*inputs)
    finally:
        model.train(was_training)
    root = type(model).__name__
    macs = {
        name.removeprefix(root).removeprefix("."): sum(flops.values()) // 2
        for name, flops in counter.get_flop_counts().items()
        if name.partition(".")[0] == root
    }
    return {name: macs[name] for name in sorted(macs) if macs[name]}


@contextlib.contextmanager
def _visible_products() -> Iterator[None]:
    """Let attention be computed by matrix products, which the counter sees, and not by one operator of a backend."""
    fast_path = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast_path)


def _sparse_conv_flops(
    feats: torch.Size,
    weight: torch.Size,
    bias: torch.Size | None,
    in_index: torch.Size | None,
    *args: Any,
    **kwargs: Any,
) -> int:
    """Twice the multiply-accumulates of `pointlib::sparse_conv`, from the shapes of its arguments."""
    pairs = feats[0] if in_index is None else in_index[0]
    return 2 * pairs * weight[1] * weight[2]
