"""Batch norm in training against float64 formulas and torch's own, forward, backward and twice backward."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import gradcheck, gradgradcheck
from torch.library import opcheck

from pointlib.ops._cpu import engine
from pointlib.ops.norm import batch_norm, fold_batch_norm
from tests.tolerances import assert_close

OPS = torch.ops.pointlib
DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]


def scene(rows: int, channels: int, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """Features with means of several standard deviations, scale, shift."""
    feats = torch.randn(rows, channels) * (torch.rand(channels) + 0.5) + torch.randn(channels) * 3
    return feats.to(dtype).requires_grad_(), torch.rand(channels) + 0.5, torch.randn(channels)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("rows", "channels"), [(2, 1), (600, 19), (5000, 32)])
def test_is_the_formula(rows: int, channels: int, dtype: torch.dtype) -> None:
    feats, weight, bias = scene(rows, channels, dtype)
    weight, bias = weight.requires_grad_(), bias.requires_grad_()
    out, mean, var = batch_norm(feats, weight, bias)
    upstream = torch.randn(rows, channels).to(dtype)
    grads = torch.autograd.grad(out, (feats, weight, bias), upstream)
    wide = [t.detach().double().requires_grad_() for t in (feats, weight, bias)]
    expected_mean, expected_var = wide[0].mean(0), wide[0].var(0, correction=0)
    expected = (wide[0] - expected_mean) / (expected_var + 1e-5).sqrt() * wide[1] + wide[2]
    assert (out.dtype, grads[0].dtype, grads[1].dtype) == (dtype, dtype, torch.float32)
    assert not mean.requires_grad and not var.requires_grad
    assert_close(mean, expected_mean)
    assert_close(var, expected_var)
    assert_close(out, expected)
    for ours, theirs in zip(
        grads, torch.autograd.grad(expected, wide, upstream.double()), strict=True
    ):
        # Cancellation leaves the features' gradient with the error of terms larger than itself.
        rtol = 1e-2 if dtype.itemsize < 4 else 1e-4
        torch.testing.assert_close(ours.double(), theirs, rtol=rtol, atol=2e-3)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("slope", [0.0, 0.2, 1.0])
@pytest.mark.parametrize("added", [False, True], ids=["alone", "residual"])
def test_adds_and_activates(slope: float, added: bool, dtype: torch.dtype) -> None:
    feats, weight, bias = scene(700, 21, dtype)
    residual = torch.randn(700, 21).to(dtype).requires_grad_() if added else None
    inputs = [t for t in (feats, residual) if t is not None]
    out = batch_norm(feats, weight, bias, 1e-5, residual, slope).feats
    upstream = torch.randn(700, 21).to(dtype)
    grads = torch.autograd.grad(out, inputs, upstream)
    wide = [t.detach().double().requires_grad_() for t in inputs]
    normal = nn.functional.batch_norm(
        wide[0], None, None, weight.double(), bias.double(), training=True
    )
    expected = nn.functional.leaky_relu(normal + wide[1] if added else normal, slope)
    assert_close(out, expected)
    decided = (out.detach().double() - expected).abs() < expected.abs()  # not across the kink
    for ours, theirs in zip(
        grads, torch.autograd.grad(expected, wide, upstream.double()), strict=True
    ):
        assert ours.dtype == dtype
        error = (ours.double() - theirs)[decided]
        assert float(error.norm()) <= (2e-2 if dtype.itemsize < 4 else 1e-4) * float(theirs.norm())


def test_has_no_parameters_when_given_none() -> None:
    feats, _, _ = scene(50, 4, torch.float32)
    expected = nn.functional.batch_norm(feats, None, None, training=True)
    assert_close(batch_norm(feats).feats, expected)


def test_gradients() -> None:
    feats, weight, bias = (t.detach().double().requires_grad_() for t in scene(9, 3, torch.float64))
    assert gradcheck(lambda *t: batch_norm(*t).feats, (feats, weight, bias))
    assert gradgradcheck(lambda *t: batch_norm(*t).feats, (feats, weight, bias))
    residual = torch.randn(9, 3, dtype=torch.float64, requires_grad=True)
    inputs = (feats, weight, bias, residual)
    assert gradcheck(lambda a, b, c, d: batch_norm(a, b, c, 1e-5, d, 0.3).feats, inputs)
    assert gradgradcheck(lambda a, b, c, d: batch_norm(a, b, c, 1e-5, d, 0.3).feats, inputs)


def test_opcheck() -> None:
    feats, weight, bias = scene(9, 3, torch.float32)
    grad, mean = torch.randn(9, 3), torch.zeros(3)
    opcheck(OPS.batch_norm, (feats, weight, bias, 1e-5, None, 1.0))
    opcheck(OPS.batch_norm, (feats, weight, bias, 1e-5, grad, 0.0))
    rest = (feats.detach(), weight, mean, mean + 1, 1e-5)
    opcheck(OPS.batch_norm_backward, (grad, None, 1.0, *rest, False))
    opcheck(OPS.batch_norm_backward, (grad, grad, 0.0, *rest, True))


@pytest.mark.skipif(engine.LIBRARY is None, reason="the CPU engine is not compiled")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_same_bits_for_any_number_of_threads(dtype: torch.dtype) -> None:
    feats, weight, bias = scene(20_000, 19, dtype)
    upstream, results, threads = torch.randn(20_000, 19).to(dtype), [], torch.get_num_threads()
    for count in (1, 2, 3, 8):
        torch.set_num_threads(count)
        out = batch_norm(feats, weight, bias)
        results.append((*out, *torch.autograd.grad(out.feats, feats, upstream)))
    torch.set_num_threads(threads)
    for again in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(again, results[0], strict=True))


@pytest.mark.skipif(engine.LIBRARY is None, reason="the CPU engine is not compiled")
def test_statistics_of_many_rows_do_not_drift() -> None:
    feats = torch.rand(300_000, 2) + 100
    _, mean, var = batch_norm(feats)
    torch.testing.assert_close(mean.double(), feats.double().mean(0), rtol=1e-7, atol=0)
    expected = feats.double().var(0, correction=0)
    torch.testing.assert_close(var.double(), expected, rtol=1e-4, atol=0)


def test_refuses_what_does_not_fit() -> None:
    with pytest.raises(ValueError, match="feats must hold at least one row"):
        batch_norm(torch.empty(0, 2))
    with pytest.raises(ValueError, match=r"weight must be \(2,\), got \(3,\)"):
        batch_norm(torch.ones(4, 2), torch.ones(3))
    with pytest.raises(ValueError, match=r"residual must be \(4, 2\) torch.float32"):
        batch_norm(torch.ones(4, 2), residual=torch.ones(4, 3))
    with pytest.raises(ValueError, match="negative_slope must be at least 0"):
        batch_norm(torch.ones(4, 2), negative_slope=-1.0)
    with pytest.raises(TypeError, match="floating"):
        batch_norm(torch.ones(4, 2).long())


@pytest.mark.parametrize("given", [False, True])
def test_a_folded_batch_norm_is_the_batch_norm(given: bool) -> None:
    mean, weight, bias, earlier, x = torch.randn(5, 7, dtype=torch.float64)
    var = torch.rand(7, dtype=torch.float64) + 0.1
    optional = (weight, bias, 1e-5, earlier) if given else (None, None, 1e-5, None)
    scale, shift = fold_batch_norm(mean, var, *optional)
    moved = x + earlier if given else x
    expected = torch.nn.functional.batch_norm(moved[None], mean, var, *optional[:2])[0]
    assert_close(scale * x + shift, expected)
    torch.library.opcheck(
        torch.ops.pointlib.fold_batch_norm.default, (mean, var, *optional), test_utils="test_schema"
    )
