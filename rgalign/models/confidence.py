"""Confidence weights w_j of eq. 5: how far a session's click is trusted. Used in training only.

Minimising sum_j w_j KL_j over w, as the paper prints it, gives w = 0. Here a click is a mixture of two: one that the
session explains, and one that knows nothing of the session and falls as clicks fall on average.

    P(click) = t P_pred(click) + (1 − t) P_any(click),     t = sigmoid(MLP(û, q̂, context)),     P_any = popularity

The predictor maximises the mixture's likelihood, and the weight is the posterior that the click was the session's own,

    a_j = sigmoid(logit t_j + log P_pred(click_j) − log P_any(click_j)),     w_j = clamp(a_j / mean(a), 0.1, 10)

which is the E-step of expectation maximisation. It cannot collapse: distrusting every click costs likelihood as soon as
the ranker knows more than the popularity. What counts is not how surprising a click is but whether the session explains
it better than chance does: noise falls on popular intents, which never surprise, and rare intents always do. Everything
the predictor reads is detached, so it cannot move the towers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from rgalign.config import Config
from rgalign.models.layers import PackedEmbedding
from rgalign.models.loss import Lists, click_target, cross_entropy


class ConfidenceConfig(Config):
    """The predictor.

    Args:
        minimum, maximum: bounds of w_j.
        warmup_epochs: first epochs with w = 1, while ranker and predictor learn.
    """

    hidden: int = Field(default=64, gt=0)
    minimum: float = Field(default=0.1, gt=0, le=1)
    maximum: float = Field(default=10.0, ge=1)
    warmup_epochs: int = Field(default=1, ge=0)


@dataclass(frozen=True)
class Surprise:
    """Of each list's click, in nats, detached.

    Args:
        session: [B] cross-entropy of the click under P_pred.
        chance: [B] under P_any, the popularity of the list's intents.
        valid: [B] bool, False for lists without a click.
    """

    session: Tensor
    chance: Tensor
    valid: Tensor

    @classmethod
    @torch.no_grad()
    def of(cls, lists: Lists) -> Surprise:
        wanted = click_target(lists.labels, lists.mask, "normalized")
        session, chance = (cross_entropy(logits, wanted, lists.mask) for logits in (lists.logits, lists.popularity))
        return cls(session, chance, lists.has_click)


class ConfidenceWeights(nn.Module):
    """(û, q̂, context, surprise), all detached -> w [B] of mean about 1, and the predictor's loss."""

    def __init__(self, config: ConfidenceConfig, dim: int, sizes: Sequence[int]) -> None:
        super().__init__()
        self.config = config
        self.context = PackedEmbedding(sizes, 4)
        width = 2 * dim + 4 * len(sizes)
        self.mlp = nn.Sequential(nn.Linear(width, config.hidden), nn.GELU(), nn.Linear(config.hidden, 1))

    def forward(
        self, user: Tensor, query: Tensor | None, categorical: Tensor, surprise: Surprise, *, epoch: int
    ) -> tuple[Tensor, Tensor]:
        other = torch.zeros_like(user) if query is None else query
        context = self.context(categorical).flatten(1)
        trust = self.mlp(torch.cat((user.detach(), other.detach(), context), dim=-1)).squeeze(-1).float()
        valid = surprise.valid.float()
        count = valid.sum().clamp_min(1.0)
        own = functional.logsigmoid(trust) - surprise.session
        by_chance = functional.logsigmoid(-trust) - surprise.chance
        loss = -(torch.logaddexp(own, by_chance) * valid).sum() / count
        if epoch < self.config.warmup_epochs:
            return torch.ones_like(valid), loss
        posterior = (own - by_chance).detach().sigmoid()
        mean = (posterior * valid).sum() / count
        return (posterior / mean.clamp_min(1e-12)).clamp(self.config.minimum, self.config.maximum), loss
