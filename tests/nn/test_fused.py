"""conv_norm_act: one operator in inference and the modules in training give the same answer."""

from __future__ import annotations

import copy
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import nn

from pointlib.models import create_model
from pointlib.nn import BatchNorm, Conv3d, LeakyReLU, ReLU, SiLU, cat, conv_norm_act
from pointlib.nn import fused as module
from pointlib.tensor import SparseTensor
from tests import oracles
from tests.tolerances import assert_close


def scan(channels: int, count: int = 200, seed: int = 0) -> SparseTensor:
    coords = oracles.random_coords(np.random.default_rng(seed), count, extent=12, batch=2)
    generator = torch.Generator().manual_seed(seed)
    return SparseTensor(torch.randn(len(coords), channels, generator=generator), coords)


def trained_norm(channels: int, **kwargs: bool) -> BatchNorm:
    """A batch norm with statistics and parameters that are not those it starts with."""
    norm = BatchNorm(channels, **kwargs)
    for tensor in (*norm.parameters(), norm.running_mean, norm.running_var):
        nn.init.uniform_(tensor, 0.5, 2.0)
    return norm.eval()


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """One entry for every fused convolution."""
    seen: list[int] = []
    real: Callable[..., torch.Tensor] = module.fused_sparse_conv

    def counting(*args: object, **kwargs: object) -> torch.Tensor:
        seen.append(1)
        return real(*args, **kwargs)

    monkeypatch.setattr(module, "fused_sparse_conv", counting)
    return seen


@pytest.mark.parametrize("act", [None, ReLU(inplace=True), LeakyReLU(0.2)], ids=str)
@pytest.mark.parametrize("kernel_size", [1, 3])
@pytest.mark.parametrize("joined", [False, True], ids=["alone", "skip and residual"])
def test_equals_the_modules(
    act: nn.Module | None, kernel_size: int, joined: bool, calls: list[int]
) -> None:
    x = scan(6)
    skip = x.with_feats(torch.randn(len(x), 5)) if joined else None
    conv = Conv3d(11 if joined else 6, 9, kernel_size, bias=True)
    norm, residual = trained_norm(9), torch.randn(len(x), 9) if joined else None
    expected = conv_norm_act(x, conv, norm, act, skip, residual)  # gradients are wanted
    assert not calls and expected.feats.requires_grad
    with torch.no_grad():
        out = conv_norm_act(x, conv, norm, act, skip, residual)
    assert len(calls) == 1
    assert out.sites is expected.sites
    assert_close(out.feats, expected.feats.double())


def test_strided_transposed_and_without_parameters(calls: list[int]) -> None:
    x = scan(4)
    down, up = Conv3d(4, 8, 2, 2), Conv3d(8, 4, 2, 2, transposed=True)
    norms = trained_norm(8, affine=False), trained_norm(4)
    expected = norms[1](up(norms[0](down(x))))
    with torch.inference_mode():
        out = conv_norm_act(conv_norm_act(x, down, norms[0]), up, norms[1])
    assert len(calls) == 2
    assert out.stride == x.stride
    assert_close(out.feats, expected.feats.double())


@pytest.mark.parametrize("act", [None, ReLU(inplace=True), LeakyReLU(0.2)], ids=str)
@pytest.mark.parametrize("joined", [False, True], ids=["alone", "skip and residual"])
def test_training_equals_the_modules(act: nn.Module | None, joined: bool) -> None:
    x = scan(6).to(torch.float64)
    skip = x.with_feats(torch.randn(len(x), 5).double()) if joined else None
    conv, norm = Conv3d(11 if joined else 6, 9, 3).double(), BatchNorm(9).double()
    twin = copy.deepcopy(norm)
    residual = torch.randn(len(x), 9).double() if joined else None
    out = conv_norm_act(x, conv, norm, act, skip, residual).feats
    expected = twin(conv(x if skip is None else cat([x, skip]))).feats
    expected = expected if residual is None else expected + residual
    expected = expected if act is None else act(expected)
    torch.testing.assert_close(out, expected)
    upstream = torch.randn_like(out)
    grads = torch.autograd.grad(out, (*conv.parameters(), *norm.parameters()), upstream)
    wanted = torch.autograd.grad(expected, (*conv.parameters(), *twin.parameters()), upstream)
    torch.testing.assert_close(grads, wanted)
    torch.testing.assert_close(norm.state_dict(), twin.state_dict())


def test_modules_are_called_where_something_must_see_them(calls: list[int]) -> None:
    x, conv, norm = scan(4), Conv3d(4, 6, 3), trained_norm(6)
    seen = []
    with torch.no_grad():
        conv_norm_act(x, conv, norm.train(), ReLU())
        norm.eval()
        conv_norm_act(x, conv, norm, SiLU())
        conv_norm_act(x, Conv3d(4, 6, 3, groups=2), norm)
        hook = norm.register_forward_hook(lambda *args: seen.append(1))
        conv_norm_act(x, conv, norm)
        hook.remove()
        assert not calls and len(seen) == 1
        conv_norm_act(x, conv, norm)
        assert len(calls) == 1


def test_refuses_what_the_modules_refuse() -> None:
    x, conv, norm = scan(4), Conv3d(5, 6, 3), trained_norm(6)
    with torch.no_grad():
        with pytest.raises(ValueError, match="x must have 5 channels, got 4"):
            conv_norm_act(x, conv, norm)
        with pytest.raises(TypeError, match="x must have the parameters' dtype"):
            conv_norm_act(scan(5).to(torch.float64), conv, norm)
        with pytest.raises(ValueError, match="tensors must be on the same voxels"):
            conv_norm_act(scan(3), conv, norm, skip=scan(2, count=100))


@pytest.mark.parametrize("name", ["minkunet", "spvcnn"])
@pytest.mark.parametrize("autocast", [False, True], ids=["float32", "bfloat16 autocast"])
def test_networks_answer_alike_with_and_without_gradients(name: str, autocast: bool) -> None:
    torch.manual_seed(0)
    model = create_model(name, cr=0.25)
    x = scan(4, 600)
    model(x)  # statistics
    model.eval()
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        expected = model(x).detach().float()
        with torch.inference_mode():
            out = model(x).float()
    if autocast:  # rounded at other places: between convolution and activation nothing is
        assert (out - expected).norm() < 0.05 * expected.norm()
    else:
        torch.testing.assert_close(out, expected, rtol=1e-4, atol=1e-5)


def test_a_frozen_batch_norm_folds_its_parameters_once() -> None:
    x, conv, norm, act = scan(6), Conv3d(6, 9), trained_norm(9), ReLU()
    with torch.inference_mode():
        expected = conv_norm_act(x, conv, norm, act).feats
        module.freeze_batch_norms(norm)
        assert torch.equal(conv_norm_act(x, conv, norm, act).feats, expected)
        norm.running_mean.fill_(9)
        assert torch.equal(conv_norm_act(x, conv, norm, act).feats, expected)
        module.freeze_batch_norms(norm)
        assert not torch.equal(conv_norm_act(x, conv, norm, act).feats, expected)


def test_a_frozen_batch_norm_serves_several_convolutions() -> None:
    x, norm = scan(6), trained_norm(9)
    convs = [Conv3d(6, 9, bias=True) for _ in range(2)]
    with torch.inference_mode():
        expected = [conv_norm_act(x, conv, norm).feats for conv in convs]
        module.freeze_batch_norms(norm)
        for _ in range(2):
            for conv, wanted in zip(convs, expected, strict=True):
                assert torch.equal(conv_norm_act(x, conv, norm).feats, wanted)
