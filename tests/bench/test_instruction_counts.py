"""The regression guard: hot paths take no more instructions than was committed, and it notices when they do."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from rgalign.bench.instruction_counts import (
    COMMITTED,
    CountError,
    build,
    count,
    count_all,
    grown,
    tolerance_of,
    why_not,
)

MISSING = why_not()


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if MISSING is not None:
        pytest.skip(MISSING)
    return build(tmp_path_factory.mktemp("counts"))


def test_no_hot_path_takes_more_instructions_than_was_committed(driver: Path) -> None:
    committed = json.loads(COMMITTED.read_text(encoding="utf-8"))
    counts = count_all(driver)
    assert not grown(counts, committed["counts"], tolerance_of(committed["compiler"]))


def test_work_that_is_done_twice_is_noticed(driver: Path) -> None:
    name = "batcher: a packed token"
    once, twice = (count(driver, name, repeats) for repeats in (1, 2))
    assert once == count(driver, name), "the count must be the same each time"
    assert twice == pytest.approx(2 * once, rel=0.02)
    assert grown({name: twice}, {name: once}, 0.5)


def test_what_grew_is_new_or_is_gone_is_named() -> None:
    committed = {"a": 100.0, "b": 100.0, "c": 1.0}
    found = grown({"a": 106.0, "b": 104.0, "d": 1.0}, committed, 0.05)
    assert found == [
        "a: 106 instructions, +6.0% over 100",
        "c: committed, but not counted",
        "d: not in the committed numbers",
    ]


@pytest.mark.skipif(MISSING is not None, reason=str(MISSING))
def test_a_name_that_is_none_is_an_error(driver: Path) -> None:
    with pytest.raises(CountError, match="count of nothing"):
        count(driver, "nothing")
