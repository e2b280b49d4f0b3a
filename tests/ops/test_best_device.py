"""Which device programs choose: the GPU only where every operator runs on it."""

from __future__ import annotations

import pytest
import torch

from pointlib import ops


def test_every_operator_runs_on_every_device() -> None:
    assert ops.operators_without("CPU") == []
    assert ops.operators_without("CUDA") == []


def test_an_operator_without_a_kernel_is_found() -> None:
    library = torch.library.Library("pointlib", "FRAGMENT")
    library.define("half_done(Tensor x) -> Tensor")
    library.impl("half_done", lambda x: x, "CPU")
    try:
        assert "pointlib::half_done" in ops.operators_without("CUDA")
        assert "pointlib::half_done" not in ops.operators_without("CPU")
    finally:
        library._destroy()


@pytest.mark.parametrize(
    ("version", "available", "capability", "missing", "device"),
    [
        ("13.0", True, (7, 5), [], "cuda"),
        ("12.6", True, (12, 0), [], "cuda"),
        ("13.0", True, (7, 0), [], "cpu"),
        ("13.0", True, (9, 0), ["pointlib::sparse_conv"], "cpu"),
        ("13.0", False, (9, 0), [], "cpu"),
        (None, True, (9, 0), [], "cpu"),  # ROCm
    ],
)
def test_best_device(
    monkeypatch: pytest.MonkeyPatch,
    version: str | None,
    available: bool,
    capability: tuple[int, int],
    missing: list[str],
    device: str,
) -> None:
    monkeypatch.setattr(torch.version, "cuda", version)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: available)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: capability)
    monkeypatch.setattr(ops, "operators_without", lambda key: missing)
    assert ops.best_device() == torch.device(device)
