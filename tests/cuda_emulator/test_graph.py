"""A network of fixed capacities computes what the network does, and the host reads nothing meanwhile."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from pointlib import SparseTensor, create_model, nn
from pointlib.deploy.graph import GraphNetwork, StaticNetwork, unet_specs
from pointlib.ops._cuda import norm, sparse_conv
from pointlib.ops._cuda.pyramid import check_status
from pointlib.ops.kernel_map import ConvSpec
from pointlib.sites import FixedMaps
from tests import oracles
from tests.cuda_emulator.operators import ANY_ARCHITECTURE, OnDevice
from tests.tolerances import assert_close

NAMES = ("sparse_conv", "fused_sparse_conv", "fused_sparse_conv_")
OPERATORS = {name: getattr(sparse_conv, name) for name in NAMES}
OPERATORS["fold_batch_norm"] = norm.fold_batch_norm


class NoReading(TorchDispatchMode):
    """Fails where a value goes from a tensor to the host."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        assert func.name() not in ("aten::_local_scalar_dense", "aten::nonzero"), func.name()
        return func(*args, **(kwargs or {}))


def scan(count: int, seed: int = 0) -> SparseTensor:
    coords = oracles.random_coords(np.random.default_rng(seed), 3 * count, 20, batch=2, lower=-7)
    coords = coords[:count]
    return SparseTensor(torch.randn(len(coords), 4), coords, batch_size=2)


def unet() -> torch.nn.Module:
    torch.manual_seed(0)
    model = create_model("minkunet", cr=0.25, num_classes=5, in_channels=4)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm):
            module.running_mean.normal_(0, 0.2)
            module.running_var.uniform_(0.5, 2)
    return model.eval()


@pytest.mark.usefixtures("emulator")
class TestOnDevice:
    pytestmark = ANY_ARCHITECTURE[1:]

    def test_scans_of_other_sizes_give_the_logits_of_the_network(self) -> None:
        model, example = unet(), scan(150)
        static = StaticNetwork(model, example)
        for x in (example, scan(90, seed=1), scan(1, seed=2)):
            static.load(x)
            with torch.inference_mode(), NoReading(), OnDevice(**OPERATORS) as device:
                logits, status = static.run()
            assert device.calls["fused_sparse_conv"] + device.calls["fused_sparse_conv_"] > 40
            check_status(int(status))
            with torch.inference_mode():
                assert_close(logits[: len(x)], model(x).double(), torch.float32)

    def test_the_weights_are_those_of_the_recording(self) -> None:
        model, x = unet(), scan(30)
        static = StaticNetwork(model, x)
        static.load(x)
        with torch.inference_mode(), OnDevice(**OPERATORS):
            before, _ = static.run()
            for parameter in model.parameters():
                parameter.data.zero_()
            after, _ = static.run()
        assert torch.equal(before[: len(x)], after[: len(x)]) and bool(before.any())

    def test_a_scan_that_does_not_fit_is_told(self) -> None:
        model = unet()
        static = StaticNetwork(model, scan(20), headroom=1.0)
        static.load(scan(static.capacity, seed=3))  # as many voxels, more pairs
        with torch.inference_mode(), OnDevice(**OPERATORS):
            _, status = static.run()
        with pytest.raises(ValueError, match="must fit the capacities, got more neighbours"):
            check_status(int(status))


def test_a_map_that_was_not_planned_for_is_an_error() -> None:
    static = StaticNetwork(unet(), scan(40))
    x = scan(40)
    assert (static.same, static.down) == (ConvSpec(3), ConvSpec(2, 2))
    x.maps = FixedMaps([x.sites], [])
    with pytest.raises(ValueError, match="must be one that was planned for, got ConvSpec"):
        nn.Conv3d(4, 4)(x)
    with pytest.raises(ValueError, match="generative convolution"):
        nn.Conv3d(4, 4, 2, 2, generative=True)(x)


@pytest.mark.parametrize(
    "layers",
    [
        [nn.Conv3d(4, 4)],
        [nn.Conv3d(4, 4), nn.Conv3d(4, 4, 5), nn.Conv3d(4, 4, 2, 2)],
        [nn.Conv3d(4, 4), nn.Conv3d(4, 4, 3, 2, 1, relation="spconv")],
        [nn.Conv3d(4, 4), nn.Conv3d(4, 4, 2, 2), nn.Conv3d(4, 4, 2, 2, generative=True)],
    ],
)
def test_networks_of_another_kind_are_refused(layers: list[torch.nn.Module]) -> None:
    with pytest.raises(ValueError, match="one submanifold kernel and one strided"):
        unet_specs(torch.nn.Sequential(*layers))


def test_wrong_use_is_told() -> None:
    with pytest.raises(ValueError, match="eval mode"):
        StaticNetwork(unet().train(), scan(10))
    with pytest.raises(ValueError, match=r"headroom must be at least 1, got 0\.5"):
        StaticNetwork(unet(), scan(10), headroom=0.5)
    with pytest.raises(ValueError, match="CUDA device, got cpu"):
        GraphNetwork(unet(), scan(10))


@pytest.mark.gpu
def test_a_recorded_graph_gives_the_logits_of_the_network() -> None:
    model, example = unet().cuda(), scan(3000).to("cuda")
    network = GraphNetwork(model, example)
    for x in (example, scan(2000, seed=1).to("cuda"), example):
        with torch.inference_mode():
            assert_close(network(x), model(x).double(), torch.float32)
    with pytest.warns(UserWarning, match="without the graph"):
        network(scan(6000, seed=4).to("cuda"))
