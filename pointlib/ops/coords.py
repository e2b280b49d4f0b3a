"""Voxel coordinates as packed, order-preserving 64-bit keys: pack, unpack, unique, look up.

A key holds `[batch, x, y, z]` in that order of significance, each axis shifted by its own minimum and given just
the bits its extent needs. Comparing two keys therefore compares the coordinates lexicographically, and moving by a
fixed offset is one integer addition. Negative coordinates are ordinary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from pointlib.ops import _cpu
from pointlib.ops._cuda import coords as cuda
from pointlib.ops._library import LIB

AXES = ("batch", "x", "y", "z")
KEY_BITS = 63
"""Bits of a non-negative int64."""


@dataclass(frozen=True)
class KeyLayout:
    """How `[batch, x, y, z]` is packed into one int64.

    Attributes:
        lower: Smallest coordinate of each axis; it packs to 0.
        bits: Bits of each axis; their sum is at most 63.
    """

    lower: tuple[int, int, int, int]
    bits: tuple[int, int, int, int]

    @property
    def shifts(self) -> tuple[int, int, int, int]:
        """Left shift of each axis inside a key."""
        _, x, y, z = self.bits
        return (x + y + z, y + z, z, 0)

    @classmethod
    def covering(cls, lower: Sequence[int], upper: Sequence[int]) -> KeyLayout:
        """Choose the narrowest layout for coordinates in `[lower, upper]`, both inclusive.

        Raises:
            ValueError: If the four extents need more than 63 bits together.
        """
        bits = tuple(int(up - low).bit_length() for low, up in zip(lower, upper, strict=True))
        if sum(bits) > KEY_BITS:
            spans = ", ".join(
                f"{axis} [{low}, {up}] = {width} bits"
                for axis, low, up, width in zip(AXES, lower, upper, bits, strict=True)
            )
            raise ValueError(
                f"KeyLayout: coords must span at most {KEY_BITS} bits, got {sum(bits)} ({spans}). "
                "Crop the points to a range or use a larger voxel size."
            )
        return cls(tuple(int(low) for low in lower), bits)  # type: ignore[arg-type]


class UniqueCoords(NamedTuple):
    """Distinct coordinates and how the input maps to them.

    Attributes:
        coords: (M, 4) int32, distinct rows in lexicographic order of `[batch, x, y, z]`.
        inverse: (N,) int64, row of `coords` that equals each input row.
        first: (M,) int64, smallest input row that holds each distinct row.
        counts: (M,) int64, number of input rows that equal each distinct row.
    """

    coords: Tensor
    inverse: Tensor
    first: Tensor
    counts: Tensor


def check_coords(coords: Tensor, caller: str, name: str = "coords") -> None:
    """Raise unless `coords` is (N, 4) int32.

    Raises:
        TypeError: If it is not an int32 tensor.
        ValueError: If it is not (N, 4).
    """
    remedy = ""
    if isinstance(coords, Tensor) and coords.dtype != torch.int32:
        remedy = " Convert with .int() after checking that the values fit."
    if not isinstance(coords, Tensor) or coords.dtype != torch.int32:
        raise TypeError(
            f"{caller}: {name} must be (N, 4) int32 [batch, x, y, z], got {_describe(coords)}.{remedy}"
        )
    if coords.dim() != 2 or coords.shape[1] != 4:
        raise ValueError(
            f"{caller}: {name} must be (N, 4) int32 [batch, x, y, z], got {_describe(coords)}."
        )


def _describe(value: object) -> str:
    if isinstance(value, Tensor):
        return f"{tuple(value.shape)} {str(value.dtype).removeprefix('torch.')}"
    return type(value).__name__


def key_layout(*coords: Tensor, margin: int = 0) -> KeyLayout:
    """Choose the narrowest layout that covers every row of every tensor given.

    Args:
        coords: One or more (N, 4) int32 `[batch, x, y, z]`; empty ones are passed over.
        margin: Voxels to leave free on both sides of x, y and z.

    Returns:
        The layout. Without any row it is the layout of the origin.

    Raises:
        ValueError: If the extents need more than 63 bits.
    """
    bounds = [torch.stack(torch.aminmax(part, dim=0)) for part in coords if len(part)]
    if not bounds:
        return KeyLayout((0, 0, 0, 0), (0, 0, 0, 0))
    stacked = torch.stack(bounds).long()
    lower, upper = torch.stack([stacked[:, 0].amin(0), stacked[:, 1].amax(0)]).tolist()
    pad = (0, margin, margin, margin)
    return KeyLayout.covering(
        [low - m for low, m in zip(lower, pad, strict=True)],
        [up + m for up, m in zip(upper, pad, strict=True)],
    )


def pack_coords(coords: Tensor, layout: KeyLayout) -> Tensor:
    """Pack coordinates into order-preserving keys.

    Args:
        coords: (N, 4) int32 or int64 `[batch, x, y, z]`, inside the layout's range (not checked).
        layout: From `key_layout`.

    Returns:
        (N,) int64 keys; `a < b` exactly when row a comes before row b lexicographically.
    """
    b, x, y, z = coords.long().unbind(1)
    (lb, lx, ly, lz), (sb, sx, sy, _) = layout.lower, layout.shifts
    return ((b - lb) << sb) + ((x - lx) << sx) + ((y - ly) << sy) + (z - lz)


def unpack_coords(keys: Tensor, layout: KeyLayout) -> Tensor:
    """Undo `pack_coords`.

    Args:
        keys: (N,) int64.
        layout: The layout they were packed with.

    Returns:
        (N, 4) int32 `[batch, x, y, z]`.
    """
    columns = [
        ((keys >> shift) & ((1 << bits) - 1)) + low
        for low, bits, shift in zip(layout.lower, layout.bits, layout.shifts, strict=True)
    ]
    return torch.stack(columns, 1).int()


def unique_coords(coords: Tensor) -> UniqueCoords:
    """Find the distinct coordinates.

    Args:
        coords: (N, 4) int32 `[batch, x, y, z]`; any order, duplicates and negative values allowed.

    Returns:
        UniqueCoords, sorted lexicographically.

    Raises:
        TypeError, ValueError: If coords is not (N, 4) int32, or its extent needs more than 63 bits.

    Example:
        >>> unique_coords(torch.tensor([[0, 5, 0, 0], [0, -1, 0, 0], [0, 5, 0, 0]]).int()).inverse.tolist()
        [1, 0, 1]
    """
    check_coords(coords, "unique_coords")
    return UniqueCoords(*torch.ops.pointlib.unique_coords(coords))


def lookup_coords(query: Tensor, coords: Tensor) -> Tensor:
    """Find the row of each queried coordinate.

    Args:
        query: (Q, 4) int32 `[batch, x, y, z]`.
        coords: (N, 4) int32 to search; where it holds duplicates, the first row answers.

    Returns:
        (Q,) int64 row of `coords`, or -1 where it holds no such row.

    Raises:
        TypeError, ValueError: If either is not (N, 4) int32, or their joint extent needs more than 63 bits.

    Example:
        >>> a = torch.tensor([[0, 1, 2, 3], [0, 0, 0, 0]]).int()
        >>> lookup_coords(torch.tensor([[0, 0, 0, 0], [0, 9, 9, 9]]).int(), a).tolist()
        [1, -1]
    """
    check_coords(query, "lookup_coords", "query")
    check_coords(coords, "lookup_coords")
    return torch.ops.pointlib.lookup_coords(query, coords)


def _unique_coords(coords: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    layout = key_layout(coords)
    keys, *rows = torch.ops.pointlib.unique_keys(pack_coords(coords, layout))
    return (unpack_coords(keys, layout), *rows)


def _lookup_coords(query: Tensor, coords: Tensor) -> Tensor:
    layout = key_layout(query, coords)
    return torch.ops.pointlib.lookup_keys(pack_coords(query, layout), pack_coords(coords, layout))


LIB.define("unique_coords(Tensor coords) -> (Tensor, Tensor, Tensor, Tensor)")
LIB.define("lookup_coords(Tensor query, Tensor coords) -> Tensor")
LIB.define("unique_keys(Tensor keys) -> (Tensor, Tensor, Tensor, Tensor)")
LIB.define("lookup_keys(Tensor query, Tensor keys) -> Tensor")
LIB.impl("unique_coords", _unique_coords, "CPU")
LIB.impl("lookup_coords", _lookup_coords, "CPU")
LIB.impl("unique_keys", _cpu.coords.unique_keys, "CPU")
LIB.impl("lookup_keys", _cpu.coords.lookup_keys, "CPU")
LIB.impl("unique_coords", cuda.unique_coords, "CUDA")
LIB.impl("lookup_coords", cuda.lookup_coords, "CUDA")
LIB.impl("unique_keys", cuda.unique_keys, "CUDA")
LIB.impl("lookup_keys", cuda.lookup_keys, "CUDA")


@torch.library.register_fake("pointlib::unique_coords", lib=LIB)
def _unique_coords_fake(coords: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    num_unique = torch.library.get_ctx().new_dynamic_size()
    inverse = coords.new_empty(coords.shape[0], dtype=torch.int64)
    rows = inverse.new_empty(num_unique)
    return coords.new_empty(num_unique, 4), inverse, rows, rows.clone()


@torch.library.register_fake("pointlib::lookup_coords", lib=LIB)
def _lookup_coords_fake(query: Tensor, coords: Tensor) -> Tensor:
    return query.new_empty(query.shape[0], dtype=torch.int64)


@torch.library.register_fake("pointlib::unique_keys", lib=LIB)
def _unique_keys_fake(keys: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    num_unique = torch.library.get_ctx().new_dynamic_size()
    rows = keys.new_empty(num_unique)
    return rows, torch.empty_like(keys), rows.clone(), rows.clone()


@torch.library.register_fake("pointlib::lookup_keys", lib=LIB)
def _lookup_keys_fake(query: Tensor, keys: Tensor) -> Tensor:
    return torch.empty_like(query)
