"""Weights of image backbones from the files of other projects: ImageNet, COCO or nuImages, by path.

Understood are the names of microsoft/Swin-Transformer, of torchvision and of mmdetection, and whole checkpoints of
detectors that hold such a backbone (mit-han-lab/bevfusion starts from a nuImages detector). Nothing is downloaded, and
nothing in a file is executed.
"""

from __future__ import annotations

import os
import pickle
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from pointlib.models.resnet import ResNet
from pointlib.models.swin import SwinTransformer

PREFIXES = ("module.", "img_backbone.", "encoders.camera.backbone.", "backbone.")
"""What stands before a backbone's names in checkpoints of whole networks."""
SWIN_ORIGINAL_NAMES = (
    ("layers.", "stages."),
    (".attn.", ".attn.w_msa."),
    (".mlp.fc1.", ".ffn.layers.0.0."),
    (".mlp.fc2.", ".ffn.layers.1."),
    ("patch_embed.proj.", "patch_embed.projection."),
)
"""Names of microsoft/Swin-Transformer and what they are here."""


def load_image_backbone(
    network: SwinTransformer | ResNet, path: str | os.PathLike[str]
) -> list[str]:
    """Copy a file's backbone weights into a network.

    Args:
        network: Receives the weights.
        path: File of `torch.save`: a state dict, or one under "model" or "state_dict".

    Returns:
        Names of entries that the file does not have and that keep their fresh values: only the norms of outputs of a
        Swin Transformer, which classifiers lack.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The file is damaged or of another kind of network; the message names the first keys that differ.
    """
    name = "load_image_backbone"
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, KeyError, ValueError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(
            f"{name}: {path} must be a file of tensors written by torch.save, got a damaged or foreign one ({reason})"
        ) from error
    weights = backbone_weights(content, name, path)
    if isinstance(network, SwinTransformer):
        weights = swin_weights(weights, network)
    else:
        weights = {key: value for key, value in weights.items() if not key.startswith("fc.")}
    own = network.state_dict()
    optional = {f"norm{i}.{kind}" for i in range(8) for kind in ("weight", "bias")} & set(own)
    if isinstance(network, ResNet):
        optional = {key for key in own if key.endswith("num_batches_tracked")}
    missing = [key for key in own if key not in weights]
    differences = [f"{key}: not in the file" for key in missing if key not in optional]
    differences += [f"{key}: not in the network" for key in weights if key not in own]
    differences += [
        f"{key}: {tuple(own[key].shape)} in the network, {tuple(value.shape)} in the file"
        for key, value in weights.items()
        if key in own and own[key].shape != value.shape
    ]
    if differences:
        shown = "\n  ".join(differences[:3])
        raise ValueError(
            f"{name}: {path} must hold a {type(network).__name__} of the same size; {len(differences)} differences, "
            f"the first:\n  {shown}\nGive weights of this backbone, or change the backbone's arguments."
        )
    network.load_state_dict(weights, strict=False)
    return [key for key in missing if not key.endswith("num_batches_tracked")]


def backbone_weights(content: Any, name: str, path: str | os.PathLike[str]) -> dict[str, Tensor]:
    """The backbone's entries of a loaded file, without the prefixes of the network around it."""
    for entry in ("state_dict", "model"):
        if isinstance(content, Mapping) and isinstance(content.get(entry), Mapping):
            content = content[entry]
    if not isinstance(content, Mapping) or not all(isinstance(v, Tensor) for v in content.values()):
        raise ValueError(
            f"{name}: {path} must hold a state dict, got {type(content).__name__}; "
            "save the network's state_dict(), not the network"
        )
    weights = {str(key).removeprefix("module."): value for key, value in content.items()}
    for prefix in PREFIXES:
        inside = {k.removeprefix(prefix): v for k, v in weights.items() if k.startswith(prefix)}
        weights = inside or weights
    return weights


def swin_weights(weights: Mapping[str, Tensor], network: SwinTransformer) -> dict[str, Tensor]:
    """Bring a Swin Transformer's weights to mmdetection's names and order, as its `swin_convert` does.

    The original concatenates the four tokens it merges, mmdetection interleaves them. Tables of relative positions of
    another window are resized bicubically.

    Args:
        weights: Under names of microsoft/Swin-Transformer or mmdetection.
        network: That they are for.

    Returns:
        The weights under this project's names, without the classifier.
    """
    own, found = network.state_dict(), {}
    original = any(key.startswith("layers.") for key in weights)
    for key, value in weights.items():
        if original:
            if key.startswith(("head.", "norm.")) or key.endswith("attn_mask"):
                continue
            if ".downsample." in key:
                parts = value.view(*value.shape[:-1], 4, -1)[..., [0, 2, 1, 3], :]
                value = parts.transpose(-1, -2).flatten(-2)
            for old, new in SWIN_ORIGINAL_NAMES:
                key = key.replace(old, new, 1)
        if key.endswith("relative_position_index"):
            value = own.get(key, value)  # follows from the window
        elif key.endswith("relative_position_bias_table") and key in own:
            value = _resize_table(value, own[key].shape[0])
        found[key] = value
    return found


def _resize_table(table: Tensor, length: int) -> Tensor:
    """(S * S, heads) -> (length, heads)."""
    if len(table) == length:
        return table
    old, new = round(len(table) ** 0.5), round(length**0.5)
    image = table.T.reshape(1, -1, old, old)
    return F.interpolate(image, (new, new), mode="bicubic")[0].flatten(1).T.contiguous()
