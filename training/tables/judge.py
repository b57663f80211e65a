"""The judge at work: transcripts to true intents through an OpenAI-compatible server, each transcript asked once.

Answers are kept under the directory's ``judge_cache/``, shared by all its experiments, with tokens and cost; a run that
stops goes on with what is there. See judge_prompt.py for what is asked.
"""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import asdict, dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq

from rgalign.data.dataset import Dataset
from rgalign.errors import DataError
from rgalign.files import atomic_path
from rgalign.metrics.online.exposures import Exposures
from rgalign.training.tables.judge_prompt import JudgePrompt
from rgalign.training.tables.table5_config import JudgeConfig
from rgalign.training.teachers.answer_cache import AnswerCache
from rgalign.training.teachers.generate import ask
from rgalign.training.teachers.openai_teacher import OpenAITeacher
from rgalign.training.teachers.teacher import Answer, Context

FILE = "judged.parquet"
Status = Literal["intent", "none", "unreadable", "no answer"]


class IntentJudge(OpenAITeacher):
    """An OpenAI-compatible server that is asked about transcripts in the place of contexts."""

    knows_titles = True

    def __init__(self, config: JudgeConfig, dataset: Dataset) -> None:
        super().__init__(config.server, dataset.schema)
        self.where = f"judge {config.server.name!r} ({config.server.model} at {config.server.base_url})"
        self.prompt = JudgePrompt(dataset.catalog, config.max_listed, config.max_chars)

    def reads(self, context: Context) -> str:
        return json.dumps(self.prompt.messages(context.session["transcript"]), ensure_ascii=False)


@dataclass(frozen=True)
class Judgement:
    """One session's. Args: intent: None unless ``status`` is ``intent``; sampled: it counts for IHR."""

    session_id: str
    intent: str | None
    status: Status
    sampled: bool


def judge_intents(
    config: JudgeConfig,
    exposures: Exposures,
    dataset: Dataset,
    cache: Path,
    *,
    labelled: frozenset[str] = frozenset(),
    progress: bool = True,
) -> tuple[list[Judgement], dict[str, Any]]:
    """Judges the sessions that have a transcript, or a sample of them.

    Args:
        cache: JSONL of the server's answers.
        labelled: sessions with a human label, judged even if they are not in the sample.

    Returns:
        The judgements, and counts, tokens and cost.

    Raises:
        TeacherError: the server gives no further answer, or the budget is spent. Answers are kept.
        DataError: no session has a transcript.
    """
    spoken = {
        session: text
        for session, text in zip(exposures.session_ids, exposures.transcripts, strict=True)
        if text is not None
    }
    if not spoken:
        raise DataError(where="judge", required="sessions with a transcript", received="none")
    sampled = set(sorted(spoken, key=_draw)[: config.max_sessions])
    asked = [session for session in spoken if session in sampled or session in labelled]
    contexts = [Context(row, {"session_id": name, "transcript": spoken[name]}) for row, name in enumerate(asked)]
    judge = IntentJudge(config, dataset)
    answered = ask(judge, contexts, AnswerCache(cache), budget=config.budget, progress=progress)
    found = [
        _judgement(judge, context, answer, context.session_id in sampled, dataset)
        for context, answer in zip(contexts, answered.answers, strict=True)
    ]
    counts = Counter(each.status for each in found)
    return found, {
        "model": config.server.model,
        "transcripts": len(spoken),
        "asked": len(asked),
        "sampled": len(sampled),
        "distinct_transcripts": answered.distinct,
        "asked_now": answered.fresh,
        "status": dict(counts.most_common()),
        **asdict(answered.usage),
    }


def _judgement(judge: IntentJudge, context: Context, answer: Answer, sampled: bool, dataset: Dataset) -> Judgement:
    name = context.session_id
    if answer.failure:
        return Judgement(name, None, "no answer", sampled)
    row = judge.prompt.answer(context.session["transcript"], answer.text)
    if row is None:
        return Judgement(name, None, "unreadable", sampled)
    return Judgement(name, None if row < 0 else dataset.catalog.ids[row], "none" if row < 0 else "intent", sampled)


def _draw(session_id: str) -> bytes:
    return blake2b(session_id.encode(), digest_size=8).digest()


def write_judged(path: Path, judgements: list[Judgement]) -> None:
    columns = {name: [getattr(each, name) for each in judgements] for name in ("session_id", "intent", "status")}
    table = pa.table(
        {
            **{name: pa.array(values, pa.string()) for name, values in columns.items()},
            "sampled": pa.array([each.sampled for each in judgements]),
        }
    )
    with atomic_path(path) as temporary:
        pq.write_table(table, temporary)


def read_judged(path: Path) -> list[Judgement]:
    """What :func:`write_judged` wrote."""
    with pq.ParquetFile(path) as file:
        rows = file.read().to_pylist()
    return [Judgement(**row) for row in rows]


def read_labels(path: Path, catalog_ids: frozenset[str]) -> dict[str, str | None]:
    """session id -> true intent by people, None for none.

    Raises:
        DataError: no such file, a row without the two columns, a session twice, an intent outside the catalogue.
    """
    if not path.is_file():
        raise DataError(where=str(path), required="human labels (parquet or JSONL)", received="no such file")
    labels: dict[str, str | None] = {}
    for number, row in enumerate(_rows(path)):
        where = f"{path}, row {number}"
        if not isinstance(row, dict) or not isinstance(row.get("session_id"), str) or "intent" not in row:
            raise DataError(where=where, required="session_id and intent", received=str(row)[:80])
        if row["intent"] is not None and row["intent"] not in catalog_ids:
            raise DataError(where=where, required="an intent of the catalogue, or null", received=repr(row["intent"]))
        if row["session_id"] in labels:
            raise DataError(where=where, required="each session once", received=f"{row['session_id']!r} again")
        labels[row["session_id"]] = row["intent"]
    return labels


def _rows(path: Path) -> list[Any]:
    if path.suffix == ".parquet":
        with pq.ParquetFile(path) as file:
            rows: list[Any] = file.read().to_pylist()
        return rows
    try:
        return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except json.JSONDecodeError as error:
        raise DataError(where=str(path), required="a JSON object a line", received=str(error)) from error
