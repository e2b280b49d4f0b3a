"""Batch norm as on a GPU, against the formula in float64 and the CPU operator."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from pointlib.ops._cpu import norm as cpu
from pointlib.ops._cuda import norm as cuda
from pointlib.ops.norm import batch_norm
from tests.cuda_emulator.operators import ANY_ARCHITECTURE, OnDevice
from tests.tolerances import assert_close

pytestmark = ANY_ARCHITECTURE


def scene(rows: int, channels: int, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """Features with means of several standard deviations, scale, shift."""
    feats = torch.randn(rows, channels) * (torch.rand(channels) + 0.5) + torch.randn(channels) * 3
    return feats.to(dtype), torch.rand(channels) + 0.5, torch.randn(channels)


def check(feats: Tensor, weight: Tensor | None, bias: Tensor | None) -> None:
    out, mean, var = cuda.batch_norm(feats, weight, bias, 1e-5, None, 1.0)
    x = feats.double()
    assert_close(mean, x.mean(0))
    assert_close(var, x.var(0, correction=0))
    expected = (x - x.mean(0)) / (x.var(0, correction=0) + 1e-5).sqrt()
    expected = expected * (1 if weight is None else weight) + (0 if bias is None else bias)
    assert_close(out, expected)


@pytest.mark.parametrize("channels", [1, 3, 4, 17, 64, 257])
@pytest.mark.parametrize("rows", [1, 255, 256, 257])
def test_sizes(rows: int, channels: int) -> None:
    check(*scene(rows, channels, torch.float32))


@pytest.mark.parametrize(
    ("dtype", "channels"),
    [(torch.float64, 6), (torch.float16, 24), (torch.bfloat16, 7)],
)
def test_dtypes(dtype: torch.dtype, channels: int) -> None:
    feats, weight, bias = scene(300, channels, dtype)
    check(feats, weight, None)
    check(feats, None, bias)


def test_more_rows_than_the_blocks_take_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda, "MAX_BLOCKS", 3)
    check(*scene(2501, 4, torch.float32))


def test_a_large_mean_costs_no_accuracy() -> None:
    """The sum of squares less the square of the sum would leave nothing of this variance."""
    feats = torch.randn(3000, 4) + 3e3
    feats[0] = -1e3  # nor would squares about the first row
    _, mean, var = cuda.batch_norm(feats, None, None, 0.0, None, 1.0)
    x = feats.double()
    torch.testing.assert_close(mean.double(), x.mean(0), rtol=1e-6, atol=0)
    torch.testing.assert_close(var.double(), x.var(0, correction=0), rtol=1e-5, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.float64])
@pytest.mark.parametrize("slope", [0.0, 0.2, 1.0])
@pytest.mark.parametrize("added", [False, True], ids=["alone", "residual"])
def test_adds_activates_and_differentiates(slope: float, added: bool, dtype: torch.dtype) -> None:
    channels = 24
    feats, weight, bias = scene(600, channels, dtype)
    residual = torch.randn(600, channels).to(dtype) if added else None
    out, mean, var = cuda.batch_norm(feats, weight, bias, 1e-5, residual, slope)
    wide = [t.double().requires_grad_() for t in (feats, weight, bias, residual) if t is not None]
    normal = nn.functional.batch_norm(wide[0], None, None, wide[1], wide[2], True, eps=1e-5)
    expected = nn.functional.leaky_relu(normal + (wide[3] if added else 0), slope)
    assert_close(out, expected)

    grad, activated = torch.randn(600, channels).to(dtype), None if slope == 1 else out
    ours = cuda.batch_norm_backward(grad, activated, slope, feats, weight, mean, var, 1e-5, added)
    expected.backward(grad.double())
    assert ours[3].numel() == (feats.numel() if added else 0)
    if dtype == torch.float16 and slope != 1:  # the rounding of `out` decides what is passed back
        rounded = (grad, activated, slope, feats, weight, mean, var, 1e-5, added)
        assert_gradients_close(ours, cpu.batch_norm_backward(*rounded), dtype)
        return
    grads = [t.grad for t in wide if t.grad is not None]
    assert_gradients_close(ours[: len(grads)], tuple(grads), dtype)


def assert_gradients_close(
    ours: tuple[Tensor, ...], oracles: tuple[Tensor, ...], dtype: torch.dtype
) -> None:
    """Cancellation leaves the features' gradient, the first, with the error of terms larger than itself."""
    rtol = 1e-2 if dtype.itemsize < 4 else 1e-4
    torch.testing.assert_close(ours[0].double(), oracles[0].double(), rtol=rtol, atol=2e-3)
    for mine, oracle in zip(ours[1:], oracles[1:], strict=True):
        assert_close(mine, oracle)


