"""One A/B test: every online metric of two arms, and whether anything may be concluded from it.

The split of users is checked first. If it is not what it was meant to be, there is no conclusion: every verdict says
so, whatever the differences are. A metric that must not get worse is a guardrail: ``holds`` when the whole interval
lies above minus its margin.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from rgalign.errors import DataError
from rgalign.metrics.online.arms import ArmComparison, compare_arms
from rgalign.metrics.online.exposures import Exposures
from rgalign.metrics.online.ratios import Ratio, Unclear, clicks_per_place, csat, ctr, intent_hits
from rgalign.metrics.online.sample_ratio import ALPHA, SampleRatio, sample_ratio
from rgalign.metrics.significance import LEVEL, MIN_UNITS

STOPPED = "no conclusion (sample ratio mismatch)"
Crossover = Literal["refuse", "drop"]
GuardrailVerdict = Literal["holds", "violated", "inconclusive"]


@dataclass(frozen=True)
class ExperimentResult:
    """Args: sessions: of control and treatment; metrics: name -> comparison; undefined: name -> why there is none."""

    sessions: tuple[int, int]
    ratio: SampleRatio
    metrics: dict[str, ArmComparison]
    undefined: dict[str, str]

    def verdict(self, metric: str) -> str:
        return STOPPED if self.ratio.mismatch else self.metrics[metric].verdict

    def guardrail(self, metric: str, margin: float) -> GuardrailVerdict | None:
        """Whether the metric got worse by less than ``margin``; None without a conclusion."""
        if self.ratio.mismatch or metric not in self.metrics:
            return None
        interval = self.metrics[metric].difference
        if interval.low > -margin:
            return "holds"
        return "violated" if interval.high < -margin else "inconclusive"


def online_metrics(
    exposures: Exposures,
    ks: Sequence[int] = (3,),
    intents: Mapping[str, str | None] | None = None,
    *,
    hits_at: int = 3,
    unclear: Unclear = "miss",
) -> dict[str, Ratio]:
    """Metric name -> ratio; ``ihr@K`` only with judged sessions."""
    found = {"csat": csat(exposures)}
    for k in ks:
        found |= {f"ctr@{k}": ctr(exposures, k), f"clicks_per_place@{k}": clicks_per_place(exposures, k)}
    if intents is not None:
        found[f"ihr@{hits_at}"] = intent_hits(exposures, intents, hits_at, unclear)
    return found


def run_experiment(
    exposures: Exposures,
    metrics: Mapping[str, Ratio],
    *,
    treatment_share: float = 0.5,
    alpha: float = ALPHA,
    level: float = LEVEL,
) -> ExperimentResult:
    """Compares the arms in every metric; users of both arms must have been dropped before.

    Args:
        metrics: of these exposures; one without two users that count in each arm is left out, with the reason.
    """
    undefined = {name: why for name, ratio in metrics.items() if (why := _undefined(ratio, exposures))}
    compared = {
        name: compare_arms(ratio, exposures.treated, exposures.users, level=level, where=name)
        for name, ratio in metrics.items()
        if name not in undefined
    }
    sessions = int((~exposures.treated).sum()), int(exposures.treated.sum())
    split = sample_ratio(*exposures.num_users(), treatment_share, alpha)
    return ExperimentResult(sessions, split, compared, undefined)


def _undefined(ratio: Ratio, exposures: Exposures) -> str:
    """Why a metric cannot be compared; empty when it can."""
    counted = ratio.y > 0
    users = [len(np.unique(exposures.users[counted & (exposures.treated == arm)])) for arm in (False, True)]
    if min(users) >= MIN_UNITS:
        return ""
    return f"{users[0]} users of the control and {users[1]} of the treatment count; {MIN_UNITS} each are needed"


def assigned(exposures: Exposures, crossover: Crossover = "refuse") -> tuple[Exposures, int]:
    """The sessions of users that were in one arm only, and how many sessions were left out.

    Raises:
        DataError: users in both arms, where they are refused.
    """
    both = exposures.in_both_arms()
    crossed = int(both.sum())
    if crossed and crossover == "refuse":
        required = "every user in one arm (or crossover: drop, where their sessions are few)"
        raise DataError(where="exposures", required=required, received=f"{crossed} sessions of users in both arms")
    return (exposures.take(~both), crossed) if crossed else (exposures, 0)
