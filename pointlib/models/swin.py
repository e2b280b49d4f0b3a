"""Swin Transformer: the image backbone of BEVFusion.

Paper: Liu et al., Swin Transformer: Hierarchical Vision Transformer using Shifted Windows, ICCV 2021. Parameter names
are mmdetection's, which mit-han-lab/bevfusion uses; `pointlib.models.pretrained` reads the authors' own files too.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from pointlib.models.swin_attention import PRETRAINING_STD, ShiftWindowMSA


class FFN(nn.Module):
    """Two linear layers with a GELU between them."""

    def __init__(self, embed_dims: int, feedforward_channels: int, drop_rate: float) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Sequential(
                nn.Linear(embed_dims, feedforward_channels), nn.GELU(), nn.Dropout(drop_rate)
            ),
            nn.Linear(feedforward_channels, embed_dims),
            nn.Dropout(drop_rate),
        )

    def forward(self, x: Tensor) -> Tensor:
        """(..., C) -> (..., C)."""
        return self.layers(x)


class SwinBlock(nn.Module):
    """Attention and feed-forward, each behind a layer norm and beside a skip connection (equation 3).

    Args:
        window_size: Edge of a window [tokens].
        shift: Whether windows are shifted by half a window.
        embed_dims, num_heads, qkv_bias, attn_drop_rate: As of `WindowMSA`.
        feedforward_channels: Hidden channels of the feed-forward part.
        drop_rate: Dropout of both parts' outputs.
        drop_path_rate: Probability that an image skips a part in training (stochastic depth).
        with_cp: Whether to recompute the block in the backward pass rather than keep its activations.
    """

    def __init__(
        self,
        embed_dims: int,
        num_heads: int,
        feedforward_channels: int,
        window_size: int,
        shift: bool,
        qkv_bias: bool,
        drop_rate: float,
        attn_drop_rate: float,
        drop_path_rate: float,
        with_cp: bool,
    ) -> None:
        super().__init__()
        self.with_cp = with_cp
        self.drop_path_rate = drop_path_rate
        self.norm1 = nn.LayerNorm(embed_dims)
        self.attn = ShiftWindowMSA(
            window_size,
            window_size // 2 if shift else 0,
            embed_dims=embed_dims,
            num_heads=num_heads,
            qkv_bias=qkv_bias,
            attn_drop_rate=attn_drop_rate,
            proj_drop_rate=drop_rate,
        )
        self.norm2 = nn.LayerNorm(embed_dims)
        self.ffn = FFN(embed_dims, feedforward_channels, drop_rate)

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, C) -> (B, H, W, C)."""
        if self.with_cp and torch.is_grad_enabled():
            return checkpoint(self._forward, x, use_reentrant=False)
        return self._forward(x)

    def _forward(self, x: Tensor) -> Tensor:
        x = x + self._drop_path(self.attn(self.norm1(x)))
        return x + self._drop_path(self.ffn(self.norm2(x)))

    def _drop_path(self, x: Tensor) -> Tensor:
        """Zero whole images and scale the others up, so that the expected value stays."""
        if not self.training or not self.drop_path_rate:
            return x
        kept = 1 - self.drop_path_rate
        keep = torch.rand(len(x), 1, 1, 1, device=x.device) < kept
        return x * (keep / kept).to(x.dtype)


