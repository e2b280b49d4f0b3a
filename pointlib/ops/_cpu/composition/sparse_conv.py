"""Sparse convolution on the CPU as a composition of torch products over cache-sized blocks of output rows.

The pairs of a tap ascend in the output row, so the pairs that feed a block of rows are one slice per tap. Working
block by block keeps what is gathered and what is accumulated in the caches. Every row is summed over its taps in
one fixed order, whatever the number of threads.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

BLOCK_ELEMENTS = 1 << 20
"""Features of a block of rows: 4 MiB in float32, the best of a sweep over C = 32 .. 256."""


@torch.autocast("cpu", enabled=False)
def sparse_conv(
    feats: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    in_index: Tensor | None,
    out_index: Tensor | None,
    offset_ptr: Tensor | None,
    num_out: int,
    groups: int,
    identity_tap: int,
) -> Tensor:
    """Forward; also the input gradient, by the transposed map and weight. Shapes as in ops/sparse_conv.py."""
    from pointlib.ops._cpu.composition import loops

    compute_dtype = _compute_dtype(feats)
    kernels = _split_groups(weight.to(compute_dtype), groups)
    if in_index is None or out_index is None or offset_ptr is None:
        product = _product(feats.to(compute_dtype), kernels[0])
        return (product if bias is None else product + bias).to(feats.dtype)
    out = feats.new_empty((num_out, weight.shape[2]), dtype=compute_dtype)
    out_rows, channels = out_index.numpy(), max(feats.shape[1], weight.shape[2], 1)
    for rows, taps in _blocks(out_index, offset_ptr, num_out, channels):
        block = out[rows]
        if identity_tap >= 0:
            _product(feats[rows].to(compute_dtype), kernels[identity_tap], block)
        else:
            block.zero_()
        for tap, pairs in taps:
            if tap != identity_tap:
                gathered = feats.index_select(0, in_index[pairs])
                product = _product(gathered.to(compute_dtype), kernels[tap])
                loops.accumulate(product.numpy(), out_rows[pairs], out.numpy())
        if bias is not None:
            block += bias
    return out.to(feats.dtype)


def fused_sparse_conv(
    feats: Sequence[Tensor],
    weight: Tensor,
    in_index: Tensor | None,
    out_index: Tensor | None,
    offset_ptr: Tensor | None,
    num_out: int,
    scale: Tensor | None,
    shift: Tensor | None,
    residual: Tensor | None,
    negative_slope: float,
) -> Tensor:
    """Concatenate, convolve, and finish the sum, one after the other. Shapes as in ops/fused_conv.py."""
    joined, dtype = torch.cat(list(feats), dim=1), _compute_dtype(feats[0])
    pairs = (in_index, out_index, offset_ptr)
    out = sparse_conv(joined.to(dtype), weight.to(dtype), None, *pairs, num_out, 1, -1)
    if scale is not None:
        out = out * scale.to(dtype)
    if shift is not None:
        out = out + shift.to(dtype)
    if residual is not None:
        out = out + residual.to(dtype)
    if negative_slope != 1:
        out = torch.where(out < 0, out * negative_slope, out)
    return out.to(feats[0].dtype)


def sparse_conv_grad_weight(
    feats: Tensor,
    grad: Tensor,
    in_index: Tensor | None,
    out_index: Tensor | None,
    offset_ptr: Tensor | None,
    groups: int,
    identity_tap: int,
) -> Tensor:
    """Weight gradient: grad_weight[k] = sum of feats[i]^T grad[o] over the pairs of tap k, a group at a time."""
    compute_dtype = _compute_dtype(feats)
    if in_index is None or out_index is None or offset_ptr is None:
        in_index = out_index = torch.arange(len(feats), dtype=torch.int32)
        offset_ptr, identity_tap = torch.tensor([0, len(feats)]), 0
    volume, c_in, c_out = len(offset_ptr) - 1, feats.shape[1] // groups, grad.shape[1]
    total = feats.new_zeros((volume, groups, c_in, c_out // groups), dtype=compute_dtype)
    channels = max(feats.shape[1], c_out, 1)
    for rows, taps in _blocks(out_index, offset_ptr, grad.shape[0], channels):
        for tap, pairs in taps:
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
    return total.transpose(1, 2).reshape(volume, c_in, c_out).to(feats.dtype)


def _compute_dtype(feats: Tensor) -> torch.dtype:
    return torch.float64 if feats.dtype == torch.float64 else torch.float32


def _split_groups(weight: Tensor, groups: int) -> Tensor:
    """(K, C_in / groups, C_out) -> (K, groups, C_in / groups, C_out / groups), or as it is for one group."""
    if groups == 1:
        return weight.contiguous()
    return weight.unflatten(2, (groups, -1)).transpose(1, 2).contiguous()


def _product(rows: Tensor, kernel: Tensor, out: Tensor | None = None) -> Tensor:
    """(R, C_in) times one tap's kernel -> (R, C_out), into `out` where it is given."""
    if kernel.dim() == 2:
        return torch.mm(rows, kernel, out=out)
    groups, c_in, c_out = kernel.shape
    if c_in == c_out == 1:
        return torch.mul(rows, kernel.view(-1), out=out)
    grouped = rows.reshape(-1, groups, c_in).transpose(0, 1)
    product = torch.bmm(grouped, kernel).transpose(0, 1).reshape(-1, groups * c_out)
    return product if out is None else out.copy_(product)


def _blocks(
    out_index: Tensor, offset_ptr: Tensor, num_out: int, channels: int
) -> Iterator[tuple[slice, list[tuple[int, slice]]]]:
    """Walk the rows of the output block by block, with the pairs that feed each: (rows, [(tap, pairs)])."""
    from pointlib.ops._cpu.composition import loops

    rows = max(BLOCK_ELEMENTS // channels, 512)
    starts, out_rows = offset_ptr.numpy(), out_index.numpy()
    cuts, ascending = loops.block_cuts(out_rows, starts, rows, -(-num_out // rows))
    if not ascending:  # voxels that are not in sorted order: one block
        rows, cuts = num_out, np.stack([starts[:-1], starts[1:]])
    bounds = cuts.tolist()
    for block in range(len(bounds) - 1):
        ends = zip(bounds[block], bounds[block + 1], strict=True)
        taps = [(tap, slice(start, end)) for tap, (start, end) in enumerate(ends) if start < end]
        yield slice(block * rows, min((block + 1) * rows, num_out)), taps
