"""SparseEncoder: kernels in the layouts of spconv 1.x and 2.x, gradients, precision, empty input, bad input."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from pointlib.models.point_voxelization import MeanVoxelization
from pointlib.models.sparse_encoder import SparseEncoder, SpconvConv3d
from pointlib.tensor import SparseTensor
from tests.tolerances import assert_close

TINY: dict[str, Any] = {
    "in_channels": 4,
    "sparse_shape": (16, 12, 41),
    "base_channels": 4,
    "output_channels": 6,
    "encoder_channels": ((4, 8), (8, 12), (12, 12), (12,)),
    "encoder_paddings": ((0, 1), (0, 1), (0, (1, 1, 0)), (0,)),
}


def voxels(batch_size: int = 2, channels: int = 4, dtype: torch.dtype = torch.float32) -> Any:
    generator = torch.Generator().manual_seed(3)
    sizes = (batch_size, 16, 12, 40)
    draws = [torch.randint(0, n, (600,), generator=generator) for n in sizes]
    coords = torch.unique(torch.stack(draws, 1), dim=0).int()
    feats = torch.randn(len(coords), channels, generator=generator).to(dtype)
    return SparseTensor(feats, coords, batch_size=batch_size)


@pytest.mark.parametrize(
    ("kernel_size", "stride", "padding"),
    [(3, 1, 1), (3, 2, 1), ((1, 1, 3), (1, 1, 2), 0), (2, 2, 0), ((3, 2, 1), 2, 0)],
)
def test_weight_is_that_of_a_dense_convolution(kernel_size: Any, stride: Any, padding: Any) -> None:
    """`weight` (x, y, z, in, out) read as a dense kernel gives the same numbers, with its gradient."""
    relation = "submanifold" if stride == 1 else "spconv"
    conv = SpconvConv3d(4, 5, kernel_size, stride, padding, relation=relation).double()
    x = SparseTensor(
        (start := voxels(dtype=torch.float64)).feats, start.coords, spatial_shape=(16, 12, 41)
    )
    dense_weight = conv.weight.detach().permute(4, 3, 0, 1, 2).clone().requires_grad_()
    dense = nn.functional.conv3d(x.dense(), dense_weight, stride=stride, padding=padding)
    y = conv(x)
    b, i, j, k = y.coords.long().unbind(1)
    at_sites = dense[b, :, i, j, k]
    assert_close(y.feats, at_sites)
    y.feats.square().sum().backward()
    at_sites.square().sum().backward()
    assert conv.weight.grad is not None and dense_weight.grad is not None
    assert_close(conv.weight.grad, dense_weight.grad.permute(2, 3, 4, 1, 0))


def test_both_published_layouts_load() -> None:
    torch.manual_seed(0)
    network = SparseEncoder(**TINY)
    published = network.state_dict()
    assert published["encoder_layers.encoder_layer1.1.0.weight"].shape == (3, 3, 3, 4, 8)
    assert published["conv_out.0.weight"].shape == (1, 1, 3, 12, 6)
    newer = {
        key: value.permute(4, 0, 1, 2, 3) if value.dim() == 5 else value
        for key, value in published.items()
    }
    for state in (published, newer):
        torch.manual_seed(1)
        other = SparseEncoder(**TINY)
        other.load_state_dict(copy.deepcopy(state))
        for key, value in other.state_dict().items():
            assert torch.equal(value, published[key]), key


def test_a_kernel_of_another_size_is_refused() -> None:
    conv = SpconvConv3d(4, 5, 3)
    with pytest.raises(RuntimeError, match="size mismatch for weight"):
        conv.load_state_dict({"weight": torch.zeros(3, 3, 3, 4, 6)})


def test_the_operator_reads_the_weight_without_a_copy(tmp_path: Path) -> None:
    conv = SpconvConv3d(4, 5, 3)
    torch.save(conv.state_dict(), tmp_path / "conv.pt")
    loaded = SpconvConv3d(4, 5, 3)
    loaded.load_state_dict(torch.load(tmp_path / "conv.pt", weights_only=True))
    assert torch.equal(loaded.kernel, conv.kernel)
    conv(voxels()).feats.sum().backward()
    torch.optim.AdamW(conv.parameters(), lr=0.1).step()
    for other in (conv, loaded, copy.deepcopy(conv), SpconvConv3d(4, 5, 3).double()):
        assert other.kernel.is_contiguous()
        assert other.kernel.data_ptr() == other.weight.data_ptr()


def test_parameters_are_the_entries_of_the_state_dict() -> None:
    network = SparseEncoder(**TINY)
    state = network.state_dict()
    for key, parameter in network.named_parameters():
        assert state[key].shape == parameter.shape, key
    twin = copy.deepcopy(network).eval()
    with torch.no_grad():
        assert torch.equal(twin(voxels()), network.eval()(voxels()))


def test_training_reaches_every_parameter_and_evaluation_agrees_with_it() -> None:
    torch.manual_seed(0)
    network = SparseEncoder(**TINY)
    network(voxels()).square().sum().backward()
    for key, parameter in network.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().sum() > 0, key
    network.eval()
    watched = network(voxels())  # convolution, norm and activation one by one
    with torch.no_grad():
        torch.testing.assert_close(network(voxels()), watched.detach(), rtol=1e-5, atol=1e-5)


def test_samples_do_not_mix() -> None:
    network = SparseEncoder(**TINY).eval()
    x = voxels()
    with torch.no_grad():
        both = network(x)
        for sample in range(2):
            mine = x.coords[:, 0] == sample
            coords = x.coords[mine].clone()
            coords[:, 0] = 0
            alone = network(SparseTensor(x.feats[mine], coords))
            torch.testing.assert_close(both[sample : sample + 1], alone, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("training", [False, True])
def test_no_voxel_at_all_gives_zeros(training: bool) -> None:
    network = SparseEncoder(**TINY).train(training)
    empty = SparseTensor(torch.zeros(0, 4), torch.zeros(0, 4).int(), batch_size=2)
    view = network(empty)
    assert view.shape == (2, 12, 2, 2)
    assert not view.any()
    state = network.state_dict()
    assert all(value.isfinite().all() for value in state.values())


def test_bfloat16_autocast_is_near_single_precision() -> None:
    torch.manual_seed(0)
    network = SparseEncoder(**TINY).eval()
    with torch.no_grad():
        exact = network(voxels())
        with torch.autocast("cpu", torch.bfloat16):
            rounded = network(voxels())
    assert rounded.dtype == torch.bfloat16
    torch.testing.assert_close(rounded.float(), exact, rtol=0, atol=0.05 * float(exact.abs().max()))


@pytest.mark.gpu
def test_a_gpu_gives_the_same_voxels_and_view() -> None:
    torch.manual_seed(0)
    cloud = torch.rand(3000, 4) * torch.tensor([16, 12, 40, 1.0])
    voxelize = MeanVoxelization((1, 1, 1), (0, 0, 0, 16, 12, 40), max_points=3, max_voxels=1500)
    network = SparseEncoder(**TINY).eval()
    x, there = voxelize([cloud, cloud[:5]]), voxelize([cloud.cuda(), cloud[:5].cuda()])
    assert torch.equal(there.coords.cpu(), x.coords)
    with torch.no_grad():
        view, on_gpu = network(x), copy.deepcopy(network).cuda()(there)
    torch.testing.assert_close(there.feats.cpu(), x.feats)
    torch.testing.assert_close(on_gpu.cpu(), view, rtol=1e-3, atol=1e-3 * float(view.abs().max()))


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (voxels(channels=3), "4 channels"),
        (SparseTensor(torch.zeros(1, 4), torch.zeros(1, 4).int(), stride=2), "stride"),
        (
            SparseTensor(torch.zeros(1, 4), torch.zeros(1, 4).int(), spatial_shape=(16, 12, 42)),
            "must lie in sparse_shape",
        ),
        (SparseTensor(torch.zeros(1, 4), torch.tensor([[0, 16, 0, 0]]).int()), "spatial_shape"),
    ],
)
def test_bad_voxels(x: SparseTensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SparseEncoder(**TINY)(x)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"block_type": "bottleneck"}, "block_type"),
        ({"encoder_paddings": ((0, 1), (0, 1), (0, 1))}, "one padding for each"),
        ({"encoder_channels": ((8, 8), (8, 12), (12, 12), (12,))}, "residual block"),
        ({"sparse_shape": (16, 12, 8)}, "leave a voxel at the last stage"),
    ],
)
def test_bad_arguments(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SparseEncoder(**{**TINY, **changes})
