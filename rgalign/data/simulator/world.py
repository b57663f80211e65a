"""World: everything that all shards share, built from the config alone, and the steps of one block of sessions.

state -> earlier contacts -> problem, order -> traces -> relevant intents -> clicks
                                 |
         posterior P(problem, order | state, contacts, traces) -> truth q
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from rgalign.data.simulator.background import Background, draw_background
from rgalign.data.simulator.catalogue import KnowledgeBase, build_knowledge_base
from rgalign.data.simulator.clicks import SHOWN, Clicking, Clicks, Popularity, noise_risk, region_popularity
from rgalign.data.simulator.config import SimulatorConfig
from rgalign.data.simulator.draw import Floats, Rng, cumulative, pick_row
from rgalign.data.simulator.evidence import Evidence, Traces
from rgalign.data.simulator.grammar import NUM_PROBLEMS
from rgalign.data.simulator.history import Contacts, draw_contacts, recurrence
from rgalign.data.simulator.prior import Prior, order_facts, probabilities
from rgalign.data.simulator.relevance import Likeliest, Relevance, axis_facts
from rgalign.data.simulator.state import Codes, Population, State, draw_state
from rgalign.data.simulator.when import CAMPAIGN_DAYS
from rgalign.data.simulator.words import code

PILOT_SESSIONS = 4096


@dataclass(frozen=True)
class Session:
    """n sessions before anyone clicks: what is seen, what is hidden, what is true."""

    state: State
    contacts: Contacts
    traces: Traces
    background: Background
    problem: NDArray[np.int64]
    relevant: NDArray[np.int32]
    truth: Likeliest
    risk: Floats


class World:
    """Args: popularity: what the chatbot's own ranking knows; None: ``pilot`` finds out, when it is first needed."""

    def __init__(self, config: SimulatorConfig, popularity: Popularity | None = None) -> None:
        self.config = config
        self.base: KnowledgeBase = build_knowledge_base(config)
        self.population = Population(config.seed)
        self.evidence = Evidence()
        self.prior = [Prior(config.seed, self.base.available(launched=launched)) for launched in (False, True)]
        self.relevance = [Relevance(self.base, launched=launched) for launched in (False, True)]
        self._popularity = popularity

    @cached_property
    def popularity(self) -> Popularity:
        return pilot(self) if self._popularity is None else self._popularity

    @cached_property
    def clicking(self) -> list[Clicking]:
        return [Clicking(self.base, self.popularity, launched=launched) for launched in (False, True)]

    def draw(self, rng: Rng, hours: NDArray[np.float64], *, launched: bool) -> Session:
        """Args: hours [n] since the start of the five weeks; launched: the cold intents are there."""
        state = draw_state(rng, self.population, campaigns(hours))
        facts = order_facts(state)
        axes, waiting = axis_facts(facts), facts["waiting"]
        log_weights = self.prior[int(launched)].log_weights(state, facts)
        contacts = draw_contacts(rng, log_weights, self.relevance[0], axes, waiting)
        log_weights += recurrence(contacts)[:, None, :]
        hidden = pick_row(rng.random(len(hours), dtype=np.float32), probabilities(log_weights).reshape(len(hours), -1))
        order, problem = np.divmod(hidden, NUM_PROBLEMS)
        traces = self.evidence.draw(rng, problem, order)
        posterior = probabilities(log_weights + self.evidence.log_likelihood(traces))
        relevance = self.relevance[int(launched)]
        relevant = relevance.draw_relevant(rng, problem, order, axes, waiting)
        truth = relevance.likeliest(relevance.mix(posterior), axes, waiting)
        background = draw_background(rng, state, contacts, self.population.regional["payment_method"])
        risk = noise_risk(
            traces.entry_point, background.numbers["seconds_in_app"], state.codes["order_status"],
            state.codes["tenure"], np.diff(traces.article_offsets),
        )  # fmt: skip
        return Session(state, contacts, traces, background, problem, relevant, truth, risk)

    def click(self, rng: Rng, session: Session, *, launched: bool) -> Clicks:
        return self.clicking[int(launched)].draw(rng, session.relevant, session.state.region, session.risk)


def campaigns(hours: NDArray[np.float64]) -> Codes:
    """[n] campaign codes, 0 on ordinary days."""
    days = np.zeros(64, np.int16)
    for day, name in CAMPAIGN_DAYS.items():
        days[day] = code("campaign", name)
    return days[(hours // 24).astype(np.intp)]


def pilot(world: World) -> Popularity:
    """Expected popularity of every intent by region, from sessions of their own that are written nowhere."""
    shown, everything, scale = [], [], 1.0
    size = len(world.base.catalog)
    for period, first_hour in ((0, 0.0), (1, 28 * 24.0)):
        rng = np.random.default_rng([world.config.seed, 5, period])
        hours = first_hour + np.sort(rng.random(PILOT_SESSIONS)) * 168
        sample = world.draw(rng, hours, launched=bool(period))
        table = region_popularity(sample.state.region, sample.truth.rows, sample.truth.probabilities, size)
        shown.append(np.argsort(-table, axis=1, kind="stable")[:, :SHOWN].astype(np.int32))
        everything.append(cumulative(table.sum(axis=0)))
        if period == 0:
            scale = world.config.noise_rate / float(sample.risk.mean())
    return Popularity(np.stack(shown), np.stack(everything), scale)
