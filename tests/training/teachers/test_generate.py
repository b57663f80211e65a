"""Generation from configuration to candidates.parquet: caching, resuming, budgets, refusals, leaks."""

from __future__ import annotations

import errno
import json
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from rgalign.data.dataset import Dataset
from rgalign.errors import ConfigError, DataError, ProvenanceError, TeacherError
from rgalign.training.latents import LatentStore
from rgalign.training.teachers import candidates_file
from rgalign.training.teachers.candidates_file import read_kept
from rgalign.training.teachers.generate import generate
from rgalign.training.teachers.generate_config import GenerateConfig

QUESTION = "Where is the parcel that I ordered last week?"
LOG_ONLY: list[dict[str, Any]] = [{"kind": "neighbour"}, {"kind": "transition"}]


def config(service: Dataset, teachers: list[dict[str, Any]], **changes: Any) -> GenerateConfig:
    return GenerateConfig.model_validate({"dataset": service.path, "teachers": teachers, **changes})


def openai(url: str, **changes: Any) -> dict[str, Any]:
    quick = {"backoff_s": 0.0, "max_attempts": 2, "concurrency": 1}
    return {"kind": "openai", "name": "gpt", "base_url": url, "model": "m", "api_key_env": None, **quick, **changes}


def rows(out: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = pq.read_table(out / "candidates.parquet").to_pylist()
    return found


def test_one_candidate_a_session_and_teacher(service: Dataset, tmp_path: Path) -> None:
    metrics = generate(config(service, LOG_ONLY, max_sessions=50), tmp_path, progress=False)
    found = rows(tmp_path)
    ids = service.table("train", ["session_id"]).column("session_id").to_pylist()
    assert [each["teacher"] for each in found] == ["neighbour", "transition"] * 50
    assert all(ids[each["row"]] == each["session_id"] for each in found)
    assert (found[0]["row"], found[-1]["row"]) == (0, 599)  # evenly spaced
    refused = [each for each in found if not each["kept"]]
    assert {each["reason"] for each in refused} == {"no answer: no history yet"}
    assert metrics["priority"] == ["neighbour", "transition"]
    assert metrics["teachers"]["neighbour"]["kept"] == len([each for each in found if each["kept"]]) - 49
    assert len(read_kept(tmp_path)) == len(found) - len(refused)


def test_a_finished_run_is_returned_and_another_refused(service: Dataset, tmp_path: Path) -> None:
    first = generate(config(service, LOG_ONLY, max_sessions=20), tmp_path, progress=False)
    stamp = (tmp_path / "candidates.parquet").stat().st_mtime_ns
    assert generate(config(service, LOG_ONLY, max_sessions=20), tmp_path, progress=False) == first
    assert (tmp_path / "candidates.parquet").stat().st_mtime_ns == stamp
    with pytest.raises(ProvenanceError, match="max_sessions 20"):
        generate(config(service, LOG_ONLY, max_sessions=21), tmp_path, progress=False)


def test_the_latest_sessions_and_validation(service: Dataset, tmp_path: Path) -> None:
    latest = config(service, LOG_ONLY, max_sessions=5, order="latest", split="valid")
    generate(latest, tmp_path, progress=False)
    assert sorted({each["row"] for each in rows(tmp_path)}) == list(range(35, 40))


def test_equal_prompts_are_asked_once_and_a_spent_quota_goes_on_later(
    serve: Any, replies: SimpleNamespace, service: Dataset, tmp_path: Path
) -> None:
    left = 7

    def quota(number: int, body: dict[str, Any]) -> Any:
        if number >= left:
            return replies.refused(429, "quota", code="insufficient_quota")
        return replies.spoken(f"Where is the parcel number {'abcdefghijklmnopqrstuvwxyz'[number % 26]} of mine?")

    with serve(quota) as server:
        settings = config(service, [openai(server.url)], max_sessions=60)
        with pytest.raises(TeacherError, match="quota left"):
            generate(settings, tmp_path, progress=False)
        assert len((tmp_path / "cache" / "gpt.jsonl").read_text().splitlines()) == 7
        assert not (tmp_path / "candidates.parquet").exists()
        left = 10**6
        metrics = generate(settings, tmp_path, progress=False)
        prompts = Counter(json.dumps(body["messages"]) for _, body in server.requests)
    distinct = metrics["teachers"]["gpt"]["distinct_questions"]
    assert 10 < distinct == len(prompts) < 60
    assert sorted(prompts.values())[-2:] == [1, 2]  # only the one that was refused was asked again
    assert metrics["teachers"]["gpt"]["asked_now"] == distinct - 7
    assert metrics["sessions_with_a_candidate"] == 60
    assert metrics["teachers"]["gpt"]["prompt_tokens"] == 30 * distinct  # what was paid for


def test_a_budget_stops_the_run_with_what_is_there_kept(
    serve: Any, replies: SimpleNamespace, service: Dataset, tmp_path: Path
) -> None:
    with serve(lambda number, body: replies.spoken(QUESTION)) as server:
        priced = [openai(server.url, prompt_price=1e6)]  # 30 a call
        with pytest.raises(TeacherError, match="at most 100 .*; received a cost of 120"):
            generate(config(service, priced, budget=100.0, max_sessions=60), tmp_path, progress=False)
        assert len(server.requests) <= 5
        kept = len((tmp_path / "cache" / "gpt.jsonl").read_text().splitlines())
        assert kept == 4
        with pytest.raises(TeacherError, match="received a cost of 120"):  # what is cached has been paid for
            generate(config(service, priced, budget=110.0, max_sessions=60), tmp_path, progress=False)
        metrics = generate(config(service, priced, budget=1e6, max_sessions=60), tmp_path, progress=False)
        distinct = metrics["teachers"]["gpt"]["distinct_questions"]
        # Other answers in the same cache do not lift the limit; another teacher's cost counts towards it.
        shared = {"max_sessions": 60, "cache": tmp_path / "cache"}
        warmer = [openai(server.url, prompt_price=1e6, temperature=1.0)]
        with pytest.raises(TeacherError, match="'gpt'.*at most 60 .*received a cost of 60 with"):
            generate(config(service, warmer, budget=60.0, **shared), tmp_path / "warmer", progress=False)
        both = [*priced, openai(server.url, name="other", prompt_price=1e6)]
        with pytest.raises(
            TeacherError, match=f"'other'.*at most {30 * distinct} .*received a cost of {30 * distinct}"
        ):
            generate(config(service, both, budget=30.0 * distinct, **shared), tmp_path / "both", progress=False)
    assert metrics["cost"] == pytest.approx(30 * distinct)


def test_calls_in_flight_when_the_budget_is_spent_are_kept(
    serve: Any, replies: SimpleNamespace, service: Dataset, tmp_path: Path
) -> None:
    with serve(lambda number, body: replies.spoken(QUESTION, delay_s=0.02 * (number % 5))) as server:
        priced = [openai(server.url, prompt_price=1e6, concurrency=5), {"kind": "transition"}]
        with pytest.raises(TeacherError, match="at most 100 "):
            generate(config(service, priced, budget=100.0, max_sessions=60), tmp_path, progress=False)
        kept = len((tmp_path / "cache" / "gpt.jsonl").read_text().splitlines())
        assert 4 <= kept == len(server.requests) <= 8
        # Answers that are there count before any teacher is asked; a log teacher costs nothing.
        both = [priced[1], openai(server.url, name="first", prompt_price=1e6), priced[0]]
        with pytest.raises(TeacherError, match=f"'first'.*received a cost of {30 * kept} "):
            generate(config(service, both, budget=30.0 * kept, max_sessions=60), tmp_path, restart=True, progress=False)
        assert len(server.requests) == kept


def test_failures_are_reported_and_asked_again_on_restart(
    serve: Any, replies: SimpleNamespace, service: Dataset, tmp_path: Path
) -> None:
    with serve(lambda n, body: replies.spoken("" if n % 2 else QUESTION)) as server:
        settings = config(service, [openai(server.url, prompt_price=1e6)], max_sessions=12)
        metrics = generate(settings, tmp_path, progress=False)
        reasons = metrics["teachers"]["gpt"]["reasons"]
        assert reasons.keys() == {"no answer: empty answer (finish_reason stop)"}
        asked = len(server.requests)
        assert metrics["cost"] == pytest.approx(30 * asked)  # an empty answer is paid for
        again = generate(settings, tmp_path, restart=True, progress=False)
        assert asked < len(server.requests) < 2 * asked  # only what had failed
        assert again["cost"] == pytest.approx(30 * len(server.requests))
        assert again["teachers"]["gpt"]["prompt_tokens"] == 30 * len(server.requests)
    assert sum(again["teachers"]["gpt"]["reasons"].values()) < sum(reasons.values())


def test_a_teacher_that_says_the_label_is_reported_and_not_used(
    service: Dataset, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    table = service.table("train", ["session_id", "clicked"]).to_pylist()
    names = service.catalog.names
    lines = [{"session_id": each["session_id"], "query": names[each["clicked"][0]]} for each in table]
    (tmp_path / "oracle.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    oracle = {"kind": "replay", "name": "oracle", "path": tmp_path / "oracle.jsonl"}
    short = {"validator": {"min_words": 1, "language": "any"}, "max_sessions": 100}
    metrics = generate(config(service, [oracle, *LOG_ONLY], **short), tmp_path / "out", progress=False)
    leak = metrics["teachers"]["oracle"]["leak"]
    assert leak["suspect"]
    assert leak["verbatim"] > 40
    assert "oracle names clicked titles that it cannot know" in caplog.text
    assert not metrics["teachers"]["neighbour"]["leak"]["suspect"]
    used = [each for each in rows(tmp_path / "out") if each["teacher"] == "oracle" and each["kept"]]
    assert used
    for each in used:  # only titles that the session's own history shows
        contacts = service.table("train", ["contact_intent"]).column(0)[each["row"]].as_py()
        assert each["query"] in [names[intent].rstrip("?") for intent in contacts] + [names[i] for i in contacts]


def test_nothing_usable_is_an_error_that_says_why(service: Dataset, tmp_path: Path) -> None:
    strict = config(service, LOG_ONLY, max_sessions=30, validator={"min_words": 200, "max_words": 300})
    with pytest.raises(DataError, match=r"at least one usable answer; received .*fewer than 200 words"):
        generate(strict, tmp_path, progress=False)
    assert not (tmp_path / "done").exists()


def test_a_full_disk_at_the_end_is_a_clear_error(
    service: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*arguments: Any, **options: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(candidates_file.pq, "write_table", full)
    with pytest.raises(DataError, match="room to write"):
        generate(config(service, LOG_ONLY, max_sessions=10), tmp_path, progress=False)
    monkeypatch.undo()
    assert not (tmp_path / "candidates.parquet").exists()
    assert generate(config(service, LOG_ONLY, max_sessions=10), tmp_path, progress=False)["sessions"] == 10


def test_an_unfinished_run_is_not_read(service: Dataset, tmp_path: Path) -> None:
    generate(config(service, LOG_ONLY, max_sessions=10), tmp_path, progress=False)
    (tmp_path / "done").unlink()
    with pytest.raises(DataError, match=r"finished run of `rgalign train generate`; received an unfinished run"):
        read_kept(tmp_path)
    with pytest.raises(DataError, match="no candidates.parquet"):
        read_kept(tmp_path / "nothing")


def test_the_reasoner_answers_beside_the_log(service: Dataset, tmp_path: Path, tiny_model: Path) -> None:
    LatentStore.create(tmp_path / "latents", {"dim": 4})
    (tmp_path / "latents" / "embed.yaml").write_text(f"model: {tiny_model}\nmax_tokens: 2048\n")
    reasoner = {"kind": "reasoner", "max_new_tokens": 3}
    loose = {"validator": {"min_words": 1, "language": "any"}, "latents": tmp_path / "latents", "max_sessions": 8}
    metrics = generate(config(service, [LOG_ONLY[1], reasoner], **loose), tmp_path / "out", progress=False)
    assert metrics["teachers"]["reasoner"]["asked"] == 8
    assert metrics["teachers"]["reasoner"]["completion_tokens"] > 0


def test_configurations_that_cannot_be(service: Dataset, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="different names, got 'neighbour' twice"):
        config(service, [LOG_ONLY[0], LOG_ONLY[0]])
    with pytest.raises(ValueError, match="kind reasoner needs latents"):
        config(service, [{"kind": "reasoner"}])
    with pytest.raises(ValueError, match="should match pattern"):
        config(service, [{"kind": "neighbour", "name": "../up"}])
    unknown = config(service, [openai("http://localhost", template="none such")])
    with pytest.raises(ConfigError, match="template: required one of paper, prefix_cached"):
        generate(unknown, tmp_path, progress=False)
    assert np.all([each.kind for each in GenerateConfig(dataset=service.path, latents=tmp_path).teachers])
