"""pointlib: sparse point-cloud perception, from operators to deployed models."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pointlib.models import create_model, list_models, model_info
from pointlib.tensor import PointTensor, SparseTensor

if TYPE_CHECKING:
    from pointlib.deploy import load_predictor
    from pointlib.ops.tune import tune

__version__ = "0.1.0"
__all__ = [
    "PointTensor",
    "SparseTensor",
    "__version__",
    "create_model",
    "list_models",
    "load_predictor",
    "model_info",
    "tune",
]


def __getattr__(name: str) -> Any:
    if name == "load_predictor":  # deployment brings data reading along: imported when asked for
        from pointlib.deploy import load_predictor

        return load_predictor
    if name == "tune":
        from pointlib.ops.tune import tune

        return tune
    raise AttributeError(f"module 'pointlib' has no attribute {name!r}")
