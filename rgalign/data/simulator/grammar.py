"""All problems of the grammar in one fixed order, those about an order first, so that one slice covers them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import yaml

from rgalign.config import parse_config
from rgalign.data.simulator.problem import Problem

FILES = ("topics_delivery.yaml", "topics_after_sales.yaml", "topics_money.yaml", "topics_account.yaml")

_SafeLoader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # the same language, ten times as fast where it is built


def _read() -> Iterator[Problem]:
    for name in FILES:
        for entry in yaml.load(Path(__file__).with_name(name).read_bytes(), _SafeLoader):
            yield parse_config(Problem, entry, where=f"{name}, {entry.get('key')}")


PROBLEMS = tuple(sorted(_read(), key=lambda problem: not problem.about_order))  # stable: the files' order within
NUM_PROBLEMS = len(PROBLEMS)
NUM_ORDER_PROBLEMS = sum(problem.about_order for problem in PROBLEMS)
MAX_QUESTIONS = max(len(problem.questions) for problem in PROBLEMS)
INDEX = {problem.key: number for number, problem in enumerate(PROBLEMS)}
TOPICS = tuple(dict.fromkeys(problem.topic for problem in PROBLEMS))
