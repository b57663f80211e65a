"""Exposure logs: what is read, what is refused, and the ratios against counting by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rgalign.errors import DataError
from rgalign.metrics.online.exposures import Exposures, read_exposures
from rgalign.metrics.online.ratios import Ratio, clicks_per_place, csat, ctr, intent_hits

ROWS: tuple[dict[str, Any], ...] = (
    {"arm": "old", "user_id": "a", "shown": ["x", "y", "z", "w"], "clicked": ["w"], "rating": "good"},
    {"arm": "old", "user_id": "a", "shown": ["x", "y"], "clicked": ["x", "y"], "rating": "bad"},
    {"arm": "old", "user_id": None, "shown": [], "clicked": [], "rating": None},
    {"arm": "new", "user_id": "b", "shown": ["x", "y", "z", "w"], "clicked": ["z", "w"], "rating": "good"},
    {"arm": "new", "user_id": None, "shown": ["x"], "clicked": ["elsewhere"], "rating": None},
    {"arm": "third", "user_id": "c", "shown": ["x"], "clicked": ["x"], "rating": "good"},
)


def rows(**changes: Any) -> list[dict[str, Any]]:
    """``changes`` go into the first row."""
    found = [{"session_id": f"s{number}", **row} for number, row in enumerate(ROWS)]
    return [{**found[0], **changes}, *found[1:]]


def write_jsonl(path: Path, lines: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


@pytest.fixture
def log(tmp_path: Path) -> Exposures:
    return read_exposures(write_jsonl(tmp_path / "log.jsonl", rows()), "old", "new")


def test_the_two_arms_are_read_and_others_left_out(log: Exposures) -> None:
    assert log.session_ids == ("s0", "s1", "s2", "s3", "s4")
    assert log.treated.tolist() == [False, False, False, True, True]
    assert log.users[0] == log.users[1]
    assert len(set(log.users.tolist())) == 4  # sessions without a user are users by themselves
    assert log.num_users() == (2, 2)
    assert log.shown[0] == ("x", "y", "z", "w")
    assert log.transcripts == (None,) * 5


def test_parquet_reads_as_jsonl_does_and_turns_become_lines(tmp_path: Path) -> None:
    lines = rows()
    turns = [{"role": "user", "content": "where is my parcel"}, {"role": "agent", "content": "on its way"}]
    table = pa.Table.from_pylist([{**line, "transcript": turns if line["arm"] == "new" else None} for line in lines])
    pq.write_table(table, tmp_path / "log.parquet")
    found = read_exposures(tmp_path / "log.parquet", "old", "new")
    assert found.clicked == read_exposures(write_jsonl(tmp_path / "l.jsonl", lines), "old", "new").clicked
    assert found.transcripts == (None, None, None, *["user: where is my parcel\nagent: on its way"] * 2)


def sums(ratio: Ratio) -> tuple[list[float], list[float]]:
    return ratio.x.tolist(), ratio.y.tolist()


def test_ratios_are_counts(log: Exposures) -> None:
    assert sums(ctr(log, 3)) == ([0, 1, 0, 1, 0], [1] * 5)  # the click on the fourth place does not count
    assert sums(ctr(log, 4)) == ([1, 1, 0, 1, 0], [1] * 5)
    assert sums(clicks_per_place(log, 3)) == ([0, 2, 0, 1, 0], [3, 2, 0, 3, 1])
    assert sums(csat(log)) == ([1, 0, 0, 1, 0], [1, 1, 0, 1, 0])


def test_a_session_without_a_true_intent_is_a_miss_or_left_out_and_one_that_was_not_judged_never_counts(
    log: Exposures,
) -> None:
    intents = {"s0": "w", "s1": "y", "s3": None, "s4": "x"}
    assert sums(intent_hits(log, intents)) == ([0, 1, 0, 0, 1], [1, 1, 0, 1, 1])
    assert sums(intent_hits(log, intents, unclear="skip")) == ([0, 1, 0, 0, 1], [1, 1, 0, 0, 1])
    assert sums(intent_hits(log, intents, k=4)) == ([1, 1, 0, 0, 1], [1, 1, 0, 1, 1])


def test_users_of_both_arms_are_seen(tmp_path: Path) -> None:
    log = read_exposures(write_jsonl(tmp_path / "log.jsonl", rows(user_id="b")), "old", "new")
    assert log.in_both_arms().tolist() == [True, False, False, True, False]
    kept = log.take(~log.in_both_arms())
    assert kept.session_ids == ("s1", "s2", "s4")
    assert kept.rating == ("bad", None, None)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"session_id": "s1"}, "each session once"),
        ({"session_id": ""}, "session_id, row 0"),
        ({"arm": None}, "an arm for every session"),
        ({"rating": "fine"}, "'fine'"),
        ({"shown": "x"}, "list of intent ids|parquet or JSONL"),
    ],
)
def test_faulty_rows_are_refused(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    path = write_jsonl(tmp_path / "log.jsonl", rows(**changes))
    with pytest.raises(DataError, match=message):
        read_exposures(path, "old", "new")


def test_faulty_files_are_refused(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "log.jsonl", rows())
    with pytest.raises(DataError, match="sessions of arm 'newer'"):
        read_exposures(path, "old", "newer")
    with pytest.raises(DataError, match="no such file"):
        read_exposures(tmp_path / "none.jsonl", "old", "new")
    short = [{name: row[name] for name in ("session_id", "arm")} for row in rows()]
    with pytest.raises(DataError, match="no user_id, shown, clicked"):
        read_exposures(write_jsonl(tmp_path / "short.jsonl", short), "old", "new")
    (tmp_path / "log.parquet").write_bytes(b"PAR1 not really")
    with pytest.raises(DataError, match="parquet or JSONL"):
        read_exposures(tmp_path / "log.parquet", "old", "new")
    assert np.array(rows()).size  # the rows themselves are fine: the first test reads them
