"""Kernel maps and output voxels of the CUDA engine: brute force on random clouds, the CPU's bits on larger ones."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from pointlib.ops import _cpu
from pointlib.ops._cuda import kernel_map as cuda
from pointlib.ops._cuda import row_map
from pointlib.ops.kernel_map import ConvSpec, MappedSites, build_generative_map, build_kernel_map
from tests import oracles
from tests.cuda_emulator.operators import ANY_ARCHITECTURE
from tests.ops import test_kernel_map_fuzz as fuzz

pytestmark = ANY_ARCHITECTURE

OPERATORS = ("kernel_map", "conv_sites", "generative_sites")
CLOUDS = 300
SCAN = "semantickitti/sequences/00/velodyne/000000.bin"
READS = ("tolist", "item", "cpu", "numpy", "nonzero", "__bool__", "__int__", "__index__")


@pytest.fixture(autouse=True)
def on_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    """What `pointlib.ops.kernel_map` calls runs in the emulator."""
    for name in OPERATORS:
        monkeypatch.setattr(torch.ops.pointlib, name, getattr(cuda, name))


def geometry(spec: ConvSpec) -> tuple[oracles.Triple, ...]:
    return (spec.kernel_size, spec.stride, spec.padding, spec.dilation)


def same(got: MappedSites, wanted: MappedSites) -> None:
    """The same voxels and pairs, in the same order."""
    assert torch.equal(got.coords, wanted.coords)
    ours, theirs = got.kernel_map, wanted.kernel_map
    assert torch.equal(ours.offset_ptr, theirs.offset_ptr)
    assert torch.equal(ours.in_index, theirs.in_index)
    assert torch.equal(ours.out_index, theirs.out_index)


def on_cpu(coords: Tensor, spec: ConvSpec, **kwargs: object) -> MappedSites:
    with pytest.MonkeyPatch.context() as patch:
        for name in OPERATORS:
            patch.setattr(torch.ops.pointlib, name, getattr(_cpu.kernel_map, name))
        return build_kernel_map(coords, spec, **kwargs)  # type: ignore[arg-type]


def cloud(count: int, extent: int | oracles.Triple = 12, ordered: bool = False) -> Tensor:
    rng = np.random.default_rng(count)
    coords = oracles.random_coords(rng, 3 * count, extent, batch=2, lower=-5)[:count]
    return torch.unique(coords, dim=0) if ordered else coords.contiguous()


def test_maps_equal_brute_force() -> None:
    """Every relation, dilation and padding; duplicates, empty batch entries, the ends of int32: see the fuzz test."""
    for seed in range(CLOUDS):
        fuzz.check(seed)


@pytest.mark.parametrize("ordered", [False, True])
@pytest.mark.parametrize(
    "spec",
    [
        ConvSpec(1),
        ConvSpec(3),
        ConvSpec(3, dilation=2),
        ConvSpec(5),
        ConvSpec(7),
        ConvSpec((1, 1, 7)),
        ConvSpec((7, 1, 1)),
        ConvSpec((3, 3, 2), dilation=(1, 2, 3)),
        ConvSpec(2, 2),
        ConvSpec(3, 2),
        ConvSpec(3, 3, dilation=(1, 1, 2)),
        ConvSpec(3, 2, 1, relation="spconv"),
        ConvSpec((1, 1, 3), (1, 1, 2), relation="spconv"),
        ConvSpec(7, 4, 3, relation="spconv"),
    ],
    ids=lambda spec: "x".join(map(str, spec.kernel_size)) + spec.relation if spec else "",
)
def test_maps_of_several_blocks(spec: ConvSpec, ordered: bool) -> None:
    for count in (255, 256, 257, 700):
        coords = cloud(count, ordered=ordered)
        assert len(coords) == count
        same(build_kernel_map(coords, spec), on_cpu(coords, spec))


@pytest.mark.parametrize("spec", [ConvSpec(2, 2), ConvSpec(3, 2), ConvSpec((3, 1, 2), (4, 1, 3))])
def test_generative_maps_of_several_blocks(spec: ConvSpec) -> None:
    for count in (256, 400):
        coords = cloud(count)
        got = build_generative_map(coords, spec)
        assert torch.equal(got.coords, _cpu.kernel_map.generative_sites(coords, *geometry(spec)))
        back = on_cpu(got.coords, spec, out_coords=coords).kernel_map.transpose()
        same(got, MappedSites(got.coords, back))


def test_outputs_given() -> None:
    coords = cloud(600)
    for spec in (ConvSpec(3), ConvSpec(3, 2), ConvSpec(2, 2)):
        outs = torch.cat([coords[::7] // 2, coords[:1] + 1000]).unique(dim=0)
        outs = outs[torch.randperm(len(outs))].int()
        got = build_kernel_map(coords, spec, out_coords=outs)
        assert got.kernel_map.num_pairs > 0
        same(got, on_cpu(coords, spec, out_coords=outs))


def test_bounds_of_spconv() -> None:
    coords = cloud(500)
    spec = ConvSpec(3, 2, 1, relation="spconv")
    for shape in ((8, 8, 8), (3, 20, 1), (0, 0, 0)):
        got = build_kernel_map(coords, spec, shape)
        same(got, on_cpu(coords, spec, spatial_shape=shape))


def test_a_real_scan(test_data: Path) -> None:
    """A LiDAR scan without its far part, in voxels of 0.1 m: the maps of two levels, and of the way between them."""
    points = np.fromfile(test_data / SCAN, dtype=np.float32).reshape(-1, 4)[:, :3]
    cells = np.floor(points[np.abs(points).max(1) < 12] / 0.1).astype(np.int32)
    cells = torch.from_numpy(np.pad(np.unique(cells, axis=0), ((0, 0), (1, 0))))
    assert 8000 < len(cells) < 40_000
    for coords in (cells, cells[torch.randperm(len(cells))]):
        same(build_kernel_map(coords, ConvSpec(3)), on_cpu(coords, ConvSpec(3)))
        coarse = build_kernel_map(coords, ConvSpec(2, 2))
        same(coarse, on_cpu(coords, ConvSpec(2, 2)))
        same(build_kernel_map(coarse.coords, ConvSpec(5)), on_cpu(coarse.coords, ConvSpec(5)))
        spec = ConvSpec(3, 2, 1, relation="spconv")
        same(build_kernel_map(coords, spec), on_cpu(coords, spec))


def test_a_chain_of_levels_sorts_only_the_input(monkeypatch: pytest.MonkeyPatch) -> None:
    """Voxels that an operator made are known to be sorted; those of the input are sorted at the first map."""
    sorted_sizes: list[int] = []

    real = torch.sort

    def sort(keys: Tensor, stable: bool = False) -> torch.return_types.sort:
        sorted_sizes.append(len(keys))
        return real(keys, stable=stable)

    coords = cloud(500)
    finer, wanted = coords, coords
    with monkeypatch.context() as patch:
        patch.setattr(torch, "sort", sort)
        for level in range(3):
            build_kernel_map(finer, ConvSpec(3))
            assert len(sorted_sizes) == 1 + level
            finer, _ = build_kernel_map(finer, ConvSpec(2, 2))
            assert len(sorted_sizes) == 2 + level  # the floors, to find the distinct ones
    for _ in range(3):
        same(build_kernel_map(wanted, ConvSpec(3)), on_cpu(wanted, ConvSpec(3)))
        got = build_kernel_map(wanted, ConvSpec(2, 2))
        same(got, on_cpu(wanted, ConvSpec(2, 2)))
        wanted = got.coords
    assert torch.equal(finer, wanted)


def test_coords_that_are_written_to_are_sorted_anew() -> None:
    coords, spec = cloud(300), ConvSpec(3)
    build_kernel_map(coords, spec)
    coords[:, 1:] *= -1
    same(build_kernel_map(coords, spec), on_cpu(coords, spec))
    outs, _ = build_kernel_map(coords, ConvSpec(2, 2))
    outs[:, 3] *= -1
    same(build_kernel_map(outs, spec), on_cpu(outs, spec))


def test_each_operator_reads_the_device_once(monkeypatch: pytest.MonkeyPatch) -> None:
    reads: list[str] = []
    for name in READS:
        method = getattr(Tensor, name)

        def counted(tensor: Tensor, *args: object, _name: str = name, _method=method) -> object:  # type: ignore[no-untyped-def]
            reads.append(_name)
            return _method(tensor, *args)

        monkeypatch.setattr(Tensor, name, counted)
    coords = cloud(300)
    for spec in (ConvSpec(3), ConvSpec(3, 2), ConvSpec(3, 2, 1, relation="spconv")):
        triples = geometry(spec)
        cuda.kernel_map(coords, coords, *triples, False)
        cuda.conv_sites(coords, *triples, False, None)
        cuda.conv_sites(coords, *triples, True, (9, 9, 9))
        cuda.generative_sites(coords, *triples)
        assert reads == ["tolist"] * 4
        reads.clear()


def test_rows_need_no_copy_of_the_offsets() -> None:
    """The offsets are on the device already when the row form of a map is derived."""
    pairs = build_kernel_map(cloud(300), ConvSpec(3)).kernel_map
    copies = row_map._offsets.get(pairs.offset_ptr)
    assert copies is not None
    rows = row_map.row_map(pairs.in_index, pairs.out_index, pairs.offset_ptr, pairs.num_out)
    assert row_map.device_offsets(pairs.offset_ptr, rows.mask) is copies[rows.mask.device]
    assert torch.equal(copies[rows.mask.device], pairs.offset_ptr)


@pytest.mark.parametrize("name", OPERATORS)
def test_registered(name: str) -> None:
    assert torch._C._dispatch_has_kernel_for_dispatch_key(f"pointlib::{name}", "CUDA")


def test_refusals() -> None:
    coords = cloud(300)
    with pytest.raises(ValueError, match="kernel_map: coords must be distinct, got duplicates"):
        build_kernel_map(torch.cat([coords, coords[:1]]), ConvSpec(3))
    with pytest.raises(ValueError, match="kernel_map: coords must be distinct, got duplicates"):
        build_kernel_map(coords, ConvSpec(3), out_coords=torch.cat([coords, coords[:1]]))
    wide = coords.clone()
    wide[0, 1:], wide[1, 1:] = 2**31 - 1, -(2**31)
    for spec in (ConvSpec(3), ConvSpec(2, 2), ConvSpec(3, 2, 1, relation="spconv")):
        with pytest.raises(ValueError, match="at most 63 bits, got") as refused:
            build_kernel_map(wide, spec)
        with pytest.raises(ValueError, match="at most 63 bits, got") as wanted:
            on_cpu(wide, spec)
        if spec.relation != "spconv":  # where the CPU names the bounds of the inputs
            assert str(refused.value) == str(wanted.value)
    with pytest.raises(ValueError, match=r"outputs that fit int32, got outputs from \[0, "):
        build_generative_map(
            wide[:, [0, 1, 1, 1]] * torch.tensor([0, 1, 1, 1]).int(), ConvSpec(2, 2)
        )
    with pytest.raises(ValueError, match="kernel_size must be 1 to 7"):
        cuda.kernel_map(coords, coords, (8, 1, 1), (1, 1, 1), (0, 0, 0), (1, 1, 1), False)
    many = torch.zeros(1, 4, dtype=torch.int32).expand(2**26, 4)
    with pytest.raises(ValueError, match="at most 2147483647 voxels before they are made distinct"):
        cuda.generative_sites(many, (4, 4, 4), (1, 1, 1), (0, 0, 0), (1, 1, 1))
