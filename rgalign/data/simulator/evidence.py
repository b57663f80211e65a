"""What a problem leaves behind before the user asks: entry point, app event, pages, help articles, order looked at.

Given problem and order, the traces are independent; so their likelihoods multiply, and the posterior over problems is
exact (``process.py``).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rgalign.data.simulator.draw import Floats, Ints, Rng, add_steps, cumulative, pick, pick_one, starts
from rgalign.data.simulator.grammar import NUM_PROBLEMS, PROBLEMS
from rgalign.data.simulator.words import WORDS, code

PAGES, ARTICLES = 8, 3
PAGE_COUNT = (0.10, 0.14, 0.18, 0.18, 0.14, 0.10, 0.07, 0.05, 0.04)  # P(0..8 pages), whatever the problem
ARTICLE_COUNT = (0.68, 0.20, 0.09, 0.03)
PAGE_SHARE, ARTICLE_SHARE, EVENT_SHARE = 0.50, 0.70, 0.60  # of a trace that is due to the problem
EVENT_BACKGROUND = 0.06  # app events that mean nothing
ENTRY_LIFT = 7.0
ENTRY_BACKGROUND = (0.20, 0.14, 0.09, 0.14, 0.05, 0.05, 0.05, 0.07, 0.05, 0.09, 0.05, 0.02)
PAGE_BACKGROUND = (10, 10, 8, 3, 2, 2, 5, 3, 5, 3, 3, 2, 1, 10, 6, 8, 9, 4, 4, 4)
FOCUS = ((0.45, 0.50, 0.05), (0.55, 0.12, 0.33))  # none, current, another: of problems on the current, another order
OF_CURRENT_ORDER = ("Shipping Page", "Order Details", "Refund Page", "Payment Page")


@dataclass(frozen=True)
class Traces:
    """n sessions' traces; page and article are flat codes, newest first."""

    entry_point: NDArray[np.int16]
    app_event: NDArray[np.int16]
    order_focus: NDArray[np.int16]
    page_offsets: NDArray[np.int32]
    page: NDArray[np.int16]
    article_offsets: NDArray[np.int32]
    article: NDArray[np.int16]


class Evidence:
    """Likelihood tables [P, values]; for app events and the order looked at, value 0 is "none"."""

    def __init__(self) -> None:
        entries = [_entry(on_current=True), _entry(on_current=False)]
        events = _mixed("app_event", [p.events for p in PROBLEMS], [0.9] * NUM_PROBLEMS)
        present = np.asarray([EVENT_SHARE if p.events else EVENT_BACKGROUND for p in PROBLEMS])[:, None]
        events = np.hstack([1.0 - present, present * events])
        page = _mixed("page", [p.pages for p in PROBLEMS], [PAGE_SHARE] * NUM_PROBLEMS, PAGE_BACKGROUND)
        article = _mixed("article", [p.articles for p in PROBLEMS], [ARTICLE_SHARE] * NUM_PROBLEMS)
        self._entry = cumulative(np.concatenate(entries))
        self._event, self._page, self._article = cumulative(events), cumulative(page), cumulative(article)
        self._focus = cumulative(FOCUS)
        # Transposed to [values, P]: a session's value then picks one contiguous row.
        self._log_entry = np.log(np.stack(entries).transpose(2, 0, 1)).astype(np.float32)  # [V, 2, P]
        self._log_event, self._log_page, self._log_article = (
            np.ascontiguousarray(np.log(table.T), np.float32) for table in (events, page, article)
        )
        self._log_focus = np.log(np.asarray(FOCUS).T)[:, :, None].astype(np.float32)  # [3, 2, 1]

    def draw(self, rng: Rng, problem: Ints, order: Ints) -> Traces:
        """``problem`` [n]; ``order`` [n]: 0 = about the current order (or none), 1 = about another."""
        n = len(problem)
        entry = pick(rng, self._entry, order * NUM_PROBLEMS + problem) + 1
        event = pick(rng, self._event, problem)
        focus = pick(rng, self._focus, order)
        pages = pick_one(rng, cumulative(PAGE_COUNT), n)
        page = pick(rng, self._page, np.repeat(problem, pages)) + 1
        articles = pick_one(rng, cumulative(ARTICLE_COUNT), n)
        article = pick(rng, self._article, np.repeat(problem, articles)) + 1
        return Traces(entry.astype(np.int16), event, focus, starts(pages), page, starts(articles), article)

    def log_likelihood(self, traces: Traces) -> Floats:
        """[n, 2, P]: log P(traces | problem, order), up to a constant."""
        shared = self._log_event[traces.app_event]
        add_steps(shared, self._log_page, traces.page - 1, traces.page_offsets)
        add_steps(shared, self._log_article, traces.article - 1, traces.article_offsets)
        by_order = self._log_entry[traces.entry_point - 1] + self._log_focus[traces.order_focus]
        return np.asarray(by_order + shared[:, None, :])


def _entry(*, on_current: bool) -> NDArray[np.float64]:
    """[P, V]: listed pages are likelier; with a trouble about another order, pages of the current one are less so."""
    table = np.tile(np.asarray(ENTRY_BACKGROUND), (NUM_PROBLEMS, 1))
    for row, problem in enumerate(PROBLEMS):
        for name in problem.entries:
            table[row, code("entry_point", name) - 1] *= ENTRY_LIFT
    if not on_current:
        table[:, [code("entry_point", name) - 1 for name in OF_CURRENT_ORDER]] *= 0.4
    return np.asarray(table / table.sum(axis=1, keepdims=True))


def _mixed(
    vocabulary: str, listed: list[tuple[str, ...]], shares: list[float], background: tuple[float, ...] | None = None
) -> NDArray[np.float64]:
    """[P, V]: ``share`` spread over the values a problem lists, the rest over the background."""
    weights = np.asarray(background or (1.0,) * len(WORDS[vocabulary]))
    table = np.tile(weights / weights.sum(), (len(listed), 1))
    for row, (names, share) in enumerate(zip(listed, shares, strict=True)):
        if names:
            table[row] *= 1.0 - share
            table[row, [code(vocabulary, name) - 1 for name in names]] += share / len(names)
    return table
