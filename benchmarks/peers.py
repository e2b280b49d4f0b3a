"""What an engine is to the benchmarks (maps, convolution, a MinkUNet on top of them), and the two that are not ours.

Sites and maps are whatever an engine uses; weights are kept in its own layout. spconv runs with two corrections, each
explained where it is made. Nothing here imports an engine before it is asked for.
"""

from __future__ import annotations

import ctypes
import importlib.metadata
from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor
from torch.profiler import record_function

if TYPE_CHECKING:
    from scenes import Scene


class Layer(NamedTuple):
    """One built map: the output sites, the engine's own map, and its number of pairs."""

    sites: Any
    map: Any
    pairs: int


class LayerCall(NamedTuple):
    """One convolution, everything laid out for it: what is timed, and what makes its answer float32."""

    run: Callable[[], Tensor]
    restore: Callable[[Tensor], Tensor]


Network = Callable[[Tensor, Tensor, bool], Tensor]
"""(coords, feats, whether to keep the maps of the last call) -> logits."""


class Peer(ABC):
    """An engine. Weights are (K, C_in, C_out) outside; x runs fastest for 3^3, z for 2^3.

    Attributes:
        name: In tables, the JSON and on the command line.
        trains: Whether it has gradients.
        builds_maps: Whether its maps are its own, and not another engine's again.
        rtol: How far its answers may be from float32's, of their largest magnitude; 0 for its rounding alone.
    """

    name: str
    trains = True
    builds_maps = True
    rtol = 0.0

    @abstractmethod
    def version(self) -> str: ...

    @abstractmethod
    def sites(self, coords: Tensor) -> Any:
        """Active voxels from (N, 4) int32 `[batch, x, y, z]`, non-negative, sorted, distinct."""

    @abstractmethod
    def submanifold(self, sites: Any) -> Layer:
        """Map of a 3^3 submanifold convolution."""

    @abstractmethod
    def down(self, sites: Any) -> Layer:
        """Map of a 2^3 convolution of stride 2."""

    @abstractmethod
    def conv(self, feats: Tensor, weight: Tensor, layer: Layer) -> Tensor:
        """Convolution over a map, differentiable in feats and weight."""

    @abstractmethod
    def inverse(self, feats: Tensor, weight: Tensor, layer: Layer) -> Tensor:
        """Transposed convolution back over the map of `down`."""

    def pack(self, kernel: Tensor) -> Tensor:
        """(K, C_in, C_out) -> the engine's layout."""
        return kernel

    def unpack(self, weight: Tensor) -> Tensor:
        """Back to (K, C_in, C_out)."""
        return weight

    def forward(self, feats: Tensor, kernel: Tensor, layer: Layer) -> LayerCall:
        """The convolution of float32 feats with a (K, C_in, C_out) kernel, in inference."""
        weight = self.pack(kernel)
        return LayerCall(lambda: self.conv(feats, weight, layer), lambda out: out)

    def forward_backward(
        self, feats: Tensor, kernel: Tensor, grad: Tensor, layer: Layer
    ) -> Callable[[], list[Tensor]]:
        """The convolution and, given the gradient of its output, those of feats and of the weight."""
        weight = self.pack(kernel).requires_grad_()
        x = feats.detach().requires_grad_()

        def run() -> list[Tensor]:
            out = self.conv(x, weight, layer)
            return [out.detach(), *torch.autograd.grad(out, (x, weight), grad)]

        return run

    def minkunet(self, model: torch.nn.Module, scene: Scene) -> Network:
        """A function that computes what pointlib's MinkUNet does, with its weights; `scene` is for calibration."""
        from networks import MinkUNet

        return MinkUNet(self, model.state_dict())


class Naive(Peer):
    """What one writes in an afternoon: sort and searchsorted; index_select, mm and index_add for each tap."""

    name = "torch"

    def version(self) -> str:
        return torch.__version__

    def sites(self, coords: Tensor) -> Tensor:
        return coords

    @staticmethod
    def _key(coords: Tensor) -> Tensor:
        wide = coords.long() + torch.tensor([0, 1, 1, 1])  # a neighbour may lie at -1
        return ((wide[:, 0] << 16 | wide[:, 1]) << 16 | wide[:, 2]) << 16 | wide[:, 3]

    @staticmethod
    def _layer(
        sites: Tensor, pairs: list[tuple[Tensor, Tensor]], num_in: int, num_out: int
    ) -> Layer:
        return Layer(sites, (pairs, num_in, num_out), sum(len(i) for i, _ in pairs))

    def submanifold(self, sites: Tensor) -> Layer:
        order = self._key(sites).argsort()
        keys = self._key(sites)[order]
        pairs = []
        for z in (-1, 0, 1):
            for y in (-1, 0, 1):
                for x in (-1, 0, 1):
                    wanted = keys + ((x << 16) + y << 16) + z
                    at = torch.searchsorted(keys, wanted).clamp_(max=len(keys) - 1)
                    out = (keys[at] == wanted).nonzero().squeeze(1)
                    pairs.append((order[at[out]], order[out]))
        return self._layer(sites, pairs, len(sites), len(sites))

    def down(self, sites: Tensor) -> Layer:
        coarse = sites.clone()
        coarse[:, 1:] >>= 1
        keys, parent = self._key(coarse).unique(return_inverse=True)
        out = torch.empty((len(keys), 4), dtype=torch.int32)
        out[parent] = coarse
        tap = (sites[:, 1] & 1) * 4 + (sites[:, 2] & 1) * 2 + (sites[:, 3] & 1)
        rows = [(tap == k).nonzero().squeeze(1) for k in range(8)]
        return self._layer(out, [(r, parent[r]) for r in rows], len(sites), len(out))

    @staticmethod
    def _conv(feats: Tensor, weight: Tensor, pairs: list[Any], num_out: int) -> Tensor:
        out = feats.new_zeros(num_out, weight.shape[2])
        for tap, (source, target) in enumerate(pairs):
            out = out.index_add_(0, target, feats.index_select(0, source) @ weight[tap])
        return out

    def conv(self, feats: Tensor, weight: Tensor, layer: Layer) -> Tensor:
        pairs, _, num_out = layer.map
        return self._conv(feats, weight, pairs, num_out)

    def inverse(self, feats: Tensor, weight: Tensor, layer: Layer) -> Tensor:
        pairs, num_in, _ = layer.map
        return self._conv(feats, weight, [(o, i) for i, o in pairs], num_in)


