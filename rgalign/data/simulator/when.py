"""The five weeks: how sessions spread over them, campaigns, splits.

Weeks 1-4 are the log: their last three days are ``valid``, the rest ``train``. Week 5 is ``test``: annotated, and the
cold intents exist from its first minute.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from rgalign.data.simulator.config import SimulatorConfig
from rgalign.data.simulator.draw import Rng

SPLITS = ("train", "valid", "test")
START = np.datetime64("2026-01-05T00:00:00", "us")  # a Monday
FIRST_DAY = {"train": 0, "valid": 25, "test": 28, "end": 35}
CAMPAIGN_DAYS = {8: "Mega sale", 9: "Mega sale", 20: "Payday sale", 21: "Payday sale", 22: "Payday sale",
                 30: "Mega sale", 31: "Mega sale"}  # fmt: skip
CAMPAIGN_LIFT = 1.4
HOURLY = np.asarray([3, 2, 1, 1, 1, 2, 3, 5, 7, 9, 10, 10, 9, 9, 9, 9, 9, 8, 8, 9, 10, 9, 7, 5], np.float64)
DAILY = np.asarray([1.08, 1.05, 1.02, 1.0, 1.0, 0.92, 0.93])  # Monday first


@dataclass(frozen=True)
class Part:
    """One shard: rows [first, last) of a split of ``rows``; ``before`` sessions stand in earlier splits."""

    split: str
    number: int
    first: int
    last: int
    rows: int
    before: int

    @property
    def launched(self) -> bool:
        return self.split == "test"


def split_sizes(config: SimulatorConfig) -> dict[str, int]:
    """Sessions by split: a week's share for test, up to the annotated number, then three days of 28 for valid."""
    test = min(round(config.num_sessions / 5), config.max_test_sessions)
    valid = max(1, min(round((config.num_sessions - test) * 3 / 28), config.max_test_sessions))
    return {"train": config.num_sessions - test - valid, "valid": valid, "test": test}


def plan(config: SimulatorConfig) -> list[Part]:
    parts, before = [], 0
    for split, rows in split_sizes(config).items():
        bounds = [*range(0, rows, config.sessions_per_shard), rows]
        parts += [
            Part(split, number, first, last, rows, before) for number, (first, last) in enumerate(pairwise(bounds))
        ]
        before += rows
    return parts


def draw_times(rng: Rng, split: str, first: int, last: int, rows: int) -> NDArray[np.float64]:
    """[last - first] hours since START, ascending, also from one shard to the next: row r lies in the r-th quantile."""
    days = np.arange(FIRST_DAY[split], FIRST_DAY[SPLITS[SPLITS.index(split) + 1] if split != "test" else "end"])
    lift = np.asarray([CAMPAIGN_LIFT if day in CAMPAIGN_DAYS else 1.0 for day in days])
    intensity = (DAILY[days % 7] * lift)[:, None] * HOURLY
    mass = np.concatenate([[0.0], np.cumsum(intensity.ravel())])
    quantile = (np.arange(first, last) + rng.random(last - first)) / rows
    return np.asarray(np.interp(quantile, mass / mass[-1], days[0] * 24.0 + np.arange(len(mass))))
