"""Swaps under concurrent scoring: no answer mixes generations, former ones are freed, and the test can fail.

`python -m rgalign.bench.index_swaps` makes as many swaps as one likes.
"""

import pytest

from rgalign.bench.index_swaps import index_of, soak
from rgalign.errors import DataError
from rgalign.index import IndexHolder, IntentIndex


def test_every_answer_is_of_the_generation_it_names() -> None:
    summary = soak(250)
    assert summary["torn"] == 0
    assert summary["backwards"] == 0
    assert summary["most_generations_alive"] <= summary["readers"] + 3
    assert summary["resident_growth_bytes"] < 16 << 20


class MisnamingHolder(IndexHolder):
    """Names the next generation too early, as an index that is changed in place would."""

    @property
    def current(self) -> IntentIndex:
        current = super().current
        return current.published(current.generation + current.generation % 2)


def test_an_answer_under_another_generation_is_found() -> None:
    summary = soak(250, 2, MisnamingHolder(index_of(1)))
    assert summary["torn"] > 0


def test_a_run_that_overlaps_nothing_is_refused() -> None:
    with pytest.raises(DataError, match="one answer overtaken"):
        soak(8, 0)
