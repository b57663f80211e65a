"""One bundle in service: a context in, its ranked intents out; with ω = 1 where there is no latent query.

    begin    check -> verbalise, tokenise -> ask the reasoner -> user tower, while that works
    finish   latent query or the reason for none -> score -> probabilities

Each session goes through the towers alone, and the engine's and scorer's bits do not depend on a batch: so an answer
is bit for bit the same whatever it was batched with.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from concurrent.futures import wait
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from rgalign.batcher.batcher import Priority
from rgalign.bundle import Bundle
from rgalign.data.encode_row import RowEncoder
from rgalign.errors import DataError
from rgalign.index import IndexHolder, IntentIndex
from rgalign.models.layers import unit
from rgalign.recommender.answer import BreakerState, Degraded, Intent, RankedIntent, Recommendation, Timings
from rgalign.recommender.config import RecommenderConfig
from rgalign.recommender.context import ContextReader
from rgalign.recommender.reasoning import BatchReasoner, Reasoning, Thought
from rgalign.scoring import RankedIntents, score, score_matrix

MAX_PROJECTED = 1e15  # a state beyond it is no state: its square would overflow
WARM_UP_MS = 120_000.0


@dataclass
class Session:
    """A request that was begun."""

    thought: Thought
    user: Tensor  # [1, d]
    k: int
    began: float
    tokenise_ms: float


class Served:
    """Args:
    reasoner: None: every answer is at ω = 1.
    """

    def __init__(self, bundle: Bundle, reasoner: BatchReasoner | None, config: RecommenderConfig) -> None:
        self.bundle = bundle
        self.index = IndexHolder(bundle.index, same=tuple(bundle.manifest.index))
        self._config = config
        self._contexts = ContextReader(bundle.schema)
        self._rows = RowEncoder(bundle.encoder)
        self._vectors: tuple[IntentIndex, Tensor] = (self.index.current, self.index.current.decoded)
        self._reasoning: Reasoning | None = None
        if reasoner is not None and bundle.prompts is not None and bundle.projection is not None:
            hidden_size = bundle.projection.weight.shape[1]
            self._reasoning = Reasoning(reasoner, bundle.prompts, hidden_size, config)
        self._under_way = 0
        self._changed = threading.Condition()

    @property
    def reasoning(self) -> Reasoning | None:
        return self._reasoning

    @property
    def breaker(self) -> BreakerState:
        return "closed" if self._reasoning is None else self._reasoning.breaker.state

    @property
    def degraded(self) -> bool:
        """Whether the next answer would be without the reasoner that the ranker was trained with."""
        return self.breaker != "closed" or (self._reasoning is None and self.bundle.projection is not None)

    def warm_up(self) -> None:
        """An answer to the empty context, which also computes the prefix's keys and values.

        Raises:
            NotAnswered: the reasoner gives no row; whatever else a request would meet.
        """
        session = self.begin({}, 1, WARM_UP_MS, "", "interactive")
        if session.thought.future is not None:
            session.thought.future.result()
        self.finish(session)

    def begin(self, context: Mapping[str, Any], k: int, deadline_ms: float, client: str, priority: Priority) -> Session:
        """Raises:
        DataError: a context that is malformed. QueueFull, ClientCapReached: the request is refused.
        """
        began = time.perf_counter()
        row = self._contexts.read(context)
        thought, tokenise_ms = Thought(degraded="no_reasoner"), 0.0
        if self._reasoning is not None:
            slot_ids = self._reasoning.prompts.encode(row).slot_ids
            tokenise_ms = _ms_since(began)
            left_ms = deadline_ms - tokenise_ms - self._config.reserve_ms
            thought = self._reasoning.ask(slot_ids, left_ms, client, priority)
        elif self.bundle.projection is None:  # a ranker that never had one
            thought = Thought()
        try:
            user = self._user(row)
        except BaseException:
            if thought.future is not None:
                thought.future.cancel()
            raise
        return Session(thought, user, k, began, tokenise_ms)

    def finish(self, session: Session) -> Recommendation:
        """The answer of a session whose future, if it has one, is done."""
        settled = time.perf_counter()
        thought, index = session.thought, self.index.current
        if self._reasoning is not None:
            self._reasoning.settle(thought)
        query, degraded = self._query(thought)
        calibration = self.bundle.manifest.user_only
        if query is None:
            ranked = score(None, session.user, None, index, 1.0, session.k, num_threads=1)
            totals = score_matrix(session.user, None, 1.0, self._decoded(index))
        else:
            assert self.bundle.manifest.full is not None
            calibration, omega = self.bundle.manifest.full, self.bundle.manifest.omega
            latents = torch.from_numpy(np.ascontiguousarray(thought.latent))[None]
            ranked = score(latents, session.user, self.bundle.projection, index, omega, session.k, num_threads=1)
            totals = score_matrix(session.user, query, omega, self._decoded(index))
        probabilities = (calibration.scale * totals[0].double()).softmax(dim=0)
        intents = _named(ranked, probabilities)
        timings = self._timings(session, settled)
        shown = intents[0].probability >= calibration.threshold
        return Recommendation(intents, shown, degraded, self.bundle.hash, index.generation, timings)

    def swap_index(self, path: Path) -> int:
        """Raises:
        DataError, ProvenanceError: nothing was changed.
        """
        generation = self.index.swap_from(path)
        self._decoded(self.index.current)
        return generation

    def intents(self) -> list[Intent]:
        index, catalog = self.index.current, self.bundle.catalog
        return [
            Intent(each, title, catalog.descriptions[catalog.rows[each]] if each in catalog.rows else "")
            for each, title in zip(index.ids, index.titles, strict=True)
        ]

    def entered(self) -> None:
        with self._changed:
            self._under_way += 1

    def left(self) -> None:
        with self._changed:
            self._under_way -= 1
            self._changed.notify_all()

    def is_idle(self, timeout_s: float) -> bool:
        """Waits until nothing is under way; False if that takes longer."""
        with self._changed:
            return self._changed.wait_for(lambda: not self._under_way, timeout_s)

    def close(self, drain_ms: float) -> None:
        if self._reasoning is not None:
            self._reasoning.close(drain_ms)

    @torch.inference_mode()
    def _user(self, row: Mapping[str, Any]) -> Tensor:
        user = unit(self.bundle.user_tower(self._rows.encode(row), self.bundle.intent_table))
        if not user.isfinite().all():
            raise DataError(where="user tower", required="a finite vector", received="NaN or infinity")
        return user

    def _query(self, thought: Thought) -> tuple[Tensor | None, Degraded | None]:
        """[1, d] q̂ in float32, or why there is none."""
        if thought.latent is None or self.bundle.projection is None:
            return None, thought.degraded
        latent = torch.tensor(thought.latent)[None]
        projected = functional.linear(latent, self.bundle.projection.weight, self.bundle.projection.bias)
        if not latent.any() or not (projected.abs() <= MAX_PROJECTED).all():  # NaN compares false
            return None, "nan"
        return unit(projected), None

    def _decoded(self, index: IntentIndex) -> Tensor:
        """[N, d] of this index, decoded once."""
        known, vectors = self._vectors
        if known is not index:
            vectors = index.decoded
            self._vectors = (index, vectors)
        return vectors

    def _timings(self, session: Session, settled: float) -> Timings:
        thought = session.thought
        waited_ms = 0.0 if thought.future is None else (settled - thought.asked) * 1_000
        reason_ms = min(thought.reason_ms, waited_ms)
        return Timings(
            session.tokenise_ms, waited_ms - reason_ms, reason_ms, _ms_since(settled), _ms_since(session.began)
        )


def wait_for(session: Session) -> None:
    if session.thought.future is not None:
        wait([session.thought.future])


def _named(ranked: RankedIntents, probabilities: Tensor) -> tuple[RankedIntent, ...]:
    index = ranked.index
    columns = (ranked.rows, ranked.scores, ranked.user_part, ranked.query_part)
    return tuple(
        RankedIntent(index.ids[row], index.titles[row], total, user_part, query_part, float(probabilities[row]))
        for row, total, user_part, query_part in zip(*(column[0].tolist() for column in columns), strict=True)
    )


def _ms_since(moment: float) -> float:
    return (time.perf_counter() - moment) * 1_000
