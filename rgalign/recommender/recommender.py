"""Recommender: context in, recommendation out, whatever becomes of the reasoner.

    with rgalign.load("bundle") as recommender:
        answer = recommender.recommend({"page": "orders", "balance": 12.5}, k=3, deadline_ms=200)

A late, broken or hung reasoner costs the query part of the score, not the answer; ``degraded`` says why.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Self

import torch

from rgalign.batcher import Outcome, QueueFull
from rgalign.batcher.answers import not_answered
from rgalign.batcher.batcher import Priority
from rgalign.bundle import Bundle, read_bundle
from rgalign.errors import DataError
from rgalign.reasoner.engine.reasoner import load_engine
from rgalign.recommender.answer import Health, Intent, Recommendation
from rgalign.recommender.config import RecommenderConfig
from rgalign.recommender.reasoning import BatchReasoner
from rgalign.recommender.served import Served, Session, wait_for

MakeReasoner = Callable[[Bundle, RecommenderConfig], BatchReasoner | None]
MANY_UNDER_WAY = 64  # of one recommend_many


def engine_of(bundle: Bundle, config: RecommenderConfig) -> BatchReasoner | None:
    """The bundle's engine; None for a ranker without latent queries."""
    part = bundle.manifest.reasoner
    if part is None:
        return None
    tokenizer = SimpleNamespace(eos_token_id=part.eos_token_id)  # all that an engine asks of it
    if config.device == "cpu":
        return load_engine(bundle.engine, config.threads, tokenizer=tokenizer, pooling=part.pooling)
    from rgalign.reasoner.engine.cuda.reasoner import load_cuda_engine  # wants Triton

    assert bundle.prompts is not None
    reasoner = load_cuda_engine(bundle.engine, tokenizer=tokenizer, pooling=part.pooling)
    reasoner.warm_up(bundle.prompts.prefix_ids)  # compiles kernels: longer than the first answer may take
    return reasoner


def without_reasoner(bundle: Bundle, config: RecommenderConfig) -> BatchReasoner | None:
    """For ``Recommender(make_reasoner=...)``: every answer at ω = 1."""
    return None


def load(
    path: Path | str, config: RecommenderConfig | None = None, *, make_reasoner: MakeReasoner = engine_of
) -> Recommender:
    """A recommender of the bundle at ``path``, warmed up.

    Raises:
        DataError, ProvenanceError: not a bundle, or a damaged one. NotAnswered: its reasoner gives no row.
    """
    return Recommender(read_bundle(path), config or RecommenderConfig(), make_reasoner=make_reasoner)


