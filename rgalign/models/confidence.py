"""Confidence weights w_j of eq. 5: how far a session's click is trusted. Used in training only.

Minimising sum_j w_j KL_j over w, as the paper prints it, gives w = 0. Here the predictor has a loss of its own,

    mean_j  a_j e_j − λ log a_j,     a_j = sigmoid(MLP(û, q̂, context, agreement)),     e_j = cross-entropy of the click

with its minimum at a = min(1, λ / e): attenuation in the manner of Kendall and Gal (2017). It cannot collapse, as
−log a has no bound. The ranker is weighted by w_j = clamp(a_j / mean(a), 0.1, 10). Everything the predictor reads is
detached, so it cannot move the towers. What it reads includes what the ranker thinks of the click: a predictor that
does not see the label could only learn which contexts are noisy, not which clicks.
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
from rgalign.models.loss import Lists, click_target


class ConfidenceConfig(Config):
    """The predictor.

    Args:
        penalty: λ: a click with a surprise of λ nats or less is fully trusted. At 0.1 most weight goes to clicks that
            are known already, which costs quality (docs/ranker.md).
        minimum, maximum: bounds of w_j.
        warmup_epochs: first epochs with w = 1, while ranker and predictor learn.
    """

    hidden: int = Field(default=64, gt=0)
    penalty: float = Field(default=1.0, gt=0)
    minimum: float = Field(default=0.1, gt=0, le=1)
    maximum: float = Field(default=10.0, ge=1)
    warmup_epochs: int = Field(default=1, ge=0)


@dataclass(frozen=True)
class Agreement:
    """What the ranker thinks of a click, detached: surprise, expected surprise and the best intent's log-probability.

    Args:
        surprise: [B] cross-entropy of the click under P_pred.
        entropy: [B] entropy of P_pred: the surprise to expect if the click was drawn from it.
        best: [B] log-probability of the likeliest intent.
        valid: [B] bool, False for lists without a click.
    """

    surprise: Tensor
    entropy: Tensor
    best: Tensor
    valid: Tensor

    @classmethod
    @torch.no_grad()
    def of(cls, lists: Lists) -> Agreement:
        log_p = lists.logits.detach().float().log_softmax(dim=-1)
        wanted = click_target(lists.labels, lists.mask, "normalized")
        inside = log_p.masked_fill(~lists.mask, 0.0)
        entropy = -(log_p.exp() * inside).sum(-1)
        return cls(-(wanted * inside).sum(-1), entropy, log_p.amax(-1), lists.has_click)

    def features(self) -> Tensor:
        """[B, 4] of order one."""
        return torch.stack((self.surprise, self.entropy, self.surprise - self.entropy, self.best), dim=-1) / 4


class ConfidenceWeights(nn.Module):
    """(û, q̂, context, agreement), all detached -> w [B] of mean about 1, and the predictor's loss."""

    def __init__(self, config: ConfidenceConfig, dim: int, sizes: Sequence[int]) -> None:
        super().__init__()
        self.config = config
        self.context = PackedEmbedding(sizes, 4)
        width = 2 * dim + 4 * len(sizes) + 4
        self.mlp = nn.Sequential(nn.Linear(width, config.hidden), nn.GELU(), nn.Linear(config.hidden, 1))

    def forward(
        self, user: Tensor, query: Tensor | None, categorical: Tensor, agreement: Agreement, *, epoch: int
    ) -> tuple[Tensor, Tensor]:
        other = torch.zeros_like(user) if query is None else query
        context = self.context(categorical).flatten(1)
        inputs = torch.cat((user.detach(), other.detach(), context, agreement.features()), dim=-1)
        logit = self.mlp(inputs).squeeze(-1).float()
        valid = agreement.valid.float()
        count = valid.sum().clamp_min(1.0)
        attenuated = logit.sigmoid() * agreement.surprise - self.config.penalty * functional.logsigmoid(logit)
        loss = (attenuated * valid).sum() / count
        if epoch < self.config.warmup_epochs:
            return torch.ones_like(valid), loss
        trust = logit.detach().sigmoid()
        mean = (trust * valid).sum() / count
        return (trust / mean.clamp_min(1e-12)).clamp(self.config.minimum, self.config.maximum), loss
