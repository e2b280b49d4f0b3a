"""One training run: the trainer built from its options, resuming, and the last word when something fails."""

from __future__ import annotations

import logging
import os
import re
import traceback
import warnings
from pathlib import Path
from typing import Any

import torch
import yaml
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger
from lightning.pytorch.utilities.rank_zero import rank_zero_only

from pointlib.engine.callbacks import (
    LearningRateLog,
    RunProgressBar,
    SkippedSamples,
    StepTimer,
    build_early_stopping,
    build_ema,
)
from pointlib.engine.checkpoint import LAST, AtomicCheckpointIO, RunCheckpoints
from pointlib.engine.options import (
    CheckpointConfig,
    EarlyStoppingConfig,
    EmaConfig,
    LoggerName,
    TrainerConfig,
)
from pointlib.engine.run_data import RunData
from pointlib.engine.run_task import RunTask
from pointlib.engine.sync_batchnorm import ProcessBatchNormSync
from pointlib.files import write_file
from pointlib.models.checkpoint import Checkpoint, load_weights, read_checkpoint
from pointlib.ops import best_device

log = logging.getLogger("pointlib")
CONFIG_FILE = "config.yaml"


def build_trainer(
    run_dir: Path,
    logger: LoggerName,
    config: dict[str, Any],
    options: TrainerConfig,
    checkpoint: CheckpointConfig,
    ema: EmaConfig,
    early_stopping: EarlyStoppingConfig,
) -> Trainer:
    """Lightning's trainer with what the options ask for.

    Args:
        run_dir: Folder of everything the run writes.
        logger: Where the curves go.
        config: The resolved config, for loggers that keep it.
        options: Section "trainer".
        checkpoint: Section "checkpoint".
        ema: Section "ema".
        early_stopping: Section "early_stopping".
    """
    optional = [build_ema(ema), build_early_stopping(early_stopping)]
    callbacks: list[Callback] = [callback for callback in optional if callback is not None]
    callbacks += [StepTimer(), SkippedSamples(), RunCheckpoints(checkpoint, run_dir)]
    if logger != "none":
        callbacks.append(LearningRateLog())
    if options.progress_bar:
        callbacks.append(RunProgressBar())
    plugins: list[Any] = [AtomicCheckpointIO()]
    if options.sync_batchnorm:
        plugins.append(ProcessBatchNormSync())
    return Trainer(
        accelerator=choose_accelerator(options),
        devices=options.devices,
        num_nodes=options.num_nodes,
        strategy=choose_strategy(options),
        precision=options.precision,
        max_epochs=options.max_epochs,
        accumulate_grad_batches=options.accumulate_grad_batches,
        gradient_clip_val=options.gradient_clip_val,
        gradient_clip_algorithm=options.gradient_clip_algorithm,
        check_val_every_n_epoch=options.check_val_every_n_epoch,
        val_check_interval=options.val_check_interval,
        limit_train_batches=options.limit_train_batches,
        limit_val_batches=options.limit_val_batches,
        num_sanity_val_steps=options.num_sanity_val_steps,
        log_every_n_steps=options.log_every_n_steps,
        deterministic=options.deterministic,
        enable_progress_bar=options.progress_bar,
        enable_model_summary=False,
        use_distributed_sampler=False,
        callbacks=callbacks,
        plugins=plugins,
        logger=build_logger(logger, run_dir, config),
        default_root_dir=run_dir,
    )


def choose_accelerator(options: TrainerConfig) -> str:
    """Lightning's name of the kind of device: for "auto" the best one that the operators run on.

    Raises:
        ValueError: A GPU is asked for and the operators have no kernels for it.
    """
    best = "gpu" if best_device().type == "cuda" else "cpu"
    if options.accelerator == "gpu" and best == "cpu":
        raise ValueError(
            "train: trainer.accelerator must be 'cpu' or 'auto', got 'gpu': there is no GPU, or the operators have no "
            "kernels for it in this version"
        )
    if options.accelerator == "auto" and best == "cpu" and torch.cuda.is_available():
        log.warning("training on the CPU: the operators have no CUDA kernels in this version")
    return best if options.accelerator == "auto" else options.accelerator


def choose_strategy(options: TrainerConfig) -> str:
    """Lightning's name of the strategy: one process, or DistributedDataParallel over several.

    MinkUNet carries layers that only its point branch (SPVCNN) uses, so that published weights load; DDP must look for
    parameters without a gradient.
    """
    devices = str(options.devices)
    if devices in ("auto", "-1"):
        local = torch.cuda.device_count() if choose_accelerator(options) == "gpu" else 1
    else:
        local = len(devices.split(",")) if "," in devices else int(devices)
    launched = int(os.environ.get("WORLD_SIZE", "1"))
    several = max(local, options.num_nodes, launched) > 1
    return "ddp_find_unused_parameters_true" if several else "auto"


