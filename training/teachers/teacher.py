"""What a teacher is: it reads a session's context, never its click, and answers with the user's likely question.

    generate(contexts) -> (position, answer) as they come          paper section 4.2, Multi-LLM Sample Generation

A context is built from the schema's columns, ``session_id``, ``user_id``, ``ts`` and ``region`` alone: ``clicked`` and
``candidates`` are not read from disk for it, so no teacher can put them in a prompt.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Annotated, Any, Protocol

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pydantic import Field

from rgalign.data.dataset import Dataset

Name = Annotated[str, Field(pattern=r"^[\w.\-]+$")]  # of a teacher; a file is called after it

VISIBLE = ("session_id", "user_id", "ts", "region")


@dataclass(frozen=True)
class Context:
    """What is known of one session before a word is typed.

    Args:
        row: the session's row within its split.
        session: column name -> raw value of ``VISIBLE`` and the schema's columns.
    """

    row: int
    session: Mapping[str, Any]

    @property
    def session_id(self) -> str:
        return str(self.session["session_id"])

    @property
    def ts(self) -> datetime:
        ts: datetime = self.session["ts"]
        return ts


@dataclass(frozen=True)
class Answer:
    """One query, or why there is none. Tokens are the server's own count, ``cost`` is in the currency of its prices."""

    text: str = ""
    failure: str = ""
    prompt_tokens: int = 0
    completion_tokens: int = 0
    seconds: float = 0.0
    attempts: int = 1
    cost: float = 0.0


class Teacher(Protocol):
    """A source of queries.

    Attributes:
        name: of the teacher in every file.
        identity: model and parameters; with :meth:`reads` it decides the answer, and so the cache's key.
        knows_titles: whether it may name catalogue titles that its prompt does not hold (the log teachers do).
    """

    name: str
    identity: Mapping[str, Any]
    knows_titles: bool

    def reads(self, context: Context) -> str:
        """All of the context that the answer depends on."""

    def generate(self, contexts: Iterable[Context]) -> Iterator[tuple[int, Answer]]:
        """Answers with their positions in ``contexts``, each once, in any order, as soon as they are known.

        A teacher whose answers are paid for takes a context when it asks about it: contexts that end early end the
        run, with the calls in flight still answered.

        Raises:
            TeacherError: no further answer is to be had; those given before it stand.
        """


def session_contexts(dataset: Dataset, split: str, rows: NDArray[np.int64]) -> list[Context]:
    """The contexts of some rows of a split."""
    columns = list(dict.fromkeys([*VISIBLE, *dataset.schema.columns]))
    sessions = dataset.table(split, columns).take(pa.array(rows)).to_pylist()
    return [Context(int(row), session) for row, session in zip(rows, sessions, strict=True)]
