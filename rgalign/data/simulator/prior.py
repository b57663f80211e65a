"""P(problem, order | state, history) before any trace: log-weights of the grammar's rules, summed.

    log w(p, order) = log weight_p + taste(region, p) + sum over rules log plausibility(value) + recurrence(history, p)

``order`` 0 is the current order (and every problem that is about no order), 1 the newest of the other orders, of which
less is known: rules on what is not known of it count as one constant.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from rgalign.data.simulator.draw import Floats
from rgalign.data.simulator.grammar import NUM_ORDER_PROBLEMS, NUM_PROBLEMS, PROBLEMS
from rgalign.data.simulator.state import WAITING_EDGES, Codes, State
from rgalign.data.simulator.words import REGIONS, WORDS

IMPLAUSIBLE = 0.01
UNSEEN = 0.25  # stands in for a rule on something not known of another order
OTHER_ORDER = 0.45
NO_ORDER = 0.15  # troubles about no order can strike anyone at any time, and mostly do not
NEVER = -40.0
REGION_TASTE = 0.3
OF_USER = ("campaign", "tenure", "app_release", "device", "tier", "age_band", "voucher_state")
OF_ANY_ORDER = ("order_status", "waiting", "carrier", "category", "payment_method")


def order_facts(state: State) -> dict[str, Codes]:
    """Vocabulary -> [n, 2]: what is known of the current and of the other order; 0 is not known or none."""
    orders = state.orders
    hours = orders.newest(np.minimum(orders.hours, 30_000).astype(np.int16))
    status = orders.newest(orders.status)
    waiting = np.where(status > 0, np.searchsorted(WAITING_EDGES, hours, side="right") + 1, 0).astype(np.int16)
    other = {
        "order_status": status,
        "waiting": waiting,
        "category": orders.newest(orders.category),
        "carrier": orders.newest(orders.carrier),
        "payment_method": orders.newest(orders.payment_method),
    }
    nothing = np.zeros_like(status)
    facts = {name: np.stack([values, other.get(name, nothing)], axis=1) for name, values in state.codes.items()}
    for name in OF_USER:
        facts[name][:, 1] = facts[name][:, 0]
    return facts


class Prior:
    """The rules as tables [values + 1, P]."""

    def __init__(self, seed: int, available: NDArray[np.bool_]) -> None:
        self.tables = {name: _rule_table(name) for name in WORDS if any(name in p.when for p in PROBLEMS)}
        rng = np.random.default_rng([seed, 4])
        taste = (REGION_TASTE * rng.standard_normal((len(REGIONS), NUM_PROBLEMS))).astype(np.float32)
        weights = np.log([p.weight * (1.0 if p.about_order else NO_ORDER) for p in PROBLEMS])
        weights = np.where(available, weights, NEVER)
        self.base = taste + weights.astype(np.float32)
        unseen = [name for name in self.tables if name not in OF_USER and name not in OF_ANY_ORDER]
        counts = np.asarray([sum(name in p.when for name in unseen) for p in PROBLEMS])
        self.other = (counts * np.log(UNSEEN) + np.log(OTHER_ORDER)).astype(np.float32)

    def log_weights(self, state: State, facts: dict[str, Codes]) -> Floats:
        """[n, 2, P]."""
        shared = self.base[state.region]
        for name in OF_USER:
            shared += self.tables[name][facts[name][:, 0]]
        out = np.repeat(shared[:, None, :], 2, axis=1)
        for name, table in self.tables.items():
            if name in OF_ANY_ORDER:
                out += table[facts[name]]
            elif name not in OF_USER:
                out[:, 0] += table[facts[name][:, 0]]
        out[:, 1] += self.other
        out[:, 1, NUM_ORDER_PROBLEMS:] = NEVER
        out[facts["order_status"][:, 1] == 0, 1] = NEVER
        return out


def _rule_table(name: str) -> Floats:
    table: NDArray[np.float32] = np.zeros((len(WORDS[name]) + 1, NUM_PROBLEMS), np.float32)
    for column, problem in enumerate(PROBLEMS):
        if name in problem.when:
            weights = [problem.when[name].get(value, 0.0) for value in WORDS[name]]
            table[:, column] = np.log(np.maximum([0.0, *weights], IMPLAUSIBLE))
    if name == "order_status":
        table[0, :NUM_ORDER_PROBLEMS] = NEVER  # no order, no trouble with it
    return table


def probabilities(log_weights: Floats) -> Floats:
    """[n, 2, P] log-weights to probabilities over both last axes."""
    shifted = np.exp(log_weights - log_weights.max(axis=(1, 2), keepdims=True))
    return np.asarray(shifted / shifted.sum(axis=(1, 2), keepdims=True))
