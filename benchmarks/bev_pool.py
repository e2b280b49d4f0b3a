"""Bird's-eye pooling at the size of BEVFusion's detector beside what it replaced; on a GPU too, where there is one.

Six cameras of 32 x 88 pixels, 118 depths, 80 channels, cells of 0.3 m within 54 m. Beside `bev_pool` and
`bev_pool_depth` with a plan made once stand:

cumsum      Lift-Splat-Shoot's trick (Philion and Fidler, ECCV 2020, section 4.2): sort the points by cell, take the
            running sum over all of them, and subtract at the ends of cells; with the backward pass of its own that
            their code has
index_add   torch.index_add_ of every point into its cell

each with the order or the cells worked out before the clock starts (`kept`) or inside the clock (`new`). What is lifted
before it is pooled is lifted inside the clock.

    python benchmarks/bev_pool.py            # two minutes and 5 GiB; writes results/bev_pool.json
    python benchmarks/bev_pool.py --clock cpu --threads 1    # processor time, where others use the machine too
    python benchmarks/bev_pool.py --quick    # does everything run; writes nothing
"""

from __future__ import annotations

import argparse
import json
import math
import os
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
RANGE, CELL, HEIGHT = 54.0, 0.3, (-10.0, 10.0)
SIZE = round(2 * RANGE / CELL)
YAWS = (0, -55, 55, 180, 110, -110)
FOCAL = 1266 * 0.48
"""nuScenes cameras: degrees of yaw, and pixels after BEVFusion's resize to 256 x 704."""


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--rounds", type=int, default=5, help="each call is timed 2 x ROUNDS times, A B B A")
    add("--threads", type=int, default=len(os.sched_getaffinity(0)), help="of everything")
    add("--depths", type=int, default=118, help="depth bins of half a metre from 1 m on")
    add("--channels", type=int, default=80, help="of the context")
    add("--clock", choices=("wall", "cpu"), default="wall", help="cpu: for a machine others use")
    add("--quick", action="store_true", help="12 depths, 16 channels, one round, no file")
    default = ROOT / "benchmarks" / "results" / "bev_pool.json"
    add("--output", type=Path, default=default, help="JSON to write")
    args = parser.parse_args()
    if args.quick:
        args.rounds, args.depths, args.channels = 1, 12, 16
    return args


def main() -> None:
    """Set the threads before anything reads them, then measure."""
    args = parse_arguments()
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS"):
        os.environ[name] = str(args.threads)  # read when the libraries are imported, below
    import measurement
    import torch

    from pointlib.ops.memory import keep_freed_memory

    torch.set_num_threads(args.threads)
    keep_freed_memory()  # as the programs in tools/ do, for all contenders
    report: dict[str, Any] = {
        "date": date.today().isoformat(),
        "commit": measurement.commit(ROOT),
        "machine": measurement.machine_facts(),
        "arguments": {k: v for k, v in vars(args).items() if k not in ("output", "quick")},
        "sizes": {"cameras": len(YAWS), "pixels": [32, 88], "grid": [SIZE, SIZE, 1]},
        "results": [],
    }
    devices = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
    for device in devices:
        if device == "cuda":
            report["machine"]["gpu"] = torch.cuda.get_device_name()
        for dtype in (torch.float32,) if device == "cpu" else (torch.float32, torch.float16):
            report["results"] += measure(args, device, dtype)
    report["machine"]["busy_cores_at_the_end"] = measurement.busy_cores()
    if not args.quick:
        args.output.write_text(json.dumps(report, indent=1) + "\n")


def frustum_coords(depths: int) -> Any:
    """Cell `[batch, x, y, z]` of every point of (cameras, depths, 32, 88), int32."""
    import torch

    depth = torch.arange(depths) * 0.5 + 1
    u, v = torch.linspace(0, 703, 88), torch.linspace(0, 255, 32)
    forward, down, right = torch.meshgrid(
        depth, (v - 100) / FOCAL, (u - 352) / FOCAL, indexing="ij"
    )
    ahead, left, up = forward, -right * forward, 1.5 - down * forward
    cameras = []
    for yaw in map(math.radians, YAWS):
        x, y = (
            math.cos(yaw) * ahead - math.sin(yaw) * left,
            math.sin(yaw) * ahead + math.cos(yaw) * left,
        )
        cameras.append(torch.stack([x + RANGE, y + RANGE, up - HEIGHT[0]], -1))
    cell = torch.tensor([CELL, CELL, HEIGHT[1] - HEIGHT[0]])
    xyz = (torch.stack(cameras).flatten(0, 3) / cell).floor().int()
    return torch.cat([torch.zeros_like(xyz[:, :1]), xyz], 1)


