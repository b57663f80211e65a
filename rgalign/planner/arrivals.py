"""When requests arrive: a Poisson process, bursts, or a recorded trace. All are fixed before the first is sent.

    poisson   independent users
    bursty    two states, calm and burst, each of exponential length, a Poisson process in each (MMPP-2)
    trace     recorded times at another rate, over again where it is too short

``dispersion`` tells them apart in a row: variance over mean of the arrivals of a second, 1 for a Poisson process.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from rgalign.errors import ConfigError, DataError

Kind = Literal["poisson", "bursty", "trace"]


@dataclass(frozen=True)
class Bursts:
    """Args:
    factor: rate of a burst over the mean rate.
    share: of the time that is bursts, in the long run; factor * share is less than 1.
    seconds: mean length of one.
    """

    factor: float = 4.0
    share: float = 0.1
    seconds: float = 1.0

    def __post_init__(self) -> None:
        fits = self.factor > 1 and 0 < self.share < 1 and self.factor * self.share < 1 and self.seconds > 0
        if not fits:
            required = "factor above 1, share and factor x share between 0 and 1, seconds above 0"
            raise ConfigError(where="bursts", required=required, received=str(self))


def poisson(rate: float, seconds: float, seed: int) -> list[float]:
    """Arrival times in [0, seconds) at ``rate`` a second, in order."""
    rng = np.random.default_rng(seed)
    gaps = rng.exponential(1 / rate, math.ceil(rate * seconds + 10 * math.sqrt(rate * seconds) + 10))
    times = np.cumsum(gaps)
    return [float(at) for at in times[times < seconds]]


def bursty(rate: float, seconds: float, seed: int, bursts: Bursts = Bursts()) -> list[float]:
    """Arrival times in [0, seconds) in order: MMPP-2.

    The states are drawn first; the rates are then scaled so that this very path of states expects ``rate * seconds``
    arrivals. A run of a minute has few bursts: without that, its mean rate would be anywhere.
    """
    rng = np.random.default_rng(seed)
    calm_seconds = bursts.seconds * (1 - bursts.share) / bursts.share
    calm_rate = (1 - bursts.share * bursts.factor) / (1 - bursts.share)
    in_burst = bool(rng.random() < bursts.share)
    edges, expected = [0.0], [0.0]  # of the states, and the intensity's integral up to there
    while edges[-1] < seconds:
        length = rng.exponential(bursts.seconds if in_burst else calm_seconds)
        until = min(edges[-1] + length, seconds)
        expected.append(expected[-1] + (until - edges[-1]) * (bursts.factor if in_burst else calm_rate))
        edges.append(until)
        in_burst = not in_burst
    total = rate * seconds
    unit = poisson(1.0, total, int(rng.integers(1 << 31)))  # at rate 1 in the time in which intensity is constant
    return [float(at) for at in np.interp(unit, np.asarray(expected) * total / expected[-1], edges)]


def replayed(trace: Sequence[float], rate: float, seconds: float) -> list[float]:
    """The trace from its first arrival on, its time stretched to a mean of ``rate`` a second, cut at ``seconds`` and
    over again where it is shorter.

    Args:
        trace: seconds from any origin, in order, not all the same.
    """
    times = np.asarray(trace, np.float64) - trace[0]
    period = len(times) / rate
    times *= (period - 1 / rate) / times[-1]  # one mean gap after the last
    rounds = math.ceil(seconds / period)
    repeated = np.concatenate([times + period * each for each in range(rounds)])
    return [float(at) for at in repeated[repeated < seconds]]


def read_trace(path: Path) -> tuple[list[float], list[dict[str, Any]]]:
    """Arrival times in seconds and, where every line has one, contexts: a line is a number or ``{"at", "context"}``.

    Raises:
        DataError: no file, fewer than two arrivals, no number, out of order, or contexts on some lines only.
    """
    if not path.is_file():
        raise DataError(where=str(path), required="a trace: a line a request", received="no such file")
    times: list[float] = []
    contexts: list[dict[str, Any]] = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        value = _parsed(path, number, line)
        at = value.get("at") if isinstance(value, Mapping) else value
        if isinstance(at, bool) or not isinstance(at, int | float) or not math.isfinite(at):
            raise DataError(where=f"{path}:{number}", required="seconds", received=repr(at)[:40])
        if times and at < times[-1]:
            required = f"a time from {times[-1]:g} on, for arrivals are in order"
            raise DataError(where=f"{path}:{number}", required=required, received=f"{at:g}")
        times.append(float(at))
        if isinstance(value, Mapping) and isinstance(value.get("context"), Mapping):
            contexts.append(dict(value["context"]))
    if len(times) < 2 or times[0] == times[-1]:
        raise DataError(where=str(path), required="two arrivals at different times", received=str(len(times)))
    if contexts and len(contexts) != len(times):
        required = "a context on every line, or on none"
        raise DataError(where=str(path), required=required, received=f"{len(contexts)} of {len(times)}")
    return times, contexts


def _parsed(path: Path, number: int, line: str) -> Any:
    try:
        return json.loads(line)
    except ValueError as error:
        required = 'a number or {"at": seconds, "context": {...}}'
        raise DataError(where=f"{path}:{number}", required=required, received=line[:40]) from error


@dataclass(frozen=True)
class Arrivals:
    """A kind of load, to be drawn at several rates.

    Args:
        trace: for kind ``trace``.
    """

    kind: Kind = "poisson"
    bursts: Bursts = Bursts()
    trace: tuple[float, ...] = ()

    def at(self, rate: float, seconds: float, seed: int) -> list[float]:
        if self.kind == "bursty":
            return bursty(rate, seconds, seed, self.bursts)
        if self.kind == "trace":
            return replayed(self.trace, rate, seconds)
        return poisson(rate, seconds, seed)


def dispersion(arrivals: Sequence[float], seconds: float) -> float | None:
    """Variance over mean of the arrivals of each whole second; None where there are fewer than two seconds."""
    whole = int(seconds)
    if whole < 2:
        return None
    times = np.asarray(arrivals)
    counts = np.bincount(times[times < whole].astype(int), minlength=whole)
    return round(float(counts.var() / max(counts.mean(), 1e-9)), 2)
