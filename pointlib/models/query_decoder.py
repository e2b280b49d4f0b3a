"""One layer in which object queries exchange information with each other and read a bird's-eye map.

Bai et al., TransFusion, CVPR 2022, section 3.2, on the decoder layer of DETR (norm after each residual). Parameter
names are those of mit-han-lab/bevfusion.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class PositionEmbedding(nn.Module):
    """Learned embedding of places on the map.

    Args:
        channels: Features of the embedding.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.position_embedding_head = nn.Sequential(
            nn.Conv1d(2, channels, 1),
            nn.BatchNorm1d(channels),
            nn.ReLU(inplace=True),
            nn.Conv1d(channels, channels, 1),
        )

    def forward(self, positions: Tensor) -> Tensor:
        """(B, P, 2) x, y [cells] to (B, P, channels).

        The first layer computes in float32 under autocast too: bfloat16 cannot tell cells 128 and 128.5 apart.
        """
        first, *rest = self.position_embedding_head
        with torch.autocast(positions.device.type, enabled=False):
            embedding = first(positions.mT)
        for layer in rest:
            embedding = layer(embedding)
        return embedding.mT


class QueryDecoderLayer(nn.Module):
    """Self-attention of the queries, cross-attention to the map, two linear layers.

    Embeddings of positions are added to queries, keys and values, unlike in DETR, where values have none.

    Args:
        channels: Features of a query and of a cell of the map.
        num_heads: Attention heads.
        ffn_channels: Features between the two linear layers.
        dropout: Of attention weights and residual branches.
    """

    def __init__(self, channels: int, num_heads: int, ffn_channels: int, dropout: float) -> None:
        super().__init__()
        self.self_attn = nn.MultiheadAttention(channels, num_heads, dropout, batch_first=True)
        self.multihead_attn = nn.MultiheadAttention(channels, num_heads, dropout, batch_first=True)
        self.linear1 = nn.Linear(channels, ffn_channels)
        self.linear2 = nn.Linear(ffn_channels, channels)
        self.norm1 = nn.LayerNorm(channels)
        self.norm2 = nn.LayerNorm(channels)
        self.norm3 = nn.LayerNorm(channels)
        self.dropout = nn.Dropout(dropout)
        for parameter in self.parameters():
            if parameter.dim() > 1:
                nn.init.xavier_uniform_(parameter)
        self.self_posembed = PositionEmbedding(channels)
        self.cross_posembed = PositionEmbedding(channels)

    def forward(self, query: Tensor, key: Tensor, query_pos: Tensor, key_pos: Tensor) -> Tensor:
        """Refine queries.

        Args:
            query: (B, P, C) features of the queries.
            key: (B, K, C) features of the map's cells.
            query_pos: (B, P, 2) where the queries are [cells].
            key_pos: (B, K, 2) where the cells are [cells].

        Returns:
            (B, P, C).
        """
        query_embedding = self.self_posembed(query_pos)
        placed = query + query_embedding
        attended = self.self_attn(placed, placed, placed, need_weights=False)[0]
        query = self.norm1(query + self.dropout(attended))
        memory = key + self.cross_posembed(key_pos)
        attended = self.multihead_attn(query + query_embedding, memory, memory, need_weights=False)[
            0
        ]
        query = self.norm2(query + self.dropout(attended))
        hidden = self.dropout(F.relu(self.linear1(query)))
        return self.norm3(query + self.dropout(self.linear2(hidden)))
