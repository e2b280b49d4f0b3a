"""The keys of a config that belong to the run rather than to the model or the data, with their defaults.

Each dataclass is a section of the YAML; its docstring is the help text, its fields are the only keys that are
accepted.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

LoggerName = Literal["tensorboard", "csv", "wandb", "none"]
Task = Literal["segmentation", "multi_sensor"]


@dataclass(frozen=True)
class OptimizerConfig:
    """The optimizer. The defaults are the published SPVNAS recipe.

    Attributes:
        name: "sgd" (momentum, nesterov apply) or "adamw" (betas apply).
        lr: Peak learning rate for one optimizer step over `lr_batch_size` scans.
        lr_batch_size: Scans per optimizer step that `lr` was chosen for (published: 8 GPUs x 2). The rate in use is
            `lr * (batch_size * accumulate_grad_batches * devices) / lr_batch_size`; null: `lr` as it stands.
        weight_decay: L2 penalty (sgd) or decoupled decay (adamw), on all parameters.
        momentum: Momentum of sgd.
        nesterov: Nesterov's form of sgd's momentum.
        betas: Decay rates of adamw's moments.
        lr_multipliers: Factor on the rate of the parameters whose names begin with a prefix, as
            `{encoders.camera.backbone.: 0.1}`; the longest prefix counts.
        no_decay: Parameters whose names contain one of these texts have no weight decay, as
            `[relative_position_bias_table]`.
    """

    name: Literal["sgd", "adamw"] = "sgd"
    lr: float = 0.24
    lr_batch_size: int | None = 16
    weight_decay: float = 1e-4
    momentum: float = 0.9
    nesterov: bool = True
    betas: tuple[float, float] = (0.9, 0.999)
    lr_multipliers: dict[str, float] = field(default_factory=dict)
    no_decay: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class ScheduleConfig:
    """The learning rate over time, set before every optimizer step.

    Attributes:
        name: "cosine" (linear warm-up, then half a cosine to zero), "one_cycle" (half a cosine up, half a cosine
            down) or "constant" (linear warm-up, then flat).
        warmup_steps: Optimizer steps of linear warm-up of cosine and constant; the published recipe counts 1000
            divided by the number of GPUs, and none on one GPU.
        warmup_start: Rate at the first step of a linear warm-up, as a fraction of the peak; null: 1 / warmup_steps.
        warmup_fraction: Part of the run in which one_cycle rises and a cycled momentum falls.
        start_factor: Rate at the first step of one_cycle, as a fraction of the peak.
        final_factor: Rate at the end of cosine and one_cycle, as a fraction of the peak.
        momentum_cycle: [high, low]: the momentum (of adamw, its first beta) starts at `high`, is `low` after
            `warmup_fraction` of the run and `high` again at its end, along half cosines; null: constant.
    """

    name: Literal["cosine", "one_cycle", "constant"] = "cosine"
    warmup_steps: int = 0
    warmup_start: float | None = None
    warmup_fraction: float = 0.3
    start_factor: float = 0.04
    final_factor: float = 0.0
    momentum_cycle: tuple[float, float] | None = None


@dataclass(frozen=True)
class TrainerConfig:
    """How long, on what and with which precision to train: the options of Lightning's Trainer that a run needs.

    Attributes:
        max_epochs: Passes over the training split.
        accelerator: "auto", "cpu" or "gpu".
        devices: "auto", a number of devices, or a list of device numbers such as "0,2". Under torchrun: processes
            per node.
        num_nodes: Machines.
        precision: "32-true", "16-mixed" (loss scaled) or "bf16-mixed".
        accumulate_grad_batches: Batches per optimizer step. The gradient is that of the mean loss over all their
            voxels (multi_sensor: of the mean of their losses).
        gradient_clip_val: Largest norm (or value) of the gradient; null: no clipping.
        gradient_clip_algorithm: "norm" or "value".
        sync_batchnorm: Batch norm over the batches of all processes.
        check_val_every_n_epoch: Epochs between validations.
        val_check_interval: Part of an epoch between validations.
        limit_train_batches: Part (float) or number (int) of training batches per epoch that is used.
        limit_val_batches: Part (float) or number (int) of validation batches that is used.
        num_sanity_val_steps: Validation batches to try before training.
        log_every_n_steps: Batches between two entries in the log.
        progress_bar: Show a bar with the time left.
        deterministic: Refuse operations of torch whose results change from run to run.
    """

    max_epochs: int = 15
    accelerator: Literal["auto", "cpu", "gpu"] = "auto"
    devices: int | str = "auto"
    num_nodes: int = 1
    precision: Literal["32-true", "16-mixed", "bf16-mixed"] = "32-true"
    accumulate_grad_batches: int = 1
    gradient_clip_val: float | None = None
    gradient_clip_algorithm: Literal["norm", "value"] = "norm"
    sync_batchnorm: bool = True
    check_val_every_n_epoch: int = 1
    val_check_interval: float = 1.0
    limit_train_batches: int | float = 1.0
    limit_val_batches: int | float = 1.0
    num_sanity_val_steps: int = 1
    log_every_n_steps: int = 10
    progress_bar: bool = True
    deterministic: bool = False


@dataclass(frozen=True)
class CheckpointConfig:
    """When to save. `last.ckpt` is what a run resumes from; `best.ckpt` has the best score so far.

    Attributes:
        every_n_steps: Optimizer steps between two saves of last.ckpt; 0: not by steps.
        every_n_minutes: Minutes between two saves of last.ckpt; 0: not by time. Both are saved at the end of each
            epoch too.
        monitor: Logged value that decides which checkpoint is the best.
        mode: Whether the best value is the "max" or the "min".
    """

    every_n_steps: int = 500
    every_n_minutes: float = 10.0
    monitor: str = "val/miou"
    mode: Literal["max", "min"] = "max"


@dataclass(frozen=True)
class EmaConfig:
    """Exponential moving average of the weights and batch-norm statistics, used in validation and in checkpoints.

    Attributes:
        decay: Weight of the past at each optimizer step, such as 0.999; null: no averaging.
        start_step: Optimizer step at which averaging starts.
    """

    decay: float | None = None
    start_step: int = 0


@dataclass(frozen=True)
class EarlyStoppingConfig:
    """Stop when the score no longer improves.

    Attributes:
        patience: Validations without improvement before the run ends; null: never.
        monitor: Logged value to watch.
        mode: Whether the "max" or the "min" is better.
        min_delta: Smallest change that counts as improvement.
    """

    patience: int | None = None
    monitor: str = "val/miou"
    mode: Literal["max", "min"] = "max"
    min_delta: float = 0.0
