"""Word-level edit distance by hand and by its laws."""

from __future__ import annotations

from itertools import product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rgalign.training.selection.edit_distance import levenshtein, word_edit_distance

WORDS = st.lists(st.sampled_from("abc"), max_size=6)


@pytest.mark.parametrize(
    ("left", "right", "expected"),
    [
        ("where is my order", "Where is my order?", 0.0),
        ("where is my order", "where is my parcel", 1 / 4),
        ("where is my order", "my order", 2 / 4),
        ("order", "parcel", 1.0),
        ("", "", 0.0),
        ("", "a b", 1.0),
        ("a b c d", "b c d e", 2 / 4),
    ],
)
def test_by_hand(left: str, right: str, expected: float) -> None:
    assert word_edit_distance(left, right) == expected == word_edit_distance(right, left)


def test_words_not_letters() -> None:
    assert word_edit_distance("a long extraordinarily complicated word", "a long plain complicated word") == 1 / 5


@settings(max_examples=60, deadline=None)
@given(WORDS, WORDS, WORDS)
def test_it_is_a_distance(left: list[str], middle: list[str], right: list[str]) -> None:
    assert (levenshtein(left, right) == 0) == (left == right)
    assert levenshtein(left, right) <= levenshtein(left, middle) + levenshtein(middle, right)
    assert abs(len(left) - len(right)) <= levenshtein(left, right) <= max(len(left), len(right))


def test_it_is_the_fewest_edits() -> None:
    """Against a search over all single edits."""
    words = ["".join(each) for size in range(4) for each in product("ab", repeat=size)]

    def neighbours(word: str) -> set[str]:
        cut = {word[:place] + word[place + 1 :] for place in range(len(word))}
        put = {word[:place] + char + word[place:] for place in range(len(word) + 1) for char in "ab"}
        return cut | put | {word[:place] + char + word[place + 1 :] for place in range(len(word)) for char in "ab"}

    for start in words:
        distance, edge = {start: 0}, [start]
        while edge:
            edge = [
                other
                for word in edge
                for other in neighbours(word)
                if len(other) < 5 and other not in distance and distance.setdefault(other, distance[word] + 1)
            ]
        for word in words:
            assert levenshtein(start, word) == distance[word]
