"""Reading pointlib checkpoints: what they say about a network, and its weights. Nothing in a file is executed.

A checkpoint is a dict of tensors and plain values under `torch.save`. Its entry "pointlib" (`CheckpointInfo.as_dict`)
names the network and how to feed it, so a checkpoint is enough to build, evaluate and deploy a model.
"""

from __future__ import annotations

import dataclasses
import os
import pickle
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pointlib.models._registry import MODELS

FORMAT = 1
"""Version of the entry "pointlib"; a change that old readers cannot read raises it."""
ENTRY = "pointlib"
NETWORK_PREFIX = "network."
"""The network's attribute in the training task; its weights are saved under this prefix."""


@dataclass(frozen=True)
class CheckpointInfo:
    """What a checkpoint says about its network, in plain types.

    Attributes:
        network: Registered name, for `create_model`.
        network_args: Its keyword arguments.
        voxel_size: Voxel edge in metres that it was trained with.
        class_names: Name of each class it predicts.
        raw_ids: Raw dataset id that is written for each class.
        config: The resolved config of the run, or {} when it was started without one.
        version: pointlib version that wrote it.
        task: Kind of prediction: "segmentation" or "multi_sensor".
        map_classes: Name of each class of the map it predicts; multi_sensor only.
        feed: What its inputs are made with: the dataset and arguments of its pipeline. {} in old segmentation
            checkpoints, which are of SemanticKITTI.
    """

    network: str
    network_args: dict[str, Any]
    voxel_size: float
    class_names: list[str]
    raw_ids: list[int]
    config: dict[str, Any] = field(default_factory=dict)
    version: str = ""
    task: str = "segmentation"
    map_classes: list[str] = field(default_factory=list)
    feed: dict[str, Any] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """The entry "pointlib" of a checkpoint."""
        return {"format": FORMAT, **dataclasses.asdict(self)}

    def describe(self) -> str:
        """The network with its arguments, as in a call."""
        arguments = ", ".join(f"{key}={value!r}" for key, value in self.network_args.items())
        return f"{self.network}({arguments})"


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint in memory: `weights` are the network's, under its own parameter names."""

    path: str
    info: CheckpointInfo
    weights: dict[str, Tensor]


def read_checkpoint(path: str | os.PathLike[str]) -> Checkpoint:
    """Reads a checkpoint, or the best (else the last) one of a run's folder.

    Args:
        path: A .ckpt file, or the folder of a run, with best.ckpt or last.ckpt in it.

    Returns:
        The checkpoint, on the CPU.

    Raises:
        FileNotFoundError: There is none.
        ValueError: The file is damaged, holds more than tensors and plain values, or is not pointlib's.
    """
    file = find_checkpoint(path)
    content = load_tensors(file, "read_checkpoint")
    entry = content.get(ENTRY) if isinstance(content, dict) else None
    if not isinstance(entry, dict) or "network" not in entry or "state_dict" not in content:
        raise ValueError(
            f"read_checkpoint: {file} must be a checkpoint written by tools/train.py, got a file without the "
            f"entry {ENTRY!r}; weights of other projects are converted first"
        )
    if entry.get("format") != FORMAT:
        raise ValueError(
            f"read_checkpoint: {file} must have format {FORMAT}, got {entry.get('format')}; "
            f"it was written by pointlib {entry.get('version')}: use that version or a newer one"
        )
    names = {f.name for f in dataclasses.fields(CheckpointInfo)}
    info = CheckpointInfo(**{key: value for key, value in entry.items() if key in names})
    weights = {
        key.removeprefix(NETWORK_PREFIX): value
        for key, value in content["state_dict"].items()
        if key.startswith(NETWORK_PREFIX)
    }
    return Checkpoint(str(file), info, weights)


def load_tensors(path: str | os.PathLike[str], caller: str) -> Any:
    """What `torch.save` wrote, on the CPU; nothing in the file is executed.

    Args:
        path: The file.
        caller: Name for messages.

    Raises:
        FileNotFoundError: There is none.
        ValueError: The file is damaged or holds more than tensors and plain values.
    """
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, KeyError, ValueError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(
            f"{caller}: {path} must be a checkpoint of tensors and plain values, got a damaged or foreign file, or "
            f"one with code in it ({reason}); use another checkpoint"
        ) from error


def find_checkpoint(path: str | os.PathLike[str]) -> Path:
    """The file itself, or the best (else the last) checkpoint of a run's folder.

    Raises:
        FileNotFoundError: There is none; the message says what was looked for.
    """
    given = Path(path)
    if given.is_file():
        return given
    candidates = [
        folder / name
        for folder in (given / "checkpoints", given)
        for name in ("best.ckpt", "last.ckpt")
    ]
    for candidate in candidates:
        if candidate.is_file():
            return candidate
    looked = ", ".join(str(c) for c in candidates) if given.is_dir() else "no such file or folder"
    raise FileNotFoundError(
        f"find_checkpoint: {given} must be a checkpoint or the folder of a run, got neither ({looked})"
    )


def build_network(checkpoint: Checkpoint) -> nn.Module:
    """The network of a checkpoint with its weights, on the CPU, in evaluation mode.

    Raises:
        ValueError: The network is not registered, or the weights are not its own.
        TypeError: Its arguments are not those of this version's network.
    """
    info = checkpoint.info
    network = MODELS.create(info.network, **info.network_args)
    load_weights(network, checkpoint, info.describe())
    return network.eval()


def load_weights(network: nn.Module, checkpoint: Checkpoint, built: str) -> None:
    """Copies a checkpoint's weights into a network of the same kind; all names and shapes must agree.

    Args:
        network: Receives the weights.
        checkpoint: Where they come from.
        built: What `network` is, for the message: `CheckpointInfo.describe()`.

    Raises:
        ValueError: They are of another network; the message names both and the first keys that differ.
    """
    info = checkpoint.info
    expected, weights = network.state_dict(), checkpoint.weights
    differences = [
        f"{key}: {tuple(expected[key].shape)} in the network, {tuple(weights[key].shape)} in the checkpoint"
        for key in expected
        if key in weights and weights[key].shape != expected[key].shape
    ]
    differences += [f"{key}: missing in the checkpoint" for key in expected if key not in weights]
    differences += [f"{key}: not in the network" for key in weights if key not in expected]
    with torch.device("meta"):
        saved_kind = type(MODELS.create(info.network, **info.network_args))
    if saved_kind is not type(network):  # kinds may share every name and shape
        differences.insert(
            0, f"a {type(network).__name__} in the run, a {saved_kind.__name__} here"
        )
    if differences:
        shown = "\n  ".join(differences[:3])
        raise ValueError(
            f"load_weights: the checkpoint must be of {built}, got {info.describe()} in {checkpoint.path}; "
            f"{len(differences)} differences, the first:\n  {shown}\nGive the checkpoint of this network, or "
            "change the config to the checkpoint's network."
        )
    network.load_state_dict(dict(weights))
