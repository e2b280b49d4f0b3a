"""All levels in one pass on CUDA: the CPU's pairs, rows that are remembered, and one transfer."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from pointlib.ops import _cpu
from pointlib.ops._cuda import coords as sites
from pointlib.ops._cuda import level_maps as cuda
from pointlib.ops._cuda import row_map
from pointlib.ops.kernel_map import ConvSpec, KernelMap
from pointlib.ops.level_maps import LevelMaps, build_level_maps
from tests.cuda_emulator.operators import ANY_ARCHITECTURE, OnDevice
from tests.ops import test_level_maps as cpu
from tests.ops.test_level_maps import CASES, DOWN, SAME, cloud

pytestmark = ANY_ARCHITECTURE

READS = ("tolist", "item", "cpu", "numpy", "nonzero", "__bool__", "__int__", "__index__")


def build(coords: Tensor, same: ConvSpec, down: ConvSpec, levels: int) -> list[LevelMaps]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.ops.pointlib, "level_maps", cuda.level_maps)
        return build_level_maps(coords, same, down, levels)


def check_rows(kernel_map: KernelMap) -> None:
    """The rows that are remembered are those that the pairs lead to."""
    ends = (kernel_map.in_index, kernel_map.out_index)
    assert row_map.is_known(*ends)
    num_out = kernel_map.num_out
    known = row_map.row_map(*ends, kernel_map.offset_ptr, num_out)
    derived = row_map.row_map(*(t.clone() for t in ends), kernel_map.offset_ptr, num_out)
    assert torch.equal(known.mask, derived.mask) and known.mask.is_contiguous()
    assert torch.equal(known.row_ptr - known.row_ptr[0], derived.row_ptr)
    begin, end = int(known.row_ptr[0]), int(known.row_ptr[-1])
    assert torch.equal(known.neighbours[begin:end], derived.neighbours)
    assert torch.equal(known.order, derived.order)


@pytest.mark.parametrize(("same", "down", "levels"), CASES)
def test_levels_are_those_of_the_cpu(same: ConvSpec, down: ConvSpec, levels: int) -> None:
    for count in (0, 1, 256, 700):
        coords = cloud(count)
        built = build(coords, same, down, levels)
        cpu.check(built, coords, same, down)
        if not count or levels > 7:
            continue
        for level in built:
            check_rows(level.same)
            if level.down is not None:
                check_rows(level.down)
                check_rows(level.down.transpose())


def test_one_transfer_and_one_sort(monkeypatch: pytest.MonkeyPatch) -> None:
    reads: list[str] = []
    for name in (*READS, "sort"):
        owner = torch if name == "sort" else Tensor
        method = getattr(owner, name)

        def counted(*args: object, _name: str = name, _method=method, **kwargs: object) -> object:  # type: ignore[no-untyped-def]
            reads.append(_name)
            return _method(*args, **kwargs)

        monkeypatch.setattr(owner, name, counted)
    levels = build(cloud(500), SAME, DOWN, 4)
    assert reads == ["sort", "tolist"]
    for level in levels:
        sites.sorted_sites(level.coords)
    assert reads == ["sort", "tolist"]


def test_coords_that_no_pass_can_map() -> None:
    """Level by level, where they span more than 60 bits; and its errors."""
    coords = cloud(300)
    wide = coords.clone()
    wide[0, 1:], wide[1, 1:] = 2**19 - 3, 3 - 2**19
    cpu.check(build(wide, SAME, DOWN, 3), wide, SAME, DOWN)
    one_by_one = _cpu.kernel_map
    mode = OnDevice(kernel_map=one_by_one.kernel_map, conv_sites=one_by_one.conv_sites)
    with mode:
        build(wide, SAME, DOWN, 3)
    assert mode.calls == {"kernel_map": 5, "conv_sites": 2}
    with pytest.raises(ValueError, match="coords must be distinct, got duplicates"):
        build(torch.cat([coords, coords[:1]]), SAME, DOWN, 3)
    wide[0, 1:], wide[1, 1:] = 2**31 - 1, -(2**31)
    with pytest.raises(ValueError, match="at most 63 bits"):
        build(wide, SAME, DOWN, 3)


def test_registered() -> None:
    assert torch._C._dispatch_has_kernel_for_dispatch_key("pointlib::level_maps", "CUDA")
