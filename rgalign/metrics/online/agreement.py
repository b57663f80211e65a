"""Agreement of a judge with human labels: Cohen's kappa with its interval.

    kappa = (p_o - p_e) / (1 - p_e),  p_o share of equal labels,  p_e = sum_c p(judge = c) p(human = c)

1 is full agreement, 0 what two independent raters of these frequencies would have (Cohen 1960). Sessions of one user
are drawn together, as everywhere here.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rgalign.errors import DataError
from rgalign.metrics.significance import DEFAULT, MIN_UNITS, Interval, Resampling, resample_counts

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Agreement:
    """Args: sessions: labelled by both; equal: share of equal labels."""

    sessions: int
    equal: float
    kappa: Interval


def cohens_kappa(
    judge: Sequence[Hashable], human: Sequence[Hashable], clusters: Ints | None = None, how: Resampling = DEFAULT
) -> Agreement:
    """Kappa of two raters over the same sessions, with a percentile interval.

    Args:
        judge, human: [S] labels; None (no intent) is one like any other.
        clusters: [S] what is drawn together; None: every session by itself.

    Raises:
        DataError: different lengths, fewer than two sessions or clusters, or both raters always give one same label.
    """
    if len(judge) != len(human):
        raise DataError(where="kappa", required=f"{len(human)} labels of the judge", received=str(len(judge)))
    codes: dict[Hashable, int] = {}
    ours, theirs = (_codes(side, codes) for side in (judge, human))
    units = np.arange(len(ours)) if clusters is None else np.unique(clusters, return_inverse=True)[1]
    num_units = int(units.max(initial=-1)) + 1
    if num_units < MIN_UNITS:
        raise DataError(where="kappa", required=f"at least {MIN_UNITS} sessions or clusters", received=str(num_units))
    if len(codes) == 1:
        raise DataError(where="kappa", required="more than one label", received="the same one in every session")
    first, second = (_counts(units, side, num_units, len(codes)) for side in (ours, theirs))
    equal = np.bincount(units, weights=(ours == theirs).astype(np.float64), minlength=num_units).astype(np.float64)
    one = np.ones((1, num_units))
    estimate = float(_kappa(one, first, second, equal)[0])
    draws = np.concatenate([_kappa(counts, first, second, equal) for counts in resample_counts(num_units, how)])
    tail = (1 - how.level) / 2
    low, high = np.nanquantile(draws, [tail, 1 - tail])
    return Agreement(len(ours), float(equal.sum() / len(ours)), Interval(estimate, float(low), float(high)))


def _codes(labels: Sequence[Hashable], codes: dict[Hashable, int]) -> Ints:
    return np.array([codes.setdefault(label, len(codes)) for label in labels], np.int64)


def _counts(units: Ints, labels: Ints, num_units: int, num_labels: int) -> Floats:
    """[units, labels] how often each unit has each label."""
    flat = np.bincount(units * num_labels + labels, minlength=num_units * num_labels)
    return flat.reshape(num_units, num_labels).astype(np.float64)


def _kappa(counts: NDArray[np.floating[Any]], judge: Floats, human: Floats, equal: Floats) -> Floats:
    """[draws]; NaN where both raters give one same label."""
    first, second = counts @ judge, counts @ human
    total = first.sum(axis=1)
    observed = counts @ equal / total
    expected = (first * second).sum(axis=1) / total**2
    kappa = np.full(len(total), np.nan)
    np.divide(observed - expected, 1 - expected, out=kappa, where=expected < 1 - 1e-12)
    return kappa
