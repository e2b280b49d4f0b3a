"""Where every model registers its constructors by name."""

from __future__ import annotations

from torch import nn

from pointlib.registry import Registry

MODELS: Registry[nn.Module] = Registry("model")
register_model = MODELS.register
