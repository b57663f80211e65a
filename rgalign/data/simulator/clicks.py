"""Clicks: what the log keeps of a session. Some are noise, more often where attention is low.

A true click is on the problem's intent and, each with probability 0.7, on the companions'. A noise click replaces
them: on one of the five suggestions the chatbot showed (the region's most asked intents; higher places draw more), on
something popular, or by a slip on a neighbour of the same topic. A "noise" click that happened to hit a relevant
intent is moved on to the next suggestion, so the flag means what it says.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rgalign.data.simulator.catalogue import KnowledgeBase
from rgalign.data.simulator.draw import Bools, Floats, Ints, Rng, chance, cumulative, pick_one
from rgalign.data.simulator.grammar import PROBLEMS, TOPICS
from rgalign.data.simulator.words import REGIONS, code

SHOWN = 5
EXAMINED = cumulative([1.0, 0.55, 0.36, 0.26, 0.20])  # attention by place
KINDS = cumulative([0.60, 0.25, 0.15])  # position, popularity, slip
COMPANION_CLICK = 0.7
ENTRY_RISK = {"Push Notification": 2.4, "Home Page": 1.9, "Product Page": 1.3, "Shop Page": 1.3, "Order Details": 0.6,
              "Shipping Page": 0.6, "Refund Page": 0.5, "Payment Page": 0.6}  # fmt: skip
HASTE_SECONDS, HASTE_RISK = 8.0, 1.8
NO_ORDER_RISK, NEW_USER_RISK, READER_RISK = 1.3, 1.4, 0.6


@dataclass(frozen=True)
class Popularity:
    """What the chatbot's own ranking knew: shown [2, regions, 5] rows; all [2, N] cumulative; by period."""

    shown: NDArray[np.int32]
    all: Floats
    noise_scale: float


@dataclass(frozen=True)
class Clicks:
    """n sessions' clicks.

    Args:
        clicked: [n, 3] rows, -1 is padding.
        noise: [n].
        position: [n] place of the first click among the suggestions, from 1; 0 = found elsewhere.
    """

    clicked: NDArray[np.int32]
    noise: Bools
    position: NDArray[np.int16]


def noise_risk(entry: Ints, seconds: Floats, status: Ints, tenure: Ints, articles: Ints) -> Floats:
    """[n] relative risk that a click is noise, from what the log shows."""
    risk = np.ones(len(entry), np.float32)
    for name, factor in ENTRY_RISK.items():
        risk[entry == code("entry_point", name)] = factor
    risk *= np.where(seconds < HASTE_SECONDS, HASTE_RISK, 1.0)
    risk *= np.where(status == 0, NO_ORDER_RISK, 1.0) * np.where(articles > 0, READER_RISK, 1.0)
    risk *= np.where(tenure == code("tenure", "new this week"), NEW_USER_RISK, 1.0)
    return risk


class Clicking:
    """The click model of one period."""

    def __init__(self, base: KnowledgeBase, popularity: Popularity, *, launched: bool) -> None:
        self.shown = popularity.shown[int(launched)]
        self.all = popularity.all[int(launched)]
        self.scale = popularity.noise_scale
        topic = np.asarray([TOPICS.index(PROBLEMS[p].topic) for p in base.problem])
        known = np.flatnonzero(launched | ~base.cold)
        self.topic = topic
        self.neighbours = [known[topic[known] == t].astype(np.int32) for t in range(len(TOPICS))]

    def draw(self, rng: Rng, relevant: NDArray[np.int32], region: NDArray[np.int16], risk: Floats) -> Clicks:
        """Args: relevant [n, 3] rows; region [n] from 0; risk [n]."""
        n = len(relevant)
        noise = chance(rng, np.minimum(risk * self.scale, 0.9), n)
        true = relevant.copy()
        for column in range(1, relevant.shape[1]):
            true[~chance(rng, COMPANION_CLICK, n), column] = -1
        wrong = self._noise_clicks(rng, relevant, region)
        clicked = np.where(noise[:, None], np.stack([wrong, *[np.full(n, -1, np.int32)] * 2], axis=1), true)
        at = clicked[:, :1] == self.shown[region]
        return Clicks(clicked, noise, np.where(at.any(axis=1), at.argmax(axis=1) + 1, 0).astype(np.int16))

    def _noise_clicks(self, rng: Rng, relevant: NDArray[np.int32], region: NDArray[np.int16]) -> NDArray[np.int32]:
        n = len(relevant)
        place = pick_one(rng, EXAMINED, n)
        kind = pick_one(rng, KINDS, n)
        popular = pick_one(rng, self.all, n).astype(np.int32)
        uniform = rng.random(n, dtype=np.float32)
        topic = self.topic[relevant[:, 0]]
        counts = np.asarray([len(rows) for rows in self.neighbours])
        firsts = np.cumsum(counts) - counts
        slip = np.concatenate(self.neighbours)[firsts[topic] + (uniform * counts[topic]).astype(np.int64)]
        wrong = np.select([kind == 1, kind == 2], [popular, slip], self.shown[region, place])
        for step in range(SHOWN):  # five suggestions, at most three relevant: one of them is free
            hit = (wrong[:, None] == relevant).any(axis=1)
            wrong = np.where(hit, self.shown[region, (place + step) % SHOWN], wrong)
        return np.asarray(wrong, np.int32)


def region_popularity(region: NDArray[np.int16], rows: NDArray[np.int32], weights: Floats, size: int) -> Floats:
    """[regions, N] expected relevance of every intent, from a sample of truths (rows, weights [n, 64])."""
    flat = region[:, None].astype(np.int64) * size + rows
    table = np.bincount(flat.ravel(), weights.ravel(), minlength=len(REGIONS) * size)
    return table.reshape(len(REGIONS), size).astype(np.float32)
