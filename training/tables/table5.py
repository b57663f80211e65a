"""Table 5, online metrics of A/B tests from exposure logs: CSAT, CTR@K and IHR of two arms.

    judge/<experiment>/out/judged.parquet    true intents from transcripts
    table5/out/                              table.json  table.md  forest.svg

The split of users is checked before anything else; a mismatch ends the conclusion, not the numbers.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rgalign.config import dump_config
from rgalign.data.dataset import Dataset
from rgalign.errors import DataError
from rgalign.files import read_json, sha256_file, write_atomic, write_json
from rgalign.metrics.online.agreement import cohens_kappa
from rgalign.metrics.online.arms import ArmComparison, ArmRatio
from rgalign.metrics.online.experiment import ExperimentResult, assigned, online_metrics, run_experiment
from rgalign.metrics.online.exposures import Exposures, read_exposures
from rgalign.metrics.significance import MIN_UNITS, Interval, cluster_codes
from rgalign.training.loop.loop import Announce
from rgalign.training.loop.step import OUT, OnStep, Step
from rgalign.training.tables.judge import FILE, Judgement, judge_intents, read_judged, read_labels, write_judged
from rgalign.training.tables.online_markdown import online_forest, online_markdown
from rgalign.training.tables.run_tables import config_name, require_tables, run_steps
from rgalign.training.tables.table5_config import ABTest, Table5Config
from rgalign.training.tables.table_step import FOREST, JSON, MARKDOWN, Table, table_name
from rgalign.training.teachers.generate_config import PACE

NUMBER = 5
UNVALIDATED = "no conclusion (judge not validated)"


def run_table5(
    config: Table5Config, out: Path, *, announce: Announce = lambda step, what: None, progress: bool = True
) -> Table:
    """Makes table 5, goes on with it, or returns a finished one: what ``out/table5/out/table.json`` holds.

    Raises:
        ProvenanceError: ``out`` holds something that is no tables' directory.
        DataError, TeacherError: from a log, a label or the judge's server. Answers are kept.
    """
    root = Path(out).resolve()
    require_tables(root)
    labels = None if config.labels is None else config.labels.resolve()
    tests = tuple(test.model_copy(update={"log": test.log.resolve()}) for test in config.experiments)
    changes = {"dataset": config.dataset.resolve(), "labels": labels, "experiments": tests}
    config = config.model_copy(update=changes)
    dump_config(config, root / config_name(NUMBER))
    run_steps(table5_steps(config, root, progress=progress), root, announce=announce)
    table: Table = read_json(root / table_name(NUMBER) / OUT / JSON)
    return table


def table5_steps(config: Table5Config, root: Path, *, progress: bool = True) -> Iterator[Step]:
    """A judge's step for each experiment, then the table."""
    if config.judge is not None:
        for test in config.experiments:
            yield judge_step(test, config, root, progress=progress)
    yield online_step(config, root)


def judge_step(test: ABTest, config: Table5Config, root: Path, *, progress: bool) -> Step:
    judge = config.judge
    assert judge is not None

    def run(out: Path, on_step: OnStep | None) -> Mapping[str, Any]:
        dataset = Dataset.open(config.dataset)
        exposures = read_exposures(test.log, test.control, test.treatment)
        labelled = frozenset(_labels(config, dataset))
        cache = root / "judge_cache" / f"{judge.server.name}.jsonl"
        found, summary = judge_intents(judge, exposures, dataset, cache, labelled=labelled, progress=progress)
        write_judged(out / FILE, found)
        return summary

    settings = judge.model_dump(mode="json", exclude={"budget", "min_kappa", "server"})
    settings["server"] = judge.server.model_dump(mode="json", exclude=set(PACE))
    return Step(
        name=judge_name(test),
        config=judge,
        settings={**settings, "arms": [test.control, test.treatment]},
        after=(),
        run=run,
        outcome=lambda out: sha256_file(out / FILE),
        files=lambda: _files(config, (test,)),
    )


def judge_name(test: ABTest) -> str:
    return f"judge/{test.name.replace(' ', '_')}"


def online_step(config: Table5Config, root: Path) -> Step:
    def run(out: Path, on_step: OnStep | None) -> Mapping[str, Any]:
        table = make_table5(config, root)
        write_json(out / JSON, table)
        write_atomic(out / MARKDOWN, online_markdown(table).encode())
        write_atomic(out / FOREST, online_forest(table).encode())
        return {"experiments": len(config.experiments)}

    settings = config.model_dump(mode="json", exclude={"dataset", "labels", "experiments", "judge"})
    settings["experiments"] = [test.model_dump(mode="json", exclude={"log"}) for test in config.experiments]
    settings["min_kappa"] = None if config.judge is None else config.judge.min_kappa
    return Step(
        name=table_name(NUMBER),
        config=config,
        settings=settings,
        after=() if config.judge is None else tuple(map(judge_name, config.experiments)),
        run=run,
        outcome=lambda out: None,
        files=lambda: _files(config, config.experiments),
    )


def _files(config: Table5Config, tests: tuple[ABTest, ...]) -> dict[str, Any]:
    """Hashes of the logs, the labels and the catalogue."""
    for test in tests:
        if not test.log.is_file():
            raise DataError(
                where=str(test.log), required="a log of exposures (parquet or JSONL)", received="no such file"
            )
    labels = None if config.labels is None or not config.labels.is_file() else sha256_file(config.labels)
    logs = {test.name: sha256_file(test.log) for test in tests}
    return {"catalogue": Dataset.open(config.dataset).catalog.hash, "labels": labels, "logs": logs}


