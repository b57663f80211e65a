"""From problems to intents: which questions a session makes relevant, and how likely each is.

A session has one, two or three relevant intents: one of its problem, and one each of companion problems. With R the
set of relevant intents, the truth written for a session is

    q_i = E[ 1{i in R} / |R|  |  everything observed ],        sum_i q_i = 1.

Ranking by q maximises the expected Recall@K for every K, so the recall of that ranking is the ceiling.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rgalign.data.simulator.catalogue import FORMS, SHARPNESS, KnowledgeBase
from rgalign.data.simulator.draw import Floats, Ints, Rng, cumulative, pick_one, pick_row
from rgalign.data.simulator.grammar import INDEX, MAX_QUESTIONS, NUM_ORDER_PROBLEMS, NUM_PROBLEMS, PROBLEMS
from rgalign.data.simulator.state import Codes
from rgalign.data.simulator.words import PHRASES, WORDS

NUM_RELEVANT = (0.78, 0.17, 0.05)  # P(|R| = 1, 2, 3)
MAX_RELEVANT = len(NUM_RELEVANT)
LIKELIEST = 64
AXES = tuple(PHRASES)
ROWS_AT_ONCE = 128  # keeps the [rows, 2, P, Q, F] arrays inside the cache
OF_ORDER = NUM_ORDER_PROBLEMS
ROW_MASK = np.uint64(0xFFFFFFFF)
_SIZE = cumulative(NUM_RELEVANT)
_LOW = 0 if sys.byteorder == "little" else 1  # half of a 64-bit integer


@dataclass(frozen=True)
class Likeliest:
    """The truth of n sessions: rows and probabilities [n, 64], falling; probability 0 is padding. rest [n]."""

    rows: NDArray[np.int32]
    probabilities: Floats
    rest: NDArray[np.float64]


class Relevance:
    """The questions of one period, before or after the launch of the cold intents."""

    def __init__(self, base: KnowledgeBase, *, launched: bool) -> None:
        self.base = base
        self.axis = np.asarray([[AXES.index(axis) for axis in p.axes] for p in PROBLEMS], np.intp)
        slopes = np.zeros((NUM_PROBLEMS, MAX_QUESTIONS), np.float32)
        for p, problem in enumerate(PROBLEMS):
            slopes[p, : len(problem.questions)] = [question.urgency for question in problem.questions]
        # Urgency runs from -1 (just happened) to 1 (over two weeks); 0 without an order.
        steps = np.asarray([0.0, *np.linspace(-1, 1, len(WORDS["waiting"]))], np.float32)
        self.urgency = np.exp(SHARPNESS * steps[:, None, None] * slopes)  # [waiting + 1, P, Q]
        self.weight = base.weight[int(launched)]  # [cases, Q, F]
        owner = np.repeat(np.arange(NUM_PROBLEMS), np.diff([*base.start, len(self.weight)]))
        total = (self.weight.sum(axis=2)[:, None] * self.urgency[:, owner].transpose(1, 0, 2)).sum(axis=2)
        # A problem without any question has no mass either; 1 only avoids 0 / 0.
        self.total = np.where(total > 0, total, 1).astype(np.float32)  # [cases, waiting + 1]
        self.companion = _companions(base.available(launched=launched))
        self.mixing = _mixing(self.companion)

    def mix(self, posterior: Floats) -> Floats:
        """[n, 2, P] P(problem, order) to the expected share of relevance of each problem; companions joined in."""
        n = len(posterior)
        by_problem = np.ascontiguousarray(posterior.reshape(n, -1).T).reshape(2, NUM_PROBLEMS, n)
        mixed = np.zeros_like(by_problem)
        # A sparse product by hand: no BLAS, so the same bits with any number of threads.
        for source, target in zip(*np.nonzero(self.mixing), strict=True):
            mixed[:, target] += self.mixing[source, target] * by_problem[:, source]
        mixed[0, OF_ORDER:] += mixed[1, OF_ORDER:]  # what is about no order is about no other order either
        return np.ascontiguousarray(mixed.reshape(-1, n).T).reshape(n, 2, NUM_PROBLEMS)

    def likeliest(self, mixed: Floats, axes: Codes, waiting: Codes) -> Likeliest:
        """Args: mixed [n, 2, P]; axes [n, 2, len(AXES)] and waiting [n, 2] codes of both orders."""
        n = len(mixed)
        rows, best = np.zeros((n, LIKELIEST), np.int32), np.zeros((n, LIKELIEST), np.float32)
        for begin in range(0, n, ROWS_AT_ONCE):
            part = slice(begin, begin + ROWS_AT_ONCE)
            rows[part], best[part] = self._top(mixed[part], axes[part], waiting[part])
        return Likeliest(rows, best, np.maximum(1.0 - best.sum(axis=1, dtype=np.float64), 0.0))

    def draw_relevant(self, rng: Rng, problem: Ints, order: Ints, axes: Codes, waiting: Codes) -> NDArray[np.int32]:
        """[n, 3] catalogue rows of R, the problem's own intent first, -1 is padding."""
        n = len(problem)
        size = pick_one(rng, _SIZE, n) + 1
        out = np.full((n, MAX_RELEVANT), -1, np.int32)
        out[:, 0] = self.draw_intent(rng, problem, order, axes, waiting)
        rest = np.flatnonzero(size > 1)
        weights = self.companion[problem[rest]].astype(np.float32)
        for column in range(1, MAX_RELEVANT):
            companion = pick_row(rng.random(len(rest), dtype=np.float32), weights)
            about = np.where(companion < OF_ORDER, order[rest], 0)
            intent = self.draw_intent(rng, companion, about, axes[rest], waiting[rest])
            out[rest, column] = np.where(size[rest] > column, intent, -1)
            weights[np.arange(len(rest)), companion] = 0.0
        return out

    def draw_intent(self, rng: Rng, problem: Ints, order: Ints, axes: Codes, waiting: Codes) -> NDArray[np.int32]:
        """[n] catalogue rows: one question about ``problem`` that fits the order's facts."""
        n, here = len(problem), np.arange(len(problem))
        x1, x2 = (axes[here, order, self.axis[problem, side]] for side in (0, 1))
        case = self.base.start[problem] + x1 * self.base.width[problem] + x2
        weight = self.weight[case] * self.urgency[waiting[here, order], problem][:, :, None]
        column = pick_row(rng.random(n, dtype=np.float32), weight.reshape(n, -1))
        return np.asarray(self.base.row.reshape(-1, MAX_QUESTIONS * FORMS)[case, column])

    def _cases(self, axes: Codes, order: int, problems: slice) -> NDArray[np.int64]:
        x1, x2 = (axes[:, order, self.axis[problems, side]] for side in (0, 1))
        return np.asarray(self.base.start[problems] + x1 * self.base.width[problems] + x2, np.int64)

    def _top(self, mixed: Floats, axes: Codes, waiting: Codes) -> tuple[NDArray[np.int32], Floats]:
        """(rows, probabilities) [n, 64] among every form of every problem, about the current and the other order."""
        n = len(mixed)
        case = np.empty((n, NUM_PROBLEMS + OF_ORDER), np.int64)
        mass = np.empty((n, NUM_PROBLEMS + OF_ORDER, MAX_QUESTIONS, FORMS), np.float32)
        for order, problems, block in ((0, slice(0, NUM_PROBLEMS), slice(0, NUM_PROBLEMS)),
                                       (1, slice(0, OF_ORDER), slice(NUM_PROBLEMS, None))):  # fmt: skip
            case[:, block] = here = self._cases(axes, order, problems)
            step = waiting[:, order]
            scale = mixed[:, order, problems] / self.total.take(here * self.total.shape[1] + step[:, None])
            by_question = self.urgency[step, problems] * scale[:, :, None]
            np.multiply(self.weight.take(here, axis=0), by_question[..., None], out=mass[:, block])
        self._join(mass, axes)
        # The bits of a positive float sort as it does: one integer holds probability and place.
        halves = np.empty((n, mass[0].size, 2), np.uint32)
        halves[..., _LOW] = np.arange(mass[0].size, dtype=np.uint32)
        halves[..., 1 - _LOW] = mass.reshape(n, -1).view(np.uint32)
        top = np.partition(halves.view(np.uint64)[..., 0], -LIKELIEST, axis=1)[:, -LIKELIEST:]
        place, form = np.divmod((top & np.uint64(0xFFFFFFFF)).astype(np.int64), MAX_QUESTIONS * FORMS)
        row = self.base.row.reshape(-1, MAX_QUESTIONS * FORMS)[np.take_along_axis(case, place, axis=1), form]
        # Falling probability, then ascending row: the order of every ranking here.
        keys = np.sort((top >> np.uint64(32) << np.uint64(32)) | (ROW_MASK - row.astype(np.uint64)), axis=1)[:, ::-1]
        probability = (keys >> np.uint64(32)).astype(np.uint32).view(np.float32)
        return (ROW_MASK - (keys & ROW_MASK)).astype(np.int32), probability

    def _join(self, mass: Floats, axes: Codes) -> None:
        """Moves to the current order what both orders reach: forms whose named axes agree are one intent."""
        agree = [axes[:, 0, self.axis[:OF_ORDER, side]] == axes[:, 1, self.axis[:OF_ORDER, side]] for side in (0, 1)]
        same = np.stack([np.ones_like(agree[0]), *agree, agree[0] & agree[1]], axis=2)[:, :, None, :]
        moved = mass[:, NUM_PROBLEMS:] * same
        mass[:, :OF_ORDER] += moved
        mass[:, NUM_PROBLEMS:] -= moved


