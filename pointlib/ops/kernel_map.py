"""Kernel maps: which input voxel feeds which output voxel through which kernel tap.

This file is the only place that states convolution's index relation. On every axis

    in = stride * out + dilation * tap - padding,        tap = 0 .. kernel_size - 1

where `in` and `out` are voxel indices at the resolution of the input and of the output. What differs between the
libraries in use is only which outputs exist, named by `ConvSpec.relation`:

| relation      | outputs                                               | as in                            |
|---------------|-------------------------------------------------------|----------------------------------|
| `submanifold` | the inputs (stride 1)                                 | all of them                      |
| `minkowski`   | every distinct floor(in / stride)                     | MinkowskiEngine, torchsparse 1.x |
| `spconv`      | all that some tap reaches, inside the output's extent | spconv, dense convolution        |

The padding is dilation * ((kernel_size - 1) // 2), which centres the kernel, unless it is given; `spconv` has 0.
A transposed convolution reads the map of the convolution it inverts from right to left (`KernelMap.transpose`); a
generative one makes every fine voxel that a coarse voxel reaches.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import product
from math import prod
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor

from pointlib.ops import _cpu
from pointlib.ops._cuda import kernel_map as cuda
from pointlib.ops._library import LIB
from pointlib.ops.coords import check_coords

Relation = Literal["submanifold", "minkowski", "spconv"]
Triple = tuple[int, int, int]
MAX_KERNEL_SIZE = 7
MAX_STEP = 2**31 - 1
"""Largest stride, padding and dilation; their products with a coordinate stay inside int64."""


def to_triple(value: int | Sequence[int], caller: str, name: str, minimum: int) -> Triple:
    """Read an int or three ints as (x, y, z).

    Raises:
        ValueError: If it is neither, or any entry is below `minimum`.
    """
    entries = tuple(value) if isinstance(value, Sequence) else (value,) * 3
    if len(entries) != 3 or any(not isinstance(e, int) or e < minimum for e in entries):
        raise ValueError(
            f"{caller}: {name} must be an int >= {minimum} or three of them (x, y, z), got {value!r}."
        )
    x, y, z = entries
    return (x, y, z)


@dataclass(frozen=True, init=False)
class ConvSpec:
    """Everything that determines a kernel map, besides the input voxels.

    Args:
        kernel_size: Taps per axis, 1 to 7, even ones and different ones allowed; int or (x, y, z).
        stride: Input voxels per output voxel; int or (x, y, z).
        padding: Voxels; int, (x, y, z), or None for the relation's default.
        dilation: Input voxels between two taps; int or (x, y, z).
        relation: Which outputs exist; None means `submanifold` at stride 1, else `minkowski`.

    The attributes are those arguments, resolved: (x, y, z) each, and a relation. `key` says all of them in one string,
    which torch.compile can look up where it could not a dataclass.

    Raises:
        ValueError: If an entry is out of range, or `submanifold` is asked for with a stride.

    Example:
        >>> ConvSpec(3).padding, ConvSpec(2, stride=2).relation
        ((1, 1, 1), 'minkowski')
    """

    kernel_size: Triple
    stride: Triple
    padding: Triple
    dilation: Triple
    relation: Relation
    key: str = field(init=False, repr=False, compare=False)

    def __init__(
        self,
        kernel_size: int | Sequence[int],
        stride: int | Sequence[int] = 1,
        padding: int | Sequence[int] | None = None,
        dilation: int | Sequence[int] = 1,
        relation: Relation | None = None,
    ) -> None:
        size = to_triple(kernel_size, "ConvSpec", "kernel_size", 1)
        step = to_triple(stride, "ConvSpec", "stride", 1)
        spread = to_triple(dilation, "ConvSpec", "dilation", 1)
        if max(size) > MAX_KERNEL_SIZE:
            raise ValueError(
                f"ConvSpec: kernel_size must be at most {MAX_KERNEL_SIZE}, got {kernel_size}."
            )
        relation = relation or ("submanifold" if prod(step) == 1 else "minkowski")
        if relation not in get_args(Relation):
            raise ValueError(
                f"ConvSpec: relation must be one of {get_args(Relation)}, got {relation!r}."
            )
        if relation == "submanifold" and prod(step) != 1:
            raise ValueError(
                f"ConvSpec: stride must be 1 where relation is 'submanifold', got {stride}. "
                "Use relation='minkowski' or 'spconv' to go down."
            )
        if padding is None:
            centred = tuple(d * ((k - 1) // 2) for d, k in zip(spread, size, strict=True))
            padding = 0 if relation == "spconv" else centred
        margin = to_triple(padding, "ConvSpec", "padding", 0)
        for name, triple in (("stride", step), ("dilation", spread), ("padding", margin)):
            if max(triple) > MAX_STEP:
                raise ValueError(f"ConvSpec: {name} must be at most {MAX_STEP}, got {triple}.")
        values = (size, step, margin, spread, relation)
        names = ("kernel_size", "stride", "padding", "dilation", "relation")
        for name, value in zip(names, values, strict=True):
            object.__setattr__(self, name, value)
        object.__setattr__(self, "key", repr(self))

    @property
    def kernel_volume(self) -> int:
        """Number of taps."""
        return prod(self.kernel_size)

    def offsets(self) -> list[Triple]:
        """Input voxel of each tap relative to `stride * out`: dilation * tap - padding, in kernel order."""
        (dx, dy, dz), (px, py, pz) = self.dilation, self.padding
        return [
            (dx * x - px, dy * y - py, dz * z - pz) for x, y, z in kernel_taps(self.kernel_size)
        ]

    @property
    def is_symmetric(self) -> bool:
        """Whether tap k and tap K - 1 - k are each other's mirror image at stride 1 (odd, centred kernel)."""
        axes = zip(self.kernel_size, self.padding, self.dilation, strict=True)
        centred = all(2 * p == d * (k - 1) for k, p, d in axes)
        return self.relation == "submanifold" and self.kernel_volume % 2 == 1 and centred

    def output_shape(self, spatial_shape: Triple) -> Triple:
        """Extent of the output, (x, y, z) voxels, for an input of `spatial_shape`.

        As in dense convolution for `spconv`; ceil(shape / stride) for `minkowski`; the input's for `submanifold`.
        """
        if self.relation == "submanifold":
            return spatial_shape
        shape = []
        axes = (spatial_shape, self.kernel_size, self.stride, self.padding, self.dilation)
        for n, k, s, p, d in zip(*axes, strict=True):
            reach = n + 2 * p - d * (k - 1) - 1
            shape.append(max(reach // s + 1, 0) if self.relation == "spconv" else -(-n // s))
        return to_triple(shape, "ConvSpec.output_shape", "spatial_shape", 0)


def kernel_taps(kernel_size: int | Sequence[int]) -> list[Triple]:
    """Taps (x, y, z) in the order of the rows of a weight.

    The order is that of torchsparse: x runs fastest where the number of taps is odd, z where it is even.

    Example:
        >>> kernel_taps((2, 1, 2))
        [(0, 0, 0), (0, 0, 1), (1, 0, 0), (1, 0, 1)]
    """
    xs, ys, zs = (range(k) for k in to_triple(kernel_size, "kernel_taps", "kernel_size", 1))
    if len(xs) * len(ys) * len(zs) % 2:
        return [(x, y, z) for z, y, x in product(zs, ys, xs)]
    return list(product(xs, ys, zs))


def kernel_offsets(kernel_size: int | Sequence[int]) -> Tensor:
    """Centred offsets `tap - (kernel_size - 1) // 2` in kernel order, (K, 3) int32 (x, y, z)."""
    return torch.tensor(ConvSpec(kernel_size).offsets(), dtype=torch.int32)


@dataclass(frozen=True, eq=False)
class KernelMap:
    """Pairs (input row, output row), grouped by kernel tap.

    Attributes:
        in_index: (P,) int32, input row of each pair.
        out_index: (P,) int32, output row of each pair. No output (and no input) comes twice within a tap.
        offset_ptr: (K + 1,) int64 on the CPU; the pairs of tap k are `offset_ptr[k]:offset_ptr[k + 1]`.
        num_in: Number of input voxels.
        num_out: Number of output voxels.
        identity_tap: Of a symmetric map, where tap K - 1 - k has the pairs of tap k with their ends changed, the
            middle tap, whose pairs are (i, i) for every i; -1 of any other map.
    """

    in_index: Tensor
    out_index: Tensor
    offset_ptr: Tensor
    num_in: int
    num_out: int
    identity_tap: int = -1

    @property
    def kernel_volume(self) -> int:
        """Number of taps, K."""
        return len(self.offset_ptr) - 1

    @property
    def num_pairs(self) -> int:
        """Number of pairs, P. A convolution multiplies num_pairs * in_channels * out_channels / groups times."""
        return len(self.in_index)

    def transpose(self) -> KernelMap:
        """The same pairs read from output to input; nothing is copied."""
        return KernelMap(
            *(self.out_index, self.in_index, self.offset_ptr),
            *(self.num_out, self.num_in, self.identity_tap),
        )

    def to(self, device: torch.device | str) -> KernelMap:
        """The map with its pairs on `device`."""
        return KernelMap(
            *(self.in_index.to(device), self.out_index.to(device), self.offset_ptr),
            *(self.num_in, self.num_out, self.identity_tap),
        )


class MappedSites(NamedTuple):
    """Output voxels of a convolution and its kernel map.

    Attributes:
        coords: (M, 4) int32 `[batch, x, y, z]` at the output's resolution.
        kernel_map: KernelMap.
    """

    coords: Tensor
    kernel_map: KernelMap


def build_kernel_map(
    coords: Tensor,
    spec: ConvSpec,
    spatial_shape: Triple | None = None,
    out_coords: Tensor | None = None,
) -> MappedSites:
    """Find the output voxels of a convolution and the pairs that feed them.

    Args:
        coords: (N, 4) int32 `[batch, x, y, z]` of the input; distinct, any order. Sorted ones are mapped fastest.
        spec: The convolution.
        spatial_shape: Extent (x, y, z) of the input in voxels, which bounds the outputs of `spconv` to
            `[0, spec.output_shape(spatial_shape))`; None leaves them unbounded.
        out_coords: (M, 4) int32 output voxels to use instead of those the relation names; distinct.

    Returns:
        MappedSites. New output coordinates are in lexicographic order; those of `submanifold` are the input's.

    Raises:
        TypeError, ValueError: If coords is not (N, 4) int32, holds a duplicate, or needs more than 63 key bits.

    Example:
        >>> line = torch.tensor([[0, 0, 0, 0], [0, 0, 0, 1]], dtype=torch.int32)
        >>> build_kernel_map(line, ConvSpec((1, 1, 3))).kernel_map.num_pairs
        4
    """
    check_coords(coords, "build_kernel_map")
    geometry = (spec.kernel_size, spec.stride, spec.padding, spec.dilation)
    symmetric = False
    if out_coords is not None:
        check_coords(out_coords, "build_kernel_map", "out_coords")
    elif spec.relation == "submanifold":
        out_coords, symmetric = coords, spec.is_symmetric
    else:
        bounds = None if spatial_shape is None else spec.output_shape(spatial_shape)
        reachable = spec.relation == "spconv"
        out_coords = torch.ops.pointlib.conv_sites(coords, *geometry, reachable, bounds)
    in_index, out_index, offset_ptr = torch.ops.pointlib.kernel_map(
        coords, out_coords, *geometry, symmetric
    )
    identity_tap = spec.kernel_volume // 2 if symmetric else -1
    sizes = (len(coords), len(out_coords), identity_tap)
    return MappedSites(out_coords, KernelMap(in_index, out_index, offset_ptr, *sizes))


def build_generative_map(coords: Tensor, spec: ConvSpec) -> MappedSites:
    """Find every fine voxel that a transposed convolution reaches, and the pairs that feed them.

    The index relation is read from right to left: fine = stride * coarse + dilation * tap - padding.

    Args:
        coords: (N, 4) int32 `[batch, x, y, z]` of the coarse input; distinct, any order.
        spec: The convolution that would lead from fine to coarse; its relation plays no part.

    Returns:
        MappedSites of the fine voxels, in lexicographic order, and the map from coarse (in) to fine (out).

    Raises:
        TypeError, ValueError: If coords is not (N, 4) int32, holds a duplicate, or needs more than 63 key bits.
    """
    check_coords(coords, "build_generative_map")
    geometry = (spec.kernel_size, spec.stride, spec.padding, spec.dilation)
    fine = torch.ops.pointlib.generative_sites(coords, *geometry)
    fine_index, coarse_index, offset_ptr = torch.ops.pointlib.kernel_map(
        fine, coords, *geometry, False
    )
    sizes = (len(coords), len(fine))
    return MappedSites(fine, KernelMap(coarse_index, fine_index, offset_ptr, *sizes))


_GEOMETRY = "int[] kernel_size, int[] stride, int[] padding, int[] dilation"
LIB.define(f"conv_sites(Tensor coords, {_GEOMETRY}, bool reachable, int[]? shape) -> Tensor")
LIB.define(f"generative_sites(Tensor coords, {_GEOMETRY}) -> Tensor")
LIB.define(
    f"kernel_map(Tensor coords, Tensor out_coords, {_GEOMETRY}, bool symmetric)"
    " -> (Tensor, Tensor, Tensor)"
)
LIB.impl("conv_sites", _cpu.kernel_map.conv_sites, "CPU")
LIB.impl("generative_sites", _cpu.kernel_map.generative_sites, "CPU")
LIB.impl("kernel_map", _cpu.kernel_map.kernel_map, "CPU")
LIB.impl("conv_sites", cuda.conv_sites, "CUDA")
LIB.impl("generative_sites", cuda.generative_sites, "CUDA")
LIB.impl("kernel_map", cuda.kernel_map, "CUDA")


@torch.library.register_fake("pointlib::conv_sites", lib=LIB)
@torch.library.register_fake("pointlib::generative_sites", lib=LIB)
def _sites_fake(coords: Tensor, *args: object) -> Tensor:
    return coords.new_empty(torch.library.get_ctx().new_dynamic_size(), 4)


@torch.library.register_fake("pointlib::kernel_map", lib=LIB)
def _kernel_map_fake(
    coords: Tensor, out_coords: Tensor, kernel_size: Sequence[int], *args: object
) -> tuple[Tensor, Tensor, Tensor]:
    pairs = coords.new_empty(torch.library.get_ctx().new_dynamic_size())
    offset_ptr = torch.empty(prod(kernel_size) + 1, dtype=torch.int64, device="cpu")
    return pairs, pairs.clone(), offset_ptr
