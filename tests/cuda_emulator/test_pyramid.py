"""The maps of all levels in one pass against those of the CPU, level by level."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from pointlib.ops._cuda import implicit_gemm
from pointlib.ops._cuda.gemm_tiles import GemmTile, Plan
from pointlib.ops._cuda.pyramid import Pyramid, PyramidPlan, check_status
from pointlib.ops._cuda.row_map import RowMap
from pointlib.ops.dataflow import MapStatistics
from pointlib.ops.kernel_map import ConvSpec, KernelMap, build_kernel_map
from tests import oracles
from tests.cuda_emulator.operators import ANY_ARCHITECTURE
from tests.tolerances import assert_close

pytestmark = ANY_ARCHITECTURE

READS = ("tolist", "item", "cpu", "numpy", "nonzero", "__bool__", "__int__", "__index__", "to")
SAME, DOWN = ConvSpec(3), ConvSpec(2, 2)
GEMM = Plan(GemmTile(64, 32, exact=True), 1)


def cloud(count: int, extent: int = 20) -> Tensor:
    rng = np.random.default_rng(count)
    return oracles.random_coords(rng, 3 * count, extent, batch=2, lower=-7)[:count]


def build(plan: PyramidPlan, coords: Tensor) -> Pyramid:
    """With what lies behind the voxels filled with others."""
    capacity = plan.capacities[0]
    padded = torch.cat([coords, coords.new_full((max(capacity - len(coords), 0), 4), 12345)])
    return plan.build(padded[:capacity], torch.tensor([len(coords)]))


def check(rows: RowMap, wanted: KernelMap) -> None:
    """The rows hold the pairs, and none behind them; each split has every row once, equal taps together."""
    live, volume = wanted.num_out, wanted.kernel_volume
    table = torch.full((live, volume), -1)
    taps = torch.repeat_interleave(wanted.offset_ptr.diff())
    table[wanted.out_index.long(), taps] = wanted.in_index.long()
    bits = (rows.mask[:, :, None] >> torch.arange(32) & 1).bool().flatten(1)
    assert torch.equal(bits[:live, :volume], table >= 0)
    assert not bits[live:].any() and not bits[:, volume:].any()
    begin, end = int(rows.row_ptr[0]), int(rows.row_ptr[-1])
    assert torch.equal(
        rows.row_ptr - begin, torch.cat([torch.zeros(1).long(), bits.sum(1).cumsum(0)])
    )
    assert torch.equal(rows.neighbours[begin:end].long(), table[table >= 0])
    assert all(part.is_contiguous() for part in rows[:4])  # type: ignore[union-attr]
    for (first, last), order in zip(pairwise(rows.split_ptr), rows.order.long(), strict=True):
        assert torch.equal(order.sort().values, torch.arange(len(rows.mask)))
        if last - first <= 27:  # not folded
            codes = (bits[:, first:last] * 2 ** torch.arange(last - first)).sum(1)[order]
            changes = 1 + int((codes.diff() != 0).sum())
            assert changes == len(codes.unique())
            assert codes[-1] == 0 or len(codes) == live


@pytest.mark.parametrize(
    ("same", "down", "levels", "splits"),
    [
        (SAME, DOWN, 7, 1),  # sort keys of all 32 bits
        (SAME, ConvSpec(3, 2), 3, 2),
        (ConvSpec((1, 3, 5)), ConvSpec((2, 1, 3), (2, 1, 3)), 3, 1),
        (ConvSpec(5), DOWN, 2, 1),
        (ConvSpec(5), DOWN, 2, 3),  # and of 64
        (SAME, DOWN, 1, 1),
    ],
)
def test_maps_of_all_levels(same: ConvSpec, down: ConvSpec, levels: int, splits: int) -> None:
    for count in (700, 256, 1):
        coords = cloud(count)
        plan = PyramidPlan([768] * levels, 120_000, same, down, coords, splits)
        pyramid = build(plan, coords)
        check_status(int(pyramid.status))
        assert len(pyramid.levels) == levels
        for number, level in enumerate(pyramid.levels):
            live = int(level.num_voxels)
            assert torch.equal(level.coords[:live], coords)
            check(level.same, build_kernel_map(coords, same).kernel_map)
            assert (level.up is None) == (number == levels - 1) and (level.down is None) == (
                number == 0
            )
            if level.up is None:
                continue
            coarse = build_kernel_map(coords, down)
            check(level.up, coarse.kernel_map.transpose())
            lower = pyramid.levels[number + 1].down
            assert lower is not None
            check(lower, coarse.kernel_map)
            coords = coarse.coords


@dataclass
class Rows:
    """What a convolution asks of `Pairs`, where there are none."""

    row_map: RowMap
    num_out: int
    statistics: MapStatistics

    def rows(self, splits: int) -> tuple[RowMap, bool]:
        assert splits <= 1
        return self.row_map, False


def test_a_network_needs_no_pairs(monkeypatch: pytest.MonkeyPatch) -> None:
    """One level down and up again, from the rows alone and without the host."""
    coords, generator = cloud(200, 9), torch.Generator().manual_seed(0)
    plan = PyramidPlan([256, 256], 20_000, SAME, DOWN, coords)
    feats = torch.randn(256, 8, generator=generator)
    weights = {k: torch.randn(k, 8, 8, generator=generator) / 8 for k in (27, 8)}
    padded, count = torch.cat([coords, coords[:56]]), torch.tensor([200])

    def convolve(feats: Tensor, rows: RowMap, volume: int) -> Tensor:
        statistics = MapStatistics(1000, volume, 256)
        pairs: Any = Rows(rows, 256, statistics)
        return implicit_gemm.convolve([feats], weights[volume], pairs, plan=GEMM)

    with monkeypatch.context() as patch:
        for name in set(READS) - {"to", "__bool__", "__index__"}:
            patch.setattr(Tensor, name, None)
        fine, coarse = plan.build(padded, count).levels
        assert coarse.down is not None and fine.up is not None
        x = convolve(feats, fine.same, 27)
        y = convolve(convolve(x, coarse.down, 8), coarse.same, 27)
        z = convolve(y, fine.up, 8)

    def expected(feats: Tensor, maps: KernelMap) -> Tensor:
        taps = torch.repeat_interleave(maps.offset_ptr.diff()).tolist()
        pairs = zip(taps, maps.in_index.tolist(), maps.out_index.tolist(), strict=True)
        return oracles.conv_of_pairs(feats, weights[maps.kernel_volume], pairs, maps.num_out)

    lower, down = build_kernel_map(coords, DOWN)
    wanted = expected(feats[:200].double(), build_kernel_map(coords, SAME).kernel_map)
    assert_close(x[:200], wanted)
    wanted = expected(expected(wanted, down), build_kernel_map(lower, SAME).kernel_map)
    assert_close(y[: len(lower)], wanted)
    assert_close(z[:200], expected(wanted, down.transpose()))
    assert not z[200:].any() and len(lower) < 256


def test_no_voxel() -> None:
    pyramid = build(PyramidPlan([100, 100], 10, SAME, DOWN, torch.zeros(1)), cloud(1)[:0])
    check_status(int(pyramid.status))
    for level in pyramid.levels:
        assert int(level.num_voxels) == 0
        check(level.same, build_kernel_map(cloud(1)[:0], SAME).kernel_map)


def test_the_host_reads_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor does it send anything, once the plan is made."""
    coords = cloud(300)
    plan = PyramidPlan([512, 512, 256], 20_000, SAME, DOWN, coords)
    count, padded = torch.tensor([300]), torch.cat([coords, coords[:212]])
    with monkeypatch.context() as patch:
        for name in READS:

            def refuse(*args: object, _name: str = name) -> None:
                raise AssertionError(f"Tensor.{_name} is called")

            patch.setattr(Tensor, name, refuse)
        pyramid = plan.build(padded, count)
    check_status(int(pyramid.status))
    check(pyramid.levels[0].same, build_kernel_map(coords, SAME).kernel_map)