def axis_facts(facts: dict[str, Codes]) -> Codes:
    """[n, 2, len(AXES)] codes of both orders on every axis; the device is the user's, whatever the order."""
    return np.stack([facts[axis] for axis in AXES], axis=2)


def _companions(available: NDArray[np.bool_]) -> NDArray[np.float64]:
    """[P, P] P(next companion = column | problem = row), among problems that have a question."""
    table = np.zeros((NUM_PROBLEMS, NUM_PROBLEMS))
    for row, problem in enumerate(PROBLEMS):
        for key, weight in problem.companions.items():
            table[row, INDEX[key]] = weight * available[INDEX[key]]
    return np.asarray(table / table.sum(axis=1, keepdims=True))


def _mixing(companion: NDArray[np.float64]) -> Floats:
    """[P, P] E[share of relevance of column | problem = row].

    A companion is among two draws without replacement with probability c_i (1 + sum_{j != i} c_j / (1 - c_j)).
    """
    odds = companion / (1.0 - companion)
    among_two = companion * (1.0 + odds.sum(axis=1, keepdims=True) - odds)
    shares = np.asarray(NUM_RELEVANT) / np.arange(1, MAX_RELEVANT + 1)
    matrix = shares.sum() * np.eye(NUM_PROBLEMS) + shares[1] * companion + shares[2] * among_two
    return np.asarray(matrix, np.float32)
