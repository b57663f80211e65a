"""How sure we are of a metric, and of a difference between two rankers on the same sessions.

Every statistic here is a ratio of sums over sessions, sum x / sum y: a weighted mean has x = w * m and y = w (both 0
where m is undefined), a paired difference x = w * (m_a - m_b), a share of a ceiling x = m and y = ceiling. So one
resampling serves all of them: with counts n ~ Multinomial of the sessions drawn with replacement, (n @ x) / (n @ y).

Sessions of one user are not independent; with ``clusters`` whole users are drawn, and whole users change sign in the
permutation test. Intervals: percentile, or BCa (Efron 1987), which corrects bias and skew.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from rgalign.errors import DataError

RESAMPLES = 10_000
LEVEL = 0.95
MIN_UNITS = 2
CHUNK = 1 << 22  # elements of one working array

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Method = Literal["percentile", "bca"]
Verdict = Literal["better", "worse", "inconclusive (interval spans zero)"]


@dataclass(frozen=True)
class Interval:
    """An estimate and its confidence interval."""

    estimate: float
    low: float
    high: float

    @property
    def verdict(self) -> Verdict:
        """For a difference where more is better: on which side of zero the whole interval lies."""
        if self.low > 0:
            return "better"
        return "worse" if self.high < 0 else "inconclusive (interval spans zero)"


@dataclass(frozen=True)
class Resampling:
    """How intervals and p values are drawn.

    Args:
        resamples: bootstrap draws and sign flips.
        seed: of the draws; equal seeds give equal intervals.
        level: of the intervals.
        method: of the intervals.
    """

    resamples: int = RESAMPLES
    seed: int = 0
    level: float = LEVEL
    method: Method = "percentile"


DEFAULT = Resampling()


def bootstrap(x: Floats, y: Floats, clusters: Ints | None = None, how: Resampling = DEFAULT) -> list[Interval]:
    """Intervals of K ratios of sums on the same draws.

    Args:
        x: [S, K] numerators.
        y: [S, K] or [S, 1] denominators, of positive sum.
        clusters: [S] cluster of each session, any integers; None: every session by itself.

    Raises:
        DataError: fewer than two sessions or clusters, NaN, a column whose denominators sum to zero.
    """
    x, y = _clustered(x, y, clusters)
    estimates = x.sum(axis=0) / y.sum(axis=0)
    # Many statistics share their denominator: it is summed once. Single precision moves a limit by 1e-7 at most.
    distinct, of_column = _distinct_columns(y)
    x32, y32 = x.astype(np.float32), distinct.astype(np.float32)
    draws = np.concatenate(
        [_ratio(counts @ x32, (counts @ y32)[:, of_column]) for counts in resample_counts(len(x), how)]
    )
    low, high = _percentiles(draws, estimates, x, y, how)
    return [Interval(*map(float, triple)) for triple in zip(estimates, low, high, strict=True)]


def sign_flip(x: Floats, clusters: Ints | None = None, how: Resampling = DEFAULT) -> Floats:
    """Two-sided p values of K paired differences by random sign flips (paired permutation test).

    Under the null hypothesis a session's difference is as likely to have the other sign. p = (1 + #{|T*| >= |T|}) /
    (1 + flips) with T = sum x (Phipson & Smyth 2010: never 0).

    Args:
        x: [S, K] weighted differences, 0 where undefined.
    """
    x, _ = _clustered(x, np.ones((len(x), 1)), clusters)
    x = x[(x != 0).any(axis=1)]  # the others change no sum
    observed = np.abs(x.sum(axis=0))
    # Sums of the same numbers in another order differ by rounding; a tie counts as at least as extreme.
    threshold = observed - 1e-9 * np.abs(x).sum(axis=0)
    exceeded = np.zeros(x.shape[1], np.int64)
    generator = np.random.default_rng(how.seed)
    step = max(1, CHUNK // max(1, len(x)))
    for start in range(0, how.resamples, step):
        shape = (min(step, how.resamples - start), len(x))
        signs = generator.integers(0, 2, shape, dtype=np.int8) * 2.0 - 1.0
        exceeded += (np.abs(signs @ x) >= threshold).sum(axis=0)
    return np.asarray((1.0 + exceeded) / (1.0 + how.resamples), np.float64)


@dataclass(frozen=True)
class Comparison:
    """A ranker against a baseline in one metric: the difference (ranker - baseline) and its p value."""

    difference: Interval
    p_value: float

    @property
    def verdict(self) -> Verdict:
        return self.difference.verdict


def paired_comparisons(
    values: Floats, baseline: Floats, weights: Floats, clusters: Ints | None = None, how: Resampling = DEFAULT
) -> list[Comparison]:
    """Compares K columns of per-session metrics with the baseline's on the same sessions.

    Args:
        values: [S, K], NaN where undefined; several seeds are averaged first, see :func:`seed_mean`.
        baseline: [S, K], undefined for the same sessions.
        weights: [S, K] weight of each session in the mean.

    Raises:
        DataError: the two are defined on different sessions, so they are not paired.
    """
    defined = ~np.isnan(values)
    if values.shape != baseline.shape or (defined == np.isnan(baseline)).any():
        required = "metrics defined for the same sessions"
        raise DataError(where="paired comparison", required=required, received="others")
    x = np.where(defined, weights * (values - baseline), 0.0)
    y = np.where(defined, weights, 0.0)
    intervals, p_values = bootstrap(x, y, clusters, how), sign_flip(x, clusters, how)
    return [Comparison(interval, float(p)) for interval, p in zip(intervals, p_values, strict=True)]


def mean_intervals(
    values: Floats, weights: Floats, clusters: Ints | None = None, how: Resampling = DEFAULT
) -> list[Interval]:
    """Intervals of the weighted means of K columns [S, K], undefined (NaN) entries skipped."""
    defined = ~np.isnan(values)
    return bootstrap(np.where(defined, weights * values, 0.0), np.where(defined, weights, 0.0), clusters, how)


def seed_mean(per_seed: Sequence[Floats]) -> Floats:
    """The mean over training seeds of each session's metric: the average seed's ranker, session by session.

    Sessions are resampled after this, so the interval covers the choice of sessions, not of seeds: their spread
    (:func:`seed_spread`) is stated beside it.
    """
    return np.asarray(np.mean(np.stack(per_seed), axis=0), np.float64)


def seed_spread(means: Sequence[float]) -> float:
    """Standard deviation between seeds (n - 1); NaN for one seed."""
    return float(np.std(means, ddof=1)) if len(means) > 1 else float("nan")


def cluster_codes(user_ids: Sequence[str | None]) -> Ints:
    """[S] cluster of each session: its user. Sessions without a user id (null or "") are clusters by themselves."""
    names = [user_id or f"\0{session}" for session, user_id in enumerate(user_ids)]
    return np.asarray(np.unique(np.array(names, dtype=object), return_inverse=True)[1], np.int64)


def resample_counts(units: int, how: Resampling = DEFAULT) -> Iterator[NDArray[np.float32]]:
    """Multinomial counts [r, units] of draws with replacement, in chunks of r that add up to ``how.resamples``."""
    generator = np.random.default_rng(how.seed)
    step = max(1, CHUNK // units)
    narrow = np.uint16 if units <= 1 << 16 else np.uint32  # drawing is what takes the time
    for start in range(0, how.resamples, step):
        rows = min(step, how.resamples - start)
        drawn = generator.integers(0, units, (rows, units), dtype=narrow)
        counts = np.empty((rows, units), np.float32)
        for row in range(rows):
            counts[row] = np.bincount(drawn[row], minlength=units)
        yield counts


def _clustered(x: Floats, y: Floats, clusters: Ints | None) -> tuple[Floats, Floats]:
    """Sums of x and y within each cluster: the units that are drawn."""
    if np.isnan(x).any() or np.isnan(y).any():
        raise DataError(where="bootstrap", required="no NaN", received="NaN among the sessions' values")
    if clusters is not None:
        codes = np.unique(clusters, return_inverse=True)[1]
        x, y = _sums(x, codes), _sums(y, codes)
    if len(x) < MIN_UNITS:
        required = f"at least {MIN_UNITS} independent sessions or clusters"
        raise DataError(where="bootstrap", required=required, received=str(len(x)))
    if not (y.sum(axis=0) > 0).all():
        raise DataError(where="bootstrap", required="a metric defined somewhere", received="weights that sum to zero")
    return x, y


def _sums(values: Floats, codes: NDArray[np.intp]) -> Floats:
    columns = [np.bincount(codes, weights=column) for column in values.T]
    return np.stack(columns, axis=1)


def _distinct_columns(values: Floats) -> tuple[Floats, list[int]]:
    """The different columns of ``values``, and of each column the place of its equal among them."""
    places: dict[bytes, int] = {}
    of_column = [places.setdefault(column.tobytes(), len(places)) for column in values.T]
    return values[:, [of_column.index(place) for place in range(len(places))]], of_column


def _ratio(numerator: NDArray[np.floating[Any]], denominator: NDArray[np.floating[Any]]) -> Floats:
    """A draw without any defined session says nothing: NaN, left out of the percentiles."""
    denominator = np.broadcast_to(denominator, numerator.shape)
    ratio = np.full(numerator.shape, np.nan)
    np.divide(numerator, denominator, out=ratio, where=denominator != 0)
    return ratio


def _percentiles(draws: Floats, estimates: Floats, x: Floats, y: Floats, how: Resampling) -> tuple[Floats, Floats]:
    tail = (1 - how.level) / 2
    if how.method == "percentile":
        return np.nanquantile(draws, tail, axis=0), np.nanquantile(draws, 1 - tail, axis=0)
    limits = [_bca_limits(draws[:, k], estimates[k], _jackknife(x, y, k), tail) for k in range(len(estimates))]
    low, high = np.array(limits).T
    return low, high


def _jackknife(x: Floats, y: Floats, k: int) -> Floats:
    """The estimate without each unit in turn."""
    denominator = y[:, min(k, y.shape[1] - 1)]
    return _ratio(x[:, k].sum() - x[:, k], denominator.sum() - denominator)


def _bca_limits(draws: Floats, estimate: float, jackknife: Floats, tail: float) -> tuple[float, float]:
    """Bias-corrected and accelerated limits (Efron & Tibshirani 1993, eq. 14.9 to 14.15)."""
    draws, jackknife = draws[~np.isnan(draws)], jackknife[~np.isnan(jackknife)]
    deviation = jackknife.mean() - jackknife
    spread = float((deviation**2).sum())
    if spread == 0:  # every session says the same
        return estimate, estimate
    normal = NormalDist()
    acceleration = float((deviation**3).sum()) / (6 * spread**1.5)
    tied = np.isclose(draws, estimate, rtol=1e-6, atol=1e-9)  # draws are in single precision
    below = float(((draws < estimate) & ~tied).mean() + 0.5 * tied.mean())  # ties are split: metrics are discrete
    bias = normal.inv_cdf(min(max(below, 1 / (len(draws) + 1)), len(draws) / (len(draws) + 1)))
    limits = []
    for z in (normal.inv_cdf(tail), normal.inv_cdf(1 - tail)):
        shifted = bias + (bias + z) / (1 - acceleration * (bias + z))
        limits.append(float(np.quantile(draws, normal.cdf(shifted))))
    return limits[0], limits[1]