def build_logger(name: LoggerName, run_dir: Path, config: dict[str, Any]) -> Logger | bool:
    """The logger of that name, writing under `run_dir`.

    Raises:
        ImportError: wandb is not installed.
    """
    if name == "tensorboard":
        return TensorBoardLogger(run_dir, name="", version="logs")
    if name == "csv":
        return CSVLogger(run_dir, name="", version="logs")
    if name == "wandb":
        try:
            from lightning.pytorch.loggers import WandbLogger

            return WandbLogger(
                save_dir=run_dir, name=run_dir.name, project="pointlib", config=config
            )
        except ModuleNotFoundError as error:
            raise ImportError(
                "build_logger: logger 'wandb' must be installed; run: pip install 'pointlib[wandb]'"
            ) from error
    return False


def fit(
    trainer: Trainer,
    task: RunTask,
    data: RunData,
    resume: str,
    config: dict[str, Any],
) -> None:
    """Trains to the end, from the beginning or from where an earlier process of the same run was stopped.

    Args:
        trainer: From `build_trainer`.
        task: What is trained.
        data: What it is trained on.
        resume: "auto", "never" or the path of a checkpoint.
        config: The resolved config; saved in the run's folder and in each checkpoint.
    """
    run_dir = Path(trainer.default_root_dir)
    path = resume_path(resume, run_dir)
    if path is not None:
        check_resumable(read_checkpoint(path), task, config)
        log.warning("resuming from %s", path)
    task.run_config = config
    save_config(run_dir, config)
    trainer.fit(task, datamodule=data, ckpt_path=path, weights_only=True)


def resume_path(resume: str, run_dir: Path) -> Path | None:
    """The checkpoint to go on from, or None to start anew.

    Raises:
        FileNotFoundError: A checkpoint was named and does not exist.
    """
    if resume == "never":
        return None
    if resume == "auto":
        last = run_dir / LAST
        return last if last.is_file() else None
    if not Path(resume).is_file():
        raise FileNotFoundError(
            f"resume_path: resume must be 'auto', 'never' or a checkpoint, got {resume}, which does not exist"
        )
    return Path(resume)


def check_resumable(checkpoint: Checkpoint, task: RunTask, config: dict[str, Any]) -> None:
    """Refuses a checkpoint of another network, and names the config keys that changed since it was written.

    Raises:
        ValueError: The checkpoint is of another network or of other classes.
    """
    load_weights(task.network, checkpoint, task.describe())
    for name in ("class_names", "map_classes"):
        trained, now = getattr(checkpoint.info, name), getattr(task.network, name, None)
        if now is not None and list(trained) != list(now):
            raise ValueError(
                f"check_resumable: the run must keep its {name} ({', '.join(trained)}), got ({', '.join(now)}); "
                "start a new run with model.init_weights"
            )
    before, after = _flatten(checkpoint.info.config), _flatten(config)
    changed = sorted(
        key
        for key in before.keys() & after.keys()
        if before[key] != after[key] and key not in ("run_dir", "resume")
    )
    for key in changed:
        log.warning(
            "config changed since the checkpoint: %s: %s -> %s", key, before[key], after[key]
        )


@rank_zero_only
def save_config(run_dir: Path, config: dict[str, Any]) -> None:
    """Writes the resolved config; `--config RUN_DIR/config.yaml` repeats the run."""
    run_dir.mkdir(parents=True, exist_ok=True)
    text = yaml.safe_dump(config, sort_keys=False)
    write_file(run_dir / CONFIG_FILE, text)


def quiet_lightning() -> None:
    """Keeps Lightning's remarks about defaults and advertisements off the terminal; its warnings stay."""
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    logging.getLogger("lightning.fabric").setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", message=".*does not have many workers.*")
    warnings.filterwarnings("ignore", message=".*isinstance.treespec, LeafSpec.*")
    warnings.filterwarnings("ignore", message=".*is smaller than the logging interval.*")


def report_failure(error: BaseException, run_dir: Path | None) -> None:
    """Says in one message what stopped a run; the traceback goes to a file beside the checkpoints."""
    message = root_message(error)
    if run_dir is not None and run_dir.is_dir():
        path = run_dir / f"error-{os.environ.get('LOCAL_RANK', '0')}.txt"
        text = "".join(traceback.format_exception(error))
        try:
            path.write_text(text, encoding="utf-8")
            message += f"\n(where it happened: {path})"
        except OSError:
            message += f"\n{text}"
    log.error("%s", message)


def root_message(error: BaseException) -> str:
    """The message itself, freed from the traceback that a loader's worker wraps around it."""
    text = str(error) or type(error).__name__
    if "Original Traceback" not in text:
        return text
    matches = list(re.finditer(r"^(?:[\w.]+\.)?\w*(?:Error|Exception): ", text, re.MULTILINE))
    return text[matches[-1].end() :].strip() if matches else text


def _flatten(node: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(node, dict):
        return {prefix: node}
    flat: dict[str, Any] = {}
    for key, value in node.items():
        flat.update(_flatten(value, f"{prefix}.{key}" if prefix else str(key)))
    return flat
