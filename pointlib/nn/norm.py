"""Normalisation of features: batch (also across processes), group, instance and layer norm.

Parameters and buffers are named as in torch.nn, so state dicts are interchangeable.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from pointlib.nn.activation import Features, map_feats
from pointlib.ops.norm import batch_norm
from pointlib.ops.scatter import accumulation_dtype, gather_rows, scatter_mean
from pointlib.tensor import SparseTensor


class BatchNorm(nn.BatchNorm1d):
    """torch.nn.BatchNorm1d over all rows of the batch, on a SparseTensor, a PointTensor or an (N, C) Tensor.

    In training no row at all changes nothing, and a single row is an error. For training in several processes use
    `convert_sync_batchnorm`: torch's own conversion gives modules that know neither SparseTensor nor the CPU.
    """

    def forward(self, x: Features) -> Features:
        """Normalise (N, num_features) features."""
        return map_feats(self._normalize, x)

    def _normalize(self, feats: Tensor) -> Tensor:
        if self.training and feats.shape[0] == 0:
            return feats
        if not self.training or feats.dim() != 2 or feats.shape[1] != self.num_features:
            return super().forward(feats)
        return self.train_step(feats, None, 1.0)

    def train_step(self, feats: Tensor, residual: Tensor | None, negative_slope: float) -> Tensor:
        """Normalise (N, C) with their own statistics, take note of these, add and activate; see ops.norm."""
        if feats.shape[0] == 1:
            raise ValueError(
                "BatchNorm: x must have more than 1 row in training, got 1. "
                "Train with larger batches, or normalise with GroupNorm or LayerNorm."
            )
        out, mean, var = batch_norm(
            feats, self.weight, self.bias, self.eps, residual, negative_slope
        )
        self._update_running(mean, var * (feats.shape[0] / (feats.shape[0] - 1)))
        return out

    def _update_running(self, mean: Tensor, unbiased_var: Tensor) -> None:
        if self.running_mean is None or self.running_var is None:
            return
        assert self.num_batches_tracked is not None
        self.num_batches_tracked.add_(1)
        weight: Any = self.momentum
        if weight is None:
            weight = 1 / self.num_batches_tracked.to(self.running_mean.dtype)
        self.running_mean.lerp_(mean.to(self.running_mean.dtype), weight)
        self.running_var.lerp_(unbiased_var.to(self.running_var.dtype), weight)


class SyncBatchNorm(BatchNorm):
    """BatchNorm whose training statistics cover all processes; on any device and backend, gloo included.

    Processes may hold different numbers of rows, or none: every row counts once. In evaluation, and without an
    initialised process group, it is BatchNorm. Takes dense (N, C, ...) maps too.

    Args:
        num_features, eps, momentum, affine, track_running_stats: As in torch.nn.BatchNorm1d.
        process_group: Processes to share with; None for all.
    """

    def __init__(
        self, *args: Any, process_group: dist.ProcessGroup | None = None, **kwargs: Any
    ) -> None:
        super().__init__(*args, **kwargs)
        self.process_group = process_group

    def _check_input_dim(self, input: Tensor) -> None:
        if input.dim() < 2:
            raise ValueError(f"SyncBatchNorm: x must be (N, C, ...), got {tuple(input.shape)}.")

    def _normalize(self, feats: Tensor) -> Tensor:
        distributed = dist.is_available() and dist.is_initialized()
        if not self.training or not distributed or dist.get_world_size(self.process_group) == 1:
            return super()._normalize(feats)
        self._check_input_dim(feats)
        axes = [0, *range(2, feats.dim())]
        shape = [1, -1] + [1] * (feats.dim() - 2)
        x = feats.to(accumulation_dtype(feats))
        rows = x.new_full((1,), feats.numel() // max(self.num_features, 1))
        sums = _AllReduceSum.apply(torch.cat([x.sum(axes), rows]), self.process_group)
        count = sums[-1].detach().clamp(min=1)
        mean = sums[:-1] / count
        centred = x - mean.view(shape)
        var = _AllReduceSum.apply(centred.square().sum(axes), self.process_group) / count
        self._update_running(mean.detach(), var.detach() * count / (count - 1).clamp(min=1))
        out = centred * (var + self.eps).rsqrt().view(shape)
        if self.affine:
            out = out * self.weight.view(shape) + self.bias.view(shape)
        return out.to(feats.dtype)


class _AllReduceSum(torch.autograd.Function):
    """Sum over processes; so is its gradient."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor, group: dist.ProcessGroup | None) -> Tensor:
        ctx.group = group
        total = tensor.detach().clone()
        dist.all_reduce(total, group=group)
        return total

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        return _AllReduceSum.apply(grad.contiguous(), ctx.group), None