def measure(args: argparse.Namespace, device: str, dtype: Any) -> list[dict[str, Any]]:
    """Compare the answers, then time forward, and forward with both gradients."""
    import measurement
    import torch

    from pointlib.ops.bev_pool import build_bev_pool_plan

    torch.manual_seed(0)
    coords = frustum_coords(args.depths).to(device)
    plan = build_bev_pool_plan(coords, 1, (SIZE, SIZE, 1))
    inside = int(plan.interval_ptr[-1])
    depth = torch.randn(len(YAWS), args.depths, 32, 88, device=device).softmax(1).to(dtype)
    context = torch.randn(len(YAWS), args.channels, 32, 88, device=device).to(dtype)
    inputs = [depth, context.to(memory_format=torch.channels_last)]
    contenders = make_contenders(plan, coords)
    found = []
    for backward in (False, True):
        given = [t.clone().requires_grad_(backward) for t in inputs]
        grad = torch.randn_like(contenders["bev_pool_depth, kept"](*inputs))

        def call(pool: Callable[..., Any], given: Any = given, grad: Any = grad) -> list[Any]:
            out = pool(*given)
            grads = torch.autograd.grad(out, given, grad) if out.requires_grad else ()
            if device == "cuda":
                torch.cuda.synchronize()
            return [out.detach(), *grads]

        expected = call(contenders["index_add, kept"])
        errors = {name: differences(call(pool), expected) for name, pool in contenders.items()}
        calls = {name: (lambda pool=pool: call(pool)) for name, pool in contenders.items()}
        processor_time = args.clock == "cpu" and device == "cpu"
        clock = time.process_time if processor_time else time.perf_counter
        times = measurement.interleave(calls, args.rounds, clock)
        what = "forward and backward" if backward else "forward"
        fastest = times["bev_pool_depth, kept"]["median_ms"]
        print(f"\n{device} {dtype}, {what}: {inside} of {len(coords)} points inside")
        for name, taken in times.items():
            ratio = taken["median_ms"] / fastest
            print(
                f"  {name:24} {taken['median_ms']:9.2f} ms  {ratio:6.1f} x  largest difference {errors[name]:.1e}"
            )
        found.append(
            {
                "device": device,
                "dtype": str(dtype).removeprefix("torch."),
                "case": what,
                "points": len(coords),
                "points_inside": inside,
                "times": times,
                "times_as_long_as_bev_pool_depth_kept": {
                    name: round(taken["median_ms"] / fastest, 2) for name, taken in times.items()
                },
                "largest_difference": errors,
            }
        )
    return found


def make_contenders(plan: Any, coords: Any) -> dict[str, Callable[..., Any]]:
    """Name -> pool(depth, context), (1, C, 1, X, Y)."""
    import torch

    from pointlib.ops.bev_pool import bev_pool, bev_pool_depth, build_bev_pool_plan

    def lift(depth: Any, context: Any) -> Any:
        return (depth[..., None] * context.permute(0, 2, 3, 1)[:, None]).flatten(0, 3)

    def grid(rows: Any) -> Any:
        return rows.view(1, 1, SIZE, SIZE, -1).permute(0, 4, 1, 2, 3)

    def new_plan() -> Any:
        return build_bev_pool_plan(coords, 1, (SIZE, SIZE, 1))

    def ranks() -> tuple[Any, Any]:
        b, x, y, z = coords.long().unbind(1)
        inside = (x >= 0) & (x < SIZE) & (y >= 0) & (y < SIZE) & (z == 0)
        kept = inside.nonzero()[:, 0]
        ranked, order = ((b * SIZE + x) * SIZE + y)[kept].sort()
        return ranked, kept[order]

    class CellSums(torch.autograd.Function):
        """Differences of the running sum at the ends of cells; backward hands each cell's gradient to its points."""

        @staticmethod
        def forward(ctx: Any, rows: Any, ranked: Any) -> Any:
            ends = torch.ones_like(ranked, dtype=torch.bool)
            ends[:-1] = ranked[1:] != ranked[:-1]
            running = rows.cumsum(0)[ends]
            ctx.save_for_backward(ends)
            return torch.cat([running[:1], running[1:] - running[:-1]]), ranked[ends]

        @staticmethod
        def backward(ctx: Any, grad: Any, _: Any) -> Any:
            (ends,) = ctx.saved_tensors
            return grad[ends.cumsum(0) - ends.long()], None

    def cumsum(depth: Any, context: Any, known: tuple[Any, Any]) -> Any:
        ranked, order = known
        cells, places = CellSums.apply(lift(depth, context)[order], ranked)
        out = cells.new_zeros(SIZE * SIZE, cells.shape[1])
        return grid(out.index_put((places,), cells))

    def index_add(depth: Any, context: Any, cells: Any) -> Any:
        rows = lift(depth, context)
        out = rows.new_zeros(SIZE * SIZE + 1, rows.shape[1])  # the last is for those outside
        return grid(out.index_add(0, torch.where(cells < 0, SIZE * SIZE, cells), rows)[:-1])

    known = ranks()
    return {
        "bev_pool_depth, kept": lambda d, c: bev_pool_depth(d, c, plan),
        "bev_pool_depth, new": lambda d, c: bev_pool_depth(d, c, new_plan()),
        "bev_pool, kept": lambda d, c: bev_pool(lift(d, c), plan),
        "bev_pool, new": lambda d, c: bev_pool(lift(d, c), new_plan()),
        "index_add, kept": lambda d, c: index_add(d, c, plan.cells),
        "cumsum, kept": lambda d, c: cumsum(d, c, known),
        "cumsum, new": lambda d, c: cumsum(d, c, ranks()),
    }


def differences(answers: list[Any], expected: list[Any]) -> float:
    """Largest difference relative to the largest value, over the output and the gradients."""
    return max(
        float((a.float() - e.float()).abs().max() / e.float().abs().max())
        for a, e in zip(answers, expected, strict=True)
    )


if __name__ == "__main__":
    main()
