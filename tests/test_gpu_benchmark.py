"""The GPU's benchmark without one: it says so, and its script runs on the CPU."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[1]
ENVIRONMENT = {**os.environ, "PYTHON": sys.executable, "PYTHONPATH": str(ROOT)}


def test_without_a_gpu_it_says_so() -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    if shutil.which("bash") is None:
        pytest.skip("needs bash")
    script = str(ROOT / "benchmarks" / "run_gpu.sh")
    done = subprocess.run(["bash", script], capture_output=True, text=True, env=ENVIRONMENT)
    assert done.returncode == 2
    assert "needs an NVIDIA GPU" in done.stderr
    assert "Nothing was run" in done.stderr


@pytest.mark.slow
def test_the_script_runs_on_the_cpu(tmp_path: Path) -> None:
    output = tmp_path / "report.json"
    command = [sys.executable, str(ROOT / "benchmarks" / "cuda_engine.py"), "--quick"]
    command += ["--device", "cpu", "--engines", "pointlib", "--precisions", "fp32"]
    command += ["--workloads", "SK-M0.5x", "WM-C1f", "--rounds", "1", "--output", str(output)]
    done = subprocess.run(command, capture_output=True, text=True, env=ENVIRONMENT)
    assert done.returncode == 0, done.stderr
    report = json.loads(output.read_text())
    assert [entry["name"] for entry in report["workloads"]] == ["SK-M0.5x", "WM-C1f"]
    for entry, layers in zip(report["workloads"], (49, 21), strict=True):
        assert entry["inference"][0]["left_out"] == entry["training"]["left_out"] == {}
        assert entry["inference"][0]["times"]["cold"]["pointlib"]["median_ms"] > 0
        assert len(entry["layers"]["layers"]) == layers
