"""The report of an evaluation: one self-contained HTML page of what report.json holds, and a console table."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from rgalign.training.comparison import PLOT_RESAMPLES
from rgalign.training.report_figures import curves_section, reliability_section, slices_section
from rgalign.training.report_html import (
    Report,
    bounds_text,
    change_text,
    distinct_metrics,
    level_text,
    metric_name,
    model_colours,
    points,
    shortened,
    titled_section,
    verdict_chip,
    verdict_word,
    with_seeds,
)
from rgalign.training.report_style import CSS
from rgalign.training.report_tables import ceiling_section, comparison_section, examples_section, seeds_section


def print_comparison(report: Report, console: Console | None = None) -> None:
    """Prints every model's metrics and differences from the baseline, in points with intervals; fits 80 columns."""
    data, baseline = report["dataset"], report["baseline"]
    title = f"{data['name']}: {data['sessions']:,} test sessions"
    seeds = ", ".join(f"{len(model['seeds'])} x {model['model']}" for model in report["models"])
    caption = f"points (x 100) with {level_text(report)} intervals; seeds: {seeds}"
    table = Table(title=title, caption=caption, box=SIMPLE_HEAD, padding=(0, 1), pad_edge=False)
    table.add_column("", overflow="ellipsis", no_wrap=True)
    table.add_column("mean", justify="right", no_wrap=True, min_width=20)
    table.add_column(f"minus {shortened(baseline, 14)}", justify="right", no_wrap=True, min_width=21)
    table.add_column("", no_wrap=True, min_width=12)
    for name in distinct_metrics(report):
        table.add_row(Text(metric_name(name), style="bold"))
        for model in report["models"]:
            table.add_row(Text(f"  {model['model']}"), *_console_cells(model, name))
    (console or Console()).print(table)


def _console_cells(model: Mapping[str, Any], name: str) -> list[Text]:
    cell = model["metrics"][name]
    cells = [Text(f"{points(cell['mean'])} {bounds_text(cell)}")]
    if model["against_baseline"] is not None:
        found = model["against_baseline"][name]
        word = verdict_word(found["verdict"])
        cells.append(Text(f"{points(found['difference'], sign=True)} {bounds_text(found, sign=True)}"))
        cells.append(Text(word, style={"better": "green", "worse": "red"}.get(word, "dim")))
    return cells


def report_page(report: Report) -> str:
    """The page. Everything from data is escaped; there is no script and nothing is fetched."""
    sections = [
        _summary(report),
        comparison_section(report),
        seeds_section(report),
        ceiling_section(report),
        slices_section(report),
        curves_section(report),
        reliability_section(report),
        examples_section(report),
        _method(report),
    ]
    title = f"Evaluation: {report['dataset']['name']}"
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>'
        f'<meta name="viewport" content="width=device-width, initial-scale=1"><style>{CSS}</style></head>'
        f"<body><main>{''.join(sections)}</main></body></html>\n"
    )


def _summary(report: Report) -> str:
    data, primary = report["dataset"], metric_name(report["config"]["primary"])
    facts = [f"{data['sessions']:,} test sessions"]
    if data["users"] is not None:
        facts.append(f"{data['users']:,} users")
    facts.append(f"{data['intents']:,} intents")
    facts.append("whole catalogue" if data["candidates"] is None else f"{data['candidates']:g} candidates (median)")
    facts.append(f"labels: {data['labels']}")
    cards = "".join(_card(model, report, primary) for model in report["models"])
    return (
        f"<header><p class=eyebrow>rgalign evaluation</p><h1>{escape(data['name'])}</h1>"
        f"<p class=facts>{escape(' · '.join(facts))}</p></header><div class=cards>{cards}</div>"
    )


def _card(model: Mapping[str, Any], report: Report, primary: str) -> str:
    cell = model["metrics"][report["config"]["primary"]]
    colour = model_colours(report)[model["model"]]
    if model["against_baseline"] is None:
        below = "<p class=note>the baseline</p>"
    else:
        found = model["against_baseline"][report["config"]["primary"]]
        below = f"<p>{change_text(found)} {verdict_chip(found)}</p>"
    return (
        f'<div class=card style="border-top-color:{colour}"><h3>{escape(with_seeds(model))}</h3>'
        f"<p class=big>{points(cell['mean'])}</p><p class=interval>{primary} {bounds_text(cell)}</p>{below}</div>"
    )


def _method(report: Report) -> str:
    config, unit = report["config"], "users" if report["dataset"]["users"] is not None else "sessions"
    drawn = f"{config['method']} bootstrap over {unit}, {config['resamples']:,} resamples, seed {config['seed']}"
    facts = [
        f"Intervals: {drawn}; the same draws for every model. Slices and reliability: at most {PLOT_RESAMPLES:,}.",
        "p: paired sign-flip permutation test, two-sided.",
        "Seeds: each session's metric is averaged over the seeds first.",
        f"GAUC: share of pairs of a session in the right order, ties ½; mean weighted by {config['gauc_weight']}.",
        "Recall@K: relevant intents found / relevant. HitRate@K: any found. NDCG@K: gains 2^y − 1.",
        "MRR (first): reciprocal rank of the best relevant intent; MRR (all): mean over all relevant ones.",
        "Ties: score descending, then intent id ascending.",
        f"Dataset fingerprint {report['dataset']['fingerprint'][:16]}.",
    ]
    return titled_section("Method", "<ul>" + "".join(f"<li>{escape(fact)}</li>" for fact in facts) + "</ul>")