@pytest.mark.parametrize("channels", [1, 17, 257])
@pytest.mark.parametrize("rows", [2, 255, 256, 257])
def test_sizes_of_the_gradient(rows: int, channels: int) -> None:
    feats, weight, _ = scene(rows, channels, torch.float32)
    inputs = (feats, weight, feats.mean(0), feats.var(0, correction=0), torch.randn(rows, channels))
    x, scale, mean, var, grad = inputs
    ours = cuda.batch_norm_backward(grad, None, 1.0, x, scale, mean, var, 1e-5, False)
    x, scale, mean, var, grad = (t.double() for t in inputs)
    oracles = cpu.batch_norm_backward(grad, None, 1.0, x, scale, mean, var, 1e-5, False)
    assert_gradients_close(ours, oracles, torch.float32)


def test_takes_what_is_not_contiguous_or_not_aligned() -> None:
    transposed, shifted = torch.randn(8, 60).t(), torch.randn(60 * 8 + 1)[1:].view(60, 8)
    assert shifted.data_ptr() % 16
    check(transposed, None, None)
    check(shifted, None, None)


def test_without_rows_or_channels() -> None:
    out, mean, _ = cuda.batch_norm(torch.empty(5, 0), None, None, 1e-5, None, 1.0)
    assert (out.shape, mean.shape) == ((5, 0), (0,))
    none, ones = torch.empty(0, 3), torch.ones(3)
    grads = cuda.batch_norm_backward(none, None, 1.0, none, ones, ones, ones, 1e-5, False)
    assert grads[0].shape == (0, 3)
    assert grads[1].tolist() == grads[2].tolist() == [0, 0, 0]


def test_the_public_function_and_its_gradient() -> None:
    feats, weight, bias = scene(70, 4, torch.float32)
    functions = {name: getattr(cuda, name) for name in ("batch_norm", "batch_norm_backward")}
    results = []
    for functions_used in (functions, None):
        inputs = [t.clone().requires_grad_() for t in (feats, weight, bias, feats)]
        x, scale, shift, residual = inputs
        if functions_used is None:
            out = batch_norm(x, scale, shift, 1e-5, residual, 0.1).feats
            grads = torch.autograd.grad(out.square().sum(), inputs)
        else:
            with OnDevice(**functions_used) as mode:
                out = batch_norm(x, scale, shift, 1e-5, residual, 0.1).feats
                grads = torch.autograd.grad(out.square().sum(), inputs)
            assert mode.calls == {"batch_norm": 1, "batch_norm_backward": 1}
        results.append((out, *grads))
    (out, *ours), (expected, *theirs) = results
    assert_close(out, expected)
    assert_gradients_close(tuple(ours), tuple(theirs), torch.float32)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16])
@pytest.mark.parametrize("given", [False, True])
def test_folding(dtype: torch.dtype, given: bool) -> None:
    mean, weight, bias, earlier = torch.randn(4, 300).to(dtype)
    var = (torch.rand(300) + 0.1).to(dtype)
    optional = (weight, bias, 1e-5, earlier) if given else (None, None, 1e-5, None)
    scale, shift = cuda.fold_batch_norm(mean, var, *optional)
    x = torch.randn(300).double()
    y = (x + (earlier.double() if given else 0) - mean.double()) / (var.double() + 1e-5).sqrt()
    if given:
        y = y * weight.double() + bias.double()
    assert scale.dtype == shift.dtype == dtype
    assert_close(scale.double() * x + shift.double(), y, dtype)
