"""Optimizers and learning-rate schedules, built from their config sections."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn
from torch.nn import Parameter
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from pointlib.engine.options import OptimizerConfig, ScheduleConfig


def parameter_groups(
    network: nn.Module, config: OptimizerConfig, scans_per_step: int
) -> list[dict[str, Any]]:
    """The parameters that learn, grouped by learning rate and decay; the group with neither changed comes first.

    Args:
        network: Whose parameters.
        config: `lr_multipliers` and `no_decay` count.
        scans_per_step: As for `build_optimizer`.

    Raises:
        ValueError: A prefix or text fits no parameter.
    """
    unused = {*config.lr_multipliers, *config.no_decay}
    groups: dict[tuple[float, bool], list[Parameter]] = {(1.0, True): []}
    for name, parameter in network.named_parameters():
        if not parameter.requires_grad:
            continue
        prefixes = [prefix for prefix in config.lr_multipliers if name.startswith(prefix)]
        texts = [text for text in config.no_decay if text in name]
        unused.difference_update(prefixes, texts)
        factor = config.lr_multipliers[max(prefixes, key=len)] if prefixes else 1.0
        groups.setdefault((factor, not texts), []).append(parameter)
    if unused:
        raise ValueError(
            "parameter_groups: lr_multipliers and no_decay must name parameters of the network, got "
            f"{', '.join(sorted(map(repr, unused)))}; its names begin with "
            f"{', '.join(sorted({name.split('.')[0] for name, _ in network.named_parameters()}))}"
        )
    lr = scaled_lr(config, scans_per_step)
    made = []
    for (factor, decays), parameters in groups.items():
        changes: dict[str, Any] = {} if factor == 1.0 else {"lr": factor * lr}
        if not decays:
            changes["weight_decay"] = 0.0
        if parameters:
            made.append({"params": parameters, **changes})
    return made


def build_optimizer(
    parameters: Iterable[Parameter] | list[dict[str, Any]],
    config: OptimizerConfig,
    scans_per_step: int,
) -> Optimizer:
    """The optimizer of a run.

    Args:
        parameters: What it updates; or groups of it, see `parameter_groups`.
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


class RunSchedule(LambdaLR):
    """Learning rate and, where it is cycled, momentum as pure functions of the number of optimizer steps."""

    def __init__(
        self,
        optimizer: Optimizer,
        factor: Callable[[int], float],
        momentum: Callable[[int], float] | None = None,
    ) -> None:
        """Sets what the first step uses."""
        self._momentum = momentum
        super().__init__(optimizer, factor)

    def step(self, epoch: int | None = None) -> None:
        """Goes on to the next step."""
        super().step(epoch)
        if self._momentum is None:
            return
        value = self._momentum(self.last_epoch)
        for group in self.optimizer.param_groups:
            if "betas" in group:
                group["betas"] = (value, group["betas"][1])
            else:
                group["momentum"] = value

    def state_dict(self) -> dict[str, Any]:
        """The position on the curves; the curves follow from the config."""
        state: dict[str, Any] = super().state_dict()
        state.pop("_momentum")
        return state


def build_schedule(optimizer: Optimizer, config: ScheduleConfig, total_steps: int) -> LambdaLR:
    """The schedule of a run; call its `step()` after each optimizer step."""
    if config.momentum_cycle is None:
        return LambdaLR(optimizer, lr_factor(config, total_steps))
    high, low = config.momentum_cycle
    turn = max(1.0, config.warmup_fraction * total_steps)

    def momentum(step: int) -> float:
        if step < turn:
            return _cosine(step / turn, high, low)
        return _cosine((step - turn) / max(1.0, total_steps - turn), low, high)

    return RunSchedule(optimizer, lr_factor(config, total_steps), momentum)


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
            if config.warmup_start is not None:
                return config.warmup_start + (1.0 - config.warmup_start) * step / warmup
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
