"""The comparison as Markdown, for a page of documentation or an issue: means, differences and slices with intervals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

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
from rgalign.training.report_tables import noise_text


def report_markdown(report: Report) -> str:
    """What report.html shows in tables, in points (x 100), without the figures."""
    data = report["dataset"]
    parts = [f"# {data['name']}: {data['sessions']:,} test sessions, labels {data['labels']}", _models(report)]
    if report["ceiling"] is not None:
        parts.append(_ceiling(report))
    parts.append(_slices(report))
    if report["ceiling"] is not None:
        parts.append(_slice_shares(report))
    return "\n\n".join(parts) + "\n"


def _models(report: Report) -> str:
    base = report["baseline"]
    head = ["", "", f"points, {level_text(report)} interval", f"minus {base}", ""]
    rows = []
    for name in distinct_metrics(report):
        for position, model in enumerate(report["models"]):
            change = model["against_baseline"]
            label = metric_name(name) if position == 0 else ""
            rows.append([label, with_seeds(model), _mean(model["metrics"][name]), *_change(change and change[name])])
    return _table(head, rows)


def _ceiling(report: Report) -> str:
    ceiling = report["ceiling"]
    head = ["metric", "ceiling", *(f"{model}, share of it" for model in ceiling["models"])]
    rows = []
    for name in distinct_metrics(report):
        shares = [cells[name]["share"] for cells in ceiling["models"].values()]
        best = points(ceiling["metrics"][name]["ceiling"]["mean"])
        rows.append([metric_name(name), best, *("n/a" if share is None else _mean(share) for share in shares)])
    noise = [f"{name} {noise_text(aucs)}" for name, aucs in report["noise_auc"].items()]
    note = f"\n\nNoise AUC of the confidence weights: {'; '.join(noise)}." if noise else ""
    return _table(head, rows) + note


def _slices(report: Report) -> str:
    others = [model["model"] for model in report["models"] if model["model"] != report["baseline"]]
    metric, base = metric_name(report["config"]["primary"]), report["baseline"]
    head = ["slice", "sessions", f"{base} {metric}", *(f"{name} minus {base}" for name in others)]
    rows = []
    for part in report["slices"]:
        cells = part["models"]
        changes = [" ".join(_change(cells[name]["against_baseline"])) for name in others]
        rows.append([_slice_name(part), f"{part['sessions']:,}", _mean(cells[base]), *changes])
    return _table(head, rows)


def _slice_shares(report: Report) -> str:
    """Each slice's ceiling and the models' shares of it."""
    models = [model["model"] for model in report["models"]]
    head = [
        "slice",
        "sessions",
        f"ceiling of {metric_name(report['config']['primary'])}",
        *(f"{name}, share of it" for name in models),
    ]
    rows = []
    for part in report["slices"]:
        shares = [part["models"][name]["share"] for name in models]
        cells = ["n/a" if share is None else _mean(share) for share in shares]
        rows.append([_slice_name(part), f"{part['sessions']:,}", points(part["ceiling"]), *cells])
    return _table(head, rows)


def _slice_name(part: Mapping[str, Any]) -> str:
    return f"{part['family']}: {part['name']}"


def _mean(cell: Mapping[str, Any]) -> str:
    return f"{points(cell['mean'])} {bounds_text(cell)}"


def _change(found: Mapping[str, Any] | None) -> tuple[str, str]:
    if found is None:
        return "", ""
    change = f"{points(found['difference'], sign=True)} {bounds_text(found, sign=True)}"
    return change, verdict_word(found["verdict"])


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)
