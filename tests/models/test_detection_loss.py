"""Losses of heads: definitions written out in float64, gradients, precision, unknown targets."""

from __future__ import annotations

import math

import pytest
import torch

from pointlib.models.detection_loss import (
    gaussian_focal_loss,
    sigmoid_focal_loss,
    weighted_l1_loss,
)


def sigmoid(value: float) -> float:
    return 1 / (1 + math.exp(-value))


def some_heatmap() -> torch.Tensor:
    heatmap = torch.rand(2, 3, 4, 5, dtype=torch.float64) * 0.9
    heatmap[0, 1, 2, 3] = heatmap[1, 2, 0, 0] = 1.0
    return heatmap


def test_gaussian_focal_loss_is_its_definition() -> None:
    logits, heatmap = torch.randn(2, 3, 4, 5, dtype=torch.float64) * 5, some_heatmap()
    total = 0.0
    for logit, target in zip(logits.flatten().tolist(), heatmap.flatten().tolist(), strict=True):
        p = min(max(sigmoid(logit), 1e-4), 1 - 1e-4)
        if target == 1:
            total -= (1 - p) ** 2 * math.log(p)
        else:
            total -= (1 - target) ** 4 * p**2 * math.log(1 - p)
    assert float(gaussian_focal_loss(logits, heatmap)) == pytest.approx(total / 2, rel=1e-12)
    no_centre = torch.zeros_like(heatmap)
    assert float(gaussian_focal_loss(logits - 50, no_centre)) == pytest.approx(
        heatmap.numel() * 1e-8 * -math.log(1 - 1e-4), rel=1e-6
    )


@pytest.mark.parametrize("alpha", [0.25, None])
def test_sigmoid_focal_loss_is_its_definition(alpha: float | None) -> None:
    logits = torch.randn(20, dtype=torch.float64) * 3
    targets = torch.arange(20) % 3 == 0
    loss = sigmoid_focal_loss(logits, targets, gamma=2.0, alpha=alpha)
    for logit, target, value in zip(logits.tolist(), targets.tolist(), loss.tolist(), strict=True):
        right = sigmoid(logit) if target else 1 - sigmoid(logit)
        weight = 1.0 if alpha is None else (alpha if target else 1 - alpha)
        assert value == pytest.approx(-weight * (1 - right) ** 2 * math.log(right), rel=1e-9)


def test_l1_loss_ignores_unknown_targets() -> None:
    prediction = torch.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]], requires_grad=True)
    target = torch.tensor([[0.0, torch.nan, 5.0], [4.5, 5.0, torch.nan]])
    loss = weighted_l1_loss(prediction, target, torch.tensor([1.0, 10.0, 0.5]))
    assert loss.item() == 1.0 + 1.0 + 0.5
    (gradient,) = torch.autograd.grad(loss, prediction)
    assert gradient.tolist() == [[1.0, 0.0, -0.5], [-1.0, 0.0, 0.0]]


def test_gradients() -> None:
    logits = torch.randn(2, 3, 4, 5, dtype=torch.float64, requires_grad=True)
    heatmap = some_heatmap()
    assert torch.autograd.gradcheck(lambda x: gaussian_focal_loss(x, heatmap), logits)
    assert torch.autograd.gradcheck(lambda x: sigmoid_focal_loss(x, heatmap.round()), logits)
    weights = torch.rand(5, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda x: weighted_l1_loss(x, heatmap, weights), logits)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_losses_compute_in_float32(dtype: torch.dtype) -> None:
    logits, heatmap = (torch.randn(2, 3, 4, 5) * 8).to(dtype), some_heatmap().float()
    with torch.autocast("cpu", torch.bfloat16):
        halves = [
            gaussian_focal_loss(logits, heatmap),
            sigmoid_focal_loss(logits, heatmap.round()),
            weighted_l1_loss(logits, heatmap, torch.ones(5)),
        ]
    wholes = [
        gaussian_focal_loss(logits.float(), heatmap),
        sigmoid_focal_loss(logits.float(), heatmap.round()),
        weighted_l1_loss(logits.float(), heatmap, torch.ones(5)),
    ]
    for half, whole in zip(halves, wholes, strict=True):
        assert half.dtype == torch.float32
        assert torch.equal(half, whole)
