"""Tables of the report page: comparison, seeds, share of the ceiling, slices, example sessions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from rgalign.training.report_html import (
    Report,
    bounds_text,
    change_text,
    colour_swatch,
    distinct_metrics,
    footnote,
    html_table,
    legend_name,
    level_text,
    metric_name,
    model_colours,
    p_value_text,
    points,
    shortened,
    titled_section,
    verdict_chip,
)


def comparison_section(report: Report) -> str:
    kept = distinct_metrics(report)
    head = ["", *(legend_name(report, model) for model in report["models"])]
    rows = []
    for name in kept:
        cells = [f"<th>{metric_name(name)}</th>"]
        for model in report["models"]:
            cell = model["metrics"][name]
            text = _mean_text(cell)
            if model["against_baseline"] is not None:
                found = model["against_baseline"][name]
                text += f"<br>{change_text(found)}<br>{verdict_chip(found)}"
                text += f" <span class=interval>{p_value_text(found['p_value'])}</span>"
            cells.append(f"<td>{text}</td>")
        rows.append("".join(cells))
    dropped = [metric_name(name) for name in report["metrics"] if name not in kept]
    notes = [
        f"Points (× 100) with {level_text(report)} intervals; differences are paired, model − {report['baseline']}."
    ]
    notes.append("Inconclusive: the interval of the difference spans zero.")
    if dropped:
        notes.append(f"Left out because they equal a metric above: {', '.join(dropped)}.")
    skipped = [f"{metric_name(name)} {count:,}" for name, count in report["skipped"].items() if count and name in kept]
    if skipped:
        notes.append(f"Sessions where a metric is undefined: {', '.join(skipped)}.")
    return titled_section("Comparison", html_table(head, rows, "wide") + footnote(" ".join(notes)))


def _mean_text(cell: Mapping[str, Any]) -> str:
    return f"<span class=mean>{points(cell['mean'])}</span> <span class=interval>{bounds_text(cell)}</span>"


def seeds_section(report: Report) -> str:
    primary = report["config"]["primary"]
    if all(len(model["seeds"]) == 1 for model in report["models"]):
        return ""
    seeds = sorted({seed for model in report["models"] for seed in model["seeds"]})
    head = ["", *(f"seed {seed}" for seed in seeds), "mean", "standard deviation"]
    rows = []
    for model in report["models"]:
        cell = model["metrics"][primary]
        means = [points(cell["seeds"].get(str(seed))) for seed in seeds]
        values = [*means, points(cell["mean"]), points(cell["seed_sd"])]
        rows.append(f"<th>{legend_name(report, model, seeds=False)}</th>" + "".join(f"<td>{v}</td>" for v in values))
    note = f"{metric_name(primary)}. The intervals above cover the choice of sessions; this is the spread of training."
    return titled_section("Seeds", html_table(head, rows) + footnote(note))


def ceiling_section(report: Report) -> str:
    found = report["ceiling"]
    if found is None:
        return ""
    models = [model for model in report["models"] if model["model"] in found["models"]]
    head = ["", "chance", "ceiling", *(legend_name(report, model, seeds=False) for model in models)]
    rows = []
    for name in distinct_metrics(report):
        limits = found["metrics"][name]
        cells = [f"<th>{metric_name(name)}</th>"]
        cells.append(f"<td>{points(limits['chance'])}</td><td>{_mean_text(limits['ceiling'])}</td>")
        for model in models:
            shares = found["models"][model["model"]][name]
            cells.append(
                f"<td>{_share(shares['share'])}<br><span class=note>{_share(shares['learnable_share'])}</span></td>"
            )
        rows.append("".join(cells))
    note = (
        "The simulator knows every session's true probabilities: ranking by them is the ceiling, a random order is "
        "chance. Upper line: metric / ceiling; lower line: (metric − chance) / (ceiling − chance)."
    )
    return titled_section("Share of the ceiling", html_table(head, rows, "wide") + footnote(note) + _noise_note(report))


def _noise_note(report: Report) -> str:
    if not report["noise_auc"]:
        return ""
    values = "; ".join(f"{escape(name)} {noise_text(aucs)}" for name, aucs in report["noise_auc"].items())
    return footnote(f"AUC of a low confidence weight against the hidden noise flag of the training clicks: {values}.")


def noise_text(aucs: Sequence[float]) -> str:
    """Mean and range over the seeds."""
    mean = f"{sum(aucs) / len(aucs):.3f}"
    return mean if len(aucs) == 1 else f"{mean} ({min(aucs):.3f} to {max(aucs):.3f})"


def _share(cell: Mapping[str, Any] | None) -> str:
    if cell is None:
        return "n/a"
    interval = f"[{100 * cell['low']:.1f}, {100 * cell['high']:.1f}]"
    return f"<span class=mean>{100 * cell['mean']:.1f} %</span> <span class=interval>{interval}</span>"


def slice_table(report: Report) -> str:
    head = ["slice", "", "sessions", *(legend_name(report, model, seeds=False) for model in report["models"])]
    rows = []
    for part in report["slices"]:
        cells = [f"<th>{escape(part['family'])}</th><th>{escape(part['name'])}</th><td>{part['sessions']:,}</td>"]
        for cell in part["models"].values():
            text = _mean_text(cell)
            if cell["against_baseline"] is not None:
                text += f"<br>{change_text(cell['against_baseline'])} {verdict_chip(cell['against_baseline'])}"
            if "share" in cell:
                text += f"<br><span class=note>{_share(cell['share'])} of the ceiling</span>"
            cells.append(f"<td>{text}</td>")
        rows.append("".join(cells))
    return html_table(head, rows, "wide")


def examples_section(report: Report) -> str:
    if not report["examples"]:
        return ""
    parts = [_example(report, example) for example in report["examples"]]
    note = "Sessions drawn at random, not picked; the first seed of each model. ✓: relevant."
    return titled_section("Example sessions", footnote(note) + "".join(parts))


def _example(report: Report, example: Mapping[str, Any]) -> str:
    slots = "".join(
        f"<li><span class=dimension>{escape(slot['dimension'])}</span>{escape(shortened(slot['text'], 240))}</li>"
        for slot in example["slots"]
    )
    wanted = ", ".join(intent["title"] for intent in example["relevant"])
    order = [model["model"] for model in report["models"]]
    lists = "".join(_recommendations(report, model, example["models"][model]) for model in order)
    return (
        f"<article><h3>Session {escape(example['session_id'])}</h3>"
        f"<p class=wanted>came for: <b>{escape(wanted)}</b></p><ul class=slots>{slots}</ul>"
        f"<div class=lists>{lists}</div></article>"
    )


def _recommendations(report: Report, model: str, answer: Mapping[str, Any]) -> str:
    # A ranker without a query tower has nothing to split.
    split = any(intent["query_part"] for intent in answer["recommended"])
    head = ["", "intent", "score", *(["user", "query"] if split else [])]
    rows = []
    for rank, intent in enumerate(answer["recommended"], 1):
        parts = [intent["score"], *([intent["user_part"], intent["query_part"]] if split else [])]
        numbers = "".join(f"<td>{score_text(value)}</td>" for value in parts)
        title = escape(shortened(intent["title"], 60)) + (" <b class=hit>✓</b>" if intent["relevant"] else "")
        rows.append(f"<td>{rank}</td><td class=title>{title}</td>{numbers}")
    name = f"{colour_swatch(model_colours(report)[model])}{escape(model)}"
    return f"<div><h4>{name}</h4>{html_table(head, rows, 'small')}</div>"


def score_text(value: float | None) -> str:
    return "n/a" if value is None else f"{value:.3f}".replace("-", "\N{MINUS SIGN}")
