"""int8 convolution and quantization, bit by bit as pointlib/ops/quantized.py specifies."""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from pointlib.ops._cuda import engine
from pointlib.ops._cuda.remembered import Remembered
from pointlib.ops._cuda.row_map import row_map
from pointlib.ops._cuda.tiles import rows_are_vectors, stages
from pointlib.ops._cuda.types import ELEMENTS

SOURCE = "quantized.cu"
HEADER = struct.Struct("<8s3q32x")
MAGIC = b"plcuda8\x00"
OUT_KINDS = {torch.int8: 0, torch.float32: 1, torch.bfloat16: 2}
GROUP = 8
"""Channels or elements that a thread finishes at once."""
TILES = ((128, 32), (128, 64), (128, 96), (128, 128), (64, 64), (64, 128))
"""Output rows and channels of a block; those of 64 rows where there are few blocks."""


def packed_bytes(taps: int, c_in: int, c_out: int) -> int:
    """Size of a packed weight."""
    return HEADER.size + taps * c_out * _depth(c_in)


def pack_int8_weight(weight: Tensor) -> Tensor:
    """(K, C_in, C_out) int8 -> (bytes,) uint8: its shape, and (K, C_out, C_in) with C_in filled up to 16."""
    header = bytearray(HEADER.pack(MAGIC, *weight.shape))
    shape = torch.frombuffer(header, dtype=torch.uint8).to(weight.device)
    return torch.cat([shape, _transposed(weight).view(torch.uint8).flatten()])


def quantize_int8(feats: Tensor, step: float) -> Tensor:
    """As ops/quantized.py specifies."""
    feats = feats.contiguous()
    out = feats.new_empty(feats.shape, dtype=torch.int8)
    grid = engine.ceil_div(out.numel(), 256 * GROUP)
    aligned = int(feats.data_ptr() % 16 == 0)
    arguments = (feats, float(step), out, out.numel(), aligned)
    engine.launch(SOURCE, _quantize_kernel(feats.dtype), grid, 256, *arguments)
    return out


def sparse_conv_int8(
    feats: Sequence[Tensor],
    weight: Tensor,
    in_index: Tensor,
    out_index: Tensor,
    offset_ptr: Tensor,
    num_out: int,
    scale: Tensor,
    shift: Tensor,
    residual: Tensor | None,
    residual_scale: float,
    relu: bool,
    out_dtype: torch.dtype,
) -> Tensor:
    """As ops/quantized.py specifies. Rows of the kernel map are not checked: that would wait for the device."""
    channels = [part.shape[1] for part in feats]
    taps, c_out = len(offset_ptr) - 1, scale.shape[0]
    packed = _unpack(weight, (taps, sum(channels), c_out))
    out = scale.new_empty((num_out, c_out), dtype=out_dtype)
    if not out.numel():
        return out
    if len(feats) == 2 and channels[0] % 16:  # the second would not begin at 16 bytes of the weight
        feats = [torch.cat(list(feats), 1)]
    parts = [_rows_of_16_bytes(part) for part in feats]
    more, more_channels = (parts[1], parts[1].shape[1]) if len(parts) == 2 else (None, 0)
    scale, shift = scale.contiguous(), shift.contiguous()
    residual = None if residual is None else residual.contiguous()
    rows, columns = _choose_tile(num_out, c_out, engine.properties(out).num_sms)
    capability = engine.properties(out).capability
    grid = engine.ceil_div(num_out, rows) * engine.ceil_div(c_out, columns)
    engine.launch(
        *(SOURCE, _conv_kernel(rows, columns), grid, _threads(rows, columns)),
        *(parts[0], more, parts[0].shape[1], more_channels, packed, packed.shape[2], channels[0]),
        *(taps, *_row_form(in_index, out_index, offset_ptr, num_out), num_out),
        *(scale, shift, residual, float(residual_scale), int(relu)),
        *(out, OUT_KINDS[out_dtype], c_out, _groups_are_vectors(scale, shift, residual)),
        shared_bytes=_shared_bytes(rows, columns, capability),
    )
    return out


_shapes: Remembered[tuple[int, ...]] = Remembered()
"""What the headers of packed weights say: reading one waits for the device, so it is done once."""


