"""Query tower: latent query to z_q, one linear layer (paper 3.3, "Query Tower").

    z_q = W norm(e_LTP) + b,   and 0 where e_LTP = 0: a row without a latent query contributes nothing

``standardize`` centres and scales each coordinate by the training split's statistics. It is linear, so it folds into W
and b for serving; last-token states need it, as a few coordinates carry most of their norm.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

InputNorm = Literal["none", "layernorm", "standardize"]


class QueryTower(nn.Module):
    """[B, D] latent queries -> [B, d], not normalised.

    Args:
        dropout: on the latent query's coordinates.
        absence: in training, the probability that a row's latent query is taken for missing, so that the user tower
            learns to rank alone, as it must when the reasoner is late.
    """

    mean: Tensor
    scale: Tensor

    def __init__(self, latent_dim: int, dim: int, input_norm: InputNorm, dropout: float, absence: float = 0.0) -> None:
        super().__init__()
        self.input_norm = input_norm
        self.absence = absence
        self.norm = nn.LayerNorm(latent_dim) if input_norm == "layernorm" else None
        self.dropout = nn.Dropout(dropout)
        self.linear = nn.Linear(latent_dim, dim)
        self.register_buffer("mean", torch.zeros(latent_dim))
        self.register_buffer("scale", torch.ones(latent_dim))

    def set_statistics(self, latents: Tensor) -> None:
        """Keeps mean and deviation of training latent queries [n, D]; a constant coordinate keeps scale 1."""
        if self.input_norm == "standardize":
            deviation = latents.float().std(dim=0, correction=0)
            self.mean.copy_(latents.float().mean(dim=0))
            self.scale.copy_(torch.where(deviation > 1e-6, deviation, torch.ones_like(deviation)))

    def forward(self, latent: Tensor) -> Tensor:
        present = (latent != 0).any(dim=-1, keepdim=True)
        if self.training and self.absence:
            present = present & (torch.rand_like(present, dtype=torch.float32) >= self.absence)
        states = (latent.float() - self.mean) / self.scale
        if self.norm is not None:
            states = self.norm(states)
        return torch.where(present, self.linear(self.dropout(states)), 0.0)

    def folded(self) -> tuple[Tensor, Tensor]:
        """(W [d, D], b [d]) with the standardisation folded in: z_q = W e + b. Not for ``layernorm``."""
        assert self.norm is None, "layer normalisation does not fold into a linear layer"
        weight = self.linear.weight / self.scale
        return weight, self.linear.bias - functional.linear(self.mean, weight)
