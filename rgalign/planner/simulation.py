"""A cell of replicas in virtual time (csrc/planner/cell.h), checked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from rgalign import _C
from rgalign.errors import ConfigError, DataError
from rgalign.planner.curve import Curve
from rgalign.recommender.config import RecommenderConfig
from rgalign.recommender.reasoning import batcher_config

Routing = Literal["least_outstanding", "random"]


class Ended(IntEnum):
    """As csrc/planner/cell.h has them."""

    WHOLE = 0
    DEGRADED = 1  # in time, without the reasoner
    REFUSED = 2  # the queue was full
    LOST = 3  # the replica crashed


@dataclass(frozen=True)
class Outage:
    """A replica is away from ``start`` until ``end``, in seconds.

    Args:
        noticed: when the balancer stops sending to it; None: it is drained from ``start`` on and loses nothing.
    """

    replica: int
    start: float
    end: float
    noticed: float | None = None


@dataclass(frozen=True)
class Simulated:
    """Args:
    latency_ms: [N] from the arrival; 0 of lost ones.
    ended: [N] of ``Ended``.
    host_busy, worker_busy: shares of the replicas' time.
    """

    latency_ms: NDArray[np.float64]
    ended: NDArray[np.uint8]
    host_busy: float
    worker_busy: float
    batches: int
    rows: int
    most_waiting: int

    def share(self, ended: Ended) -> float:
        return float((self.ended == ended).mean())

    def percentile(self, percent: float) -> float:
        """Of the answered ones' latency in ms; infinite where nobody was answered."""
        answered = self.latency_ms[self.ended <= Ended.DEGRADED]
        return float(np.percentile(answered, percent)) if answered.size else float("inf")


def simulate(
    curve: Curve,
    config: RecommenderConfig,
    arrivals: ArrayLike,
    *,
    replicas: int = 1,
    routing: Routing = "least_outstanding",
    outages: Sequence[Outage] = (),
    draw_lengths: bool = True,
    seed: int = 0,
) -> Simulated:
    """The same arguments give the same result.

    Args:
        arrivals: [N] seconds, ascending.
        draw_lengths: of requests, from the curve's; else request n has the n-th, over again from the first.

    Raises:
        DataError: arrivals that are empty, not finite, negative or out of order. ConfigError: an outage of no replica.
    """
    times = np.ascontiguousarray(arrivals, np.float64)
    if times.ndim != 1 or not times.size or not np.isfinite(times).all() or times[0] < 0 or (np.diff(times) < 0).any():
        required = "[N] ascending seconds from 0 on, at least one"
        raise DataError(where="simulate arrivals", required=required, received=f"shape {times.shape}")
    if replicas < 1:
        raise ConfigError(where="simulate replicas", required="at least 1", received=str(replicas))
    for outage in outages:
        noticed = outage.start if outage.noticed is None else outage.noticed
        if not (0 <= outage.replica < replicas and 0 <= outage.start <= noticed <= outage.end):
            required = f"one of {replicas} replicas, 0 <= start <= noticed <= end"
            raise ConfigError(where="simulate outages", required=required, received=str(outage))
    result = _C.simulate_cell(
        times,
        limits=batcher_config(config, curve.longest).limits(),
        replicas=replicas,
        curve_tokens=curve.tokens,
        curve_ms=curve.ms,
        jitter=curve.jitter,
        lengths=curve.lengths,
        read_ms=curve.read_ms,
        tower_ms=curve.tower_ms,
        answer_ms=curve.answer_ms,
        deadline_ms=config.deadline_ms,
        reserve_ms=config.reserve_ms,
        least_outstanding=routing == "least_outstanding",
        draw_lengths=draw_lengths,
        outages=[
            (o.replica, o.start, o.start if o.noticed is None else o.noticed, o.end, o.noticed is None) for o in outages
        ],
        seed=seed,
    )
    del result["seconds"]
    return Simulated(**result)
