"""The weight gradient: sums over pairs, split into chunks that many blocks add up and one kernel then adds in order."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from pointlib.ops._cuda import engine
from pointlib.ops._cuda.chunks import chunk_pairs, chunk_rows
from pointlib.ops._cuda.tiles import (
    Product,
    exact_types,
    on_tensor_cores,
    rows_are_vectors,
    tensor_core_types,
)
from pointlib.ops._cuda.types import ELEMENTS, accumulator

SOURCE = "weight_grad.cu"
BLOCK = 256
MIN_PAIRS = 512
"""Of a chunk, so that the rows it gathers outweigh its partial sums."""
BLOCKS_PER_SM = 8
SIDES = (32, 64, 96, 128)
"""Square tiles of the tensor cores, in channels."""
NARROW = (16, 64)
"""The tile for the few input channels of a network's first layer."""


def weight_grad(
    feats: Tensor,
    grad: Tensor,
    in_index: Tensor | None,
    out_index: Tensor | None,
    offset_ptr: Tensor | None,
    groups: int,
    chunk: int | None = None,
) -> Tensor:
    """grad_weight[k] = sum of feats[i]^T grad[o] over the pairs (i, o) of tap k; sums in float32, or float64.

    Float32 features are multiplied in tf32 where `torch.backends.cuda.matmul.allow_tf32` says so.

    Args:
        feats: (N, C_in) float.
        grad: (num_out, C_out), the dtype of feats.
        in_index: (P,) int32 row of feats, pairs grouped by tap; None where every row feeds itself through one tap.
        out_index: (P,) int32 row of grad, or None likewise.
        offset_ptr: (K + 1,) int64 on the CPU, or None likewise.
        groups: Channel groups.
        chunk: Pairs of a tap that are summed together before all are; the prior's choice if None.

    Returns:
        (K, C_in / groups, C_out), the dtype of feats.
    """
    feats, grad = feats.contiguous(), grad.contiguous()
    pairs = len(feats) if in_index is None else len(in_index)
    c_in, c_out = feats.shape[1], grad.shape[1]
    taps = 1 if offset_ptr is None else len(offset_ptr) - 1
    out = feats.new_empty(taps, c_in // groups, c_out)
    if not out.numel() or not pairs:
        return out.zero_()
    device = engine.properties(feats)
    if groups > 1:
        kernel, block = _grouped_kernel(feats.dtype), BLOCK
        tiles = engine.ceil_div(out[0].numel(), 32)
        shared = BLOCK * accumulator(feats.dtype).itemsize
        last: tuple[int, ...] = (groups,)
    else:
        tile = _choose_tile(feats.dtype, c_in, c_out, device.capability)
        kernel, block = _kernel(tile), tile.threads
        tiles = _tiles(tile, c_in, c_out)
        shared = tile.shared_bytes(device.capability, transposed=True)
        last = (rows_are_vectors(feats), rows_are_vectors(grad))
    size = chunk or _chunk_size(pairs, tiles, device.num_sms)
    if in_index is None or out_index is None or offset_ptr is None:
        in_index = out_index = None
        chunks = chunk_rows(pairs, size, feats)
    else:
        in_index, out_index = in_index.contiguous(), out_index.contiguous()
        chunks = chunk_pairs(offset_ptr, size, feats)
    partial = feats.new_empty((chunks.num_chunks, *out.shape[1:]), dtype=accumulator(feats.dtype))
    engine.launch(
        *(SOURCE, kernel, chunks.num_chunks * tiles, block),
        *(feats, grad, in_index, out_index, chunks.bounds, partial, c_in, c_out, *last),
        shared_bytes=shared,
    )
    engine.launch(
        *(SOURCE, _sum_kernel(out.dtype), engine.ceil_div(out.numel(), BLOCK), BLOCK),
        *(partial, chunks.tap_ptr, out, taps, out[0].numel()),
    )
    return out


def chunk_candidates(feats: Tensor, pairs: int, c_out: int) -> list[int]:
    """Pairs of a chunk that are worth timing for one group, the prior first."""
    device, c_in = engine.properties(feats), feats.shape[1]
    tile = _choose_tile(feats.dtype, c_in, c_out, device.capability)
    prior = _chunk_size(pairs, _tiles(tile, c_in, c_out), device.num_sms)
    return [prior, *(n for n in (prior // 2, prior * 2, prior // 4, prior * 4) if n >= MIN_PAIRS)]


def _tiles(tile: Product, c_in: int, c_out: int) -> int:
    return engine.ceil_div(c_in, tile.m) * engine.ceil_div(c_out, tile.n)


def _chunk_size(pairs: int, tiles: int, num_sms: int) -> int:
    """Pairs of a chunk, a power of two, so that the chunks of all tiles fill the device a few times over."""
    wanted = pairs * tiles // (BLOCKS_PER_SM * num_sms)
    return 1 << (max(wanted, MIN_PAIRS) - 1).bit_length()


def _choose_tile(dtype: torch.dtype, c_in: int, c_out: int, capability: int) -> Product:
    """The tile that multiplies and gathers least."""
    tensor_cores = on_tensor_cores(dtype, capability)
    if c_in <= NARROW[0]:
        return Product(dtype, *NARROW, tensor_cores)
    if not tensor_cores:
        return Product(dtype, 64, 64, tensor_cores)

    def cost(side: int) -> int:
        tiles = engine.ceil_div(c_in, side) * engine.ceil_div(c_out, side)
        return tiles * side * (side + 64)  # a gathered channel costs about 32 products

    side = min(SIDES, key=cost)
    return Product(dtype, side, side, tensor_cores)


def _kernel(tile: Product) -> str:
    kind = "tensor" if tile.tensor_cores else "exact"
    return f"pointlib::weight_grad_{kind}<{tile.arguments}>"


def _grouped_kernel(dtype: torch.dtype) -> str:
    return f"pointlib::weight_grad_grouped<{ELEMENTS[dtype]}>"


def _sum_kernel(dtype: torch.dtype) -> str:
    return f"pointlib::add_chunks<{ELEMENTS[dtype]}>"


def variants(capability: int) -> Iterator[tuple[str, str]]:
    """Every kernel of this file that a device may be asked to run, as (source, name)."""
    for dtype in tensor_core_types(capability):
        yield SOURCE, _kernel(Product(dtype, *NARROW, True))
        yield from ((SOURCE, _kernel(Product(dtype, side, side, True))) for side in SIDES)
    for dtype in exact_types(capability):
        yield SOURCE, _kernel(Product(dtype, *NARROW, False))
        yield SOURCE, _kernel(Product(dtype, 64, 64, False))
    for dtype in ELEMENTS:
        yield SOURCE, _grouped_kernel(dtype)
        yield SOURCE, _sum_kernel(dtype)
