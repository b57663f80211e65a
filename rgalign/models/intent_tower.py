"""Intent tower: catalogue rows to unit vectors (paper 3.3, "Intent Tower").

    x_0 = [z_id; P z_sem],   z_i = unit(W cross(cross(x_0)))

The id table has the rows of the vocabulary ``intents``: 0 padding, 1 "unknown id", 2 + n the n-th intent. In training
an intent's id is replaced by the unknown one with probability ``id_dropout``, so that the unknown row means "judge by
the text". Intents without a click in training are always served from it.
"""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor, nn

from rgalign.config import Config
from rgalign.models.layers import CrossNetwork, unit
from rgalign.schema import FIRST, OOV


class IntentTowerConfig(Config):
    """Sizes of the intent tower. ``semantic_dim``: width of the projected text vector P z_sem."""

    id_dim: int = Field(default=32, gt=0)
    id_dropout: float = Field(default=0.1, ge=0, lt=1)
    semantic_dim: int = Field(default=64, gt=0)
    num_crosses: int = Field(default=2, ge=0)
    cross_rank: int | None = Field(default=None, gt=0)


class IntentFields(nn.Module):
    """The two inputs of an intent: its id embedding and its frozen text vector, centred and scaled by column.

    Args:
        num_intents: N.
        semantic: [N, S] text vectors of the catalogue rows, or None: ids only.
    """

    semantic: Tensor | None
    mean: Tensor
    scale: Tensor
    seen: Tensor

    def __init__(self, num_intents: int, semantic: Tensor | None, id_dim: int, id_dropout: float) -> None:
        super().__init__()
        self.id_dropout = id_dropout
        self.table = nn.Embedding(num_intents + FIRST, id_dim)
        nn.init.normal_(self.table.weight, std=0.05)
        self.register_buffer("seen", torch.ones(num_intents, dtype=torch.bool))
        self.register_buffer("semantic", None if semantic is None else semantic.float())
        # Text vectors of language models share a large common part; without it their differences are visible.
        if semantic is not None:
            deviation = semantic.float().std(dim=0, correction=0)
            self.register_buffer("mean", semantic.float().mean(dim=0))
            self.register_buffer("scale", deviation.where(deviation > EPS_STD, torch.ones_like(deviation)))

    def ids(self) -> Tensor:
        """[N, id_dim]."""
        known = self.seen
        if self.training and self.id_dropout > 0:
            known = known & (torch.rand(len(known), device=known.device) >= self.id_dropout)
        rows = torch.arange(len(known), device=known.device) + FIRST
        vectors: Tensor = self.table(torch.where(known, rows, OOV))
        return vectors

    def texts(self) -> Tensor | None:
        """[N, S]."""
        return None if self.semantic is None else (self.semantic - self.mean) / self.scale


EPS_STD = 1e-6


class IntentTower(nn.Module):
    """-> [N, d] unit vectors of the whole catalogue."""

    def __init__(
        self, config: IntentTowerConfig, num_intents: int, semantic: Tensor | None, dim: int, dropout: float
    ) -> None:
        super().__init__()
        self.fields = IntentFields(num_intents, semantic, config.id_dim, config.id_dropout)
        width = config.id_dim + (0 if semantic is None else config.semantic_dim)
        self.project = None if semantic is None else nn.Linear(semantic.shape[1], config.semantic_dim)
        self.cross = CrossNetwork(width, config.num_crosses, config.cross_rank)
        self.dropout = nn.Dropout(dropout)
        self.out = nn.Linear(width, dim)

    def forward(self) -> Tensor:
        fields = [self.fields.ids()]
        texts = self.fields.texts()
        if self.project is not None and texts is not None:
            fields.append(self.dropout(self.project(texts)))
        return unit(self.out(self.cross(torch.cat(fields, dim=-1))))
