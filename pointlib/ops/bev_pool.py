"""Pool image features that were lifted into space over the cells of a bird's-eye view.

BEVFusion's view transform (Liu et al., "BEVFusion: Multi-Task Multi-Sensor Fusion with Unified Bird's-Eye View
Representation", ICRA 2023, section 3.2): which cell each frustum point falls into depends on the calibration alone, so
it is worked out once (`build_bev_pool_plan`: precomputation) and each cell adds up the interval of its points
(interval reduction). `bev_pool_depth` also leaves out the largest tensor of all, the products of depth and context.

| here                                          | mit-han-lab/bevfusion                                               |
|-----------------------------------------------|---------------------------------------------------------------------|
| coords (P, 4) `[batch, x, y, z]`              | geom_feats (P, 4) `[x, y, z, batch]`                                |
| `build_bev_pool_plan(coords, B, (X, Y, Z))`   | the argsort and interval search inside each call of bev_pool        |
| `bev_pool(feats, plan)` -> (B, C, Z, X, Y)    | `bev_pool(feats, geom_feats, B, D=Z, H=X, W=Y)` -> (B, C, Z, X, Y)  |
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch import Tensor

from pointlib.ops._cpu import bev_pool as cpu
from pointlib.ops._cuda import bev_pool as cuda
from pointlib.ops._library import LIB
from pointlib.ops.scatter import accumulation_dtype, check_feats

MOST = 2**31 - 1
"""Points and cells that a plan can number."""


@dataclass(frozen=True, eq=False)
class BevPoolPlan:
    """Which cell each frustum point is added to. Made by `build_bev_pool_plan`, used for any number of calls.

    Cell `((batch * Z + z) * X + x) * Y + y`; its points are `order[interval_ptr[cell] : interval_ptr[cell + 1]]`.

    Attributes:
        cells: (P,) int64 cell of each point, or -1 outside the grid.
        order: (P,) int32 points by cell, in their own order within one; those outside the grid last.
        interval_ptr: (B * Z * X * Y + 1,) int32 start of each cell's interval in order.
        batch_size: B.
        grid_shape: (X, Y, Z) cells per axis.
    """

    cells: Tensor
    order: Tensor
    interval_ptr: Tensor
    batch_size: int
    grid_shape: tuple[int, int, int]

    @property
    def num_points(self) -> int:
        """Points that a call must bring, P."""
        return self.cells.shape[0]

    def to(self, device: torch.device | str) -> BevPoolPlan:
        """The same plan on another device."""
        cells, order, starts = (t.to(device) for t in (self.cells, self.order, self.interval_ptr))
        return BevPoolPlan(cells, order, starts, self.batch_size, self.grid_shape)


@torch.no_grad()
def build_bev_pool_plan(
    coords: Tensor, batch_size: int, grid_shape: tuple[int, int, int]
) -> BevPoolPlan:
    """Sort frustum points by the cell they fall into. Reads nothing back from a GPU.

    Args:
        coords: (P, 4) int32 or int64 `[batch, x, y, z]` cell of each point; points outside the grid are dropped.
            For `bev_pool_depth` the points are those of (B * N, D, H, W), W fastest.
        batch_size: Samples, B.
        grid_shape: (X, Y, Z) cells per axis.

    Returns:
        BevPoolPlan.

    Raises:
        TypeError, ValueError: If an argument is not as above, or there are 2^31 points or cells.

    Example:
        >>> coords = torch.tensor([[0, 1, 0, 0], [0, 9, 0, 0], [0, 1, 0, 0]])
        >>> plan = build_bev_pool_plan(coords, batch_size=1, grid_shape=(2, 1, 1))
        >>> bev_pool(torch.tensor([[1.0], [2.0], [4.0]]), plan).flatten().tolist()
        [0.0, 5.0]
    """
    name = "build_bev_pool_plan"
    if not isinstance(coords, Tensor) or coords.dtype not in (torch.int32, torch.int64):
        got = str(coords.dtype) if isinstance(coords, Tensor) else type(coords).__name__
        raise TypeError(
            f"{name}: coords must be an int32 or int64 tensor, got {got}. Use (p / cell).floor().int()."
        )
    if coords.dim() != 2 or coords.shape[1] != 4:
        raise ValueError(
            f"{name}: coords must be (P, 4) [batch, x, y, z], got {tuple(coords.shape)}."
        )
    sizes = (batch_size, *grid_shape)
    if len(sizes) != 4 or min(sizes) < 1 or max(prod(sizes), len(coords)) > MOST:
        raise ValueError(
            f"{name}: batch_size and grid_shape (X, Y, Z) must be positive and points and cells fewer than 2^31, "
            f"got {batch_size}, {tuple(grid_shape)} and {len(coords)} points."
        )
    size_x, size_y, size_z = grid_shape
    cells = torch.zeros_like(coords[:, 0], dtype=torch.int64)
    inside = torch.ones_like(cells, dtype=torch.bool)
    for column, size in ((0, batch_size), (3, size_z), (1, size_x), (2, size_y)):
        index = coords[:, column]
        inside = inside & (index >= 0) & (index < size)
        cells = cells * size + index
    cells = torch.where(inside, cells, -1)
    order, interval_ptr = torch.ops.pointlib.bev_pool_intervals(cells, prod(sizes))
    return BevPoolPlan(cells, order, interval_ptr, batch_size, (size_x, size_y, size_z))


def bev_pool(feats: Tensor, plan: BevPoolPlan) -> Tensor:
    """Add up the features of the points in each cell of the bird's-eye view; differentiable in feats.

    Args:
        feats: (P, C) floating, in the order of the plan's coords. float16 and bfloat16 are summed in float32 and
            rounded once.
        plan: Of `build_bev_pool_plan`.

    Returns:
        (B, C, Z, X, Y) of feats' dtype, zeros where no point fell. Its memory is channels-last. The order of
        summation is fixed.

    Raises:
        TypeError, ValueError: If feats is not as above, or not on the plan's device.
    """
    check_feats(feats, "bev_pool")
    _check_plan("bev_pool", "feats", feats, feats.shape[0], plan)
    rows = torch.ops.pointlib.bev_pool(feats, plan.cells, plan.order, plan.interval_ptr)
    return _grid(rows, plan)


def bev_pool_depth(depth: Tensor, context: Tensor, plan: BevPoolPlan) -> Tensor:
    """Lift and pool in one step: add up `depth[n, d, h, w] * context[n, :, h, w]` over the points of each cell.

    Equal to `bev_pool` of the products, which are (B * N, D, H, W, C) and never stored. Differentiable in both.

    Args:
        depth: (B * N, D, H, W) floating, probability of each depth bin; of context's dtype, or float32.
        context: (B * N, C, H, W) floating; channels_last memory saves a copy. float16 and bfloat16 are summed in
            float32 and rounded once.
        plan: Of `build_bev_pool_plan`, for B * N * D * H * W points.

    Returns:
        (B, C, Z, X, Y) of context's dtype, as of `bev_pool`.

    Raises:
        TypeError, ValueError: If a dtype, shape or device differs from the above.
    """
    name = "bev_pool_depth"
    for title, tensor in (("depth", depth), ("context", context)):
        if not isinstance(tensor, Tensor) or not tensor.is_floating_point():
            got = str(tensor.dtype) if isinstance(tensor, Tensor) else type(tensor).__name__
            raise TypeError(f"{name}: {title} must be a floating tensor, got {got}.")
    sums = accumulation_dtype(context)
    if depth.dtype not in (context.dtype, sums):
        raise TypeError(
            f"{name}: depth must be {context.dtype} as context is, or {sums}, got {depth.dtype}. Convert with .to()."
        )
    images, _, *size = context.shape if context.dim() == 4 else (-1, -1)
    if depth.dim() != 4 or [depth.shape[0], *depth.shape[2:]] != [images, *size]:
        raise ValueError(
            f"{name}: depth must be (B * N, D, H, W) and context (B * N, C, H, W), "
            f"got {tuple(depth.shape)} and {tuple(context.shape)}."
        )
    _check_plan(name, "depth", depth, depth.numel(), plan)
    _check_plan(name, "context", context, depth.numel(), plan)
    weights, rows = depth.to(sums).flatten(2), context.flatten(2).transpose(1, 2)
    tensors = (plan.cells, plan.order, plan.interval_ptr)
    return _grid(torch.ops.pointlib.bev_pool_depth(weights, rows, *tensors), plan)


def _grid(rows: Tensor, plan: BevPoolPlan) -> Tensor:
    size_x, size_y, size_z = plan.grid_shape
    return rows.view(plan.batch_size, size_z, size_x, size_y, -1).permute(0, 4, 1, 2, 3)


def _check_plan(
    caller: str, argument: str, tensor: Tensor, num_points: int, plan: BevPoolPlan
) -> None:
    if num_points != plan.num_points or tensor.device != plan.cells.device:
        raise ValueError(
            f"{caller}: {argument} must bring the plan's {plan.num_points} points on {plan.cells.device}, "
            f"got {num_points} from shape {tuple(tensor.shape)} on {tensor.device}."
        )


_PLAN = "Tensor cells, Tensor order, Tensor interval_ptr"
LIB.define("bev_pool_intervals(Tensor cells, SymInt num_cells) -> (Tensor, Tensor)")
LIB.define(f"bev_pool(Tensor feats, {_PLAN}) -> Tensor")
LIB.define(f"bev_pool_depth(Tensor depth, Tensor context, {_PLAN}) -> Tensor")
LIB.define(
    f"bev_pool_depth_grad(Tensor grad, Tensor depth, Tensor context, {_PLAN}) -> (Tensor, Tensor)"
)
for _name in ("bev_pool_intervals", "bev_pool", "bev_pool_depth", "bev_pool_depth_grad"):
    LIB.impl(_name, getattr(cpu, _name), "CPU")
    LIB.impl(_name, getattr(cuda, _name), "CUDA")


@torch.library.register_fake("pointlib::bev_pool_intervals", lib=LIB)
def _intervals_fake(cells: Tensor, num_cells: int) -> tuple[Tensor, Tensor]:
    order = torch.empty_like(cells, dtype=torch.int32)
    return order, cells.new_empty(num_cells + 1, dtype=torch.int32)


@torch.library.register_fake("pointlib::bev_pool", lib=LIB)
def _pool_fake(feats: Tensor, cells: Tensor, order: Tensor, interval_ptr: Tensor) -> Tensor:
    return feats.new_empty(interval_ptr.shape[0] - 1, feats.shape[1])


@torch.library.register_fake("pointlib::bev_pool_depth", lib=LIB)
def _depth_fake(
    depth: Tensor, context: Tensor, cells: Tensor, order: Tensor, interval_ptr: Tensor
) -> Tensor:
    return context.new_empty(interval_ptr.shape[0] - 1, context.shape[2])


@torch.library.register_fake("pointlib::bev_pool_depth_grad", lib=LIB)
def _depth_grad_fake(
    grad: Tensor,
    depth: Tensor,
    context: Tensor,
    cells: Tensor,
    order: Tensor,
    interval_ptr: Tensor,
) -> tuple[Tensor, Tensor]:
    return depth.new_empty(depth.shape), context.new_empty(context.shape)


def _save(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    ctx.save_for_backward(*inputs)


def _save_cells(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    ctx.save_for_backward(inputs[1])


def _pool_backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
    return torch.ops.pointlib.gather_rows(grad, *ctx.saved_tensors), None, None, None


def _depth_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    found = torch.ops.pointlib.bev_pool_depth_grad(grad, *ctx.saved_tensors)
    return (*found, None, None, None)


def _depth_grad_backward(
    ctx: Any, grad_depth: Tensor, grad_context: Tensor
) -> tuple[Tensor | None, ...]:
    """The pool is linear in depth and in context, so its gradients' gradient needs no other operator."""
    grad, depth, context, *plan = ctx.saved_tensors
    pool = torch.ops.pointlib.bev_pool_depth
    of_grad = pool(grad_depth, context, *plan) + pool(depth, grad_context, *plan)
    of_inputs = torch.ops.pointlib.bev_pool_depth_grad(grad, grad_depth, grad_context, *plan)
    return (of_grad, *of_inputs, None, None, None)


for _name, _backward, _setup in (
    ("bev_pool", _pool_backward, _save_cells),
    ("bev_pool_depth", _depth_backward, _save),
    ("bev_pool_depth_grad", _depth_grad_backward, _save),
):
    torch.library.register_autograd(f"pointlib::{_name}", _backward, setup_context=_setup, lib=LIB)
