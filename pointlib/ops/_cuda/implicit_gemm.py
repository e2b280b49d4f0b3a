"""Output-stationary sparse convolution: prepares what the kernels of implicit_gemm.cu and small_channels.cu read."""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from pointlib.ops._cuda import engine
from pointlib.ops._cuda.gemm_tiles import EXACT_WARPS, Plan, choose_plan, copy_width, tiles
from pointlib.ops._cuda.row_map import RowMap, is_known, row_map
from pointlib.ops._cuda.tiles import on_tensor_cores, tensor_core_types
from pointlib.ops._cuda.types import ELEMENTS, accumulator
from pointlib.ops.dataflow import MapStatistics, Workload, tuned_dataflow

SOURCE = "implicit_gemm.cu"
SMALL_SOURCE = "small_channels.cu"
SMALL_CHANNELS = (1, 2, 3, 4, 5)
SMALL_ROWS, SMALL_COLS, SMALL_BLOCK = 256, 32, 128
"""Output rows, output channels and threads of a block of `small_channels`."""


class Epilogue(NamedTuple):
    """What follows the sum: out = act(scale * sum + shift + residual).

    Attributes:
        scale: (C_out,) float or None for 1.
        shift: (C_out,) float or None for 0.
        residual: (num_out, C_out), the dtype of the features, or None.
        negative_slope: Of the activation for values below 0; 1 for none.
    """

    scale: Tensor | None = None
    shift: Tensor | None = None
    residual: Tensor | None = None
    negative_slope: float = 1.0


NO_EPILOGUE = Epilogue()


class Pairs(NamedTuple):
    """A kernel map's pairs as the operators get them; None where every row feeds itself through one tap.

    Attributes:
        in_index: (P,) int32, grouped by tap.
        out_index: (P,) int32.
        offset_ptr: (K + 1,) int64 on the CPU.
        num_out: Output rows.
        identity_tap: The middle tap, of the pairs (i, i), where tap K - 1 - k has the pairs of tap k with their ends
            changed; else -1.
    """

    in_index: Tensor | None
    out_index: Tensor | None
    offset_ptr: Tensor | None
    num_out: int
    identity_tap: int = -1

    @property
    def statistics(self) -> MapStatistics:
        """Known without reading anything from the device."""
        if self.in_index is None or self.offset_ptr is None:
            return MapStatistics(self.num_out, 1, self.num_out)
        return MapStatistics(len(self.in_index), len(self.offset_ptr) - 1, self.num_out)

    def rows(self, splits: int) -> tuple[RowMap | None, bool]:
        """The row form, and whether tap k of it means tap K - 1 - k.

        The pairs of a symmetric map change into their transpose's when the taps are mirrored. So the input gradient
        takes the row form that the forward pass has left.
        """
        if self.in_index is None or self.out_index is None or self.offset_ptr is None:
            return None, False
        ends = (self.in_index, self.out_index)
        symmetric = 2 * self.identity_tap + 2 == len(self.offset_ptr)
        mirrored = symmetric and not is_known(*ends) and is_known(*ends[::-1])
        ends = ends[::-1] if mirrored else ends
        return row_map(*ends, self.offset_ptr, self.num_out, splits), mirrored


