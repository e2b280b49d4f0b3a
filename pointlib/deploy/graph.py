"""A U-Net without the host: fixed capacities, all maps in one pass, and the whole of it as one CUDA graph.

A scan costs a few hundred launches and a dozen waits for sizes; on a fast GPU that takes longer than the arithmetic.
Here every tensor has the size of a capacity, how much of it is used stands on the device, and the launches are
recorded once and replayed with one call.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from pointlib.nn import Conv3d
from pointlib.nn.fused import freeze_batch_norms
from pointlib.ops._cuda.pyramid import Pyramid, PyramidPlan, check_status
from pointlib.ops._cuda.row_map import RowMap, remember_rows
from pointlib.ops.kernel_map import ConvSpec, KernelMap
from pointlib.sites import FixedMaps, SiteMaps, Sites
from pointlib.tensor import SparseTensor

WARM_UPS = 3
"""Passes before the recording, which compile kernels and let torch allocate."""


class StaticNetwork:
    """A network on tensors of fixed sizes. It computes what the network does and reads nothing back.

    For networks that go down by one strided convolution (`minkowski`) and back by its transpose, with one submanifold
    kernel at every level, such as MinkUNet.

    Args:
        model: In eval mode; takes a SparseTensor, returns (N, C) with a row for each input voxel. Copied: what is
            done to its weights later has no effect here.
        example: A scan to take the sizes from, of the dtype and on the device to run on.
        headroom: Capacity of each level and of the maps, relative to that scan.

    Raises:
        ValueError: If the network is of another kind, or in training.
    """

    def __init__(self, model: nn.Module, example: SparseTensor, headroom: float = 1.3) -> None:
        if model.training:
            raise ValueError(
                "StaticNetwork: model must be in eval mode, got training. Call .eval()."
            )
        if headroom < 1:
            raise ValueError(f"StaticNetwork: headroom must be at least 1, got {headroom}.")
        self.model = copy.deepcopy(model)
        freeze_batch_norms(self.model)
        self.same, self.down = unet_specs(model)
        fresh = SparseTensor(example.feats, example.coords, batch_size=example.batch_size)
        with torch.inference_mode():
            self.model(fresh)
        self.batch_size = example.batch_size
        self.levels = len(fresh.maps.members)
        self.pairs = [
            _pairs_of(fresh.maps, sites, (self.same, self.down)) for sites in fresh.maps.members
        ]
        sizes = [int(headroom * len(sites)) for sites in fresh.maps.members]
        # A strided map is read in both directions, and each has rows of its own.
        neighbours = int(headroom * sum(same + 2 * down for same, down in self.pairs))
        self.plan = PyramidPlan(sizes, neighbours, self.same, self.down, example.coords)
        self.capacity = self.plan.capacities[0]
        self.coords = example.coords.new_zeros(self.capacity, 4)
        self.feats = example.feats.new_zeros(self.capacity, example.num_channels)
        self.count = example.coords.new_zeros(1, dtype=torch.int64)

    def load(self, x: SparseTensor) -> None:
        """Put a scan of at most `capacity` voxels where `run` reads it."""
        self.coords[: len(x)].copy_(x.coords)
        self.feats[: len(x)].copy_(x.feats)
        self.count.fill_(len(x))

    def run(self) -> tuple[Tensor, Tensor]:
        """What the network makes of the scan that was loaded.

        Returns:
            (capacity, C), of which the rows behind the scan's mean nothing; and the status, (1,) int32 on the device.
        """
        pyramid = self.plan.build(self.coords, self.count)
        x = SparseTensor(self.feats, self.coords, batch_size=self.batch_size)
        maps = self._maps(pyramid)
        x.sites, x.maps = maps.members[0], maps
        return self.model(x), pyramid.status

    def _maps(self, pyramid: Pyramid) -> FixedMaps:
        members, maps = [], []
        stride = (1, 1, 1)
        for number, level in enumerate(pyramid.levels):
            members.append(Sites(level.coords, stride, None, self.batch_size))
            stride = tuple(a * b for a, b in zip(stride, self.down.stride, strict=True))  # type: ignore[assignment]
            same, down = self.pairs[number]
            maps.append(
                (number, self.same, number, _stand_in(self.same, same, level.same, level.same))
            )
            if level.up is not None:
                coarse = pyramid.levels[number + 1].down
                assert coarse is not None
                stand_in = _stand_in(self.down, down, coarse, level.up)
                maps.append((number, self.down, number + 1, stand_in))
        return FixedMaps(members, maps)


class GraphNetwork:
    """A network recorded as one CUDA graph. See StaticNetwork for the arguments, and for which networks.

    A scan that does not fit is computed in the ordinary way, with a warning that says by how much.

    Raises:
        ValueError: If the network is of another kind, in training, or not on a CUDA device.
    """

    def __init__(self, model: nn.Module, example: SparseTensor, headroom: float = 1.3) -> None:
        if example.device.type != "cuda":
            raise ValueError(
                f"GraphNetwork: example must be on a CUDA device, got {example.device}. Elsewhere call the model."
            )
        self.network = StaticNetwork(model, example, headroom)
        self.network.load(example)
        self._graph = torch.cuda.CUDAGraph()
        side = torch.cuda.Stream(example.device)
        side.wait_stream(torch.cuda.current_stream(example.device))
        with torch.inference_mode(), torch.cuda.stream(side):
            for _ in range(WARM_UPS):
                self.network.run()
        torch.cuda.current_stream(example.device).wait_stream(side)
        with torch.inference_mode(), torch.cuda.graph(self._graph):
            self._out, self._status = self.network.run()

    def __call__(self, x: SparseTensor) -> Tensor:
        """(N, C) of a scan of N voxels, in a tensor of its own.

        Raises:
            ValueError: If the coordinates repeat or span too much.
        """
        if len(x) > self.network.capacity:
            return self._eager(x, f"{len(x)} voxels in place of at most {self.network.capacity}")
        self.network.load(x)
        self._graph.replay()
        out = self._out[: len(x)].clone()
        status = int(self._status)  # the one wait
        if status >= FULL:
            return self._eager(x, "more voxels on a coarser level, or more pairs, than planned")
        check_status(status)
        return out

    def _eager(self, x: SparseTensor, excess: str) -> Tensor:
        warnings.warn(
            f"GraphNetwork: a scan must fit the recorded capacity, got {excess}; it is computed without the graph, "
            "slower. Make the graph from a larger example or with more headroom.",
            stacklevel=3,
        )
        with torch.inference_mode():
            out: Tensor = self.network.model(x)
        return out


FULL = 4
"""Least status that says that a capacity is too small; see PyramidPlan."""


def unet_specs(model: nn.Module) -> tuple[ConvSpec, ConvSpec]:
    """The one submanifold kernel and the one strided kernel of a U-Net.

    Raises:
        ValueError: If there is not exactly one of each.
    """
    convolutions = [m for m in model.modules() if isinstance(m, Conv3d)]
    specs = {m.spec for m in convolutions if not m.is_pointwise}
    same = [spec for spec in specs if spec.relation == "submanifold"]
    down = [spec for spec in specs if spec.relation == "minkowski"]
    generative = any(m.generative for m in convolutions)
    if len(same) != 1 or len(down) != 1 or len(specs) != 2 or generative:
        raise ValueError(
            f"StaticNetwork: model must have one submanifold kernel and one strided one of relation 'minkowski', got "
            f"{type(model).__name__} with {sorted(spec.key for spec in specs)}. Run it without a graph."
        )
    return same[0], down[0]


def _pairs_of(maps: SiteMaps, sites: Sites, specs: Sequence[ConvSpec]) -> tuple[int, int]:
    """Pairs of the maps from `sites`, 0 for one that was not built."""
    known = maps.built_from(sites)
    same, down = (known[s.key].num_pairs if s.key in known else 0 for s in specs)
    return same, down


def _stand_in(spec: ConvSpec, num_pairs: int, rows: RowMap, reversed_rows: RowMap) -> KernelMap:
    """A kernel map without pairs, for which the operators know the rows of both directions."""
    one = rows.mask.new_zeros(1)
    ends = [one.expand(num_pairs), one.expand(num_pairs)]
    offset_ptr = torch.zeros(spec.kernel_volume + 1, dtype=torch.int64)
    num_in, num_out = len(reversed_rows.mask), len(rows.mask)
    remember_rows(ends[0], ends[1], offset_ptr, num_out, rows)
    if reversed_rows is not rows:
        remember_rows(ends[1], ends[0], offset_ptr, num_in, reversed_rows)
    identity = spec.kernel_volume // 2 if spec.is_symmetric else -1
    return KernelMap(ends[0], ends[1], offset_ptr, num_in, num_out, identity)