class _SerialScatter:
    """spconv's SpconvOps with `scatter_add_cpu` on one thread, and its gather and scatter named for the profiler.

    In spconv 2.3.8 the threads of scatter_add share two pointers that are declared outside the parallel
    loop (GatherCPU.scatter_add), so that with more than one about 1 % of the rows come out wrong. The symbol
    resolves to torch's OpenMP runtime, so that is where the number of threads is set for the call.
    """

    def __init__(self, real: Any) -> None:
        self._real = real
        folder = Path(torch.__file__).parent
        found = [*folder.glob("lib/libgomp*"), *folder.parent.glob("torch.libs/libgomp*")]
        if not found:
            raise ImportError(
                "spconv peer: no libgomp beside torch; its scatter cannot be made safe."
            )
        self._gomp = ctypes.CDLL(str(found[0]))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real, name)

    def gather_cpu(self, *args: Any) -> None:
        with record_function("spconv::gather"):
            self._real.gather_cpu(*args)

    def scatter_add_cpu(self, *args: Any) -> None:
        with record_function("spconv::scatter_add"):
            threads = self._gomp.omp_get_max_threads()
            self._gomp.omp_set_num_threads(1)
            try:
                self._real.scatter_add_cpu(*args)
            finally:
                self._gomp.omp_set_num_threads(threads)


class Spconv(Peer):
    """spconv's CPU wheel through its functional layer, so that strided maps can be kept as well."""

    name = "spconv"

    def __init__(self) -> None:
        import spconv.pytorch.functional as functional
        from spconv.pytorch import ops

        self._ops, self._functional = ops, functional
        if not isinstance(ops.SpconvOps, _SerialScatter):
            ops.SpconvOps = _SerialScatter(ops.SpconvOps)
            # indice_conv_backward asks for a CUDA stream before it looks at the device.
            ops.get_current_stream = lambda: 0
        self._native = ops.ConvAlgo.Native

    def version(self) -> str:
        return importlib.metadata.version("spconv")

    def sites(self, coords: Tensor) -> Any:
        # A multiple of 16, so that four down-convolutions lose no voxel at the border.
        shape = [(int(n) // 16 + 1) * 16 for n in coords[:, 1:].amax(0)]
        return coords.contiguous(), shape, int(coords[:, 0].max()) + 1

    def _pairs(self, sites: Any, kernel: int, stride: int, subm: bool) -> Layer:
        coords, shape, batch = sites
        padding = 1 if subm else 0
        with record_function("spconv::map"):
            out, pairs, counts = self._ops.get_indice_pairs(
                *(coords, batch, shape, self._native),
                *([kernel] * 3, [stride] * 3, [padding] * 3, [1] * 3, [0] * 3, subm),
            )
        # A submanifold map counts its first half; the rest mirrors it, and the middle is the identity.
        half = [int(n) for n in counts]
        total = 2 * sum(half[: kernel**3 // 2]) + len(coords) if subm else sum(half)
        out_sites = (out, [n // stride for n in shape], batch)
        return Layer(out_sites, (pairs, counts, len(coords), len(out), subm), total)

    def submanifold(self, sites: Any) -> Layer:
        return self._pairs(sites, 3, 1, True)

    def down(self, sites: Any) -> Layer:
        return self._pairs(sites, 2, 2, False)

    def conv(self, feats: Tensor, weight: Tensor, layer: Layer) -> Tensor:
        pairs, counts, _, num_out, subm = layer.map
        function = self._functional.indice_subm_conv if subm else self._functional.indice_conv
        return function(feats, weight, pairs, counts, num_out, self._native)

    def inverse(self, feats: Tensor, weight: Tensor, layer: Layer) -> Tensor:
        pairs, counts, num_in, _, _ = layer.map
        return self._functional.indice_inverse_conv(
            feats, weight, pairs, counts, num_in, self._native
        )

    def pack(self, kernel: Tensor) -> Tensor:
        """(K, C_in, C_out) -> (C_out, x, y, z, C_in)."""
        if len(kernel) == 27:
            return kernel.view(3, 3, 3, *kernel.shape[1:]).permute(4, 2, 1, 0, 3).contiguous()
        return kernel.view(2, 2, 2, *kernel.shape[1:]).permute(4, 0, 1, 2, 3).contiguous()

    def unpack(self, weight: Tensor) -> Tensor:
        order = (3, 2, 1, 4, 0) if weight.shape[1] == 3 else (1, 2, 3, 4, 0)
        return weight.permute(order).reshape(-1, weight.shape[4], weight.shape[0])
