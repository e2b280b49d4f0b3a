"""Output voxels and kernel maps on the CPU: the compiled engine, or the composition."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from math import prod

import torch
from torch import Tensor

from pointlib.ops._cpu import engine
from pointlib.ops._cpu.composition import kernel_map as composition

_Triple = ctypes.c_int64 * 3
_Voxel = ctypes.c_int64 * 4


class _Geometry(ctypes.Structure):
    """As in csrc/maps.h."""

    _fields_ = tuple((name, _Triple) for name in ("kernel_size", "stride", "padding", "dilation"))


class _Report(ctypes.Structure):
    """As in csrc/maps.h."""

    _fields_ = (("status", ctypes.c_int64), ("low", _Voxel), ("high", _Voxel))

    def refuse(self) -> None:
        """Raise what the engine found wrong."""
        refuse(self.status, list(self.low), list(self.high))


def refuse(status: int, low: list[int], high: list[int]) -> None:
    """Raise for coords that repeat (1), that are too wide for keys (2) or lead beyond int32 (3)."""
    from pointlib.ops.coords import KeyLayout

    if status == 1:
        raise ValueError(
            "kernel_map: coords must be distinct, got duplicates. Merge points that share a voxel first "
            "(pointlib.ops.voxelize, pointlib.ops.unique_coords)."
        )
    if status == 2:
        KeyLayout.covering(low, high)
    assert status == 3
    raise ValueError(
        f"kernel_map: coords must lead to outputs that fit int32, got outputs from {low} to {high}. "
        "Crop the points to a range or use a larger voxel size."
    )


@engine.or_composition(composition.kernel_map)
def kernel_map(
    coords: Tensor,
    out_coords: Tensor,
    kernel_size: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    symmetric: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Pairs (input row, output row) of every tap, grouped by tap, in key order of the outputs inside a tap."""
    volume = prod(kernel_size)
    if not len(coords) or not len(out_coords):
        empty = coords.new_empty(0)
        return empty, empty.clone(), torch.zeros(volume + 1, dtype=torch.int64)
    coords, threads = coords.contiguous(), engine.num_threads()
    out_coords = coords if symmetric else out_coords.contiguous()
    geometry, report = _geometry(kernel_size, stride, padding, dilation), _Report()
    offset_ptr = torch.empty(volume + 1, dtype=torch.int64)
    handle = engine.call(
        "pl_kernel_map",
        *(coords, len(coords), out_coords, len(out_coords)),
        *(geometry, symmetric, threads, offset_ptr, report),
    )
    if not handle:
        report.refuse()
    try:
        num_pairs = int(offset_ptr[-1])
        in_index, out_index = coords.new_empty(num_pairs), coords.new_empty(num_pairs)
        engine.call("pl_kernel_map_write", handle, in_index, out_index, threads)
    finally:
        engine.call("pl_kernel_map_free", handle)
    return in_index, out_index, offset_ptr


@engine.or_composition(composition.conv_sites)
def conv_sites(
    coords: Tensor,
    kernel_size: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    reachable: bool,
    shape: Sequence[int] | None,
) -> Tensor:
    """Distinct outputs of a convolution: floor(in / stride), or all that a tap reaches inside `shape`."""
    geometry = _geometry(kernel_size, stride, padding, dilation)
    if not reachable:
        return _sites("pl_floor_sites", coords, geometry)
    bounds = None if shape is None else torch.tensor(shape, dtype=torch.int64)
    return _sites("pl_reached_sites", coords, geometry, 0, bounds)


@engine.or_composition(composition.generative_sites)
def generative_sites(
    coords: Tensor,
    kernel_size: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
) -> Tensor:
    """Distinct fine voxels `stride * in + dilation * tap - padding` over all inputs and taps."""
    geometry = _geometry(kernel_size, stride, padding, dilation)
    return _sites("pl_reached_sites", coords, geometry, 1, None)


def _sites(name: str, coords: Tensor, geometry: _Geometry, *options: int | Tensor | None) -> Tensor:
    if not len(coords):
        return coords.new_empty(0, 4)
    coords, threads, report = coords.contiguous(), engine.num_threads(), _Report()
    count = torch.empty((), dtype=torch.int64)
    handle = engine.call(name, coords, len(coords), geometry, *options, threads, count, report)
    if not handle:
        report.refuse()
    try:
        sites = coords.new_empty(int(count), 4)
        engine.call("pl_sites_write", handle, sites, threads)
    finally:
        engine.call("pl_sites_free", handle)
    return sites


def _geometry(*fields: Sequence[int]) -> _Geometry:
    """The struct of kernel_size, stride, padding and dilation."""
    return _Geometry(*(_Triple(*field) for field in fields))
