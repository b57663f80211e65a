"""The loop's arms on the test sessions: baseline, qe_rec (stage 1), control, full (stage 3), in one report.

out/against-<arm>/report.*   the whole evaluation against baseline, qe_rec and control
out/report.json, report.md   every arm with its differences from those three
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from rgalign.data.dataset import SPLITS, Dataset
from rgalign.files import write_atomic, write_json
from rgalign.training.evaluate import evaluate
from rgalign.training.experiment import score_run
from rgalign.training.loop.loop_config import LoopConfig
from rgalign.training.loop.outside_files import dataset_hashes
from rgalign.training.loop.ranker_steps import seed_run
from rgalign.training.loop.step import OUT, OnStep, Step
from rgalign.training.report_html import (
    Report,
    bounds_text,
    distinct_metrics,
    level_text,
    metric_name,
    points,
    verdict_word,
    with_seeds,
)

REFERENCES = ("baseline", "qe_rec", "control")
REPORT = "report.md"


def evaluate_step(name: str, loop: LoopConfig, arms: Mapping[str, str], root: Path) -> Step:
    """Args: arms: arm -> the step that trained it."""

    def run(out: Path, on_step: OnStep | None) -> Mapping[str, Any]:
        runs = {arm: [seed_run(root / step / OUT, seed) for seed in loop.seeds] for arm, step in arms.items()}
        summary = evaluate_arms(runs, loop, out)
        curves = sorted(root.glob(f"round*/*/{OUT}/curves.html"))
        links = [f"[{page.parts[-4]}/{page.parts[-3]}: curves](../../{page.relative_to(root)})\n" for page in curves]
        report = out / REPORT
        write_atomic(report, "\n".join([report.read_text(encoding="utf-8"), *links]).encode())
        return summary

    return Step(
        name=name,
        config=loop.evaluation,
        settings={"evaluation": loop.evaluation.model_dump(mode="json"), "arms": dict(arms)},
        after=tuple(arms.values()),
        run=run,
        outcome=lambda out: None,
        files=lambda: dataset_hashes(loop.dataset, SPLITS),
    )


def evaluate_arms(runs: Mapping[str, Sequence[Path]], loop: LoopConfig, out: Path) -> dict[str, Any]:
    """Scores every arm once, compares it with each reference, and writes the reports.

    Returns:
        The contents of report.json: ``metrics`` arm -> metric -> mean, low, high, seeds; ``differences`` arm ->
        reference -> metric -> difference, low, high, verdict, p_value.
    """
    dataset = Dataset.open(loop.dataset)
    scored = [score_run(run, arm, loop.dataset) for arm, folders in runs.items() for run in folders]
    reports = {
        arm: evaluate(scored, dataset, out / f"against-{arm}", arm, loop.evaluation)
        for arm in REFERENCES
        if arm in runs
    }
    summary = {
        "metrics": {model["model"]: model["metrics"] for model in next(iter(reports.values()))["models"]},
        "differences": {
            arm: {
                reference: model["against_baseline"]
                for reference, report in reports.items()
                for model in report["models"]
                if model["model"] == arm and reference != arm
            }
            for arm in runs
        },
    }
    write_json(out / "report.json", summary)
    write_atomic(out / REPORT, arms_markdown(reports).encode())
    return summary


def arms_markdown(reports: Mapping[str, Report]) -> str:
    """One table: points (x 100) of every arm, and its paired differences from each reference."""
    first = next(iter(reports.values()))
    data = first["dataset"]
    found = {reference: {model["model"]: model for model in report["models"]} for reference, report in reports.items()}
    head = ["", "", f"points, {level_text(first)} interval", *(f"minus {reference}" for reference in reports)]
    lines = [
        f"# The closed loop on {data['name']}: {data['sessions']:,} test sessions, labels {data['labels']}",
        "",
        "| " + " | ".join(head) + " |",
        "|" + "---|" * len(head),
    ]
    for name in distinct_metrics(first):
        for place, model in enumerate(first["models"]):
            cell = model["metrics"][name]
            changes = [_change(models[model["model"]]["against_baseline"], name) for models in found.values()]
            label = metric_name(name) if place == 0 else ""
            cells = [label, with_seeds(model), f"{points(cell['mean'])} {bounds_text(cell)}", *changes]
            lines.append("| " + " | ".join(cells) + " |")
    lines += ["", *(f"[Against {reference}](against-{reference}/report.html)\n" for reference in reports)]
    return "\n".join(lines)


def arms_table(summary: Mapping[str, Any], metric_names: Sequence[str], references: Sequence[str]) -> Table:
    """A few metrics of ``report.json`` for a terminal of 80 columns.

    Args:
        summary: the contents of report.json.
        metric_names: as report.json writes them, e.g. ``recall@3``.
        references: the arms to show the differences from.
    """
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    table.add_column("", no_wrap=True)
    for head in ("points", *(f"minus {reference}" for reference in references)):
        table.add_column(head, justify="right")
    for name in metric_names:
        table.add_row(Text(metric_name(name), style="bold"))
        for arm, cells in summary["metrics"].items():
            cell, found = cells[name], summary["differences"][arm]
            changes = [_change(found.get(reference), name) for reference in references]
            table.add_row(f"  {arm}", f"{points(cell['mean'])}\n{bounds_text(cell)}", *changes)
    return table


def _change(differences: Mapping[str, Any] | None, name: str) -> str:
    if differences is None:
        return ""
    found = differences[name]
    change = f"{points(found['difference'], sign=True)} {bounds_text(found, sign=True)}"
    return f"{change} {verdict_word(found['verdict'])}"