def convert_sync_batchnorm(
    module: nn.Module, process_group: dist.ProcessGroup | None = None
) -> nn.Module:
    """Replace every batch norm, ours and torch's, by a SyncBatchNorm that holds the same parameters and buffers.

    Args:
        module: A network; its children are replaced in place.
        process_group: Processes to share statistics with; None for all.

    Returns:
        The network, or the replacement if the module is itself a batch norm.
    """
    if isinstance(module, nn.modules.batchnorm._BatchNorm):
        if isinstance(module, SyncBatchNorm):
            return module
        sync = SyncBatchNorm(
            *(module.num_features, module.eps, module.momentum),
            *(module.affine, module.track_running_stats),
            process_group=process_group,
        )
        sync._parameters.update(module._parameters)
        sync._buffers.update(module._buffers)
        return sync.train(module.training)
    for name, child in module.named_children():
        setattr(module, name, convert_sync_batchnorm(child, process_group))
    return module


class GroupNorm(nn.GroupNorm):
    """Group norm of each batch entry: statistics over its voxels and the channels of a group.

    All entries at once, without a transfer to the host. Computed in float32 (float64 for float64) with
    a fixed order of summation. Wu and He, "Group Normalization", ECCV 2018.

    Args:
        num_groups, num_channels, eps, affine: As in torch.nn.GroupNorm.
    """

    def forward(self, x: SparseTensor) -> SparseTensor:  # type: ignore[override]
        """Normalise (N, num_channels) features."""
        if x.num_channels != self.num_channels:
            raise ValueError(
                f"{type(self).__name__}: x must have {self.num_channels} channels, got {x.num_channels}."
            )
        batch = x.coords[:, 0].long()
        feats = x.feats.to(accumulation_dtype(x.feats))
        centred = feats - gather_rows(self._group_mean(feats, batch, x.batch_size), batch)
        var = self._group_mean(centred.square(), batch, x.batch_size)
        scale = (var + self.eps).rsqrt()
        if self.affine:
            scale = scale * self.weight
        out = centred * gather_rows(scale.to(feats.dtype), batch)
        if self.affine:
            out = out + self.bias
        return x.with_feats(out.to(x.dtype))

    def _group_mean(self, feats: Tensor, batch: Tensor, batch_size: int) -> Tensor:
        """Mean over the voxels of an entry and the channels of a group, (batch_size, num_channels)."""
        mean = scatter_mean(feats, batch, batch_size).unflatten(1, (self.num_groups, -1))
        return mean.mean(2, keepdim=True).expand_as(mean).flatten(1)


class InstanceNorm(GroupNorm):
    """Instance norm: GroupNorm with one channel a group.

    Args:
        num_features: C.
        eps: Added to the variance.
        affine: Learn a scale and a shift per channel; off by default, as in torch.nn.InstanceNorm1d.
    """

    def __init__(self, num_features: int, eps: float = 1e-5, affine: bool = False) -> None:
        super().__init__(num_features, num_features, eps, affine)


class LayerNorm(nn.LayerNorm):
    """torch.nn.LayerNorm over the channels of each row."""

    def forward(self, x: Features) -> Features:
        """Normalise (N, C) features."""
        return map_feats(super().forward, x)
