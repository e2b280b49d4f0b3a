"""Pointlib as the benchmarks run it, in float32, bfloat16 and int8, and the list of all engines."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from int8_network import Int8MinkUNet
from peers import Layer, LayerCall, Naive, Network, Peer, Spconv
from torch import Tensor, nn

import pointlib
from pointlib.ops.kernel_map import ConvSpec, build_kernel_map
from pointlib.ops.quantized import pack_int8_weight, quantize, quantize_weight, sparse_conv_int8
from pointlib.ops.sparse_conv import sparse_conv
from pointlib.tensor import SparseTensor

if TYPE_CHECKING:
    from scenes import Scene


class Pointlib(Peer):
    """This package in float32, through its public names."""

    name = "pointlib"

    def version(self) -> str:
        return pointlib.__version__

    def sites(self, coords: Tensor) -> Tensor:
        return coords

    def submanifold(self, sites: Tensor) -> Layer:
        out, kernel_map = build_kernel_map(sites, ConvSpec(3))
        return Layer(out, kernel_map, kernel_map.num_pairs)

    def down(self, sites: Tensor) -> Layer:
        out, kernel_map = build_kernel_map(sites, ConvSpec(2, stride=2))
        return Layer(out, kernel_map, kernel_map.num_pairs)

    def conv(self, feats: Tensor, weight: Tensor, layer: Layer) -> Tensor:
        return sparse_conv(feats, weight, layer.map)

    def inverse(self, feats: Tensor, weight: Tensor, layer: Layer) -> Tensor:
        return sparse_conv(feats, weight, layer.map.transpose())

    def minkunet(self, model: nn.Module, scene: Scene) -> Network:
        return self._network(model, autocast=False)

    @staticmethod
    def _network(model: nn.Module, autocast: bool) -> Network:
        kept: list[SparseTensor] = []

        @torch.inference_mode()
        def run(coords: Tensor, feats: Tensor, keep: bool) -> Tensor:
            if not keep or not kept:
                kept[:] = [SparseTensor(feats, coords)]
            with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
                return model(kept[0])

        return run


class PointlibBf16(Pointlib):
    """This package in bfloat16: features and weights in inference, and as under autocast in training."""

    name = "pointlib-bf16"
    builds_maps = False
    rtol = 3e-2

    def forward(self, feats: Tensor, kernel: Tensor, layer: Layer) -> LayerCall:
        x, weight = feats.bfloat16(), kernel.bfloat16()
        return LayerCall(lambda: self.conv(x, weight, layer), Tensor.float)

    def forward_backward(
        self, feats: Tensor, kernel: Tensor, grad: Tensor, layer: Layer
    ) -> Callable[[], list[Tensor]]:
        """Activations come and go in bfloat16, the weight and its gradient are float32."""
        x = feats.bfloat16().requires_grad_()
        weight = kernel.clone().requires_grad_()
        grad = grad.bfloat16()

        def run() -> list[Tensor]:
            with torch.autocast("cpu", torch.bfloat16):
                out = self.conv(x, weight, layer)
            return [out.detach(), *torch.autograd.grad(out, (x, weight), grad)]

        return run

    def minkunet(self, model: nn.Module, scene: Scene) -> Network:
        return self._network(model, autocast=True)


class PointlibInt8(Pointlib):
    """This package in int8, inference alone: features in and out are int8, the weight is packed beforehand."""

    name = "pointlib-int8"
    trains = False
    builds_maps = False
    rtol = 5e-2

    def forward(self, feats: Tensor, kernel: Tensor, layer: Layer) -> LayerCall:
        step = float(feats.abs().max()) / 127
        out_step = float(self.conv(feats, kernel, layer).abs().max()) / 127
        values, weight_step = quantize_weight(kernel)
        x, packed = quantize(feats, step), pack_int8_weight(values)
        scale = weight_step * (step / out_step)
        shift = torch.zeros_like(scale)
        return LayerCall(
            lambda: sparse_conv_int8(x, packed, layer.map, scale, shift),
            lambda out: out.float() * out_step,
        )

    def minkunet(self, model: nn.Module, scene: Scene) -> Network:
        return Int8MinkUNet(model, scene)


ENGINES: dict[str, type[Peer]] = {
    peer.name: peer for peer in (Pointlib, PointlibBf16, PointlibInt8, Spconv, Naive)
}


def available_engines(names: list[str]) -> list[Peer]:
    """Start the named engines; says which one is missing and how to install it."""
    engines: list[Peer] = []
    for name in names:
        try:
            engines.append(ENGINES[name]())
        except ImportError as error:
            print(
                f"{name}: left out, it cannot be imported ({error}). Install it: pip install {name}"
            )
    return engines
