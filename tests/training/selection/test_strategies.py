"""V1 to V4 on golden cases made by hand: four teachers, of which ``base`` is the reasoner."""

from __future__ import annotations

from typing import Any

import pytest

from rgalign.training.selection.strategies import (
    BASE_WON,
    KEPT,
    NO_BASE,
    NO_INTERSECTION,
    NO_OTHER,
    Choice,
    Scored,
    Strategy,
    TieBreak,
    choose,
)

PRIORITY = ("compass", "gemini", "gpt", "base")
NAN = float("nan")
# teacher -> (query, reward, margin, cosine to the golden intent). The base says "where is my order".
QUERIES = {
    "compass": "where is my parcel",  # distance 1/4
    "gemini": "please refund the shoes",  # 1
    "gpt": "how is my order",  # 1/4
    "base": "where is my order",
}


def case(**values: tuple[float, float, float]) -> list[Scored]:
    return [Scored(name, QUERIES[name], *values[name]) for name in PRIORITY if name in values]


CASES: dict[str, list[Scored]] = {
    "one winner": case(compass=(0.3, 0.0, 0.9), gemini=(0.8, 0.1, 0.8), gpt=(0.5, 0.0, 0.7), base=(0.4, 0.0, 0.9)),
    "base strictly best": case(
        compass=(0.3, 0.0, 0.9), gemini=(0.2, 0.1, 0.8), gpt=(0.5, 0.0, 0.7), base=(0.9, 0.5, 0.9)
    ),
    "tie with base": case(compass=(0.3, 0.0, 0.9), gemini=(0.2, 0.1, 0.8), gpt=(0.9, 0.1, 0.7), base=(0.9, 0.5, 0.9)),
    "tie of two": case(compass=(0.3, 0.0, 0.9), gemini=(0.9, 0.1, 0.8), gpt=(0.9, 0.4, 0.7), base=(0.5, 0.5, 0.9)),
    "all tied": case(compass=(0.5, 0.1, 0.7), gemini=(0.5, 0.2, 0.8), gpt=(0.5, 0.3, 0.7), base=(0.5, 0.4, 0.9)),
    "far and near": case(compass=(0.9, 0.0, 0.7), gemini=(0.2, 0.1, 0.8), gpt=(0.5, 0.0, 0.7), base=(0.4, 0.0, 0.9)),
    "no base": case(compass=(0.9, 0.0, 0.7), gemini=(0.2, 0.1, 0.8)),
    "base alone": case(base=(0.9, 0.0, 0.7)),
    "no golden intent": case(
        compass=(0.9, NAN, NAN), gemini=(0.2, NAN, NAN), gpt=(0.5, NAN, NAN), base=(0.4, NAN, NAN)
    ),
}

GOLDEN: list[tuple[str, Strategy, TieBreak, str, str | None, list[str]]] = [
    # case, strategy, tie break -> why, chosen teacher, rejected teachers
    ("one winner", "V1", "priority", KEPT, "gemini", ["gpt", "base", "compass"]),
    ("one winner", "V2", "priority", KEPT, "gemini", ["gpt", "base", "compass"]),
    ("one winner", "V3", "priority", NO_INTERSECTION, None, []),  # farthest is gemini, nearest compass
    ("one winner", "V4", "priority", KEPT, "gemini", ["gpt", "base", "compass"]),
    ("base strictly best", "V1", "priority", KEPT, "base", ["gpt", "compass", "gemini"]),
    ("base strictly best", "V2", "priority", BASE_WON, None, []),
    ("base strictly best", "V4", "priority", KEPT, "compass", ["gemini"]),  # compass near, gemini far; compass higher
    ("tie with base", "V1", "priority", KEPT, "gpt", ["compass", "gemini"]),  # the base comes last: it loses ties
    ("tie with base", "V2", "priority", KEPT, "gpt", ["compass", "gemini"]),
    ("tie with base", "V1", "margin", KEPT, "base", ["compass", "gemini"]),
    ("tie with base", "V2", "margin", BASE_WON, None, []),
    ("tie of two", "V1", "priority", KEPT, "gemini", ["base", "compass"]),
    ("tie of two", "V1", "margin", KEPT, "gpt", ["base", "compass"]),
    ("all tied", "V1", "priority", KEPT, "compass", []),
    ("all tied", "V1", "margin", KEPT, "base", []),
    ("all tied", "V2", "margin", BASE_WON, None, []),
    ("all tied", "V3", "priority", KEPT, "gemini", []),
    ("far and near", "V1", "priority", KEPT, "compass", ["gpt", "base", "gemini"]),
    ("far and near", "V3", "priority", KEPT, "gemini", []),  # both farthest and nearest, though the reward is the least
    ("far and near", "V4", "priority", KEPT, "gemini", []),
    ("no base", "V1", "priority", KEPT, "compass", ["gemini"]),
    ("no base", "V2", "priority", KEPT, "compass", ["gemini"]),
    ("no base", "V3", "priority", NO_BASE, None, []),
    ("no base", "V4", "priority", NO_BASE, None, []),
    ("base alone", "V1", "priority", KEPT, "base", []),
    ("base alone", "V2", "priority", BASE_WON, None, []),
    ("base alone", "V3", "priority", NO_OTHER, None, []),
    ("no golden intent", "V1", "margin", KEPT, "compass", ["gpt", "base", "gemini"]),
    ("no golden intent", "V3", "priority", KEPT, "gemini", []),  # all equally near: the farthest
]


