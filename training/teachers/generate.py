"""Candidate generation: every teacher is asked about every session, and each answer is cleaned, judged and kept.

out/config.yaml  inputs.json
out/cache/<teacher>.jsonl    answers as they came, with tokens and cost; a later run asks only what is not there
out/candidates.parquet       session_id, row, teacher, query, kept, reason
out/metrics.json             counts, reasons, tokens, cost and leak check by teacher
out/done
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from rgalign.data.dataset import Dataset
from rgalign.data.sample import spaced_rows
from rgalign.errors import DataError, TeacherError
from rgalign.room_on_disk import room_on_disk
from rgalign.schema import FeatureSchema
from rgalign.training.latents import LatentStore
from rgalign.training.run_directory import RunDirectory
from rgalign.training.teachers.answer_cache import AnswerCache, Usage, answer_key
from rgalign.training.teachers.candidates_file import FILE, Candidate, write_candidates
from rgalign.training.teachers.generate_config import GenerateConfig, TeacherConfig, build_teacher
from rgalign.training.teachers.leak_check import VERBATIM, is_verbatim, leak_report, visible_text
from rgalign.training.teachers.openai_config import OpenAIConfig
from rgalign.training.teachers.step_run import open_step
from rgalign.training.teachers.teacher import Answer, Context, Teacher, session_contexts
from rgalign.training.teachers.validator import cleaned, fault

logger = logging.getLogger(__name__)


def generate(config: GenerateConfig, out: Path, *, restart: bool = False, progress: bool = True) -> dict[str, Any]:
    """Asks all teachers, goes on with an interrupted run, or returns a finished one's metrics.

    Args:
        restart: judge again and ask again what failed; answers that are in the cache stay.

    Raises:
        TeacherError: a teacher that cannot go on, or a spent budget. Run the same command again to go on.
        ProvenanceError: ``out`` holds a run of other inputs.
    """
    dataset = Dataset.open(config.dataset)
    run = RunDirectory(out)
    identity = {
        "format": 1,
        "config": config.identity(),
        "schema": dataset.schema.hash,
        "catalogue": dataset.catalog.hash,
        "train": dataset.fingerprint("train"),
        "split": dataset.fingerprint(config.split),
        "latents": None if config.latents is None else LatentStore.open(config.latents).provenance,
    }
    if not open_step(run, identity, config, restart=restart):
        return run.metrics()
    rows = chosen_rows(dataset, config)
    contexts = session_contexts(dataset, config.split, rows)
    titles = _clicked_titles(dataset, config.split, rows)
    usage = _paid_before(config, dataset, contexts, out)
    candidates: list[Candidate] = []
    reports: dict[str, dict[str, Any]] = {}
    for each in config.teachers:
        teacher = build_teacher(each, config, dataset)
        others = sum(used.cost for name, used in usage.items() if name != teacher.name)
        cache = _cache(config, teacher.name, out)
        budget = config.budget if _is_paid(each) else None
        asked = ask(teacher, contexts, cache, budget=budget, spent_by_others=others, progress=progress)
        usage[teacher.name] = asked.usage
        judged = judge(teacher, contexts, asked.answers, titles, dataset, config)
        candidates += judged
        reports[teacher.name] = _report(teacher, contexts, judged, asked, titles, dataset.schema)
        if reports[teacher.name]["leak"]["suspect"]:
            logger.warning("teacher %s names clicked titles that it cannot know: see metrics.json", teacher.name)
    if not any(each.kept for each in candidates):
        reasons = Counter(each.reason for each in candidates).most_common(3)
        received = "; ".join(f"{count} x {reason}" for reason, count in reasons)
        raise DataError(where=str(out), required="at least one usable answer", received=received)
    order = {context.session_id: place for place, context in enumerate(contexts)}
    candidates.sort(key=lambda each: order[each.session_id])  # stable: teachers stay in order of priority
    with room_on_disk(out):
        write_candidates(out / FILE, candidates)
    run.finish(
        {
            "sessions": len(contexts),
            "split": config.split,
            "priority": [each.name for each in config.teachers],
            "sessions_with_a_candidate": len({each.session_id for each in candidates if each.kept}),
            "cost": sum(used.cost for used in usage.values()),
            "teachers": reports,
        }
    )
    return run.metrics()


def chosen_rows(dataset: Dataset, config: GenerateConfig) -> NDArray[np.int64]:
    """Ascending rows of the split that are asked about.

    Raises:
        DataError: a split without sessions.
    """
    total = dataset.num_rows(config.split)
    if not total:
        raise DataError(where=str(dataset.path / config.split), required="at least one session", received="none")
    size = min(total, config.max_sessions or total)
    return spaced_rows(total, size) if config.order == "spaced" else np.arange(total - size, total)


def _cache(config: GenerateConfig, teacher: str, out: Path) -> AnswerCache:
    return AnswerCache((config.cache or out / "cache") / f"{teacher}.jsonl")


def _paid_before(config: GenerateConfig, dataset: Dataset, contexts: list[Context], out: Path) -> dict[str, Usage]:
    """What the answers that are there have cost, where there is a budget: known before any teacher is asked."""
    usage = {}
    for each in config.teachers:
        if config.budget is not None and _is_paid(each):
            questions = _questions(build_teacher(each, config, dataset), contexts)
            usage[each.name] = _cache(config, each.name, out).used(questions)
    return usage


def _is_paid(teacher: TeacherConfig) -> bool:
    return isinstance(teacher, OpenAIConfig) and teacher.prompt_price + teacher.completion_price > 0


def _questions(teacher: Teacher, contexts: list[Context]) -> list[str]:
    """The cache's key of each context; equal questions have equal keys."""
    return [answer_key(teacher.reads(context), teacher.identity) for context in contexts]


