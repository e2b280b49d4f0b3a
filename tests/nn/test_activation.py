"""Row-wise modules do to features what torch's do, and keep voxels and points."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from pointlib.nn import activation
from pointlib.tensor import PointTensor, SparseTensor

PAIRS = {
    "ReLU": (activation.ReLU(), nn.ReLU()),
    "LeakyReLU": (activation.LeakyReLU(0.2), nn.LeakyReLU(0.2)),
    "SiLU": (activation.SiLU(), nn.SiLU()),
    "GELU": (activation.GELU("tanh"), nn.GELU("tanh")),
    "Dropout": (activation.Dropout(0.3), nn.Dropout(0.3)),
    "Linear": (activation.Linear(3, 5), nn.Linear(3, 5)),
}


@pytest.mark.parametrize(("ours", "torchs"), PAIRS.values(), ids=PAIRS)
def test_equals_torch_on_every_kind_of_features(ours: nn.Module, torchs: nn.Module) -> None:
    ours.load_state_dict(torchs.state_dict())
    feats = torch.randn(4, 3)
    voxels = SparseTensor(feats, torch.arange(16).view(4, 4).int())
    points = PointTensor(feats, torch.rand(4, 4))
    outputs = []
    for x in (feats, voxels, points):
        torch.manual_seed(1)
        outputs.append(ours(x))
    torch.manual_seed(1)
    expected = torchs(feats)
    torch.testing.assert_close(outputs[0], expected)
    assert torch.equal(outputs[1].feats, outputs[0]) and outputs[1].sites is voxels.sites
    assert torch.equal(outputs[2].feats, outputs[0]) and outputs[2].cache is points.cache
    assert ours(voxels.with_feats(feats)).feats.shape == expected.shape
