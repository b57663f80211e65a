"""The last step of a table: cells from the measured rows, written as JSON, Markdown and a forest plot.

out/table.json    rows with metrics and differences     out/table.md     out/forest.svg
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rgalign.data.dataset import Dataset
from rgalign.files import write_atomic, write_json
from rgalign.training.evaluation_split import SPLIT, EvaluationSplit
from rgalign.training.loop.outside_files import dataset_hashes
from rgalign.training.loop.step import OUT, OnStep, Step
from rgalign.training.tables.cells import PAPER_METRICS, Cells
from rgalign.training.tables.forest import forest_plot
from rgalign.training.tables.measure import FILE, measure_name, read_measured
from rgalign.training.tables.row import Improvement, Row, TablePlan
from rgalign.training.tables.table_markdown import table_markdown
from rgalign.training.tables.tables_config import TablesConfig

JSON, MARKDOWN, FOREST = "table.json", "table.md", "forest.svg"

Table = dict[str, Any]


def table_name(number: int) -> str:
    return f"table{number}"


def table_step(plan: TablePlan, config: TablesConfig, root: Path) -> Step:
    """Reads the rows' measures; each row that has runs must be measured before."""
    measured = [row for row in plan.rows if row.runs]

    def run(out: Path, on_step: OnStep | None) -> Mapping[str, Any]:
        table = make_table(plan, config, root)
        write_json(out / JSON, table)
        write_atomic(out / MARKDOWN, table_markdown(table).encode())
        write_atomic(out / FOREST, forest_plot(table).encode())
        return {"rows": len(plan.rows)}

    lines = [[row.name, row.cells, row.against, row.note] for row in plan.rows]
    below = [[each.label, each.row, each.base, each.kind] for each in plan.improvements]
    settings = {"rows": lines, "improvements": below, "evaluation": config.evaluation.model_dump(mode="json")}
    return Step(
        name=table_name(plan.number),
        config=config.evaluation,
        settings=settings,
        after=tuple(measure_name(plan.number, row.name) for row in measured),
        run=run,
        outcome=lambda out: None,
        files=lambda: dataset_hashes(config.dataset, (SPLIT,)),
    )


def make_table(plan: TablePlan, config: TablesConfig, root: Path) -> Table:
    """What table.json holds."""
    dataset, evaluation = Dataset.open(config.dataset), config.evaluation
    found = {
        row.name: read_measured(root / measure_name(plan.number, row.name) / OUT / FILE)
        for row in plan.rows
        if row.runs
    }
    session_ids = next(iter(found.values())).session_ids
    clusters = EvaluationSplit(dataset, session_ids).users() if evaluation.clusters == "user" else None
    cells = Cells(found, evaluation.gauc_weight, clusters, evaluation.resampling)
    rows = [_row(row, cells, found) for row in plan.rows]
    return {
        "table": plan.number,
        "title": plan.title,
        "dataset": {
            "name": dataset.schema.name,
            "fingerprint": dataset.fingerprint(SPLIT),
            "sessions": len(session_ids),
            "users": None if clusters is None else len(set(clusters.tolist())),
            "intents": len(dataset.catalog),
        },
        "evaluation": evaluation.model_dump(mode="json"),
        "head": list(plan.head),
        "metrics": [name for name in PAPER_METRICS if name in cells.metrics],
        "primary": evaluation.primary,
        "seeds": {"ranker": list(config.seeds), "alignment": list(config.alignment_seeds)},
        "rows": rows,
        "improvements": [_improvement(each, rows) for each in plan.improvements],
        "remarks": list(plan.remarks),
    }


def _row(row: Row, cells: Cells, found: Mapping[str, Any]) -> dict[str, Any]:
    values: dict[str, Any] = {"name": row.name, "cells": list(row.cells), "note": row.note}
    if not row.runs:
        return {**values, "num_runs": 0, "metrics": None, "against": {}}
    against = {base: cells.difference(row.name, base) for base in row.against}
    num_runs = len(found[row.name].runs)
    return {**values, "num_runs": num_runs, "metrics": cells.metrics_of(row.name), "against": against}


def _improvement(each: Improvement, rows: list[dict[str, Any]]) -> dict[str, Any]:
    against = next(row for row in rows if row["name"] == each.row)["against"][each.base]
    cells = {name: found[each.kind] for name, found in against.items()}
    return {"label": each.label, "row": each.row, "base": each.base, "kind": each.kind, "metrics": cells}
