"""Evaluation: scores of several rankers on the test sessions -> report.json, .html and .md, per-session metrics.

    out/report.json, report.html, report.md     out/sessions/<model>.parquet   (session_id, seed, metrics, first_rank)

A model is trained with several seeds; each session's metric is averaged over them, then sessions (or users) are
resampled. Every model is compared with one baseline on the same sessions and the same draws.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from rgalign.config import Config
from rgalign.data.dataset import Dataset
from rgalign.errors import ConfigError, DataError, ProvenanceError
from rgalign.files import atomic_path, write_atomic, write_json
from rgalign.metrics.ceiling import true_scores
from rgalign.metrics.ranking import GaucWeight, SessionMetrics, session_metrics
from rgalign.metrics.significance import Method, Resampling
from rgalign.training.click_confidence import noise_auc
from rgalign.training.comparison import ModelTables, RunMetrics, ceiling_shares, compare, compare_slices, for_plots
from rgalign.training.evaluation_split import SPLIT, EvaluationSplit, Labels, has_several
from rgalign.training.examples import example_sessions
from rgalign.training.reliability import reliability_curves
from rgalign.training.report import report_page
from rgalign.training.report_markdown import report_markdown
from rgalign.training.scores import RunScores, SplitScores

Ints = NDArray[np.int64]
Rows = NDArray[np.integer[Any]]


class EvaluationConfig(Config):
    """How to evaluate.

    Args:
        primary: the metric that slices, seeds and curves are shown in.
        labels: clicked, or the simulator's annotated intents; auto: annotated where there are any.
        clusters: what is resampled: users (their sessions are not independent) or single sessions.
        slice_columns: columns to slice by; None: every one with at most 12 values.
    """

    ks: tuple[int, ...] = (1, 3, 5)
    primary: str = "ndcg@3"
    gauc_weight: GaucWeight = "impressions"
    labels: Labels = "auto"
    clusters: Literal["user", "session"] = "user"
    resamples: int = 10_000
    level: float = 0.95
    method: Method = "percentile"
    seed: int = 0
    slice_columns: tuple[str, ...] | None = None
    num_examples: int = 3
    num_shown: int = 5

    @property
    def resampling(self) -> Resampling:
        return Resampling(self.resamples, self.seed, self.level, self.method)


def evaluate(
    runs: Sequence[RunScores],
    dataset: Dataset,
    out_dir: Path,
    baseline: str,
    config: EvaluationConfig = EvaluationConfig(),  # noqa: B008 frozen
) -> dict[str, Any]:
    """Evaluates ``runs`` and writes the report; returns what ``report.json`` holds.

    Raises:
        ConfigError: no such baseline, an unusable or repeated name.
        ProvenanceError: scores of another dataset or catalogue.
        DataError: runs of different sessions, NaN scores, no annotation where one is asked for.
    """
    out_dir = Path(out_dir)
    check_runs(runs, dataset, baseline)
    first = runs[0].test
    split = EvaluationSplit(dataset, first.session_ids)
    truth = split.truth()
    annotated = config.labels == "annotated" or (config.labels == "auto" and truth is not None)
    if annotated and truth is None:
        raise DataError(where=str(dataset.path), required="truth/test for annotated labels", received="none")
    relevant: Rows = truth.annotated if annotated and truth is not None else first.clicked
    clusters = split.users() if config.clusters == "user" else None

    metrics = {(run.model, run.seed): _metrics(run.test, relevant, config) for run in runs}
    tables = ModelTables.of(metrics, baseline, config.gauc_weight, clusters, config.resampling)
    _write_sessions(out_dir / "sessions", first.session_ids, metrics)
    any_metrics = next(iter(metrics.values()))
    ceiling = None
    if truth is not None:
        best = true_scores(truth.intents, truth.probabilities, truth.rest_mass, len(dataset.catalog))
        ceiling = session_metrics(best, relevant, first.candidates, ks=config.ks)
    report = {
        "dataset": {
            "name": dataset.schema.name,
            "path": str(dataset.path),
            "fingerprint": dataset.fingerprint(SPLIT),
            "sessions": len(first),
            "users": None if clusters is None else int(clusters.max() + 1),
            "intents": len(dataset.catalog),
            "candidates": None if first.candidates is None else float(np.median(any_metrics.impressions)),
            "labels": "annotated" if annotated else "clicked",
            "multi_relevant": has_several(relevant),
        },
        "config": config.model_dump(mode="json"),
        "baseline": baseline,
        "metrics": list(any_metrics.values),
        "skipped": {name: any_metrics.skipped(name) for name in any_metrics.values},
        "models": compare(tables, metrics, config.gauc_weight),
        "slices": compare_slices(tables, split.slices(relevant, config.slice_columns), config.primary, ceiling),
        "ceiling": None if ceiling is None else ceiling_shares(tables, ceiling, config.ks),
        "noise_auc": noise_aucs(runs, dataset) if truth is not None else {},
        "curves": learning_curves(runs),
        "reliability": reliability_curves(runs, relevant, clusters, for_plots(config.resampling)),
        "examples": example_sessions(
            runs, split, relevant, count=config.num_examples, num_shown=config.num_shown, seed=config.seed
        ),
    }
    report = {key: _without_nan(value) for key, value in report.items()}
    write_json(out_dir / "report.json", report)
    write_atomic(out_dir / "report.html", report_page(report).encode())
    write_atomic(out_dir / "report.md", report_markdown(report).encode())
    return report


def check_runs(runs: Sequence[RunScores], dataset: Dataset, baseline: str) -> None:
    """Names are usable, and all runs scored the same sessions of this dataset against the same candidates."""
    names = sorted({run.model for run in runs})
    if baseline not in names:
        raise ConfigError(where="baseline", required=f"one of {', '.join(names) or 'no runs'}", received=repr(baseline))
    seen = set()
    for run in runs:
        where = f"run {run.model!r}, seed {run.seed}"
        if not re.fullmatch(r"\w[\w.+ -]*", run.model):
            required = "a name of letters, digits, space, _ . + -"
            raise ConfigError(where=where, required=required, received=repr(run.model))
        if (run.model, run.seed) in seen:
            raise ConfigError(where=where, required="each model and seed once", received="a second one")
        seen.add((run.model, run.seed))
        _check_scores(where, run.test, runs[0].test, dataset)


def _check_scores(where: str, scores: SplitScores, first: SplitScores, dataset: Dataset) -> None:
    size = len(dataset.catalog)
    if scores.total.shape[1] != size:
        raise ProvenanceError(where=where, required=f"scores of {size} intents", received=str(scores.total.shape[1]))
    for key, expected in (("catalog", dataset.catalog.hash), ("dataset", dataset.fingerprint(SPLIT))):
        if scores.provenance.get(key, expected) != expected:
            required = f"scores of this {key} ({expected[:12]})"
            raise ProvenanceError(where=where, required=required, received=scores.provenance[key][:12])
    if scores.session_ids != first.session_ids:
        raise DataError(where=where, required="the sessions of the first run, in its order", received="others")
    if not _equal(scores.candidates, first.candidates) or not _equal(scores.clicked, first.clicked):
        raise DataError(where=where, required="the candidates and clicks of the first run", received="others")


def _equal(a: Rows | None, b: Rows | None) -> bool:
    return a is b or (a is not None and b is not None and np.array_equal(a, b))


def _metrics(scores: SplitScores, relevant: Rows, config: EvaluationConfig) -> SessionMetrics:
    metrics = session_metrics(scores.total, relevant, scores.candidates, ks=config.ks)
    if config.primary not in metrics.values:
        raise ConfigError(where="primary", required=f"one of {', '.join(metrics.values)}", received=config.primary)
    return metrics


def learning_curves(runs: Sequence[RunScores]) -> list[dict[str, Any]]:
    """Each run's ``history.jsonl``, one record an epoch; runs without one are left out."""
    curves = []
    for run in runs:
        path = None if run.run_dir is None else run.run_dir / "history.jsonl"
        if path is not None and path.is_file():
            lines = path.read_text(encoding="utf-8").splitlines()
            epochs = [_flat(json.loads(line)) for line in lines if line.strip()]
            curves.append({"model": run.model, "seed": run.seed, "epochs": epochs})
    return curves


