"""MinkUNet and CenterPoint's encoder over several engines: the layers are written once, each engine brings its own.

spconv-triton has spconv's names, so one class serves both. Every engine keeps its maps under the same keys as its
users would: one map a level, reused by the decoder.
"""

from __future__ import annotations

import importlib
import importlib.metadata
from abc import ABC, abstractmethod
from typing import Any

import torch
from gpu_workloads import Workload
from torch import Tensor, nn

import pointlib
from pointlib.nn import BatchNorm, Conv3d, ReLU, conv_norm_act
from pointlib.tensor import SparseTensor

MINKUNET = (32, 32, 64, 128, 256, 256, 128, 96, 96)
CENTERPOINT = (16, 32, 64, 128)
Shape = tuple[int, int, int]


class Engine(ABC):
    """Whose layers a network is made of.

    Attributes:
        name: In tables and on the command line.
    """

    name: str

    @abstractmethod
    def version(self) -> str: ...

    @abstractmethod
    def conv(
        self, c_in: int, c_out: int, kernel: Any, stride: Any, padding: Any, key: str
    ) -> nn.Module:
        """A convolution; submanifold at stride 1. `key` names its map."""

    @abstractmethod
    def inverse(self, c_in: int, c_out: int, key: str) -> nn.Module:
        """The transposed 2^3 convolution back over the map of that name."""

    @abstractmethod
    def tensor(self, coords: Tensor, feats: Tensor, shape: Shape, batch: int) -> Any:
        """Features on voxels, without any maps."""

    def feats(self, x: Any) -> Tensor:
        """Features of a sparse tensor."""
        return x.feats

    @abstractmethod
    def with_feats(self, x: Any, feats: Tensor) -> Any:
        """The same voxels with other features."""

    def network(self, workload: Workload, num_classes: int = 19) -> nn.Module:
        """The workload's network."""
        if workload.network == "minkunet":
            return MinkUNet(self, workload.in_channels, workload.width, num_classes)
        return CenterPointEncoder(self, workload.in_channels)


class Block(nn.Module):
    """Convolution, batch norm, perhaps an addition, ReLU; one step where the engine can."""

    def __init__(self, engine: Engine, conv: nn.Module, channels: int) -> None:
        super().__init__()
        self.engine, self.conv = engine, conv
        self.norm, self.relu = BatchNorm(channels), ReLU(inplace=True)

    def forward(self, x: Any, residual: Tensor | None = None) -> Any:
        if isinstance(x, SparseTensor):
            return conv_norm_act(x, self.conv, self.norm, self.relu, residual=residual)
        out = self.conv(x)
        feats = nn.BatchNorm1d.forward(self.norm, self.engine.feats(out))
        feats = torch.relu_(feats if residual is None else feats + residual)
        return self.engine.with_feats(out, feats)


class Residual(nn.Module):
    """Two submanifold convolutions and a skip connection, projected where the channels change."""

    def __init__(self, engine: Engine, c_in: int, c_out: int, key: str) -> None:
        super().__init__()
        self.engine = engine
        self.first = Block(engine, engine.conv(c_in, c_out, 3, 1, 1, key), c_out)
        self.second = Block(engine, engine.conv(c_out, c_out, 3, 1, 1, key), c_out)
        self.project = nn.Identity()
        if c_in != c_out:
            self.project = nn.Sequential(nn.Linear(c_in, c_out, bias=False), nn.BatchNorm1d(c_out))

    def forward(self, x: Any) -> Any:
        residual = self.project(self.engine.feats(x))
        return self.second(self.first(x), residual)


class MinkUNet(nn.Module):
    """The layers of pointlib's MinkUNet."""

    def __init__(self, engine: Engine, c_in: int, width: float, num_classes: int) -> None:
        super().__init__()
        self.engine = engine
        cs = [int(width * c) for c in MINKUNET]
        conv = engine.conv
        self.stem = nn.Sequential(
            Block(engine, conv(c_in, cs[0], 3, 1, 1, "same0"), cs[0]),
            Block(engine, conv(cs[0], cs[0], 3, 1, 1, "same0"), cs[0]),
        )
        self.down, self.up, self.refine = nn.ModuleList(), nn.ModuleList(), nn.ModuleList()
        for i in range(1, 5):
            stage = [Block(engine, conv(cs[i - 1], cs[i - 1], 2, 2, 0, f"down{i}"), cs[i - 1])]
            stage.append(Residual(engine, cs[i - 1], cs[i], f"same{i}"))
            stage.append(Residual(engine, cs[i], cs[i], f"same{i}"))
            self.down.append(nn.Sequential(*stage))
        for i in range(5, 9):
            level, skip = 8 - i, cs[8 - i]
            self.up.append(
                Block(engine, engine.inverse(cs[i - 1], cs[i], f"down{level + 1}"), cs[i])
            )
            key = f"same{level}"
            pair = (Residual(engine, cs[i] + skip, cs[i], key), Residual(engine, cs[i], cs[i], key))
            self.refine.append(nn.Sequential(*pair))
        self.classifier = nn.Linear(cs[8], num_classes)

    def forward(self, x: Any) -> Tensor:
        levels = [self.stem(x)]
        for stage in self.down:
            levels.append(stage(levels[-1]))
        y = levels.pop()
        for up, refine in zip(self.up, self.refine, strict=True):
            y, skip = up(y), self.engine.feats(levels.pop())
            y = refine(self.engine.with_feats(y, torch.cat([self.engine.feats(y), skip], 1)))
        return self.classifier(self.engine.feats(y))


