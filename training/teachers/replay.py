"""Replay teacher: queries that were made elsewhere, from parquet or JSONL with columns ``session_id`` and ``query``."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from rgalign.errors import DataError
from rgalign.files import sha256_file
from rgalign.training.teachers.teacher import Answer, Context

COLUMNS = ("session_id", "query")


class ReplayTeacher:
    """Answers what the file says of a session.

    Raises:
        DataError: no such file, another format, a column that is missing, or two queries for one session.
    """

    def __init__(self, name: str, path: Path, *, knows_titles: bool = False) -> None:
        self.name = name
        self.knows_titles = knows_titles
        self._queries = read_queries(Path(path))
        self.identity: Mapping[str, Any] = {"kind": "replay", "file": sha256_file(Path(path))}

    def reads(self, context: Context) -> str:
        return context.session_id

    def generate(self, contexts: Iterable[Context]) -> Iterator[tuple[int, Answer]]:
        for place, context in enumerate(contexts):
            query = self._queries.get(context.session_id)
            yield place, Answer(failure="no query in the file") if query is None else Answer(query)


def read_queries(path: Path) -> dict[str, str]:
    """session_id -> query."""
    if not path.is_file():
        raise DataError(where=str(path), required="a parquet or JSONL file of queries", received="no such file")
    records = _parquet(path) if path.suffix == ".parquet" else _jsonl(path)
    queries: dict[str, str] = {}
    for where, record in records:
        if not isinstance(record, dict) or any(not isinstance(record.get(name), str) for name in COLUMNS):
            raise DataError(where=where, required="strings session_id and query", received=str(record)[:80])
        if record["session_id"] in queries:
            received = f"{record['session_id']!r} again"
            raise DataError(where=where, required="one query a session", received=received)
        queries[record["session_id"]] = record["query"]
    return queries


def _parquet(path: Path) -> Iterator[tuple[str, Any]]:
    absent = set(COLUMNS) - set(pq.read_schema(path).names)
    if absent:
        raise DataError(where=str(path), required=f"columns {', '.join(COLUMNS)}", received=f"no {sorted(absent)}")
    with pq.ParquetFile(path) as file:
        rows = file.read(list(COLUMNS)).to_pylist()
    return ((f"{path}, row {number}", row) for number, row in enumerate(rows))


def _jsonl(path: Path) -> Iterator[tuple[str, Any]]:
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        where = f"{path}, line {number}"
        try:
            yield where, json.loads(line)
        except json.JSONDecodeError as error:
            raise DataError(where=where, required="a JSON object", received=line[:80]) from error
