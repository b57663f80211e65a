"""A ranker's sessions through the serving path (rgalign/scoring.py): what `recommend` and `evaluate` rank by."""

from __future__ import annotations

import torch
from torch import Tensor

from rgalign.data.batch import SessionBatch
from rgalign.index.intent_index import IntentIndex
from rgalign.models import Ranker, Scores
from rgalign.scoring import Projection, RankedIntents, identity_projection, projection_of, score, score_matrix


@torch.no_grad()
def rank_sessions(ranker: Ranker, index: IntentIndex, batch: SessionBatch, k: int) -> RankedIntents:
    """The k best intents of each session."""
    latents, projection = _queries(ranker, batch)
    return score(latents, ranker.user(batch), projection, index, ranker.omega, k)


def _queries(ranker: Ranker, batch: SessionBatch) -> tuple[Tensor | None, Projection | None]:
    """Latent queries and the folded query tower; a tower that does not fold projects here."""
    if ranker.query_tower is None or batch.latent is None:
        return None, None
    if ranker.query_tower.norm is not None:
        query = ranker.query(batch.latent)
        return query, identity_projection(query.shape[1])
    return batch.latent.float(), projection_of(ranker.query_tower)


@torch.no_grad()
def fused_scores(ranker: Ranker, batch: SessionBatch, intents: Tensor) -> Scores:
    """Every session against every intent [N, d]: the total is one dot product, as in serving, the parts two more."""
    user = ranker.user(batch)
    if ranker.query_tower is None or batch.latent is None:
        total = score_matrix(user, None, 1.0, intents)
        return Scores(total, total, torch.zeros_like(total))
    query = ranker.query(batch.latent)
    user_part, query_part = ranker.omega * (user @ intents.T), (1 - ranker.omega) * (query @ intents.T)
    return Scores(score_matrix(user, query, ranker.omega, intents), user_part, query_part)