class Recommender:
    """Thread-safe; any number of threads and event loops may ask.

    Args:
        make_reasoner: of this bundle and of those that are swapped in.
    """

    def __init__(self, bundle: Bundle, config: RecommenderConfig, *, make_reasoner: MakeReasoner = engine_of) -> None:
        if config.torch_threads is not None:
            torch.set_num_threads(config.torch_threads)
        self.config = config
        self._make_reasoner = make_reasoner
        self._swapping = threading.Lock()  # one swap at a time
        self._entering = threading.Lock()  # guards _served and _closing
        self._closing = False
        self._retiring: list[threading.Thread] = []
        self._served = self._serve(bundle)
        self._answers = True  # the last answer that was tried was given

    def recommend(
        self,
        context: Mapping[str, Any],
        k: int = 3,
        *,
        deadline_ms: float | None = None,
        client: str = "",
        priority: Priority = "interactive",
    ) -> Recommendation:
        """The k best intents of one context.

        Args:
            context: feature name -> value, as a row of the dataset; absent is missing. What such a row has beside the
                features (``session_id``, ``clicked``, ...) is not read.
            k: at least 1; more than there are intents gives all.
            deadline_ms: from now until the answer, whole or degraded; None: the configuration's.
            client: for ``max_per_client``; "" is nobody in particular.

        Raises:
            DataError: a malformed context, k or deadline: says which, what was required and what came.
            QueueFull: overload, with ``retry_after_ms``. ClientCapReached: the client has too many requests.
            BatcherClosed: draining or closed. ForkedError: this is a forked child.
        """
        deadline_ms = self._checked(k, deadline_ms)
        with self._under_way() as served:
            session = served.begin(context, k, deadline_ms, client, priority)
            wait_for(session)
            return self._finished(served, session)

    async def arecommend(
        self,
        context: Mapping[str, Any],
        k: int = 3,
        *,
        deadline_ms: float | None = None,
        client: str = "",
        priority: Priority = "interactive",
    ) -> Recommendation:
        """``recommend`` for coroutines. Cancelling the task cancels the request."""
        deadline_ms = self._checked(k, deadline_ms)
        with self._under_way() as served:
            session = served.begin(context, k, deadline_ms, client, priority)
            await _done(session)
            return self._finished(served, session)

    def recommend_many(
        self, contexts: Sequence[Mapping[str, Any]], k: int = 3, *, deadline_ms: float | None = None, client: str = ""
    ) -> list[Recommendation]:
        """``recommend`` of each, as bulk: reasoned in batches, behind interactive requests.

        Each context has the deadline from the moment it enters the queue. A full queue is waited for as long as it
        holds contexts of this call.

        Raises:
            As ``recommend``; the other contexts' requests are then cancelled.
        """
        deadline_ms = self._checked(k, deadline_ms)
        answers: list[Recommendation] = []
        with self._under_way() as served:
            waiting: deque[Session] = deque()

            def finish_first() -> None:
                wait_for(waiting[0])
                answers.append(self._finished(served, waiting.popleft()))

            try:
                for context in contexts:
                    while len(waiting) >= MANY_UNDER_WAY:
                        finish_first()
                    while True:
                        try:
                            waiting.append(served.begin(context, k, deadline_ms, client, "bulk"))
                            break
                        except QueueFull:
                            if not waiting:
                                raise
                            finish_first()
                while waiting:
                    finish_first()
            finally:
                for session in waiting:
                    if session.thought.future is not None:
                        session.thought.future.cancel()
        return answers

    def intents(self) -> Sequence[Intent]:
        """Of the present index, in id order."""
        return self._served.intents()

    def swap_index(self, path: Path | str) -> int:
        """Answers from this index from now on; returns its generation. Requests under way keep the one they took.

        Raises:
            DataError, ProvenanceError: damaged, or of another intent tower; nothing was changed.
        """
        with self._swapping:
            return self._served.swap_index(Path(path))

    def swap_bundle(self, path: Path | str) -> str:
        """Serves this bundle from now on; returns its hash. The old one answers what it has accepted, then closes.

        Raises:
            DataError, ProvenanceError, NotAnswered: damaged, or its reasoner gives no row; nothing was changed.
        """
        with self._swapping:
            served = self._serve(read_bundle(path))
            with self._entering:
                closing = self._closing
                if not closing:
                    former, self._served = self._served, served
            if closing:
                served.close(0.0)
                raise not_answered(Outcome.CLOSED)
            thread = threading.Thread(target=self._retire, args=(former,), name="rgalign-retiring-bundle", daemon=True)
            self._retiring = [*(each for each in self._retiring if each.is_alive()), thread]
            thread.start()
            return served.bundle.hash

    def health(self) -> Health:
        """As it is now; a reasoner that was given up is probed if it is time."""
        served = self._served
        if served.reasoning is not None and not self._closing:
            served.reasoning.probe_if_due()
        return Health(
            ready=self._answers and not self._closing,
            degraded=served.degraded,
            breaker=served.breaker,
            bundle=served.bundle.hash,
            generation=served.index.current.generation,
            queue=None if served.reasoning is None else served.reasoning.counters(),
            unknown_values=served.bundle.encoder.counters.total(),
        )

    def drain(self, timeout_s: float) -> None:
        """Refuses new requests and waits until those under way are answered, at most so long."""
        with self._entering:
            self._closing = True
        self._served.is_idle(timeout_s)

    def close(self) -> None:
        """Drains for ``drain_ms``, then ends the batcher's threads; what still waits is answered at ω = 1."""
        self.drain(self.config.drain_ms / 1_000)
        self._served.close(0.0)
        for thread in self._retiring:
            thread.join()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _serve(self, bundle: Bundle) -> Served:
        served = Served(bundle, self._make_reasoner(bundle, self.config), self.config)
        try:
            served.warm_up()
        except BaseException:
            served.close(0.0)
            raise
        return served

    def _retire(self, served: Served) -> None:
        served.is_idle(self.config.drain_ms / 1_000)
        served.close(0.0)

    @contextlib.contextmanager
    def _under_way(self) -> Iterator[Served]:
        with self._entering:
            if self._closing:
                raise not_answered(Outcome.CLOSED)
            served = self._served
            served.entered()
        try:
            yield served
        finally:
            served.left()

    def _finished(self, served: Served, session: Session) -> Recommendation:
        try:
            answer = served.finish(session)
        except BaseException:
            self._answers = False
            raise
        self._answers = True
        return answer

    def _checked(self, k: int, deadline_ms: float | None) -> float:
        if not isinstance(k, int) or isinstance(k, bool) or k < 1:
            raise DataError(where="recommend k", required="an integer from 1", received=repr(k)[:40])
        if deadline_ms is None:
            return self.config.deadline_ms
        if isinstance(deadline_ms, bool) or not isinstance(deadline_ms, int | float) or not 0 < deadline_ms < math.inf:
            required = "a positive number of milliseconds"
            raise DataError(where="recommend deadline_ms", required=required, received=repr(deadline_ms)[:40])
        return float(deadline_ms)


async def _done(session: Session) -> None:
    """Waits for the session's latent query on this event loop; cancelled, it cancels the request."""
    future = session.thought.future
    if future is None:
        return
    loop = asyncio.get_running_loop()
    woken: asyncio.Future[None] = loop.create_future()

    def wake() -> None:
        if not woken.done():
            woken.set_result(None)

    def answered(_: object) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody awaits it
            loop.call_soon_threadsafe(wake)

    future.add_done_callback(answered)
    try:
        await woken
    except asyncio.CancelledError:
        future.cancel()
        raise
