"""Checkpoints of mit-han-lab/bevfusion load into our networks: names, shapes, dtypes, and what is said of other files.

tests/golden/bevfusion_state_dicts.json tells of the state dicts of the original modules (commit db75150), built from
the original configurations: for each entry its shape (with a dtype that is not float32) in each network that has it.
"""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from pointlib.models import create_model
from pointlib.models.weight_transfer import load_published

GOLDEN = Path(__file__).parents[1] / "golden" / "bevfusion_state_dicts.json"
# The originals also count the grids of their view transforms, which are parameters there without being trained.
PARAMETERS = {
    "bevfusion_det_c": 43_240_166,
    "bevfusion_det_cl": 39_803_214,
    "bevfusion_det_l": 8_306_030,
    "bevfusion_seg_c": 49_118_566,
    "bevfusion_seg_cl": 42_105_462,
    "bevfusion_seg_l": 11_994_838,
}
TINY = {
    "point_cloud_range": (-4.8, -4.8, -5.0, 4.8, 4.8, 3.0),
    "voxel_size": (0.15, 0.15, 0.2),
    "decoder": {"out_channels": (16, 24), "neck_channels": (16, 16)},
}


@cache
def published(network: str) -> dict[str, str]:
    """Shape and dtype of each entry of the original's state dict."""
    content = json.loads(GOLDEN.read_text())
    place = content["networks"].index(network)
    return {
        key: form
        for key, forms in content["entries"].items()
        for form, present in forms.items()
        if present[place] == "1"
    }


def form(value: Tensor) -> str:
    dtype = str(value.dtype).removeprefix("torch.")
    shape = "x".join(map(str, value.shape))
    return shape if dtype == "float32" else "x".join([dtype, *([shape] if shape else [])])


@pytest.mark.parametrize("name", PARAMETERS)
def test_state_dicts_are_the_published_ones(name: str) -> None:
    with torch.device("meta"):
        network = create_model(name)
    assert {key: form(value) for key, value in network.state_dict().items()} == published(name)
    assert sum(parameter.numel() for parameter in network.parameters()) == PARAMETERS[name]


@pytest.fixture
def network() -> nn.Module:
    torch.manual_seed(0)
    return create_model("bevfusion_det_l", **TINY).eval()


def written(path: Path, state: dict[str, Tensor]) -> Path:
    """A file as mmcv 1.x writes it."""
    torch.save(
        {"meta": {"epoch": 6, "iter": 100, "mmcv_version": "1.4.0"}, "state_dict": state}, path
    )
    return path


def test_a_published_file_sets_every_weight(tmp_path: Path, network: nn.Module) -> None:
    state = {
        key: torch.rand_like(value, dtype=torch.float32)
        for key, value in network.state_dict().items()
    }
    assert set(state) == set(published("bevfusion_det_l"))
    load_published(network, written(tmp_path / "det.pth", state))
    for key, value in network.state_dict().items():
        assert torch.equal(value, state[key].to(value.dtype)), key


def test_a_file_of_spconv_2_is_recognised(tmp_path: Path, network: nn.Module) -> None:
    before = {key: value.clone() for key, value in network.state_dict().items()}
    newer = {
        key: value.permute(4, 0, 1, 2, 3).contiguous() if value.dim() == 5 else value
        for key, value in before.items()
    }
    torch.manual_seed(1)
    other = create_model("bevfusion_det_l", **TINY)
    load_published(other, written(tmp_path / "det.pth", newer))
    assert all(torch.equal(value, before[key]) for key, value in other.state_dict().items())


def test_what_differs_is_named_and_nothing_is_changed(tmp_path: Path, network: nn.Module) -> None:
    before = {key: value.clone() for key, value in network.state_dict().items()}
    state = {key: value + 1 for key, value in before.items()}
    state["decoder.neck.deblocks.0.0.weight"] = torch.zeros(3, 3)
    del state["encoders.lidar.backbone.conv_input.0.weight"]
    state["heads.map.classifier.0.weight"] = torch.zeros(2)
    path = written(tmp_path / "other.pth", state)
    with pytest.raises(ValueError, match="3 differences") as error:
        load_published(network, path)
    message = str(error.value)
    assert "decoder.neck.deblocks.0.0.weight: (3, 3) in the file, (16, 16, 1, 1) in" in message
    assert "encoders.lidar.backbone.conv_input.0.weight: missing in the file" in message
    assert "heads.map.classifier.0.weight: not in the network" in message
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())


def test_counters_may_be_missing(tmp_path: Path, network: nn.Module) -> None:
    state = {
        key: value
        for key, value in network.state_dict().items()
        if not key.endswith("num_batches_tracked")
    }
    load_published(network, written(tmp_path / "det.pth", state))


class Payload:
    """What a file must not be able to run."""

    def __reduce__(self) -> tuple[type, tuple[str]]:
        return Path, ("/",)


def test_a_file_with_code_or_damage_is_refused(tmp_path: Path, network: nn.Module) -> None:
    torch.save({"meta": Payload(), "state_dict": network.state_dict()}, tmp_path / "code.pth")
    whole = written(tmp_path / "det.pth", network.state_dict()).read_bytes()
    (tmp_path / "half.pth").write_bytes(whole[: len(whole) // 2])
    for name in ("code.pth", "half.pth"):
        with pytest.raises(ValueError, match=f"read_weights: .*{name} must be a checkpoint"):
            load_published(network, tmp_path / name)
    with pytest.raises(FileNotFoundError, match=r"missing.pth"):
        load_published(network, tmp_path / "missing.pth")
