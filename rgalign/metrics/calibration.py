"""Do a ranker's scores mean what they say: softmax probabilities, reliability, ECE, temperature.

    p(i | session) = softmax over the candidates of logit_scale * s_i          (the training loss' distribution)
    outcome        = y_i / sum y, the loss' target: 1 or 0 where one intent is relevant, a share where several are

The top intent's probability is compared with its outcome in bins (Guo et al. 2017): ECE = sum_b n_b / n * |mean
outcome - mean p|. The scale that makes the scores fit best minimises the cross entropy of the target on *other*
sessions (valid); it is convex in the scale, so Newton's method finds it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rgalign.errors import DataError
from rgalign.metrics.ranking import CHUNK, PADDING, Floats, Rows
from rgalign.metrics.significance import DEFAULT, Interval, Resampling, resample_counts

BINS = 10
MAX_SCALE = 1000.0  # a perfect ranker's best scale is infinite
MAX_STEPS = 100


@dataclass(frozen=True)
class Bin:
    """Sessions whose top probability fell into one bin."""

    num_sessions: int
    probability: float
    outcome: Interval


@dataclass(frozen=True)
class Reliability:
    """The reliability curve (bins ascending, empty ones left out) and its expected calibration error."""

    bins: tuple[Bin, ...]
    ece: Interval


@dataclass(frozen=True)
class TopIntent:
    """Of each session with relevant intents: the top intent's probability and its outcome, [S'] each."""

    session: NDArray[np.int64]
    probability: Floats
    outcome: Floats


def top_intent(
    scores: NDArray[np.floating[Any]], relevant: Rows, candidates: Rows | None, logit_scale: float
) -> TopIntent:
    """The top intent under the tie rule. Shapes as in :func:`rgalign.metrics.ranking.session_metrics`."""
    sessions, probabilities, outcomes = [], [], []
    for start, logits, target in _blocks(scores, relevant, candidates):
        top = logits.argmax(axis=1)[:, None]  # columns ascend by catalogue row, so the first maximum is the winner
        probability = _softmax(_scaled(logits, logit_scale))
        labelled = target.sum(axis=1) > 0
        sessions.append(start + np.flatnonzero(labelled))
        probabilities.append(np.take_along_axis(probability, top, axis=1)[labelled, 0])
        outcomes.append(np.take_along_axis(target, top, axis=1)[labelled, 0])
    if not sum(map(len, sessions)):
        raise DataError(where="calibration", required="a session with a relevant candidate", received="none")
    return TopIntent(np.concatenate(sessions), np.concatenate(probabilities), np.concatenate(outcomes))


def reliability(
    probability: Floats,
    outcome: Floats,
    clusters: NDArray[np.int64] | None = None,
    *,
    num_bins: int = BINS,
    how: Resampling = DEFAULT,
) -> Reliability:
    """Reliability in bins of equal numbers of sessions, so that no bin is too small to say anything.

    Args:
        probability: [S] in 0..1.
        outcome: [S] in 0..1.
        clusters: [S], see :mod:`rgalign.metrics.significance`.
    """
    for name, values in (("probability", probability), ("outcome", outcome)):
        if values.shape != (len(probability),) or not ((values >= 0) & (values <= 1)).all():
            raise DataError(where=name, required="numbers from 0 to 1 of equal length", received=f"{values.shape}")
    edges = np.unique(np.quantile(probability, np.linspace(0, 1, num_bins + 1)[1:-1]))
    member = np.searchsorted(edges, probability, side="right")
    inside = (member[:, None] == np.unique(member)).astype(np.float64)  # [S, bins], no bin empty
    sums = [inside, inside * probability[:, None], inside * outcome[:, None]]
    sizes, probabilities, outcomes = (part.sum(axis=0) for part in sums)
    codes = np.arange(len(inside)) if clusters is None else np.unique(clusters, return_inverse=True)[1]
    of_cluster = np.stack([np.bincount(codes, weights=column) for column in np.hstack(sums).T], axis=1)
    tails = [(1 - how.level) / 2, (1 + how.level) / 2]
    # [draws, 3, bins]: size, sum of probabilities and sum of outcomes of each bin
    draws = np.concatenate([counts @ of_cluster for counts in resample_counts(len(of_cluster), how)])
    drawn = draws.reshape(len(draws), 3, -1)
    means = np.divide(drawn[:, 2], drawn[:, 0], out=np.full(drawn[:, 0].shape, np.nan), where=drawn[:, 0] > 0)
    low, high = np.nanquantile(means, tails, axis=0)
    bins = [
        Bin(int(size), float(p / size), Interval(float(o / size), float(lower), float(upper)))
        for size, p, o, lower, upper in zip(sizes, probabilities, outcomes, low, high, strict=True)
    ]
    errors = np.abs(drawn[:, 2] - drawn[:, 1]).sum(axis=1) / drawn[:, 0].sum(axis=1)
    error = float(np.abs(outcomes - probabilities).sum() / len(inside))
    return Reliability(tuple(bins), Interval(error, *map(float, np.quantile(errors, tails))))


def fit_scale(scores: NDArray[np.floating[Any]], relevant: Rows, candidates: Rows | None = None) -> float:
    """The logit scale (1 / temperature) in [0, MAX_SCALE] with the least cross entropy. Fit it on valid, never on test.

    d/dx CE(x) = E_p[s] - E_target[s] and d2/dx2 CE = Var_p[s] >= 0: Newton steps, kept inside a bracket by bisection.
    """
    low, high, scale = 0.0, MAX_SCALE, 10.0
    if _slope(scores, relevant, candidates, high)[0] <= 0:
        return high
    if _slope(scores, relevant, candidates, low)[0] >= 0:
        return low
    for _ in range(MAX_STEPS):
        slope, curvature = _slope(scores, relevant, candidates, scale)
        low, high = (scale, high) if slope < 0 else (low, scale)
        step = scale - slope / curvature if curvature > 0 else -1.0
        proposal = step if low < step < high else (low + high) / 2
        if abs(proposal - scale) <= 1e-6 * max(1.0, scale):
            return proposal
        scale = proposal
    return scale


def cross_entropy(
    scores: NDArray[np.floating[Any]], relevant: Rows, candidates: Rows | None, logit_scale: float
) -> Floats:
    """[S] cross entropy of the target in nats; NaN for a session without a relevant candidate."""
    parts = []
    for _, logits, target in _blocks(scores, relevant, candidates):
        normaliser = _logsumexp(_scaled(logits, logit_scale))
        log_probability = np.where(target > 0, logits, 0.0) * logit_scale - normaliser[:, None]
        chosen = np.where(target > 0, target * log_probability, 0.0)
        parts.append(np.where(target.sum(axis=1) > 0, -chosen.sum(axis=1), np.nan))
    return np.concatenate(parts)


def _scaled(logits: Floats, scale: float) -> Floats:
    """``logits * scale``; what is no candidate stays at -inf, also at scale 0."""
    return np.where(np.isfinite(logits), np.where(np.isfinite(logits), logits, 0.0) * scale, -np.inf)


def _slope(
    scores: NDArray[np.floating[Any]], relevant: Rows, candidates: Rows | None, scale: float
) -> tuple[float, float]:
    """First and second derivative of the mean cross entropy by the scale."""
    first = second = 0.0
    for _, logits, target in _blocks(scores, relevant, candidates):
        labelled = target.sum(axis=1) > 0
        logits, target = logits[labelled], target[labelled]
        probability = _softmax(_scaled(logits, scale))
        finite = np.where(np.isfinite(logits), logits, 0.0)
        mean = (probability * finite).sum(axis=1)
        first += float((mean - (target * finite).sum(axis=1)).sum())
        second += float((probability * (finite - mean[:, None]) ** 2).sum())
    return first, second


def _blocks(
    scores: NDArray[np.floating[Any]], relevant: Rows, candidates: Rows | None
) -> Iterator[tuple[int, Floats, Floats]]:
    """Chunks of sessions: first session, scores [b, C] of ascending rows (-inf where padded), target [b, C]."""
    num_sessions, num_intents = scores.shape
    step = max(1, CHUNK // 4 // num_intents)
    for start in range(0, num_sessions, step):
        stop = min(start + step, num_sessions)
        logits = np.asarray(scores[start:stop], np.float64)
        target = np.zeros(logits.shape)
        session, position = np.nonzero(relevant[start:stop] != PADDING)
        target[session, relevant[start:stop][session, position]] = 1.0
        if candidates is not None:
            ranked = np.zeros(logits.shape, np.bool_)
            session, position = np.nonzero(candidates[start:stop] != PADDING)
            ranked[session, candidates[start:stop][session, position]] = True
            target *= ranked
            logits = np.where(ranked, logits, -np.inf)
            logits[~ranked.any(axis=1)] = 0.0  # nothing to rank: no target either, so the session is left out
        else:
            ranked = np.ones(logits.shape, np.bool_)
        if not np.isfinite(logits[ranked]).all():
            received = f"others in sessions {start} to {stop - 1}"
            raise DataError(where="calibration", required="finite scores", received=received)
        yield start, logits, target / np.maximum(target.sum(axis=1, keepdims=True), 1.0)


def _logsumexp(logits: Floats) -> Floats:
    top = logits.max(axis=1, keepdims=True)
    return np.asarray(top[:, 0] + np.log(np.exp(logits - top).sum(axis=1)))


def _softmax(logits: Floats) -> Floats:
    weights = np.exp(logits - logits.max(axis=1, keepdims=True))
    return np.asarray(weights / weights.sum(axis=1, keepdims=True))
