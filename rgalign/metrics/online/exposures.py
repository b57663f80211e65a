"""Exposures: one row a session that was shown recommendations, in the arm that its user was assigned to.

    session_id string   user_id string   arm string
    shown      list<string>   intents in the order they were shown
    clicked    list<string>   of these, in any order
    rating     string         good, bad, or null
    transcript string, or list of {role, content}; null where there is none. Only the judge reads it.

A file is parquet or JSONL; ``rating`` and ``transcript`` may be missing. Arms that are not compared are left out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.json
import pyarrow.parquet as pq
from numpy.typing import NDArray

from rgalign.errors import DataError
from rgalign.metrics.significance import cluster_codes

REQUIRED = ("session_id", "user_id", "arm", "shown", "clicked")
GOOD, BAD = "good", "bad"

Ints = NDArray[np.int64]
Flags = NDArray[np.bool_]


@dataclass(frozen=True)
class Exposures:
    """S sessions of two arms.

    Args:
        session_ids: [S] unique.
        users: [S] code of each session's user; sessions without one are users by themselves.
        treated: [S] whether the session's arm is the treatment.
        shown, clicked: [S] intent ids; ``shown`` in order.
        rating: [S] ``good``, ``bad`` or None.
        transcripts: [S] text, None where there is none.
    """

    session_ids: tuple[str, ...]
    users: Ints
    treated: Flags
    shown: tuple[tuple[str, ...], ...]
    clicked: tuple[frozenset[str], ...]
    rating: tuple[str | None, ...]
    transcripts: tuple[str | None, ...]

    def __len__(self) -> int:
        return len(self.session_ids)

    def take(self, mask: Flags) -> Exposures:
        """The sessions where ``mask`` [S] is true."""
        rows = np.flatnonzero(mask).tolist()

        def some(values: Sequence[Any]) -> tuple[Any, ...]:
            return tuple(values[row] for row in rows)

        lists = (some(each) for each in (self.shown, self.clicked, self.rating, self.transcripts))
        return Exposures(some(self.session_ids), self.users[rows], self.treated[rows], *lists)

    def num_users(self) -> tuple[int, int]:
        """Users of the control and of the treatment."""
        control, treatment = (len(np.unique(self.users[self.treated == arm])) for arm in (False, True))
        return control, treatment

    def in_both_arms(self) -> Flags:
        """[S] sessions of users that were seen in both arms, where assignment did not hold."""
        both = np.intersect1d(self.users[self.treated], self.users[~self.treated])
        return np.isin(self.users, both)


def read_exposures(path: Path, control: str, treatment: str) -> Exposures:
    """Reads the sessions of two arms of a log.

    Raises:
        DataError: no such file or another format, a column that is missing or of another kind, a session twice, an
            unknown rating, an arm without sessions.
    """
    table = _read(path)
    absent = [name for name in REQUIRED if name not in table.column_names]
    if absent:
        raise DataError(where=str(path), required=f"columns {', '.join(REQUIRED)}", received=f"no {', '.join(absent)}")
    arms = table.column("arm")
    if arms.null_count:
        raise DataError(where=f"{path}, arm", required="an arm for every session", received=f"{arms.null_count} nulls")
    table = table.filter(pc.is_in(arms, value_set=pa.array([control, treatment])))
    columns = {name: table.column(name).to_pylist() for name in table.column_names}
    count = len(table)
    found = Exposures(
        session_ids=tuple(_text(path, "session_id", columns["session_id"])),
        users=cluster_codes(columns["user_id"]),
        treated=np.array([arm == treatment for arm in columns["arm"]], np.bool_),
        shown=tuple(_lists(path, "shown", columns["shown"])),
        clicked=tuple(map(frozenset, _lists(path, "clicked", columns["clicked"]))),
        rating=tuple(columns.get("rating", [None] * count)),
        transcripts=tuple(map(_transcript, columns.get("transcript", [None] * count))),
    )
    _check(path, found, control, treatment)
    return found


def _read(path: Path) -> pa.Table:
    if not path.is_file():
        raise DataError(where=str(path), required="a log of exposures (parquet or JSONL)", received="no such file")
    try:
        if path.suffix == ".parquet":
            with pq.ParquetFile(path) as file:
                return file.read()
        return pyarrow.json.read_json(path)
    except pa.ArrowInvalid as error:
        raise DataError(where=str(path), required="parquet or JSONL", received=str(error)[:120]) from error


def _text(path: Path, name: str, values: Sequence[Any]) -> Sequence[str]:
    for row, value in enumerate(values):
        if not isinstance(value, str) or not value:
            raise DataError(where=f"{path}, {name}, row {row}", required="a text", received=repr(value))
    return values


def _lists(path: Path, name: str, values: Sequence[Any]) -> list[tuple[str, ...]]:
    lists = []
    for row, value in enumerate(values):
        if value is not None and not (isinstance(value, list) and all(isinstance(each, str) for each in value)):
            raise DataError(where=f"{path}, {name}, row {row}", required="a list of intent ids", received=repr(value))
        lists.append(tuple(value or ()))
    return lists


def _transcript(value: Any) -> str | None:
    if value is None or isinstance(value, str):
        return value or None
    return "\n".join(_turn(turn) for turn in value) or None


def _turn(turn: Any) -> str:
    return f"{turn.get('role')}: {turn.get('content')}" if isinstance(turn, Mapping) else str(turn)


def _check(path: Path, found: Exposures, control: str, treatment: str) -> None:
    repeated = len(found) - len(set(found.session_ids))
    if repeated:
        raise DataError(where=f"{path}, session_id", required="each session once", received=f"{repeated} repeated")
    unknown = set(found.rating) - {GOOD, BAD, None}
    if unknown:
        required = f"{GOOD!r}, {BAD!r} or null"
        raise DataError(where=f"{path}, rating", required=required, received=repr(sorted(map(str, unknown))[0]))
    for arm, name in ((False, control), (True, treatment)):
        if not (found.treated == arm).any():
            raise DataError(where=f"{path}, arm", required=f"sessions of arm {name!r}", received="none")
