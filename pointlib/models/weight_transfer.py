"""Starting from weights trained elsewhere: another run, a part of it, or a published checkpoint. Nothing is executed.

A fusion network starts from a LiDAR network (its encoder, decoder and head) and from an image backbone; their
parameters have the same names, so that a transfer is a matter of prefixes.
"""

from __future__ import annotations

import logging
import os
import pickle
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pointlib.models.checkpoint import ENTRY, NETWORK_PREFIX, find_checkpoint

log = logging.getLogger(__name__)
_WRAPPERS = ("state_dict", "model", "model_state")
_COUNTERS = ("num_batches_tracked", "relative_position_index")
_SHOWN = 5
"""How many differences an error names."""


@dataclass(frozen=True)
class WeightSource:
    """Weights to start from.

    Attributes:
        path: Checkpoint or folder of a run, or a published file (`state_dict`, `model` or plain tensors in it).
        take: Only its entries whose names begin with this prefix, which is cut off.
        into: Prefix that is put before their names.
    """

    path: str
    take: str = ""
    into: str = ""


def read_weights(path: str | os.PathLike[str]) -> dict[str, Tensor]:
    """Read the tensors of a checkpoint of any project.

    Args:
        path: A file, or the folder of a run.

    Returns:
        Tensors by name; of checkpoints of this package by the network's own names.

    Raises:
        FileNotFoundError: There is none.
        ValueError: The file is damaged or holds anything but tensors and plain values.
    """
    return _tensors(_load(path), path)


def _load(path: str | os.PathLike[str]) -> Any:
    file = Path(path) if Path(path).is_file() else find_checkpoint(path)
    try:
        return torch.load(file, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, KeyError, ValueError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(
            f"read_weights: {file} must be a checkpoint of tensors and plain values, got a damaged file or one with "
            f"code in it ({reason})"
        ) from error


def _tensors(content: Any, path: str | os.PathLike[str]) -> dict[str, Tensor]:
    for wrapper in _WRAPPERS:
        if isinstance(content, Mapping) and isinstance(content.get(wrapper), Mapping):
            content = content[wrapper]
            break
    tensors = {str(key): value for key, value in dict(content).items() if isinstance(value, Tensor)}
    if not tensors:
        raise ValueError(f"read_weights: {path} must hold tensors by name, got none")
    own = all(key.startswith(NETWORK_PREFIX) for key in tensors)
    return {key.removeprefix(NETWORK_PREFIX) if own else key: v for key, v in tensors.items()}


def transfer_weights(network: nn.Module, source: WeightSource) -> list[str]:
    """Copy the weights of a source that the network has; what it lacks is logged.

    Args:
        network: Receives them, in place.
        source: Where they come from.

    Returns:
        Names that were set.

    Raises:
        ValueError: None fits, one has another shape, or heads were trained on other classes.
    """
    content = _load(source.path)
    weights = {
        source.into + key.removeprefix(source.take): value
        for key, value in _tensors(content, source.path).items()
        if key.startswith(source.take)
    }
    expected = network.state_dict()
    shared = {key: value for key, value in weights.items() if key in expected}
    if not shared:
        raise ValueError(
            f"transfer_weights: {source.path} must hold weights of this network, got {len(weights)} entries below "
            f"{source.take!r} of which none is in it, such as {next(iter(weights), None)!r}; the network's are such "
            f"as {next(iter(expected))!r}: give `take` and `into`"
        )
    differing = [key for key in shared if not _fits(shared[key], expected[key])]
    if differing:
        key = differing[0]
        raise ValueError(
            f"transfer_weights: {source.path} must have the network's sizes, got {tuple(shared[key].shape)} for "
            f"{key}, which is {tuple(expected[key].shape)} here ({len(differing)} differ); use the same sizes or "
            "`take` only the part that fits"
        )
    if any(key.startswith("heads.") for key in shared):
        _check_class_names(network, content.get(ENTRY), source.path)
    network.load_state_dict(shared, strict=False)
    left = sorted(weights.keys() - shared.keys())
    log.warning(
        "%d of the network's %d entries come from %s%s",
        len(shared),
        len(expected),
        source.path,
        f"; {len(left)} of it fit nowhere, such as {left[0]}" if left else "",
    )
    return list(shared)


def load_published(network: nn.Module, path: str | os.PathLike[str]) -> None:
    """Load a published checkpoint of exactly this network, such as mit-han-lab's bevfusion-det.pth.

    Args:
        network: Receives the weights, in place.
        path: The file.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The file cannot be read, or its entries are not the network's; the message names those that differ
            and the network is as it was. Counters that evaluation does not read may be missing.
    """
    weights, expected = read_weights(path), network.state_dict()
    differences = [
        f"{key}: {tuple(weights[key].shape)} in the file, {tuple(own.shape)} in the network"
        for key, own in expected.items()
        if key in weights and not _fits(weights[key], own)
    ]
    differences += [
        f"{key}: missing in the file"
        for key in expected
        if key not in weights and not key.endswith(_COUNTERS)
    ]
    differences += [f"{key}: not in the network" for key in weights if key not in expected]
    if differences:
        shown = "\n  ".join(differences[:_SHOWN])
        raise ValueError(
            f"load_published: {path} must be a checkpoint of this {type(network).__name__}, got one with "
            f"{len(differences)} differences, the first:\n  {shown}\nBuild the network with the sizes that the "
            "checkpoint was trained with, or take the parts that fit with `transfer_weights`."
        )
    network.load_state_dict(weights, strict=False)


def _fits(value: Tensor, own: Tensor) -> bool:
    """Whether a weight has the shape of the network's, or is a sparse kernel in the layout of spconv 2.x."""
    shape = tuple(own.shape)
    return tuple(value.shape) in (shape, (shape[-1:] + shape[:-1]) if own.dim() == 5 else shape)


def _check_class_names(network: nn.Module, entry: Any, path: str) -> None:
    """Refuse heads whose classes stand in another order; published files do not say theirs."""
    for name in ("class_names", "map_classes") if isinstance(entry, Mapping) else ():
        own, theirs = tuple(getattr(network, name, ())), tuple(entry.get(name, ()))
        if own and theirs and own != theirs:
            raise ValueError(
                f"transfer_weights: {path} must be trained on the network's {name} ({', '.join(own)}), got "
                f"({', '.join(theirs)}); `take` the parts without heads, or name the classes as there"
            )
