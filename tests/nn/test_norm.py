"""Norms against torch's on each batch entry; synchronised batch norm against one process with all rows."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.autograd import gradcheck

from pointlib.nn.norm import (
    BatchNorm,
    GroupNorm,
    InstanceNorm,
    LayerNorm,
    SyncBatchNorm,
    convert_sync_batchnorm,
)
from pointlib.tensor import SparseTensor
from tests import oracles
from tests.tolerances import assert_close


def voxels(channels: int = 6, dtype: torch.dtype = torch.float64) -> SparseTensor:
    """Batch entries 0 and 2 hold voxels in mixed order; 1 and 3 are empty."""
    coords = oracles.random_coords(np.random.default_rng(0), 60, 5, batch=2)
    coords[:, 0] *= 2
    feats = 5 + 3 * torch.randn(len(coords), channels, dtype=torch.float64).to(dtype)
    return SparseTensor(feats.requires_grad_(), coords, batch_size=4)


def entry_by_entry(norm: nn.Module, x: SparseTensor) -> Tensor:
    """Torch's norm on one batch entry after the other, as (1, C, n)."""
    out = torch.empty_like(x.feats, dtype=torch.float64)
    for entry in x.coords[:, 0].unique():
        rows = x.coords[:, 0] == entry
        out[rows] = norm(x.feats[rows].double().t()[None])[0].t()
    return out


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("affine", [True, False])
def test_group_and_instance_norm_per_entry(affine: bool, dtype: torch.dtype) -> None:
    x = voxels(dtype=dtype)
    for ours, torchs in (
        (GroupNorm(3, 6, affine=affine), nn.GroupNorm(3, 6, affine=affine)),
        (InstanceNorm(6, affine=affine), nn.InstanceNorm1d(6, affine=affine)),
    ):
        for parameter in torchs.parameters():
            nn.init.normal_(parameter)
        ours.load_state_dict(torchs.state_dict())
        out = ours(x)
        assert out.dtype == dtype and out.sites is x.sites
        assert_close(out.feats, entry_by_entry(torchs.double(), x))


def test_group_norm_gradients() -> None:
    x = voxels(4)
    norm = GroupNorm(2, 4).double()
    assert gradcheck(lambda f: norm(x.with_feats(f)).feats, x.feats)


def test_group_norm_reads_no_value_on_the_host() -> None:
    x, norm = voxels(4, torch.float32), GroupNorm(2, 4)
    torch._dynamo.reset()
    compiled = torch.compile(  # a .item() would break the graph
        lambda f: norm(x.with_feats(f)).feats, fullgraph=True, backend="aot_eager"
    )
    assert_close(compiled(x.feats), norm(x).feats)


def test_group_norm_of_nothing_and_of_one_voxel() -> None:
    empty = SparseTensor(torch.empty(0, 4), torch.empty(0, 4).int(), batch_size=2)
    assert GroupNorm(2, 4)(empty).feats.shape == (0, 4)
    one = SparseTensor(torch.tensor([[1.0, 3.0]]), torch.zeros(1, 4).int())
    assert_close(GroupNorm(1, 2, eps=0)(one).feats, torch.tensor([[-1.0, 1.0]]))
    with pytest.raises(ValueError, match="InstanceNorm: x must have 4 channels, got 2"):
        InstanceNorm(4)(one)


def test_layer_norm() -> None:
    x = voxels(dtype=torch.float32)
    assert torch.equal(LayerNorm(6)(x).feats, nn.LayerNorm(6)(x.feats))


def test_batch_norm_is_torchs() -> None:
    x = voxels(dtype=torch.float32)
    ours, torchs = BatchNorm(6, momentum=0.3), nn.BatchNorm1d(6, momentum=0.3)
    assert ours.state_dict().keys() == torchs.state_dict().keys()
    assert_close(ours(x).feats, torchs(x.feats))
    assert_close(ours.running_mean, torchs.running_mean)
    assert_close(ours.running_var, torchs.running_var)
    ours.load_state_dict(torchs.state_dict())
    assert torch.equal(ours.eval()(x.feats), torchs.eval()(x.feats))


def test_batch_norm_of_no_row_and_of_one() -> None:
    norm = BatchNorm(2)
    assert norm(torch.empty(0, 2)).shape == (0, 2)
    assert norm.num_batches_tracked == 0 and norm.running_mean.tolist() == [0, 0]
    with pytest.raises(ValueError, match="more than 1 row in training, got 1"):
        norm(torch.ones(1, 2))
    assert norm.eval()(torch.ones(1, 2)).shape == (1, 2)


def test_conversion_keeps_parameters_and_finds_every_batch_norm() -> None:
    net = nn.Sequential(BatchNorm(3), nn.Sequential(nn.BatchNorm1d(4), nn.ReLU())).eval()
    parameters, names = list(net.parameters()), net.state_dict().keys()
    converted = convert_sync_batchnorm(net)
    assert isinstance(converted[0], SyncBatchNorm) and isinstance(converted[1][0], SyncBatchNorm)
    assert all(a is b for a, b in zip(converted.parameters(), parameters, strict=True))
    assert converted.state_dict().keys() == names and not converted[0].training
    assert convert_sync_batchnorm(converted)[0] is converted[0]


SPLIT = (0, 7, 7, 20)
"""Rows of three processes: 7, none and 13."""


def train_step(norm: nn.Module, feats: Tensor, target: Tensor) -> dict[str, Tensor]:
    """One forward and backward; everything that must agree between the processes and the single one."""
    feats = feats.clone().requires_grad_()
    out = norm(feats)
    (out * target).sum().backward()
    assert feats.grad is not None
    return {"out": out.detach(), "grad": feats.grad, **norm.state_dict()}


def run_process(rank: int, folder: str, feats: Tensor, target: Tensor) -> None:
    torch.set_num_threads(1)  # a forked process must not use its parent's thread pool
    world = len(SPLIT) - 1
    dist.init_process_group("gloo", f"file://{folder}/rendezvous", rank=rank, world_size=world)
    norm = convert_sync_batchnorm(BatchNorm(feats.shape[1]).double())
    rows = slice(SPLIT[rank], SPLIT[rank + 1])
    result = train_step(norm, feats[rows], target[rows])
    result["weight.grad"] = norm.weight.grad
    torch.save(result, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def test_synchronised_statistics_equal_one_process(tmp_path: Path) -> None:
    feats, target = torch.randn(2, 20, 3, dtype=torch.float64)
    single = BatchNorm(3).double()
    expected = train_step(single, feats, target)
    expected["weight.grad"] = single.weight.grad
    torch.multiprocessing.start_processes(
        run_process, (str(tmp_path), feats, target), nprocs=len(SPLIT) - 1, start_method="fork"
    )
    results = [torch.load(tmp_path / f"{rank}.pt") for rank in range(len(SPLIT) - 1)]
    for name in ("out", "grad"):
        assert_close(torch.cat([r[name] for r in results]), expected[name])
    assert_close(sum(r["weight.grad"] for r in results), expected["weight.grad"])
    for result in results:
        assert_close(result["running_mean"], expected["running_mean"])
        assert_close(result["running_var"], expected["running_var"])
        assert result["num_batches_tracked"] == 1
