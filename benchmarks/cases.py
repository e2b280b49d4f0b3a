"""What cpu_engine.py times: each case as calls of the engines, and answers that must agree."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from networks import unet_layers
from peers import Peer
from scenes import Scene, resize
from torch import Tensor, nn

from pointlib.models import count_macs, create_model
from pointlib.tensor import SparseTensor

SWEEP = (10_000, 30_000, 100_000, 300_000, 1_000_000)
QUICK_SWEEP = (2_500, 5_000)
SWEEP_CHANNELS = 64


@dataclass
class Case:
    """One thing to time.

    Attributes:
        name: Its key in the JSON.
        calls: What each engine does; the names are those of the engines.
        answers: The same, returning tensors and numbers that must agree between the engines.
        gflop: Work of one call, for the rate.
        rtol: Agreement of tensors, relative to the largest magnitude.
        rtols: The same for engines of less precision, where it is larger.
        classify: Whether the answer is logits, of which the winners are compared too.
        facts: More to write into the JSON.
    """

    name: str
    calls: dict[str, Callable[[], object]]
    answers: dict[str, Callable[[], list[Tensor | int]]]
    gflop: float = 0.0
    rtol: float = 1e-5
    rtols: dict[str, float] = field(default_factory=dict)
    classify: bool = False
    facts: dict[str, Any] = field(default_factory=dict)


def map_cases(peers: list[Peer], scene: Scene) -> Iterator[Case]:
    """One submanifold map, one strided map, and all maps of a MinkUNet."""
    builders = [peer for peer in peers if peer.builds_maps]

    def one(peer: Peer, kind: str) -> Callable[[], Any]:
        sites = peer.sites(scene.coords)
        return lambda: getattr(peer, kind)(sites)

    for name, kind in (("map 3^3 submanifold", "submanifold"), ("map 2^3 stride 2", "down")):
        calls = {p.name: one(p, kind) for p in builders}
        yield Case(name, calls, {n: lambda c=c: [c().pairs] for n, c in calls.items()})

    def pairs(peer: Peer) -> list[Tensor | int]:
        same, down = unet_layers(peer, scene.coords)
        return [layer.pairs for layer in (*same, *down)]

    yield Case(
        "all maps of a MinkUNet",
        {p.name: lambda p=p: unet_layers(p, scene.coords) for p in builders},
        {p.name: lambda p=p: pairs(p) for p in builders},
    )


def conv_cases(peers: list[Peer], scene: Scene, channels: list[int]) -> Iterator[Case]:
    """3^3 submanifold convolution over a kept map: forward, then forward and both gradients."""
    built = {p.name: p.submanifold(p.sites(scene.coords)) for p in peers if p.builds_maps}
    layers = {p.name: built.get(p.name) or p.submanifold(p.sites(scene.coords)) for p in peers}
    pairs = next(iter(layers.values())).pairs
    tolerances = {p.name: p.rtol for p in peers if p.rtol}
    for width in channels:
        generator = torch.Generator().manual_seed(width)
        feats = torch.randn(len(scene.coords), width, generator=generator)
        kernel = torch.randn(27, width, width, generator=generator) / width
        grad = torch.randn(len(scene.coords), width, generator=generator)
        gflop = 2e-9 * pairs * width * width
        yield _forward(peers, layers, feats, kernel, gflop, tolerances)
        trainers = [peer for peer in peers if peer.trains]
        if trainers:
            yield _forward_backward(trainers, layers, feats, kernel, grad, gflop, tolerances)


def _forward(
    peers: list[Peer],
    layers: dict[str, Any],
    feats: Tensor,
    kernel: Tensor,
    gflop: float,
    rtols: dict[str, float],
) -> Case:
    with torch.inference_mode():
        made = {p.name: p.forward(feats, kernel, layers[p.name]) for p in peers}
    calls = {n: torch.inference_mode()(call.run) for n, call in made.items()}
    answers = {n: lambda n=n: [made[n].restore(calls[n]())] for n in made}
    return Case(f"conv forward {feats.shape[1]}", calls, answers, gflop, rtols=rtols)


def _forward_backward(
    peers: list[Peer],
    layers: dict[str, Any],
    feats: Tensor,
    kernel: Tensor,
    grad: Tensor,
    gflop: float,
    rtols: dict[str, float],
) -> Case:
    calls = {p.name: p.forward_backward(feats, kernel, grad, layers[p.name]) for p in peers}

    def answer(peer: Peer) -> list[Any]:
        out, grad_feats, grad_weight = calls[peer.name]()
        return [out.float(), grad_feats.float(), peer.unpack(grad_weight)]

    name = f"conv forward + backward {feats.shape[1]}"
    answers = {p.name: lambda p=p: answer(p) for p in peers}
    # A weight gradient sums over every row, up to a million of them, each engine in its own order.
    return Case(name, calls, answers, 3 * gflop, rtol=5e-5, rtols=rtols)


def minkunet(width: float, scene: Scene) -> nn.Module:
    """Pointlib's model with random weights and this scene's batch statistics; every engine gets the same.

    The statistics keep activations in the range that a trained network's have, which int8 is sensitive to.
    """
    torch.manual_seed(0)
    model = create_model("minkunet", cr=width, num_classes=19)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm1d):
            module.momentum = None  # the mean over all passes, of which there is one
    with torch.no_grad():
        model(SparseTensor(scene.feats, scene.coords))
    return model.eval()


def minkunet_cases(peers: list[Peer], scene: Scene, width: float) -> Iterator[Case]:
    """A whole MinkUNet forward, with the maps of the last call, and with new ones as for a new scan."""
    model = minkunet(width, scene)
    networks = {p.name: p.minkunet(model, scene) for p in peers}
    with torch.inference_mode():
        gflop = 2e-9 * count_macs(model, SparseTensor(scene.feats, scene.coords))
    rtols = {p.name: 4 * p.rtol for p in peers if p.rtol}  # fifty layers' errors, not one's
    for name, keep in (("maps kept", True), ("new maps", False)):
        calls = {
            n: lambda net=net, keep=keep: net(scene.coords, scene.feats, keep)
            for n, net in networks.items()
        }
        answers = {n: lambda c=c: [c().float()] for n, c in calls.items()}
        title = f"MinkUNet {width:g}x forward, {name}"
        yield Case(title, calls, answers, gflop, 1e-4, rtols, classify=True)


def sweep_cases(peers: list[Peer], scene: Scene, quick: bool) -> Iterator[Case]:
    """The submanifold map and a layer of 64 channels over growing scenes."""
    for count in QUICK_SWEEP if quick else SWEEP:
        smaller = resize(scene, count)
        cases = (next(map_cases(peers, smaller)), *conv_cases(peers, smaller, [SWEEP_CHANNELS]))
        for case in cases:
            case.facts = {"voxels": count, "of": case.name}
            case.name = f"{case.name}, {count} voxels"
            yield case
