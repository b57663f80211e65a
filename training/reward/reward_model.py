"""The ranker as reward model: NDCG@K of the clicked intents when a candidate's latent query takes the session's place.

    s = ω û·î + (1 − ω) q̂·î            û·î once a session, q̂ once a candidate text; only their sum is a candidate's own

Paper section 4.2, Best-of-N; NDCG in expectation over ties (expected_ndcg.py).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from torch import Tensor

from rgalign.data.batch import SessionBatch
from rgalign.data.dataset import Dataset
from rgalign.training.ranker_files import LoadedRanker
from rgalign.training.reward.expected_ndcg import Floats, expected_ndcg, margin

ENCODE_SESSIONS = 1024
SCORES = 1 << 22  # of one working array

Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Rewards:
    """[P] each. ``reward``: expected NDCG@K, NaN without a click to rank; ``margin``: best clicked minus best other."""

    reward: Floats
    margin: Floats


class RewardModel:
    """One ranker and some sessions of a split.

    Args:
        rows: [S] rows of the split, which the pairs below are numbered by.
        k: cut-off of the NDCG.
    """

    def __init__(self, loaded: LoadedRanker, dataset: Dataset, split: str, rows: Ints, k: int) -> None:
        loaded.require_dataset(dataset)
        self.k = k
        self._ranker = loaded.ranker.eval()
        with torch.no_grad():
            self._intents = self._ranker.intents()
            self._omega = self._ranker.omega
            table = dataset.table(split, loaded.encoder.columns).take(pa.array(rows)).combine_chunks()
            self._batch = loaded.encoder.encode(table)
            starts = range(0, len(table), ENCODE_SESSIONS)
            parts = [self._user(self._batch, start) for start in starts]
        self._user_part = torch.cat(parts) if parts else torch.empty(0, len(self._intents))

    def _user(self, batch: SessionBatch, start: int) -> Tensor:
        index = torch.arange(start, min(start + ENCODE_SESSIONS, len(batch)))
        return self._omega * (self._ranker.user(batch.select(index)) @ self._intents.T)

    @torch.no_grad()
    def queries(self, latents: NDArray[np.float32]) -> Tensor:
        """(1 − ω) q̂ of latent queries [C, D]: [C, d]."""
        return (1 - self._omega) * self._ranker.query(torch.from_numpy(latents))

    @torch.no_grad()
    def rewards(self, sessions: Ints, queries: Tensor | None, chosen: Ints | None = None) -> Rewards:
        """Rewards of P (session, query) pairs.

        Args:
            sessions: [P] places in ``rows``.
            queries: [C, d] of :meth:`queries`; None: no query part and ω = 1, as when the reasoner is late.
            chosen: [P] rows of ``queries``; None: pair p has query p.
        """
        reward, distance = np.empty(len(sessions)), np.empty(len(sessions))
        step = max(1, SCORES // len(self._intents))
        for start in range(0, len(sessions), step):
            here = slice(start, start + step)
            index = torch.from_numpy(sessions[here])
            scores = self._user_part[index]
            if queries is not None:
                own = torch.arange(start, start + len(index)) if chosen is None else torch.from_numpy(chosen[here])
                scores = scores + queries[own] @ self._intents.T
            clicked = self._batch.clicked[index].numpy()
            listed = self._batch.candidates
            candidates = None if listed is None else listed[index].numpy()
            reward[here] = expected_ndcg(scores.numpy(), clicked, candidates, self.k)
            distance[here] = margin(scores.numpy(), clicked, candidates)
        return Rewards(reward, distance)
