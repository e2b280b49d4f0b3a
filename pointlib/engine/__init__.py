"""Training and evaluation: where models, data and metrics meet."""

from __future__ import annotations

from pointlib.engine.cli import load_config, train

__all__ = ["load_config", "train"]
