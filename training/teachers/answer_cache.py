"""AnswerCache: what teachers answered, one JSON line an answer, appended as they come.

    {"key": sha256 of (prompt, model, parameters), "text": ..., "failure": ..., "prompt_tokens": ...,
     "completion_tokens": ..., "seconds": ..., "attempts": ..., "cost": ..., "time": seconds since 1970}

It is the log of tokens and cost too, failures among them: those are paid for, but not served, so a later run asks
again. A run killed in the middle of a line loses that line: it is cut off when the file is opened.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from rgalign.errors import DataError
from rgalign.files import sha256_json
from rgalign.room_on_disk import room_on_disk
from rgalign.training.teachers.teacher import Answer

SYNC_ANSWERS = 64
_FIELDS = tuple(each.name for each in fields(Answer))


@dataclass(frozen=True)
class Usage:
    """What answers took. Args: cost: in the currency of the configured prices."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    cost: float = 0.0

    def __add__(self, other: Usage | Answer) -> Usage:
        return Usage(
            self.prompt_tokens + other.prompt_tokens,
            self.completion_tokens + other.completion_tokens,
            self.cost + other.cost,
        )


def answer_key(reads: str, identity: Mapping[str, Any]) -> str:
    return sha256_json([reads, dict(identity)])


class AnswerCache:
    """One teacher's answers on disk and in memory.

    Raises:
        DataError: a complete line that is no answer, or a disk that is full (what was written before stays).
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.answers: dict[str, Answer] = {}
        self._usage: dict[str, Usage] = {}  # of every key ever asked, over all attempts
        self._unsynced = 0
        if path.is_file():
            self._read()

    def _read(self) -> None:
        data = self.path.read_bytes()
        whole = data.rfind(b"\n") + 1
        for number, line in enumerate(data[:whole].splitlines(), start=1):
            try:
                values = {"failure": "", **json.loads(line)}  # older files have no failures
                self._keep(values["key"], Answer(**{name: values[name] for name in _FIELDS}))
            except (ValueError, KeyError, TypeError) as error:
                received = f"{type(error).__name__} {error}"
                raise DataError(where=f"{self.path}, line {number}", required="an answer", received=received) from error
        if whole < len(data):
            os.truncate(self.path, whole)

    @contextmanager
    def appending(self) -> Iterator[AnswerCache]:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with room_on_disk(self.path), open(self.path, "ab") as self._file:
            try:
                yield self
            finally:
                self._sync()

    def add(self, key: str, answer: Answer) -> None:
        """The line is the operating system's before this returns, so a killed process has lost nothing.

        A failure that took no tokens is not written: there is nothing to remember.
        """
        if answer.failure and not (answer.prompt_tokens or answer.completion_tokens):
            return
        line = json.dumps({"key": key, **asdict(answer), "time": round(time.time(), 3)}, ensure_ascii=False)
        self._file.write(line.encode() + b"\n")
        self._file.flush()
        self._keep(key, answer)
        self._unsynced += 1
        if self._unsynced == SYNC_ANSWERS:
            self._sync()

    def _keep(self, key: str, answer: Answer) -> None:
        self._usage[key] = self._usage.get(key, Usage()) + answer
        if not answer.failure:
            self.answers[key] = answer

    def used(self, keys: Iterable[str]) -> Usage:
        """What asking about ``keys`` has taken so far, each counted once."""
        return sum((self._usage[key] for key in dict.fromkeys(keys) if key in self._usage), Usage())

    def _sync(self) -> None:
        self._file.flush()
        os.fsync(self._file.fileno())
        self._unsynced = 0
