"""Answers on disk: kept whatever ends the run, a torn line cut off, a damaged one refused."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from rgalign.errors import DataError
from rgalign.training.teachers import answer_cache
from rgalign.training.teachers.answer_cache import AnswerCache, Usage, answer_key
from rgalign.training.teachers.teacher import Answer

ANSWER = Answer("Where is my “order”?", "", 30, 12, 0.5, 2, 0.001)


def test_answers_are_there_again(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "gpt.jsonl"
    with AnswerCache(path).appending() as cache:
        cache.add("a", ANSWER)
    with AnswerCache(path).appending() as cache:
        cache.add("b", Answer("Why?"))
    assert AnswerCache(path).answers == {"a": ANSWER, "b": Answer("Why?")}


def test_an_answer_is_in_the_file_before_the_next(tmp_path: Path) -> None:
    """A killed process runs no clean-up: only what the operating system has is left."""
    with AnswerCache(tmp_path / "gpt.jsonl").appending() as cache:
        cache.add("a", ANSWER)
        assert AnswerCache(tmp_path / "gpt.jsonl").answers == {"a": ANSWER}


def test_a_failure_is_paid_for_and_not_served(tmp_path: Path) -> None:
    path = tmp_path / "gpt.jsonl"
    empty = Answer("", "empty answer", 30, 2, cost=0.25)
    with AnswerCache(path).appending() as cache:
        cache.add("a", empty)
        cache.add("b", Answer(failure="no history yet"))  # took nothing: not in the file
        cache.add("a", ANSWER)
    read = AnswerCache(path)
    assert read.answers == {"a": ANSWER}
    assert read.used(["a", "a", "b"]) == Usage(60, 14, pytest.approx(0.251))
    assert len(path.read_text().splitlines()) == 2


def test_prompt_model_and_parameters_make_the_key() -> None:
    keys = {answer_key("p", {"model": "m", "t": 0}), answer_key("q", {"model": "m", "t": 0})}
    keys |= {answer_key("p", {"model": "n", "t": 0}), answer_key("p", {"model": "m", "t": 1})}
    assert len(keys) == 4
    assert answer_key("p", {"model": "m", "t": 0}) == answer_key("p", {"t": 0, "model": "m"})


def test_a_kill_in_the_middle_of_a_line_costs_that_line(tmp_path: Path) -> None:
    path = tmp_path / "gpt.jsonl"
    with AnswerCache(path).appending() as cache:
        cache.add("a", ANSWER)
        cache.add("b", ANSWER)
    path.write_bytes(path.read_bytes()[:-20])
    with AnswerCache(path).appending() as cache:
        assert set(cache.answers) == {"a"}
        cache.add("c", ANSWER)
    assert set(AnswerCache(path).answers) == {"a", "c"}


@pytest.mark.parametrize("line", ["nonsense", '{"key": "a"}', '["a"]'])
def test_a_damaged_line_is_named(tmp_path: Path, line: str) -> None:
    path = tmp_path / "gpt.jsonl"
    with AnswerCache(path).appending() as cache:
        cache.add("a", ANSWER)
    path.write_text(path.read_text() + line + "\n")
    with pytest.raises(DataError, match=r"gpt.jsonl, line 2: required an answer"):
        AnswerCache(path)


def test_a_full_disk_is_a_clear_error_and_earlier_answers_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "gpt.jsonl"
    with AnswerCache(path).appending() as cache:
        cache.add("a", ANSWER)

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(answer_cache.os, "fsync", full)
    with pytest.raises(DataError, match=r"room to write .*received .*No space left"):
        with AnswerCache(path).appending() as cache:
            cache.add("b", ANSWER)
    monkeypatch.undo()
    assert AnswerCache(path).answers["a"] == ANSWER


def test_other_errors_of_the_disk_pass(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match=r"Not a directory|File exists"):
        with AnswerCache(tmp_path / "file" / "gpt.jsonl").appending():
            pass
