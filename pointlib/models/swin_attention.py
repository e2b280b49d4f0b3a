"""Attention of the Swin Transformer: within windows that tile a map, every other time shifted by half a window.

Paper: Liu et al., Swin Transformer: Hierarchical Vision Transformer using Shifted Windows, ICCV 2021, section 3.2.
Parameter names are mmdetection's.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

PRETRAINING_STD = 0.02
"""Standard deviation that linear layers and position tables start with."""
MASKED = -100.0
"""Added to the logit of a pair of tokens that do not see each other, as published; exp(-100) is nothing in float32."""


class WindowMSA(nn.Module):
    """Self-attention within windows, with a learned bias for each relative position.

    Args:
        embed_dims: Channels.
        num_heads: Heads.
        window_size: Edge of a window [tokens].
        qkv_bias: Whether queries, keys and values have a bias.
        attn_drop_rate: Dropout of attention weights.
        proj_drop_rate: Dropout of the output.
    """

    relative_position_index: Tensor

    def __init__(
        self,
        embed_dims: int,
        num_heads: int,
        window_size: int,
        qkv_bias: bool = True,
        attn_drop_rate: float = 0.0,
        proj_drop_rate: float = 0.0,
    ) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.attn_drop_rate = attn_drop_rate
        span = 2 * window_size - 1
        self.relative_position_bias_table = nn.Parameter(torch.zeros(span**2, num_heads))
        row, column = torch.meshgrid(*[torch.arange(window_size)] * 2, indexing="ij")
        place = (row * span + column).flatten()
        index = place[:, None] - place[None, :] + (span + 1) * (window_size - 1)
        self.register_buffer("relative_position_index", index)
        self.qkv = nn.Linear(embed_dims, 3 * embed_dims, bias=qkv_bias)
        self.proj = nn.Linear(embed_dims, embed_dims)
        self.proj_drop = nn.Dropout(proj_drop_rate)
        nn.init.trunc_normal_(self.relative_position_bias_table, std=PRETRAINING_STD)

    def forward(self, windows: Tensor, mask: Tensor | None = None) -> Tensor:
        """Attend within each window.

        Args:
            windows: (B, W, T, C) tokens of W windows of T tokens.
            mask: (W, T, T) added to the logits; None adds nothing.

        Returns:
            (B, W, T, C).
        """
        images, count, tokens, channels = windows.shape
        qkv = self.qkv(windows).view(images, count, tokens, 3, self.num_heads, -1)
        qkv = qkv.permute(3, 0, 1, 4, 2, 5)  # (3, B, W, heads, T, C / heads)
        bias = self.relative_position_bias_table[self.relative_position_index].permute(2, 0, 1)
        bias = bias[None].to(qkv.dtype)
        if mask is None:
            query, key, value = qkv.flatten(1, 2)
        else:  # windows join the heads, so that one bias serves all images
            query, key, value = qkv.flatten(2, 3)
            bias = (bias + mask[:, None].to(bias.dtype)).flatten(0, 1)[None]
        drop = self.attn_drop_rate if self.training else 0.0
        out = F.scaled_dot_product_attention(query, key, value, bias, dropout_p=drop)
        out = out.view(images, count, self.num_heads, tokens, -1).transpose(2, 3)
        return self.proj_drop(self.proj(out.reshape(images, count, tokens, channels)))


class ShiftWindowMSA(nn.Module):
    """Window attention on a map, whose windows may be shifted by half a window (figure 4).

    Maps are padded with zeros to whole windows at the right and below, and the padding takes part, as published.

    Args:
        window_size: Edge of a window [tokens].
        shift_size: How far windows are shifted, right and down [tokens]; 0 for plain windows.
        w_msa: Arguments of `WindowMSA` but its window size.
    """

    def __init__(self, window_size: int, shift_size: int, **w_msa: Any) -> None:
        super().__init__()
        self.window_size = window_size
        self.shift_size = shift_size
        self.w_msa = WindowMSA(window_size=window_size, **w_msa)
        self._mask = torch.empty(0)
        self._mask_size = (0, 0)

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, C) -> (B, H, W, C)."""
        images, height, width, channels = x.shape
        size, shift = self.window_size, self.shift_size
        right, below = -width % size, -height % size
        x = F.pad(x, (0, 0, 0, right, 0, below)) if right or below else x
        if shift:
            x = x.roll((-shift, -shift), (1, 2))
        rows, columns = x.shape[1] // size, x.shape[2] // size
        x = x.view(images, rows, size, columns, size, channels).transpose(2, 3)
        mask = self._shift_mask(rows * size, columns * size, x.device) if shift else None
        x = self.w_msa(x.reshape(images, rows * columns, size * size, channels), mask)
        x = x.view(images, rows, columns, size, size, channels).transpose(2, 3)
        x = x.reshape(images, rows * size, columns * size, channels)
        if shift:
            x = x.roll((shift, shift), (1, 2))
        return x[:, :height, :width]

    def _shift_mask(self, height: int, width: int, device: torch.device) -> Tensor:
        """(W, T, T) mask that separates tokens which rolling made neighbours; kept for the next map of this size."""
        if self._mask_size != (height, width) or self._mask.device != device:
            size, shift = self.window_size, self.shift_size
            rows, columns = (
                (torch.arange(n, device=device) >= n - size).int()
                + (torch.arange(n, device=device) >= n - shift)
                for n in (height, width)
            )
            region = (3 * rows[:, None] + columns).view(height // size, size, width // size, size)
            region = region.transpose(1, 2).reshape(-1, size * size)
            apart = region[:, None, :] != region[:, :, None]
            self._mask = apart * MASKED
            self._mask_size = (height, width)
        return self._mask
