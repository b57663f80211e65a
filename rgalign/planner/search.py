"""The fewest replicas that keep a load's target, what they leave as headroom, and what breaks first."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

from pydantic import Field

from rgalign.config import Config
from rgalign.errors import ConfigError
from rgalign.planner.arrivals import Arrivals
from rgalign.planner.curve import Curve
from rgalign.planner.simulation import Ended, Outage, Routing, Simulated, simulate
from rgalign.recommender.config import RecommenderConfig

CELL = 8  # replicas that are simulated together; a larger service is made of such cells
LEAST_SECONDS, LEAST_REQUESTS, MOST_REQUESTS = 10.0, 20_000, 300_000
MOST_REPLICAS = 1 << 16
HEADROOM_STEP = 0.05  # of the load asked for
BUSY = 0.95  # share of its time at which a stage counts as full


class PlanConfig(Config):
    """Args:
    qps: requests a second of the whole service.
    p99_ms: from the arrival until the answer, whole or degraded.
    whole_share: of the requests that must get a whole answer.
    spare: replicas beyond those that the load needs, for one that crashed or is being updated.
    noticed_s: until the load balancer stops sending to a crashed replica.
    hourly_price: of a replica, in any currency; None: no cost.
    """

    qps: float = Field(gt=0, allow_inf_nan=False)
    p99_ms: float = Field(gt=0, allow_inf_nan=False)
    whole_share: float = Field(default=0.999, gt=0, le=1)
    arrivals: Literal["poisson", "bursty"] = "poisson"
    routing: Routing = "least_outstanding"
    spare: int = Field(default=1, ge=0)
    noticed_s: float = Field(default=2.0, ge=0, allow_inf_nan=False)
    hourly_price: float | None = Field(default=None, ge=0, allow_inf_nan=False)
    serving: RecommenderConfig = RecommenderConfig()
    seed: int = 0


@dataclass(frozen=True)
class Trial:
    """What a load did to so many replicas. Times in ms, the rest shares."""

    qps: float
    p50_ms: float
    p99_ms: float
    whole: float
    degraded: float
    refused: float
    lost: float
    worker_busy: float
    host_busy: float
    rows_per_batch: float

    def keeps(self, config: PlanConfig) -> bool:
        return self.p99_ms <= config.p99_ms and self.whole >= config.whole_share


@dataclass(frozen=True)
class Plan:
    """Args:
    replicas: ``needed`` and the spare ones.
    trials: name of the scenario -> what happened to ``replicas``.
    curve: load from a little to beyond what they can do.
    most_qps: the highest load that ``replicas`` keep.
    breaks_first: what is full, or misses its target, one step above it.
    """

    needed: int
    replicas: int
    gpus: int
    trials: Mapping[str, Trial]
    curve: tuple[Trial, ...]
    most_qps: float
    breaks_first: str
    cost_per_million: float | None

    @property
    def headroom(self) -> float:
        """Share of the load asked for that could come in addition."""
        return self.most_qps / self.trials["steady"].qps - 1


def plan(curve: Curve, config: PlanConfig, progress: Callable[[str], None] = lambda _: None) -> Plan:
    """Raises:
    ConfigError: the target is below what a single request takes, or more than 65,536 replicas would be needed.
    """
    alone = curve.read_ms + max(curve.ms_of(curve.mean_length), curve.tower_ms) + curve.answer_ms
    if alone > config.p99_ms:
        required = f"at least {alone:.1f} ms, which one request takes of an idle replica"
        raise ConfigError(where="plan p99_ms", required=required, received=f"{config.p99_ms:g}")
    needed = _fewest(curve, config, progress)
    replicas = needed + config.spare
    progress(f"{replicas} replicas: crash, update, headroom")
    trials = {
        "steady": _trial(curve, config, config.qps, replicas),
        "bursty": _trial(curve, config.model_copy(update={"arrivals": "bursty"}), config.qps, replicas),
        "update": _trial(curve, config, config.qps, replicas, "update"),
        "crash": _trial(curve, config, config.qps, replicas, "crash"),
    }
    most, broken = _headroom(curve, config, replicas)
    shares = (0.1, 0.25, 0.5, 0.7, 0.8, 0.9, 0.95, 1.0, 1.05, 1.15, 1.3)
    loads = tuple(_trial(curve, config, share * most, replicas) for share in shares)
    cost = None
    if config.hourly_price is not None:
        cost = replicas * config.hourly_price / (config.qps * 3_600) * 1e6
    return Plan(needed, replicas, replicas * curve.gpus, trials, loads, most, _reason(broken, config), cost)


def _fewest(curve: Curve, config: PlanConfig, progress: Callable[[str], None]) -> int:
    """Fewer than this cannot even take the work; from there doubling steps up, then bisection."""
    most_each = min(curve.rows_per_second, 1_000 / curve.host_ms if curve.host_ms else math.inf)
    low = max(math.ceil(config.qps / most_each) - 1, 0)  # does not keep it
    step, high = 1, low + 1
    while not _trial(curve, config, config.qps, high).keeps(config):
        progress(f"{high} replicas do not keep it")
        low, high, step = high, high + step, 2 * step
        if high > MOST_REPLICAS:
            required = f"a target that {MOST_REPLICAS:,} replicas keep"
            received = f"{config.qps:g} requests a second within {config.p99_ms:g} ms"
            raise ConfigError(where="plan", required=required, received=received)
    while high - low > 1:
        middle = (low + high) // 2
        progress(f"between {low} and {high} replicas")
        if _trial(curve, config, config.qps, middle).keeps(config):
            high = middle
        else:
            low = middle
    return high


def _headroom(curve: Curve, config: PlanConfig, replicas: int) -> tuple[float, Trial]:
    """The highest load in steps that is kept, and the first above it that is not."""
    kept = config.qps
    while True:
        trial = _trial(curve, config, kept + HEADROOM_STEP * config.qps, replicas)
        if not trial.keeps(config):
            return kept, trial
        kept = trial.qps


def _trial(
    curve: Curve, config: PlanConfig, qps: float, replicas: int, scenario: Literal["", "crash", "update"] = ""
) -> Trial:
    """A cell of the service under its part of the load. With an outage the cell is as large as it can be, for one of
    many that is away weighs less than one of few."""
    each = qps / replicas
    cell = min(replicas, CELL)
    seconds = max(LEAST_SECONDS, LEAST_REQUESTS / (each * cell))
    outages: list[Outage] = []
    if scenario:
        away = max(curve.load_s, config.noticed_s)
        seconds = 2 * away + LEAST_SECONDS
        cell = min(replicas, max(CELL, int(MOST_REQUESTS / (each * seconds))))
        noticed = None if scenario == "update" else LEAST_SECONDS / 2 + config.noticed_s
        outages = [Outage(0, LEAST_SECONDS / 2, LEAST_SECONDS / 2 + away, noticed)]
    times = Arrivals(config.arrivals).at(each * cell, seconds, config.seed)
    serving = config.serving.model_copy(update={"max_rows": min(config.serving.max_rows, curve.rows_per_batch)})
    result = simulate(
        curve, serving, times, replicas=cell, routing=config.routing, outages=outages, seed=config.seed + 1
    )
    return _described(qps, result)


def _described(qps: float, result: Simulated) -> Trial:
    shares = [result.share(each) for each in (Ended.WHOLE, Ended.DEGRADED, Ended.REFUSED, Ended.LOST)]
    rows = result.rows / max(result.batches, 1)
    p50_ms, p99_ms = result.percentile(50), result.percentile(99)
    whole, degraded, refused, lost = shares
    return Trial(qps, p50_ms, p99_ms, whole, degraded, refused, lost, result.worker_busy, result.host_busy, rows)


def _reason(trial: Trial, config: PlanConfig) -> str:
    if trial.host_busy >= BUSY:
        return "the host: one process reads and answers one request at a time"
    if trial.worker_busy >= BUSY or trial.refused or trial.degraded:
        return "the reasoner: it is busy all the time"
    if trial.p99_ms > config.p99_ms:
        return "the 99th percentile: nothing is full, but waiting for the batch under way takes too long"
    return "the share of whole answers"
