"""Ten thousand random clouds through every kind of kernel map against brute force, and maps by many threads.

A cloud is drawn from its seed alone; a failure names the seed, and `check(seed)` repeats it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pytest
import torch
from torch import Tensor

from pointlib.ops.coords import lookup_coords, unique_coords
from pointlib.ops.kernel_map import (
    ConvSpec,
    KernelMap,
    MappedSites,
    build_generative_map,
    build_kernel_map,
)
from tests import oracles

Row = tuple[int, ...]
INT32 = torch.iinfo(torch.int32)
CLOUDS_PER_TEST = 1000
KINDS = ("submanifold", "minkowski", "spconv", "explicit", "generative")
BLOCKS = [0, *(pytest.param(block, marks=pytest.mark.slow) for block in range(1, 10))]


@pytest.mark.parametrize("block", BLOCKS)
def test_maps_equal_brute_force(block: int) -> None:
    for seed in range(block * CLOUDS_PER_TEST, (block + 1) * CLOUDS_PER_TEST):
        check(seed)


def check(seed: int) -> None:
    """Build the map of one seed and compare everything, or expect it to be refused."""
    rng = np.random.default_rng(seed)
    kind = KINDS[rng.integers(len(KINDS))]
    coords = random_cloud(rng)
    spec = random_spec(rng, kind)
    shape = outs = None
    if kind == "spconv" and rng.random() < 0.5:
        shape = tuple(int(n) for n in rng.integers(0, 12, 3))
    if kind == "explicit":
        outs = random_outputs(rng, coords, spec)
    story = f"seed {seed}: {kind}, {spec}, shape {shape}, coords {coords.tolist()}, outs {outs}"
    rows = [tuple(row) for row in coords.tolist()]
    sites, pairs, refusal = expected(kind, rows, spec, shape, outs)

    def build() -> MappedSites:
        if kind == "generative":
            return build_generative_map(coords, spec)
        given = None if outs is None else torch.tensor(outs, dtype=torch.int32).reshape(-1, 4)
        return build_kernel_map(coords, spec, shape, given)

    if refusal is not None:
        with pytest.raises(ValueError, match=refusal):
            raise AssertionError(f"{story}: must be refused, got {build()}")
        return
    got = build()
    assert [tuple(row) for row in got.coords.tolist()] == sites, story
    assert listed(got.kernel_map) == pairs, story
    assert (got.kernel_map.num_in, got.kernel_map.num_out) == (len(rows), len(sites)), story


def listed(kernel_map: KernelMap) -> list[oracles.Pair]:
    assert kernel_map.in_index.dtype == kernel_map.out_index.dtype == torch.int32
    taps = torch.repeat_interleave(kernel_map.offset_ptr.diff()).tolist()
    return list(zip(taps, kernel_map.in_index.tolist(), kernel_map.out_index.tolist(), strict=True))


def test_the_largest_key_is_not_found_where_no_voxel_has_it() -> None:
    """21 bits an axis make 63: a voxel in the last corner has the largest key there is."""
    end = 2**21 - 1
    coords = torch.tensor([[0, 0, 0, 0], [0, end, end, end - 1], [0, end, end - 1, end]]).int()
    corner = torch.tensor([[0, end, end, end]]).int()
    assert build_kernel_map(coords, ConvSpec(1), out_coords=corner).kernel_map.num_pairs == 0
    both = torch.cat([coords, corner])
    assert listed(build_kernel_map(both, ConvSpec(1), out_coords=corner)[1]) == [(0, 3, 0)]


# --------------------------------------------------------------------------------------------- what is drawn


def random_cloud(rng: np.random.Generator) -> Tensor:
    """No row, one or a few dozen; clustered; some with a row twice, far apart, or at the ends of int32."""
    count = int(rng.choice([0, 1, 2, 12, 30, 60], p=[0.02, 0.03, 0.05, 0.3, 0.3, 0.3]))
    extent = [(2, 2, 2), (3, 3, 3), (4, 3, 5), (5, 5, 5), (1, 1, 12), (20, 2, 3)][rng.integers(6)]
    coords = oracles.random_coords(rng, count, extent, lower=-int(rng.integers(0, 4))).long()
    if rng.random() < 0.4:
        coords[:, 0] = torch.from_numpy(rng.choice([0, 1, 4], len(coords)))  # 2 and 3 are empty
    place = rng.random()
    if place < 0.1:  # two clusters, up to the width of int32 apart
        far = torch.from_numpy(rng.random(len(coords)) < 0.5)
        axes = torch.from_numpy(rng.integers(0, 2, 3))
        coords[far, 1:] += axes * 2 ** int(rng.integers(5, 32))
    elif place < 0.2:  # at one end of int32
        axes = torch.from_numpy(rng.integers(-1, 2, 3))
        coords[:, 1:] += axes * 2**31
    coords[:, 1:] = coords[:, 1:].clamp(INT32.min, INT32.max)
    coords = torch.unique(coords, dim=0)
    if len(coords) and rng.random() < 0.05:
        coords = torch.cat([coords, coords[:1]])
    if rng.random() < 0.6:
        coords = coords[torch.from_numpy(rng.permutation(len(coords)))]
    return coords.int()


def random_spec(rng: np.random.Generator, kind: str) -> ConvSpec:
    def triple(low: int, high: int) -> oracles.Triple:
        x, y, z = (int(v) for v in rng.integers(low, high + 1, 3))
        return x, y, z

    kernel: int | oracles.Triple = int(rng.choice([1, 2, 3, 3, 3]))
    if rng.random() < 0.4:
        kernel = triple(1, 4)
    if rng.random() < 0.03:
        kernel = triple(5, 7)
    elif rng.random() < 0.1:
        kernel = ((1, 1, 7), (7, 1, 1), (1, 5, 1))[rng.integers(3)]
    stride = triple(1, 1) if kind == "submanifold" else triple(1, 4)
    padding = None if rng.random() < 0.5 else triple(0, 3)
    dilation = triple(1, 1) if rng.random() < 0.6 else triple(1, 4)
    relation = kind if kind in ("submanifold", "spconv") else "minkowski"
    return ConvSpec(kernel, stride, padding, dilation, relation)  # type: ignore[arg-type]


def random_outputs(rng: np.random.Generator, coords: Tensor, spec: ConvSpec) -> list[Row]:
    """Some that are reached, some that are not; now and then one twice."""
    rows = coords.tolist()
    geometry = (spec.kernel_size, spec.stride, spec.padding, spec.dilation)
    outs = set(oracles.out_sites(rows, "minkowski", *geometry))
    near = {(b, x + 1, y, z - 1) for b, x, y, z in outs}
    near = {row for row in near if INT32.min <= min(row) and max(row) <= INT32.max}
    drawn = sorted(outs | near)
    picked = [drawn[i] for i in rng.permutation(len(drawn))[: rng.integers(0, 20)]]
    return picked + picked[:1] if rng.random() < 0.05 else picked


# ------------------------------------------------------------------------------------------ what must come out


def expected(
    kind: str,
    rows: list[Row],
    spec: ConvSpec,
    shape: oracles.Triple | None,
    outs: list[Row] | None,
) -> tuple[list[Row], list[oracles.Pair], str | None]:
    """Output voxels, pairs in the map's order, and what the message must hold if the cloud is refused."""
    geometry = (spec.kernel_size, spec.stride, spec.padding, spec.dilation)
    if kind == "generative":
        sites = oracles.generative_sites(rows, *geometry)
        fine, coarse = sites, rows
    else:
        sites = outs if outs is not None else oracles.out_sites(rows, kind, *geometry, shape)
        fine, coarse = rows, sites
    if kind not in ("submanifold", "explicit") and sites:
        if min(map(min, sites)) < INT32.min or max(map(max, sites)) > INT32.max:
            return [], [], "fit int32"
        if key_bits(sites) > 63:
            return [], [], "63 bits"
    if fine and coarse:
        last = [k - 1 for k in spec.kernel_size]
        ends = [
            oracles.input_of(row, tap, *geometry[1:])  # type: ignore[arg-type]
            for row in coarse
            for tap in ((0, 0, 0), last)
        ]
        if key_bits(fine + ends) > 63:
            return [], [], "63 bits"
        if len(set(fine)) < len(fine) or len(set(coarse)) < len(coarse):
            return [], [], "coords must be distinct, got duplicates.*unique_coords"
    pairs = oracles.map_pairs(fine, coarse, *geometry)
    pairs.sort(key=lambda pair: (pair[0], coarse[pair[2]]))
    if kind == "generative":
        pairs = [(tap, out, inside) for tap, inside, out in pairs]
    return sites, pairs, None


