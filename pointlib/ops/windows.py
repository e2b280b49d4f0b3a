"""Windows of voxels flattened into groups of equal size, for attention: FlatFormer's partition.

Liu et al., "FlatFormer: Flattened Window Attention for Efficient Point Cloud Transformer", CVPR 2023. Voxels are sorted
by window and then inside it, and cut into groups of one size: nearly a window each, with equal work for all. torch has
all that this takes, on every device.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from pointlib.ops.coords import check_coords
from pointlib.ops.scatter import gather_rows


class Sweep(NamedTuple):
    """A way through the windows.

    Attributes:
        axis: Along which one window follows another: "x" goes through the windows of one y before the next.
        shifted: Whether windows start half a window earlier.
    """

    axis: Literal["x", "y"]
    shifted: bool


SWEEPS = (Sweep("x", False), Sweep("x", True), Sweep("y", False), Sweep("y", True))
"""Those of the four layers of a FlatFormer block."""


class WindowGroups(NamedTuple):
    """Voxels in groups of equal size, no group with voxels of two samples.

    Attributes:
        rows: (G, S) int64 voxel of each place. A sample's last group is filled up with voxels that also have another
            place: those S places earlier, or the sample's own again from the start if it has fewer than S.
        places: (N,) int64 place `group * S + slot` of each voxel.
    """

    rows: Tensor
    places: Tensor


@torch.no_grad()
def window_groups(
    coords: Tensor,
    window_shape: tuple[int, int],
    group_size: int,
    batch_size: int,
    sweeps: Sequence[Sweep] = SWEEPS,
) -> list[WindowGroups]:
    """Group the voxels of bird's-eye-view windows.

    Windows are visited in a meander, the next row of windows backwards, and so are the voxels inside one, column by
    column, so that nearly all that follow each other lie side by side. The order is that of the authors' code. Two of
    its faults are not repeated: a sample of fewer voxels than a group took the rest from the sample before it, or
    failed.

    The host waits once for the number of voxels of each sample.

    Args:
        coords: (N, 4) int32 `[batch, x, y, z]`, in any order; z counts nothing but rows of equal (x, y) keep theirs.
        window_shape: Voxels along (x, y) of a window.
        group_size: S, voxels of a group.
        batch_size: Number of samples, empty ones too.
        sweeps: One partition each.

    Returns:
        WindowGroups of each sweep; of all in the same number of groups.

    Raises:
        TypeError, ValueError: If coords is not as above, a size is not positive, a batch index is not in
            [0, batch_size), or coords span more windows than fit a key of 63 bits.

    Example:
        >>> coords = torch.tensor([[0, 5, 0, 0], [0, 1, 0, 0], [0, 2, 0, 0]], dtype=torch.int32)
        >>> window_groups(coords, (3, 3), group_size=2, batch_size=1)[0].rows.tolist()
        [[1, 2], [0, 2]]
    """
    check_coords(coords, "window_groups")
    if len(window_shape) != 2 or min(window_shape) < 1:
        raise ValueError(
            f"window_groups: window_shape must be voxels along (x, y), each >= 1, got {window_shape}."
        )
    if group_size < 1:
        raise ValueError(f"window_groups: group_size must be >= 1, got {group_size}.")
    counts, number_of, lower, upper = _measure(coords, batch_size)
    num_groups = sum(-(-number // group_size) for number in number_of)
    rows, places = _spread(counts, group_size, num_groups, len(coords))
    partitions = []
    for sweep in sweeps:
        order = _keys(coords, window_shape, sweep, batch_size, lower, upper).sort(stable=True)[1]
        of_voxel = torch.empty_like(order).scatter_(0, order, places)
        partitions.append(WindowGroups(order[rows].view(num_groups, group_size), of_voxel))
    return partitions


def group_rows(feats: Tensor, groups: WindowGroups) -> Tensor:
    """Features in their groups; differentiable, with a deterministic gradient.

    Args:
        feats: (N, C) floating.
        groups: Of these voxels.

    Returns:
        (G, S, C).
    """
    rows = gather_rows(feats, groups.rows.flatten())
    return rows.view(*groups.rows.shape, feats.shape[1])


def ungroup_rows(grouped: Tensor, groups: WindowGroups) -> Tensor:
    """The way back: each voxel's own place, while what fills up groups is left out; differentiable.

    Args:
        grouped: (G, S, C) floating.
        groups: As given to `group_rows`.

    Returns:
        (N, C).
    """
    return gather_rows(grouped.flatten(0, 1), groups.places)


def _measure(coords: Tensor, batch_size: int) -> tuple[Tensor, list[int], list[int], list[int]]:
    """Voxels of each sample, as a tensor and as numbers, and the smallest and largest (x, y): one transfer."""
    counts = coords.new_zeros(batch_size, dtype=torch.int64)
    if not len(coords):
        return counts, [0] * batch_size, [0, 0], [0, 0]
    batch, ones = coords[:, 0].long(), torch.ones_like(coords[:, 0], dtype=torch.int64)
    if batch_size:
        counts.scatter_add_(0, batch.clamp(0, batch_size - 1), ones)
    lower, upper = coords[:, :3].aminmax(dim=0)
    *number_of, low, x_low, y_low, high, x_high, y_high = torch.cat([counts, lower, upper]).tolist()
    if low < 0 or high >= batch_size:
        raise ValueError(
            f"window_groups: coords must have batch indices in [0, {batch_size}), got {low if low < 0 else high}."
        )
    return counts, number_of, [x_low, y_low], [x_high, y_high]


def _spread(counts: Tensor, size: int, num_groups: int, num_voxels: int) -> tuple[Tensor, Tensor]:
    """For voxels sorted by sample: the voxel of each place in the groups, and the place of each voxel."""
    filled = (counts + size - 1) // size * size
    first, first_place = counts.cumsum(0) - counts, filled.cumsum(0) - filled
    sample = torch.arange(len(counts), device=counts.device)
    of_place = torch.repeat_interleave(sample, filled, output_size=num_groups * size)
    of_voxel = torch.repeat_interleave(sample, counts, output_size=num_voxels)

    number = torch.arange(num_groups * size, device=counts.device) - first_place[of_place]
    count = counts[of_place]
    again = torch.where(count < size, number % count.clamp(min=1), number - size)
    rows = first[of_place] + torch.where(number < count, number, again)
    places = torch.arange(num_voxels, device=counts.device) + (first_place - first)[of_voxel]
    return rows, places


def _keys(
    coords: Tensor,
    window_shape: tuple[int, int],
    sweep: Sweep,
    batch_size: int,
    lower: list[int],
    upper: list[int],
) -> Tensor:
    """What voxels are sorted by: sample, row of windows, window, column, place in the column."""
    if sweep.axis not in ("x", "y"):
        raise ValueError(
            f"window_groups: the axis of a sweep must be 'x' or 'y', got {sweep.axis!r}."
        )
    order = (0, 1) if sweep.axis == "x" else (1, 0)
    along_size, across_size = (window_shape[axis] for axis in order)
    windows, insides, firsts, spans = [], [], [], []
    for axis in order:
        size = window_shape[axis]
        shift = size // 2 if sweep.shifted else 0
        place = coords[:, 1 + axis].long() + shift
        windows.append(place.div(size, rounding_mode="floor"))
        insides.append(place.remainder(size))
        firsts.append((lower[axis] + shift) // size)
        spans.append((upper[axis] + shift) // size - firsts[-1] + 1)

    (along, across), (along_in, across_in) = windows, insides
    back = across & 1 == 1
    turned = back ^ (along_in & 1 == 1)
    fields = [
        (coords[:, 0].long(), batch_size),
        (across - firsts[1], spans[1]),
        (_turn(along - firsts[0], spans[0], back), spans[0]),
        (_turn(along_in, along_size, back), along_size),
        (_turn(across_in, across_size, turned), across_size),
    ]
    return _pack(fields)


def _turn(number: Tensor, count: int, turned: Tensor) -> Tensor:
    return torch.where(turned, count - 1 - number, number)


def _pack(fields: list[tuple[Tensor, int]]) -> Tensor:
    """One number of several, the first most significant, in the narrowest dtype that torch sorts fast."""
    span = math.prod(count for _, count in fields)
    if span > torch.iinfo(torch.int64).max:
        raise ValueError(
            "window_groups: coords must span fewer than 2^63 samples * windows * places, got "
            f"{' * '.join(str(count) for _, count in fields)}. Crop the points to a range."
        )
    key = torch.zeros_like(fields[0][0])
    for number, count in fields:
        key = key * count + number
    return key.int() if span <= torch.iinfo(torch.int32).max else key
