"""Optimizers and learning-rate schedules, built from their config sections."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

import torch
from torch.nn import Parameter
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from pointlib.engine.options import OptimizerConfig, ScheduleConfig


def build_optimizer(
    parameters: Iterable[Parameter], config: OptimizerConfig, scans_per_step: int
) -> Optimizer:
    """The optimizer of a run.

    Args:
        parameters: What it updates.
        config: Its section of the config.
        scans_per_step: Scans that contribute to one optimizer step, over all devices and accumulated batches.

    Returns:
        The optimizer at its peak learning rate (see `OptimizerConfig.lr_batch_size`).
    """
    lr = scaled_lr(config, scans_per_step)
    if config.name == "sgd":
        return torch.optim.SGD(
            parameters,
            lr=lr,
            momentum=config.momentum,
            nesterov=config.nesterov,
            weight_decay=config.weight_decay,
        )
    return torch.optim.AdamW(
        parameters, lr=lr, betas=config.betas, weight_decay=config.weight_decay
    )


def scaled_lr(config: OptimizerConfig, scans_per_step: int) -> float:
    """Peak learning rate, proportional to the scans per optimizer step (Goyal et al., 2017, section 2.1)."""
    if config.lr_batch_size is None:
        return config.lr
    return config.lr * scans_per_step / config.lr_batch_size


def build_schedule(optimizer: Optimizer, config: ScheduleConfig, total_steps: int) -> LambdaLR:
    """The schedule of a run; call its `step()` after each optimizer step."""
    return LambdaLR(optimizer, lr_factor(config, total_steps))


def lr_factor(config: ScheduleConfig, total_steps: int) -> Callable[[int], float]:
    """Learning rate as a fraction of its peak.

    Args:
        config: The schedule's section of the config.
        total_steps: Optimizer steps of the whole run.

    Returns:
        Function of the number of optimizer steps taken so far; a pure function, so a resumed run continues on the
        same curve.
    """
    if config.name == "one_cycle":
        return lambda step: _one_cycle(step, config, total_steps)

    def factor(step: int) -> float:
        warmup = min(config.warmup_steps, total_steps)
        if step < warmup:
            return (step + 1) / warmup
        if config.name == "constant":
            return 1.0
        return _cosine((step - warmup) / max(1, total_steps - warmup), 1.0, config.final_factor)

    return factor


def _one_cycle(step: int, config: ScheduleConfig, total_steps: int) -> float:
    rise = max(1.0, config.warmup_fraction * total_steps)
    if step < rise:
        return _cosine(step / rise, config.start_factor, 1.0)
    return _cosine((step - rise) / max(1.0, total_steps - rise), 1.0, config.final_factor)


def _cosine(progress: float, start: float, end: float) -> float:
    """Half a cosine from `start` at progress 0 to `end` at progress 1 and after."""
    return end + (start - end) * 0.5 * (1.0 + math.cos(math.pi * min(1.0, progress)))
