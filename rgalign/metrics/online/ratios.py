"""The online metrics as ratios of sums over sessions, sum x / sum y (paper, section 5.1; reading of A10).

    CTR@K                  x = 1 if an intent in the top K was clicked, y = 1            over sessions exposed
    clicks per place@K     x = intents in the top K clicked, y = min(K, intents shown)
    IHR@K                  x = 1 if the true intent is in the top K, y = 1               over sessions judged
    CSAT                   x = 1 if rated good, y = 1                                    over sessions rated

A session whose judge found no intent counts as a miss (``unclear: miss``, the paper's sum over all N sessions), or is
left out (``skip``). It is never left out because of what was shown: the judge does not see that.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from rgalign.metrics.online.exposures import BAD, GOOD, Exposures

Floats = NDArray[np.float64]
Unclear = Literal["miss", "skip"]


@dataclass(frozen=True)
class Ratio:
    """Args: x: [S] numerators; y: [S] denominators, 0 where the session does not count."""

    x: Floats
    y: Floats


def ctr(exposures: Exposures, k: int) -> Ratio:
    """Share of the sessions with a click in the top ``k``."""
    hits = [not clicked.isdisjoint(shown[:k]) for shown, clicked in _pairs(exposures)]
    return Ratio(np.array(hits, np.float64), np.ones(len(exposures)))


def clicks_per_place(exposures: Exposures, k: int) -> Ratio:
    """Clicked intents among the top ``k`` for each place that was filled."""
    clicks = [len(clicked.intersection(shown[:k])) for shown, clicked in _pairs(exposures)]
    places = [min(k, len(shown)) for shown in exposures.shown]
    return Ratio(np.array(clicks, np.float64), np.array(places, np.float64))


def intent_hits(
    exposures: Exposures, intents: Mapping[str, str | None], k: int = 3, unclear: Unclear = "miss"
) -> Ratio:
    """Intent Hit Rate.

    Args:
        intents: session id -> true intent, None where the judge found none. Sessions that are absent are not counted.
    """
    judged = [session in intents for session in exposures.session_ids]
    true = [intents.get(session) for session in exposures.session_ids]
    x = [intent is not None and intent in shown[:k] for intent, shown in zip(true, exposures.shown, strict=True)]
    counted = np.array(judged, np.float64)
    if unclear == "skip":
        counted *= np.array([intent is not None for intent in true], np.float64)
    return Ratio(np.array(x, np.float64) * counted, counted)


def csat(exposures: Exposures) -> Ratio:
    """Good ratings among good and bad ones."""
    good, bad = (np.array([rating == name for rating in exposures.rating], np.float64) for name in (GOOD, BAD))
    return Ratio(good, good + bad)


def _pairs(exposures: Exposures) -> zip[tuple[tuple[str, ...], frozenset[str]]]:
    return zip(exposures.shown, exposures.clicked, strict=True)
