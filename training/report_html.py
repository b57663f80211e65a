"""Pieces of the report page: numbers, names, colours and small HTML, each escaped where it comes from data."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any

Report = Mapping[str, Any]

BASELINE_COLOUR = "#7b8494"
# Told apart by colour-blind readers too.
COLOURS = ("#0b63c5", "#d9730d", "#0f8a6a", "#9b4dca", "#c22f4b", "#8a6d1a")
NAMES = {"auc": "GAUC", "mrr_first": "MRR (first)", "mrr_all": "MRR (all)"}
FAMILIES = {"recall": "Recall", "hit_rate": "HitRate", "ndcg": "NDCG"}


def metric_name(name: str) -> str:
    """``recall@3`` -> Recall@3."""
    family, _, k = name.partition("@")
    return NAMES.get(name) or f"{FAMILIES.get(family, family)}@{k}"


def distinct_metrics(report: Report) -> list[str]:
    """The metrics that differ from every earlier one: with one relevant intent HitRate is Recall."""
    kept: list[str] = []
    for name in report["metrics"]:
        if not any(all(_same(model, name, other) for model in report["models"]) for other in kept):
            kept.append(name)
    return kept


def _same(model: Mapping[str, Any], name: str, other: str) -> bool:
    cells = model["metrics"][name], model["metrics"][other]
    pairs = [tuple(cell[key] for cell in cells) for key in ("mean", "low", "high")]
    return all(a == b or (None not in (a, b) and abs(a - b) < 1e-6) for a, b in pairs)  # limits are in single precision


def points(value: float | None, *, sign: bool = False) -> str:
    """A share in points: 0.5271 -> 52.71; + and a true minus for differences."""
    if value is None:
        return "n/a"
    text = f"{100 * value + 0.0:{'+' if sign else ''}.2f}"
    return text.replace("-", "\N{MINUS SIGN}")


def bounds_text(cell: Mapping[str, Any], *, sign: bool = False) -> str:
    return f"[{points(cell['low'], sign=sign)}, {points(cell['high'], sign=sign)}]"


def verdict_word(verdict: str) -> str:
    return verdict.partition(" ")[0]


def with_seeds(model: Mapping[str, Any]) -> str:
    count = len(model["seeds"])
    return model["model"] if count == 1 else f"{model['model']} ({count} seeds)"


def model_colours(report: Report) -> dict[str, str]:
    others = [model["model"] for model in report["models"] if model["model"] != report["baseline"]]
    colours = {model: COLOURS[number % len(COLOURS)] for number, model in enumerate(others)}
    return {report["baseline"]: BASELINE_COLOUR, **colours}


def shortened(text: str, limit: int = 30) -> str:
    return text if len(text) <= limit else text[: limit - 1] + "…"


def change_text(found: Mapping[str, Any]) -> str:
    difference = f"<span class=delta>{points(found['difference'], sign=True)}</span>"
    return f"{difference} <span class=interval>{bounds_text(found, sign=True)}</span>"


def verdict_chip(found: Mapping[str, Any]) -> str:
    word = verdict_word(found["verdict"])
    return f'<span class="verdict {word}" title="{escape(found["verdict"])}">{word}</span>'


def titled_section(title: str, body: str) -> str:
    return f"<section><h2>{escape(title)}</h2>{body}</section>"


def footnote(text: str) -> str:
    return f"<p class=note>{escape(text)}</p>"


def html_table(head: Sequence[str], rows: Sequence[str], kind: str = "") -> str:
    """``head`` and ``rows`` are HTML already."""
    titles = "".join(f"<th>{title}</th>" for title in head)
    body = "".join(f"<tr>{row}</tr>" for row in rows)
    content = f'<table class="{kind}"><thead><tr>{titles}</tr></thead><tbody>{body}</tbody></table>'
    return f"<div class=scroll>{content}</div>"


def legend_line(entries: Iterable[tuple[str, str]]) -> str:
    names = "".join(f"<span>{colour_swatch(colour)}{escape(name)}</span>" for name, colour in entries)
    return f"<p class=legend>{names}</p>"


def legend_name(report: Report, model: Mapping[str, Any], *, seeds: bool = True) -> str:
    name = with_seeds(model) if seeds else model["model"]
    return f"{colour_swatch(model_colours(report)[model['model']])}{escape(name)}"


def colour_swatch(colour: str) -> str:
    return f'<i class=swatch style="background:{colour}"></i>'


def level_text(report: Report) -> str:
    return f"{100 * report['config']['level']:g} %"


def p_value_text(value: float | None) -> str:
    if value is None:
        return ""
    return "p &lt; 0.001" if value < 0.001 else f"p = {value:.3f}"
