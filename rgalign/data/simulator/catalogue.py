"""The knowledge base: which questions exist in general form, which in specific forms, and since when.

An intent is a problem's question in one of four forms: general, specific on the problem's first axis, on its
second, or on both: "Why is my parcel late" + " with SwiftPost" + " with Express delivery" + "?". General forms always
exist; specific forms are added by popularity until the catalogue is full, so their number grows smoothly.

Which forms fit depends on the two axis values alone, so they are kept by case: ``start[p] + x1 * width[p] + x2`` is the
case of problem p with axis values x1, x2 (0 = unknown), and each case lists all its forms, those that do not exist or
do not fit with weight 0.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product

import numpy as np
from numpy.typing import NDArray

from rgalign.data.simulator.config import SimulatorConfig
from rgalign.data.simulator.draw import Floats
from rgalign.data.simulator.grammar import MAX_QUESTIONS, PROBLEMS
from rgalign.data.simulator.population import SHARE
from rgalign.data.simulator.problem import Problem
from rgalign.data.simulator.words import PHRASES, WORDS
from rgalign.errors import ConfigError
from rgalign.intents import IntentCatalog

FORMS = 4
FORM_WEIGHT = (1.0, 5.0, 2.0, 12.0)  # users mostly ask the most specific form that exists and fits
SHARPNESS = 2.5  # the power of questions' weights and urgencies: one question of a problem stands out
ASKING = ("Can", "Do", "Does", "Has", "How", "Is", "Until", "What", "When", "Where", "Which", "Who", "Why", "Will")
TASTE = 0.9  # sigma of each intent's own lognormal factor: what the rules do not explain


@dataclass(frozen=True)
class Form:
    """A possible intent."""

    problem: int
    question: int
    form: int
    values: tuple[int, int]
    popularity: float


@dataclass(frozen=True)
class KnowledgeBase:
    """The catalogue and the cases.

    Args:
        start, width: [P].
        weight: [2, cases, Q, F] float32 before and after the launch of the cold intents.
        row: [cases, Q, F] catalogue row, -1 where there is no intent.
        problem: [N] problem of each catalogue row.
        cold: [N] bool.
    """

    catalog: IntentCatalog
    start: NDArray[np.int64]
    width: NDArray[np.int64]
    weight: Floats
    row: NDArray[np.int32]
    problem: NDArray[np.int16]
    cold: NDArray[np.bool_]

    def available(self, *, launched: bool) -> NDArray[np.bool_]:
        """[P]: problems that have a question in this period."""
        total: Floats = np.add.reduceat(self.weight[int(launched)].sum(axis=(1, 2)), self.start)
        return total > 0


def build_knowledge_base(config: SimulatorConfig) -> KnowledgeBase:
    rng = np.random.default_rng([config.seed, 2])
    general, specific = all_forms(rng)
    launched, cold = _choose(config, rng, general, specific)
    chosen = launched + cold
    # Ids are dealt at random, so their order (the tie-break) says nothing about popularity.
    numbers = rng.permutation(len(chosen))
    is_cold = np.zeros(len(chosen), np.bool_)
    is_cold[numbers[len(launched) :]] = True
    problem = np.zeros(len(chosen), np.int16)
    problem[numbers] = [form.problem for form in chosen]
    widths = np.asarray([[len(WORDS[axis]) + 1 for axis in p.axes] for p in PROBLEMS])
    start = np.concatenate([[0], np.cumsum(widths.prod(axis=1))])
    weight = np.zeros((2, start[-1], MAX_QUESTIONS, FORMS), np.float32)
    row = np.full(weight.shape[1:], -1, np.int32)
    taste = np.exp(TASTE * rng.standard_normal(len(chosen)))
    for number, form, factor in zip(numbers, chosen, taste, strict=True):
        p, f = form.problem, form.form
        cases = np.arange(start[p], start[p + 1]).reshape(widths[p])
        # An axis that the form does not name fits every value, also the unknown one.
        fitting = cases[tuple(value or slice(None) for value in form.values)].ravel()
        row[fitting, form.question, f] = number
        question_weight = PROBLEMS[p].questions[form.question].weight ** SHARPNESS
        weight[:, fitting, form.question, f] = question_weight * FORM_WEIGHT[f] * (factor if f else 1.0)
    weight[0, (row >= 0) & is_cold[row]] = 0.0
    return KnowledgeBase(_catalog(chosen, numbers), start[:-1], widths[:, 1], weight, row, problem, is_cold)


def all_forms(rng: np.random.Generator) -> tuple[list[Form], list[Form]]:
    """(general, specific by falling popularity): what the grammar can say."""
    general, specific = [], []
    for p, problem in enumerate(PROBLEMS):
        sizes = [len(WORDS[axis]) for axis in problem.axes]
        shares = [SHARE[axis] for axis in problem.axes]
        for a, question in enumerate(problem.questions):
            base = problem.weight * question.weight
            general.append(Form(p, a, 0, (0, 0), base))
            if problem.cold:
                continue  # a question that has just been written has its general form only
            for x1, x2 in product(range(sizes[0] + 1), range(sizes[1] + 1)):
                if x1 or x2:
                    share = (shares[0][x1 - 1] if x1 else 1.0) * (shares[1][x2 - 1] if x2 else 1.0)
                    form = 3 if x1 and x2 else 1 if x1 else 2
                    specific.append(Form(p, a, form, (x1, x2), base * share))
    luck = np.exp(0.8 * rng.standard_normal(len(specific)))
    order = np.argsort([-form.popularity * factor for form, factor in zip(specific, luck, strict=True)], kind="stable")
    return general, [specific[i] for i in order]


def _choose(
    config: SimulatorConfig, rng: np.random.Generator, general: list[Form], specific: list[Form]
) -> tuple[list[Form], list[Form]]:
    """(launched from the start, cold): new problems, then specific forms at random, popular ones likelier."""
    launched = [form for form in general if not PROBLEMS[form.problem].cold]
    cold = [form for form in general if PROBLEMS[form.problem].cold][: config.num_cold_intents]
    extra = specific[: config.num_intents - len(launched) - len(cold)]
    if len(cold) + len(extra) < config.num_cold_intents:
        required = f"at most {len(cold) + len(extra)} of {config.num_intents} intents ({len(launched)} are never cold)"
        raise ConfigError(where="num_cold_intents", required=required, received=str(config.num_cold_intents))
    share = np.sqrt([form.popularity for form in extra])
    late = rng.choice(len(extra), config.num_cold_intents - len(cold), replace=False, p=share / share.sum())
    marked = set(late.tolist())
    launched += [form for i, form in enumerate(extra) if i not in marked]
    return launched, cold + [extra[i] for i in sorted(marked)]


def _catalog(forms: list[Form], numbers: NDArray[np.int64]) -> IntentCatalog:
    ids = tuple(f"q{number:05d}" for number in numbers)
    texts = [form_text(PROBLEMS[form.problem], form) for form in forms]
    paths = tuple(f"{PROBLEMS[form.problem].topic} > {PROBLEMS[form.problem].name}" for form in forms)
    topics = tuple(PROBLEMS[form.problem].topic for form in forms)
    titles, descriptions = (tuple(text[part] for text in texts) for part in (0, 1))
    return IntentCatalog(ids, titles, descriptions, {"topic": topics, "path": paths})


def form_text(problem: Problem, form: Form) -> tuple[str, str]:
    """(title, description) of an intent."""
    question = problem.questions[form.question]
    title, description = question.title, f"{question.answer} {problem.about}"
    for axis, value in zip(problem.axes, form.values, strict=True):
        if value:
            phrase, sentence = (text.format(WORDS[axis][value - 1]) for text in PHRASES[axis])
            title, description = title + phrase, f"{description} {sentence}"
    return title + ("?" if title.split()[0] in ASKING else ""), description
