"""Losses of detection and map heads, as mmdetection defines them. They compute in float32, also under autocast."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def gaussian_focal_loss(logits: Tensor, heatmap: Tensor) -> Tensor:
    """Focal loss of a heatmap whose centres are surrounded by Gaussians (Law and Deng, CornerNet, 2018, equation 1).

    `-(1 - p)^2 log p` in centres, `-(1 - h)^4 p^2 log(1 - p)` elsewhere, summed and divided by the number of centres,
    at least 1. p is the sigmoid of the logits, kept in [1e-4, 1 - 1e-4] as published: no gradient beyond.

    Args:
        logits: (...) floating.
        heatmap: (...) in [0, 1]; 1 in centres.

    Returns:
        Scalar, float32 (float64 for float64 logits).
    """
    probability = _precise(logits).sigmoid().clamp(1e-4, 1 - 1e-4)
    heatmap = heatmap.to(probability.dtype)
    centre = heatmap == 1
    positive = -probability.log() * (1 - probability) ** 2
    negative = -(1 - probability).log() * probability**2 * (1 - heatmap) ** 4
    return torch.where(centre, positive, negative).sum() / centre.sum().clamp(min=1)


def sigmoid_focal_loss(
    logits: Tensor, targets: Tensor, gamma: float = 2.0, alpha: float | None = 0.25
) -> Tensor:
    """Focal loss of independent classes (Lin et al., Focal Loss for Dense Object Detection, 2017, equation 5).

    Args:
        logits: (...) floating.
        targets: (...) 0 or 1, or bool.
        gamma: How much less a prediction counts that is right already.
        alpha: Weight of ones; zeros have 1 - alpha. None: both have 1.

    Returns:
        (...) loss of each element, not reduced; float32 (float64 for float64 logits).
    """
    logits = _precise(logits)
    targets = targets.to(logits.dtype)
    probability = logits.sigmoid()
    wrong = probability * (1 - targets) + (1 - probability) * targets
    loss = F.binary_cross_entropy_with_logits(logits, targets, reduction="none") * wrong**gamma
    if alpha is None:
        return loss
    return loss * (alpha * targets + (1 - alpha) * (1 - targets))


def weighted_l1_loss(prediction: Tensor, target: Tensor, weights: Tensor) -> Tensor:
    """Sum of weighted absolute differences. An unknown target (NaN, as velocities may be) counts nothing.

    Args:
        prediction: (..., D) floating.
        target: (..., D); NaN where unknown.
        weights: (D,) weight of each column.

    Returns:
        Scalar, float32 (float64 for float64 predictions).
    """
    prediction = _precise(prediction)
    known = torch.where(target.isnan(), prediction.detach(), target.to(prediction.dtype))
    return ((prediction - known).abs() * weights.to(prediction)).sum()


def _precise(tensor: Tensor) -> Tensor:
    return tensor if tensor.dtype == torch.float64 else tensor.float()
