"""What became of each request, and where its milliseconds went. Of one process or of several.

    latency = late + http + other + tokenise + queue + reason + rank

from the scheduled arrival to the answer. ``late``: this generator, until it sent the request; tokenise to rank: as the
answer says; ``other``: of the library, beside them; ``http``: all that is left, connections, sockets and JSON of both
sides, and the event loops' own queues.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

PERCENTILES = (50, 90, 99, 99.9)
TIMED = ("tokenise_ms", "queue_ms", "reason_ms", "rank_ms", "total_ms")  # as an answer has them
STAGES = ("late", "http", "other", "tokenise", "queue", "reason", "rank")
WHOLE, DEGRADED, LOST = "ok", "degraded", "lost"
UNREACHED = ("no connection", "closed")
INTERVAL_Z = 1.96  # of a 95 % interval


class Reply(NamedTuple):
    """What a target answered: ok, degraded, or why not; and its own times (TIMED) of an answer that has them."""

    outcome: str
    timings: tuple[float, ...] | None = None


class Ended(NamedTuple):
    """One request of a run; seconds from the run's beginning, milliseconds from the scheduled arrival."""

    number: int
    scheduled_s: float
    late_ms: float
    latency_ms: float
    outcome: str
    timings: tuple[float, ...] | None = None


@dataclass
class Ledger:
    """All requests of a run, in the order in which they ended.

    Args:
        cpu_s: of the generating processes; wall_s: from the first scheduled arrival to the last answer; processes: how
            many generated.
    """

    ended: list[Ended] = field(default_factory=list)
    cpu_s: float = 0.0
    wall_s: float = 0.0
    processes: int = 1

    @property
    def outcomes(self) -> Counter[str]:
        return Counter(each.outcome for each in self.ended)

    @property
    def answered(self) -> list[Ended]:
        """With a recommendation, whole or degraded."""
        return [each for each in self.ended if each.outcome in (WHOLE, DEGRADED)]

    @property
    def busy(self) -> float:
        """Share of a core that a generating process took; near 1 it can send no faster."""
        return self.cpu_s / (self.wall_s * self.processes) if self.wall_s else 0.0

    def late_ms(self, percentile: float) -> float:
        return _percentile([each.late_ms for each in self.ended], percentile)

    def latency_ms(self, percentile: float) -> float:
        """Of those that were answered; NaN if none was."""
        return _percentile([each.latency_ms for each in self.answered], percentile)

    def promised_ms(self, percentile: float, *, since_sent: bool = False) -> float:
        """As ``percentile_of_all``: who got no whole answer waited for ever.

        Args:
            since_sent: without the generator's own lateness.
        """
        waits = (
            each.latency_ms - (each.late_ms if since_sent else 0.0) for each in self.ended if each.outcome == WHOLE
        )
        return percentile_of_all(list(waits), len(self.ended), percentile)


def percentile_of_all(values: Sequence[float], count: int, percentile: float) -> float:
    """The least value that ``percentile`` of ``count`` requests do not exceed; those without a value are infinite."""
    rank = math.ceil(count * percentile / 100)
    return math.inf if not 1 <= rank <= len(values) else float(np.sort(np.asarray(values))[rank - 1])


def interval_of_percentile(values: Sequence[float], count: int, percentile: float) -> tuple[float, float]:
    """95 % interval of that percentile from the order statistics, whatever the distribution (Conover 1999, 3.2)."""
    share = percentile / 100
    middle, width = count * share, INTERVAL_Z * math.sqrt(count * share * (1 - share))
    low, high = math.floor(middle - width), math.ceil(middle + width) + 1
    ordered = np.sort(np.asarray(values))
    return tuple(  # type: ignore[return-value]
        math.inf if rank > len(ordered) else float(ordered[max(rank, 1) - 1]) if len(ordered) else math.inf
        for rank in (low, high)
    )


def merged(parts: Iterable[Ledger]) -> Ledger:
    """One run of several processes."""
    all_parts = list(parts)
    ended = [each for part in all_parts for each in part.ended]
    ended.sort(key=lambda each: each.scheduled_s + each.latency_ms / 1e3)
    wall_s = max((part.wall_s for part in all_parts), default=0.0)
    return Ledger(ended, sum(part.cpu_s for part in all_parts), wall_s, sum(part.processes for part in all_parts))


def to_json(ledger: Ledger) -> str:
    return json.dumps({"ended": ledger.ended, "cpu_s": ledger.cpu_s, "wall_s": ledger.wall_s})