@dataclass(frozen=True)
class Asked:
    """Args: answers: of each context; fresh: distinct questions asked now; usage: of all attempts, former ones too."""

    answers: list[Answer]
    distinct: int
    fresh: int
    usage: Usage


def ask(
    teacher: Teacher,
    contexts: list[Context],
    cache: AnswerCache,
    *,
    budget: float | None = None,
    spent_by_others: float = 0.0,
    progress: bool,
) -> Asked:
    """Equal questions once; each answer is in the cache's file before the next is waited for.

    Args:
        budget: what all teachers' answers may cost. Once it is spent nothing more is asked; calls in flight are still
            waited for, and kept.

    Raises:
        TeacherError: from the teacher, or the budget is spent.
    """
    keys = _questions(teacher, contexts)
    wanted = dict(zip(keys, contexts, strict=True))
    missing = [key for key in wanted if key not in cache.answers]
    failures: dict[str, Answer] = {}
    left = len(missing)
    spent = spent_by_others + cache.used(wanted).cost

    def within_budget() -> Iterator[Context]:
        for key in missing:
            if budget is not None and spent >= budget:
                return
            yield wanted[key]

    with _progress(progress) as bar, cache.appending():
        task = bar.add_task(f"{teacher.name}", total=len(wanted), completed=len(wanted) - len(missing))
        for place, answer in teacher.generate(within_budget()) if missing else ():
            cache.add(missing[place], answer)
            if answer.failure:
                failures[missing[place]] = answer
            spent += answer.cost
            left -= 1
            bar.advance(task)
    if left:
        assert budget is not None, "a teacher answers every context that it takes"
        required = f"answers for at most {budget:g} (a larger budget goes on from here)"
        received = f"a cost of {spent:g} with {left} questions left"
        raise TeacherError(where=f"teacher {teacher.name!r}", required=required, received=received)
    answers = [cache.answers.get(key) or failures[key] for key in keys]
    return Asked(answers, len(wanted), len(missing), cache.used(wanted))


def judge(
    teacher: Teacher,
    contexts: list[Context],
    answers: list[Answer],
    titles: list[list[str]],
    dataset: Dataset,
    config: GenerateConfig,
) -> list[Candidate]:
    """One candidate a context, with the reason if it cannot be used."""
    judged: list[Candidate] = []
    for context, answer, clicked in zip(contexts, answers, titles, strict=True):
        text = cleaned(answer.text)
        if answer.failure:
            reason = f"no answer: {answer.failure}"
        elif not teacher.knows_titles and is_verbatim(text, read_text(teacher, context, dataset.schema), clicked):
            reason = VERBATIM
        else:
            reason = fault(text, context, dataset.schema, config.validator) or ""
        judged.append(Candidate(context.session_id, context.row, teacher.name, text, reason))
    return judged


def read_text(teacher: Teacher, context: Context, schema: FeatureSchema) -> str:
    """All text that the teacher may have seen of the session."""
    return f"{teacher.reads(context)}\n{visible_text(context, schema)}"


def _report(
    teacher: Teacher,
    contexts: list[Context],
    judged: list[Candidate],
    asked: Asked,
    titles: list[list[str]],
    schema: FeatureSchema,
) -> dict[str, Any]:
    answered = [place for place, answer in enumerate(asked.answers) if not answer.failure]
    leak = leak_report(
        [judged[place].query for place in answered],
        [read_text(teacher, contexts[place], schema) for place in answered],
        [titles[place] for place in answered],
        knows_titles=teacher.knows_titles,
    )
    return {
        "identity": dict(teacher.identity),
        "asked": len(contexts),
        "distinct_questions": asked.distinct,
        "asked_now": asked.fresh,
        "answered": len(answered),
        "kept": sum(each.kept for each in judged),
        "distinct_queries": len({each.query for each in judged if each.kept}),
        "reasons": dict(Counter(each.reason for each in judged if each.reason).most_common()),
        **asdict(asked.usage),
        "leak": leak.to_json(),
    }


def _clicked_titles(dataset: Dataset, split: str, rows: NDArray[np.int64]) -> list[list[str]]:
    """Titles of each session's clicks: for the leak check, after the teachers have answered."""
    names = dataset.catalog.names
    clicked: Iterable[list[str]] = dataset.table(split, ["clicked"]).column("clicked").take(pa.array(rows)).to_pylist()
    return [[names[intent] for intent in intents if intent in names] for intents in clicked]


def _progress(shown: bool) -> Progress:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    return Progress(*columns, TimeRemainingColumn(), disable=not shown)
