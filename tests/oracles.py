"""Slow and obvious answers for the tests: dictionaries and loops for coordinates, dense torch for arithmetic.

Nothing here imports pointlib. Coordinates are int `[batch, x, y, z]`, kernel taps count from 0, and every map obeys
`in = stride * out + dilation * tap - padding` on each axis.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence

import numpy as np
import torch
from torch import Tensor

Triple = tuple[int, int, int]
Pair = tuple[int, int, int]
"""(kernel offset, input row, output row)."""


def taps(kernel_size: Triple) -> list[Triple]:
    """Taps in the order of a weight's rows: x fastest if the kernel volume is odd, z fastest if it is even."""
    kx, ky, kz = kernel_size
    if kx * ky * kz % 2:
        return [(x, y, z) for z in range(kz) for y in range(ky) for x in range(kx)]
    return list(itertools.product(range(kx), range(ky), range(kz)))


def same_padding(kernel_size: Triple, dilation: Triple) -> Triple:
    """Padding that centres the kernel on its output: `dilation * ((kernel_size - 1) // 2)`."""
    return tuple(d * ((k - 1) // 2) for k, d in zip(kernel_size, dilation, strict=True))  # type: ignore[return-value]


def input_of(out: Sequence[int], tap: Triple, stride: Triple, padding: Triple, dilation: Triple):
    """Input coordinate that feeds `out` through `tap`: the one index relation."""
    axes = zip(out[1:], tap, stride, padding, dilation, strict=True)
    return (out[0], *(s * o + d * t - p for o, t, s, p, d in axes))


def outputs_of(
    inside: Sequence[int], tap: Triple, stride: Triple, padding: Triple, dilation: Triple
) -> tuple[int, ...] | None:
    """Output coordinate that `inside` feeds through `tap`, or None where the stride does not divide."""
    axes = zip(inside[1:], tap, stride, padding, dilation, strict=True)
    shifted = [(i + p - d * t, s) for i, t, s, p, d in axes]
    if any(value % s for value, s in shifted):
        return None
    return (inside[0], *(value // s for value, s in shifted))


def conv_out_shape(
    shape: Triple, kernel_size: Triple, stride: Triple, padding: Triple, dilation: Triple
) -> Triple:
    """Output shape of a dense convolution (spconv's bounds)."""
    axes = zip(shape, kernel_size, stride, padding, dilation, strict=True)
    return tuple((n + 2 * p - d * (k - 1) - 1) // s + 1 for n, k, s, p, d in axes)  # type: ignore[return-value]


def out_sites(
    coords: Iterable[Sequence[int]],
    relation: str,
    kernel_size: Triple,
    stride: Triple,
    padding: Triple,
    dilation: Triple,
    spatial_shape: Triple | None = None,
) -> list[tuple[int, ...]]:
    """Output coordinates of a convolution; input order for `submanifold`, lexicographic otherwise.

    `spconv` without a spatial_shape is unbounded.
    """
    rows = [tuple(int(v) for v in row) for row in coords]
    if relation == "submanifold":
        return rows
    if relation == "minkowski":
        return sorted({(b, x // stride[0], y // stride[1], z // stride[2]) for b, x, y, z in rows})
    assert relation == "spconv"
    reached = {
        out
        for row in rows
        for tap in taps(kernel_size)
        if (out := outputs_of(row, tap, stride, padding, dilation)) is not None
    }
    if spatial_shape is None:
        return sorted(reached)
    bound = conv_out_shape(spatial_shape, kernel_size, stride, padding, dilation)
    return sorted(o for o in reached if all(0 <= v < n for v, n in zip(o[1:], bound, strict=True)))


def generative_sites(
    coords: Iterable[Sequence[int]],
    kernel_size: Triple,
    stride: Triple,
    padding: Triple,
    dilation: Triple,
) -> list[tuple[int, ...]]:
    """Every site that a generative transposed convolution can write, lexicographic."""
    rows = [tuple(int(v) for v in row) for row in coords]
    return sorted(
        {input_of(row, t, stride, padding, dilation) for row in rows for t in taps(kernel_size)}
    )


def map_pairs(
    in_coords: Iterable[Sequence[int]],
    out_coords: Iterable[Sequence[int]],
    kernel_size: Triple,
    stride: Triple,
    padding: Triple,
    dilation: Triple,
) -> list[Pair]:
    """Every pair of a kernel map, ordered by kernel offset and by output row inside it."""
    rows = {tuple(int(v) for v in row): index for index, row in enumerate(in_coords)}
    outs = [tuple(int(v) for v in row) for row in out_coords]
    return [
        (offset, rows[source], out_row)
        for offset, tap in enumerate(taps(kernel_size))
        for out_row, out in enumerate(outs)
        if (source := input_of(out, tap, stride, padding, dilation)) in rows
    ]


def dense_weight(weight: Tensor, kernel_size: Triple) -> Tensor:
    """Reorder (K, Cin/groups, Cout) into the (Cout, Cin/groups, kx, ky, kz) of torch's conv3d.

    Odd volumes store x fastest and even volumes z fastest, as in the checkpoints of mit-han-lab/spvnas.
    """
    kx, ky, kz = kernel_size
    if kx * ky * kz % 2:
        return weight.view(kz, ky, kx, *weight.shape[1:]).permute(4, 3, 2, 1, 0)
    return weight.view(kx, ky, kz, *weight.shape[1:]).permute(4, 3, 0, 1, 2)


def _densify(
    feats: Tensor, coords: Tensor, lower: Tensor, shape: Sequence[int], batch: int
) -> Tensor:
    """(B, C, X, Y, Z) holding `feats` at `coords - lower`; rows outside are dropped."""
    grid = feats.new_zeros(batch, *shape, feats.shape[1])
    place = coords[:, 1:].long() - lower
    inside = ((place >= 0) & (place < torch.tensor(shape))).all(1)
    b, (x, y, z) = coords[inside, 0].long(), place[inside].unbind(1)
    return grid.index_put((b, x, y, z), feats[inside]).permute(0, 4, 1, 2, 3)


def dense_conv(
    feats: Tensor,
    in_coords: Tensor,
    out_coords: Tensor,
    weight: Tensor,
    kernel_size: Triple,
    stride: Triple,
    padding: Triple,
    dilation: Triple,
    bias: Tensor | None = None,
    groups: int = 1,
) -> Tensor:
    """Convolve densely in float64 and read the result at `out_coords`. Differentiable.

    The grid starts where the first tap of the lowest output reads, so negative coordinates and any padding need no
    special case. Keep the extent small: the grid is dense.

    Returns:
        (M, Cout) float64.
    """
    if not len(out_coords):
        return feats.new_zeros(0, weight.shape[2], dtype=torch.float64)
    s, p, d, k = (torch.tensor(v) for v in (stride, padding, dilation, kernel_size))
    out_low = out_coords[:, 1:].long().amin(0)
    span = out_coords[:, 1:].long().amax(0) - out_low
    batch = 1 + int(torch.cat([in_coords[:, 0], out_coords[:, 0]]).max())
    shape = (s * span + d * (k - 1) + 1).tolist()
    grid = _densify(feats.double(), in_coords, s * out_low - p, shape, batch)
    out = torch.nn.functional.conv3d(
        grid,
        dense_weight(weight.double(), kernel_size),
        None if bias is None else bias.double(),
        stride=stride,
        dilation=dilation,
        groups=groups,
    )
    x, y, z = (out_coords[:, 1:].long() - out_low).unbind(1)
    return out[out_coords[:, 0].long(), :, x, y, z]


def dense_conv_transpose(
    feats: Tensor,
    coarse_coords: Tensor,
    fine_coords: Tensor,
    weight: Tensor,
    kernel_size: Triple,
    stride: Triple,
    padding: Triple,
    dilation: Triple,
    bias: Tensor | None = None,
) -> Tensor:
    """Transposed convolution from coarse to fine sites with torch's conv_transpose3d in float64.

    Returns:
        (N_fine, Cout) float64.
    """
    if not len(fine_coords):
        return feats.new_zeros(0, weight.shape[2], dtype=torch.float64)
    low = coarse_coords[:, 1:].long().amin(0)
    shape = (coarse_coords[:, 1:].long().amax(0) - low + 1).tolist()
    batch = 1 + int(torch.cat([coarse_coords[:, 0], fine_coords[:, 0]]).max())
    grid = _densify(feats.double(), coarse_coords, low, shape, batch)
    out = torch.nn.functional.conv_transpose3d(
        grid,
        dense_weight(weight.double(), kernel_size).transpose(0, 1),
        None,
        stride=stride,
        dilation=dilation,
    )
    place = fine_coords[:, 1:].long() - (torch.tensor(stride) * low - torch.tensor(padding))
    inside = ((place >= 0) & (place < torch.tensor(out.shape[2:]))).all(1)
    x, y, z = place.clamp(min=0).minimum(torch.tensor(out.shape[2:]) - 1).unbind(1)
    values = out[fine_coords[:, 0].long(), :, x, y, z] * inside[:, None]
    return values if bias is None else values + bias.double()


def conv_of_pairs(
    feats: Tensor,
    weight: Tensor,
    pairs: Iterable[Pair],
    num_out: int,
    bias: Tensor | None = None,
    groups: int = 1,
) -> Tensor:
    """Convolve tap by tap over a list of pairs, in float64. Differentiable; any extent will do, as no grid is made.

    Returns:
        (num_out, Cout) float64.
    """
    feats, weight = feats.double(), weight.double()
    out = feats.new_zeros(num_out, weight.shape[2])
    listed = torch.tensor(list(pairs), dtype=torch.int64).reshape(-1, 3)
    for tap in listed[:, 0].unique().tolist():
        _, source, target = listed[listed[:, 0] == tap].unbind(1)
        blocks = zip(feats[source].chunk(groups, 1), weight[tap].chunk(groups, 1), strict=True)
        out = out.index_add(0, target, torch.cat([x @ w for x, w in blocks], 1))
    return out if bias is None else out + bias.double()


def unique_rows(coords: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Sorted distinct rows, inverse, smallest row of each, counts, by a dictionary."""
    seen: dict[tuple[int, ...], list[int]] = {}
    for index, row in enumerate(coords.tolist()):
        seen.setdefault(tuple(row), []).append(index)
    ordered = sorted(seen)
    inverse = np.empty(len(coords), dtype=np.int64)
    for rank, row in enumerate(ordered):
        inverse[seen[row]] = rank
    distinct = np.array(ordered, dtype=np.int32).reshape(-1, 4)
    first = np.array([seen[row][0] for row in ordered], dtype=np.int64)
    counts = np.array([len(seen[row]) for row in ordered], dtype=np.int64)
    return distinct, inverse, first, counts


def random_coords(
    rng: np.random.Generator,
    count: int,
    extent: int | Sequence[int] = 6,
    batch: int = 1,
    lower: int | Sequence[int] = 0,
) -> Tensor:
    """At most `count` distinct random coordinates in `[lower, lower + extent)`, rows in random order.

    Returns:
        (N, 4) int32.
    """
    lows, extents = np.broadcast_to(lower, 3), np.broadcast_to(extent, 3)
    rows = np.column_stack(
        [rng.integers(batch, size=count)]
        + [rng.integers(lo, lo + n, size=count) for lo, n in zip(lows, extents, strict=True)]
    )
    return torch.from_numpy(rng.permutation(np.unique(rows, axis=0)).astype(np.int32))
