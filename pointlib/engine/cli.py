"""The training command: one YAML and any override on the command line, every key checked against a signature."""

from __future__ import annotations

import contextlib
import itertools
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import yaml
from jsonargparse import ActionConfigFile
from lightning.pytorch import Trainer, seed_everything
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI

from pointlib.engine.config_parser import (
    ConfigParser,
    config_files,
    plain_config,
    quiet_jsonargparse,
)
from pointlib.engine.multi_sensor_data import MultiSensorData
from pointlib.engine.multi_sensor_task import MultiSensorTask
from pointlib.engine.options import (
    CheckpointConfig,
    EarlyStoppingConfig,
    EmaConfig,
    LoggerName,
    Task,
    TrainerConfig,
)
from pointlib.engine.run import build_trainer, fit, quiet_lightning, report_failure
from pointlib.engine.segmentation_data import SegmentationData
from pointlib.engine.segmentation_task import SegmentationTask
from pointlib.models import create_model


class TrainCLI(LightningCLI):
    """Binds a config to the task, the data, and the trainer."""

    def __init__(self, args: Sequence[str] | None = None) -> None:
        """Parses and instantiates; `args` defaults to the command line."""
        given = list(sys.argv[1:] if args is None else args)
        self.task = requested_task(given)
        with quiet_jsonargparse():
            super().__init__(
                _TASKS[self.task]["model"],
                _TASKS[self.task]["data"],
                save_config_callback=None,
                parser_class=ConfigParser,
                parser_kwargs=_PARSER_KWARGS,
                auto_configure_optimizers=False,
                load_from_checkpoint_support=False,
                run=False,
                args=given,
            )

    def add_default_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Keys of the run as a whole."""
        for name, (kind, default, text) in _RUN_KEYS.items():
            parser.add_argument(f"--{name}", type=kind, default=default, help=text)

    def add_core_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Sections of the config: their keys are the parameters of these classes."""
        for name, section in {**_SECTIONS, **_TASKS[self.task]}.items():
            parser.add_class_arguments(section, name, sub_configs=False)
        for target in ("data.seed", "model.seed"):
            parser.link_arguments("seed", target)

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Parses, after checking the keys of the config files."""
        assert isinstance(parser, ConfigParser)
        self.config = parser.parse_command(args)

    def _set_seed(self) -> None:
        seed_everything(self.config.seed, workers=False, verbose=False)

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """The trainer with the callbacks, logger and plugins that the config asks for."""
        parts = self.config_init
        return build_trainer(
            run_dir=Path(parts.run_dir),
            logger=parts.logger,
            config=self.resolved_config(),
            options=parts.trainer,
            checkpoint=parts.checkpoint,
            ema=parts.ema,
            early_stopping=parts.early_stopping,
        )

    def resolved_config(self) -> dict[str, Any]:
        """All keys with their values, in plain types."""
        assert isinstance(self.parser, ConfigParser)
        return plain_config(self.parser, self.config)


_PARSER_KWARGS: dict[str, Any] = {
    "prog": "train.py",
    "description": "Train a network. Every key of the config can be overridden: --model.network_args.cr=0.5",
    "dump_header": [],
}
_RUN_KEYS: dict[str, tuple[Any, Any, str]] = {
    "task": (Task, "segmentation", "What is trained: it decides the keys of model and data."),
    "seed": (int, 0, "Seed of weights, order, augmentation and dropout."),
    "run_dir": (str, "runs/default", "Folder of everything the run writes."),
    "resume": (
        str,
        "auto",
        "'auto': go on from RUN_DIR/last.ckpt if it exists; 'never': start anew; or a checkpoint.",
    ),
    "logger": (LoggerName, "tensorboard", "Where the curves go."),
}
_SECTIONS: dict[str, type] = {
    "trainer": TrainerConfig,
    "checkpoint": CheckpointConfig,
    "ema": EmaConfig,
    "early_stopping": EarlyStoppingConfig,
}
_TASKS: dict[str, dict[str, type]] = {
    "segmentation": {"model": SegmentationTask, "data": SegmentationData},
    "multi_sensor": {"model": MultiSensorTask, "data": MultiSensorData},
}


def requested_task(args: Sequence[str]) -> str:
    """What a command line trains, which decides the keys of the sections model and data.

    Raises:
        ValueError: There is no such task.
    """
    task: Any = "segmentation"
    for path in config_files(args):
        with contextlib.suppress(OSError, yaml.YAMLError):  # the parser names what is wrong with it
            content = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
            if isinstance(content, dict):
                task = content.get("task", task)
    for argument, following in itertools.zip_longest(args, args[1:]):
        if argument == "--task":
            task = following
        elif argument.startswith("--task="):
            task = argument.removeprefix("--task=")
    if task not in _TASKS:
        raise ValueError(f"config: task must be one of {', '.join(_TASKS)}, got {task!r}")
    return str(task)


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """Loads a config and binds every key, and the network's arguments, without reading data or training.

    Args:
        path: The YAML file.
        overrides: Such as ["--data.root=DIR", "--trainer.max_epochs=2"].

    Returns:
        The resolved config: every key with its value, in plain types.

    Raises:
        ValueError: A key is unknown or a value is of the wrong type; the message names the key.
        TypeError: An argument of the network is unknown.
    """
    with quiet_jsonargparse():
        cli = TrainCLI.__new__(TrainCLI)
        cli.task = requested_task(["--config", str(path), *overrides])
        parser = ConfigParser(**_PARSER_KWARGS, raise_errors=True)
        parser.add_argument("--config", action=ActionConfigFile, help="Path of a config.")
        cli.add_default_arguments_to_parser(parser)
        cli.add_core_arguments_to_parser(parser)
        config = plain_config(parser, parser.parse_command(["--config", str(path), *overrides]))
    model = config["model"]
    with torch.device("meta"):
        create_model(model["network"], **(model["network_args"] or {}))
    return config


def train(args: Sequence[str] | None = None) -> int:
    """Trains as the command line says; the body of tools/train.py.

    Args:
        args: Arguments; None: those of the process.

    Returns:
        Exit status: 0 when the run is complete, 1 when it stopped with an error (2, by SystemExit: the config is
        wrong).
    """
    quiet_lightning()
    run_dir: Path | None = None
    try:
        cli = TrainCLI(args)
        run_dir = Path(cli.config.run_dir)
        fit(cli.trainer, cli.model, cli.datamodule, cli.config.resume, cli.resolved_config())
    except (OSError, RuntimeError, TypeError, ValueError, ImportError) as error:
        report_failure(error, run_dir)
        return 1
    return 0