def make_table5(config: Table5Config, root: Path) -> Table:
    """What table.json holds."""
    dataset = Dataset.open(config.dataset)
    labels = _labels(config, dataset)
    logs = {test.name: read_exposures(test.log, test.control, test.treatment) for test in config.experiments}
    judged: dict[str, list[Judgement]] = {}
    if config.judge is not None:
        judged = {test.name: read_judged(root / judge_name(test) / OUT / FILE) for test in config.experiments}
    agreement = _agreement(config, labels, logs, judged)
    return {
        "table": NUMBER,
        "title": "Online A/B tests",
        "level": config.level,
        "metrics": list(config.metric_names),
        "unclear": config.unclear,
        "guardrails": dict(config.guardrails),
        "experiments": [
            _experiment(test, config, logs[test.name], judged.get(test.name), agreement) for test in config.experiments
        ],
        "judge": None if config.judge is None else _judge(config, root, agreement),
    }


def _labels(config: Table5Config, dataset: Dataset) -> dict[str, str | None]:
    return {} if config.labels is None else read_labels(config.labels, frozenset(dataset.catalog.ids))


def _agreement(
    config: Table5Config,
    labels: Mapping[str, str | None],
    logs: Mapping[str, Exposures],
    judged: Mapping[str, list[Judgement]],
) -> dict[str, Any] | None:
    """Of the judge with people, over the labelled sessions of all experiments; None without labels.

    Raises:
        DataError: labels of which fewer than two are of judged sessions.
    """
    if config.judge is None or not labels:
        return None
    users: dict[str, str] = {}
    said: dict[str, str | None] = {}
    for name, found in judged.items():
        log = logs[name]
        of_session = dict(zip(log.session_ids, log.users.tolist(), strict=True))
        for each in found:
            if each.session_id in labels and each.status in ("intent", "none"):
                said[each.session_id] = each.intent
                users.setdefault(each.session_id, f"{name} {of_session[each.session_id]}")
    if len(said) < MIN_UNITS:
        required = f"labels of at least {MIN_UNITS} sessions that the judge answered"
        raise DataError(where=str(config.labels), required=required, received=str(len(said)))
    sessions = list(said)
    clusters = cluster_codes([users[session] for session in sessions])
    ours, theirs = ([side[session] for session in sessions] for side in (said, labels))
    found_ = cohens_kappa(ours, theirs, clusters, config.resampling)
    kappa = found_.kappa
    return {
        "labels": len(labels),
        "sessions": found_.sessions,
        "equal": found_.equal,
        "kappa": _interval(kappa),
        "required": config.judge.min_kappa,
        "validated": kappa.low >= config.judge.min_kappa,
    }


def _judge(config: Table5Config, root: Path, agreement: dict[str, Any] | None) -> dict[str, Any]:
    runs = {test.name: read_json(root / judge_name(test) / "metrics.json")["result"] for test in config.experiments}
    return {"agreement": agreement, "experiments": runs}


def _experiment(
    test: ABTest,
    config: Table5Config,
    log: Exposures,
    judged: list[Judgement] | None,
    agreement: dict[str, Any] | None,
) -> dict[str, Any]:
    exposures, crossed = assigned(log, config.crossover)
    intents = None
    if judged is not None:
        answered = (each for each in judged if each.sampled and each.status in ("intent", "none"))
        intents = {each.session_id: each.intent for each in answered}
    metrics = online_metrics(exposures, config.ks, intents, hits_at=config.hits_at, unclear=config.unclear)
    result = run_experiment(
        exposures,
        metrics,
        treatment_share=test.treatment_share,
        alpha=config.sample_ratio_alpha,
        level=config.level,
    )
    return {
        "name": test.name,
        "control": test.control,
        "treatment": test.treatment,
        "sessions": list(result.sessions),
        "crossed": crossed,
        "sample_ratio": {**asdict(result.ratio), "mismatch": result.ratio.mismatch},
        "metrics": {
            name: _metric(name, result, config, agreement) for name in config.metric_names if name in result.metrics
        },
        "undefined": result.undefined,
        "judged_share": None if intents is None else _judged_share(exposures, intents),
    }


def _metric(
    name: str, result: ExperimentResult, config: Table5Config, agreement: dict[str, Any] | None
) -> dict[str, Any]:
    found: ArmComparison = result.metrics[name]
    verdict = result.verdict(name)
    if name.startswith("ihr@") and agreement is not None and not agreement["validated"] and not result.ratio.mismatch:
        verdict = UNVALIDATED
    margin = config.guardrails.get(name)
    return {
        "control": _arm(found.control),
        "treatment": _arm(found.treatment),
        **_interval(found.difference, "difference"),
        "relative": None if found.relative is None else _interval(found.relative),
        "z": found.z,
        "p_value": found.p_value,
        "detectable": found.detectable,
        "verdict": verdict,
        "guardrail": None if margin is None else {"margin": margin, "verdict": result.guardrail(name, margin)},
    }


def _arm(arm: ArmRatio) -> dict[str, Any]:
    return {**_interval(arm.value), "users": arm.users, "total": arm.total}


def _interval(interval: Interval, name: str = "mean") -> dict[str, float]:
    return {name: interval.estimate, "low": interval.low, "high": interval.high}


def _judged_share(exposures: Exposures, intents: Mapping[str, Any]) -> list[float]:
    """Of control and treatment: sessions with a judgement / sessions. Unequal shares may come from the arm itself."""
    judged = [session in intents for session in exposures.session_ids]
    counts = {
        arm: [each for each, treated in zip(judged, exposures.treated, strict=True) if treated == arm]
        for arm in (False, True)
    }
    return [sum(each) / len(each) for each in counts.values()]