def _unpack(weight: Tensor, shape: tuple[int, int, int]) -> Tensor:
    """The weight as the kernel reads it: (K, C_out, depth) int8, at a multiple of 16 bytes."""
    if weight.dtype == torch.int8:
        return _transposed(weight)
    stored = _shapes.get(weight)
    if stored is None:
        header = bytes(weight[: HEADER.size].tolist())
        if len(header) < HEADER.size or not header.startswith(MAGIC):
            raise RuntimeError(
                "sparse_conv_int8: weight must be int8 or come from pack_int8_weight on this device, "
                "got other bytes. Pack the int8 weight again."
            )
        stored = _shapes.put(weight, HEADER.unpack(header)[1:])
    if stored != shape or len(weight) != packed_bytes(*shape):
        raise RuntimeError(
            f"sparse_conv_int8: packed weight must be of {shape} for this kernel map, feats and scale, got {stored}."
        )
    taps, c_in, c_out = shape
    values = weight.contiguous()[HEADER.size :]
    values = values.clone() if values.data_ptr() % 16 else values
    return values.view(torch.int8).view(taps, c_out, _depth(c_in))


def _transposed(weight: Tensor) -> Tensor:
    fill = _depth(weight.shape[1]) - weight.shape[1]
    return torch.nn.functional.pad(weight.transpose(1, 2), (0, fill)).contiguous()


def _depth(c_in: int) -> int:
    return engine.ceil_div(c_in, 16) * 16


def _rows_of_16_bytes(part: Tensor) -> Tensor:
    """The rows, contiguous, each at a multiple of 16 bytes: with zeros at their ends where need be."""
    part = part.contiguous()
    if rows_are_vectors(part):
        return part
    return torch.nn.functional.pad(part, (0, -part.shape[1] % 16)).clone()


def _groups_are_vectors(scale: Tensor, shift: Tensor, residual: Tensor | None) -> int:
    """1 where groups of channels can be read at once, else 0; the output itself is fresh memory."""
    ends = [scale.data_ptr() % 16, shift.data_ptr() % 16, scale.shape[0] % GROUP]
    ends += [] if residual is None else [residual.data_ptr() % GROUP]
    return int(not any(ends))


def _row_form(
    in_index: Tensor, out_index: Tensor, offset_ptr: Tensor, num_out: int
) -> tuple[Tensor | None, ...]:
    """mask, row_ptr, neighbours and order; nothing where one tap feeds every row with itself."""
    same = in_index.data_ptr() == out_index.data_ptr() and len(in_index) == num_out
    if same and len(offset_ptr) == 2:
        return None, None, None, None
    rows = row_map(in_index, out_index, offset_ptr, num_out)
    return rows.mask, rows.row_ptr, rows.neighbours, rows.order[0]


def _choose_tile(num_out: int, c_out: int, num_sms: int) -> tuple[int, int]:
    """The narrowest tile that holds a row, or the widest; fewer rows where the blocks would not fill the device."""
    columns = next((n for _, n in TILES[:4] if c_out <= n), 96 if c_out % 96 == 0 else 128)
    blocks = engine.ceil_div(num_out, 128) * engine.ceil_div(c_out, columns)
    few = blocks < 2 * num_sms and (64, columns) in TILES
    return (64 if few else 128), columns


def _threads(rows: int, columns: int) -> int:
    return rows * (1 if columns <= 64 and rows == 128 else 2)


def _shared_bytes(rows: int, columns: int, capability: int) -> int:
    """As Int8Tile in cuda/quantized.cu and TileRows in cuda/implicit_gemm_rows.cuh."""
    staged = stages(capability) * (rows + columns) * 80
    warps_n = _threads(rows, columns) // rows
    sums = rows // 32 * warps_n * 16 * (columns // warps_n + 8) * 4
    return max(staged, sums) + 4 * (rows + 32 * rows + rows + 1)


def _conv_kernel(rows: int, columns: int) -> str:
    return f"pointlib::sparse_conv_int8<{rows}, {columns}>"


def _quantize_kernel(dtype: torch.dtype) -> str:
    return f"pointlib::quantize_int8<{ELEMENTS[dtype]}>"


def variants(capability: int) -> Iterator[tuple[str, str]]:
    """Every kernel of this file, as (source, name)."""
    del capability
    yield from ((SOURCE, _conv_kernel(*tile)) for tile in TILES)
    yield from ((SOURCE, _quantize_kernel(dtype)) for dtype in ELEMENTS)
