"""Training on the compiled engine and on the composition: one loss curve, up to rounding."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from pointlib.ops._cpu import engine

ROOT = Path(__file__).resolve().parents[2]
TRAIN = """
import json, sys
import numpy as np, torch
from pointlib import SparseTensor, create_model
from pointlib.ops._cpu import engine
from tests import oracles

torch.manual_seed(0)
model = create_model(sys.argv[1], cr=0.25, num_classes=5)
model.dropout = torch.nn.Identity()  # SPVCNN's: what it drops would be the same, yet hide a difference
optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
rng = np.random.default_rng(0)
coords = oracles.random_coords(rng, 3000, 24, batch=2)
feats = torch.from_numpy(rng.normal(size=(len(coords), 4))).float()
labels = (coords[:, 1:].sum(1) // 8 % 5).long()
losses = []
for _ in range(12):
    optimizer.zero_grad()
    loss = torch.nn.functional.cross_entropy(model(SparseTensor(feats, coords)), labels)
    loss.backward()
    optimizer.step()
    losses.append(loss.item())
print(json.dumps([engine.INSTRUCTION_SET, losses]))
"""


def losses(network: str, path: str) -> list[float]:
    environment = {**os.environ, "POINTLIB_CPU": path, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", TRAIN, network]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    used, curve = json.loads(done.stdout)
    assert used == path
    return curve


@pytest.mark.slow
@pytest.mark.parametrize("network", ["minkunet", "spvcnn"])
def test_the_loss_curve_does_not_depend_on_what_computes(network: str) -> None:
    if engine.LIBRARY is None:
        pytest.skip("no compiled engine")
    expected = losses(network, "composition")
    got = losses(network, engine.INSTRUCTION_SET)
    assert expected[-1] < 0.9 * expected[0]  # it learns
    np.testing.assert_allclose(got[0], expected[0], rtol=1e-6)
    # Gradients of either differ from those of float64 by up to 1 %, for a rounding moves a value across ReLU's kink.
    np.testing.assert_allclose(got, expected, rtol=2e-2)
