"""``curves.html`` of an alignment run: each measured quantity over the steps, in training and on held-out sessions."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from typing import Any

from rgalign.training.plots import Point, Series, line_plot
from rgalign.training.report_html import legend_line
from rgalign.training.report_style import CSS

TRAIN, HELD_OUT = "#9aa1ad", "#1d4ed8"
NAMES = {
    "loss": "loss",
    "cos": "cos(h, e+)",
    "reward": "reward of h",
    "contrast": "InfoNCE",
    "rewards/margins": "margin of the implicit rewards",
    "rewards/accuracies": "share of pairs with a margin above 0",
    "mean_token_accuracy": "accuracy of the query's tokens",
}


def curves_page(title: str, metrics: Mapping[str, Any]) -> str:
    """The page: no script, nothing fetched.

    Args:
        metrics: of the run, as ``metrics.json`` holds them.
    """
    curves = metrics["curves"]
    sources = {TRAIN: [*curves["train"]], HELD_OUT: [_bare(entry) for entry in curves["held_out"]]}
    figures = []
    for key, name in NAMES.items():
        series = [_series(colour, key, entries) for colour, entries in sources.items()]
        drawn = [line for line in series if line.points]
        if drawn:
            figures.append(f"<figure>{line_plot(drawn, 'optimiser step', name)}</figure>")
    facts = f"{metrics['sessions']:,} sessions, {metrics['held_out_sessions']:,} held out, {metrics['steps']:,} steps"
    legend = legend_line([("training", TRAIN), (f"held out ({metrics['held_out_sessions']:,} sessions)", HELD_OUT)])
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>'
        f'<meta name="viewport" content="width=device-width, initial-scale=1"><style>{CSS}</style></head><body><main>'
        f"<header><p class=eyebrow>rgalign alignment</p><h1>{escape(title)}</h1><p class=facts>{facts}</p></header>"
        f"<section>{legend}<div class=plots>{''.join(figures)}</div></section></main></body></html>\n"
    )


def _bare(entry: Mapping[str, Any]) -> dict[str, Any]:
    return {name.removeprefix("eval_"): value for name, value in entry.items()}


def _series(colour: str, key: str, entries: list[dict[str, Any]]) -> Series:
    values = [(float(entry["step"]), float(entry[key])) for entry in entries if entry.get(key) is not None]
    return Series(NAMES[key], colour, tuple(Point(x, y, y, y) for x, y in values))