def test_what_does_not_fit_is_told() -> None:
    coords = cloud(300)
    for capacities, neighbours, message in (
        ([512, 256], 20_000, "got more voxels of a level than they allow"),
        ([512, 512], 500, "got more neighbours than they allow"),
    ):
        plan = PyramidPlan(capacities, neighbours, SAME, DOWN, coords)
        with pytest.raises(
            ValueError, match=f"pyramid: the scan must fit the capacities, {message}"
        ):
            check_status(int(build(plan, coords).status))
    plan = PyramidPlan([512, 512], 20_000, SAME, DOWN, coords)
    with pytest.raises(ValueError, match="got more voxels"):
        check_status(int(plan.build(cloud(512), torch.tensor([513])).status))
    with pytest.raises(ValueError, match="coords must be distinct, got duplicates"):
        check_status(int(build(plan, torch.cat([coords, coords[:1]])).status))
    wide = coords.clone()
    wide[0, 1:3], wide[1, 1:3] = 2**30, -(2**30)
    with pytest.raises(ValueError, match="coords must span at most 60 bits"):
        check_status(int(build(plan, wide).status))
    check_status(int(build(plan, coords).status))


def test_refusals() -> None:
    like = torch.zeros(1)
    with pytest.raises(ValueError, match="capacities must be of 1 to 7 levels"):
        PyramidPlan([128] * 8, 100, SAME, DOWN, like)
    with pytest.raises(ValueError, match="3 \\* rows \\* taps below 2\\^31"):
        PyramidPlan([2**25], 100, SAME, DOWN, like)
    for same, down in (
        (ConvSpec(2), DOWN),
        (DOWN, DOWN),
        (SAME, ConvSpec(3, 2, relation="spconv")),
    ):
        with pytest.raises(
            ValueError, match="same must be submanifold with an odd, centred kernel"
        ):
            PyramidPlan([128], 100, same, down, like)
    with pytest.raises(ValueError, match="dilation must be 1"):
        PyramidPlan([128], 100, ConvSpec(3, dilation=2), DOWN, like)
