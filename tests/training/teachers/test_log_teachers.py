"""The log teachers: what they answer, and that a session's own click, or a later one, never changes its query."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rgalign.data.dataset import Dataset
from rgalign.intents import IntentCatalog
from rgalign.training.teachers import neighbour_teacher
from rgalign.training.teachers.click_history import NONE, ClickHistory, last_known_intent
from rgalign.training.teachers.neighbour_teacher import NeighbourConfig, NeighbourTeacher, SessionValues
from rgalign.training.teachers.phrasing import question
from rgalign.training.teachers.teacher import session_contexts
from rgalign.training.teachers.transition_teacher import TransitionConfig, TransitionTeacher
from rgalign.training.teachers.validator import ValidatorConfig, fault

Rows = list[dict[str, Any]]
START = datetime(2026, 1, 1)
MAKERS: dict[str, Callable[[Dataset, str], Any]] = {
    "neighbour": lambda data, split: NeighbourTeacher(NeighbourConfig(kind="neighbour", neighbours=8), data, split),
    "transition": lambda data, split: TransitionTeacher(TransitionConfig(kind="transition"), data, split),
}


def predicted(name: str, dataset: Dataset, split: str = "train") -> list[int]:
    rows = np.arange(dataset.num_rows(split))
    answers: list[int] = MAKERS[name](dataset, split).predict(rows).tolist()
    return answers


@pytest.fixture
def small_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(neighbour_teacher, "STEP", 16)


@pytest.mark.parametrize("name", list(MAKERS))
@pytest.mark.usefixtures("small_steps")
def test_a_sessions_own_click_never_changes_its_query(
    name: str, tmp_path: Path, make_service: Callable[..., Dataset], make_sessions: Callable[..., Rows]
) -> None:
    rows, valid = make_sessions(80, 1, START), make_sessions(4, 2, datetime(2026, 2, 1))
    before = predicted(name, make_service(tmp_path / "data", rows, valid))
    assert len(set(before)) > 2
    changed_later = 0
    for place in range(0, 80, 7):
        other = deepcopy(rows)
        other[place]["clicked"] = ["i3", "i1"] if rows[place]["clicked"] != ["i3"] else ["i4"]
        after = predicted(name, make_service(tmp_path / str(place), other, valid))
        same_time = [row for row in range(80) if rows[row]["ts"] <= rows[place]["ts"]]
        assert [after[row] for row in same_time] == [before[row] for row in same_time]
        changed_later += after != before
    assert changed_later > 3  # the clicks are read, by later sessions


@pytest.mark.parametrize("name", list(MAKERS))
@pytest.mark.usefixtures("small_steps")
def test_an_answer_does_not_depend_on_what_else_is_asked(name: str, service: Dataset) -> None:
    teacher = MAKERS[name](service, "train")
    whole = teacher.predict(np.arange(600))
    some = np.array([599, 3, 301, 40, 41, 41])
    assert np.array_equal(teacher.predict(some), whole[some])


@pytest.mark.parametrize("name", list(MAKERS))
def test_they_beat_the_most_popular_intent(name: str, service: Dataset) -> None:
    for split in ("train", "valid"):
        clicked = service.table(split, ["clicked"]).column("clicked").to_pylist()
        truth = np.array([service.catalog.rows[each[0]] for each in clicked])
        popular = (truth == np.bincount(truth).argmax()).mean()
        assert (np.array(predicted(name, service, split)) == truth).mean() > popular + 0.1


@pytest.mark.parametrize("make", [NeighbourTeacher, TransitionTeacher])
def test_the_next_rank_is_another_intent_and_hits_less_often(make: Any, service: Dataset) -> None:
    clicked = service.table("train", ["clicked"]).column("clicked").to_pylist()
    truth = np.array([service.catalog.rows[each[0]] for each in clicked])
    kind = "neighbour" if make is NeighbourTeacher else "transition"
    config = NeighbourConfig if make is NeighbourTeacher else TransitionConfig
    ranks = [make(config(kind=kind, rank=rank), service, "train").predict(np.arange(600)) for rank in (1, 2, 99)]
    known = (ranks[0] != NONE) & (ranks[1] != NONE)
    assert known.mean() > 0.9
    assert (ranks[0] != ranks[1])[known].all()
    hits = [(truth == rank)[known].mean() for rank in ranks[:2]]
    assert hits[0] > hits[1] > 0.02
    assert (ranks[2] == NONE).all()


@pytest.mark.parametrize("name", list(MAKERS))
def test_validation_sessions_read_training_clicks_only(
    name: str, tmp_path: Path, make_service: Callable[..., Dataset], make_sessions: Callable[..., Rows]
) -> None:
    rows, valid = make_sessions(60, 1, START), make_sessions(12, 2, datetime(2026, 2, 1))
    before = predicted(name, make_service(tmp_path / "a", rows, valid), "valid")
    for each in valid:
        each["clicked"] = ["i3"]
    assert predicted(name, make_service(tmp_path / "b", rows, valid), "valid") == before


@pytest.mark.parametrize("name", list(MAKERS))
def test_without_an_earlier_click_there_is_no_answer(name: str, service: Dataset) -> None:
    contexts = session_contexts(service, "train", np.array([0, 1, 500]))
    answers = dict(MAKERS[name](service, "train").generate(contexts))
    assert answers[0].failure == answers[1].failure == "no history yet"  # both at the first moment
    assert answers[2].text


@pytest.mark.parametrize("name", list(MAKERS))
def test_a_log_without_clicks_is_no_error(
    name: str, tmp_path: Path, make_service: Callable[..., Dataset], make_sessions: Callable[..., Rows]
) -> None:
    rows = make_sessions(20, 1, START)
    for each in rows:
        each["clicked"] = ["not in the catalogue"] if each["page"] == "home" else []
    assert predicted(name, make_service(tmp_path / "data", rows, rows[:2])) == [NONE] * 20


def test_transition_counts_by_hand(
    tmp_path: Path, make_service: Callable[..., Dataset], make_sessions: Callable[..., Rows]
) -> None:
    rows = make_sessions(12, 1, START)
    for place, each in enumerate(rows):
        each.update(contact_intent=["i0"] if place % 2 else ["i1"], contact_age=[1.0], region="r", user_id=f"u{place}")
        each["clicked"] = ["i4"] if place % 2 else ["i2"]
    answers = predicted("transition", make_service(tmp_path / "data", rows, rows[:1]))
    assert answers[:2] == [NONE, NONE]
    assert answers[4:] == [2, 4] * 4  # after i1 comes i2, after i0 comes i4


def test_the_last_known_intent_is_the_newest_history_then_the_last_click(
    tmp_path: Path, make_service: Callable[..., Dataset], make_sessions: Callable[..., Rows]
) -> None:
    rows = make_sessions(6, 1, START)
    for place, each in enumerate(rows):
        each.update(contact_intent=[], contact_age=[], user_id="a" if place % 2 else "b", clicked=[f"i{place}"])
    rows[4].update(contact_intent=["i3", "i0"], contact_age=[1.0, 2.0])
    rows[5]["user_id"] = None
    dataset = make_service(tmp_path / "data", rows, rows[:1])
    known = last_known_intent(dataset, "train", ClickHistory.of(dataset, "train"))
    assert known.tolist() == [NONE, NONE, 0, 1, 3, NONE]


def test_similarity_by_hand(
    tmp_path: Path, make_service: Callable[..., Dataset], make_sessions: Callable[..., Rows]
) -> None:
    rows = make_sessions(3, 1, START)
    for each, page in zip(rows, ("home", "home", "wallet"), strict=True):
        each.update(page=page, phone=None, contact_intent=[], contact_age=[], region="r")
    rows[2].update(contact_intent=["i1", "i2"], contact_age=[1.0, 2.0])
    values = SessionValues.of(make_service(tmp_path / "data", rows, rows[:1]), "train")
    similar = values.similarity(np.array([0, 2]), 0, 3, known=2)
    # Users differ. Region is in both earlier sessions (idf 1), home too; wallet, i1 and i2 are new (idf 1 + log 3).
    new = 1 + np.log(3)
    itself = 1 + new + new + new + new / 4  # region, user, page, first contact, second contact with weight 1/2
    user = 1 + np.log(3 / 2)
    expected = [[(1 + 1 + user) / 3**0.5, 2 / 3**0.5, 1 / 4.25**0.5], [1 / 3**0.5, 1 / 3**0.5, itself / 4.25**0.5]]
    np.testing.assert_allclose(similar, expected, rtol=1e-6)


def test_phrasings_are_usable_and_hold_the_title(service: Dataset) -> None:
    context = session_contexts(service, "train", np.array([0]))[0]
    for row, title in enumerate(service.catalog.titles):
        text = question(service.catalog, row)
        assert title.rstrip("?") in text
        assert fault(text, context, service.schema, ValidatorConfig(min_words=8, max_words=20)) is None
        assert text == question(service.catalog, row)


@pytest.mark.parametrize("name", MAKERS)
def test_an_answer_is_another_s_once_what_it_depends_on_has_changed(
    name: str,
    make_service: Callable[..., Dataset],
    make_sessions: Callable[..., Rows],
    tmp_path: Path,
) -> None:
    """The identity is the cache's key: an answer that names a former title must not come back."""
    train, valid = make_sessions(40, 1, START), make_sessions(10, 2, START)
    moved = [{**row, "page": "home"} for row in valid]
    whole, other = (make_service(tmp_path / each, train, rows) for each, rows in (("a", valid), ("b", moved)))
    same = MAKERS[name](whole, "train").identity
    assert MAKERS[name](other, "train").identity == same
    assert MAKERS[name](other, "valid").identity != MAKERS[name](whole, "valid").identity
    catalog = other.catalog
    renamed = IntentCatalog(catalog.ids, ("Lost Order", *catalog.titles[1:]), catalog.descriptions)
    assert MAKERS[name](replace(other, catalog=renamed), "train").identity != same