def chosen(candidates: list[Scored], strategy: Strategy, **options: Any) -> Choice:
    (choice,) = choose(candidates, strategy, priority=PRIORITY, base="base", **options)
    return choice


@pytest.mark.parametrize(("name", "strategy", "tie_break", "why", "teacher", "rejected"), GOLDEN)
def test_golden(
    name: str, strategy: Strategy, tie_break: TieBreak, why: str, teacher: str | None, rejected: list[str]
) -> None:
    choice = chosen(CASES[name], strategy, tie_break=tie_break)
    assert choice.why == why
    assert (choice.chosen.teacher if choice.chosen else None) == teacher
    assert [each.teacher for each in choice.rejected] == rejected


@pytest.mark.parametrize("name", list(CASES))
@pytest.mark.parametrize("strategy", ["V1", "V2", "V3", "V4"])
@pytest.mark.parametrize("tie_break", ["priority", "margin"])
def test_rejected_are_strictly_worse_and_order_does_not_matter(
    name: str, strategy: Strategy, tie_break: TieBreak
) -> None:
    choice = chosen(CASES[name], strategy, tie_break=tie_break)
    assert repr(chosen(CASES[name][::-1], strategy, tie_break=tie_break)) == repr(choice)
    if choice.chosen is not None:
        assert all(each.reward < choice.chosen.reward for each in choice.rejected)


def test_equal_queries_are_rejected_once_under_the_first_teacher() -> None:
    same = [
        Scored("compass", "win", 0.9, 0.0, 0.0),
        Scored("gemini", "lose", 0.2, 0.0, 0.0),
        Scored("gpt", "middle", 0.5, 0.0, 0.0),
        Scored("base", "lose", 0.2, 0.0, 0.0),
    ]
    assert [each.teacher for each in chosen(same, "V1").rejected] == ["gpt", "gemini"]


def test_v4_takes_the_higher_reward_of_its_two() -> None:
    either = case(compass=(0.3, 0.0, 0.9), gemini=(0.2, 0.0, 0.8), gpt=(0.9, 0.0, 0.1), base=(0.4, 0.0, 0.9))
    choice = chosen(either, "V4")
    assert choice.chosen is not None
    assert choice.chosen.teacher == "compass"  # nearest; gemini is farthest; gpt's reward does not qualify it


BOTH: list[tuple[str, list[tuple[str, list[str]]]]] = [
    # case -> chosen teachers, the better first, with the rejected ones of each
    ("one winner", [("gemini", ["gpt", "base"]), ("compass", [])]),  # compass is worse than gemini, yet chosen itself
    ("base strictly best", [("compass", []), ("gemini", [])]),
    ("all tied", [("gemini", [])]),  # both farthest and nearest
    ("far and near", [("gemini", [])]),
    ("no golden intent", [("compass", ["gpt", "base"]), ("gemini", [])]),  # all equally near: the best reward
]


@pytest.mark.parametrize(("name", "expected"), BOTH)
def test_v4_may_choose_its_two(name: str, expected: list[tuple[str, list[str]]]) -> None:
    choices = choose(CASES[name], "V4", priority=PRIORITY, base="base", v4_keep="both")
    found = [(choice.chosen.teacher, [each.teacher for each in choice.rejected]) for choice in choices if choice.chosen]
    assert found == expected
    assert choose(CASES[name][::-1], "V4", priority=PRIORITY, base="base", v4_keep="both") == choices
    assert [choices[0].chosen] == [chosen(CASES[name], "V4").chosen]


@pytest.mark.parametrize(("strategy", "expected"), [("V2", BASE_WON), ("V3", NO_OTHER), ("V4", NO_OTHER)])
def test_the_base_s_own_words_are_the_base_s_whoever_wrote_them(strategy: Strategy, expected: str) -> None:
    own = Scored("base", QUERIES["base"], 0.9, 0.0, 0.9)
    copy = Scored("compass", QUERIES["base"], 0.9, 0.0, 0.9)
    assert chosen([copy, own], strategy).why == expected
    assert chosen([copy, own], "V1").chosen == copy
    if strategy != "V3":
        other = Scored("gpt", QUERIES["gpt"], 0.95, 0.0, 0.1)
        assert chosen([copy, own, other], strategy).chosen == other
