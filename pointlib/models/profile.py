"""Counting a model's multiply-accumulate operations on a given input."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from pointlib.nn import Conv3d
from pointlib.tensor import SparseTensor


def count_macs(model: nn.Module, x: SparseTensor) -> int:
    """Count the multiply-accumulates of convolutions and linear layers in one forward pass.

    A sparse convolution costs C_in * C_out / groups for each pair of its kernel map, a linear layer C_in * C_out a
    row; biases, norms, activations and interpolation are not counted, as is usual.

    Args:
        model: A network that takes a SparseTensor; run in eval mode, and left in the mode it was in.
        x: Its input.

    Returns:
        Multiply-accumulates.
    """
    total = 0

    def add(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        nonlocal total
        if isinstance(module, Conv3d):
            total += _conv_pairs(module, inputs[0]) * module.kernel.shape[-2] * module.out_channels
        elif isinstance(module, nn.Linear):
            rows = output.numel() // module.out_features
            total += rows * module.in_features * module.out_features

    hooks = [module.register_forward_hook(add) for module in model.modules()]
    was_training = model.training
    try:
        with torch.no_grad():
            model.eval()(x)
    finally:
        model.train(was_training)
        for hook in hooks:
            hook.remove()
    return total


def _conv_pairs(module: Conv3d, x: SparseTensor) -> int:
    kernel_map = module.map_of(x)[1]
    return len(x) if kernel_map is None else kernel_map.num_pairs
