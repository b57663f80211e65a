"""What a Recommender answers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from rgalign.batcher import BatcherCounters

BreakerState = Literal["closed", "open", "half_open"]
# Why an answer has no query part though its bundle has a reasoner.
Degraded = Literal["late", "failed", "shape", "nan", "breaker", "no_reasoner"]


@dataclass(frozen=True)
class Intent:
    """An entry of the index; ``description`` is empty for one that the bundle's catalogue does not have."""

    id: str
    title: str
    description: str


@dataclass(frozen=True)
class RankedIntent:
    """``score = user_part + query_part`` within rounding; ``probability`` is calibrated, over the whole index."""

    id: str
    title: str
    score: float
    user_part: float
    query_part: float
    probability: float


@dataclass(frozen=True)
class Timings:
    """Milliseconds. ``tokenise_ms``: check, verbalise, tokenise. ``rank_ms``: after the latent query was there.

    The user tower runs while the request waits and is reasoned, so it has no share of its own.
    """

    tokenise_ms: float
    queue_ms: float
    reason_ms: float
    rank_ms: float
    total_ms: float


@dataclass(frozen=True)
class Recommendation:
    """Args:
    intents: best first; ties by id.
    show: whether the best one's probability reaches the threshold that was fitted on validation sessions.
    degraded: why the answer is the user part's alone (ω = 1); None: it is whole.
    bundle: hash of the bundle; generation: of its index. Together they name what answered.
    """

    intents: tuple[RankedIntent, ...]
    show: bool
    degraded: Degraded | None
    bundle: str
    generation: int
    timings: Timings


@dataclass(frozen=True)
class Health:
    """Args:
    ready: the last answer that was tried was given, the warm-up's at least, and it is not closing.
    degraded: the next answer would be without the reasoner.
    queue: of the present bundle's batcher; None without a reasoner.
    """

    ready: bool
    degraded: bool
    breaker: BreakerState
    bundle: str
    generation: int
    queue: BatcherCounters | None
    unknown_values: int  # outside the vocabularies, since the bundle was loaded
