"""Points to voxels and back: voxelize, devoxelize, and the trilinear weights between them.

Semantics follow SPVCNN (Tang et al., "Searching Efficient 3D Architectures with Sparse Point-Voxel Convolution", ECCV
2020, section 3): a point without a voxel is left out, an absent corner's weight goes to the corners that are present.
"""

from __future__ import annotations

from collections.abc import Sequence
from operator import lt
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from pointlib.ops._cpu import voxelize as cpu
from pointlib.ops._cuda import voxelize as cuda
from pointlib.ops._library import LIB
from pointlib.ops.coords import UniqueCoords, check_coords, lookup_coords, unique_coords
from pointlib.ops.kernel_map import ConvSpec, build_kernel_map
from pointlib.ops.scatter import (
    check_feats,
    check_index,
    gather_rows,
    scatter_max,
    scatter_mean,
    scatter_sum,
)

ReduceMode = Literal["mean", "sum", "max"]
INT32_LIMIT = 2.0**31


class Voxels(NamedTuple):
    """Voxels that hold at least one point.

    Attributes:
        coords: (M, 4) int32 `[batch, x, y, z]`, in lexicographic order.
        feats: (M, C), the points' features reduced.
        inverse: (N,) int64, voxel of each point, or -1 for a point outside the range.
    """

    coords: Tensor
    feats: Tensor
    inverse: Tensor


class TrilinearMap(NamedTuple):
    """The eight voxels around each point.

    Attributes:
        corners: (N, 8) int64 voxel row, or -1; corner offsets {0, 1}^3 with x slowest. Column 0 is the voxel that
            contains the point; another corner is -1 also where its weight is zero.
        weights: (N, 8) of the points' dtype; 0 at absent corners, otherwise they add up to 1.
    """

    corners: Tensor
    weights: Tensor


def voxelize(
    points: Tensor,
    feats: Tensor,
    voxel_size: float | Sequence[float],
    reduce: ReduceMode = "mean",
    point_cloud_range: Sequence[float] | None = None,
) -> Voxels:
    """Group points by voxel and reduce their features; differentiable in feats.

    The voxel of a point is `floor((xyz - origin) / voxel_size)`, computed in the points' dtype.

    Args:
        points: (N, 4) floating `[batch, x, y, z]`; metres, or any other unit that voxel_size shares.
        feats: (N, C) floating.
        voxel_size: Edge of a voxel, one number or (x, y, z).
        reduce: "mean", "sum" or "max" over the points of a voxel.
        point_cloud_range: (x_min, y_min, z_min, x_max, y_max, z_max). Points outside are dropped, the upper
            bound is outside, and voxels count from the lower bound. None keeps every point, origin 0.

    Returns:
        Voxels.

    Raises:
        TypeError, ValueError: If an argument is not as above, a point is NaN or infinite, or a voxel index
            does not fit int32.

    Example:
        >>> points = torch.tensor([[0, 0.1, 0.0, 0.0], [0, 0.3, 0.0, 0.0]])
        >>> voxelize(points, points[:, 1:2], voxel_size=0.5).feats.tolist()
        [[0.20000000298023224]]
    """
    _check_points(points, "voxelize")
    check_feats(feats, "voxelize")
    if feats.shape[0] != points.shape[0] or feats.device != points.device:
        raise ValueError(
            f"voxelize: feats must have one row per point on the points' device, got {tuple(feats.shape)} on "
            f"{feats.device} for {points.shape[0]} points on {points.device}."
        )
    if reduce not in ("mean", "sum", "max"):
        raise ValueError(f"voxelize: reduce must be 'mean', 'sum' or 'max', got {reduce!r}.")
    coords, inverse, _, _ = occupied_voxels(points, voxel_size, point_cloud_range)
    if reduce == "max":
        return Voxels(coords, scatter_max(feats, inverse, len(coords)).feats, inverse)
    reduction = scatter_mean if reduce == "mean" else scatter_sum
    return Voxels(coords, reduction(feats, inverse, len(coords)), inverse)


