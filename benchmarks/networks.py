"""MinkUNet over any engine of peers.py: the layers, shapes and weights of pointlib's, written as plain functions."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional

if TYPE_CHECKING:
    from peers import Layer, Peer


def unet_layers(peer: Peer, coords: Tensor) -> tuple[list[Layer], list[Layer]]:
    """Every map of a MinkUNet: 3^3 submanifold at strides 1 to 16, and the four 2^3 maps between them."""
    same, down = [peer.submanifold(peer.sites(coords))], []
    for _ in range(4):
        down.append(peer.down(same[-1].sites))
        same.append(peer.submanifold(down[-1].sites))
    return same, down


class MinkUNet:
    """Inference only. Called with (coords, feats, keep maps of the last call); returns logits (N, num_classes)."""

    def __init__(self, peer: Peer, state: dict[str, Tensor]) -> None:
        self.peer = peer
        self.state = {
            key: peer.pack(value) if key.endswith(".kernel") and value.dim() == 3 else value
            for key, value in state.items()
        }
        self.layers: tuple[list[Layer], list[Layer]] | None = None

    @torch.inference_mode()
    def __call__(self, coords: Tensor, feats: Tensor, keep: bool) -> Tensor:
        if self.layers is None or not keep:
            self.layers = unet_layers(self.peer, coords)
        same, down = self.layers
        x = self._conv_bn("stem.0", "stem.1", feats, same[0], relu=True)
        skips = [self._conv_bn("stem.3", "stem.4", x, same[0], relu=True)]
        for level in range(1, 5):
            stage = f"stage{level}"
            name = f"{stage}.0.net"
            x = self._conv_bn(f"{name}.0", f"{name}.1", skips[-1], down[level - 1], relu=True)
            for block in (1, 2):
                x = self._residual(f"{stage}.{block}", x, same[level])
            skips.append(x)
        for level in range(1, 5):
            name = f"up{level}.0.net"
            x = self.peer.inverse(x, self.state[f"{name}.0.kernel"], down[4 - level])
            x = torch.cat([functional.relu_(self._bn(f"{name}.1", x)), skips[4 - level]], dim=1)
            for block in (0, 1):
                x = self._residual(f"up{level}.1.{block}", x, same[4 - level])
        return functional.linear(
            x, self.state["classifier.0.weight"], self.state["classifier.0.bias"]
        )

    def _bn(self, name: str, x: Tensor) -> Tensor:
        mean, var, weight, bias = (
            self.state[f"{name}.{k}"] for k in ("running_mean", "running_var", "weight", "bias")
        )
        return functional.batch_norm(x, mean, var, weight, bias)

    def _conv_bn(self, conv: str, norm: str, x: Tensor, layer: Layer, relu: bool) -> Tensor:
        x = self._bn(norm, self.peer.conv(x, self.state[f"{conv}.kernel"], layer))
        return functional.relu_(x) if relu else x

    def _residual(self, name: str, x: Tensor, layer: Layer) -> Tensor:
        out = self._conv_bn(f"{name}.net.0", f"{name}.net.1", x, layer, relu=True)
        out = self._conv_bn(f"{name}.net.3", f"{name}.net.4", out, layer, relu=False)
        if f"{name}.downsample.0.kernel" in self.state:
            x = self._bn(f"{name}.downsample.1", x @ self.state[f"{name}.downsample.0.kernel"])
        return functional.relu_(out.add_(x))
