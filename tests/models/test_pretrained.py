"""Reading image backbones' weights from the files of other projects."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pointlib.models.pretrained import load_image_backbone
from pointlib.models.resnet import ResNet
from pointlib.models.swin import SwinTransformer
from tests.models.camera_inputs import filled
from tests.models.deterministic_weights import uniform_input


def tiny_swin(window_size: int = 4) -> SwinTransformer:
    network = SwinTransformer(8, (2, 2), (2, 4), window_size, out_indices=(0, 1))
    assert isinstance(filled(network), SwinTransformer)
    return network


def original_names(network: SwinTransformer) -> dict[str, Tensor]:
    """The weights as microsoft/Swin-Transformer saves them: its names, its order of merged tokens, a classifier."""
    renamed = {}
    for key, value in network.state_dict().items():
        if key.startswith("norm"):
            continue
        for new, old in (
            ("stages.", "layers."),
            ("attn.w_msa.", "attn."),
            ("ffn.layers.0.0.", "mlp.fc1."),
            ("ffn.layers.1.", "mlp.fc2."),
            ("patch_embed.projection.", "patch_embed.proj."),
        ):
            key = key.replace(new, old)
        if ".downsample." in key:
            (*rows, columns), channels = value.shape, value.shape[-1] // 4
            parts = value.view(*rows, channels, 2, 2)
            order = [parts[..., 0, 0], parts[..., 1, 0], parts[..., 0, 1], parts[..., 1, 1]]
            value = torch.cat(order, -1)
            assert value.shape[-1] == columns
        renamed[key] = value.clone()
    renamed["layers.0.blocks.1.attn_mask"] = torch.zeros(6, 16, 16)
    renamed |= {"norm.weight": torch.ones(16), "norm.bias": torch.zeros(16)}
    return renamed | {"head.weight": torch.ones(10, 16), "head.bias": torch.zeros(10)}


def save(tmp_path: Path, content: object) -> Path:
    torch.save(content, tmp_path / "weights.pth")
    return tmp_path / "weights.pth"


def test_merging_equals_the_original_concatenation() -> None:
    """x[0::2, 0::2], x[1::2, 0::2], x[0::2, 1::2], x[1::2, 1::2], normed, reduced: section 3.1's code."""
    network = tiny_swin()
    merging = network.stages[0].downsample
    weights = original_names(network)
    x = uniform_input(1, (2, 6, 8, 8))
    parts = [x[:, 0::2, 0::2], x[:, 1::2, 0::2], x[:, 0::2, 1::2], x[:, 1::2, 1::2]]
    prefix = "layers.0.downsample."
    y = F.layer_norm(
        torch.cat(parts, -1), (32,), weights[f"{prefix}norm.weight"], weights[f"{prefix}norm.bias"]
    )
    want = y @ weights[f"{prefix}reduction.weight"].T
    assert isinstance(merging, nn.Module)
    torch.testing.assert_close(merging(x), want)


@pytest.mark.parametrize("around", ["", "model", "state_dict"])
def test_swin_from_the_original_names(tmp_path: Path, around: str) -> None:
    source = tiny_swin()
    weights: object = original_names(source)
    network = SwinTransformer(8, (2, 2), (2, 4), 4, out_indices=(0, 1)).eval()
    fresh = load_image_backbone(network, save(tmp_path, {around: weights} if around else weights))
    assert fresh == ["norm0.weight", "norm0.bias", "norm1.weight", "norm1.bias"]
    got, want = network.state_dict(), source.state_dict()
    for key in want:
        if key not in fresh:
            assert torch.equal(got[key], want[key]), key


@pytest.mark.parametrize(
    "prefix", ["backbone.", "encoders.camera.backbone.", "module.img_backbone."]
)
def test_swin_out_of_a_detector(tmp_path: Path, prefix: str) -> None:
    source = tiny_swin()
    weights = {prefix + key: value for key, value in source.state_dict().items()}
    weights["rpn_head.weight"] = torch.zeros(3)
    network = SwinTransformer(8, (2, 2), (2, 4), 4, out_indices=(0, 1))
    assert load_image_backbone(network, save(tmp_path, {"state_dict": weights})) == []
    for key, value in network.state_dict().items():
        assert torch.equal(value, source.state_dict()[key]), key


def test_position_tables_of_another_window_are_resized(tmp_path: Path) -> None:
    source, network = tiny_swin(window_size=7), tiny_swin(window_size=4)
    load_image_backbone(network, save(tmp_path, source.state_dict()))
    key = "stages.0.blocks.0.attn.w_msa.relative_position_bias_table"
    table, resized = source.state_dict()[key], network.state_dict()[key]
    image = F.interpolate(table.T.view(1, 2, 13, 13), (7, 7), mode="bicubic")
    torch.testing.assert_close(resized, image.view(2, 49).T)


def test_resnet_of_torchvision(tmp_path: Path) -> None:
    source = filled(ResNet(18, base_channels=4))
    weights = {k: v for k, v in source.state_dict().items() if "num_batches" not in k}
    weights |= {"fc.weight": torch.zeros(10, 32), "fc.bias": torch.zeros(10)}
    network = ResNet(18, base_channels=4).eval()
    assert load_image_backbone(network, save(tmp_path, weights)) == []
    x = uniform_input(3, (1, 3, 32, 32))
    assert torch.equal(network(x)[-1], source(x)[-1])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (ResNet(18, base_channels=4).state_dict(), "must hold a SwinTransformer of the same size"),
        (tiny_swin().state_dict() | {"extra": torch.zeros(1)}, "extra: not in the network"),
        (SwinTransformer(16, (2, 2), (2, 4), 4, out_indices=(0, 1)).state_dict(), "in the file"),
        ({}, "not in the file"),
        ([torch.zeros(1)], "must hold a state dict, got list"),
        ({"epoch": 3}, "must hold a state dict"),
    ],
)
def test_refuses_other_files(tmp_path: Path, content: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load_image_backbone(tiny_swin(), save(tmp_path, content))


def test_refuses_damaged_and_missing_files(tmp_path: Path) -> None:
    path = save(tmp_path, tiny_swin().state_dict())
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(ValueError, match=r"weights\.pth must be a file of tensors"):
        load_image_backbone(tiny_swin(), path)
    path.write_bytes(b"not a checkpoint")
    with pytest.raises(ValueError, match="damaged or foreign"):
        load_image_backbone(tiny_swin(), path)
    with pytest.raises(FileNotFoundError):
        load_image_backbone(tiny_swin(), tmp_path / "absent.pth")


def test_executes_nothing(tmp_path: Path) -> None:
    torch.save(tiny_swin(), tmp_path / "weights.pth")  # a whole module, pickled
    with pytest.raises(ValueError, match="damaged or foreign"):
        load_image_backbone(tiny_swin(), tmp_path / "weights.pth")
