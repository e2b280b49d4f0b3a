"""What cpu_engine.py times: the scene, and each case as calls of the engines and answers that must agree."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from networks import unet_layers
from peers import Peer
from torch import Tensor, nn

from pointlib.models import count_macs, create_model
from pointlib.tensor import SparseTensor

ROOT = Path(__file__).parents[1]


class Scene(NamedTuple):
    """Voxels of one scan: coords (N, 4) int32 in lexicographic order, feats (N, 4) x, y, z [m], intensity."""

    name: str
    coords: Tensor
    feats: Tensor


@dataclass
class Case:
    """One thing to time.

    Attributes:
        name: Its key in the JSON.
        calls: What each engine does; the names are those of the engines.
        answers: The same, returning tensors and numbers that must agree between the engines.
        gflop: Work of one call, for the rate.
        rtol: Agreement of tensors, relative to the largest magnitude.
    """

    name: str
    calls: dict[str, Callable[[], object]]
    answers: dict[str, Callable[[], list[Tensor | int]]]
    gflop: float = 0.0
    rtol: float = 1e-5


def load_scene(scan: Path | None) -> Scene:
    """The named scan, or the real one where test data is found, or a synthetic street."""
    data = Path(os.environ.get("POINTLIB_TEST_DATA", ROOT.parent / "shared" / "data"))
    real = data / "semantickitti" / "sequences" / "00" / "velodyne" / "000000.bin"
    if scan is not None:
        return voxelize(scan.name, scan)
    if real.exists():
        return voxelize("SemanticKITTI 00/000000", real)
    from pointlib.data.synthetic import generate_dataset

    with tempfile.TemporaryDirectory() as folder:
        generate_dataset(Path(folder), sequences={"00": 1}, seed=0, workers=1, progress=False)
        return voxelize("synthetic street, seed 0", next(Path(folder).rglob("*.bin")))


def voxelize(name: str, path: Path, voxel_size: float = 0.05) -> Scene:
    points = np.fromfile(path, dtype=np.float32).reshape(-1, 4)
    cells = np.round(points[:, :3] / voxel_size).astype(np.int32)
    cells, first = np.unique(cells - cells.min(axis=0), axis=0, return_index=True)
    coords = np.pad(cells, ((0, 0), (1, 0)))
    return Scene(name, torch.from_numpy(coords), torch.from_numpy(points[first]))


def resize(scene: Scene, count: int) -> Scene:
    """The `count` voxels nearest the sensor; beyond the scan's own number, copies of it laid side by side."""
    step = (scene.coords[:, 1].max() + 32) // 16 * 16
    copies = -(-count // len(scene.coords))
    if copies == 1:
        near = torch.sort(scene.feats[:, :3].norm(dim=1).topk(count, largest=False).indices)[0]
        return Scene(f"{count} voxels", scene.coords[near].contiguous(), scene.feats[near])
    shift = torch.zeros(copies, 1, 4, dtype=torch.int32)
    shift[:, 0, 1] = torch.arange(copies, dtype=torch.int32) * step
    coords = (scene.coords + shift).view(-1, 4)[:count].contiguous()
    return Scene(f"{count} voxels", coords, scene.feats.repeat(copies, 1)[:count])


def map_cases(peers: list[Peer], scene: Scene) -> Iterator[Case]:
    """One submanifold map, one strided map, and all maps of a MinkUNet."""

    def one(peer: Peer, kind: str) -> Callable[[], Any]:
        sites = peer.sites(scene.coords)
        return lambda: getattr(peer, kind)(sites)

    for name, kind in (("map 3^3 submanifold", "submanifold"), ("map 2^3 stride 2", "down")):
        calls = {p.name: one(p, kind) for p in peers}
        yield Case(name, calls, {n: lambda c=c: [c().pairs] for n, c in calls.items()})

    def pairs(peer: Peer) -> list[Tensor | int]:
        same, down = unet_layers(peer, scene.coords)
        return [layer.pairs for layer in (*same, *down)]

    yield Case(
        "all maps of a MinkUNet",
        {p.name: lambda p=p: unet_layers(p, scene.coords) for p in peers},
        {p.name: lambda p=p: pairs(p) for p in peers},
    )


def conv_cases(peers: list[Peer], scene: Scene, channels: list[int]) -> Iterator[Case]:
    """3^3 submanifold convolution over a kept map: forward, then forward and both gradients."""
    layers = {p.name: p.submanifold(p.sites(scene.coords)) for p in peers}
    pairs = layers[peers[0].name].pairs
    for width in channels:
        generator = torch.Generator().manual_seed(width)
        feats = torch.randn(len(scene.coords), width, generator=generator)
        kernel = torch.randn(27, width, width, generator=generator) / width
        grad = torch.randn(len(scene.coords), width, generator=generator)
        inputs = {p.name: p.pack(kernel) for p in peers}

        def forward(
            peer: Peer, feats: Tensor = feats, inputs: dict[str, Tensor] = inputs
        ) -> list[Any]:
            with torch.inference_mode():
                return [peer.conv(feats, inputs[peer.name], layers[peer.name])]

        def backward(
            peer: Peer,
            feats: Tensor = feats,
            grad: Tensor = grad,
            inputs: dict[str, Tensor] = inputs,
        ) -> list[Any]:
            x = feats.detach().requires_grad_()
            weight = inputs[peer.name].detach().requires_grad_()
            out = peer.conv(x, weight, layers[peer.name])
            return [out.detach(), *torch.autograd.grad(out, (x, weight), grad)]

        def unpacked(peer: Peer, call: Callable[[Peer], list[Any]]) -> list[Any]:
            answer = call(peer)
            return [*answer[:2], *(peer.unpack(w) for w in answer[2:])]

        gflop = 2e-9 * pairs * width * width
        for name, call, work in (
            (f"conv forward {width}", forward, gflop),
            (f"conv forward + backward {width}", backward, 3 * gflop),
        ):
            yield Case(
                name,
                {p.name: lambda p=p, call=call: call(p) for p in peers},
                {p.name: lambda p=p, call=call: unpacked(p, call) for p in peers},
                work,
            )


def minkunet(width: float) -> nn.Module:
    """Pointlib's model with random weights; every engine gets the same."""
    torch.manual_seed(0)
    return create_model("minkunet", cr=width, num_classes=19).eval()


def minkunet_cases(peers: list[Peer], scene: Scene, width: float) -> Iterator[Case]:
    """A whole MinkUNet forward, with the maps of the last call, and with new ones as for a new scan."""
    model = minkunet(width)
    networks = {p.name: p.minkunet(model) for p in peers}
    with torch.inference_mode():
        gflop = 2e-9 * count_macs(model, SparseTensor(scene.feats, scene.coords))
    for name, keep in (("maps kept", True), ("new maps", False)):
        calls = {
            n: lambda net=net, keep=keep: net(scene.coords, scene.feats, keep)
            for n, net in networks.items()
        }
        answers = {n: lambda c=c: [c()] for n, c in calls.items()}
        yield Case(f"MinkUNet {width:g}x forward, {name}", calls, answers, gflop, 1e-4)


def sweep_cases(peers: list[Peer], scene: Scene, quick: bool) -> Iterator[Case]:
    """The submanifold map and a layer of 64 channels over growing scenes."""
    for count in (10_000, 30_000) if quick else (10_000, 30_000, 100_000, 300_000, 1_000_000):
        smaller = resize(scene, count)
        for case in (next(map_cases(peers, smaller)), *conv_cases(peers, smaller, [64])):
            case.name = f"{case.name}, {count} voxels"
            yield case
