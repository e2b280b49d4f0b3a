"""What the operators give, forward and backward, on one small random scene, to compare two ways of running them.

In float64 everything is computed by the compositions, so that run is the oracle of the others; the inputs are numbers
that every dtype holds exactly.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from pointlib.ops.coords import lookup_coords, unique_coords
from pointlib.ops.kernel_map import ConvSpec, KernelMap, build_generative_map, build_kernel_map
from pointlib.ops.pooling import sparse_max_pool, sparse_max_unpool, sparse_pool
from pointlib.ops.scatter import gather_rows, scatter_max, scatter_mean, scatter_sum
from pointlib.ops.sparse_conv import sparse_conv
from pointlib.ops.voxelize import devoxelize, trilinear_map, voxelize
from tests import oracles

Prepare = Callable[[Tensor], Tensor]


def same(tensor: Tensor) -> Tensor:
    """Leave an argument as it is."""
    return tensor


def scene(rows: int, extent: int = 9) -> Tensor:
    """At most `rows` distinct coordinates of two batch entries, some negative, in random order: (N, 4) int32."""
    return oracles.random_coords(
        np.random.default_rng(0), rows, extent, batch=2, lower=-extent // 2
    )


def coord_results(rows: int = 400, prepare: Prepare = same) -> dict[str, Tensor]:
    """Sorting, searching and every kind of kernel map; `prepare` lays out each tensor that an operator is given."""
    coords = scene(rows)
    twice = torch.cat([coords, coords[: rows // 3]])
    unique = unique_coords(prepare(twice))
    found = {f"unique {name}": value for name, value in unique._asdict().items()}
    found["lookup"] = lookup_coords(prepare(coords[: rows // 2] + 1), prepare(coords))
    for name, spec in {
        "submanifold": ConvSpec(3),
        "even submanifold": ConvSpec(2),
        "down": ConvSpec(2, 2),
        "down 3": ConvSpec((3, 1, 2), (2, 1, 3)),
        "spconv": ConvSpec(3, 2, 1, relation="spconv"),
        "large": ConvSpec(7, dilation=2),
    }.items():
        found |= _map_tensors(name, *build_kernel_map(prepare(coords), spec))
    found |= _map_tensors("generative", *build_generative_map(prepare(coords), ConvSpec(3, 2)))
    return found


def _map_tensors(name: str, coords: Tensor, kernel_map: KernelMap) -> dict[str, Tensor]:
    parts = {key: getattr(kernel_map, key) for key in ("in_index", "out_index", "offset_ptr")}
    return {f"{name} coords": coords, **{f"{name} {key}": value for key, value in parts.items()}}


def feature_results(
    dtype: torch.dtype = torch.float32,
    rows: int = 400,
    channels: tuple[int, int] = (5, 19),
    prepare: Prepare = same,
) -> dict[str, Tensor]:
    """Outputs and gradients of what computes on features; `prepare` lays out each tensor that an operator is given."""
    generator = torch.Generator().manual_seed(0)
    c_in, c_out = channels

    def random(*shape: int) -> Tensor:
        numbers = torch.randn(*shape, generator=generator).bfloat16().to(dtype)
        return prepare(numbers).requires_grad_()

    coords = scene(rows)
    found: dict[str, Tensor] = {}

    def run(name: str, function: Callable[..., Tensor], *inputs: Tensor) -> None:
        out = function(*inputs)
        found[name] = out.detach()
        weights = prepare(torch.randn(out.shape, generator=generator).bfloat16().to(dtype))
        grads = torch.autograd.grad(out, inputs, weights, allow_unused=True)
        found.update({f"{name} grad {i}": g for i, g in enumerate(grads) if g is not None})

    for name, spec in {"submanifold": ConvSpec(3), "down": ConvSpec(2, 2)}.items():
        down = _prepared(build_kernel_map(coords, spec).kernel_map, prepare)
        for direction, held in {"": down, " transposed": down.transpose()}.items():
            feats, weight = random(held.num_in, c_in), random(held.kernel_volume, c_in, c_out)
            run(
                f"conv {name}{direction}",
                lambda f, w, b, held=held: sparse_conv(f, w, held, b),
                *(feats, weight, random(c_out)),
            )
            for mode in ("max", "avg", "sum"):
                run(
                    f"{mode} pool {name}{direction}",
                    lambda f, held=held, mode=mode: sparse_pool(f, held, mode),
                    feats,
                )
    argmax = sparse_max_pool(random(down.num_in, c_in), down).argmax
    run(
        "unpool",
        lambda f: sparse_max_unpool(f, prepare(argmax), down.num_in),
        random(*argmax.shape),
    )
    index = torch.randint(-1, max(rows // 3, 1), (rows,), generator=generator)
    for name, scatter in {"sum": scatter_sum, "mean": scatter_mean}.items():
        run(
            f"scatter {name}",
            lambda s, scatter=scatter: scatter(s, prepare(index), max(rows // 2, 1)),
            random(rows, c_in),
        )
    run(
        "scatter max",
        lambda s: scatter_max(s, prepare(index), max(rows // 2, 1)).feats,
        random(rows, c_out),
    )
    run("gather", lambda s: gather_rows(s, prepare(index)), random(max(rows // 3, 1), c_out))
    found |= _point_results(coords, random, run, prepare)
    return found


def _point_results(
    coords: Tensor, random: Callable[..., Tensor], run: Callable[..., None], prepare: Prepare
) -> dict[str, Tensor]:
    """Voxelize and interpolate: points in float32 always, so that they fall into the same voxels."""
    generator = torch.Generator().manual_seed(1)
    shift = torch.rand(len(coords), 3, generator=generator)
    points = torch.cat([coords[:, :1].float(), coords[:, 1:] + shift], 1)
    for reduce in ("mean", "sum", "max"):
        run(
            f"voxelize {reduce}",
            lambda f, reduce=reduce: voxelize(prepare(points), f, 2.0, reduce).feats,
            random(len(coords), 7),
        )
    corners, weights = trilinear_map(prepare(points), prepare(coords))
    feats = random(len(coords), 6)
    held = prepare(weights.to(feats.dtype).detach()).requires_grad_()
    run("devoxelize", lambda f, w: devoxelize(f, prepare(corners), w), feats, held)
    return {"corners": corners}


def _prepared(kernel_map: KernelMap, prepare: Prepare) -> KernelMap:
    """The map with its indices laid out by `prepare`."""
    return KernelMap(
        prepare(kernel_map.in_index),
        prepare(kernel_map.out_index),
        kernel_map.offset_ptr,
        *(kernel_map.num_in, kernel_map.num_out, kernel_map.identity_tap),
    )
