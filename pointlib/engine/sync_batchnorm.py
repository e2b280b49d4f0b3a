"""Lightning's hook for synchronised batch norm, with pointlib's layers, which run on the CPU too."""

from __future__ import annotations

from lightning.pytorch.plugins import LayerSync
from torch import nn

from pointlib.nn.norm import convert_sync_batchnorm


class ProcessBatchNormSync(LayerSync):
    """Shares batch statistics between the processes of a run; no effect with one process."""

    def apply(self, model: nn.Module) -> nn.Module:
        """Synchronises the batch norms of `model`, in place."""
        return convert_sync_batchnorm(model)

    def revert(self, model: nn.Module) -> nn.Module:
        """Leaves them: without a process group they are ordinary batch norms."""
        return model