@torch.no_grad()
def occupied_voxels(
    points: Tensor,
    voxel_size: float | Sequence[float],
    point_cloud_range: Sequence[float] | None = None,
) -> UniqueCoords:
    """Find the voxels that hold a point; arguments and errors as in `voxelize`.

    Returns:
        coords (M, 4) int32 in lexicographic order; inverse (N,) int64, voxel of each point, or -1 outside the range;
        first (M,) and counts (M,) int64, the lowest row and the number of points in each voxel.

    Example:
        >>> points = torch.tensor([[0, 9.0, 0.0, 0.0], [0, 0.1, 0.0, 0.0], [0, 0.3, 0.0, 0.0]])
        >>> voxels = occupied_voxels(points, 0.5, (0, 0, 0, 1, 1, 1))
        >>> voxels.inverse.tolist(), voxels.first.tolist()
        ([-1, 0, 0], [1])
    """
    _check_points(points, "voxelize")
    cells, inside = _cells(points, voxel_size, point_cloud_range)
    if inside is None:
        return unique_coords(cells)
    rows = inside.nonzero().squeeze(1)
    unique = unique_coords(cells[rows])
    inverse = rows.new_full((len(points),), -1).index_copy_(0, rows, unique.inverse)
    return UniqueCoords(unique.coords, inverse, rows[unique.first], unique.counts)


def devoxelize(feats: Tensor, index: Tensor, weights: Tensor | None = None) -> Tensor:
    """Interpolate voxel features at points: `out[n] = sum_k weights[n, k] * feats[index[n, k]]`.

    Differentiable in feats and weights. With the corners and weights of `trilinear_map` it is trilinear interpolation;
    with an (N,) index and no weights each point takes its own voxel's features.

    Args:
        feats: (M, C) floating. float16 and bfloat16 are summed in float32 and rounded once.
        index: (N, K) int64 voxel row, or -1 for none; (N,) if weights is None.
        weights: (N, K) floating, or None.

    Returns:
        (N, C) of feats' dtype; zeros for a point without a voxel.

    Raises:
        TypeError, ValueError: If a dtype, shape or device differs from the above, or an index is out of range.
    """
    check_feats(feats, "devoxelize")
    if weights is None:
        return gather_rows(feats, index)
    check_index(index, feats, "devoxelize", dims=2)
    check_feats(weights, "devoxelize", "weights")
    if weights.shape != index.shape or weights.device != feats.device:
        raise ValueError(
            f"devoxelize: weights must have the shape of index {tuple(index.shape)} on {feats.device}, "
            f"got {tuple(weights.shape)} on {weights.device}."
        )
    return torch.ops.pointlib.devoxelize(feats, index, weights)


@torch.no_grad()
def trilinear_map(points: Tensor, coords: Tensor) -> TrilinearMap:
    """Find the voxels around each point and their trilinear weights.

    Voxel `c` carries its features at the point `c`, so a point with integer coordinates takes one voxel's features
    unchanged. Weights of absent corners are zeroed and the rest divided by their sum + 1e-8.

    Args:
        points: (N, 4) floating `[batch, x, y, z]`, in voxels of coords.
        coords: (M, 4) int32 `[batch, x, y, z]`, distinct.

    Returns:
        TrilinearMap.

    Raises:
        TypeError, ValueError: If points is not (N, 4) floating and finite, or coords not distinct (M, 4) int32.
            On CUDA, points that are not finite and coords that are not distinct fail as a device assertion.

    Example:
        >>> voxels = torch.tensor([[0, 0, 0, 0], [0, 1, 0, 0]], dtype=torch.int32)
        >>> trilinear_map(torch.tensor([[0, 0.25, 0.0, 0.0]]), voxels).weights[0].tolist()
        [0.75, 0.0, 0.0, 0.0, 0.25, 0.0, 0.0, 0.0]
    """
    _check_points(points, "trilinear_map")
    check_coords(coords, "trilinear_map")
    return TrilinearMap(*torch.ops.pointlib.trilinear_map(points, coords))


