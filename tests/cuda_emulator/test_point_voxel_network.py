"""SPVCNN in training, every operator as on a GPU, against the same on the CPU."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import pointlib
from pointlib.ops._cuda import (
    coords,
    kernel_map,
    level_maps,
    norm,
    scatter,
    sparse_conv,
    voxelize,
)
from pointlib.tensor import SparseTensor
from tests.cuda_emulator.operators import ANY_ARCHITECTURE, OnDevice

pytestmark = [*ANY_ARCHITECTURE, pytest.mark.slow]


def functions() -> dict[str, object]:
    modules = {
        coords: ("unique_coords", "lookup_coords"),
        kernel_map: ("conv_sites", "kernel_map"),
        level_maps: ("level_maps",),
        norm: ("batch_norm", "batch_norm_backward"),
        scatter: ("scatter_sum", "scatter_mean", "gather_rows"),
        sparse_conv: ("sparse_conv", "sparse_conv_grad_weight"),
        voxelize: ("trilinear_map", "devoxelize", "devoxelize_transpose"),
    }
    return {name: getattr(module, name) for module, names in modules.items() for name in names}


def scan() -> SparseTensor:
    cells = torch.unique(torch.randint(0, 48, (500, 4)) % torch.tensor([2, 48, 48, 48]), dim=0)
    return SparseTensor(torch.randn(len(cells), 4).double(), cells.int())


def step(model: nn.Module, x: SparseTensor) -> tuple[Tensor, dict[str, Tensor]]:
    model.zero_grad()
    out = model(SparseTensor(x.feats, x.coords))
    out.square().mean().backward()
    grads = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    return out.detach(), grads


def test_spvcnn_trains_as_on_the_cpu() -> None:
    """In float64, for rounding errors grow a thousandfold where a batch norm has few rows."""
    model, x = pointlib.create_model("spvcnn", cr=0.25, num_classes=5).double(), scan()
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    expected, expected_grads = step(model, x)
    with OnDevice(**functions()) as mode:  # type: ignore[arg-type]
        out, grads = step(model, x)
    assert mode.calls["trilinear_map"] and mode.calls["sparse_conv_grad_weight"]
    torch.testing.assert_close(out, expected, rtol=1e-6, atol=1e-8)
    assert grads.keys() == expected_grads.keys()
    for name, grad in grads.items():
        torch.testing.assert_close(grad, expected_grads[name], rtol=1e-6, atol=1e-6)
