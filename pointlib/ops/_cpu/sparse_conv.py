"""Sparse convolution on the CPU as a composition of torch products over cache-sized blocks of output rows.

The pairs of a tap ascend in the output row, so the pairs that feed a block of rows are one slice per tap. Working
block by block keeps what is gathered and what is accumulated in the L2 cache. Every row is summed over its taps in
one fixed order, whatever the number of threads.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from numba import njit
from torch import Tensor

BLOCK_ELEMENTS = 1 << 20
"""Features of a block of rows: 4 MiB in float32, the best of a sweep over C = 32 .. 256."""


@torch.autocast("cpu", enabled=False)
def sparse_conv(
    feats: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    in_index: Tensor,
    out_index: Tensor,
    offset_ptr: Tensor,
    num_out: int,
    groups: int,
    identity_tap: int,
) -> Tensor:
    """Forward; also the input gradient, by the transposed map and weight. Shapes as in ops/sparse_conv.py."""
    compute_dtype = _compute_dtype(feats)
    kernels = _split_groups(weight.to(compute_dtype), groups)
    out = feats.new_zeros((num_out, weight.shape[2]), dtype=compute_dtype)
    if bias is not None:
        out += bias
    channels = max(feats.shape[1], weight.shape[2], 1)
    for rows, tap, pairs in _blocks(out_index, offset_ptr, num_out, channels):
        block = out[rows]
        if tap == identity_tap:
            _add_product(block, feats[rows], kernels[tap])
        else:
            gathered = feats.index_select(0, in_index[pairs])
            product = _product(gathered.to(compute_dtype), kernels[tap])
            block.index_add_(0, out_index[pairs] - rows.start, product)
    return out.to(feats.dtype)


@torch.autocast("cpu", enabled=False)
def sparse_conv_grad_weight(
    feats: Tensor,
    grad: Tensor,
    in_index: Tensor,
    out_index: Tensor,
    offset_ptr: Tensor,
    groups: int,
    identity_tap: int,
) -> Tensor:
    """Weight gradient: grad_weight[k] = sum of feats[i]^T grad[o] over the pairs of tap k, a group at a time."""
    compute_dtype = _compute_dtype(feats)
    taps, c_in, c_out = len(offset_ptr) - 1, feats.shape[1] // groups, grad.shape[1]
    total = feats.new_zeros((taps, groups, c_in, c_out // groups), dtype=compute_dtype)
    channels = max(feats.shape[1], c_out, 1)
    for rows, tap, pairs in _blocks(out_index, offset_ptr, grad.shape[0], channels):
        if tap == identity_tap:
            left, right = feats[rows], grad[rows]
        else:
            left = feats.index_select(0, in_index[pairs])
            right = grad.index_select(0, out_index[pairs])
        left, right = left.to(compute_dtype), right.to(compute_dtype)
        if groups == 1:
            total[tap, 0].addmm_(left.t(), right)
        else:
            left = left.unflatten(1, (groups, c_in)).permute(1, 2, 0)
            total[tap].baddbmm_(left, right.unflatten(1, (groups, -1)).transpose(0, 1))
    return total.transpose(1, 2).reshape(taps, c_in, c_out).to(feats.dtype)


def _compute_dtype(feats: Tensor) -> torch.dtype:
    return torch.float64 if feats.dtype == torch.float64 else torch.float32


def _split_groups(weight: Tensor, groups: int) -> Tensor:
    """(K, C_in / groups, C_out) -> (K, groups, C_in / groups, C_out / groups), or as it is for one group."""
    if groups == 1:
        return weight.contiguous()
    return weight.unflatten(2, (groups, -1)).transpose(1, 2).contiguous()


def _product(rows: Tensor, kernel: Tensor) -> Tensor:
    """(R, C_in) times one tap's kernel -> (R, C_out)."""
    if kernel.dim() == 2:
        return rows @ kernel
    groups, c_in, c_out = kernel.shape
    if c_in == c_out == 1:
        return rows * kernel.view(-1)
    grouped = rows.view(-1, groups, c_in).transpose(0, 1)
    return torch.bmm(grouped, kernel).transpose(0, 1).reshape(-1, groups * c_out)


def _add_product(block: Tensor, rows: Tensor, kernel: Tensor) -> None:
    rows = rows.to(block.dtype)
    if kernel.dim() == 2:
        block.addmm_(rows, kernel)
    else:
        block += _product(rows.contiguous(), kernel)


def _blocks(
    out_index: Tensor, offset_ptr: Tensor, num_out: int, channels: int
) -> Iterator[tuple[slice, int, slice]]:
    """Walk (rows of the output, tap, its pairs there), every non-empty one, block by block."""
    rows = max(BLOCK_ELEMENTS // channels, 512)
    starts, out_rows = offset_ptr.numpy(), out_index.numpy()
    cuts, ascending = _block_cuts(out_rows, starts, rows, -(-num_out // rows))
    if not ascending:  # voxels that are not in sorted order: one block
        rows, cuts = max(num_out, 1), np.stack([starts[:-1], starts[1:]])
    bounds = cuts.tolist()
    for block in range(len(bounds) - 1):
        span = slice(block * rows, min((block + 1) * rows, num_out))
        for tap, (start, end) in enumerate(zip(bounds[block], bounds[block + 1], strict=True)):
            if start < end:
                yield span, tap, slice(start, end)


@njit(cache=True, nogil=True)
def _block_cuts(
    out_rows: np.ndarray, starts: np.ndarray, rows: int, num_blocks: int
) -> tuple[np.ndarray, bool]:
    """First pair of each block, (num_blocks + 1, K), and whether every tap's output rows ascend."""
    taps = len(starts) - 1
    cuts = np.empty((num_blocks + 1, taps), dtype=np.int64)
    for tap in range(taps):
        block, last = 0, -1
        for at in range(starts[tap], starts[tap + 1]):
            row = out_rows[at]
            if row < last:
                return cuts, False
            last = row
            while block * rows <= row:
                cuts[block, tap] = at
                block += 1
        cuts[block:, tap] = starts[tap + 1]
    return cuts, True