def key_bits(rows: Sequence[Row]) -> int:
    return sum((max(axis) - min(axis)).bit_length() for axis in zip(*rows, strict=True))


# ------------------------------------------------------------------------- clouds of many blocks, and threads


@pytest.mark.parametrize("order", ["sorted", "shuffled"])
@pytest.mark.parametrize("kernel", [(3, 3, 3), (2, 3, 1)])
def test_sites_of_a_large_cloud(kernel: oracles.Triple, order: str) -> None:
    """Reached and generated voxels of many blocks, by numpy's unique over every tap of every voxel."""
    cloud = oracles.random_coords(
        np.random.default_rng(1), 40_000, (120, 150, 9), batch=3, lower=-9
    )
    if order == "sorted":
        cloud = torch.unique(cloud, dim=0)
    step, pad, spread = np.array([2, 3, 1]), np.array([1, 0, 2]), np.array([1, 2, 1])
    taps = np.array(oracles.taps(kernel)) * spread - pad
    batch, voxels = np.split(cloud.numpy().astype(np.int64)[:, None].repeat(len(taps), 1), [1], 2)
    out, rest = np.divmod(voxels - taps, step)
    shape = np.array([40, 30, 9])
    reached = np.concatenate([batch, out], 2)[(rest == 0).all(2)]
    inside = ((reached[:, 1:] >= 0) & (reached[:, 1:] < shape)).all(1)
    generated = np.concatenate([batch, voxels * step + taps], 2).reshape(-1, 4)

    geometry = [list(kernel), *([int(v) for v in triple] for triple in (step, pad, spread))]
    ops = torch.ops.pointlib
    for got, wanted in (
        (ops.conv_sites(cloud, *geometry, True, None), reached),
        (ops.conv_sites(cloud, *geometry, True, shape.tolist()), reached[inside]),
        (ops.generative_sites(cloud, *geometry), generated),
    ):
        np.testing.assert_array_equal(got.numpy(), np.unique(wanted, axis=0))


