"""A row's rankers on the test sessions: one file of per-session metrics, which tables and readers share.

    out/sessions.parquet    session_id, ranker_seed, alignment_seed (-1: nothing aligned), impressions, positives,
                            first_rank, and every metric

``frozen`` rows answer what an aligned reasoner does to a ranker that never saw it (the paper's rows without stage 3).
Everywhere else such a ranker refuses these latent queries; here its record of what it was trained on is replaced, in
memory, by the step that knows what it does.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray

from rgalign.data.dataset import SPLITS, Dataset
from rgalign.errors import ConfigError, DataError, ProvenanceError
from rgalign.files import atomic_path, sha256_file
from rgalign.metrics.ranking import SessionMetrics, session_metrics
from rgalign.training.evaluate import EvaluationConfig
from rgalign.training.evaluation_split import EvaluationSplit
from rgalign.training.experiment import run_config
from rgalign.training.latents import LatentStore
from rgalign.training.loop.outside_files import dataset_hashes
from rgalign.training.loop.ranker_steps import seed_run
from rgalign.training.loop.step import OUT, OnStep, Step
from rgalign.training.ranker_files import LoadedRanker, load_ranker
from rgalign.training.ranker_scores import score_split
from rgalign.training.scores import SplitScores
from rgalign.training.sessions import evenly_spaced
from rgalign.training.stage1_config import Stage1Config
from rgalign.training.stage1_inputs import STATISTICS_LATENTS
from rgalign.training.tables.row import Row, RowRuns
from rgalign.training.tables.tables_config import TablesConfig
from rgalign.training.used_sessions import used_rows

FILE = "sessions.parquet"
UNALIGNED = -1

RunKey = tuple[int, int | None]  # ranker seed, alignment seed
Rows = NDArray[np.integer[Any]]


@dataclass(frozen=True)
class MeasuredRow:
    """Args: session_ids: [S]; runs: of each ranker seed and alignment seed."""

    session_ids: tuple[str, ...]
    runs: dict[RunKey, SessionMetrics]


def measure_name(table: int, row: str) -> str:
    """Each table has its own, for its own alignment seeds."""
    return f"measure/table{table}/{row}"


def measure_step(table: int, row: Row, config: TablesConfig, root: Path) -> Step:
    """Args: row: has runs."""

    def run(out: Path, on_step: OnStep | None) -> Mapping[str, Any]:
        measured = measure(row, config, root)
        write_measured(out / FILE, measured)
        return {"sessions": len(measured.session_ids), "runs": len(measured.runs)}

    runs = [{"rankers": each.rankers, "latents": each.latents, "scored": each.scored} for each in row.runs]
    settings = {
        "runs": [{**values, "seed": each.alignment_seed} for values, each in zip(runs, row.runs, strict=True)],
        "seeds": list(config.seeds),
        "ks": list(config.evaluation.ks),
        "labels": config.evaluation.labels,
    }
    return Step(
        name=measure_name(table, row.name),
        config=config.evaluation,
        settings=settings,
        after=row.steps,
        run=run,
        outcome=lambda out: sha256_file(out / FILE),
        files=lambda: dataset_hashes(config.dataset, SPLITS),
    )


def measure(row: Row, config: TablesConfig, root: Path) -> MeasuredRow:
    """Scores every ranker of the row on the test sessions."""
    dataset = Dataset.open(config.dataset)
    runs: dict[RunKey, SessionMetrics] = {}
    session_ids: tuple[str, ...] = ()
    for each in row.runs:
        for seed in config.seeds:
            scores = score_row(each, seed_run(root / each.rankers / OUT, seed), dataset, root)
            session_ids = scores.session_ids
            runs[seed, each.alignment_seed] = session_metrics(
                scores.total,
                relevant_rows(dataset, scores, config.evaluation),
                scores.candidates,
                ks=config.evaluation.ks,
            )
    return MeasuredRow(session_ids, runs)


def score_row(runs: RowRuns, run: Path, dataset: Dataset, root: Path) -> SplitScores:
    """The test scores of one ranker as the row says."""
    loaded = load_ranker(run)
    if runs.latents is None:
        latents = run_config(run).latents
        return score_split(loaded, dataset, "test", None if latents is None else LatentStore.open(latents))
    store = LatentStore.open(root / runs.latents / OUT)
    if runs.scored == "own":
        return score_split(loaded, dataset, "test", store)
    anew = run_config(run) if runs.scored == "restandardised" else None
    return score_split(transplanted(loaded, store, dataset, anew=anew), dataset, "test", store)


def transplanted(
    loaded: LoadedRanker, store: LatentStore, dataset: Dataset, *, anew: Stage1Config | None
) -> LoadedRanker:
    """The ranker as it is, ready to be read with latent queries that it was not trained on.

    Args:
        anew: take the query tower's input statistics from ``store``, as training with this configuration does.

    Raises:
        ConfigError: a ranker without a query tower.
        ProvenanceError: latent queries of another width.
    """
    tower = loaded.ranker.query_tower
    if loaded.latents is None or tower is None:
        raise ConfigError(where="frozen ranker", required="one with a query tower", received="one without")
    if loaded.latents["dim"] != store.dim:
        required = f"latent queries of width {loaded.latents['dim']}"
        raise ProvenanceError(where=str(store.path), required=required, received=str(store.dim))
    if anew is not None:
        used = used_rows(dataset, without=anew.without, max_train=anew.max_train)
        rows = store.rows(dataset, "train") if used is None else store.rows(dataset, "train")[used]
        spread = evenly_spaced(len(rows), STATISTICS_LATENTS)
        sample = rows if spread is None else rows[spread]
        tower.set_statistics(torch.from_numpy(store.take(sample)))
    return replace(loaded, latents=store.provenance)


def relevant_rows(dataset: Dataset, scores: SplitScores, config: EvaluationConfig) -> Rows:
    """[S, P] catalogue rows that count as relevant: the simulator's annotation where there is one, else the clicks.

    Raises:
        DataError: annotated labels of a dataset that has none.
    """
    if config.labels == "clicked":
        return scores.clicked
    truth = EvaluationSplit(dataset, scores.session_ids).truth()
    if truth is not None:
        return truth.annotated
    if config.labels == "annotated":
        raise DataError(where=str(dataset.path), required="truth/test for annotated labels", received="none")
    return scores.clicked


def write_measured(path: Path, measured: MeasuredRow) -> None:
    tables = []
    for (seed, alignment_seed), found in measured.runs.items():
        count = len(measured.session_ids)
        columns = {
            "session_id": pa.array(measured.session_ids, pa.string()),
            "ranker_seed": np.full(count, seed),
            "alignment_seed": np.full(count, UNALIGNED if alignment_seed is None else alignment_seed),
            "impressions": found.impressions,
            "positives": found.positives,
            "first_rank": found.first_rank,
        }
        tables.append(pa.table({**columns, **found.values}))
    with atomic_path(path) as temporary:
        pq.write_table(pa.concat_tables(tables), temporary)


def read_measured(path: Path) -> MeasuredRow:
    """What :func:`write_measured` wrote."""
    with pq.ParquetFile(path) as file:
        table = file.read()
    keys = np.stack([table.column(name).to_numpy() for name in ("ranker_seed", "alignment_seed")], axis=1)
    names = list(table.column_names[6:])
    runs: dict[RunKey, SessionMetrics] = {}
    session_ids: tuple[str, ...] = ()
    for seed, alignment_seed in dict.fromkeys(map(tuple, keys.tolist())):
        part = table.filter(pa.array((keys == (seed, alignment_seed)).all(axis=1)))
        session_ids = tuple(part.column("session_id").to_pylist())
        counts = {name: part.column(name).to_numpy() for name in ("impressions", "positives", "first_rank")}
        values = {name: part.column(name).to_numpy() for name in names}
        runs[seed, None if alignment_seed == UNALIGNED else alignment_seed] = SessionMetrics(values, **counts)
    return MeasuredRow(session_ids, runs)