def noise_aucs(runs: Sequence[RunScores], dataset: Dataset) -> dict[str, list[float]]:
    """Of every model with confidence weights, one value a seed: how well they find the simulator's noise clicks."""
    found: dict[str, list[float]] = {}
    for run in runs:
        auc = None if run.run_dir is None else noise_auc(run.run_dir, dataset)
        if auc is not None:
            found.setdefault(run.model, []).append(auc)
    return found


def _flat(record: dict[str, Any], prefix: str = "") -> dict[str, float]:
    """The numbers of a nested record, ``{"valid": {"ndcg@3": 0.5}}`` as ``{"valid/ndcg@3": 0.5}``."""
    found: dict[str, float] = {}
    for key, value in record.items():
        if isinstance(value, dict):
            found |= _flat(value, f"{prefix}{key}/")
        elif isinstance(value, int | float) and not isinstance(value, bool):
            found[prefix + key] = value
    return found


def _write_sessions(directory: Path, session_ids: Sequence[str], metrics: RunMetrics) -> None:
    """One file a model: a row for each seed and session."""
    for model in dict.fromkeys(name for name, _ in metrics):
        tables = []
        for (name, seed), found in metrics.items():
            if name == model:
                columns = {"session_id": pa.array(session_ids, pa.string()), "seed": np.full(len(session_ids), seed)}
                tables.append(pa.table({**columns, **found.values, "first_rank": found.first_rank}))
        with atomic_path(directory / f"{model}.parquet") as temporary:
            pq.write_table(pa.concat_tables(tables), temporary)


def _without_nan(value: Any) -> Any:
    """JSON has no NaN: null."""
    if isinstance(value, dict):
        return {key: _without_nan(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_without_nan(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
