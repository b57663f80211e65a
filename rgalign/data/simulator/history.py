"""Earlier contacts: what the user asked the chatbot before, drawn before today's problem, which they make likelier.

A contact's problem is drawn from today's state (an old trouble that goes on) or from all problems; an unsolved recent
one tends to come back.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rgalign.data.simulator.draw import Floats, Rng, ages, chance, cumulative, pick_one, pick_row, starts
from rgalign.data.simulator.grammar import NUM_PROBLEMS, PROBLEMS
from rgalign.data.simulator.prior import NEVER
from rgalign.data.simulator.relevance import Relevance
from rgalign.data.simulator.state import Codes

MAX_CONTACTS = 10
CONTACT_COUNT = tuple(0.62**k for k in range(MAX_CONTACTS + 1))  # 38 % have none
GOES_ON = 0.6
OUTCOME = (0.55, 0.30, 0.15)  # solved, unsolved, passed to agent
RETURNS = np.asarray((0.3, 1.0, 0.8), np.float32)
RECURRENCE, RECURRENCE_HOURS = 2.2, 96.0


@dataclass(frozen=True)
class Contacts:
    """Flat over sessions, newest first: catalogue rows, their problems, hours ago, outcome codes from 1."""

    offsets: NDArray[np.int32]
    intent: NDArray[np.int32]
    problem: NDArray[np.int16]
    hours: Floats
    outcome: NDArray[np.int16]


_COUNT = cumulative(CONTACT_COUNT)
_OUTCOME = cumulative(OUTCOME)
_ANY_PROBLEM = cumulative([0.0 if p.cold else p.weight for p in PROBLEMS])


def draw_contacts(rng: Rng, log_weights: Floats, before: Relevance, axes: Codes, waiting: Codes) -> Contacts:
    """Args: log_weights [n, 2, P] of today's state; ``before``: the questions there were then."""
    n = len(log_weights)
    lengths = pick_one(rng, _COUNT, n).astype(np.int32)
    owner = np.repeat(np.arange(n), lengths)
    likely = np.exp(log_weights[:, 0] - log_weights[:, 0].max(axis=1, keepdims=True))
    likely[:, [p.cold for p in PROBLEMS]] = np.exp(NEVER)
    going_on = pick_row(rng.random(len(owner), dtype=np.float32), likely[owner])
    unrelated = pick_one(rng, _ANY_PROBLEM, len(owner))
    problem = np.where(chance(rng, GOES_ON, len(owner)), going_on, unrelated).astype(np.int16)
    about = np.zeros(len(owner), np.intp)
    intent = before.draw_intent(rng, problem, about, axes[owner], waiting[owner])
    hours = ages(rng, lengths, first=40.0, gap=250.0, sigma=1.4)
    return Contacts(starts(lengths), intent, problem, hours, pick_one(rng, _OUTCOME, len(owner)) + 1)


def recurrence(contacts: Contacts) -> Floats:
    """[n, P]: what the contacts add to the log-weight of each problem."""
    strength = RECURRENCE * RETURNS[contacts.outcome - 1] * np.exp(-contacts.hours / RECURRENCE_HOURS)
    n = len(contacts.offsets) - 1
    owner = np.repeat(np.arange(n), np.diff(contacts.offsets))
    flat = np.bincount(owner * NUM_PROBLEMS + contacts.problem, strength, minlength=n * NUM_PROBLEMS)
    return flat.reshape(n, NUM_PROBLEMS).astype(np.float32)
