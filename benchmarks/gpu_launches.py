"""Launches of one MinkUNet on a new scan: operator by operator, at fixed capacities, and as one CUDA graph.

    PYTHONPATH=. python benchmarks/gpu_launches.py

Counts and no times, so it needs no GPU: the kernels run in the emulator of the tests. Ours are launches of kernels in
cuda/; torch's are operators that compute, each a launch or more.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from pointlib import SparseTensor, create_model
from pointlib.deploy.graph import StaticNetwork
from pointlib.ops._cuda import engine, level_maps, norm, sparse_conv
from tests import oracles
from tests.cuda_emulator.emulator import Emulator
from tests.cuda_emulator.operators import OnDevice

FREE = (
    *("alias", "as_strided", "detach", "empty", "expand", "lift", "new_empty", "permute", "select"),
    *("slice", "split", "squeeze", "t", "to", "transpose", "unbind", "unsqueeze", "view", "equal"),
    *("resolve", "is_same_size", "_unsafe_view", "_assert_async", "_reshape_alias", "contiguous"),
)
"""Beginnings of the names of operators that compute nothing on the device."""
OPERATORS: dict[str, Callable[..., Any]] = {
    "fold_batch_norm": norm.fold_batch_norm,
    "level_maps": level_maps.level_maps,
    "sparse_conv": sparse_conv.sparse_conv,
    "fused_sparse_conv": sparse_conv.fused_sparse_conv,
    "fused_sparse_conv_": sparse_conv.fused_sparse_conv_,
}


class Torch(TorchDispatchMode):
    """Counts torch's operators."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        namespace, _, name = func._schema.name.partition("::")
        free = any(name == f or name.startswith((f + "_", f + ".")) for f in FREE)
        self.count += namespace == "aten" and not free
        return func(*args, **(kwargs or {}))


class Ours:
    """Counts launches, and hands them on."""

    def __init__(self, backend: engine.Backend) -> None:
        self.backend, self.count = backend, 0

    def properties(self, device: torch.device) -> engine.Properties:
        return self.backend.properties(device)

    def launch(self, *arguments: Any) -> None:
        self.count += 1
        self.backend.launch(*arguments)


def count(ours: Ours, run: Callable[[], object]) -> tuple[int, int]:
    """Launches of ours and operators of torch's."""
    ours.count = 0
    with torch.inference_mode(), Torch() as torchs, OnDevice(**OPERATORS):
        run()
    return ours.count, torchs.count


def main(argv: Sequence[str] | None = None) -> None:
    """Count and print."""
    del argv
    coords = oracles.random_coords(np.random.default_rng(0), 400, 20)
    feats: Tensor = torch.randn(len(coords), 4)
    model = create_model("minkunet", cr=0.25, num_classes=19, in_channels=4).eval()
    static = StaticNetwork(model, SparseTensor(feats, coords))
    static.load(SparseTensor(feats, coords))
    ours = Ours(Emulator(90))
    engine._backend = ours
    rows = {
        "operator by operator": count(ours, lambda: model(SparseTensor(feats, coords))),
        "at fixed capacities": count(ours, static.run),
    }
    print(f"{'MinkUNet, a new scan':24} {'ours':>6} {'torch':>6} {'launches by the host':>22}")
    for name, (own, others) in rows.items():
        print(f"{name:24} {own:6} {others:6} {own + others:22}")
    print(f"{'as one CUDA graph':24} {'':6} {'':6} {1:22}")


if __name__ == "__main__":
    main()
