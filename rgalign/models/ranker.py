"""Ranker: towers, fusion, scores and loss. QE-Rec and the baseline are both one of these.

    s = ω û·î + (1 − ω) q̂·î = (ω û + (1 − ω) q̂)·î                                  paper eq. 4, cosines of unit vectors

One fused vector scores the whole catalogue for any ω. Without a query tower, or in a batch without latent queries,
ω = 1 on the same intent vectors: the exact fallback when the reasoner is late.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from rgalign.data.batch import SessionBatch
from rgalign.errors import DataError
from rgalign.models.confidence import ConfidenceWeights, Surprise
from rgalign.models.layers import unit
from rgalign.models.loss import ListBuilder, LossConfig, listwise_kl
from rgalign.models.query_tower import QueryTower


@dataclass(frozen=True)
class Scores:
    """[B, N] each; ``total = user_part + query_part``."""

    total: Tensor
    user_part: Tensor
    query_part: Tensor


@dataclass(frozen=True)
class Loss:
    """``total`` is what to minimise; the rest is for the log, detached.

    Args:
        rank: mean KL of the lists with a click, unweighted.
        confidence: the confidence predictor's own loss, 0 without one.
        weights: [B] the weights w_j that were used, 1 without a predictor.
        num_lists: lists with a click.
    """

    total: Tensor
    rank: Tensor
    confidence: Tensor
    weights: Tensor
    num_lists: Tensor


class Ranker(nn.Module):
    """User tower, intent tower and, for QE-Rec, query tower.

    Args:
        user_tower: SessionBatch (and the intent id table, if tied) -> [B, d].
        intent_tower: -> [N, d] unit vectors; its ``fields`` own the id table and the seen rows.
        query_tower: latent queries [B, D] -> [B, d], or None.
        omega: ω; ``learnable`` starts there.
    """

    omega_logit: Tensor

    def __init__(
        self,
        user_tower: nn.Module,
        intent_tower: nn.Module,
        query_tower: QueryTower | None,
        loss: LossConfig,
        num_intents: int,
        *,
        omega: float = 1.0,
        learnable_omega: bool = False,
        confidence: ConfidenceWeights | None = None,
    ) -> None:
        super().__init__()
        self.user_tower = user_tower
        self.intent_tower = intent_tower
        self.query_tower = query_tower
        self.lists = ListBuilder(loss, num_intents)
        self.confidence = confidence
        self.loss_config = loss
        start = torch.tensor(omega, dtype=torch.float32)
        if learnable_omega:
            self.omega_logit = nn.Parameter(start.logit())
        else:
            self.register_buffer("fixed_omega", start)
        self.learnable_omega = learnable_omega
        self._titles: Tensor | None = None

    @property
    def omega(self) -> Tensor:
        """The weight of the user part when a latent query is there."""
        return self.omega_logit.sigmoid() if self.learnable_omega else self.fixed_omega  # type: ignore[return-value]

    @torch.no_grad()
    def set_statistics(self, clicks: Tensor, latents: Tensor | None = None) -> None:
        """What the towers must know of the training split; call it once, before training.

        Args:
            clicks: [N] clicks of each intent in training. Intents with none are served by their text alone.
            latents: [n, D] a sample of training latent queries, for ``input_norm: standardize``.
        """
        self.lists.clicks.copy_(clicks)
        self.intent_tower.fields.seen.copy_(clicks > 0)  # type: ignore[union-attr, operator]
        if self.query_tower is not None and latents is not None:
            self.query_tower.set_statistics(latents)

    def set_titles(self, titles: Tensor) -> None:
        """Latent queries of the intents' own words [N, T, D], which ``loss.title_weight`` trains on."""
        self._titles = titles

    def user(self, batch: SessionBatch) -> Tensor:
        """û: [B, d] unit vectors."""
        return unit(self.user_tower(batch, self.intent_tower.fields.table.weight))  # type: ignore[union-attr]

    def intents(self) -> Tensor:
        """î: [N, d] unit vectors, rows as in the catalogue."""
        vectors: Tensor = self.intent_tower()
        return vectors

    def query(self, latent: Tensor) -> Tensor:
        """q̂: [B, d] unit vectors; the zero vector for a zero latent query."""
        if self.query_tower is None:
            raise DataError(where="ranker", required="a query tower", received="a model without one (ω = 1)")
        return unit(self.query_tower(latent))

    def fuse(self, user: Tensor, query: Tensor | None) -> Tensor:
        """[B, d]: the one vector whose product with the intents is the score."""
        return user if query is None else self.omega * user + (1 - self.omega) * query

    def score(self, batch: SessionBatch, intents: Tensor | None = None) -> Scores:
        """Scores of every intent; ``intents`` [N, d] if they are known already."""
        vectors = self.intents() if intents is None else intents
        return self._score(self.user(batch), self._query(batch), vectors)

    def _query(self, batch: SessionBatch) -> Tensor | None:
        return None if self.query_tower is None or batch.latent is None else self.query(batch.latent)

    def _score(self, user: Tensor, query: Tensor | None, intents: Tensor) -> Scores:
        user_part = user @ intents.T
        if query is None:
            return Scores(user_part, user_part, torch.zeros_like(user_part))
        user_part, query_part = self.omega * user_part, (1 - self.omega) * (query @ intents.T)
        return Scores(user_part + query_part, user_part, query_part)

    def loss(self, batch: SessionBatch, *, epoch: int = 0) -> Loss:
        """Loss of a batch; ``epoch`` counts from 0 and switches the confidence weights on."""
        user, query, intents = self.user(batch), self._query(batch), self.intents()
        scores = self._score(user, query, intents)
        lists = self.lists(scores.total, batch)
        divergence = listwise_kl(lists, self.loss_config.target)
        valid = lists.has_click.float()
        num_lists = valid.sum()
        count = num_lists.clamp_min(1.0)
        rank = divergence.sum() / count
        if query is not None and self.loss_config.part_weight:
            divergence = divergence + self.loss_config.part_weight * self._part_divergence(scores, batch)
        titles = self.loss_config.title_weight * self._title_loss(intents, len(batch))
        if self.confidence is None:
            total = divergence.sum() / count + titles
            return Loss(total, rank.detach(), torch.zeros_like(rank), torch.ones_like(valid), num_lists)
        weights, predictor = self.confidence(user, query, batch.categorical, Surprise.of(lists), epoch=epoch)
        total = (weights * divergence).sum() / count + predictor + titles
        return Loss(total, rank.detach(), predictor.detach(), weights, num_lists)

    def _part_divergence(self, scores: Scores, batch: SessionBatch) -> Tensor:
        """[B]: the divergence of û·î alone plus that of q̂·î alone."""
        parts = (scores.user_part / self.omega, scores.query_part / (1 - self.omega))
        first, second = (listwise_kl(self.lists(part, batch), self.loss_config.target) for part in parts)
        return first + second

    def _title_loss(self, intents: Tensor, count: int) -> Tensor:
        """Cross-entropy of the own intent for ``count`` drawn titles, over the whole catalogue; 0 without titles."""
        if self._titles is None or not self.loss_config.title_weight:
            return intents.new_zeros(())
        num_intents, num_texts, _ = self._titles.shape
        drawn = torch.randint(num_intents, (count,))
        titles = self._titles[drawn, torch.randint(num_texts, (count,))].to(intents)
        logits = self.lists.scale() * (self.query(titles) @ intents.T).float()
        return functional.cross_entropy(logits, drawn.to(logits.device))

    def forward(self, batch: SessionBatch, *, epoch: int = 0) -> Loss:
        """The loss: what DistributedDataParallel and accelerate wrap."""
        return self.loss(batch, epoch=epoch)
