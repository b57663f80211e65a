"""When to show nothing: the top probability below which the intents are not worth their place.

    t = min {t : mean outcome of the sessions with top probability >= t is at least the precision asked for}

Fitted on validation sessions, so that probabilities need not be believed: the outcome is counted.
"""

from __future__ import annotations

import numpy as np

from rgalign.errors import DataError
from rgalign.metrics.ranking import Floats


def show_threshold(probability: Floats, outcome: Floats, precision: float) -> float:
    """The lowest threshold that keeps the precision; 0 where all sessions together do.

    Args:
        probability: [S] of each session's top intent.
        outcome: [S] in 0..1, whether that intent was the one.
        precision: mean outcome of shown sessions, in 0..1.

    Raises:
        DataError: no session, shapes that differ, or no threshold that reaches the precision.
    """
    if probability.shape != outcome.shape or probability.ndim != 1 or not len(probability):
        received = f"{probability.shape} and {outcome.shape}"
        raise DataError(where="show threshold", required="[S] probabilities and outcomes", received=received)
    order = np.argsort(-probability, kind="stable")
    ranked = probability[order]
    means = np.cumsum(outcome[order]) / np.arange(1, len(order) + 1)
    last_of_ties = np.append(ranked[:-1] != ranked[1:], True)  # sessions of one probability are shown together
    kept = np.flatnonzero((means >= precision) & last_of_ties)
    if not len(kept):
        required = f"a precision of at most {means[last_of_ties].max():.4f}, the best of these sessions"
        raise DataError(where="show threshold", required=required, received=f"{precision}")
    if kept[-1] == len(order) - 1:
        return 0.0
    return float(min(1.0, ranked[kept[-1]]))
