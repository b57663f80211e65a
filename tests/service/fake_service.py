"""A recommender without a model, with the real one's face: its answers are a function of the context.

The context's feature ``do`` asks for a fault, ``ms`` for time, so that a test over HTTP can have both.

As a process: python fake_service.py SETTINGS_JSON [TOKEN] serves it and prints addresses and modules as one JSON line.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from rgalign.batcher import BatcherCounters, Outcome
from rgalign.batcher.answers import not_answered
from rgalign.errors import DataError, ProvenanceError
from rgalign.service.logs import start_logging
from rgalign.service.server import Listening, serve
from rgalign.service.settings import ServiceSettings

FEATURES = ("region", "ms", "do", "history", "note")


@dataclass(frozen=True)
class FakeIntent:
    id: str
    title: str
    description: str = ""


@dataclass(frozen=True)
class FakeRanked:
    id: str
    title: str
    score: float
    user_part: float
    query_part: float
    probability: float


@dataclass(frozen=True)
class FakeTimings:
    tokenise_ms: float = 0.1
    queue_ms: float = 0.2
    reason_ms: float = 0.3
    rank_ms: float = 0.1
    total_ms: float = 0.7


@dataclass(frozen=True)
class FakeRecommendation:
    intents: tuple[FakeRanked, ...]
    show: bool = True
    degraded: str | None = None
    bundle: str = "b" * 64
    generation: int = 1
    timings: FakeTimings = FakeTimings()


@dataclass(frozen=True)
class FakeHealth:
    ready: bool = True
    degraded: bool = False
    breaker: str = "closed"
    bundle: str = "b" * 64
    generation: int = 1
    queue: BatcherCounters | None = None
    unknown_values: int = 5


COUNTERS = BatcherCounters(
    submitted=7, answered={Outcome.ROW: 6, Outcome.QUEUE_FULL: 1}, waiting=0, in_model=0, most_waiting=2, batches=3,
    rows=6, tokens=60, computed_tokens=60, late_rows=0, queue_cap=64, rows_per_second=50.0,
)  # fmt: skip


@dataclass
class FakeRecommender:
    catalogue: Sequence[FakeIntent] = tuple(FakeIntent(f"intent-{i:02d}", f"Intent {i}", "…") for i in range(30))
    state: FakeHealth = field(default_factory=lambda: FakeHealth(queue=COUNTERS))
    asked: int = 0
    cancelled: int = 0
    closed: bool = False
    swapping: threading.Event = field(default_factory=threading.Event)  # set when a swap has begun
    swap_may_end: threading.Event = field(default_factory=threading.Event)  # a swap of "slow" waits for it

    async def arecommend(
        self,
        context: Mapping[str, Any],
        k: int = 3,
        *,
        deadline_ms: float | None = None,
        client: str = "",
        priority: str = "interactive",
    ) -> FakeRecommendation:
        self.asked += 1
        check(context)
        try:
            await asyncio.sleep(context.get("ms", 0) / 1e3)
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        match context.get("do"):
            case "overload":
                raise not_answered(Outcome.QUEUE_FULL, retry_after_ms=1_234.0)
            case "cap":
                raise not_answered(Outcome.CLIENT_CAP)
            case "closed":
                raise not_answered(Outcome.CLOSED)
            case "late":
                raise not_answered(Outcome.DEADLINE_RUNNING)
            case "long":
                raise not_answered(Outcome.WRONG_LENGTH)
            case "model":
                raise not_answered(Outcome.MODEL_RAISED, RuntimeError(repr(context)))
            case "block":
                time.sleep(60)  # the event loop with it
            case "bug":
                raise RuntimeError(f"at 0x7f00deadbeef in /tmp/secret: {dict(context)!r}")
            case "elsewhere":
                raise DataError(where="/srv/bundles/CANARY", required="CANARY", received="CANARY")
            case "nan":
                return self.answer_to(context, k, score=float("nan"))
            case "degraded":
                return replace(self.answer_to(context, k), degraded="late")
        return self.answer_to(context, k)

    def answer_to(self, context: Mapping[str, Any], k: int, score: float | None = None) -> FakeRecommendation:
        digest = hashlib.sha256(json.dumps(dict(context), sort_keys=True).encode()).digest()
        first = digest[0] % 30
        ranked = tuple(
            FakeRanked(f"intent-{i:02d}", f"Intent {i}", digest[i] / 255 if score is None else score, 0.25, 0.125, 0.5)
            for i in sorted(range(30), key=lambda i: ((i - first) % 30, i))[:k]
        )
        return FakeRecommendation(ranked, bundle=self.state.bundle, generation=self.state.generation)

    def intents(self) -> Sequence[FakeIntent]:
        return self.catalogue

    def swap_index(self, path: Path) -> int:
        self.swapping.set()
        if path.name == "slow":
            assert self.swap_may_end.wait(10)
        if not (path / "manifest.json").is_file():
            raise ProvenanceError(where=str(path), required="an index", received="none")
        self.state = replace(self.state, generation=self.state.generation + 1)
        return self.state.generation

    def swap_bundle(self, path: Path) -> str:
        if not (path / "manifest.json").is_file():
            raise ProvenanceError(where=str(path), required="a bundle", received="none")
        self.state = replace(self.state, bundle=hashlib.sha256(path.name.encode()).hexdigest())
        return self.state.bundle

    def health(self) -> FakeHealth:
        return self.state

    def drain(self, timeout_s: float) -> None:
        pass

    def close(self) -> None:
        self.closed = True


def check(context: Mapping[str, Any]) -> None:
    """Refuses as the real one does: naming feature, requirement and what came."""
    for name, value in context.items():
        if name not in FEATURES:
            raise DataError(where="context", required="features of the schema", received=repr(name))
        kind, required = {"ms": ((int, float), "a number"), "history": (list, "a list")}.get(name, (str, "a string"))
        if not isinstance(value, kind) or isinstance(value, bool):
            raise DataError(where=f"context, {name}", required=required, received=repr(value))


def tell(listening: Listening) -> None:
    print(json.dumps([listening.address, listening.admin_address, sorted(sys.modules)]), flush=True)


if __name__ == "__main__":
    start_logging(level=10)
    settings = ServiceSettings.model_validate(json.loads(sys.argv[1]))
    sys.exit(serve(FakeRecommender(), settings, sys.argv[2] if len(sys.argv) > 2 else None, tell))