def from_json(text: str) -> Ledger:
    values = json.loads(text)
    ended = [Ended(*row)._replace(timings=None if row[-1] is None else tuple(row[-1])) for row in values["ended"]]
    return Ledger(ended, values["cpu_s"], values["wall_s"])


# ---- where the time went ---------------------------------------------------------------------------------------------


def stages_ms(requests: Sequence[Ended]) -> NDArray[np.float64]:
    """[R, S] milliseconds of each answered request in each of STAGES; a row's sum is its latency.

    Of a target that tells no times of its own all is ``http``.
    """
    rows = []
    for each in requests:
        tokenise, queue, reason, rank, total = each.timings or (0.0,) * len(TIMED)
        http = each.latency_ms - each.late_ms - total
        rows.append((each.late_ms, http, total - tokenise - queue - reason - rank, tokenise, queue, reason, rank))
    return np.asarray(rows, np.float64).reshape(-1, len(STAGES))


def where_time_went(ledger: Ledger) -> dict[str, dict[str, float]]:
    """Per stage: mean, median and p99 over all answers, and its mean over the slowest hundredth of them.

    Only the means of a column sum up to a latency; percentiles of parts do not.
    """
    answered = sorted(ledger.answered, key=lambda each: each.latency_ms)
    if not answered:
        return {}
    parts = stages_ms(answered)
    slowest = parts[-max(1, len(parts) // 100) :]
    return {
        stage: {
            "mean": round(float(parts[:, column].mean()), 3),
            "p50": round(float(np.median(parts[:, column])), 3),
            "p99": round(float(np.percentile(parts[:, column], 99)), 3),
            "slowest_1_percent": round(float(slowest[:, column].mean()), 3),
        }
        for column, stage in enumerate(STAGES)
    }


def by_second(ledger: Ledger) -> list[dict[str, Any]]:
    """A row a second of scheduled arrivals; ``waiting``: sent or due, and not answered, at its end."""
    if not ledger.ended:
        return []
    scheduled = np.array([each.scheduled_s for each in ledger.ended])
    ends = scheduled + np.array([each.latency_ms for each in ledger.ended]) / 1e3
    rows = []
    for second in range(int(scheduled.max()) + 1):
        inside = [each for each in ledger.ended if second <= each.scheduled_s < second + 1]
        outcomes = Counter(each.outcome for each in inside)
        waits = [each.latency_ms for each in inside if each.outcome in (WHOLE, DEGRADED)]
        rows.append(
            {
                "second": second,
                "offered": len(inside),
                "ok": outcomes[WHOLE],
                "degraded": outcomes[DEGRADED],
                "other": len(inside) - outcomes[WHOLE] - outcomes[DEGRADED],
                "p50_ms": _rounded(_percentile(waits, 50)),
                "p99_ms": _rounded(_percentile(waits, 99)),
                "max_ms": _rounded(max(waits, default=math.nan)),
                "generator_late_ms": _rounded(max((each.late_ms for each in inside), default=math.nan)),
                "waiting": int(((scheduled < second + 1) & (ends >= second + 1)).sum()),
            }
        )
    return rows


def summary(rate: float, seconds: float, num_arrivals: int, ledger: Ledger) -> dict[str, Any]:
    """A run's numbers.

    Raises:
        SystemExit: a request is missing from the ledger, twice in it, or was lost.
    """
    outcomes = ledger.outcomes
    once = len({each.number for each in ledger.ended}) == len(ledger.ended) == num_arrivals
    if not once or outcomes[LOST]:
        raise SystemExit(f"{num_arrivals} requests, but {dict(outcomes)}")
    waits = [each.latency_ms for each in ledger.answered]
    return {
        "rate": rate,
        "seconds": seconds,
        "requests": num_arrivals,
        "outcomes": dict(outcomes),
        "answered_per_s": round(len(waits) / seconds, 2),
        "latency_ms": {f"p{p:g}": _rounded(_percentile(waits, p)) for p in PERCENTILES}
        | {"max": _rounded(max(waits, default=math.nan))},
        "stages_ms": where_time_went(ledger),
        "generator_late_ms": {f"p{p:g}": _rounded(ledger.late_ms(p)) for p in (50, 99)},
        "generator_busy": round(ledger.busy, 3),
        "generator_processes": ledger.processes,
    }


def plain(values: Mapping[str, Any]) -> dict[str, Any]:
    """The same for JSON, which has no infinity and no NaN: null."""
    return {name: _plain(value) for name, value in values.items()}


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return plain(value)
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _percentile(values: Sequence[float], percentile: float) -> float:
    return float(np.percentile(values, percentile)) if len(values) else math.nan


def _rounded(value: float) -> float:
    return round(value, 2)
