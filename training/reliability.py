"""Reliability of the scores of evaluated runs, seeds pooled: as trained, and with the scale fitted on valid."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rgalign.metrics.calibration import Reliability, TopIntent, fit_scale, reliability, top_intent
from rgalign.metrics.significance import Resampling
from rgalign.training.scores import RunScores

Ints = NDArray[np.int64]
Rows = NDArray[np.integer[Any]]


def reliability_curves(
    runs: Sequence[RunScores], relevant: Rows, clusters: Ints | None, how: Resampling
) -> list[dict[str, Any]]:
    """Of each model: the scales, and one curve each for the scale learnt in training and the one fitted on valid.

    Several seeds are pooled: a session then occurs once a seed and is resampled as a whole.
    """
    if clusters is None:
        clusters = np.arange(len(relevant))
    report = []
    for model in dict.fromkeys(run.model for run in runs):
        own = [run for run in runs if run.model == model]
        entry: dict[str, Any] = {"model": model}
        learnt = {run.seed: run.logit_scale for run in own if run.logit_scale is not None}
        if len(learnt) == len(own):
            entry["learnt"] = _curve(own, learnt, relevant, clusters, how)
        fitted = {
            run.seed: fit_scale(run.valid.total, run.valid.clicked, run.valid.candidates)
            for run in own
            if run.valid is not None
        }
        if len(fitted) == len(own):
            entry["fitted"] = _curve(own, fitted, relevant, clusters, how)
        if len(entry) > 1:
            report.append(entry)
    return report


def _curve(
    runs: Sequence[RunScores], scales: dict[int, float], relevant: Rows, clusters: Ints, how: Resampling
) -> dict[str, Any]:
    tops = [top_intent(run.test.total, relevant, run.test.candidates, scales[run.seed]) for run in runs]
    found = _pooled(tops, clusters, how)
    return {
        "scales": {str(seed): scale for seed, scale in scales.items()},
        "ece": {"mean": found.ece.estimate, "low": found.ece.low, "high": found.ece.high},
        "bins": [
            {
                "sessions": part.num_sessions,
                "probability": part.probability,
                "outcome": {"mean": part.outcome.estimate, "low": part.outcome.low, "high": part.outcome.high},
            }
            for part in found.bins
        ],
    }


def _pooled(tops: Sequence[TopIntent], clusters: Ints, how: Resampling) -> Reliability:
    sessions = np.concatenate([top.session for top in tops])
    probability = np.concatenate([top.probability for top in tops])
    outcome = np.concatenate([top.outcome for top in tops])
    return reliability(probability, outcome, clusters[sessions], how=how)
