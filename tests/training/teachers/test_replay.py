"""Queries made elsewhere: both formats, and what is wrong with a file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rgalign.errors import DataError
from rgalign.training.teachers.replay import ReplayTeacher
from rgalign.training.teachers.teacher import Context


def write(path: Path, rows: list[Any]) -> Path:
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.mark.parametrize("name", ["queries.parquet", "queries.jsonl"])
def test_answers_are_those_of_the_file(tmp_path: Path, contexts: list[Context], name: str) -> None:
    rows = [{"session_id": each.session_id, "query": f"query {place}"} for place, each in enumerate(contexts[:2])]
    teacher = ReplayTeacher("theirs", write(tmp_path / name, rows))
    answers = dict(teacher.generate(contexts[:3]))
    assert [answers[place].text for place in range(3)] == ["query 0", "query 1", ""]
    assert answers[2].failure == "no query in the file"
    other = ReplayTeacher("theirs", write(tmp_path / f"other-{name}", rows[:1]))
    assert teacher.identity != other.identity


@pytest.mark.parametrize(
    ("name", "rows", "message"),
    [
        ("a.parquet", [{"session_id": "s"}], "no \\['query'\\]"),
        ("a.jsonl", [{"session_id": "s"}], "line 1: required strings session_id and query"),
        ("a.jsonl", [{"session_id": "s", "query": "q"}, ["s", "q"]], "line 2: required strings"),
        ("a.jsonl", [{"session_id": "s", "query": "q"}, {"session_id": "s", "query": "r"}], "received 's' again"),
        (
            "a.parquet",
            [{"session_id": "s", "query": None}, {"session_id": "t", "query": "r"}],
            "row 0: required strings",
        ),
    ],
)
def test_a_file_that_cannot_be_used(tmp_path: Path, name: str, rows: list[Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        ReplayTeacher("theirs", write(tmp_path / name, rows))


def test_no_file_and_no_json(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such file"):
        ReplayTeacher("theirs", tmp_path / "none.jsonl")
    (tmp_path / "a.jsonl").write_text("{broken\n")
    with pytest.raises(DataError, match="line 1: required a JSON object; received .broken"):
        ReplayTeacher("theirs", tmp_path / "a.jsonl")
