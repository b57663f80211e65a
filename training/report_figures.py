"""Figures of the report page: slices, learning curves, reliability."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any

from rgalign.training.plots import IntervalRow, Point, Series, interval_plot, line_plot
from rgalign.training.report_html import (
    Report,
    bounds_text,
    colour_swatch,
    footnote,
    legend_line,
    metric_name,
    model_colours,
    points,
    shortened,
    titled_section,
)
from rgalign.training.report_tables import slice_table

# Slices that are plotted; all others are in the table below the plot.
PLOTTED_FAMILIES = ("region", "channel", "account", "history", "intent frequency")


def slices_section(report: Report) -> str:
    if not report["slices"]:
        return ""
    primary = metric_name(report["config"]["primary"])
    others = [model["model"] for model in report["models"] if model["model"] != report["baseline"]]
    plotted = [part for part in report["slices"] if part["family"] in PLOTTED_FAMILIES] or report["slices"]
    parts = [_slice_plot(report, plotted, others, primary)]
    note = (
        f"{len(report['slices'])} slices of at least 50 sessions; intervals are not corrected for their number, so "
        "about one slice in twenty is off by chance alone."
    )
    table = slice_table(report)
    parts.append(f"<details><summary>All slices as a table</summary>{table}</details>")
    return titled_section(f"Slices ({primary})", "".join(parts) + footnote(note))


def _slice_plot(report: Report, slices: Sequence[Mapping[str, Any]], others: Sequence[str], primary: str) -> str:
    colours = model_colours(report)
    shown, key = (others, "against_baseline") if others else ([report["baseline"]], None)
    rows: list[IntervalRow] = []
    family = None
    for part in slices:
        if part["family"] != family:
            family = part["family"]
            rows.append(IntervalRow(str(family)))
        intervals = []
        for model in shown:
            cell = part["models"][model]
            cell = cell if key is None else {**cell[key], "mean": cell[key]["difference"]}
            intervals.append((colours[model], 100 * cell["mean"], 100 * cell["low"], 100 * cell["high"]))
        rows.append(IntervalRow(shortened(part["name"]), f"{part['sessions']:,}", tuple(intervals)))
    label = f"{primary}, points" if key is None else f"{primary}: difference from {report['baseline']}, points"
    return legend_line((model, colours[model]) for model in shown) + interval_plot(rows, label)


def curves_section(report: Report) -> str:
    keys = ["train_loss", *_validation_keys(report)]
    plots = []
    for key in keys:
        series = list(_epoch_series(report, key))
        if series:
            scale = "" if key == "train_loss" else ", points"
            plots.append(f"<figure>{line_plot(series, 'epoch', _curve_name(key) + scale)}</figure>")
    if not plots:
        return ""
    colours = model_colours(report)
    models = dict.fromkeys(curve["model"] for curve in report["curves"])
    legend = legend_line((model, colours[model]) for model in models)
    return titled_section(
        "Learning curves", f"{legend}<div class=plots>{''.join(plots)}</div>{footnote('One line a seed.')}"
    )


def _validation_keys(report: Report) -> list[str]:
    """The recorded names of the primary metric: ``valid/ndcg@3``, ``valid_ndcg@3`` or ``ndcg@3``."""
    names = {name for curve in report["curves"] for epoch in curve["epochs"] for name in epoch}
    primary = report["config"]["primary"]
    return sorted(name for name in names if name.replace("/", "_") in (primary, f"valid_{primary}"))[:1]


def _curve_name(key: str) -> str:
    if key == "train_loss":
        return "training loss"
    return f"{metric_name(key.removeprefix('valid').lstrip('/_'))} on valid"


def _epoch_series(report: Report, key: str) -> Iterable[Series]:
    factor = 1 if key == "train_loss" else 100
    for curve in report["curves"]:
        values = [
            (epoch.get("epoch", number), factor * epoch[key])
            for number, epoch in enumerate(curve["epochs"], 1)
            if epoch.get(key) is not None
        ]
        if values:
            marks = tuple(Point(x, y, y, y) for x, y in values)
            yield Series(curve["model"], model_colours(report)[curve["model"]], marks)


def reliability_section(report: Report) -> str:
    figures = []
    for kind, title in (("learnt", "scale learnt in training"), ("fitted", "scale fitted on valid")):
        models = [entry for entry in report["reliability"] if kind in entry]
        if not models:
            continue
        series = [_reliability_series(report, entry["model"], entry[kind]) for entry in models]
        axes = ("probability of the top intent", "share relevant")
        plot = line_plot(series, *axes, diagonal=True, width=440, height=330)
        errors = "".join(_calibration_line(report, entry["model"], entry[kind]) for entry in models)
        figures.append(f"<figure><figcaption>{title}</figcaption>{plot}<table class=small>{errors}</table></figure>")
    if not figures:
        return ""
    note = (
        "Softmax of scale × score over the candidates, in bins of equal numbers of sessions; seeds pooled. On the "
        "dashed line a probability means what it says. ECE: mean distance from it."
    )
    return titled_section("Reliability of the scores", f"<div class=plots>{''.join(figures)}</div>{footnote(note)}")


def _reliability_series(report: Report, model: str, curve: Mapping[str, Any]) -> Series:
    marks = [
        Point(part["probability"], part["outcome"]["mean"], part["outcome"]["low"], part["outcome"]["high"])
        for part in curve["bins"]
    ]
    return Series(model, model_colours(report)[model], tuple(marks))


def _calibration_line(report: Report, model: str, curve: Mapping[str, Any]) -> str:
    scales = ", ".join(f"{scale:.1f}" for scale in curve["scales"].values())
    name = f"{colour_swatch(model_colours(report)[model])}{escape(model)}"
    error = f"{points(curve['ece']['mean'])} {bounds_text(curve['ece'])}"
    return f"<tr><th>{name}</th><td>ECE {error}</td><td>scale {scales}</td></tr>"