def convolve(
    feats: Sequence[Tensor],
    weight: Tensor,
    pairs: Pairs,
    epilogue: Epilogue = NO_EPILOGUE,
    out: Tensor | None = None,
    plan: Plan | None = None,
    earlier: Tensor | None = None,
) -> Tensor:
    """Sum the products of each output row in one pass over its taps, and finish it before it is written.

    Float32 features are multiplied in tf32 where torch's matrix products are. bfloat16 is multiplied as float32 where
    the tensor cores have no bfloat16. Sums, scale and shift are float32, or float64 for float64 features.

    Args:
        feats: One or two (N, C) tensors of one float dtype, whose channels follow each other.
        weight: (K, sum of C, C_out), any float dtype, any strides.
        pairs: Of the kernel map.
        epilogue: What follows the sum.
        out: (num_out, C_out) contiguous, the dtype of feats, to write to; may be the residual but no feats.
        plan: How; the prior's choice if None. Has no say where a first layer's few channels take another kernel.
        earlier: (num_out, C_out) contiguous float32, or float64 for float64: sums of other taps, which are added
            and overwritten; not for a first layer's few channels.

    Returns:
        (num_out, C_out), the dtype of feats: `out` where it is given.
    """
    dtype, c_out = feats[0].dtype, weight.shape[2]
    if out is None:
        out = feats[0].new_empty(pairs.num_out, c_out)
    if not out.numel():
        return out
    device = engine.properties(feats[0])
    if dtype == torch.bfloat16 and device.capability < 80:
        residual = None if epilogue.residual is None else epilogue.residual.float()
        epilogue = epilogue._replace(residual=residual)
        wide = [part.float() for part in feats]
        return out.copy_(convolve(wide, weight, pairs, epilogue, plan=plan, earlier=earlier))
    sums = accumulator(dtype)
    scale, shift, residual, slope = epilogue
    scale, shift = (None if t is None else _aligned(t.to(sums)) for t in (scale, shift))
    residual = None if residual is None else residual.contiguous()
    epilogue = Epilogue(scale, shift, residual, slope)
    taps, c_in = weight.shape[:2]
    weight = weight.to(dtype)
    small_bytes = taps * c_in * SMALL_COLS * sums.itemsize
    if c_in in SMALL_CHANNELS and small_bytes <= device.shared_bytes:
        assert earlier is None
        joined = feats[0] if len(feats) == 1 else torch.cat(list(feats), 1)
        _convolve_small(joined, weight, pairs, epilogue, out, small_bytes)
        return out
    exact = not on_tensor_cores(dtype, device.capability)
    channels = [part.shape[1] for part in feats]
    if plan is None:
        workload = Workload("forward", dtype, c_in, c_out, pairs.statistics)
        tuned = tuned_dataflow(workload, device.name)
        if tuned is not None and tuned.kind == "output_stationary":
            plan = Plan.of(tuned, exact)
    if plan is None or not plan.exists(dtype, channels, taps, device.capability):
        sizes = (pairs.statistics, dtype, channels, c_out, exact)
        plan = choose_plan(*sizes, device.capability, device.num_sms)
    _launch_splits(feats, weight, pairs, epilogue, out, plan, device.capability, earlier)
    return out


def _launch_splits(
    feats: Sequence[Tensor],
    weight: Tensor,
    pairs: Pairs,
    epilogue: Epilogue,
    out: Tensor,
    plan: Plan,
    capability: int,
    earlier: Tensor | None,
) -> None:
    """One launch a split; they share the sums in a workspace."""
    dtype, (taps, _, c_out), tile = out.dtype, weight.shape, plan.tile
    channels = [part.shape[1] for part in feats]
    width = copy_width(dtype, channels)
    if width < 16:  # a plan for other channels may name a tile that is not made for these
        tile = next(tiles(dtype, tile.exact, width, capability))
    parts = [_rows_of(part, width) for part in feats]
    first, second = parts[0], parts[1] if len(parts) == 2 else None
    sizes = (*channels, 0)[:2]
    strides = (*(part.shape[1] for part in parts), 0)[:2]
    weight = _columns_of(weight)
    known, mirrored = pairs.rows(plan.splits)
    ends = (0, taps) if known is None or plan.splits < 2 else known.split_ptr
    partial = earlier
    if partial is None and len(ends) > 2:
        partial = out.new_empty(out.shape, dtype=accumulator(dtype))
    rows = (None, None, None) if known is None else known[:3]
    finish = (epilogue.scale, epilogue.shift, epilogue.residual, _bits(epilogue.negative_slope))
    blocks = engine.ceil_div(pairs.num_out, tile.rows) * engine.ceil_div(c_out, tile.cols)
    for split in range(len(ends) - 1):
        order = known.order[split] if known is not None and plan.splits else None
        engine.launch(
            *(SOURCE, tile.kernel(dtype, capability, width), blocks, tile.threads(dtype)),
            *(first, second, *sizes, *strides, weight, weight.shape[2], taps, int(mirrored)),
            *(*rows, order, pairs.num_out, ends[split], ends[split + 1], *finish, out, partial),
            *(
                c_out,
                int(split == 0 and earlier is None),
                int(split == len(ends) - 2),
                _is_aligned(out, epilogue),
            ),
            shared_bytes=tile.shared_bytes(dtype, capability),
        )


