"""Convolution tap by tap: products of the pairs of each tap, by one fused kernel or by the library, and their sums."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from pointlib.ops._cuda import engine
from pointlib.ops._cuda.chunks import chunk_pairs, chunk_rows
from pointlib.ops._cuda.row_map import RowMap, device_offsets, row_map
from pointlib.ops._cuda.tiles import (
    Product,
    exact_types,
    on_tensor_cores,
    rows_are_vectors,
    tensor_core_types,
)
from pointlib.ops._cuda.types import ELEMENTS, accumulator

SOURCE = "weight_stationary.cu"
BLOCK = 256
TILE_PAIRS = 64
WIDTHS = (32, 64, 96, 128)
"""Output channels of a tile of the tensor cores."""
PIECES = {2: ("short", torch.int16), 4: ("int", torch.int32), 8: ("long long", torch.int64)}
"""What rows are gathered in where 16 bytes do not fit, by the size of an element."""


def fetch_on_demand(
    feats: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    in_index: Tensor | None,
    out_index: Tensor | None,
    offset_ptr: Tensor | None,
    num_out: int,
) -> Tensor:
    """Gather, multiply and put in place in one kernel, over tiles of the pairs of one tap; then sum.

    A pair's product takes 4 bytes an output channel (8 in float64) until the sum, so this is for few pairs.

    Args:
        feats: (N, C_in) float.
        weight: (K, C_in, C_out), the dtype of feats.
        bias: (C_out,), the dtype of feats, or None.
        in_index: (P,) int32 input rows, pairs grouped by tap; None where every row feeds itself through one tap.
        out_index: (P,) int32 output rows, or None likewise.
        offset_ptr: (K + 1,) int64 on the CPU, or None likewise.
        num_out: Number of output rows.

    Returns:
        (num_out, C_out), the dtype of feats; sums in float32, or float64 for float64.
    """
    out = feats.new_empty(num_out, weight.shape[2])
    return _fetch(feats, weight, bias, in_index, out_index, offset_ptr, out)


def tap_sums(
    feats: Tensor,
    weight: Tensor,
    in_index: Tensor,
    out_index: Tensor,
    offset_ptr: Tensor,
    rows: int,
) -> Tensor:
    """The sums of `fetch_on_demand` before they are rounded: (rows, C_out) float32, or float64 for float64."""
    out = feats.new_empty((rows, weight.shape[2]), dtype=accumulator(feats.dtype))
    return _fetch(feats, weight, None, in_index, out_index, offset_ptr, out)


def _fetch(
    feats: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    in_index: Tensor | None,
    out_index: Tensor | None,
    offset_ptr: Tensor | None,
    out: Tensor,
) -> Tensor:
    feats, weight = feats.contiguous(), weight.contiguous()
    (num_out, c_out), c_in = out.shape, feats.shape[1]
    if not out.numel():
        return out
    capability = engine.properties(feats).capability
    tile = _choose_tile(feats.dtype, c_out, capability)
    rows: RowMap | None = None
    if in_index is None or out_index is None or offset_ptr is None:
        in_index = out_index = None
        chunks = chunk_rows(num_out, tile.m, feats)
    else:
        rows = row_map(in_index, out_index, offset_ptr, num_out, splits=0)
        in_index, out_index = in_index.contiguous(), out_index.contiguous()
        chunks = chunk_pairs(offset_ptr, tile.m, feats)
    pairs = num_out if in_index is None else len(in_index)
    products = feats.new_empty((pairs, c_out), dtype=accumulator(feats.dtype))
    mask, row_ptr, words = (None, None, 0) if rows is None else _row_form(rows)
    engine.launch(
        *(SOURCE, _kernel(tile), chunks.num_chunks * engine.ceil_div(c_out, tile.n), tile.threads),
        *(feats, weight, in_index, out_index, chunks.bounds, chunks.taps, mask, row_ptr, products),
        *(words, c_in, c_out, rows_are_vectors(feats), rows_are_vectors(weight[0])),
        shared_bytes=tile.shared_bytes(capability, transposed=False) + 4 * tile.m,
    )
    return _add_products(products, None, row_ptr, bias, out)


def gather_scatter(
    feats: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    in_index: Tensor | None,
    out_index: Tensor | None,
    offset_ptr: Tensor | None,
    num_out: int,
    padding: float = 0.25,
) -> Tensor:
    """Gather the rows of all pairs, multiply taps of like size together by the library's products, then sum.

    For float16 and bfloat16 each tap's product is rounded to that type before the sum.

    Args:
        feats: As in `fetch_on_demand`, like everything up to num_out.
        padding: Rows of zeros that a batch of taps may add, as a share of its pairs.
    """
    feats, weight = feats.contiguous(), weight.contiguous()
    bias = None if bias is None else bias.contiguous()
    out = feats.new_empty(num_out, weight.shape[2])
    if not out.numel():
        return out
    with torch.autocast(feats.device.type, enabled=False):
        if in_index is None or out_index is None or offset_ptr is None:
            return _add_products(torch.mm(feats, weight[0]), None, None, bias, out)
        rows = row_map(in_index, out_index, offset_ptr, num_out, splits=0)
        in_index, out_index = in_index.contiguous(), out_index.contiguous()
        batches = batch_taps(offset_ptr.diff().tolist(), padding)
        buffer, places = _gather(feats, in_index, out_index, offset_ptr, rows, batches)
        products = feats.new_empty(len(buffer), weight.shape[2])
        first = 0
        for taps, size in batches:
            end = first + len(taps) * size
            torch.bmm(
                buffer[first:end].view(len(taps), size, -1),
                _select(weight, taps),
                out=products[first:end].view(len(taps), size, -1),
            )
            first = end
        return _add_products(products, places, rows.row_ptr, bias, out)


def batch_taps(sizes: Sequence[int], padding: float) -> list[tuple[list[int], int]]:
    """Put taps of like size together, each padded to the largest: [(taps, rows of each)], without empty ones.

    Example:
        >>> batch_taps([10, 100, 9, 0, 8], 0.25)
        [([1], 100), ([0, 2, 4], 10)]
    """
    batches: list[tuple[list[int], int]] = []
    pairs = 0
    for tap in sorted(range(len(sizes)), key=lambda tap: -sizes[tap]):
        size = sizes[tap]
        if not size:
            break
        pairs += size
        if batches and (len(batches[-1][0]) + 1) * batches[-1][1] <= (1 + padding) * pairs:
            batches[-1][0].append(tap)
        else:
            batches.append(([tap], size))
            pairs = size
    return batches


def _gather(
    feats: Tensor,
    in_index: Tensor,
    out_index: Tensor,
    offset_ptr: Tensor,
    rows: RowMap,
    batches: Sequence[tuple[Sequence[int], int]],
) -> tuple[Tensor, Tensor]:
    """Input rows batch by batch and tap by tap, and for every place in row order the row of its product."""
    volume, pairs = len(offset_ptr) - 1, len(in_index)
    taps = [tap for batch, _ in batches for tap in batch]
    sizes = [size for batch, size in batches for _ in batch]
    starts = torch.tensor([0, *sizes]).cumsum(0)
    firsts = torch.zeros(volume, dtype=torch.int64)
    firsts[taps] = starts[:-1]
    total = int(starts[-1])
    packed = torch.cat([torch.tensor(taps, dtype=torch.int64), starts[:-1], firsts])
    on_device = packed.to(feats.device, non_blocking=True)
    order, begins, firsts = on_device.split([len(taps), len(taps), volume])
    offsets = device_offsets(offset_ptr, feats)
    buffer, places = feats.new_empty(total, feats.shape[1]), torch.empty_like(in_index)
    piece, columns = "uint4", feats.shape[1] * feats.element_size() // 16
    source, target = feats, buffer
    if not rows_are_vectors(feats):
        piece, bits = PIECES[feats.element_size()]
        source, target, columns = feats.view(bits), buffer.view(bits), feats.shape[1]
    engine.launch(
        *(SOURCE, _gather_kernel(piece), engine.ceil_div(total * columns, BLOCK), BLOCK),
        *(source, in_index, offsets, order, begins, target, len(taps), total, columns),
    )
    engine.launch(
        *(SOURCE, "pointlib::place_products", engine.ceil_div(pairs, BLOCK), BLOCK, out_index),
        *(offsets, firsts, *_row_form(rows)[:2], places, pairs, volume, rows.mask.shape[1]),
    )
    return buffer, places


def _select(weight: Tensor, taps: Sequence[int]) -> Tensor:
    """The taps of a weight, stacked; a view where there is one."""
    if len(taps) == 1:
        return weight[taps[0] : taps[0] + 1]
    return torch.stack([weight[tap] for tap in taps])


def _add_products(
    products: Tensor,
    places: Tensor | None,
    row_ptr: Tensor | None,
    bias: Tensor | None,
    out: Tensor,
) -> Tensor:
    bias = None if bias is None else bias.contiguous()
    columns = 1 if out.shape[1] % 4 else 4
    kernel = _sum_kernel(out.dtype, products.dtype, columns)
    grid = engine.ceil_div(out.numel() // columns, BLOCK)
    engine.launch(*(SOURCE, kernel, grid, BLOCK, products, places, row_ptr, bias, out, *out.shape))
    return out


def _row_form(rows: RowMap) -> tuple[Tensor, Tensor, int]:
    return rows.mask, rows.row_ptr, rows.mask.shape[1]


def _choose_tile(dtype: torch.dtype, c_out: int, capability: int) -> Product:
    """The narrowest tile that holds a row, or the widest; 96 for its multiples."""
    if not on_tensor_cores(dtype, capability):
        return Product(dtype, TILE_PAIRS, 64, False)
    width = next((width for width in WIDTHS if c_out <= width), 96 if c_out % 96 == 0 else 128)
    return Product(dtype, TILE_PAIRS, width, True)


def _kernel(tile: Product) -> str:
    kind = "tensor" if tile.tensor_cores else "exact"
    return f"pointlib::multiply_{kind}<{tile.arguments}>"


def _sum_kernel(dtype: torch.dtype, products: torch.dtype, columns: int) -> str:
    return f"pointlib::add_products<{ELEMENTS[dtype]}, {ELEMENTS[products]}, {columns}>"


def _gather_kernel(piece: str) -> str:
    return f"pointlib::gather_rows<{piece}>"


def variants(capability: int) -> Iterator[tuple[str, str]]:
    """Every kernel of this file that a device may be asked to run, as (source, name)."""
    for dtype in tensor_core_types(capability):
        for width in WIDTHS:
            yield SOURCE, _kernel(Product(dtype, TILE_PAIRS, width, True))
    for dtype in exact_types(capability):
        yield SOURCE, _kernel(Product(dtype, TILE_PAIRS, 64, False))
    for dtype in ELEMENTS:
        for products in {dtype, accumulator(dtype)}:
            yield from ((SOURCE, _sum_kernel(dtype, products, columns)) for columns in (1, 4))
    for piece in ("uint4", *(name for name, _ in PIECES.values())):
        yield SOURCE, _gather_kernel(piece)
    yield SOURCE, "pointlib::place_products"