def _trilinear_map(points: Tensor, coords: Tensor) -> tuple[Tensor, Tensor]:
    """Corners and weights by other operators, for any device."""
    base = points[:, 1:].floor()
    cells = torch.cat([points[:, :1], base], 1)
    upper, lower = points[:, 1:] - base, base + 1 - points[:, 1:]
    fits, between = torch.stack([_fit_int32(cells), upper.any()]).tolist()
    if not fits:
        raise _beyond_int32(cells, "trilinear_map")
    cells = cells.int()
    if not between:  # points on the lattice: one corner is all there is
        corners = cells.new_full((len(cells), 8), -1, dtype=torch.int64)
        corners[:, 0] = lookup_coords(cells, coords)
        weights = points.new_zeros(len(cells), 8)
        weights[:, 0] = torch.where(corners[:, 0] < 0, 0.0, 1 / (weights.new_ones(()) + 1e-8))
        return corners, weights

    x, y, z = torch.stack([lower, upper], -1).unbind(1)
    weights = (x[:, :, None, None] * y[:, None, :, None] * z[:, None, None, :]).flatten(1)
    corners = _corner_rows(cells, coords)
    corners[:, 1:].masked_fill_(weights[:, 1:] == 0, -1)
    weights.masked_fill_(corners < 0, 0)
    return corners, weights.div_(weights.sum(1, keepdim=True) + 1e-8)


def _corner_rows(cells: Tensor, coords: Tensor) -> Tensor:
    """Rows of coords at `cells + {0, 1}^3`, (N, 8): the map of a 2x2x2 kernel that starts at each distinct cell."""
    unique = unique_coords(cells)
    spec = ConvSpec(2, padding=0, relation="submanifold")
    pairs = build_kernel_map(coords, spec, out_coords=unique.coords).kernel_map
    sizes = pairs.offset_ptr.diff().to(cells.device, non_blocking=True)
    taps = torch.repeat_interleave(sizes, output_size=pairs.num_pairs)
    corners = cells.new_full((len(unique.coords), 8), -1, dtype=torch.int64)
    corners[pairs.out_index.long(), taps] = pairs.in_index.long()
    return corners[unique.inverse]


def _cells(
    points: Tensor,
    voxel_size: float | Sequence[float],
    point_cloud_range: Sequence[float] | None,
) -> tuple[Tensor, Tensor | None]:
    """Voxel `[batch, x, y, z]` of each point, int32, and which points are inside the range (None: all)."""
    edges = (voxel_size,) * 3 if isinstance(voxel_size, (int, float)) else tuple(voxel_size)
    if len(edges) != 3 or not all(edge > 0 for edge in edges):
        raise ValueError(
            f"voxelize: voxel_size must be positive, one number or (x, y, z), got {voxel_size!r}."
        )
    size, xyz, inside = _like(points, edges), points[:, 1:], None
    if point_cloud_range is not None:
        bounds = tuple(point_cloud_range)
        if len(bounds) != 6 or not all(map(lt, bounds[:3], bounds[3:])):
            raise ValueError(
                "voxelize: point_cloud_range must be (x_min, y_min, z_min, x_max, y_max, z_max) with each minimum "
                f"below its maximum, got {bounds!r}."
            )
        low, high = _like(points, bounds[:3]), _like(points, bounds[3:])
        cells = ((xyz - low) / size).floor()
        grid = ((high - low) / size).round()
        inside = ((cells >= 0) & (cells < grid)).all(1)
        cells = torch.where(inside[:, None], cells, 0)
    else:
        cells = (xyz / size).floor()
    cells = torch.cat([points[:, :1], cells], 1)
    if not bool(points.isfinite().all() & _fit_int32(cells)):
        raise _not_finite(points) or _beyond_int32(cells, "voxelize")
    return cells.int(), inside


def _like(points: Tensor, values: Sequence[float]) -> Tensor:
    """The values beside the points, in their dtype, without waiting for the copy."""
    return torch.tensor(values, dtype=points.dtype).to(points.device, non_blocking=True)


def _fit_int32(cells: Tensor) -> Tensor:
    """Whether all are finite and fit, a bool beside them."""
    return (cells.abs() < INT32_LIMIT).all()