def _convolve_small(
    feats: Tensor,
    weight: Tensor,
    pairs: Pairs,
    epilogue: Epilogue,
    out: Tensor,
    shared_bytes: int,
) -> None:
    """A row's own taps, one after the other: for one to five input channels."""
    taps, c_in, c_out = weight.shape
    known, mirrored = pairs.rows(0)
    rows = (None, None, None) if known is None else known[:3]
    finish = (epilogue.scale, epilogue.shift, epilogue.residual, _bits(epilogue.negative_slope))
    blocks = engine.ceil_div(pairs.num_out, SMALL_ROWS) * engine.ceil_div(c_out, SMALL_COLS)
    engine.launch(
        *(SMALL_SOURCE, _small_kernel(out.dtype, c_in), blocks, SMALL_BLOCK),
        *(feats.contiguous(), weight.contiguous(), taps, int(mirrored), *rows, pairs.num_out),
        *(*finish, out, c_out, _is_aligned(out, epilogue)),
        shared_bytes=shared_bytes,
    )


def _rows_of(feats: Tensor, width: int) -> Tensor:
    """Contiguous rows that begin at a multiple of `width` bytes, with zeros after the channels where needed."""
    row_bytes = feats.shape[1] * feats.element_size()
    if row_bytes % width:
        return torch.nn.functional.pad(feats, (0, -row_bytes % width // feats.element_size()))
    return _aligned(feats)


def _columns_of(weight: Tensor) -> Tensor:
    """Contiguous weights whose rows begin at a multiple of 16 bytes."""
    spare = -weight.shape[2] % (16 // weight.element_size())
    return torch.nn.functional.pad(weight, (0, spare)) if spare else _aligned(weight)


def _aligned(tensor: Tensor) -> Tensor:
    """Contiguous, and beginning at a multiple of 16 bytes as everything that torch allocates."""
    tensor = tensor.contiguous()
    return tensor.clone() if tensor.data_ptr() % 16 else tensor


def _is_aligned(out: Tensor, epilogue: Epilogue) -> int:
    """1 where all rows that are read and written with the output begin at a multiple of 16 bytes, else 0."""
    given = [t for t in (out, epilogue.residual) if t is not None]
    return int(
        all(t.data_ptr() % 16 == 0 for t in given) and out.stride(0) * out.itemsize % 16 == 0
    )


def _bits(value: float) -> int:
    """The bits of a float64, for kernels take no other."""
    return int(struct.unpack("<q", struct.pack("<d", value))[0])


def _small_kernel(dtype: torch.dtype, channels: int) -> str:
    shape = f"{channels}, {SMALL_ROWS}, {SMALL_COLS}, {SMALL_BLOCK}"
    return f"pointlib::small_channels<{ELEMENTS[dtype]}, {shape}>"


def variants(capability: int) -> Iterator[tuple[str, str]]:
    """Every kernel that a device may be asked to run, as (source, name)."""
    kinds = [(dtype, False) for dtype in tensor_core_types(capability)]
    kinds += [(dtype, True) for dtype in EXACT_WARPS]
    for dtype, exact in kinds:
        for width in (16, 8, 4):
            if width >= dtype.itemsize:
                for tile in tiles(dtype, exact, width, capability):
                    yield SOURCE, tile.kernel(dtype, capability, width)
    for dtype in ELEMENTS:
        if dtype != torch.bfloat16 or capability >= 80:
            yield from ((SMALL_SOURCE, _small_kernel(dtype, c)) for c in SMALL_CHANNELS)
