"""Listwise loss (paper eqs 5-6) and its choices.

    L = mean_j w_j KL(P_click^(j) || P_pred^(j)),   P_pred = softmax(scale * s - correction) over sample j's list

Eq. 6 as printed normalises over the index that numbers the samples. Two readings type-check and both are here:
``list_axis="candidates"``: the list of a session is its candidates, or the whole catalogue where none were logged.
``list_axis="batch"``: the list of a session is the intents clicked in the batch (in-batch softmax).

P_click is y / sum(y) (``normalized``; bounds MRR and NDCG, Bruch et al. 2019) or softmax(y) (``exp``, eq. 6 to the
letter: with 1000 candidates and one click the click receives 0.27 % of the mass). KL and cross-entropy differ by the
target's entropy: their gradients are equal. Lists without a click teach nothing and are left out.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from rgalign.config import Config
from rgalign.data.batch import SessionBatch

Target = Literal["normalized", "exp"]
MASKED = -1e9  # finite: a list of nothing but padding must not make NaN in the backward pass


class LossConfig(Config):
    """Form of the loss.

    Args:
        logit_scale: ``learnable`` from ``logit_scale_init``, clamped to [1, logit_scale_max], or ``fixed`` at it.
        sampled_negatives: intents drawn for each batch and added to every list; 0 for none.
        proposal: what they are drawn from: uniform, or the clicks counted in training.
        logq_correction: sampled entries are corrected by log(expected count), in-batch ones by log(click share), so
            that popular intents are not punished for being drawn often.
        mask_unseen: intents without a click in training are no competitors on whole-catalogue lists.
        part_weight: the user part and the query part are each trained to rank alone too, with this weight. One loss
            on their sum lets the part that fits the training sessions sooner do the other's work.
        title_weight: the query part is trained to rank an intent first for the intent's own words, with this weight,
            so that the ranker can judge words it is given (stage 2). Needs latent queries of the titles.
    """

    list_axis: Literal["candidates", "batch"] = "candidates"
    target: Target = "normalized"
    logit_scale: Literal["learnable", "fixed"] = "learnable"
    logit_scale_init: float = Field(default=1 / 0.07, gt=0)
    logit_scale_max: float = Field(default=100.0, gt=0)
    sampled_negatives: int = Field(default=0, ge=0)
    proposal: Literal["uniform", "popularity"] = "uniform"
    logq_correction: bool = True
    mask_unseen: bool = True
    part_weight: float = Field(default=0.0, ge=0)
    title_weight: float = Field(default=0.0, ge=0)


@dataclass(frozen=True)
class Lists:
    """One list a session.

    Args:
        logits: [B, L] scaled and corrected scores, MASKED outside the list.
        labels: [B, L] float, 1 for a click.
        mask: [B, L] bool, False for padding.
        popularity: [B, L] logits of a click that knows nothing of the session, corrected as ``logits`` are.
    """

    logits: Tensor
    labels: Tensor
    mask: Tensor
    popularity: Tensor

    @property
    def has_click(self) -> Tensor:
        """[B] bool."""
        return ((self.labels > 0) & self.mask).any(dim=-1)


def click_target(labels: Tensor, mask: Tensor, target: Target) -> Tensor:
    """P_click [B, L]; zero rows where a list has no click."""
    labels = labels.float().masked_fill(~mask, 0.0)
    if target == "normalized":
        return labels / labels.sum(dim=-1, keepdim=True).clamp_min(1e-12)
    has_click = (labels > 0).any(dim=-1, keepdim=True)
    return torch.where(has_click, labels.masked_fill(~mask, MASKED).softmax(dim=-1), 0.0)


def listwise_kl(lists: Lists, target: Target) -> Tensor:
    """KL(P_click || P_pred) of each list: [B] float32, 0 for lists without a click."""
    wanted = click_target(lists.labels, lists.mask, target)
    entropy = -torch.xlogy(wanted, wanted).sum(-1)
    return torch.where(lists.has_click, cross_entropy(lists.logits, wanted, lists.mask) - entropy, 0.0)


def cross_entropy(logits: Tensor, wanted: Tensor, mask: Tensor) -> Tensor:
    """[B] nats of ``wanted`` [B, L] under softmax(logits); 0 where nothing is wanted."""
    predicted = logits.float().log_softmax(dim=-1).masked_fill(~mask, 0.0)
    return -(wanted * predicted).sum(-1)


class ListBuilder(nn.Module):
    """Scores [B, N] against the catalogue -> the lists that the softmax runs over; owns the logit scale."""

    clicks: Tensor

    def __init__(self, config: LossConfig, num_intents: int) -> None:
        super().__init__()
        self.config = config
        self.log_scale = nn.Parameter(
            torch.tensor(math.log(config.logit_scale_init)), requires_grad=config.logit_scale == "learnable"
        )
        self.register_buffer("clicks", torch.ones(num_intents))

    def scale(self) -> Tensor:
        if self.config.logit_scale == "fixed":
            return self.log_scale.exp()
        return self.log_scale.clamp(0.0, math.log(self.config.logit_scale_max)).exp()

    def forward(self, scores: Tensor, batch: SessionBatch) -> Lists:
        logits = self.scale() * scores.float()
        labels = scatter_rows(batch.clicked, logits.shape[1]).float()
        if self.config.list_axis == "batch":
            return self._batch_lists(logits, labels, batch)
        if self.config.sampled_negatives:
            return self._sampled_lists(logits, labels, batch)
        if batch.candidates is not None:
            return slate_lists(logits, labels, batch.candidates, self._log_popularity())
        mask = (
            (self.clicks > 0) | (labels > 0) if self.config.mask_unseen else torch.ones_like(labels, dtype=torch.bool)
        )
        popularity = self._log_popularity().expand_as(logits)
        return Lists(logits.masked_fill(~mask, MASKED), labels, mask, popularity.masked_fill(~mask, MASKED))

    def _log_popularity(self) -> Tensor:
        """[N]; half a click for intents without one."""
        return (self.clicks + 0.5).log()

    def _batch_lists(self, logits: Tensor, labels: Tensor, batch: SessionBatch) -> Lists:
        entries = batch.clicked[batch.clicked >= 0]
        if self.config.logq_correction:
            logits = logits - (self.clicks.clamp_min(1.0) / self.clicks.sum().clamp_min(1.0)).log()
        logits, labels = logits[:, entries], labels[:, entries]
        # The batch's clicks were drawn by popularity: among them a click that knows nothing is uniform.
        return Lists(logits, labels, torch.ones_like(labels, dtype=torch.bool), torch.zeros_like(logits))

    def _sampled_lists(self, logits: Tensor, labels: Tensor, batch: SessionBatch) -> Lists:
        """The slate as it is, plus shared negatives: an unbiased estimate of the whole catalogue's partition sum."""
        slate = batch.clicked if batch.candidates is None else batch.candidates
        log_popularity = self._log_popularity()
        listed = slate_lists(logits, labels, slate, log_popularity)
        drawn, correction = self._draw(logits.shape[1])
        fresh = ~scatter_rows(slate, logits.shape[1])[:, drawn]  # what is on the slate already is not drawn again
        if not self.config.logq_correction:
            correction = torch.zeros_like(correction)
        sampled, chance = logits[:, drawn] - correction, (log_popularity[drawn] - correction).expand(len(logits), -1)
        return Lists(
            logits=torch.cat((listed.logits, sampled.masked_fill(~fresh, MASKED)), dim=-1),
            labels=torch.cat((listed.labels, labels[:, drawn].masked_fill(~fresh, 0.0)), dim=-1),
            mask=torch.cat((listed.mask, fresh), dim=-1),
            popularity=torch.cat((listed.popularity, chance.masked_fill(~fresh, MASKED)), dim=-1),
        )

    def _draw(self, num_intents: int) -> tuple[Tensor, Tensor]:
        """[M] rows drawn with replacement, and log(M q) of each."""
        weights = self.clicks if self.config.proposal == "popularity" else torch.ones_like(self.clicks)
        share = weights / weights.sum()
        drawn = torch.multinomial(share, self.config.sampled_negatives, replacement=True)
        return drawn, (self.config.sampled_negatives * share[drawn]).log()


def slate_lists(logits: Tensor, labels: Tensor, slate: Tensor, popularity: Tensor) -> Lists:
    """Lists over ``slate`` [B, C] of catalogue rows, -1 for padding; ``popularity`` [N] logits."""
    mask, rows = slate >= 0, slate.clamp_min(0)
    return Lists(
        logits.gather(1, rows).masked_fill(~mask, MASKED),
        labels.gather(1, rows) * mask,
        mask,
        popularity[rows].masked_fill(~mask, MASKED),
    )


def scatter_rows(rows: Tensor, num_intents: int) -> Tensor:
    """[B, P] catalogue rows, -1 for padding -> [B, N] bool."""
    marked = torch.zeros(len(rows), num_intents + 1, dtype=torch.bool, device=rows.device)
    return marked.scatter_(1, torch.where(rows < 0, num_intents, rows), True)[:, :num_intents]
