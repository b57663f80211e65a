"""A teacher that knows the label is caught; one that names what its prompt shows, or what is common, is not."""

from __future__ import annotations

import numpy as np

from rgalign.training.teachers.leak_check import is_verbatim, leak_report

TITLES = [f"Service Number {'abcdefghijklmnopqrst'[number]}" for number in range(20)]


def test_a_verbatim_title_counts_unless_the_prompt_holds_it() -> None:
    assert is_verbatim(" refund  status? ", "Page: Home", ["Log In", "Refund Status"])
    assert not is_verbatim("refund status?", "Earlier: 'Refund Status' 2 hours ago", ["Refund Status"])
    assert not is_verbatim("What is my refund status?", "Page: Home", ["Refund Status"])
    assert not is_verbatim("refund status", "Page: Home", [])


def test_an_oracle_is_suspect_and_a_guesser_is_not() -> None:
    rng = np.random.default_rng(0)
    clicked = [[TITLES[number]] for number in rng.integers(20, size=400)]
    prompts = ["Page: Home"] * 400
    oracle = [f"How do I use {titles[0]} today?" for titles in clicked]
    guesses = [f"How do I use {TITLES[number]} today?" for number in rng.integers(20, size=400)]
    told = leak_report(oracle, prompts, clicked, knows_titles=False)
    assert (told.named, told.verbatim, told.suspect) == (400, 0, True)
    assert told.named_by_chance < 60
    guessed = leak_report(guesses, prompts, clicked, knows_titles=False)
    assert not guessed.suspect
    assert guessed.named > 5


def test_popular_intents_are_no_leak() -> None:
    clicked = [[TITLES[0]]] * 90 + [[TITLES[1]]] * 10
    texts = [f"Could you help me with {TITLES[0]}?"] * 100
    report = leak_report(texts, [""] * 100, clicked, knows_titles=False)
    assert report.named == 90
    assert report.named_by_chance >= 80
    assert not report.suspect


def test_one_verbatim_answer_is_enough_for_those_that_must_not_know() -> None:
    texts, clicked = ["Where is it?", TITLES[3]], [[TITLES[1]], [TITLES[3]]]
    assert leak_report(texts, ["", ""], clicked, knows_titles=False).suspect
    assert not leak_report(texts, ["", ""], clicked, knows_titles=True).suspect
    assert not leak_report([], [], [], knows_titles=False).suspect
