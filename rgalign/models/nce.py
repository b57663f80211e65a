"""NCE between sessions and intents as HLLM trains it (A4), and the projection it is taken through.

    logits[b, m] = scale * cos(user_b, item_m),   scale = exp(clamp(log_scale, 0, ln 100)), learnable from 1 / 0.07
    a negative m of session b is left out where the session clicked it too, or cos(item_pos, item_m) > 0.99

Raw states of a language model share one large direction: at a trained item token of SmolLM2, 87 % of Boston's pairs of
intents have a cosine above 0.99, and that threshold would leave hardly a negative. So states are standardised column by
column before they are projected.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

FALSE_NEGATIVE_COSINE = 0.99
EPS_STD = 1e-6


class LogitScale(nn.Module):
    """exp of a learnable number, kept in [1, 100]."""

    def __init__(self) -> None:
        super().__init__()
        self.log_scale = nn.Parameter(torch.tensor(math.log(1 / 0.07)))

    def forward(self) -> Tensor:
        # HLLM clamps in place before each step; a clamp in the graph would stop the gradient at the bound for good.
        with torch.no_grad():
            self.log_scale.clamp_(0.0, math.log(100.0))
        return self.log_scale.exp()


class ItemProjection(nn.Module):
    """Item states [n, D] -> unit vectors [n, dim]: standardised by column, then a linear map.

    It begins as a random orthogonal map, which keeps the angles of the standardised states as well as ``dim`` can.
    """

    mean: Tensor
    scale: Tensor

    def __init__(self, states: Tensor, dim: int) -> None:
        """Args: states: [N, D], see :meth:`fit`."""
        super().__init__()
        self.register_buffer("mean", torch.zeros(states.shape[1]))
        self.register_buffer("scale", torch.ones(states.shape[1]))
        self.fit(states)
        self.linear = nn.Linear(states.shape[1], dim, bias=False)
        nn.init.orthogonal_(self.linear.weight)

    @torch.no_grad()
    def fit(self, states: Tensor) -> None:
        """Takes mean and deviation from [N, D] states: as the item token moves, so does what all states share."""
        deviation = states.std(dim=0, correction=0)
        self.mean.copy_(states.mean(dim=0))
        self.scale.copy_(deviation.where(deviation > EPS_STD, torch.ones_like(deviation)))

    def forward(self, states: Tensor) -> Tensor:
        return functional.normalize(self.linear((states - self.mean) / self.scale), dim=-1)


def nce_logits(
    users: Tensor,
    items: Tensor,
    positive: Tensor,
    clicked: Tensor,
    scale: Tensor,
    threshold: float = FALSE_NEGATIVE_COSINE,
) -> Tensor:
    """Scaled cosines with false negatives at -inf.

    Args:
        users: [B, d] and items: [M, d], unit vectors; the M intents are distinct.
        positive: [B] int64, the column of each session's positive.
        clicked: [B, M] bool, every intent that the session clicked.
        scale: the logit scale.

    Returns:
        [B, M].
    """
    alike = (items @ items.T)[positive] > threshold
    own = functional.one_hot(positive, len(items)).bool()
    return (scale * (users @ items.T)).masked_fill((alike | clicked) & ~own, -torch.inf)


def nce_loss(logits: Tensor, positive: Tensor) -> Tensor:
    return functional.cross_entropy(logits, positive)