class CenterPointEncoder(nn.Module):
    """The sparse encoder of CenterPoint and SECOND: 21 convolutions, strides 1 to 8, then z alone."""

    def __init__(self, engine: Engine, c_in: int) -> None:
        super().__init__()
        self.engine = engine
        layers: list[nn.Module] = []
        for level, c_out in enumerate(CENTERPOINT):
            padding = (1, 1, 0) if level == 3 else 1
            key, step = (f"same{level}", 1) if not level else (f"down{level}", 2)
            layers.append(Block(engine, engine.conv(c_in, c_out, 3, step, padding, key), c_out))
            layers += [Residual(engine, c_out, c_out, f"same{level}") for _ in range(2)]
            c_in = c_out
        last = engine.conv(c_in, c_in, (1, 1, 3), (1, 1, 2), 0, "last")
        self.layers = nn.Sequential(*layers, Block(engine, last, c_in))

    def forward(self, x: Any) -> Tensor:
        return self.engine.feats(self.layers(x))


class Pointlib(Engine):
    """This package; its MinkUNet is the one of the zoo."""

    name = "pointlib"

    def version(self) -> str:
        return pointlib.__version__

    def conv(
        self, c_in: int, c_out: int, kernel: Any, stride: Any, padding: Any, key: str
    ) -> nn.Module:
        if stride == 1:
            return Conv3d(c_in, c_out, kernel)
        relation = "minkowski" if kernel == 2 else "spconv"
        return Conv3d(c_in, c_out, kernel, stride, padding, relation=relation)

    def inverse(self, c_in: int, c_out: int, key: str) -> nn.Module:
        return Conv3d(c_in, c_out, 2, 2, 0, transposed=True)

    def tensor(self, coords: Tensor, feats: Tensor, shape: Shape, batch: int) -> SparseTensor:
        return SparseTensor(feats, coords, spatial_shape=shape, batch_size=batch)

    def with_feats(self, x: SparseTensor, feats: Tensor) -> SparseTensor:
        return x.with_feats(feats)

    def network(self, workload: Workload, num_classes: int = 19) -> nn.Module:
        if workload.network == "minkunet":
            arguments = {"in_channels": workload.in_channels, "num_classes": num_classes}
            return pointlib.create_model("minkunet", cr=workload.width, **arguments)
        return super().network(workload, num_classes)


class Spconv(Engine):
    """spconv: axes in the order z, y, x; a map is shared by `indice_key`."""

    name, package = "spconv", "spconv"

    def __init__(self) -> None:
        self._module = importlib.import_module(f"{self.package}.pytorch")

    def version(self) -> str:
        names = importlib.metadata.packages_distributions()[self.package]
        return f"{names[0]} {importlib.metadata.version(names[0])}"

    def conv(
        self, c_in: int, c_out: int, kernel: Any, stride: Any, padding: Any, key: str
    ) -> nn.Module:
        sizes = [v if isinstance(v, int) else tuple(reversed(v)) for v in (kernel, stride, padding)]
        if stride == 1:
            return self._module.SubMConv3d(c_in, c_out, sizes[0], bias=False, indice_key=key)
        return self._module.SparseConv3d(c_in, c_out, *sizes, bias=False, indice_key=key)

    def inverse(self, c_in: int, c_out: int, key: str) -> nn.Module:
        return self._module.SparseInverseConv3d(c_in, c_out, 2, bias=False, indice_key=key)

    def tensor(self, coords: Tensor, feats: Tensor, shape: Shape, batch: int) -> Any:
        indices = coords[:, [0, 3, 2, 1]].contiguous()
        return self._module.SparseConvTensor(feats, indices, list(reversed(shape)), batch)

    def feats(self, x: Any) -> Tensor:
        return x.features

    def with_feats(self, x: Any, feats: Tensor) -> Any:
        return x.replace_feature(feats)


class SpconvTriton(Spconv):
    """spconv-triton."""

    name, package = "spconv-triton", "spconv_triton"


class TorchSparse(Engine):
    """torchsparse 2.1 (TorchSparse++), which keeps its maps with the tensor."""

    name = "torchsparse"

    def __init__(self) -> None:
        self._nn = importlib.import_module("torchsparse.nn")
        self._tensor = importlib.import_module("torchsparse").SparseTensor

    def version(self) -> str:
        return importlib.metadata.version("torchsparse")

    def conv(
        self, c_in: int, c_out: int, kernel: Any, stride: Any, padding: Any, key: str
    ) -> nn.Module:
        return self._nn.Conv3d(c_in, c_out, kernel, stride, padding if stride != 1 else 0)

    def inverse(self, c_in: int, c_out: int, key: str) -> nn.Module:
        return self._nn.Conv3d(c_in, c_out, 2, 2, transposed=True)

    def tensor(self, coords: Tensor, feats: Tensor, shape: Shape, batch: int) -> Any:
        return self._tensor(feats, coords, spatial_range=(batch, *shape))

    def with_feats(self, x: Any, feats: Tensor) -> Any:
        out = self._tensor(feats, x.coords, x.stride, x.spatial_range)
        out._caches = x._caches
        return out


ENGINES: dict[str, type[Engine]] = {
    engine.name: engine for engine in (Pointlib, Spconv, SpconvTriton, TorchSparse)
}
