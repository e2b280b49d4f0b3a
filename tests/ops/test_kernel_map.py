"""Kernel maps against dictionaries and against dense convolutions of the occupancy."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from pointlib.ops.kernel_map import (
    ConvSpec,
    KernelMap,
    build_generative_map,
    build_kernel_map,
)
from tests import oracles

KERNELS = [1, 2, 3, 4, 5, 6, 7, (1, 3, 3), (3, 1, 1), (2, 3, 1), (3, 2, 4), (1, 1, 7), (5, 3, 1)]


def triples_of(kernel_map: KernelMap) -> list[oracles.Pair]:
    """(tap, input row, output row) of every pair, in the map's order."""
    taps = torch.repeat_interleave(kernel_map.offset_ptr.diff()).tolist()
    return list(zip(taps, kernel_map.in_index.tolist(), kernel_map.out_index.tolist(), strict=True))


def expected_of(
    coords: Tensor, spec: ConvSpec, spatial_shape: oracles.Triple | None = None
) -> tuple[list[tuple[int, ...]], list[oracles.Pair]]:
    """Output coordinates and pairs by brute force; inside a tap in lexicographic order of the outputs."""
    geometry = (spec.kernel_size, spec.stride, spec.padding, spec.dilation)
    rows = coords.tolist()
    outs = oracles.out_sites(rows, spec.relation, *geometry, spatial_shape)
    pairs = oracles.map_pairs(rows, outs, *geometry)
    return outs, sorted(pairs, key=lambda pair: (pair[0], outs[pair[2]]))


def check_map(
    coords: Tensor, spec: ConvSpec, spatial_shape: oracles.Triple | None = None
) -> KernelMap:
    outs, pairs = expected_of(coords, spec, spatial_shape)
    got = build_kernel_map(coords, spec, spatial_shape)
    check_contract(got.kernel_map, spec, len(coords), len(outs))
    assert got.coords.dtype == torch.int32 and got.coords.shape == (len(outs), 4)
    assert [tuple(row) for row in got.coords.tolist()] == outs
    assert triples_of(got.kernel_map) == pairs
    return got.kernel_map


def check_contract(kernel_map: KernelMap, spec: ConvSpec, num_in: int, num_out: int) -> None:
    ptr = kernel_map.offset_ptr
    assert (kernel_map.num_in, kernel_map.num_out) == (num_in, num_out)
    assert kernel_map.in_index.dtype == kernel_map.out_index.dtype == torch.int32
    assert ptr.dtype == torch.int64 and ptr.device.type == "cpu"
    assert kernel_map.kernel_volume == spec.kernel_volume == len(ptr) - 1
    assert ptr[0] == 0 and ptr[-1] == kernel_map.num_pairs == len(kernel_map.out_index)
    for start, end in pairwise(ptr):
        assert end >= start
        for index in (kernel_map.in_index[start:end], kernel_map.out_index[start:end]):
            assert len(index.unique()) == len(index)
    if kernel_map.identity_tap >= 0:
        start, end = ptr[kernel_map.identity_tap : kernel_map.identity_tap + 2]
        assert torch.equal(kernel_map.in_index[start:end], kernel_map.out_index[start:end])
        assert end - start == num_in == num_out


def random_spec(rng: np.random.Generator, relation: str) -> ConvSpec:
    kernel = KERNELS[rng.integers(len(KERNELS))]
    if rng.random() < 0.3:
        kernel = tuple(int(k) for k in rng.integers(1, 5, 3))
    stride = 1 if relation == "submanifold" else tuple(int(s) for s in rng.integers(1, 4, 3))
    padding = None if rng.random() < 0.4 else tuple(int(p) for p in rng.integers(0, 4, 3))
    dilation = tuple(int(d) for d in rng.integers(1, 4, 3)) if rng.random() < 0.5 else 1
    return ConvSpec(kernel, stride, padding, dilation, relation)  # type: ignore[arg-type]