def _beyond_int32(cells: Tensor, caller: str) -> ValueError:
    return ValueError(
        f"{caller}: points must be finite and their voxel indices fit int32, got a largest index of "
        f"{cells.abs().max().item():g}. Drop non-finite points, crop to a range or use larger voxels."
    )


def _not_finite(points: Tensor) -> ValueError | None:
    """What to say of the first point that is not finite."""
    rows = (~points.isfinite()).any(1).nonzero()
    if not len(rows):
        return None
    row = int(rows[0])
    return ValueError(
        f"voxelize: points must be finite, got {points[row].tolist()} at row {row}. Drop such points first."
    )


def _check_points(points: Tensor, caller: str) -> None:
    check_feats(points, caller, "points")
    if points.shape[1] != 4 or points.dtype not in (torch.float32, torch.float64):
        raise ValueError(
            f"{caller}: points must be (N, 4) float32 or float64 [batch, x, y, z], got {tuple(points.shape)} "
            f"{points.dtype}. Put the batch index first; half precision cannot hold coordinates."
        )


LIB.define("trilinear_map(Tensor points, Tensor coords) -> (Tensor, Tensor)")
LIB.define("devoxelize(Tensor feats, Tensor index, Tensor weights) -> Tensor")
LIB.define(
    "devoxelize_transpose(Tensor grad, Tensor index, Tensor weights, SymInt num_rows) -> Tensor"
)
LIB.impl("trilinear_map", _trilinear_map, "CompositeExplicitAutograd")
LIB.impl("trilinear_map", cuda.trilinear_map, "CUDA")
for _device, _functions in (("CPU", cpu), ("CUDA", cuda)):
    LIB.impl("devoxelize", _functions.devoxelize, _device)
    LIB.impl("devoxelize_transpose", _functions.devoxelize_transpose, _device)


@torch.library.register_fake("pointlib::trilinear_map", lib=LIB)
def _trilinear_fake(points: Tensor, coords: Tensor) -> tuple[Tensor, Tensor]:
    return coords.new_empty(len(points), 8, dtype=torch.int64), points.new_empty(len(points), 8)


@torch.library.register_fake("pointlib::devoxelize", lib=LIB)
def _devoxelize_fake(feats: Tensor, index: Tensor, weights: Tensor) -> Tensor:
    return feats.new_empty(index.shape[0], feats.shape[1])


@torch.library.register_fake("pointlib::devoxelize_transpose", lib=LIB)
def _transpose_fake(grad: Tensor, index: Tensor, weights: Tensor, num_rows: int) -> Tensor:
    return grad.new_empty(num_rows, grad.shape[1])


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs[:3])


def _devoxelize_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, None, Tensor | None]:
    feats, index, weights = ctx.saved_tensors
    need_feats, _, need_weights = ctx.needs_input_grad
    grad_feats = grad_weights = None
    if need_feats:
        rows = feats.shape[0]
        grad_feats = torch.ops.pointlib.devoxelize_transpose(grad, index, weights, rows)
    if need_weights:
        grad_weights = _row_products(grad, feats, index).to(weights.dtype)
    return grad_feats, None, grad_weights


def _transpose_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, None, Tensor | None, None]:
    points, index, weights = ctx.saved_tensors
    need_points, _, need_weights, _ = ctx.needs_input_grad
    grad_points = torch.ops.pointlib.devoxelize(grad, index, weights) if need_points else None
    grad_weights = _row_products(points, grad, index).to(weights.dtype) if need_weights else None
    return grad_points, None, grad_weights, None


def _row_products(points: Tensor, voxels: Tensor, index: Tensor) -> Tensor:
    """`<points[n], voxels[index[n, k]]>` for every n and k, (N, K)."""
    rows = torch.ops.pointlib.gather_rows(voxels, index.flatten()).unflatten(0, index.shape)
    return (rows * points[:, None]).sum(-1)


for _name, _backward in (
    ("devoxelize", _devoxelize_backward),
    ("devoxelize_transpose", _transpose_backward),
):
    torch.library.register_autograd(f"pointlib::{_name}", _backward, setup_context=_save, lib=LIB)
