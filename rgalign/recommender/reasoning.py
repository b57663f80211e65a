"""Asking the reasoner: through the batcher, unless the breaker is open, and with every way to fail as a reason.

A late row that leaves the model after its request was answered is dropped by the batcher; nobody sees it here.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections import OrderedDict
from collections.abc import Sequence
from concurrent.futures import CancelledError, Future
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from rgalign.batcher import (
    Batch,
    Batcher,
    BatcherConfig,
    BatcherCounters,
    ClientCapReached,
    ForkedError,
    NotAnswered,
    Outcome,
    QueueFull,
)
from rgalign.batcher.batcher import Priority
from rgalign.prompt import PromptEncoder
from rgalign.recommender.answer import Degraded
from rgalign.recommender.breaker import Breaker
from rgalign.recommender.config import RecommenderConfig

Latent = NDArray[np.float32]

REASONS: dict[Outcome, Degraded] = {
    Outcome.DEADLINE_QUEUED: "late",
    Outcome.DEADLINE_RUNNING: "late",
    Outcome.CLOSED: "late",  # accepted, and not served before the drain ended
    Outcome.MODEL_RAISED: "failed",
    Outcome.WRONG_LENGTH: "failed",
    Outcome.MODEL_SHAPE: "shape",
    Outcome.MODEL_NOT_FINITE: "nan",
}
REFUSED = (QueueFull, ClientCapReached, ForkedError)


class BatchReasoner(Protocol):
    """What a Recommender asks of its reasoner; ``rgalign.reasoner.protocol.Reasoner`` is one."""

    def embed(self, token_ids: Sequence[NDArray[np.int32]], *, prefix_ids: Sequence[int]) -> Any:
        """[B, D] floats of B prompts, each what follows ``prefix_ids``."""


def batcher_config(config: RecommenderConfig, longest: int) -> BatcherConfig:
    """What a Recommender's batcher may hold, for requests of up to ``longest`` tokens."""
    return BatcherConfig(
        max_rows=config.max_rows,
        max_tokens=max(config.max_tokens, longest),
        max_request_tokens=longest,
        max_queue=config.max_queue,
        max_per_client=config.max_per_client,
        deadline_ms=config.deadline_ms,
    )


@dataclass
class Thought:
    """A latent query that was asked for.

    Args:
        future: None: it is known already, or will not come; then ``latent`` or ``degraded``.
        deadline_ms: what the batcher was given.
    """

    latent: Latent | None = None
    degraded: Degraded | None = None
    future: Future[Any] | None = None
    key: bytes = b""
    asked: float = field(default_factory=time.perf_counter)
    deadline_ms: float = 0.0
    reason_ms: float = 0.0


class Reasoning:
    """One bundle's reasoner behind its batcher.

    Args:
        reasoner: called from one thread.
        hidden_size: D of its rows; another is ``shape``.
    """

    def __init__(
        self, reasoner: BatchReasoner, prompts: PromptEncoder, hidden_size: int, config: RecommenderConfig
    ) -> None:
        self.prompts = prompts
        self.breaker = Breaker(config.breaker)
        self._config = config
        self._reasoner = reasoner
        self._suffix = np.asarray(prompts.suffix_ids, np.int32)
        self._cache: OrderedDict[bytes, Latent] = OrderedDict()
        self._cache_lock = threading.Lock()
        self._call = threading.local()  # when the worker's present call of the model began
        longest = prompts.max_tokens - len(prompts.prefix_ids)
        settings = batcher_config(config, longest)
        of_model = {"row_shape": (hidden_size,), "first_position": len(prompts.prefix_ids)}
        self._batcher = Batcher(settings.model_copy(update=of_model), self._embed)

    def ask(self, slot_ids: NDArray[np.int32], deadline_ms: float, client: str, priority: Priority) -> Thought:
        """Never waits.

        Raises:
            QueueFull, ClientCapReached, ForkedError: the request is refused.
        """
        self.probe_if_due()
        key = slot_ids.tobytes() if self._config.cache_rows else b""
        if self._config.cache_rows and (known := self._recall(key)) is not None:
            return Thought(latent=known)
        if self.breaker.state != "closed":
            return Thought(degraded="breaker")
        ids = np.concatenate([slot_ids, self._suffix])
        thought = Thought(key=key, deadline_ms=deadline_ms)
        future = self._batcher.submit(ids, deadline_ms=deadline_ms, client=client or None, priority=priority)
        if future.done() and isinstance(error := future.exception(), REFUSED):
            raise error
        future.add_done_callback(lambda _: self._time(thought))
        thought.future = future
        return thought

    def settle(self, thought: Thought) -> None:
        """Once the future is done: its row, or why there is none. Tells the breaker."""
        if thought.future is None:
            return
        try:
            thought.latent = np.asarray(thought.future.result(), np.float32)
        except NotAnswered as error:
            thought.degraded = REASONS[error.outcome]
            if self._counts(error.outcome, thought.deadline_ms):
                self.breaker.failed()
            return
        self.breaker.succeeded()
        if self._config.cache_rows:
            with self._cache_lock:
                self._cache[thought.key] = thought.latent
                while len(self._cache) > self._config.cache_rows:
                    self._cache.popitem(last=False)

    def probe_if_due(self) -> None:
        """Where the breaker is open and has cooled down, asks for the empty prompt, without waiting."""
        if not self.breaker.may_probe():
            return
        future = self._batcher.submit(self._suffix, deadline_ms=self._config.deadline_ms)
        future.add_done_callback(self._probed)

    def counters(self) -> BatcherCounters:
        return self._batcher.counters()

    def close(self, drain_ms: float) -> None:
        self._batcher.close(drain_ms)

    def _probed(self, future: Future[Any]) -> None:
        with contextlib.suppress(CancelledError):
            if future.exception() is None:
                self.breaker.succeeded()
            else:
                self.breaker.failed()

    def _counts(self, outcome: Outcome, deadline_ms: float) -> bool:
        if outcome in (Outcome.DEADLINE_QUEUED, Outcome.DEADLINE_RUNNING):
            return deadline_ms >= self._config.breaker.least_deadline_ms
        return outcome not in (Outcome.CLOSED, Outcome.WRONG_LENGTH)

    def _recall(self, key: bytes) -> Latent | None:
        with self._cache_lock:
            found = self._cache.get(key)
            if found is not None:
                self._cache.move_to_end(key)
            return found

    def _embed(self, batch: Batch) -> Any:
        self._call.began = time.perf_counter()
        rows = [
            batch.token_ids[first:last] for first, last in zip(batch.cu_seqlens, batch.cu_seqlens[1:], strict=False)
        ]
        return self._reasoner.embed(rows, prefix_ids=self.prompts.prefix_ids)

    def _time(self, thought: Thought) -> None:
        """On the thread that answers: the worker knows when its call began, others answer what was not reasoned."""
        began = max(getattr(self._call, "began", time.perf_counter()), thought.asked)
        thought.reason_ms = (time.perf_counter() - began) * 1_000
