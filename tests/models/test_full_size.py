"""The published detector at its full size on a real nuScenes sample, forward and backward on the CPU, within memory."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
PARAMETERS = {
    "voxelize": 0,
    "sparse encoder": 2_694_352,
    "camera backbone": 27_520_506,
    "camera neck": 1_591_296,
    "view transform": 1_610_726,
    "fuser": 774_656,
    "decoder backbone": 4_280_832,
    "decoder neck": 295_936,
    "head": 1_034_910,
}
OUTPUTS = {
    "camera backbone": [[6, 192, 32, 88], [6, 384, 16, 44], [6, 768, 8, 22]],
    "view transform": [1, 80, 180, 180],
    "sparse encoder": [1, 256, 180, 180],
    "fuser": [1, 256, 180, 180],
    "decoder backbone": [[1, 128, 180, 180], [1, 256, 90, 90]],
    "decoder neck": [1, 512, 180, 180],
}
GMACS = {
    "camera backbone": 111.97,
    "camera neck": 15.64,
    "view transform": 35.78,
    "fuser": 25.08,
    "decoder backbone": 59.72,
    "decoder neck": 3.19,
    "head": 27.58,
}
"""What the same counter says of the original modules at these sizes."""


@pytest.fixture(scope="module")
def facts(test_data: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What the benchmark measures in a process of its own."""
    if not (test_data / "nuscenes" / "scene0061_kf0").is_dir():
        pytest.skip("no nuscenes/scene0061_kf0 in the real data")
    output = tmp_path_factory.mktemp("bevfusion") / "quick.json"
    script = str(ROOT / "benchmarks" / "bevfusion.py")
    command = [sys.executable, script, "--quick", "--data", str(test_data), "--output", str(output)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment)
    assert done.returncode == 0, done.stderr
    return json.loads(output.read_text())["cases"]["key frame"]


@pytest.mark.slow
def test_forward_and_backward_fit_into_memory(facts: dict[str, Any]) -> None:
    training = facts["training"]
    assert 1024 < training["peak_mib"] < 10 * 1024  # 20 GiB are asked for
    assert facts["inference"]["end_to_end_peak_mib"] < 6 * 1024
    assert training["gradients_are_finite"]
    assert training["parameters_with_gradient"] == facts["parameters"]
    assert all(0 <= value < 1e4 for value in training["losses"].values()), training["losses"]


@pytest.mark.slow
def test_sizes_are_the_published_ones(facts: dict[str, Any]) -> None:
    assert facts["sample"].startswith("nuScenes scene-0061")
    assert facts["parameters"] == 39_803_214
    stages = facts["inference"]["stages"]
    assert {name: stages[name]["parameters"] for name in PARAMETERS} == PARAMETERS
    assert {name: stages[name]["output"] for name in OUTPUTS} == OUTPUTS
    assert facts["inference"]["detections"] == 200
    gmacs = {name: stage["gmacs"] for name, stage in stages.items() if stage.get("gmacs")}
    assert {name: gmacs.get(name) for name in GMACS} == GMACS
    assert (
        10 < gmacs["sparse encoder"] < 25
    )  # of one sweep; the count itself is compared in test_lidar_branch_parity
    assert facts["gmacs"] == pytest.approx(sum(gmacs.values()), abs=0.05)