def random_cloud(rng: np.random.Generator, negative: bool) -> Tensor:
    """Dense or sparse, small or 2^20 wide, one scan or several of which some are empty; rows shuffled or sorted."""
    extent = [(3, 3, 3), (6, 5, 7), (40, 3, 2), (1, 1, 9), (2**20, 4, 2**12)][rng.integers(5)]
    lower = [-(n // 2) - int(rng.integers(3)) for n in extent] if negative else 0
    coords = oracles.random_coords(rng, int(rng.integers(0, 50)), extent, lower=lower)
    if rng.random() < 0.5:  # neighbours even in the widest cloud
        steps = torch.from_numpy(rng.integers(0 if not negative else -2, 3, coords.shape)).int()
        moved = coords + steps * torch.tensor([0, 1, 1, 1], dtype=torch.int32)
        coords = torch.unique(torch.cat([coords, moved]), dim=0)
        coords = coords[torch.from_numpy(rng.permutation(len(coords)))]
    coords[:, 0] = torch.from_numpy(rng.choice([0, 2, 3], len(coords))).int()
    return coords if rng.random() < 0.5 else torch.unique(coords, dim=0)


@pytest.mark.parametrize("relation", ["submanifold", "minkowski", "spconv"])
@pytest.mark.parametrize("seed", range(4))
def test_map_equals_brute_force(relation: str, seed: int) -> None:
    rng = np.random.default_rng([seed, len(relation)])
    for _ in range(25):
        bounded = relation == "spconv" and rng.random() < 0.7
        coords = random_cloud(rng, negative=not bounded)
        spec = random_spec(rng, relation)
        shape = None
        if bounded:
            high = coords[:, 1:].amax(0).tolist() if len(coords) else [4, 4, 4]
            shape = tuple(h + 1 + int(rng.integers(4)) for h in high)
        check_map(coords, spec, shape)


@pytest.mark.parametrize("kernel", KERNELS, ids=str)
@pytest.mark.parametrize("relation", ["submanifold", "minkowski", "spconv"])
def test_every_kernel_size(kernel: int | oracles.Triple, relation: str) -> None:
    coords = oracles.random_coords(np.random.default_rng(3), 45, extent=5, batch=2)
    stride = 1 if relation == "submanifold" else 2
    spec = ConvSpec(kernel, stride, relation=relation)  # type: ignore[arg-type]
    check_map(coords, spec, (9, 9, 9))


@settings(max_examples=60, deadline=None)
@given(
    values=st.lists(
        st.tuples(st.integers(0, 2), *[st.integers(-4, 4)] * 3), max_size=30, unique=True
    ),
    kernel=st.tuples(*[st.integers(1, 3)] * 3),
    stride=st.tuples(*[st.integers(1, 3)] * 3),
    padding=st.tuples(*[st.integers(0, 3)] * 3),
    dilation=st.tuples(*[st.integers(1, 3)] * 3),
    relation=st.sampled_from(["submanifold", "minkowski", "spconv"]),
)
def test_map_equals_brute_force_on_any_rows(
    values: list,
    kernel: oracles.Triple,
    stride: oracles.Triple,
    padding: oracles.Triple,
    dilation: oracles.Triple,
    relation: str,
) -> None:
    coords = torch.tensor(values, dtype=torch.int32).reshape(-1, 4)
    stride = (1, 1, 1) if relation == "submanifold" else stride
    check_map(coords, ConvSpec(kernel, stride, padding, dilation, relation))  # type: ignore[arg-type]


@pytest.mark.parametrize("relation", ["submanifold", "minkowski", "spconv"])
@pytest.mark.parametrize("where", [(0, 0, 0, 0), (7, -5, 2**20, -(2**30))], ids=str)
def test_one_voxel_and_none(relation: str, where: tuple[int, int, int, int]) -> None:
    stride = 1 if relation == "submanifold" else 2
    for kernel in (2, 3):
        spec = ConvSpec(kernel, stride, relation=relation)  # type: ignore[arg-type]
        check_map(torch.tensor([where], dtype=torch.int32), spec)
        check_map(torch.empty(0, 4, dtype=torch.int32), spec)
        check_map(torch.empty(0, 4, dtype=torch.int32), spec, (4, 4, 4))


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("relation", ["submanifold", "minkowski", "spconv"])
def test_neighbours_at_the_ends_of_int32(relation: str, sign: int) -> None:
    edge = 2**31 - 1 if sign > 0 else -(2**31)
    line = torch.tensor([[0, edge, 0, 0], [0, edge - sign, 0, 0], [0, edge - 2 * sign, 0, 0]])
    stride = 1 if relation == "submanifold" else 2
    check_map(line.int(), ConvSpec(3, stride, relation=relation))  # type: ignore[arg-type]


def test_scans_of_a_batch_do_not_touch() -> None:
    """The last voxel of a scan and the first of the next are neighbours in key order only."""
    corner = [[b, x, y, z] for b in (0, 1) for x in (0, 5) for y in (0, 5) for z in (0, 5)]
    coords = torch.tensor(corner, dtype=torch.int32)
    for kernel, dilation in ((3, 1), (7, 1), (3, 5), (7, 3)):
        check_map(coords, ConvSpec(kernel, dilation=dilation))


# ----------------------------------------------------------------------------------------- spconv's bounds


@pytest.mark.parametrize("seed", range(6))
def test_spconv_outputs_are_the_support_of_a_dense_convolution(seed: int) -> None:
    rng = np.random.default_rng(seed)
    for _ in range(8):
        shape = tuple(int(n) for n in rng.integers(4, 10, 3))
        kernel, dilation = (tuple(int(v) for v in rng.integers(1, n, 3)) for n in (4, 3))
        spec = ConvSpec(
            kernel,
            tuple(int(v) for v in rng.integers(1, 4, 3)),
            tuple(int(v) for v in rng.integers(0, 3, 3)),
            dilation,
            "spconv",
        )
        coords = oracles.random_coords(rng, 12, shape, batch=2)
        if min(spec.output_shape(shape)) == 0:
            continue
        grid = torch.zeros(2, 1, *shape)
        b, x, y, z = coords.long().unbind(1)
        grid[b, 0, x, y, z] = 1
        ones = torch.ones(1, 1, *kernel)
        dense = torch.nn.functional.conv3d(
            grid, ones, None, spec.stride, spec.padding, spec.dilation
        )
        assert tuple(dense.shape[2:]) == spec.output_shape(shape)
        got = build_kernel_map(coords, spec, shape)
        assert got.coords.tolist() == dense[:, 0].nonzero().tolist()
        counts = torch.zeros(len(got.coords)).index_add_(
            0, got.kernel_map.out_index, torch.ones(got.kernel_map.num_pairs)
        )
        b, x, y, z = got.coords.long().unbind(1)
        assert torch.equal(counts, dense[b, 0, x, y, z])


def test_spconv_drops_the_last_plane_of_an_odd_extent_and_minkowski_keeps_it() -> None:
    coords = torch.tensor([[0, 0, 0, 0], [0, 4, 0, 0]], dtype=torch.int32)
    spec = ConvSpec(2, stride=2, relation="spconv")
    assert spec.output_shape((5, 2, 2)) == (2, 1, 1)
    assert build_kernel_map(coords, spec, (5, 2, 2)).coords.tolist() == [[0, 0, 0, 0]]
    floor = build_kernel_map(coords, ConvSpec(2, stride=2), (5, 2, 2))
    assert floor.coords.tolist() == [[0, 0, 0, 0], [0, 2, 0, 0]]


def test_an_input_smaller_than_the_kernel_has_no_output() -> None:
    coords = torch.zeros(1, 4, dtype=torch.int32)
    spec = ConvSpec(3, stride=2, relation="spconv")
    assert len(build_kernel_map(coords, spec, (2, 9, 9)).coords) == 0


def test_mmcv_middle_encoder_voxels(test_data: Path) -> None:
    """The four voxels of mmcv's tests/test_ops/test_spconv.py, in SECOND's 1408 x 1600 x 41 grid."""
    case = json.loads((test_data / "vectors" / "mmcv" / "spconv.json").read_text())["cases"][0]
    values = {name: value["data"] for name, value in case["values"]}
    bzyx = torch.tensor(values["coordinates"], dtype=torch.int32)
    coords, shape = bzyx[:, [0, 3, 2, 1]].contiguous(), (1408, 1600, 41)
    kept = check_map(coords, ConvSpec(3), shape)
    assert (kept.num_out, kept.num_pairs) == (4, 4)  # out_features.shape == (4, 16) there
    for kernel, stride, padding in ((3, 2, 1), (3, 2, (1, 1, 0)), ((1, 1, 3), (1, 1, 2), 0)):
        check_map(coords, ConvSpec(kernel, stride, padding, relation="spconv"), shape)


# ---------------------------------------------------------------------------------- structure of the maps


@pytest.mark.parametrize("kernel", [3, 5, 7, (3, 1, 5)], ids=str)
def test_submanifold_map_of_an_odd_kernel_is_its_own_mirror(kernel: int | oracles.Triple) -> None:
    coords = oracles.random_coords(np.random.default_rng(5), 80, extent=6, batch=2, lower=-3)
    kernel_map = check_map(coords, ConvSpec(kernel))
    assert kernel_map.identity_tap == kernel_map.kernel_volume // 2
    last = kernel_map.kernel_volume - 1
    pairs = set(triples_of(kernel_map))
    assert {(last - tap, out, inside) for tap, inside, out in pairs} == pairs


def test_only_a_centred_odd_kernel_claims_an_identity() -> None:
    coords = oracles.random_coords(np.random.default_rng(6), 40, extent=4)
    even = ConvSpec(2, padding=1, dilation=2)  # the same on both sides, but nothing in the middle
    for spec in (ConvSpec(2), ConvSpec(4), ConvSpec(3, padding=0), ConvSpec((3, 3, 2)), even):
        kernel_map = check_map(coords, spec)  # the contract holds whatever tap is claimed
        assert kernel_map.identity_tap == -1
    assert check_map(coords, ConvSpec(1)).identity_tap == 0
    assert check_map(coords, ConvSpec(3, dilation=2)).identity_tap == 13


def test_transpose_swaps_and_swaps_back() -> None:
    coords = oracles.random_coords(np.random.default_rng(7), 60, extent=7, lower=-3)
    down = build_kernel_map(coords, ConvSpec(3, stride=2)).kernel_map
    up = down.transpose()
    assert (up.num_in, up.num_out) == (down.num_out, down.num_in)
    assert [(t, o, i) for t, i, o in triples_of(up)] == triples_of(down)
    assert triples_of(up.transpose()) == triples_of(down)


@pytest.mark.parametrize("seed", range(3))
def test_generative_map_equals_brute_force(seed: int) -> None:
    rng = np.random.default_rng([11, seed])
    for _ in range(20):
        coords = random_cloud(rng, negative=True)
        spec = random_spec(rng, "minkowski")
        if spec.kernel_volume > 64:
            continue
        geometry = (spec.kernel_size, spec.stride, spec.padding, spec.dilation)
        fine = oracles.generative_sites(coords.tolist(), *geometry)
        got = build_generative_map(coords, spec)
        assert [tuple(row) for row in got.coords.tolist()] == fine
        check_contract(got.kernel_map, spec, len(coords), len(fine))
        pairs = oracles.map_pairs(fine, coords.tolist(), *geometry)
        assert len(pairs) == len(coords) * spec.kernel_volume
        assert {(t, o, i) for t, i, o in triples_of(got.kernel_map)} == set(pairs)


def test_outputs_of_ones_own() -> None:
    rng = np.random.default_rng(8)
    coords = oracles.random_coords(rng, 50, extent=6, batch=2)
    wanted = oracles.random_coords(rng, 30, extent=8, batch=3, lower=-2)
    spec = ConvSpec(3, stride=2, padding=1)
    got = build_kernel_map(coords, spec, out_coords=wanted)
    geometry = (spec.kernel_size, spec.stride, spec.padding, spec.dilation)
    assert got.coords is wanted
    check_contract(got.kernel_map, spec, len(coords), len(wanted))
    pairs = oracles.map_pairs(coords.tolist(), wanted.tolist(), *geometry)
    assert set(triples_of(got.kernel_map)) == set(pairs)
    # The input's own voxels, passed as outputs, are what submanifold does.
    same = build_kernel_map(coords, ConvSpec(3, relation="minkowski"), out_coords=coords)
    assert triples_of(same.kernel_map) == triples_of(build_kernel_map(coords, ConvSpec(3))[1])


def test_same_bits_whatever_the_run_and_the_threads() -> None:
    coords = oracles.random_coords(np.random.default_rng(9), 4000, extent=30, batch=2, lower=-9)
    specs = (ConvSpec(3), ConvSpec(2, 2), ConvSpec(3, 2, 1, relation="spconv"))
    threads = torch.get_num_threads()
    for spec in specs:
        maps = []
        for count in (1, 2, 2):
            torch.set_num_threads(count)
            maps.append(build_kernel_map(coords.clone(), spec))
        torch.set_num_threads(threads)
        for other in maps[1:]:
            assert torch.equal(other.coords, maps[0].coords)
            assert triples_of(other.kernel_map) == triples_of(maps[0].kernel_map)


@pytest.mark.parametrize(
    "spec", [ConvSpec(3), ConvSpec(4), ConvSpec(2, 2), ConvSpec(3, 2, 1, relation="spconv")]
)
def test_the_order_of_the_rows_changes_only_the_row_numbers(spec: ConvSpec) -> None:
    rng = np.random.default_rng(10)
    coords = torch.unique(oracles.random_coords(rng, 100, extent=6, batch=2), dim=0)
    order = torch.from_numpy(rng.permutation(len(coords)))
    plain = build_kernel_map(coords, spec, (6, 6, 6))
    mixed = build_kernel_map(coords[order], spec, (6, 6, 6))

    def by_coords(sites: Tensor, kernel_map: KernelMap, inputs: Tensor) -> list:
        taps = torch.repeat_interleave(kernel_map.offset_ptr.diff())[:, None]
        ends = (inputs[kernel_map.in_index.long()], sites[kernel_map.out_index.long()])
        return torch.cat([taps.int(), *ends], 1).tolist()

    assert by_coords(*plain, coords) == by_coords(*mixed, coords[order])  # type: ignore[arg-type]


def test_views_with_strides_give_what_their_copies_give() -> None:
    """In spconv such a view is read as if it were packed."""
    coords = oracles.random_coords(np.random.default_rng(12), 60, extent=5, batch=2, lower=-2)
    transposed = coords.t().contiguous().t()
    columns = torch.cat([coords, coords.flip(1)], 1)[:, :4]
    for spec in (ConvSpec(3), ConvSpec(2, 2), ConvSpec(3, 2, 1, relation="spconv")):
        expected = build_kernel_map(coords, spec)
        for view in (transposed, columns):
            assert not view.is_contiguous()
            got = build_kernel_map(view, spec)
            assert torch.equal(got.coords, expected.coords)
            assert triples_of(got.kernel_map) == triples_of(expected.kernel_map)


# ------------------------------------------------------------------------------------------------- real scan


def scan_voxels(test_data: Path, voxel_size: float = 0.05) -> Tensor:
    path = test_data / "semantickitti" / "sequences" / "00" / "velodyne" / "000000.bin"
    points = np.fromfile(path, dtype=np.float32).reshape(-1, 4)
    voxels = np.unique(np.round(points[:, :3] / voxel_size).astype(np.int32), axis=0)
    return torch.from_numpy(np.insert(voxels, 0, 0, axis=1))


def test_real_scan_has_the_published_voxels_and_neighbours(test_data: Path) -> None:
    """Voxels and 3^3 pairs a voxel at strides 1 to 16, as spconv and torchsparse count them on this scan."""
    coords = scan_voxels(test_data)
    coords = coords - coords.amin(
        0
    )  # they start at 0, which decides where the grids of strides 2 to 16 lie
    voxels, density = [], []
    for _ in range(5):
        kernel_map = build_kernel_map(coords, ConvSpec(3)).kernel_map
        voxels.append(len(coords))
        density.append(kernel_map.num_pairs / len(coords))
        coords = build_kernel_map(coords, ConvSpec(2, 2)).coords
    assert voxels == [91852, 60236, 31883, 14454, 5908]
    assert density == pytest.approx([3.76, 6.06, 7.47, 8.44, 9.25], abs=0.005)


@pytest.mark.parametrize(
    "spec", [ConvSpec(3), ConvSpec(2, 2), ConvSpec(3, 2, relation="spconv"), ConvSpec(5)]
)
def test_real_scan_equals_brute_force_on_a_crop(test_data: Path, spec: ConvSpec) -> None:
    coords = scan_voxels(test_data)
    near = (coords[:, 1:3].abs() < 85).all(1)  # 8.5 m x 8.5 m around the car
    coords = coords[near]
    assert len(coords) > 2000
    check_map(coords, spec)