class PatchEmbed(nn.Module):
    """Patches of the image as tokens; padded at the right and below to whole patches."""

    def __init__(self, in_channels: int, embed_dims: int, patch_size: int, norm: bool) -> None:
        super().__init__()
        self.patch_size = patch_size
        self.projection = nn.Conv2d(in_channels, embed_dims, patch_size, patch_size)
        self.norm = nn.LayerNorm(embed_dims) if norm else None

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, ceil(H / patch), ceil(W / patch), C)."""
        height, width = images.shape[2:]
        right, below = -width % self.patch_size, -height % self.patch_size
        x = self.projection(F.pad(images, (0, right, 0, below))).permute(0, 2, 3, 1)
        return self.norm(x) if self.norm is not None else x


class PatchMerging(nn.Module):
    """Two by two tokens become one of twice the channels (section 3.1).

    The four tokens' channels are interleaved as `torch.nn.Unfold` does: (channel, row, column).
    """

    def __init__(self, in_channels: int, norm: bool) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(4 * in_channels) if norm else None
        self.reduction = nn.Linear(4 * in_channels, 2 * in_channels, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, C) -> (B, ceil(H / 2), ceil(W / 2), 2 C)."""
        x = F.pad(x, (0, 0, 0, x.shape[2] % 2, 0, x.shape[1] % 2))
        images, height, width, channels = x.shape
        x = x.view(images, height // 2, 2, width // 2, 2, channels)
        x = x.permute(0, 1, 3, 5, 2, 4).flatten(3)
        return self.reduction(self.norm(x) if self.norm is not None else x)


class SwinStage(nn.Module):
    """Blocks of one resolution, every other one with shifted windows, and the step to the next resolution."""

    def __init__(self, blocks: list[SwinBlock], downsample: PatchMerging | None) -> None:
        super().__init__()
        self.blocks = nn.Sequential(*blocks)
        self.downsample = downsample


class SwinTransformer(nn.Module):
    """Maps of an image at strides 4, 8, 16 and 32.

    Args:
        embed_dims: Channels of the first stage; each further one has twice as many.
        depths: Blocks of each stage.
        num_heads: Attention heads of each stage.
        window_size: Edge of an attention window [tokens].
        mlp_ratio: Hidden channels of the feed-forward parts over their channels.
        qkv_bias: Whether queries, keys and values have a bias.
        drop_rate: Dropout of outputs.
        attn_drop_rate: Dropout of attention weights.
        drop_path_rate: Stochastic depth of the last block; it grows from 0 at the first.
        patch_norm: Whether embedding and merging of patches end in and begin with a layer norm.
        out_indices: Stages to return, each through a layer norm of its own.
        with_cp: Whether blocks are recomputed in the backward pass: a tenth of the activations is kept, for the time of
            one more forward pass.
        frozen_stages: -1 trains all; 0 freezes the patch embedding, i > 0 also the first i stages.
        in_channels: Channels of the image.
        patch_size: Edge of a patch [pixels].
    """

    def __init__(
        self,
        embed_dims: int = 96,
        depths: Sequence[int] = (2, 2, 6, 2),
        num_heads: Sequence[int] = (3, 6, 12, 24),
        window_size: int = 7,
        mlp_ratio: int = 4,
        qkv_bias: bool = True,
        drop_rate: float = 0.0,
        attn_drop_rate: float = 0.0,
        drop_path_rate: float = 0.2,
        patch_norm: bool = True,
        out_indices: Sequence[int] = (1, 2, 3),
        with_cp: bool = False,
        frozen_stages: int = -1,
        in_channels: int = 3,
        patch_size: int = 4,
    ) -> None:
        super().__init__()
        if len(num_heads) != len(depths) or not set(out_indices) <= set(range(len(depths))):
            raise ValueError(
                "SwinTransformer: num_heads must have one number a stage and out_indices name stages, "
                f"got depths {list(depths)}, num_heads {list(num_heads)}, out_indices {list(out_indices)}"
            )
        self.out_indices = tuple(out_indices)
        self.frozen_stages = frozen_stages
        self.out_channels = tuple(embed_dims * 2**i for i in self.out_indices)
        self.patch_embed = PatchEmbed(in_channels, embed_dims, patch_size, patch_norm)
        self.drop_after_pos = nn.Dropout(drop_rate)
        rates = iter(torch.linspace(0, drop_path_rate, sum(depths), device="cpu").tolist())
        self.stages = nn.ModuleList()
        for i, depth in enumerate(depths):
            channels = embed_dims * 2**i
            blocks = [
                SwinBlock(
                    channels,
                    num_heads[i],
                    mlp_ratio * channels,
                    window_size,
                    shift=j % 2 == 1,
                    qkv_bias=qkv_bias,
                    drop_rate=drop_rate,
                    attn_drop_rate=attn_drop_rate,
                    drop_path_rate=next(rates),
                    with_cp=with_cp,
                )
                for j in range(depth)
            ]
            last = i == len(depths) - 1
            self.stages.append(
                SwinStage(blocks, None if last else PatchMerging(channels, patch_norm))
            )
        for i in self.out_indices:
            self.add_module(f"norm{i}", nn.LayerNorm(embed_dims * 2**i))
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=PRETRAINING_STD)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        self.train()

    def forward(self, images: Tensor) -> list[Tensor]:
        """Encode images.

        Args:
            images: (B, 3, H, W) normalised RGB.

        Returns:
            For each of out_indices, (B, C, h, w); their memory is channels-last.

        Raises:
            ValueError: Another shape.
        """
        channels = self.patch_embed.projection.in_channels
        if images.dim() != 4 or images.shape[1] != channels:
            raise ValueError(
                f"SwinTransformer: images must be (B, {channels}, H, W), got {tuple(images.shape)}"
            )
        x = self.drop_after_pos(self.patch_embed(images))
        maps = []
        for i, stage in enumerate(self.stages):
            assert isinstance(stage, SwinStage)
            x = stage.blocks(x)
            if i in self.out_indices:
                maps.append(self.get_submodule(f"norm{i}")(x).permute(0, 3, 1, 2))
            if stage.downsample is not None:
                x = stage.downsample(x)
        return maps

    def train(self, mode: bool = True) -> SwinTransformer:
        """Set training mode; frozen stages stay in evaluation mode."""
        super().train(mode)
        frozen: list[nn.Module] = [self.patch_embed] if self.frozen_stages >= 0 else []
        for i in range(self.frozen_stages):
            frozen.append(self.stages[i])
            if i in self.out_indices:
                frozen.append(self.get_submodule(f"norm{i}"))
        for module in frozen:
            module.eval().requires_grad_(False)
        return self
