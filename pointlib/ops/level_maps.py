"""The voxels and kernel maps of all levels of a U-Net at once: on a GPU one pass and one wait in place of one a map."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import NamedTuple

import torch
from torch import Tensor

from pointlib.ops._cuda import level_maps as cuda
from pointlib.ops._library import LIB
from pointlib.ops.coords import check_coords
from pointlib.ops.kernel_map import ConvSpec, KernelMap


class LevelMaps(NamedTuple):
    """One level of a U-Net.

    Attributes:
        coords: (N, 4) int32 `[batch, x, y, z]` at this level's resolution.
        same: Map from this level to itself.
        down: Map from the finer level to this one; None for the first.
    """

    coords: Tensor
    same: KernelMap
    down: KernelMap | None


def build_level_maps(
    coords: Tensor, same: ConvSpec, down: ConvSpec, levels: int
) -> list[LevelMaps]:
    """Find the voxels of every level, and the maps on each and from each to the next.

    They are those of `build_kernel_map`, called for one map after the other.

    Args:
        coords: (N, 4) int32 `[batch, x, y, z]` of the first level; distinct, any order.
        same: Convolution on each level: submanifold, with an odd, centred kernel and no dilation.
        down: Convolution from each level to the next: relation `minkowski`, default padding, no dilation.
        levels: Number of levels, at least 1.

    Returns:
        The levels, fine to coarse.

    Raises:
        TypeError, ValueError: If coords is not (N, 4) int32, holds a duplicate, or needs more than 63 key bits; if a
            spec or levels is not as above.

    Example:
        >>> line = torch.tensor([[0, 0, 0, 0], [0, 0, 0, 1]], dtype=torch.int32)
        >>> [len(level.coords) for level in build_level_maps(line, ConvSpec(3), ConvSpec(2, 2), 2)]
        [2, 1]
    """
    check_coords(coords, "build_level_maps")
    plain = (
        ConvSpec(same.kernel_size),
        ConvSpec(down.kernel_size, down.stride, relation="minkowski"),
    )
    if (same, down) != plain or not same.is_symmetric or levels < 1:
        raise ValueError(
            "build_level_maps: same must be submanifold with an odd, centred kernel, down of relation 'minkowski', "
            f"both without dilation and with default padding, and levels at least 1, got {same}, {down}, {levels}. "
            "Build other maps with build_kernel_map."
        )
    geometry = (same.kernel_size, down.kernel_size, down.stride)
    listed = iter(torch.ops.pointlib.level_maps(coords, levels, *geometry))
    maps: list[LevelMaps] = []
    for level in range(levels):
        own = coords if level == 0 else next(listed)
        size = len(own)
        ends = (next(listed), next(listed), next(listed))
        kernel_map = KernelMap(*ends, size, size, same.kernel_volume // 2)
        downward = None
        if level:
            ends = (next(listed), next(listed), next(listed))
            downward = KernelMap(*ends, len(maps[-1].coords), size)
        maps.append(LevelMaps(own, kernel_map, downward))
    return maps


def level_by_level(
    coords: Tensor,
    levels: int,
    kernel_size: Sequence[int],
    down_size: Sequence[int],
    down_stride: Sequence[int],
) -> list[Tensor]:
    """What the operator returns: of each level but the first its coords, then in_index, out_index and offset_ptr of its
    map, then those of the map that leads to it, but on the first.
    """
    unit, ops = (1, 1, 1), torch.ops.pointlib
    same = (kernel_size, unit, [(k - 1) // 2 for k in kernel_size], unit)
    down = (down_size, down_stride, [(k - 1) // 2 for k in down_size], unit)
    listed = list(ops.kernel_map(coords, coords, *same, True))
    for _ in range(1, levels):
        coarse = ops.conv_sites(coords, *down, False, None)
        listed += [coarse, *ops.kernel_map(coarse, coarse, *same, True)]
        listed += ops.kernel_map(coords, coarse, *down, False)
        coords = coarse
    return listed


LIB.define(
    "level_maps(Tensor coords, int levels, int[] kernel_size, int[] down_size, int[] down_stride)"
    " -> Tensor[]"
)
LIB.impl("level_maps", level_by_level, "CPU")
LIB.impl("level_maps", cuda.level_maps, "CUDA")


@torch.library.register_fake("pointlib::level_maps", lib=LIB)
def _level_maps_fake(
    coords: Tensor,
    levels: int,
    kernel_size: Sequence[int],
    down_size: Sequence[int],
    down_stride: Sequence[int],
) -> list[Tensor]:
    def pairs(size: Sequence[int]) -> list[Tensor]:
        index = coords.new_empty(torch.library.get_ctx().new_dynamic_size())
        offset_ptr = torch.empty(prod(size) + 1, dtype=torch.int64, device="cpu")
        return [index, index.clone(), offset_ptr]

    listed = pairs(kernel_size)
    for _ in range(1, levels):
        listed.append(coords.new_empty(torch.library.get_ctx().new_dynamic_size(), 4))
        listed += [*pairs(kernel_size), *pairs(down_size)]
    return listed