@pytest.mark.parametrize("order", ["sorted", "shuffled"])
def test_few_outputs_among_many_inputs(order: str) -> None:
    cloud = oracles.random_coords(np.random.default_rng(2), 40_000, (60, 60, 30), lower=-9)
    if order == "sorted":
        cloud = torch.unique(cloud, dim=0)
    outs, spec = cloud[::500].contiguous(), ConvSpec((3, 2, 5))
    kernel_map = build_kernel_map(cloud, spec, out_coords=outs).kernel_map
    got = set(listed(kernel_map))
    wanted = set()
    for tap, offset in enumerate(spec.offsets()):
        found = lookup_coords(outs + torch.tensor([0, *offset]).int(), cloud).tolist()
        wanted |= {(tap, row, out) for out, row in enumerate(found) if row >= 0}
    assert len(got) == kernel_map.num_pairs > len(outs)
    assert got == wanted


SPECS = (
    ConvSpec(3),
    ConvSpec(5),
    ConvSpec(3, dilation=2),
    ConvSpec(2),
    ConvSpec(2, 2),
    ConvSpec(3, 3),
    ConvSpec(3, 2, 1, relation="spconv"),
)


@pytest.mark.parametrize("order", ["sorted", "shuffled"])
def test_any_number_of_threads_gives_the_same_bits(order: str) -> None:
    cloud = oracles.random_coords(
        np.random.default_rng(0), 60_000, (150, 150, 12), batch=3, lower=-9
    )
    if order == "sorted":
        cloud = torch.unique(cloud, dim=0)
    repeated = torch.cat([cloud, cloud[::3]])

    def everything() -> list[Tensor]:
        tensors = [*unique_coords(repeated), lookup_coords(cloud + 1, repeated)]
        maps: list[Callable[[], MappedSites]] = [
            lambda spec=spec: build_kernel_map(cloud, spec) for spec in SPECS
        ]
        maps.append(lambda: build_generative_map(cloud[::5], ConvSpec(3, 2)))
        for build in maps:
            coords, kernel_map = build()
            tensors += [coords, kernel_map.in_index, kernel_map.out_index, kernel_map.offset_ptr]
        return tensors

    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        wanted = everything()
        for count in (2, 3, 8):
            torch.set_num_threads(count)
            for got, want in zip(everything(), wanted, strict=True):
                assert torch.equal(got, want)
    finally:
        torch.set_num_threads(threads)
