"""The model zoo: networks by name."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import Any

from torch import nn

from pointlib.models import bevfusion as bevfusion
from pointlib.models import centerpoint as centerpoint
from pointlib.models import minkunet as minkunet
from pointlib.models import spvcnn as spvcnn
from pointlib.models._registry import MODELS, register_model
from pointlib.models.profile import count_macs

__all__ = ["ModelInfo", "count_macs", "create_model", "list_models", "model_info", "register_model"]


@dataclass(frozen=True)
class ModelInfo:
    """What is known of a registered model.

    Attributes:
        name: Registered name.
        description: First line of its constructor's docstring.
        num_parameters: Learned numbers.
        arguments: Arguments and their defaults.
        module: Where to read it; the paper stands on top.
    """

    name: str
    description: str
    num_parameters: int
    arguments: dict[str, Any]
    module: str


def create_model(name: str, **arguments: Any) -> nn.Module:
    """Build a model with fresh weights.

    Args:
        name: One of `list_models()`.
        **arguments: Its constructor's arguments, for example num_classes.

    Raises:
        ValueError: If there is no such model; the message names the nearest.
        TypeError: If it takes no such argument; the message names the nearest.

    Example:
        >>> type(create_model("spvcnn", cr=0.5, num_classes=19)).__name__
        'SPVCNN'
    """
    return MODELS.create(name, **arguments)


def list_models(pattern: str = "*") -> list[str]:
    """Names of the registered models that match a shell pattern, sorted.

    Example:
        >>> list_models("spv*_cr0*")
        ['spvcnn_cr0p5', 'spvcnn_cr0p64']
    """
    return MODELS.names(pattern)


def model_info(name: str, **arguments: Any) -> ModelInfo:
    """Describe a registered model.

    Args:
        name: One of `list_models()`.
        **arguments: Constructor arguments to count the parameters with; the defaults otherwise.

    Raises:
        ValueError, TypeError: As `create_model`.

    Example:
        >>> model_info("minkunet_cr1p0").num_parameters
        21778003
    """
    constructor = MODELS.get(name)
    network = create_model(name, **arguments)
    defaults = {
        key: parameter.default
        for key, parameter in inspect.signature(constructor).parameters.items()
    }
    return ModelInfo(
        name=name,
        description=(inspect.getdoc(constructor) or "").partition("\n")[0],
        num_parameters=sum(parameter.numel() for parameter in network.parameters()),
        arguments=defaults | arguments,
        module=constructor.__module__,
    )
